"""The TensorRT runner in Python, classic and RTX: networks on the GPU, a CUDA graph per batch size.

On the line the native library runs the same engine; this is what it is compared with, and what runs where it was built
without TensorRT.

Source: docs/design/tensorrt-runner.md.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grd_edge.engine.cuda_driver import Cuda, opened_cuda
from grd_edge.engine.fingerprint import Fingerprint, check_fits
from grd_edge.engine.library import library_of, log_of
from grd_edge.errors import EngineError, EngineMismatchError, InputError
from grd_edge.files import sha256_hex, write_atomically
from grd_edge.heads import HEADS, output_shape
from grd_edge.targets import RTX, target_named

if TYPE_CHECKING:
    from grd_edge.engine.layer_report import LayerReport

# Batch sizes that get a graph of their own; a graph costs device memory, and frames come in few sizes.
GRAPHS = 16


class TensorRtEngine:
    """An engine of one input and one output, as of a bundle, in TensorRT. A context manager; used from one thread.

    All memory is taken when it is opened. A batch size is run once before it is captured, so that what is compiled or
    allocated on first use is not part of the graph.

    Args:
        engine: as built.
        fingerprint: of the engine.
        target: that it was built for.
        batch_limit: largest batch that memory is taken for, 0: that of the engine. Larger ones are split.
        cache_dir: folder that kernels compiled by TensorRT-RTX are kept in from run to run; None: they are not kept.
        cuda: that it runs on, closed with it; None: that of this machine.

    Attributes:
        patch_shape: (C, patch_h, patch_w).
        output_shape: (C, H, W) of what it yields for a patch, as its head says.
        version: of TensorRT, and the device.
        no_graphs: why batches run without a CUDA graph; "" while they have one.
        no_cache: why compiled kernels are not kept; "" where they are.

    Raises:
        MissingExtraError: TensorRT or a package for CUDA is not installed.
        EngineMismatchError: built for another device, library or driver.
        EngineError: no driver, a damaged or foreign engine, or not enough memory.
    """

    def __init__(
        self,
        engine: bytes,
        fingerprint: Fingerprint,
        target: str,
        *,
        batch_limit: int = 0,
        cache_dir: Path | None = None,
        cuda: Cuda | None = None,
    ) -> None:
        self._trt = library_of(target_named(target))
        self._target = target
        with ExitStack() as stack:
            self._cuda = cuda or opened_cuda()
            stack.callback(self._cuda.close)
            device = self._cuda.device
            check_fits(fingerprint, target, device, self._trt.__version__)
            title = "TensorRT-RTX" if fingerprint.library == RTX else "TensorRT"
            self.version = f"{title} {self._trt.__version__}, {device.name} ({device.compute_capability})"
            self.no_graphs = self._cuda.no_graphs
            self._log = log_of(self._trt)
            stack.callback(self._forget)
            self._engine = self._deserialized(engine, title)
            self._settle_io(batch_limit)
            self._settle_runtime(engine, fingerprint, cache_dir)
            self._allocate(stack)
            stack.callback(self._forget)  # now before the memory, too
            self._stack = stack.pop_all()

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back; a second time does nothing."""
        self._stack.close()

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """What the network yields for patches x (N, C, patch_h, patch_w), both float32.

        Raises:
            EngineError: patches of another shape or type than the engine takes, a closed engine, or the GPU fails.
        """
        if x.dtype != np.float32 or x.shape[1:] != self.patch_shape:
            raise EngineError(
                f"TensorRT does not run {x.dtype} patches {x.shape}; the engine takes float32 "
                f"(N, {', '.join(map(str, self.patch_shape))})"
            )
        if self._engine is None:
            raise EngineError("the engine is closed; open it again")
        x_hat = np.empty((len(x), *self.output_shape), np.float32)
        for start in range(0, len(x), self._most):
            part = x[start : start + self._most]
            self._x[: len(part)] = part
            # Where the engine takes no batch as small as this, what was there before is run along.
            self._run(max(len(part), self._least))
            x_hat[start : start + len(part)] = self._x_hat[: len(part)]
        return x_hat

    def layers(self) -> LayerReport:
        """What each layer computes in, as the engine's inspector tells.

        Raises:
            EngineError: it tells no layers, or the engine is closed.
        """
        from grd_edge.engine.layer_report import report_from_inspector  # it needs onnx, which a device may lack

        if self._engine is None:
            raise EngineError("the engine is closed; open it again")
        inspector = self._engine.create_engine_inspector()
        return report_from_inspector(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    # ------------------------------------------------------------------------------------------ opening

    def _deserialized(self, engine: bytes, title: str) -> Any:
        """The engine, after the library has said that its header is sound and fits.

        Raises:
            EngineMismatchError, EngineError: it is not, or does not.
        """
        rebuild = f"build it again with: grd-edge build engine BUNDLE --target {self._target}"
        self._runtime = self._trt.Runtime(self._log)
        if hasattr(self._runtime, "get_engine_validity"):
            validity, bits = self._runtime.get_engine_validity(engine)
            if validity == self._trt.EngineValidity.INVALID:
                known = self._trt.EngineInvalidityDiagnostics.__members__.items()
                found = [name for name, bit in known if int(bits) & int(bit)]
                words = ", ".join(name.lower().replace("_", " ") for name in found) or self._log.words()
                damaged = not found or {"MALFORMED_ENGINE", "CUDA_ERROR", "INSUFFICIENT_GPU_MEMORY"} & set(found)
                raise (EngineError if damaged else EngineMismatchError)(
                    f"{title} {self._trt.__version__} does not take the engine ({words}); {rebuild}"
                )
        opened = self._runtime.deserialize_cuda_engine(engine)
        if opened is None:
            raise EngineError(
                f"{title} {self._trt.__version__} does not read the engine of {len(engine)} bytes "
                f"({self._log.words()}); {rebuild}"
            )
        return opened

    def _settle_io(self, batch_limit: int) -> None:
        """Names, types, shapes and batches of the engine.

        Raises:
            EngineError: not one input of patches and one output of a head, or a type that is neither FLOAT nor HALF.
        """
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        ways = [engine.get_tensor_mode(name) for name in names]
        shapes = [tuple(engine.get_tensor_shape(name)) for name in names]
        types = {trt.DataType.FLOAT: np.dtype(np.float32), trt.DataType.HALF: np.dtype(np.float16)}
        dtypes = [types.get(engine.get_tensor_dtype(name)) for name in names]
        fits = (
            sorted(ways, key=int) == [trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT]
            and None not in dtypes
            and all(len(shape) == 4 and min(shape[1:]) >= 1 for shape in shapes)
        )
        at = ways.index(trt.TensorIOMode.INPUT) if fits else 0
        if not fits or shapes[1 - at][1:] not in [output_shape(head, *shapes[at][1:]) for head in HEADS]:
            found = ", ".join(
                f"{name} {engine.get_tensor_dtype(name).name} {shape}"
                for name, shape in zip(names, shapes, strict=True)
            )
            raise EngineError(
                f"the engine is of no bundle: it has {found or 'no tensors'}, where one input and one output are "
                "needed, (N, C, h, w) to as much or to (N, 1, 1 + h, w), FLOAT or HALF; build it from a bundle with: "
                f"grd-edge build engine BUNDLE --target {self._target}"
            )
        self._names = names[at], names[1 - at]
        self._dtypes = dtypes[at], dtypes[1 - at]
        self.patch_shape, self.output_shape = shapes[at][1:], shapes[1 - at][1:]
        least, _, most = (int(shape[0]) for shape in engine.get_tensor_profile_shape(names[at], 0))
        self._least, self._most = least, max(least, min(most, batch_limit or most))

    def _settle_runtime(self, engine: bytes, fingerprint: Fingerprint, cache_dir: Path | None) -> None:
        """How contexts are made: with memory that they share and, of RTX, with the kernels of earlier runs."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._setting, self._cache, self.no_cache = strategy, None, ""
        if fingerprint.library != RTX:
            self.no_cache = "classic TensorRT compiles nothing when it runs"
            return
        self._setting = self._engine.create_runtime_config()
        self._setting.set_execution_context_allocation_strategy(strategy)
        # Kernels that replace others later would not find their way into a graph that is captured already.
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        self._setting.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        if cache_dir is None:
            self.no_cache = "no folder was given"
            return
        self._cache = self._setting.create_runtime_cache()
        self._cache_path = cache_dir / runtime_cache_name(engine, self._cuda.device)
        self._cached = b""
        try:
            self._cached = self._cache_path.read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.no_cache = f"{self._cache_path} cannot be read ({error.strerror})"
        # One of another driver or device is refused and replaced.
        if self._cached and not self._cache.deserialize(self._cached):
            self._cached = b""
        self._setting.set_runtime_cache(self._cache)

    def _allocate(self, stack: ExitStack) -> None:
        cuda = self._cuda
        self._graphs: dict[int, tuple[int, Any]] = {}
        self._plain = None
        self._workspace = 0, int(self._engine.device_memory_size_v2)
        if self._workspace[1]:
            self._workspace = cuda.allocate(self._workspace[1]), self._workspace[1]
            stack.callback(cuda.free, self._workspace[0])
        self._device, self._pinned, arrays = [], [], []
        for dtype, each in zip(self._dtypes, (self.patch_shape, self.output_shape), strict=True):
            shape = self._most, *each
            size = int(np.prod(shape)) * dtype.itemsize
            self._device.append(cuda.allocate(size))
            stack.callback(cuda.free, self._device[-1])
            self._pinned.append(cuda.pin(size))
            stack.callback(cuda.unpin, self._pinned[-1])
            arrays.append(self._pinned[-1].view(dtype).reshape(shape))
        self._x, self._x_hat = arrays

    def _forget(self) -> None:
        """Lets go of TensorRT's objects, which must not outlive the memory that they use."""
        self._graphs, self._plain, self._cache, self._setting, self._engine = {}, None, None, None, None
        self._runtime = None

    # ------------------------------------------------------------------------------------------ running

    def _run(self, batch: int) -> None:
        """Pinned input to pinned output, of `batch` patches."""
        if batch in self._graphs:
            self._cuda.launch(self._graphs[batch][0])
            self._cuda.synchronize()
            return
        captures = not self.no_graphs and len(self._graphs) < GRAPHS
        if not captures and self._plain is None:
            self._plain = self._context()
        # A context holds what its graph needs, so that a graph keeps its own.
        context = self._context() if captures else self._plain
        self._shape(context, batch)
        self._queue(context, batch)
        self._cuda.synchronize()
        if captures:
            self._capture(context, batch)
        self._keep_kernels()

    def _capture(self, context: Any, batch: int) -> None:
        """A graph for this batch size from now on; where it cannot be had, none for any further size either."""
        try:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._cuda.stream):
                raise EngineError("TensorRT says that this engine cannot be captured")
            graph = self._cuda.capture(lambda: self._queue(context, batch))
        except EngineError as error:
            self.no_graphs = f"a batch of {batch} could not be captured: {error}"
            return
        self._graphs[batch] = graph, context
        self._stack.callback(self._cuda.destroy, graph)

    def _context(self) -> Any:
        context = self._engine.create_execution_context(self._setting)
        if context is None:
            raise EngineError(f"TensorRT makes no context of the engine ({self._log.words()}); free memory of the GPU")
        if self._workspace[1]:
            context.set_device_memory(*self._workspace)
        for name, pointer in zip(self._names, self._device, strict=True):
            context.set_tensor_address(name, pointer)
        return context

    def _shape(self, context: Any, batch: int) -> None:
        if not context.set_input_shape(self._names[0], (batch, *self.patch_shape)):
            raise EngineError(f"TensorRT does not take a batch of {batch} ({self._log.words()}); give a smaller one")

    def _queue(self, context: Any, batch: int) -> None:
        cuda, sides = self._cuda, (self._x, self._x_hat)
        sizes = [batch * side[0].nbytes for side in sides]
        cuda.copy_in(self._device[0], self._pinned[0], sizes[0])
        if not context.execute_async_v3(cuda.stream):
            raise EngineError(f"TensorRT does not run a batch of {batch} ({self._log.words()}); see grd-edge doctor")
        cuda.copy_out(self._pinned[1], self._device[1], sizes[1])

    def _keep_kernels(self) -> None:
        """Writes the runtime cache when it has grown; what hinders it is told in `no_cache` and stops nothing."""
        if self._cache is None:
            return
        kernels = bytes(self._cache.serialize())
        if kernels == self._cached:
            return
        self._cached = kernels
        try:
            write_atomically(self._cache_path, kernels)
            self.no_cache = ""
        except InputError as error:
            self.no_cache = str(error)


def runtime_cache_name(engine: bytes, device: Any) -> str:
    """Name of the file that keeps the kernels compiled for an engine on a device."""
    words = "-".join(device.name.lower().split())
    place = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in words)
    return f"{sha256_hex(engine)[:16]}-{place}-{device.compute_capability}.cache"
