"""The OpenVINO reference through its Python API: networks on the CPU, compiled as the native backend does it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino

from grd_edge.errors import EngineError, one_line

# What runs unquantized; never left to OpenVINO, which silently takes BF16.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}


class OpenVinoEngine:
    """A model of one input and one output in OpenVINO.

    Each batch size gets a compiled model of its own. Settings are those of kernels/runtime/backend_openvino.cpp.

    Args:
        model: serialized single-file ONNX, FP32, or INT8 in the style `openvino`; or what OpenVINO read already.
        precision: `fp32`, `bf16`; for a quantized model `int8`, or `int8-bf16`: what is not quantized runs in BF16.
        threads: of the engine; 0: all cores.

    Raises:
        EngineError: an unknown precision or one that this CPU lacks, or OpenVINO refuses the model.
    """

    def __init__(self, model: bytes | openvino.Model, precision: str = "fp32", threads: int = 0) -> None:
        if precision not in _HINTS:
            raise EngineError(f"OpenVINO takes precision {', '.join(_HINTS)}, found {precision!r}")
        self._hint, self._fuse_adds = _HINTS[precision], precision.startswith("int8")
        self._settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": self._hint}
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._core = openvino.Core()
        self._requests: dict[int, openvino.InferRequest] = {}
        try:
            self._model = model if isinstance(model, openvino.Model) else self._core.read_model(model)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO does not read the model ({one_line(error)}); export it again") from error
        self._request(1)
        self.version = f"OpenVINO {openvino.__version__}"

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """What the network yields for patches x (N, C, patch_h, patch_w), both float32.

        Raises:
            EngineError: patches of another shape or type than the model takes.
        """
        expected = [dim.get_length() for dim in list(self._model.input().partial_shape)[1:]]
        if x.dtype != np.float32 or list(x.shape[1:]) != expected:
            raise EngineError(
                f"OpenVINO does not run {x.dtype} patches {x.shape}; the model takes float32 "
                f"(N, {', '.join(map(str, expected))})"
            )
        request = self._request(len(x))
        request.infer({0: np.ascontiguousarray(x)})
        return request.get_output_tensor().data.copy()

    def _request(self, batch: int) -> openvino.InferRequest:
        if batch not in self._requests:
            shape = self._model.input().partial_shape
            shape[0] = batch
            try:
                self._model.reshape(shape)
                with ThreadPoolExecutor(1) as loader:
                    compiled = loader.submit(self._compiled).result()
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO does not compile the model ({one_line(error)}); export it again"
                ) from error
            used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            if used != self._hint:
                raise EngineError(f"this CPU runs the model in {used}, not in {self._hint}; choose another precision")
            self._requests[batch] = compiled.create_infer_request()
        return self._requests[batch]

    def _compiled(self) -> openvino.CompiledModel:
        """To be called on a thread that ends: OpenVINO's CPU plugin replaces the signal stack of the thread that loads
        it, and frees its own on the thread that unloads it. A signal to the first one, such as Ctrl-C, would crash."""
        if self._fuse_adds:
            try:
                return self._core.compile_model(self._model, "CPU", {**self._settings, "SNIPPETS_MODE": "DISABLE"})
            except RuntimeError:  # not a public property: a release may refuse it
                self._fuse_adds = False
        return self._core.compile_model(self._model, "CPU", self._settings)
