"""The C ABI of kernels/include/grd_edge.h in ctypes: the only file that knows it. Never imports torch.

`tests/native/test_native.py` compiles the header and compares every size and offset with this file.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

from grd_edge.errors import BundleError, EngineError, EngineMismatchError, GrdError, InputError
from grd_edge.targets import TARGETS

LIBRARY = "libgrd_edge.so"
DTYPES = {np.dtype(t): i for i, t in enumerate((np.uint8, np.uint16, np.float16, np.float32, np.int8), start=1)}
WINDOWS = {"gaussian": 0, "box": 1}
PADDINGS = {"error": 0, "reflect": 1}


_Four = c_int64 * 4


class View(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("dtype", c_int32),
        ("space", c_int32),
        ("extent", _Four),
        ("stride_bytes", _Four),
    )


class _Sized(Structure):
    """Base of the structures that begin with struct_size."""

    def __init__(self, **values) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **values)


class ScoreParams(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("window", c_int32),
        ("local_window_px", c_int32),
        ("heatmap_scale", c_float),
        ("variant", c_char_p),
        ("roi", POINTER(View)),
        ("pool", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class ScoreOutputs(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("phi", c_void_p),
        ("phi_local", c_void_p),
        ("residual_min", c_void_p),
        ("residual_max", c_void_p),
        ("heatmap", POINTER(View)),
        ("variant", POINTER(c_char_p)),
    )


class CutParams(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("scale_px", c_int32),
        ("patch_h", c_int32),
        ("patch_w", c_int32),
        ("stride_y", c_int32),
        ("stride_x", c_int32),
        ("channels", c_int32),
        ("padding", c_int32),
    )


class CutOptions(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("input_scale", c_float),
        ("variant", c_char_p),
        ("ran", POINTER(c_char_p)),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class Grid(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("scaled_h", c_int32),
        ("scaled_w", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("count", c_int32),
    )


class BundleInfo(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("schema", c_int32),
        ("cut", CutParams),
        ("window", c_int32),
        ("local_window_px", c_int32),
        ("decides_local", c_int32),
        ("has_decision", c_int32),
        ("k", c_int32),
        ("threshold", c_float),
        ("engine_count", c_int32),
        ("region_count", c_int32),
        ("roi_h", c_int32),
        ("roi_w", c_int32),
    )


class InspectorParams(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("batch_limit", c_int32),
        ("undecided", c_int32),
        ("target", c_char_p),
        ("precision", c_char_p),
        ("backend_dir", c_char_p),
        ("vendor_dir", c_char_p),
        ("variant", c_char_p),
    )


class PatchResult(Structure):
    _fields_ = (
        ("y_px", c_int32),
        ("x_px", c_int32),
        ("decision", c_int32),
        ("region", c_int32),
        ("phi", c_float),
        ("phi_local", c_float),
    )


class Result(_Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("decision", c_int32),
        ("patch_count", c_int32),
        ("defective_count", c_int32),
        ("score", c_float),
        ("threshold", c_float),
        ("cut_ms", c_double),
        ("infer_ms", c_double),
        ("score_ms", c_double),
        ("total_ms", c_double),
        ("patches", POINTER(PatchResult)),
        ("patch_capacity", c_int64),
        ("heatmap", POINTER(View)),
        ("x_hat", POINTER(View)),
        ("roi", POINTER(View)),
    )


# name -> (result, arguments); everything not listed returns a grd_status
_PROTOTYPES = {
    "grd_version": (c_int32, ()),
    "grd_version_string": (c_char_p, ()),
    "grd_status_name": (c_char_p, (c_int32,)),
    "grd_score_patches": (c_int32, (POINTER(ScoreParams), POINTER(View), POINTER(View), POINTER(ScoreOutputs))),
    "grd_score_workspace_bytes": (c_size_t, (POINTER(ScoreParams), c_int64, c_int64, c_int64)),
    "grd_variant_name": (c_char_p, (c_int32,)),
    "grd_variant_supported": (c_int32, (c_char_p,)),
    "grd_variant_active": (c_char_p, (c_char_p,)),
    "grd_pool_open": (c_int32, (c_int32, POINTER(c_void_p))),
    "grd_pool_close": (None, (c_void_p,)),
    "grd_cut_grid": (c_int32, (POINTER(CutParams), c_int64, c_int64, POINTER(Grid))),
    "grd_cut_frame": (c_int32, (POINTER(CutParams), POINTER(View), POINTER(View), POINTER(CutOptions))),
    "grd_stitch_frame": (
        c_int32,
        (POINTER(CutParams), c_int64, c_int64, POINTER(View), POINTER(View), POINTER(CutOptions)),
    ),
    "grd_cut_workspace_bytes": (c_size_t, (POINTER(CutParams), c_int64, c_int64)),
    "grd_bundle_open": (c_int32, (c_char_p, POINTER(c_void_p))),
    "grd_bundle_close": (None, (c_void_p,)),
    "grd_bundle_message": (c_char_p, (c_void_p,)),
    "grd_bundle_get_info": (c_int32, (c_void_p, POINTER(BundleInfo))),
    "grd_bundle_engine_target": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_engine_precision": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_region_name": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_region_threshold": (c_float, (c_void_p, c_int32)),
    "grd_inspector_open": (c_int32, (c_void_p, POINTER(InspectorParams), POINTER(c_void_p))),
    "grd_inspector_close": (None, (c_void_p,)),
    "grd_inspector_message": (c_char_p, (c_void_p,)),
    "grd_inspector_engine_version": (c_char_p, (c_void_p,)),
    "grd_inspector_grid": (c_int32, (c_void_p, c_int64, c_int64, POINTER(Grid))),
    "grd_inspector_inspect": (c_int32, (c_void_p, POINTER(View), POINTER(Result))),
}


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
    for name, (result, arguments) in _PROTOTYPES.items():
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
    return View(array.__array_interface__["data"][0], dtype, 0, _Four(*array.shape), _Four(*array.strides))


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
