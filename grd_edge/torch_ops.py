"""`torch.ops.grd_edge.score_patches`: the native scoring kernels on CPU tensors, eager and under `torch.compile`.

Importing this module registers the operator. It calls the C API through ctypes, so nothing is compiled against PyTorch.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager

import torch
from torch import Tensor

from grd_edge import kernels
from grd_edge.errors import InputError
from grd_edge.score import LOCAL_WINDOW_PX, check_patches, checked_local_window

_X_DTYPES = (torch.uint8, torch.float16, torch.float32)
_X_HAT_DTYPES = (torch.float16, torch.float32)
_ROI_DTYPES = (torch.bool, torch.uint8)


@torch.library.custom_op("grd_edge::score_patches", mutates_args=())
def score_patches(
    x: Tensor,
    x_hat: Tensor,
    roi: Tensor | None = None,
    window: str = "gaussian",
    local_window_px: int = LOCAL_WINDOW_PX,
    heatmap: bool = True,
    variant: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores of N patches by `grd_score_patches`, from the tensors' own memory and on PyTorch's number of threads.

    Args:
        x: (N, C, H, W) on the CPU, any strides; uint8 (value / 255), float16 or float32, nominally in [0, 1]; H and
            W >= 11 for the Gaussian window.
        x_hat: the same shape, float16 or float32.
        roi: (N or 1, 1, H, W) bool or uint8, nonzero = of interest; None: everything. A patch without a pixel of
            interest scores NaN.
        window: "gaussian" or "box".
        local_window_px: extent of the window of phi_local, >= 1; cut to the map's size.
        heatmap: False leaves it empty, (0, 1, H, W).
        variant: kernel variant by name; None: GRD_FORCE_VARIANT, else the fastest this CPU supports.

    Returns:
        phi and phi_local (N,), heatmap (N, 1, H, W), residual_min and residual_max (N,): those of
        `kernels.score_patches`, bit for bit, float32. They do not depend on the number of threads.

    Raises:
        InputError: a device, dtype, shape or option that cannot be used; a tensor that needs a gradient.

    Source: docs/method.md, sections 5 and 6.
    """
    _check(x, x_hat, roi, window, local_window_px)
    if not len(x):
        return _empty(x, heatmap)
    local_window_px = min(local_window_px, *x.shape[2:])  # the C API takes 32 bits and cuts it to the map
    options = {"window": window, "local_window_px": local_window_px, "heatmap": heatmap, "variant": variant}
    arrays = [None if tensor is None else _array(tensor) for tensor in (x, x_hat, roi)]
    with _pool(torch.get_num_threads() if len(x) > 1 else 1) as pool:
        found = kernels.score_patches(*arrays, pool=pool, **options)
    maps = torch.from_numpy(found.heatmap).unsqueeze(1) if heatmap else _empty(x, heatmap)[2]
    values = (found.phi, found.phi_local, found.residual_min, found.residual_max)
    phi, phi_local, low, high = map(torch.from_numpy, values)
    return phi, phi_local, maps, low, high


@score_patches.register_fake
def _(x, x_hat, roi=None, window="gaussian", local_window_px=LOCAL_WINDOW_PX, heatmap=True, variant=None):
    _check(x, x_hat, roi, window, local_window_px)
    return _empty(x, heatmap)


def _refuse_gradients(*_: object, **__: object) -> None:
    raise InputError(
        "a tensor that needs a gradient was given to grd_edge::score_patches, which has none; call it under "
        "torch.no_grad(), or train on grd_edge.score.ssim_distance_map"
    )


score_patches.register_autograd(_refuse_gradients, setup_context=_refuse_gradients)


def _empty(x: Tensor, heatmap: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes; contents undefined."""
    n, _, h, w = x.shape
    phi, phi_local, low, high = (x.new_empty(n, dtype=torch.float32) for _ in range(4))
    return phi, phi_local, x.new_empty((n if heatmap else 0, 1, h, w), dtype=torch.float32), low, high


def _array(tensor: Tensor):
    """The tensor's memory as an array; a copy only of a tensor that repeats one value in every axis."""
    return (tensor if any(tensor.stride()) else tensor.contiguous()).numpy(force=True)


def _check(x: Tensor, x_hat: Tensor, roi: Tensor | None, window: str, local_window_px: int) -> None:
    for name, tensor, dtypes in (("x", x, _X_DTYPES), ("x_hat", x_hat, _X_HAT_DTYPES), ("roi", roi, _ROI_DTYPES)):
        if tensor is None:
            continue
        if tensor.device.type not in ("cpu", "meta"):
            raise InputError(
                f"{name} is on {tensor.device} and grd_edge::score_patches runs on the CPU; move it with .cpu(), or "
                "use grd_edge.score.score_patches_torch"
            )
        if tensor.dtype not in dtypes:
            known = ", ".join(str(dtype) for dtype in dtypes)
            raise InputError(f"{name} is {tensor.dtype}; expected one of {known}")
    check_patches(tuple(x.shape), tuple(x_hat.shape), window)
    checked_local_window(local_window_px)
    n, _, h, w = x.shape
    if roi is not None and tuple(roi.shape) not in ((n, 1, h, w), (1, 1, h, w)):
        raise InputError(f"roi has shape {tuple(roi.shape)}; expected {(n, 1, h, w)} or {(1, 1, h, w)}")


# --------------------------------------------------------------- threads

_lock = threading.Lock()
_kept: kernels.Pool | None = None


@contextmanager
def _pool(threads: int):
    """The one pool, of so many threads; None for a single one, or while another thread of the program uses it."""
    global _kept
    if threads < 2 or not _lock.acquire(blocking=False):
        yield None
        return
    try:
        if _kept is None or _kept.threads != threads:
            if _kept is not None:
                _kept.close()
            _kept = None  # also when the next line fails
            _kept = kernels.Pool(threads)
        yield _kept
    finally:
        _lock.release()


def _forget_pool() -> None:
    """In a forked process: the pool's threads are not there, and closing it would wait for them."""
    global _lock, _kept
    _lock, _kept = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_pool)
