"""CUDA and TensorRT without a device: real memory, queues that run in order, and every allocation counted."""

from __future__ import annotations

import ctypes
import enum
import json
from types import SimpleNamespace

import numpy as np

from grd_edge.engine.fingerprint import Device, Fingerprint
from grd_edge.errors import EngineError

DEVICE = Device("NVIDIA GeForce RTX 4090", "8.9", "580.65.06")
FINGERPRINT = Fingerprint(
    library="tensorrt_rtx",
    version="1.7.1.116",
    compute_capabilities="8.9",
    driver_floor="570",
    precision="fp16",
    profile="1:3:8",
    onnx_sha256="ab" * 32,
)


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class FakeRuntime:
    """`cuda.bindings.runtime`: device memory is host memory, a stream is a list of functions.

    Attributes:
        fails: name of a call -> (which of its calls fails, counted from 1; the status).
        calls: names in order.
        held: what is allocated and not given back, by kind.
    """

    cudaError_t = Status
    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1
    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def __init__(self, **fails) -> None:
        self.fails, self.calls = fails, []
        self._memory, self._graphs, self._capturing, self._broken = {}, {}, None, False
        self._queue, self.streams, self._next = [], 0, 7

    @property
    def held(self) -> int:
        return len(self._memory) + len(self._graphs) + self.streams

    def _result(self, name, *found):
        self.calls.append(name)
        nth, status = self.fails.get(name, (0, None))
        if nth and self.calls.count(name) == nth:
            return (status, None) if found else (status,)
        return Status.cudaSuccess, *found

    def _new(self, table, value):
        self._next += 1
        table[self._next] = value
        return self._next

    def cudaGetErrorString(self, status):
        return Status.cudaSuccess, f"words of {int(status)}".encode()

    def cudaRuntimeGetVersion(self):
        return self._result("cudaRuntimeGetVersion", 13050)

    def cudaDriverGetVersion(self):
        return self._result("cudaDriverGetVersion", 12060)

    def cudaGetDeviceCount(self):
        return self._result("cudaGetDeviceCount", 1)

    def cudaSetDevice(self, index):
        return self._result("cudaSetDevice")

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == 1
        result = self._result("cudaStreamCreateWithFlags", 5)
        self.streams += result[0] == 0
        return result

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return self._result("cudaStreamDestroy")

    def _allocated(self, name, size):
        result = self._result(name, 0)
        if result[0]:
            return result
        assert self._capturing is None, "nothing may be allocated in a capture"
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, 0xFF, size)  # NaN until it is written
        self._memory[ctypes.addressof(buffer)] = buffer
        return Status.cudaSuccess, ctypes.addressof(buffer)

    def cudaMalloc(self, size):
        return self._allocated("cudaMalloc", size)

    def cudaHostAlloc(self, size, flags):
        return self._allocated("cudaHostAlloc", size)

    def cudaFree(self, pointer):
        del self._memory[pointer]
        return self._result("cudaFree")

    def cudaFreeHost(self, pointer):
        del self._memory[pointer]
        return self._result("cudaFreeHost")

    def put(self, function) -> None:
        """What a library does with the stream."""
        (self._queue if self._capturing is None else self._capturing).append(function)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream == 5
        result = self._result("cudaMemcpyAsync")
        if not result[0]:
            self.put(lambda: ctypes.memmove(target, source, size))
        return result

    def cudaStreamSynchronize(self, stream):
        assert stream == 5 and self._capturing is None
        queue, self._queue = self._queue, []
        for function in queue:
            function()
        return self._result("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream, mode):
        result = self._result("cudaStreamBeginCapture")
        if not result[0]:
            assert self._capturing is None and not self._queue
            self._capturing = []
        return result

    def cudaStreamEndCapture(self, stream):
        queue, self._capturing = self._capturing, None
        result = self._result("cudaStreamEndCapture", 0)
        return result if result[0] else (Status.cudaSuccess, self._new(self._graphs, queue))

    def cudaGraphInstantiate(self, graph, flags):
        result = self._result("cudaGraphInstantiate", 0)
        return result if result[0] else (Status.cudaSuccess, self._new(self._graphs, self._graphs[graph]))

    def cudaGraphDestroy(self, graph):
        del self._graphs[graph]
        return self._result("cudaGraphDestroy")

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        result = self._result("cudaGraphLaunch")
        if not result[0]:
            self._queue += self._graphs[graph]
        return result


def engine_bytes(**changes) -> bytes:
    """An engine of the fake library: x_hat = gain x, or that of one of the library's `functions`."""
    described = {
        "gain": 0.5,
        "function": "",
        "io": [["x", "INPUT", "FLOAT", [-1, 1, 3, 5]], ["x_hat", "OUTPUT", "FLOAT", [-1, 1, 3, 5]]],
        "profile": [1, 3, 8],
        "workspace": 512,
    }
    return b"plan" + json.dumps({**described, **changes}).encode()


class FakeCache:
    def __init__(self) -> None:
        self.kernels = b""
        self.accepts = True

    def deserialize(self, blob):
        if self.accepts and blob.startswith(b"kernels"):
            self.kernels = bytes(blob)
            return True
        return False

    def serialize(self):
        return self.kernels


class FakeConfig:
    def __init__(self) -> None:
        self.cache = None
        self.strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return FakeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, engine, setting) -> None:
        self.engine, self.setting, self.addresses, self.shape, self.warm = engine, setting, {}, None, False
        engine.trt.contexts.append(self)

    def set_device_memory(self, pointer, size):
        assert size == self.engine.device_memory_size_v2
        self.workspace = pointer

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer
        return True

    def set_input_shape(self, name, shape):
        assert not self.engine.trt.captured(self), "a captured context must keep its shape"
        self.shape = shape
        least, _, most = self.engine.profile
        return least <= shape[0] <= most

    def is_stream_capturable(self, stream):
        return self.engine.trt.capturable

    def execute_async_v3(self, stream):
        if self.engine.trt.refuses:
            self.engine.trt.log.log(self.engine.trt.ILogger.Severity.ERROR, "out of\n luck")
            return False
        runtime = self.engine.trt.runtime
        if runtime._capturing is not None:
            assert self.warm, "captured before it ran"
        elif isinstance(self.setting, FakeConfig) and self.setting.cache and not self.warm:
            self.setting.cache.kernels = b"kernels" + self.setting.cache.kernels[7:] + bytes([self.shape[0]])
        self.warm = True
        shape = self.shape

        def compute():
            self._compute(shape)

        compute.context = self
        runtime.put(compute)
        return True

    def _compute(self, shape):
        arrays = []
        for name, _, kind, each in self.engine.io:
            dtype = np.dtype({"FLOAT": np.float32, "HALF": np.float16}[kind])
            extents = shape[0], *each[1:]
            size = int(np.prod(extents)) * dtype.itemsize
            memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
            arrays.append(np.frombuffer(memory, dtype).reshape(extents))
        by = {way: array for (_, way, _, _), array in zip(self.engine.io, arrays, strict=True)}
        by["OUTPUT"][:] = self.engine.function(by["INPUT"])


class FakeEngine:
    def __init__(self, trt, described) -> None:
        self.trt, self.io = trt, described["io"]
        gain = described["gain"]
        self.function = trt.functions.get(described["function"], lambda x: x * x.dtype.type(gain))
        self.profile, self.device_memory_size_v2 = described["profile"], described["workspace"]
        self.num_io_tensors = len(self.io)
        self._by = {name: (way, kind, shape) for name, way, kind, shape in self.io}

    def get_tensor_name(self, index):
        return self.io[index][0]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode[self._by[name][0]]

    def get_tensor_dtype(self, name):
        return self.trt.DataType[self._by[name][1]]

    def get_tensor_shape(self, name):
        return self._by[name][2]

    def get_tensor_profile_shape(self, name, index):
        assert self._by[name][0] == "INPUT" and index == 0
        return [(batch, *self._by[name][2][1:]) for batch in self.profile]

    def create_engine_inspector(self):
        layer = {"Name": "conv1", "LayerType": "Convolution", "Inputs": [], "Outputs": [{"DataType": "Half"}]}
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": [layer], "as": form}))

    def create_runtime_config(self):
        return FakeConfig()

    def create_execution_context(self, setting):
        assert self.trt.is_rtx == isinstance(setting, FakeConfig)
        return None if self.trt.no_context else FakeContext(self, setting)


class FakeTensorRt(SimpleNamespace):
    """The module `tensorrt` or `tensorrt_rtx`, on a `FakeRuntime`."""

    DataType = enum.IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2})
    LayerInformationFormat = SimpleNamespace(JSON="json")
    TensorIOMode = enum.IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    ExecutionContextAllocationStrategy = enum.IntEnum("Strategy", {"STATIC": 0, "USER_MANAGED": 2})
    DynamicShapesKernelSpecializationStrategy = enum.IntEnum("Kernels", {"LAZY": 0, "EAGER": 1})
    EngineValidity = enum.IntEnum("EngineValidity", {"VALID": 0, "SUBOPTIMAL": 1, "INVALID": 2})
    EngineInvalidityDiagnostics = enum.IntEnum(
        "Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "MALFORMED_ENGINE": 32}
    )

    class ILogger:
        Severity = enum.IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3})

        def __init__(self) -> None:
            pass

    def __init__(self, runtime, *, is_rtx=True, version="1.7.1.116") -> None:
        super().__init__(
            runtime=runtime,
            is_rtx=is_rtx,
            __version__=version,
            contexts=[],
            functions={},
            capturable=True,
            refuses=False,
            no_context=False,
            diagnostics=0,
        )

    def captured(self, context) -> bool:
        graphs = self.runtime._graphs.values()
        return any(getattr(function, "context", None) is context for graph in graphs for function in graph)

    def Runtime(self, log):
        self.log = log
        runtime = SimpleNamespace(deserialize_cuda_engine=self._deserialize)
        if self.is_rtx:
            runtime.get_engine_validity = self._validity
        return runtime

    def _validity(self, data):
        bits = self.diagnostics or (0 if data.startswith(b"plan") else 32)
        return (self.EngineValidity.INVALID if bits else self.EngineValidity.VALID), bits

    def _deserialize(self, data):
        try:
            return FakeEngine(self, json.loads(data[4:]))
        except ValueError as error:
            self.log.log(self.ILogger.Severity.ERROR, f"cannot parse: {error}")
            self.log.log(self.ILogger.Severity.ERROR, "and so it is")
            return None


class FakePyCudaError(Exception):
    pass


class FakePyCuda:
    """`pycuda.driver` on the memory of a `FakeRuntime`."""

    Error = FakePyCudaError

    def __init__(self, runtime, fails: str = "") -> None:
        self._runtime, self._fails = runtime, fails
        self.pushed = 0

    def _checked(self, name):
        if name == self._fails:
            raise self.Error(f"{name} failed:\nout of memory")

    def init(self):
        self._checked("init")

    def Device(self, index):
        def context():
            self._checked("retain_primary_context")
            return SimpleNamespace(push=self._push, pop=self._pop)

        return SimpleNamespace(retain_primary_context=context)

    def _push(self):
        self.pushed += 1

    def _pop(self):
        self.pushed -= 1

    def Stream(self):
        self._checked("Stream")

        def synchronize():
            self._runtime.cudaStreamSynchronize(5)

        return SimpleNamespace(handle=5, synchronize=synchronize)

    def mem_alloc(self, size):
        self._checked("mem_alloc")
        pointer = self._runtime.cudaMalloc(size)[1]

        class Allocation(int):
            def free(_):
                self._runtime.cudaFree(pointer)

        return Allocation(pointer)

    def pagelocked_zeros(self, shape, dtype):
        self._checked("pagelocked_zeros")
        pointer = self._runtime.cudaHostAlloc(shape[0], 0)[1]

        class PageLocked(np.ndarray):
            base = SimpleNamespace(free=lambda: self._runtime.cudaFreeHost(pointer))

        memory = np.ctypeslib.as_array((ctypes.c_uint8 * shape[0]).from_address(pointer)).view(PageLocked)
        memory[:] = 0
        return memory

    def memcpy_htod_async(self, pointer, memory, stream):
        self._checked("memcpy_htod_async")
        self._runtime.cudaMemcpyAsync(pointer, memory.ctypes.data, memory.nbytes, 1, 5)

    def memcpy_dtoh_async(self, memory, pointer, stream):
        self._checked("memcpy_dtoh_async")
        self._runtime.cudaMemcpyAsync(memory.ctypes.data, pointer, memory.nbytes, 2, 5)


def refused(*_):
    raise EngineError("there is no NVIDIA driver on this machine (libcuda.so.1: gone); run this elsewhere")
