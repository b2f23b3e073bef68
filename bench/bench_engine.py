"""The network alone: reconstructions of 8 patches on all cores."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from grd_edge.bench.assembled import nncf_engine
from grd_edge.bench.limits import fma_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.subject import SETTLE_MS, Subject

from grd_edge.engine.native import NativeEngine, frame_of
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.engine.torch import TorchEngine
from grd_edge.errors import CheckFailedError
from grd_edge.latency_check import FP32_TOLERANCE, REDUCED_TOLERANCE
from grd_edge.latency_frames import made_frames
from grd_edge.machine import usable_cores
from grd_edge.patches import prepare_frame

BATCH = NativeEngine.BATCH
_ROLES = {
    "native": PRODUCT,
    **dict.fromkeys(("torch-eager", "torch-compile", "onnxruntime", "openvino"), BASELINE),
    "fma": LIMIT,
}
# `torch.compile` stands in the group of FP32, which is what it computes.
_INT8_ROLES = {**{row: _ROLES[row] for row in _ROLES if row != "torch-compile"}, "openvino-nncf": BASELINE}


def prepare(setting: Setting, stack: ExitStack, *, fp32: bool) -> Race:
    subject = setting.subject
    precision = "fp32" if fp32 else subject.precision
    model = subject.model_of(precision)
    patches = _textured(subject)
    frame, x = frame_of(patches), np.ascontiguousarray(patches.transpose(0, 3, 1, 2), np.float32) / 255
    native = stack.enter_context(NativeEngine(model, precision, subject.config)).inspector
    engines: dict[str, Any] = {
        "torch-eager": TorchEngine(subject.network),
        "onnxruntime": OnnxRuntimeEngine(subject.fp32),
        "openvino": OpenVinoEngine(subject.fp32),
    }
    if fp32:
        engines["torch-compile"] = setting.without_compiler or subject.compiled(BATCH)
    else:
        engines["openvino-nncf"] = nncf_engine(subject.fp32, x)
    work = {"bytes": 2 * x.nbytes + len(model), "gflop": BATCH * subject.gflop}
    # An inspection also cuts and scores; what counts here is what it spends in the network.
    rows: dict[str, Contender | str] = {
        "native": Contender(native.inspect, own_ms=lambda found: found.times_ms["infer"], **work)
    }
    for row, engine in engines.items():
        run = engine if isinstance(engine, str) else partial(_reconstruct, engine, x)
        rows[row] = run if isinstance(run, str) else Contender(run, **work)
    rows["fma"] = fma_limit(stack, threads=usable_cores(), int8=precision.startswith("int8"))

    def check(outputs: dict[str, Any]) -> None:
        exact = outputs["torch-eager"]
        for row, x_hat in (outputs | {"native": native.inspect(frame, x_hat=True).x_hat}).items():
            reduced = (row == "native" and not fp32) or row == "openvino-nncf"
            off = float(np.abs(x_hat - exact).mean() if reduced else np.abs(x_hat - exact).max())
            if not off <= (REDUCED_TOLERANCE if reduced else FP32_TOLERANCE):
                raise CheckFailedError(f"{row} reconstructs {off:.1e} off PyTorch; a wrong result is not timed")

    return Race(rows, check, inputs=(frame,), settle_ms=SETTLE_MS)


def _textured(subject: Subject) -> np.ndarray:
    """(BATCH, patch_h, patch_w, C) uint8, of made frames: INT8 is farther off on noise."""
    geometry = subject.bundle.manifest["geometry"]
    frame = made_frames(subject.bundle, BATCH)[0]
    image = prepare_frame(frame, scale_px=geometry["scale_px"], channels=geometry["channels"])
    return np.rint(255 * subject.bundle.grid.cut(image)[:BATCH]).astype(np.uint8).transpose(0, 2, 3, 1)


def _reconstruct(engine: Any, x: np.ndarray, _: object) -> np.ndarray:
    with torch.inference_mode():
        return engine.reconstruct(x)


test_engine_fp32 = suite(Group("engine fp32 batch 8", _ROLES, partial(prepare, fp32=True), rounds=20))
test_engine_int8 = suite(
    Group("engine {precision} batch 8", _INT8_ROLES, partial(prepare, fp32=False), rounds=20, short_rounds=10)
)
