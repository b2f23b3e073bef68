"""Where the time of a whole frame goes with an INT8 engine: cut, infer, score, decide.

The engine is a stand-in: random weights (speed does not depend on them), quantized by ONNX Runtime's static
quantization with random calibration images. It says what share of a frame is left for the kernels, nothing of accuracy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from grd_edge import bundle as bundles
from grd_edge.build import bundle_from_checkpoint
from grd_edge.config import load_config
from grd_edge.runtime import Inspector
from grd_edge.train import untrained_checkpoint

INT8_MODEL = "models/int8-openvino.onnx"
SIDE_PATCHES = 4


def int8_from_onnx(source: Path, target: Path, shape: tuple[int, int, int, int], samples: int = 4) -> None:
    """Q/DQ around convolutions and products, S8 symmetric, weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.images = iter([{"x": rng.random(shape, np.float32)} for _ in range(samples)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.images, None)

    quantize_static(
        str(source),
        str(target),
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )


def frame_stages(*, base: int = 16, patch_px: int = 128, rounds: int = 40):
    """Median ms of each stage over frames of 16 patches, and the share of cutting and scoring together.

    Returns:
        dict with `patches`, `cut_ms`, `infer_ms`, `score_ms`, `total_ms` and `kernels_share`.
    """
    sizes = {"base": base, "patch_h": patch_px, "patch_w": patch_px}
    config = load_config(overrides=[f"model.{name}={value}" for name, value in sizes.items()])
    stride = patch_px - 20
    side = patch_px + (SIDE_PATCHES - 1) * stride
    with tempfile.TemporaryDirectory() as folder:
        fp32 = bundle_from_checkpoint(untrained_checkpoint(config), Path(folder) / "fp32.grdb")
        model = (fp32.path / bundles.MODEL).read_bytes()
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        int8_from_onnx(source, target, (1, config.model.channels, patch_px, patch_px))
        manifest = dict(fp32.manifest)
        manifest["engines"] = [{**manifest["engines"][0], "precision": "int8", "file": INT8_MODEL}]
        manifest["precision"] = {"chosen": {"cpu": "int8"}, "tried": [], "why": "a bench"}
        for made in ("schema", "files", "seal"):
            manifest.pop(made, None)
        path = Path(folder) / "int8.grdb"
        bundles.write_bundle(path, manifest, {bundles.MODEL: model, INT8_MODEL: target.read_bytes()})
        frames = [np.random.default_rng(i).integers(0, 256, (side, side), np.uint8) for i in range(4)]
        with Inspector(path) as inspector:
            for frame in frames:
                inspector.inspect(frame)
            found = [inspector.inspect(frames[i % len(frames)]) for i in range(rounds)]
    stages = {
        f"{stage}_ms": float(np.median([result.times_ms[stage] for result in found]))
        for stage in ("cut", "infer", "score", "total")
    }
    share = np.median([(r.times_ms["cut"] + r.times_ms["score"]) / r.times_ms["total"] for r in found])
    return {"patches": len(found[0].positions), **stages, "kernels_share": float(share)}
