"""Frame in, decision out: 16 patches on all cores, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from grd_edge.bench.assembled import AssembledInspector, nncf_engine
from grd_edge.bench.cuts import cut_check
from grd_edge.bench.gpu import FMAS_PER_POSITION
from grd_edge.bench.limits import fma_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.subject import BASELINES, SETTLE_MS, Subject

from grd_edge.errors import CheckFailedError
from grd_edge.latency_check import REDUCED_TOLERANCE, SCORE_TOLERANCE
from grd_edge.latency_frames import PATCHES, made_frames
from grd_edge.machine import usable_cores
from grd_edge.patches import prepare_frame
from grd_edge.runtime import Inspector
from grd_edge.score import score_patches_f64

_ROLES = {
    "native": PRODUCT,
    **dict.fromkeys((*BASELINES, "torch-compile"), BASELINE),
    "fma": LIMIT,
}
_INT8_ROLES = {**_ROLES, "openvino-nncf-opencv": BASELINE}


def work_of(subject: Subject, patches: int, precision: str) -> dict[str, Any]:
    """Least work on a frame of so many patches: the engine's weights read once, network and scores computed."""
    _, channels, h, w = subject.shape(patches)
    positions = patches * channels * (h - 10) * (w - 10)
    return {
        "bytes": len(subject.model_of(precision)) + patches * channels * h * w,
        "gflop": patches * subject.gflop + 2e-9 * FMAS_PER_POSITION * positions,
    }


def prepare(setting: Setting, stack: ExitStack, *, fp32: bool) -> Race:
    subject = setting.subject
    precision = "fp32" if fp32 else subject.precision
    frames = made_frames(subject.bundle, PATCHES)
    native = stack.enter_context(Inspector(subject.path, precision=precision))
    inspectors: dict[str, Any] = {"native": native, **{row: subject.baseline(row) for row in BASELINES}}
    for inspector in inspectors.values():
        stack.callback(inspector.close)
    subject.check(inspectors, frames[:2], precision)
    fast = setting.without_compiler or subject.compiled(PATCHES)
    inspectors["torch-compile"] = fast if isinstance(fast, str) else subject.reference(fast)
    if not fp32:
        inspectors["openvino-nncf-opencv"] = _assembled(subject, frames[0])
    work = work_of(subject, PATCHES, precision)
    rows: dict[str, Contender | str] = {
        row: each if isinstance(each, str) else Contender(_under_inference(each.inspect), **work)
        for row, each in inspectors.items()
    }
    rows["fma"] = fma_limit(stack, threads=usable_cores(), int8=precision.startswith("int8"))

    def check(outputs: dict[str, Any]) -> None:
        expected = outputs["torch-eager"].phi
        for row in outputs.keys() & {"torch-compile", *BASELINES}:
            off = float(np.abs(outputs[row].phi - expected).max())
            if not off <= 1e-4:
                raise CheckFailedError(f"{row} scores {off:.1e} off PyTorch; a wrong result is not timed")

    return Race(rows, check, inputs=frames, settle_ms=SETTLE_MS)


def _under_inference(inspect: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    def run(frame: np.ndarray) -> Any:
        with torch.inference_mode():
            return inspect(frame)

    return run


def _assembled(subject: Subject, frame: np.ndarray) -> AssembledInspector | str:
    """The best assembled alternative, checked; or why there is none."""
    geometry = subject.bundle.manifest["geometry"]
    image = prepare_frame(frame, scale_px=geometry["scale_px"], channels=geometry["channels"])
    exact = subject.bundle.grid.cut(image)
    engine = nncf_engine(subject.fp32, exact)
    if isinstance(engine, str):
        return engine
    inspector = AssembledInspector(subject.bundle, engine)
    found = inspector.inspect(frame)
    cut_check(exact, rounded=bool(geometry["scale_px"]))({"openvino-nncf-opencv": found.x})
    scores = score_patches_f64(found.x, found.x_hat)
    off = float(np.abs([found.phi - scores.phi, found.phi_local - scores.phi_local]).max())
    if not off <= SCORE_TOLERANCE:
        raise CheckFailedError(f"openvino-nncf-opencv scores {off:.1e} off float64; a wrong result is not timed")
    with torch.inference_mode():
        off = float((torch.from_numpy(found.x_hat) - subject.network(torch.from_numpy(found.x))).abs().mean())
    if not off <= REDUCED_TOLERANCE:
        raise CheckFailedError(f"openvino-nncf-opencv reconstructs {off:.1e} off PyTorch; a wrong result is not timed")
    return inspector


def prepare_stages(setting: Setting, stack: ExitStack) -> Race:
    subject = setting.subject
    frames = made_frames(subject.bundle, PATCHES)
    native = stack.enter_context(Inspector(subject.path))
    subject.check({"native": native}, frames[:1], subject.precision)

    def row(*stages: str) -> Contender:
        return Contender(native.inspect, own_ms=lambda found: sum(found.times_ms[stage] for stage in stages))

    rows: dict[str, Contender | str] = {
        "cut-and-score": row("cut", "score"),
        "infer": row("infer"),
        "frame": row("total"),
    }
    return Race(rows, lambda outputs: None, inputs=frames, settle_ms=SETTLE_MS)


test_frame_fp32 = suite(Group("frame 16 patches fp32", _ROLES, partial(prepare, fp32=True), rounds=12))
test_frame_int8 = suite(
    Group("frame 16 patches {precision}", _INT8_ROLES, partial(prepare, fp32=False), rounds=20, short_rounds=8)
)
# Each row inspects frames of its own; the ratio of `cut-and-score` is what a frame takes, in times of its kernels.
test_frame_stages = suite(
    Group(
        "frame stages 16 patches {precision}",
        {"cut-and-score": PRODUCT, "infer": PRODUCT, "frame": BASELINE},
        prepare_stages,
        rounds=20,
        short_rounds=10,
    )
)
