"""The ONNX Runtime reference: networks on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime

from grd_edge.errors import CheckFailedError, EngineError, one_line

NOISE_PATCHES = 4


class OnnxRuntimeEngine:
    """A model of one input and one output in ONNX Runtime.

    Args:
        model: serialized single-file ONNX, FP32 or INT8 in the style `onnxruntime`.
        threads: of the engine; 0: all cores.

    Attributes:
        patch_shape: (C, patch_h, patch_w).

    Raises:
        EngineError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes derive from Exception alone
            raise EngineError(f"ONNX Runtime does not take the model ({one_line(error)}); export it again") from error
        self._input = self._session.get_inputs()[0]
        self.patch_shape = tuple(self._input.shape[1:])
        self.version = f"ONNX Runtime {onnxruntime.__version__}"

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """What the network yields for patches x (N, C, patch_h, patch_w), both float32.

        Raises:
            EngineError: patches of another shape or type than the model takes.
        """
        try:
            (x_hat,) = self._session.run(None, {self._input.name: np.ascontiguousarray(x)})
        except Exception as error:
            raise EngineError(f"ONNX Runtime does not run {x.dtype} patches {x.shape} ({one_line(error)})") from error
        return x_hat


def reconstruction_difference(model: bytes, reference: bytes, what: str) -> tuple[float, float]:
    """Largest and mean |difference| between what two serialized models yield, on patches of seeded noise.

    It tells that a model computes, not how well it decides.

    Args:
        what: the first model, for messages.

    Raises:
        EngineError: ONNX Runtime refuses one of them.
        CheckFailedError: a value is not finite.
    """
    engine = OnnxRuntimeEngine(model)
    x = np.random.default_rng(0).random((NOISE_PATCHES, *engine.patch_shape), np.float32)
    # One at a time, and one network after the other: the activations of large ones are gigabytes per patch.
    found = [engine.reconstruct(each[None]) for each in x]
    del engine
    other = OnnxRuntimeEngine(reference)
    difference = np.abs(np.concatenate(found) - np.concatenate([other.reconstruct(each[None]) for each in x]))
    if not np.isfinite(difference).all():
        raise CheckFailedError(
            f"{what} gives values that are not finite; keep layers in higher precision, or calibrate again"
        )
    return float(difference.max()), float(difference.mean())
