"""The little of CUDA that a runner needs: memory, one stream, captured graphs. Two packages can give it.

`cuda-bindings` comes first. pycuda, which has no call for stream capture in any release up to 2026.1, is taken where it
is what the machine has; graphs are then missing, for that reason.

Source: docs/design/tensorrt-runner.md.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from grd_edge.engine.device import device_here
from grd_edge.engine.fingerprint import Device
from grd_edge.errors import EngineError, MissingExtraError, one_line


class Cuda(Protocol):
    """The first device of this process and one stream on it. Used from one thread.

    Sizes are bytes, pointers are plain numbers. Every call raises EngineError with CUDA's words.

    Attributes:
        name: of the package.
        device: the device.
        stream: handle of the stream, which does not wait for the default one.
        no_graphs: why a stream cannot be captured; "" where it can.
    """

    name: str
    device: Device
    stream: int
    no_graphs: str

    def allocate(self, size: int) -> int: ...
    def free(self, pointer: int) -> None: ...

    def pin(self, size: int) -> np.ndarray:
        """Page-locked zeros, (size,) uint8, to be given back to `unpin`."""

    def unpin(self, memory: np.ndarray) -> None: ...

    def copy_in(self, pointer: int, memory: np.ndarray, size: int) -> None:
        """Queues a copy of the first bytes of pinned memory to the device."""

    def copy_out(self, memory: np.ndarray, pointer: int, size: int) -> None:
        """Queues a copy from the device to the first bytes of pinned memory."""

    def synchronize(self) -> None: ...

    def capture(self, queue: Callable[[], None]) -> int:
        """What `queue` puts on the stream, as a graph that `launch` repeats; nothing of it runs."""

    def launch(self, graph: int) -> None: ...
    def destroy(self, graph: int) -> None: ...
    def close(self) -> None: ...


def opened_cuda() -> Cuda:
    """CUDA through the package that is installed.

    Raises:
        MissingExtraError: neither package is installed.
        EngineError: no driver, no device, or CUDA refuses to start.
    """
    device = device_here()
    for module, kind in (("cuda.bindings.runtime", CudaBindings), ("pycuda.driver", PyCuda)):
        try:
            api = importlib.import_module(module)
        except ImportError:
            continue
        return kind(api, device)
    raise MissingExtraError(
        "cuda-bindings or pycuda is needed to run a TensorRT engine and neither is installed; install one with: "
        "pip install 'grd-edge[gpu]'"
    )


class CudaBindings:
    """`Cuda` through NVIDIA's cuda-bindings, whose CUDA runtime is linked into the package.

    Args:
        runtime: the module `cuda.bindings.runtime`.
        device: the first one.
    """

    no_graphs = ""

    def __init__(self, runtime: Any, device: Device) -> None:
        self._rt, self.device = runtime, device
        self.name = f"cuda-bindings for CUDA {_version(self._call('cudaRuntimeGetVersion'))}"
        status, _ = runtime.cudaGetDeviceCount()
        if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
            driver = _version(self._call("cudaDriverGetVersion"))
            raise EngineError(
                f"the driver of {device.name} is for CUDA {driver}, too old for {self.name} ({self._words(status)}); "
                f"update the driver, or: pip install 'cuda-bindings=={driver.split('.')[0]}.*'"
            )
        self._call("cudaSetDevice", 0)
        self.stream = int(self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def pin(self, size: int) -> np.ndarray:
        pointer = int(self._call("cudaHostAlloc", size, self._rt.cudaHostAllocDefault))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        memory[:] = 0
        return memory

    def unpin(self, memory: np.ndarray) -> None:
        self._call("cudaFreeHost", memory.ctypes.data)

    def copy_in(self, pointer: int, memory: np.ndarray, size: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, memory.ctypes.data, size, kind, self.stream)

    def copy_out(self, memory: np.ndarray, pointer: int, size: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", memory.ctypes.data, pointer, size, kind, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, queue: Callable[[], None]) -> int:
        # Other threads of the process may allocate meanwhile.
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            queue()
        except BaseException:  # the stream must leave capture mode; what the broken capture says does not matter
            _, graph = self._rt.cudaStreamEndCapture(self.stream)
            if graph is not None:
                self._rt.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int) -> None:
        self._call("cudaGraphLaunch", graph, self.stream)

    def destroy(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        self._call("cudaStreamDestroy", self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a call returns beside its status.

        Raises:
            EngineError: the call fails; with CUDA's words.
        """
        status, *found = getattr(self._rt, name)(*arguments)
        if int(status):
            raise EngineError(f"{name} failed on the GPU ({self._words(status)}); {_after(self._words(status))}")
        return found[0] if found else None

    def _words(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return f"{status.name}: {text.decode()}"


class PyCuda:
    """`Cuda` through pycuda, without graphs.

    Args:
        driver: the module `pycuda.driver`.
        device: the first one.
    """

    def __init__(self, driver: Any, device: Device) -> None:
        self._drv, self.device = driver, device
        self.name = "pycuda"
        self.no_graphs = f"{self.name} cannot capture a stream; install cuda-bindings, which can"
        self._call(driver.init)
        self._context = self._call(self._call(driver.Device, 0).retain_primary_context)
        self._call(self._context.push)
        self._memory: dict[int, Any] = {}
        try:
            self._stream = self._call(driver.Stream)
        except EngineError:
            self._context.pop()
            raise
        self.stream = int(self._stream.handle)

    def allocate(self, size: int) -> int:
        memory = self._call(self._drv.mem_alloc, size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        self._call(self._memory.pop(pointer).free)

    def pin(self, size: int) -> np.ndarray:
        memory = self._call(self._drv.pagelocked_zeros, (size,), np.uint8)
        self._memory[memory.ctypes.data] = memory
        return memory

    def unpin(self, memory: np.ndarray) -> None:
        self._call(self._memory.pop(memory.ctypes.data).base.free)

    def copy_in(self, pointer: int, memory: np.ndarray, size: int) -> None:
        self._call(self._drv.memcpy_htod_async, pointer, memory[:size], self._stream)

    def copy_out(self, memory: np.ndarray, pointer: int, size: int) -> None:
        self._call(self._drv.memcpy_dtoh_async, memory[:size], pointer, self._stream)

    def synchronize(self) -> None:
        self._call(self._stream.synchronize)

    def capture(self, queue: Callable[[], None]) -> int:
        raise EngineError(self.no_graphs)

    launch = destroy = capture

    def close(self) -> None:
        self._stream = None
        self._context.pop()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._drv.Error as error:
            name, words = function.__name__, one_line(error)
            raise EngineError(f"{name} of pycuda failed on the GPU ({words}); {_after(words)}") from error


def _version(number: int) -> str:
    """CUDA's own form of a version, 12060, as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _after(words: str) -> str:
    """What to do about an error of CUDA."""
    if "memory" in words.lower() and "illegal" not in words.lower():
        return "free memory of the GPU, or give a smaller limit of the batch"
    return "start the program again, and see the kernel's log when it comes back"
