"""The GPU of this machine, asked of the driver itself: no package of CUDA is needed."""

from __future__ import annotations

import ctypes

from grd_edge.engine.fingerprint import Device
from grd_edge.errors import EngineError

LIBRARY = "libcuda.so.1"
_NO_DEVICE = "run this on a machine with an NVIDIA GPU and its driver"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def device_here(index: int = 0, load=ctypes.CDLL) -> Device:
    """Name and compute capability of a GPU.

    Args:
        index: as CUDA counts visible devices.
        load: opens a shared library by its name.

    Raises:
        EngineError: no driver, or no such device, in the driver's words.
    """
    try:
        cuda = load(LIBRARY)
    except OSError as error:
        raise EngineError(f"there is no NVIDIA driver on this machine ({error}); {_NO_DEVICE}") from error
    _check(cuda, cuda.cuInit(0))
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    name = ctypes.create_string_buffer(256)
    _check(cuda, cuda.cuDeviceGetName(name, len(name), device))
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    return Device(name.value.decode(), f"{major.value}.{minor.value}", _driver_version())


def _check(cuda, code: int) -> None:
    if code == 0:
        return
    words = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(words))
    said = words.value.decode() if words.value else f"CUDA error {code}"
    raise EngineError(f"the NVIDIA driver refuses ({said}); {_NO_DEVICE}")


def _driver_version(path: str = "/proc/driver/nvidia/version") -> str:
    """Such as `580.65.06`; "" where the kernel module does not tell."""
    try:
        with open(path, encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return ""
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "")
