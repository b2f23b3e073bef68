"""The native library: loaded, arrays as its views, statuses as exceptions. Never imports torch.

Only this module and `grd_edge._abi`, where the structures of its header are, know the C ABI.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np

from grd_edge._abi import (
    PROTOTYPES,
    BundleInfo,
    CutOptions,
    CutParams,
    Four,
    Grid,
    InspectorParams,
    Latency,
    PatchResult,
    Result,
    ScoreOutputs,
    ScoreParams,
    StreamFrame,
    StreamParams,
    StreamResult,
    StreamStats,
    View,
)
from grd_edge.errors import BundleError, EngineError, EngineMismatchError, GrdError, InputError
from grd_edge.targets import TARGETS

__all__ = [
    "BundleInfo",
    "CutOptions",
    "CutParams",
    "Grid",
    "InspectorParams",
    "Latency",
    "PatchResult",
    "Result",
    "ScoreOutputs",
    "ScoreParams",
    "StreamFrame",
    "StreamParams",
    "StreamResult",
    "StreamStats",
    "View",
]

LIBRARY = "libgrd_edge.so"
DTYPES = {np.dtype(t): i for i, t in enumerate((np.uint8, np.uint16, np.float16, np.float32, np.int8), start=1)}
WINDOWS = {"gaussian": 0, "box": 1}
PADDINGS = {"error": 0, "reflect": 1}
OVERLOADS = {"block": 0, "drop-oldest": 1, "drop-newest": 2}
STREAM_FULL, STREAM_EMPTY, STREAM_TIMEOUT = 60, 61, 62


def library_dir() -> Path:
    """Folder of the native library: `GRD_LIBRARY_DIR`, else `grd_edge/_lib`."""
    return Path(os.environ.get("GRD_LIBRARY_DIR") or Path(__file__).parent / "_lib")


@cache
def library() -> ctypes.CDLL:
    """The native library with its prototypes, loaded once.

    Raises:
        EngineError: it is missing or does not load.
    """
    path = library_dir() / LIBRARY
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(
            f"the native library {path} cannot be loaded ({error}); build it with: pip install . (in the source tree)"
        ) from error
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def openvino_dir() -> str | None:
    """Folder of the OpenVINO wheel's libraries, found without importing it; None when it is not installed."""
    spec = importlib.util.find_spec("openvino")
    folder = Path(spec.origin).parent / "libs" if spec and spec.origin else None
    return str(folder) if folder and folder.is_dir() else None


def vendor_dir(target: str) -> str | None:
    """Folder of the wheel with the libraries that run a target; None: not installed, then the library looks itself."""
    if target not in TARGETS:
        return openvino_dir()
    spec = importlib.util.find_spec(f"{TARGETS[target].library}_libs")
    return str(Path(spec.origin).parent) if spec and spec.origin else None


def view(array: np.ndarray) -> View:
    """View of an array (N, C, H, W) of a supported dtype; the array must outlive it."""
    dtype = DTYPES.get(array.dtype)
    if dtype is None or array.ndim != 4:
        kinds = ", ".join(str(kind) for kind in DTYPES)
        raise InputError(f"an array of {array.dtype} with {array.ndim} axes was given; expected 4 axes of {kinds}")
    if array.size > 1 and not any(array.strides):  # a view says "dense" by that
        raise InputError("an array that repeats one value in every axis was given; pass a copy of it")
    return View(array.__array_interface__["data"][0], dtype, 0, Four(*array.shape), Four(*array.strides))


def frame_view(frame: np.ndarray) -> View:
    """View (1, C, H, W) of a frame H x W or H x W x C, without a copy."""
    if frame.ndim not in (2, 3):
        raise InputError(f"a frame of shape {frame.shape} was given; expected H x W or H x W x C")
    planes = frame[None, None] if frame.ndim == 2 else frame.transpose(2, 0, 1)[None]
    return view(planes)


def check(status: int, message: bytes | None = None) -> None:
    """Raises the exception that belongs to a grd_status.

    Raises:
        InputError: 10..19 and 40..49; BundleError: 20..29; EngineMismatchError: 35; EngineError: 30..39; GrdError: the
            rest.
    """
    if status == 0:
        return
    kind = {1: InputError, 2: BundleError, 3: EngineError, 4: InputError}.get(status // 10, GrdError)
    if status == 35:  # GRD_ERR_ENGINE_MISMATCH
        kind = EngineMismatchError
    name = library().grd_status_name(status).decode()
    text = (message or b"").decode("utf-8", "replace")
    raise kind(text or f"the native library refused the call with {name}; see grd_edge.h")
