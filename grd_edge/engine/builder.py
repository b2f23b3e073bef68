"""Typed ONNX model -> serialized engine, by classic TensorRT (10.3 to 11.x) or TensorRT-RTX: one file, as their Python
packages differ in few places.

Source: docs/design/tensorrt.md; TensorRT and TensorRT-RTX documentation.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from grd_edge.engine.fingerprint import Fingerprint, numbers
from grd_edge.engine.library import check_header, driver_floor, library_of, log_of
from grd_edge.errors import EngineError, InputError, StoppedError, one_line
from grd_edge.files import sha256_hex, write_atomically
from grd_edge.targets import RTX, Target

# Releases whose DLA compiler exists; elsewhere DLA is refused. Source: TensorRT 11.4.1 documentation, working with DLA.
DLA_UNTIL, DLA_AGAIN = (10, 7), (11, 4, 1)
DLA_PARTS = ("jetson-orin",)
MAX_BATCH = 1024


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        batches: least, usual and largest number of patches per call.
        workspace_bytes: of the builder and of the running engine; None: the library's default.
        dla: number of the DLA core; None: the GPU alone.
        timing_cache: file with the times of kernels on this device, read and written; classic TensorRT only.
        version_compatible: the engine also runs on later versions of the library; costs speed and size.
        hardware_compatible: the engine also runs on other parts: `ampere+` or `same_compute_capability`; costs speed.
    """

    batches: tuple[int, int, int] = (1, 8, 64)
    workspace_bytes: int | None = None
    dla: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None

    def __post_init__(self) -> None:
        low, usual, high = self.batches
        if not 1 <= low <= usual <= high <= MAX_BATCH:
            raise InputError(
                f"the batch profile is {low}:{usual}:{high}; expected least:usual:largest in rising order from 1 to "
                f"{MAX_BATCH}, such as 1:8:64"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise InputError(f"the workspace is {self.workspace_bytes} bytes; give 1MiB or more")
        if self.dla is not None and self.dla < 0:
            raise InputError(f"the DLA core is {self.dla}; cores count from 0")
        if self.hardware_compatible not in (None, "ampere+", "same_compute_capability"):
            raise InputError(
                f"there is no hardware compatibility {self.hardware_compatible!r}; choose ampere+ or "
                "same_compute_capability"
            )

    @property
    def profile(self) -> str:
        return ":".join(map(str, self.batches))

    @property
    def compatibility(self) -> str:
        named = ("version" if self.version_compatible else None, self.hardware_compatible)
        return " ".join(name for name in named if name) or "none"


class BuiltEngine(NamedTuple):
    """A serialized engine, what it fits, the seconds it took, and what the library warned of (each line once)."""

    data: bytes
    fingerprint: Fingerprint
    seconds: float
    warnings: tuple[str, ...]


def check_options(target: Target, options: BuildOptions, library: ModuleType) -> None:
    """Raises InputError for options that a target or its library does not have."""
    version = library.__version__
    if options.dla is not None:
        here = numbers(version)
        if target.name not in DLA_PARTS:
            raise InputError(f"{target.name} ({target.parts}) has no DLA; leave --dla out, or build for {DLA_PARTS[0]}")
        if not (here[:2] <= DLA_UNTIL or here[:3] >= DLA_AGAIN):
            raise InputError(
                f"TensorRT {version} has no DLA compiler, which exists up to 10.7 and from 11.4.1 on; leave --dla out"
            )
    if target.library == RTX:
        for given, name, why in (
            (options.timing_cache, "--timing-cache", "an engine that is built without a GPU times nothing"),
            (options.version_compatible, "--version-compatible", "TensorRT-RTX runs engines of its own release only"),
            (options.hardware_compatible, "--hardware-compatible", "its targets name the parts (rtx is for several)"),
        ):
            if given:
                raise InputError(f"{name} is not for {target.name}: {why}; leave it out")


def engine_from_onnx(
    model: bytes,
    target: Target,
    precision: str,
    options: BuildOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuiltEngine:
    """Builds an engine; classic TensorRT needs the device, TensorRT-RTX does not.

    Args:
        model: typed model of `grd_edge.engine.typed`, input (N, C, patch_h, patch_w) with N free.
        precision: of the model, for the fingerprint.
        on_progress: told how many of the library's steps are done, of as many as are known by then.

    Raises:
        MissingExtraError, InputError: see `library_of` and `check_options`; a model that the parser refuses.
        EngineError: the library cannot build it, no device where one is needed, or the engine is not one.
        StoppedError: Ctrl-C.
    """
    options = options or BuildOptions()
    library = library_of(target)
    check_options(target, options, library)
    start = time.monotonic()
    with _stoppable() as stopped, _words_to_stderr():
        log = log_of(library)
        try:
            builder = library.Builder(log)
        except Exception as error:  # pybind's classes are made by no factory: without a device they raise TypeError
            raise EngineError(_no_device(target, log, error)) from error
        network = builder.create_network(_strong_typing(library))
        parser = library.OnnxParser(network, log)
        if not parser.parse(model):
            raise InputError(
                f"{target.library} does not take the model ({_parser_words(parser)}); export it again with: "
                "grd-edge build onnx"
            )
        config = builder.create_builder_config()
        capabilities = _configure(library, builder, network, config, target, options)
        monitor = _monitor(library, on_progress, stopped)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if stopped():
            raise StoppedError("stopped by Ctrl-C; the bundle is as it was")
        if plan is None:
            raise EngineError(
                f"{target.library} {library.__version__} cannot build {precision} for {target.name} "
                f"({log.words()}); try another precision or --form, or keep the layer that it names"
            )
        data = bytes(plan)
        _save_timing_cache(config, options)
    check_header(data, target.library, library.__version__)
    fingerprint = Fingerprint(
        library=target.library,
        version=library.__version__,
        compute_capabilities=capabilities,
        driver_floor=driver_floor(library),
        precision=precision,
        profile=options.profile,
        onnx_sha256=sha256_hex(model),
        compatibility=options.compatibility,
    )
    return BuiltEngine(data, fingerprint, time.monotonic() - start, tuple(log.warnings))


@contextlib.contextmanager
def _words_to_stderr() -> Iterator[None]:
    """What the library's compiler prints goes to stderr: stdout is for results, such as those of `--json`."""
    sys.stdout.flush()
    try:
        stdout = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


# ------------------------------------------------------------------------------------ where versions differ


def _strong_typing(library: ModuleType) -> int:
    """Flags of a network whose types are those of the model: asked for in 10.x, the only way in 11."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _hardware_level(library: ModuleType, name: str):
    levels = library.HardwareCompatibilityLevel
    level = getattr(levels, "AMPERE_PLUS" if name == "ampere+" else "SAME_COMPUTE_CAPABILITY", None)
    if level is None:
        raise InputError(f"TensorRT {library.__version__} has no hardware compatibility {name!r}; leave it out")
    return level


def _configure(library, builder, network, config, target: Target, options: BuildOptions) -> str:
    """Puts the options into a builder's configuration; gives the compute capabilities that the engine is for."""
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    x = network.get_input(0)
    shape = tuple(x.shape)[1:]
    profile.set_shape(x.name, *((batch, *shape) for batch in options.batches))
    config.add_optimization_profile(profile)
    if target.library == RTX:
        # Without it the engine may allocate while it runs, which a captured graph cannot.
        if (flag := getattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)) is not None:
            config.set_flag(flag)
        config.num_compute_capabilities = len(target.compute_capabilities)
        for index, capability in enumerate(target.compute_capabilities):
            part = getattr(library.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if part is None:
                raise EngineError(
                    f"TensorRT-RTX {library.__version__} does not know compute capability {capability} of "
                    f"{target.name}; install a later version"
                )
            config.set_compute_capability(part, index)
        return " ".join(target.compute_capabilities)
    if options.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = _hardware_level(library, options.hardware_compatible)
    if options.dla is not None:
        cores = builder.num_DLA_cores
        if options.dla >= cores:
            raise InputError(f"this device has {cores} DLA cores and core {options.dla} was asked for; leave --dla out")
        config.default_device_type = library.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(library.BuilderFlag.GPU_FALLBACK)
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            raise InputError(
                f"{options.timing_cache} is no timing cache of this device and TensorRT {library.__version__}; name "
                "another file, or remove it"
            )
    return capability_here(target)


def capability_here(target: Target) -> str:
    """Compute capability of the device that is here, which an engine of the target is built on.

    Raises:
        EngineError: no driver, or another part than the target's.
    """
    from grd_edge.engine.device import device_here

    device = device_here()
    if target.device_capabilities and device.compute_capability not in target.device_capabilities:
        raise EngineError(
            f"{target.name} is built on a device of compute capability {' or '.join(target.device_capabilities)}, and "
            f"{device.name} has {device.compute_capability}; build on the {target.parts} itself, or choose --target trt"
        )
    return device.compute_capability


def _parser_words(parser) -> str:
    """The first error of an ONNX parser, with the node that it is about where the release tells it."""
    if not parser.num_errors:
        return "it gives no reason"
    error = parser.get_error(0)
    node = [ask() for name in ("node_operator", "node_name") if callable(ask := getattr(error, name, None))]
    about = " ".join(each for each in node if each)
    return " ".join(f"{about}: {error.desc()}".split()) if about else " ".join(error.desc().split())


def _save_timing_cache(config, options: BuildOptions) -> None:
    if options.timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        write_atomically(options.timing_cache, bytes(cache.serialize()))


def _no_device(target: Target, log, error: Exception) -> str:
    said = log.words() or one_line(error)
    return (
        f"{target.library} cannot start on this machine ({said}); {target.name} is built on the device itself, so run "
        "this there with its driver installed"
        if not target.ahead_of_time
        else f"{target.library} cannot start on this machine ({said}); reinstall it with: {target.package}"
    )


# ----------------------------------------------------------------------- objects that the library calls back


def _monitor(library: ModuleType, on_progress: Callable[[int, int], None], stopped: Callable[[], bool]):
    class Monitor(library.IProgressMonitor):
        """Steps of all phases together; classic TensorRT asks after each whether to go on.

        TensorRT-RTX does, too, but told no, 1.7.1 crashed in processes that had built before; it builds in seconds, so
        there the build ends first.
        """

        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.done = self.total = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.total += num_steps
            on_progress(self.done, self.total)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.done = min(self.done + 1, self.total)
            on_progress(self.done, self.total)
            return library.__name__ == RTX or not stopped()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the build to end behind its step: an exception could not cross the library's frames."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
