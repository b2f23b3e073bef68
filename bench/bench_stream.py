"""A stream of frames of one patch, which share engine calls, against one call per frame; 32 frames a round."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from grd_edge.bench.bench_frame import work_of
from grd_edge.bench.limits import fma_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.subject import SETTLE_MS

from grd_edge.errors import CheckFailedError
from grd_edge.latency_frames import made_frames
from grd_edge.machine import usable_cores
from grd_edge.runtime import Inspector
from grd_edge.stream import Stream

FRAMES, BATCH = 32, 8
# A batch is another order of sums, after which INT8 may round the other way; half of what tells another network.
SCORE_TOLERANCE = 0.025
_ROLES = {
    "native": PRODUCT,
    **dict.fromkeys(("native-calls", "torch-eager", "onnxruntime"), BASELINE),
    "fma": LIMIT,
}


def prepare(setting: Setting, stack: ExitStack) -> Race:
    subject = setting.subject
    frames = made_frames(subject.bundle, 1)
    batch = [frames[index % len(frames)] for index in range(FRAMES)]
    inspector = stack.enter_context(Inspector(subject.path))
    stream = stack.enter_context(
        Stream(
            subject.path,
            batch_limit=BATCH,
            batch_frames=BATCH,
            queue_depth=FRAMES,
            frame_shape=frames[0].shape,
            patches=False,
        )
    )
    others = {row: subject.baseline(row) for row in ("torch-eager", "onnxruntime")}
    for each in others.values():
        stack.callback(each.close)
    subject.check({"native": inspector, **others}, frames[:2], subject.precision)

    def streamed(_: object) -> list[float]:
        for index, frame in enumerate(batch):
            if not stream.submit(frame, id=index):
                raise CheckFailedError("the stream refuses a frame though there is room for all")
        return [stream.wait().score for _ in batch]

    work = {key: FRAMES * value for key, value in work_of(subject, 1, subject.precision).items()}
    rows: dict[str, Contender | str] = {"native": Contender(streamed, **work)}
    for row, inspect in {"native-calls": inspector.inspect, **{r: each.inspect for r, each in others.items()}}.items():
        rows[row] = Contender(_one_by_one(inspect, batch), **work)
    rows["fma"] = fma_limit(stack, threads=usable_cores(), int8=subject.precision.startswith("int8"))

    def check(outputs: dict[str, list[float]]) -> None:
        off = float(np.abs(np.subtract(outputs["native"], outputs["native-calls"])).max())
        if not off <= SCORE_TOLERANCE:
            raise CheckFailedError(f"the stream scores {off:.1e} off the plain calls; a wrong result is not timed")

    return Race(rows, check, settle_ms=SETTLE_MS)


def _one_by_one(inspect: Callable[[np.ndarray], Any], batch: list[np.ndarray]) -> Callable[[object], list[float]]:
    def run(_: object) -> list[float]:
        with torch.inference_mode():
            return [inspect(frame).score for frame in batch]

    return run


test_stream = suite(Group("stream 1 patch batch 8", _ROLES, prepare, rounds=10))
