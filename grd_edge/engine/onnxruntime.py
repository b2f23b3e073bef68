"""Reconstruction by ONNX Runtime on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime


class OnnxRuntimeEngine:
    """A serialized model of one input and one output in ONNX Runtime.

    Args:
        model: serialized ONNX.
        threads: of the engine; 0: all cores.
    """

    def __init__(self, model: bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @property
    def version(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}"

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """Reconstructions of patches (N, C, patch_h, patch_w) float32."""
        return self._session.run(None, {self._input: x})[0]
