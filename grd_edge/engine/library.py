"""The vendor's Python packages as builder and runner need them: imported, asked for their version, listened to.

Source: docs/design/tensorrt.md.
"""

from __future__ import annotations

import contextlib
import importlib
from importlib import metadata
from types import ModuleType
from typing import Any

from grd_edge.engine.fingerprint import numbers
from grd_edge.errors import EngineError, EngineMismatchError, MissingExtraError, one_line
from grd_edge.targets import CLASSIC, LAST_CLASSIC, LEAST_CLASSIC, RTX, Target

MAGIC = {RTX: b"vtrt", CLASSIC: b"ftrt"}
HEADER_BYTES = 64
# Least NVIDIA driver per CUDA major version. Source: CUDA release notes, minor version compatibility.
DRIVER_FLOORS = {12: "525.60.13", 13: "580.65.06"}


def library_of(target: Target) -> ModuleType:
    """The Python package that builds and runs engines of a target, of a version that is known to work.

    Raises:
        MissingExtraError: it is not installed, or its libraries are not.
        EngineMismatchError: its version is none that is known.
    """
    try:
        library = importlib.import_module(target.library)
    except (ImportError, OSError) as error:  # OSError: the bindings are there, what they load is not
        raise MissingExtraError(
            f"{target.library} is needed for {target.name} and cannot be imported ({one_line(error)}); "
            f"install it with: {target.package}"
        ) from error
    version = numbers(library.__version__)
    if target.library == CLASSIC and not LEAST_CLASSIC <= version[:2] <= LAST_CLASSIC:
        raise EngineMismatchError(
            f"TensorRT {library.__version__} is installed and {'.'.join(map(str, LEAST_CLASSIC))} to "
            f"{LAST_CLASSIC[0]}.x are known; install one of these"
        )
    return library


def driver_floor(library: ModuleType) -> str:
    """Least NVIDIA driver for the CUDA that the installed build links: told by its package's name, else its release."""
    for major, floor in DRIVER_FLOORS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(f"{library.__name__}_cu{major}")
            return floor
    major = 12 if library.__name__ == CLASSIC and numbers(library.__version__) < (10, 13) else 13
    return DRIVER_FLOORS[major]


def check_header(data: bytes, library: str, version: str) -> None:
    """Whether bytes begin as an engine of a library does; TensorRT-RTX also writes its length and version there.

    Raises:
        EngineError: another kind of file, cut short, or of another version.
    """
    again = "build it again with: grd-edge build engine"
    if len(data) < HEADER_BYTES or data[:4] not in MAGIC.values():
        raise EngineError(f"these {len(data)} bytes are no TensorRT engine; {again}")
    if data[:4] != MAGIC[library]:
        other = next(name for name, magic in MAGIC.items() if magic == data[:4])
        raise EngineError(f"this is an engine of {other} and {library} was to run it; {again}")
    if library == RTX:
        length = int.from_bytes(data[16:24], "little")
        if length != len(data):
            raise EngineError(f"the engine has {len(data)} bytes and says {length}: it was cut short; {again}")
        built = tuple(data[24:28])
        if built[:3] != numbers(version)[:3]:
            raise EngineError(f"the engine was built by {library} {'.'.join(map(str, built))}, not {version}; {again}")


def log_of(library: ModuleType) -> Any:
    """A logger of the library that prints nothing and keeps warnings, each once, and errors."""

    class Log(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.warnings: list[str] = []
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(str(message).split())
            if severity == library.ILogger.Severity.WARNING:
                if text not in self.warnings:
                    self.warnings.append(text)
            elif severity.value <= library.ILogger.Severity.ERROR.value:
                self._errors.append(text)

        def words(self) -> str:
            """The first error since this was asked, which the others follow from; for the middle of a sentence."""
            errors, self._errors = self._errors, []
            return errors[0] if errors else "no reason given"

    return Log()
