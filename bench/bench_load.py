"""Open bundle to first decision: files hashed, engine compiled, one frame of 16 patches."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from grd_edge.bench.rows import BASELINE, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.subject import BASELINES, Subject

from grd_edge.cold_start import cold_start
from grd_edge.errors import CheckFailedError
from grd_edge.latency_frames import made_frames
from grd_edge.runtime import Inspector

_ROLES = {"native": PRODUCT, "native-process": PRODUCT, **dict.fromkeys(BASELINES, BASELINE)}


def prepare(setting: Setting, stack: ExitStack) -> Race:
    path = setting.subject.path
    frame = made_frames(setting.subject.bundle)[0]

    def native(_: object) -> Any:
        with Inspector(path) as inspector:
            return inspector.inspect(frame)

    def baseline(row: str):
        def run(_: object) -> Any:
            inspector = Subject(path).baseline(row)
            try:
                with torch.inference_mode():
                    return inspector.inspect(frame)
            finally:
                inspector.close()

        return run

    with Inspector(path) as inspector:
        setting.subject.check({"native": inspector}, [frame], setting.subject.precision)
        expected = inspector.inspect(frame)
    size = sum(map(len, setting.subject.bundle.files.values()))
    rows: dict[str, Contender | str] = {
        "native": Contender(native, bytes=size),
        # In a process of its own, from the opening on, as `grd-edge bench` measures it.
        "native-process": Contender(
            lambda _: cold_start(path, frame, frames=0), bytes=size, own_ms=lambda found: found["cold_start_ms"]
        ),
        **{row: Contender(baseline(row), bytes=size) for row in BASELINES},
    }

    def check(outputs: dict[str, Any]) -> None:
        phi = {row: outputs[row].phi for row in ("native", *BASELINES)}
        if not np.array_equal(phi["native"], expected.phi):
            raise CheckFailedError("an engine opened again scores differently; a wrong result is not timed")
        for row in BASELINES:
            off = float(np.abs(phi[row] - phi["torch-eager"]).max())
            if not off <= 1e-4:
                raise CheckFailedError(f"{row} scores {off:.1e} off PyTorch; a wrong result is not timed")

    return Race(rows, check)


test_load = suite(Group("load", _ROLES, prepare, rounds=5, warmup=1))
