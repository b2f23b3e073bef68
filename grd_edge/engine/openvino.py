"""Reconstruction by OpenVINO's Python API on the CPU."""

from __future__ import annotations

from typing import Literal

import numpy as np
import openvino

# What is rounded to; the engine itself picks the fastest that the processor has.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """A serialized model of one input and one output in OpenVINO.

    Args:
        model: serialized ONNX.
        precision: of what is not quantized in the model: `bf16`, else `f32`.
        threads: of the engine; 0: all cores.
    """

    def __init__(self, model: bytes, precision: Literal["fp32", "bf16", "int8"] = "fp32", threads: int = 0) -> None:
        settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": threads}
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(model), "CPU", settings)

    @property
    def version(self) -> str:
        return f"OpenVINO {openvino.__version__}"

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """Reconstructions of patches (N, C, patch_h, patch_w) float32."""
        return self._compiled(x)[0].copy()
