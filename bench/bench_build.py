"""Building: a checkpoint to a sealed FP32 bundle, and an FP32 model to an INT8 engine that runs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from grd_edge.bench.assembled import nncf_engine
from grd_edge.bench.rows import BASELINE, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.upsampling import random_checkpoint, sizes

from grd_edge.build import bundle_from_checkpoint, int8_from_onnx
from grd_edge.bundle import MODEL
from grd_edge.calibrate import ranges_from_images
from grd_edge.config import load_config
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import CheckFailedError
from grd_edge.export import check_reconstruction, plain_export
from grd_edge.latency_check import REDUCED_TOLERANCE
from grd_edge.recipes import Minmax

CALIBRATED = 16


def prepare(setting: Setting, stack: ExitStack) -> Race:
    checkpoint = random_checkpoint(load_config(overrides=sizes(16, 128)))
    net = checkpoint.reconstructor()

    def check(outputs: dict[str, Any]) -> None:
        x = np.random.default_rng(0).random((2, 1, 128, 128), np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(x)).numpy()
        models = {"native": outputs["native"].files[MODEL], "torch-onnx-export": outputs["torch-onnx-export"]}
        for row, model in models.items():
            check_reconstruction(OnnxRuntimeEngine(model).reconstruct(x), expected, x, net, f"the model of {row}")

    rows: dict[str, Contender | str] = {
        "native": Contender(lambda _: bundle_from_checkpoint(checkpoint, setting.folder / "built.grdb")),
        "torch-onnx-export": Contender(lambda _: plain_export(net, checkpoint.config.model)),
    }
    return Race(rows, check)


def prepare_int8(setting: Setting, stack: ExitStack) -> Race:
    fp32 = setting.subject.fp32
    x = np.random.default_rng(0).random(setting.subject.shape(CALIBRATED), np.float32)

    def native(_: object) -> OpenVinoEngine:
        table = ranges_from_images(fp32, list(x[:, None]), recipe=Minmax(algorithm="minmax"), images_sha256="")
        return OpenVinoEngine(int8_from_onnx(fp32, table, style="openvino").model, "int8")

    def check(outputs: dict[str, OpenVinoEngine]) -> None:
        expected = OnnxRuntimeEngine(fp32).reconstruct(x)
        for row, engine in outputs.items():
            off = float(np.abs(engine.reconstruct(x) - expected).mean())
            if not off <= REDUCED_TOLERANCE:
                raise CheckFailedError(f"the INT8 engine of {row} is {off:.1e} off FP32; a wrong result is not timed")

    with_nncf = nncf_engine(fp32, x)
    rows: dict[str, Contender | str] = {
        "native": Contender(native),
        "nncf": with_nncf if isinstance(with_nncf, str) else Contender(lambda _: nncf_engine(fp32, x)),
    }
    return Race(rows, check)


# The baseline only exports: no checks, nothing hashed, nothing sealed.
test_build = suite(Group("build", {"native": PRODUCT, "torch-onnx-export": BASELINE}, prepare, rounds=3, warmup=0))
test_build_int8 = suite(Group("build int8", {"native": PRODUCT, "nncf": BASELINE}, prepare_int8, rounds=3, warmup=0))
