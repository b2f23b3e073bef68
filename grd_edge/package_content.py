"""What a package holds beside its bundle: our library, the vendor's libraries, and the terms of both.

Never imports torch or onnx. Source: docs/design/package.md.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from grd_edge import _native
from grd_edge.elf import Wants, wants_of
from grd_edge.errors import EngineError

HEADER = "include/grd_edge.h"

# Opened by name: by our backend, by OpenVINO (its device and the reader of ONNX), and by oneTBB where they are there
# (its allocator, and what binds threads on machines of several NUMA nodes or kinds of cores).
_OPENVINO = (
    r"libopenvino_c\.so(\.\d+)*",
    r"libopenvino_(intel|arm)_cpu_plugin\.so",
    r"libopenvino_onnx_frontend\.so(\.\d+)*",
)
_OF_TBB = (r"libtbbmalloc\.so(\.\d+)*", r"libtbbbind(_\d+)*\.so(\.\d+)*")
# The loader, the C library and the runtime of the compiler, of which a process must have one each: the machine's.
_OF_SYSTEM = re.compile(r"(ld-linux-.+|lib(c|m|dl|pthread|rt|stdc\+\+|gcc_s))\.so\.\d+")
# Texts of OpenVINO's wheel. oneTBB's own license is the same as OpenVINO's, Apache 2.0; hwloc's is in its list.
_LICENSES = (
    "LICENSE",
    "runtime-third-party-programs.txt",
    "onednn_third-party-programs.txt",
    "onetbb_third-party-programs.txt",
)
_REINSTALL = "pip install --force-reinstall openvino"

_README = """\
{name}, packaged by grd-edge {version} for target {target} ({machine} Linux), precision {precision}.

This folder runs where it lies, and may be copied as a whole. It needs neither Python nor an installation. C library and
C++ runtime are those of the machine, which must have at least
{needs}.

  {name:<24}  the model and its thresholds (sealed; every file is checked when it is opened)
  include/grd_edge.h        the C API
  lib/                      library, backend, and the engine's libraries
  examples/                 line_loop.c, line_loop.cpp, inspect_frame.c; project/CMakeLists.txt of a project of your own
  licenses/                 the terms of all of it; those of oneTBB are OpenVINO's, openvino/LICENSE
  package.json              every file with its sha256

Compile and run, in this folder:

  cc -std=c99 -O2 -Iinclude examples/line_loop.c -o line_loop -Llib -lgrd_edge -Wl,-rpath,'$ORIGIN/lib'
  ./line_loop {word} FOLDER_OF_PGM_OR_PPM_IMAGES

By pkg-config:

  export PKG_CONFIG_PATH=$PWD/lib/pkgconfig
  cc -std=c99 examples/line_loop.c -o line_loop $(pkg-config --cflags --libs grd_edge) -Wl,-rpath,$PWD/lib

By CMake:

  cmake -S examples/project -B build -DCMAKE_PREFIX_PATH=$PWD && cmake --build build

In place of an rpath, LD_LIBRARY_PATH=/path/to/this/folder/lib does. The engine is found beside libgrd_edge.so; keep
GRD_VENDOR_DIR unset.
"""


def library_files(backend: str) -> dict[str, bytes]:
    """Our part: path in the package -> bytes.

    Raises:
        EngineError: something is missing.
    """
    home = _native.library_dir()
    added = home / "package"  # see cmake/Install.cmake
    sources = {
        f"lib/{_native.LIBRARY}": home / _native.LIBRARY,
        f"lib/libgrd_backend_{backend}.so": home / f"libgrd_backend_{backend}.so",
        HEADER: home / HEADER,
    }
    sources |= {str(each.relative_to(added)): each for each in sorted(added.rglob("*")) if each.is_file()}
    sources.setdefault("licenses/grd_edge.txt", added / "licenses" / "grd_edge.txt")
    files = {}
    for name, source in sources.items():
        try:
            files[name] = source.read_bytes()
        except OSError as error:
            raise EngineError(
                f"{source} of the native library is missing or unreadable ({error.strerror}); reinstall grd-edge, in "
                "the source tree with: pip install ."
            ) from error
    for name in (name for name in files if name.endswith(".so")):
        others = [each for each in _wants(name, files[name]).libraries if not _OF_SYSTEM.fullmatch(each)]
        if others:
            raise EngineError(
                f"{sources[name]} needs {', '.join(others)}, which not every Linux system has; reinstall grd-edge, in "
                "the source tree with: pip install ."
            )
    return files


def readme(bundle: str, target: str, precision: str, version: str, needs: tuple[str, ...]) -> bytes:
    """What the folder tells whoever gets it."""
    return _README.format(
        name=bundle,
        word=shlex.quote(bundle),
        version=version,
        target=target,
        precision=precision,
        machine=os.uname().machine,
        needs=", ".join(needs),
    ).encode()


def vendor_libraries() -> dict[str, bytes]:
    """The shared libraries of OpenVINO that run ONNX models on the CPU: name -> bytes.

    Raises:
        EngineError: the wheel is not installed, or a library is missing, or needs one that is neither in the wheel nor
            part of every Linux system.
    """
    folder = _native.openvino_dir()
    if folder is None:
        raise EngineError("OpenVINO's libraries were not found; install them with: pip install openvino")
    there = {entry.name: entry for entry in sorted(Path(folder).iterdir()) if entry.is_file()}

    def like(pattern: str) -> list[str]:
        return [name for name in there if re.fullmatch(pattern, name)]

    wanted = []
    for pattern in _OPENVINO:
        if not (found := like(pattern)):
            raise EngineError(
                f"{folder} holds no library whose name is {pattern}; reinstall OpenVINO with: {_REINSTALL}"
            )
        wanted += found
    libraries: dict[str, bytes] = {}
    of_tbb = [name for pattern in _OF_TBB for name in like(pattern)]
    while wanted:
        name = wanted.pop()
        if name in libraries:
            continue
        if name not in there:
            raise EngineError(
                f"{name}, which OpenVINO's libraries need, is neither in {folder} nor part of every Linux system; "
                f"install its wheel with: {_REINSTALL}"
            )
        libraries[name] = _read(there[name])
        wanted += [each for each in _wants(name, libraries[name]).libraries if not _OF_SYSTEM.fullmatch(each)]
        if name.startswith("libtbb"):
            wanted += of_tbb
    return dict(sorted(libraries.items()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); reinstall it with: {_REINSTALL}") from error


def _wants(name: str, data: bytes) -> Wants:
    try:
        return wants_of(data)
    except ValueError as error:
        raise EngineError(
            f"{name} is no shared library of this system ({error}); reinstall what it belongs to"
        ) from error


def vendor_licenses() -> dict[str, bytes]:
    """The texts that OpenVINO's wheel brings: path in the package -> bytes.

    Raises:
        EngineError: one that must go with the libraries is missing.
    """
    found = {}
    try:
        distribution = metadata.distribution("openvino")
    except metadata.PackageNotFoundError:
        distribution = None
    for file in (distribution.files or ()) if distribution else ():
        if "licenses" in file.parts and ".dist-info" in file.parts[0]:
            found[file.name] = _read(Path(distribution.locate_file(file)))
    for name in _LICENSES:
        if name not in found:
            raise EngineError(
                f"OpenVINO's license text {name} was not found, and its libraries are not passed on without it; "
                f"install its wheel with: {_REINSTALL}"
            )
    return {f"licenses/openvino/{name}": data for name, data in sorted(found.items())}


def needs_of(libraries: Iterable[bytes]) -> tuple[str, ...]:
    """The latest symbol versions that libraries ask the system for."""
    kinds = {"GLIBC": "glibc", "GLIBCXX": "libstdc++ with GLIBCXX", "GCC": "libgcc_s with GCC"}
    latest: dict[str, tuple[int, ...]] = {}
    for version in {each for data in libraries for each in wants_of(data).versions}:
        kind, _, number = version.partition("_")
        if kind in kinds and re.fullmatch(r"[\d.]+", number):
            latest[kind] = max(latest.get(kind, ()), tuple(map(int, number.split("."))))
    return tuple(f"{kinds[kind]} {'.'.join(map(str, latest[kind]))}" for kind in kinds if kind in latest)
