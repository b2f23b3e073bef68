"""What a machine has of what a target needs: a list of points, each with the way out where one is missing.

Source: docs/design/tensorrt-runner.md, "What the doctor reads".
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge import _native
from grd_edge.engine.device import LIBRARY, device_here
from grd_edge.engine.fingerprint import numbers
from grd_edge.engine.library import library_of
from grd_edge.errors import EngineError, EngineMismatchError, GrdError, MissingExtraError
from grd_edge.machine import system_text
from grd_edge.targets import RTX, Target

OK, NOTE, FAILS = "ok", "note", "fails"
# Release of Jetson Linux -> JetPack. Target -> its SoC in the device tree, and the first JetPack with a known TensorRT.
_JETPACKS = {35: 5, 36: 6, 38: 7, 39: 7}
_JETSONS = {"jetson-orin": ("tegra234", 6), "jetson-thor": ("tegra264", 7)}
# A part that TensorRT 10 and 11 run on at all.
_LEAST_CAPABILITY = (7, 5)
_GIB = 1 << 30
# What building the paper's generator (181 M parameters) may take; its engine, the model and their copies on the disk.
_BUILD_MEMORY, _BUILD_DISK = 10 * _GIB, 2 * _GIB


@dataclass(frozen=True)
class Item:
    """One point of the list.

    Attributes:
        name: what is asked.
        state: `ok`; `fails`: the target cannot run; `note`: it can, but less well, or something cannot be told.
        found: the answer.
        way_out: what to do; "" where nothing is.
    """

    name: str
    state: str
    found: str
    way_out: str = ""

    def __str__(self) -> str:
        told = f"{self.found}; {self.way_out}" if self.way_out else self.found
        return told if self.state == OK else f"{self.state.upper()}: {told}"


def _run(command: Sequence[str]) -> str:
    """What a command prints, or why it did not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"Error: {error}"
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Machine:
    """Where the answers come from; recorded ones in tests.

    Attributes:
        root: of the file system.
        architecture: of the processor.
        run: prints of a command, or a line that begins with `Error`.
        load: opens a shared library.
        libraries: folder of the native ones.
        free_disk: bytes that are free where engines are written.
    """

    root: Path = Path("/")
    architecture: str = platform.machine()
    run: Callable[[Sequence[str]], str] = _run
    load: Callable[[str], Any] = ctypes.CDLL
    libraries: Path | None = None
    free_disk: Callable[[], int] = lambda: shutil.disk_usage(".").free

    def text(self, path: str) -> str:
        """See `system_text`."""
        return system_text(self.root, path)


def checklist(target: Target, machine: Machine) -> list[Item]:
    """All points of a target, in the order in which they are mended."""
    folder = machine.libraries or _native.library_dir()
    backends = sorted(path.name for path in folder.glob("libgrd_backend_tensorrt*.so"))
    version, package = _package(target, machine, bool(backends))
    driver = _driver(machine)
    gpu = _gpu(target, machine) if driver.state == OK else Item("GPU", FAILS, "there is no driver to ask for it")
    items = [*_board(target, machine), driver, gpu, package, _cuda_package(bool(backends)), _native_library()]
    items += [*_native_parts(folder, backends)]
    if target.name in _JETSONS:
        items += [*_dla(target, machine, version), _power_mode(machine), _clocks(machine)]
    return [*items, _memory(machine), _disk(machine)]


def _board(target: Target, machine: Machine) -> list[Item]:
    """What computer this is and, of a Jetson, its system."""
    model = machine.text("proc/device-tree/model") or f"{machine.architecture} computer"
    if target.name not in _JETSONS:
        return [Item("machine", OK, model)]
    soc, least = _JETSONS[target.name]
    if machine.architecture != "aarch64" or soc not in machine.text("proc/device-tree/compatible"):
        way_out = f"run on a {target.parts}, or choose the target of this machine"
        return [Item("machine", FAILS, f"{model}, which is no {target.parts} ({soc})", way_out)]
    return [Item("machine", OK, model), _jetpack(machine, least)]


def _jetpack(machine: Machine, least: int) -> Item:
    release = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", machine.text("etc/nv_tegra_release"))
    flash = f"flash JetPack {least} or later"
    if not release:
        return Item("JetPack", FAILS, "/etc/nv_tegra_release names no release of Jetson Linux", flash)
    linux, major = f"Jetson Linux {release[1]}.{release[2]}", _JETPACKS.get(int(release[1]))
    package = re.search(
        r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)", machine.text("var/lib/dpkg/status"), re.M
    )
    told = f"JetPack {package[1]}, {linux}" if package else f"JetPack {major or 'of an unknown release'}, {linux}"
    if major is None:
        return Item("JetPack", NOTE, told, f"known are {', '.join(f'R{known}' for known in _JETPACKS)}")
    if major < least:
        return Item("JetPack", FAILS, told, flash)
    return Item("JetPack", OK, told)


def _driver(machine: Machine) -> Item:
    version = ctypes.c_int()
    try:
        library = machine.load(LIBRARY)
        code = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError) as error:
        return Item(
            "driver", FAILS, f"no NVIDIA driver ({error})", "install the driver of the GPU; on a Jetson, flash JetPack"
        )
    if code or not version.value:
        return Item("driver", FAILS, f"{LIBRARY} tells no version (error {code})", "install the driver again")
    cuda = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    kernel = re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)\s", machine.text("proc/driver/nvidia/version") + "\n")
    return Item("driver", OK, f"{kernel[1]}, {cuda}" if kernel else cuda)


def _gpu(target: Target, machine: Machine) -> Item:
    try:
        device = device_here(load=machine.load)
    except EngineError as error:
        return _of_error("GPU", FAILS, error)
    told = f"{device.name}, compute capability {device.compute_capability}"
    fits = target.compute_capabilities or target.device_capabilities
    if fits and device.compute_capability not in fits:
        return Item("GPU", FAILS, told, f"{target.name} is for {' or '.join(fits)}; choose another target")
    if numbers(device.compute_capability) < _LEAST_CAPABILITY:
        return Item("GPU", FAILS, told, "a Turing GPU (7.5) or a later one is needed")
    return Item("GPU", OK, told)


def _package(target: Target, machine: Machine, native: bool) -> tuple[str, Item]:
    """Version of TensorRT for this Python ("": none), and its point."""
    name = f"{target.library} for Python"
    try:
        version = library_of(target).__version__
    except (MissingExtraError, EngineMismatchError) as error:
        item = _of_error(name, NOTE if native else FAILS, error)
    else:
        return version, Item(name, OK, version)
    others = sorted(path.parts[-3] for path in machine.root.glob("usr/lib/python3*/dist-packages/tensorrt"))
    if others and target.library != RTX:
        here = f"this is Python {platform.python_version()}"
        way_out = f"the system's is for {', '.join(others)} and {here}; use that Python, or the backend in C++"
        item = Item(name, item.state, item.found, way_out)
    return "", item


def _cuda_package(native: bool) -> Item:
    for module, state, told in (
        ("cuda.bindings.runtime", OK, "cuda-bindings, with CUDA graphs"),
        ("pycuda", NOTE, "pycuda, without CUDA graphs"),
    ):
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return Item("CUDA for Python", state, told, "" if state == OK else "pip install cuda-bindings")
    state = NOTE if native else FAILS
    return Item("CUDA for Python", state, "neither cuda-bindings nor pycuda", "pip install 'grd-edge[gpu]'")


def _native_library() -> Item:
    try:
        found = _native.library().grd_version_string().decode()
    except GrdError as error:
        return _of_error("native library", FAILS, error)
    return Item("native library", OK, f"{found} in {_native.library_dir()}")


def _native_parts(folder: Path, backends: Sequence[str]) -> list[Item]:
    build = "build it with -DGRD_WITH_{}=ON, see HACKING.md"
    cuda = folder / "libgrd_edge_cuda.so"
    return [
        Item("native backend", OK, ", ".join(backends))
        if backends
        else Item(
            "native backend", NOTE, "no libgrd_backend_tensorrt*.so: engines run in Python", build.format("TENSORRT")
        ),
        Item("native CUDA kernels", OK, cuda.name)
        if cuda.exists()
        else Item("native CUDA kernels", NOTE, f"no {cuda.name}: scoring stays on the CPU", build.format("CUDA")),
    ]


def _dla(target: Target, machine: Machine, version: str) -> list[Item]:
    """The accelerator beside the GPU, which only some releases know; an engine without it needs none."""
    if target.name != "jetson-orin":
        return []
    model, release = machine.text("proc/device-tree/model"), numbers(version)
    if "Orin Nano" in model:
        return [Item("DLA", OK, "Orin Nano has none")]
    if not release:
        return [Item("DLA", NOTE, "TensorRT is not there to ask")]
    agx = "AGX Orin" in model or "p3701" in machine.text("proc/device-tree/compatible")
    if release[:2] <= (10, 7) or (agx and release[:3] >= (11, 4, 1)):
        return [Item("DLA", OK, f"TensorRT {version} builds for it")]
    return [Item("DLA", NOTE, f"TensorRT {version} does not build for it", "10.3 to 10.7 do, and on AGX Orin 11.4.1")]


def _power_mode(machine: Machine) -> Item:
    mode = re.search(r"NV Power Mode: (\S+)", machine.run(["nvpmodel", "-q"]))
    if not mode:
        return Item("power mode", NOTE, "nvpmodel -q does not tell it", "run the doctor with sudo")
    if mode[1].startswith("MAXN"):
        return Item("power mode", OK, mode[1])
    way_out = "the modes are in: grep POWER_MODEL /etc/nvpmodel.conf; choose with: sudo nvpmodel -m ID"
    return Item("power mode", NOTE, f"{mode[1]}, which caps the clocks", way_out)


def _clocks(machine: Machine) -> Item:
    printed = machine.run(["jetson_clocks", "--show"])
    # The memory's line keeps its least frequency when it is locked, so it does not count.
    spans = re.findall(r"^\s*(?:cpu\d+|GPU|gpu-\S+)\b.*?MinFreq=(\d+) MaxFreq=(\d+)", printed, re.M)
    if not spans:
        return Item("clocks", NOTE, "jetson_clocks --show does not tell them", "run the doctor with sudo")
    if all(least == most for least, most in spans):
        return Item("clocks", OK, "locked at the mode's maximum")
    return Item("clocks", NOTE, "they follow the load, so times scatter", "lock them with: sudo jetson_clocks")


def _memory(machine: Machine) -> Item:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", machine.text("proc/meminfo"), re.M)
    if not found:
        return Item("free memory", NOTE, "/proc/meminfo does not tell it")
    return _room("free memory", int(found[1]) << 10, _BUILD_MEMORY, "builds of large models may fail; build elsewhere")


def _disk(machine: Machine) -> Item:
    return _room("free disk", machine.free_disk(), _BUILD_DISK, "free space before building")


def _room(name: str, free: int, wanted: int, way_out: str) -> Item:
    told = f"{free / _GIB:.1f} GiB"
    return Item(name, OK, told) if free >= wanted else Item(name, NOTE, f"{told} of {wanted // _GIB} GiB", way_out)


def _of_error(name: str, state: str, error: Exception) -> Item:
    """A point from a sentence that ends with the way out."""
    found, _, way_out = str(error).rpartition("; ")
    return Item(name, state, found, way_out)
