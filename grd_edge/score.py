"""How far a reconstruction is from its patch: phi, phi_local and the heatmap. The definition, and its PyTorch form.

`score_patches_f64` is what every backend and kernel is held to; `score_patches_torch` is the fastest eager PyTorch
form that was found within the contract, and the one that benchmarks race against. Both take x and x_hat as
(N, C, H, W), nominally in [0, 1]. PyTorch is imported only by the functions that take tensors.

Source: docs/method.md, section 5; SSIM: Wang et al., Image quality assessment, IEEE TIP 13(4), 2004.
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from grd_edge.errors import InputError

if TYPE_CHECKING:
    import torch

Window = Literal["gaussian", "box"]

WINDOW_PX = 11
WINDOW_SIGMA_PX = 1.5
SSIM_C1 = 0.01**2  # (K1 L)^2 and (K2 L)^2 with L = 1
SSIM_C2 = 0.03**2
LOCAL_WINDOW_PX = 21

# Output pixels per matrix product of a filter. Small blocks waste few multiplications by zero, large ones run better;
# 32, 48 and 64 cannot be told apart (Xeon with AVX-512, 1 thread, 2026-11).
_BLOCK_PX = 48
# Pixels scored at once on a CPU: four float32 maps of this size stay in a 2 MiB cache.
_CHUNK_PX = 1 << 16


class PatchScores(NamedTuple):
    """Scores of N patches, as numpy arrays or tensors of one floating point type.

    Attributes:
        phi: (N,), 1 - mean SSIM over channels and positions, in [0, 2]; 0 = identical. NaN if the patch or its
            reconstruction holds NaN or Inf.
        phi_local: (N,), the largest local mean of the SSIM distance, in [0, 2]; NaN as phi.
        heatmap: (N, 1, H, W), mean over channels of |x - x_hat|, not normalized, in [0, 1] for inputs in [0, 1].
    """

    phi: Any
    phi_local: Any
    heatmap: Any


def score_patches_f64(
    x: np.ndarray,
    x_hat: np.ndarray,
    *,
    window: Window = "gaussian",
    local_window_px: int = LOCAL_WINDOW_PX,
    roi: np.ndarray | None = None,
) -> PatchScores:
    """The definition: textbook SSIM in float64 on the values as stored.

    Moments are taken about each patch's own mean, which changes nothing but the rounding (below 1e-12).

    Args:
        x, x_hat: float16, float32 or float64 of equal shape (N, C, H, W), nominally in [0, 1]; H and W >= 11 for the
            Gaussian window.
        window: "gaussian", 11x11 with sigma 1.5 at valid positions, or "box", 11x11 mean with zeros outside.
        local_window_px: extent w of the local mean of phi_local in px, >= 1; cut to the map's size.
        roi: (N, H, W) bool, pixels of interest, at least one in each patch: the others are 0 in both images, and phi
            is the mean over the positions whose window holds one. None: all pixels.

    Returns:
        Scores as float64 arrays. Identical patches score exactly 0.

    Raises:
        InputError: dtype, shape, window, local_window_px or roi that cannot be used.

    Source: docs/method.md, sections 5 and 6.
    """
    x, x_hat = np.asarray(x), np.asarray(x_hat)
    floats = all(a.dtype in (np.float16, np.float32, np.float64) for a in (x, x_hat))
    _check(x.shape, x_hat.shape, floats, f"{x.dtype} and {x_hat.dtype}", window)
    share = np.ones(len(x))
    if roi is not None:
        share = _interest_share(roi, x.shape, window)
        x, x_hat = (np.where(roi[:, None], a, a.dtype.type(0)) for a in (x, x_hat))
    phi, phi_local, heatmap = np.empty(len(x)), np.empty(len(x)), np.empty((len(x), 1, *x.shape[2:]))
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(len(x)):
            a, b = x[i].astype(np.float64), x_hat[i].astype(np.float64)
            distance = _ssim_distance_f64(a, b, window)
            phi[i] = distance.mean() / share[i]
            phi_local[i] = _local_mean_f64(distance.mean(axis=0), local_window_px).max()
            heatmap[i, 0] = np.abs(a - b).mean(axis=0)
    return PatchScores(phi, phi_local, heatmap)


def ssim_distance_map(x: torch.Tensor, x_hat: torch.Tensor, *, window: Window = "gaussian") -> torch.Tensor:
    """1 - SSIM at every position and channel, differentiable in both arguments.

    Args:
        x, x_hat: floating point tensors of equal shape (N, C, H, W) on one device, nominally in [0, 1]. Computed in
            float32 at least, also under autocast.
        window: as in `score_patches_f64`.

    Returns:
        (N, C, H - 10, W - 10) for the Gaussian window, (N, C, H, W) for the box; float32, or float64 if x is.

    Raises:
        InputError: as `score_patches_f64`.

    Source: docs/method.md, section 5.
    """
    import torch

    _check_tensors(x, x_hat, window)
    n, channels = x.shape[:2]
    dtype = _dtype_of(x)
    work = _exact_dtype(dtype)
    with torch.autocast(x.device.type, enabled=False):
        a, b = (_columns(t.to(work), window) for t in (x, x_hat))
        s, d = a + b, a - b
        # Any constant is as right, so no gradient has to pass through it.
        shift_s, shift_d = _patch_mean(s.detach(), window), _patch_mean(d.detach(), window)
        s, d = s - shift_s, d - shift_d
        mean_s, mean_d, square_s, square_d = _blur(torch.stack([s, d, s * s, d * d], dim=1), window).unbind(1)
        var_s = (square_s - mean_s * mean_s).clamp_min(0)
        var_d = (square_d - mean_d * mean_d).clamp_min(0)
        mean_d2 = (mean_d + shift_d).square()
        luminance = 2 * mean_d2 / ((mean_s + shift_s).square() + mean_d2 + 2 * SSIM_C1)
        contrast = 2 * var_d / (var_s + var_d + 2 * SSIM_C2)
        distance = luminance + contrast - luminance * contrast
    distance = distance.permute(1, 0, 2).unflatten(0, (n, channels))
    return distance.to(dtype)


def score_patches_torch(
    x: torch.Tensor,
    x_hat: torch.Tensor,
    *,
    window: Window = "gaussian",
    local_window_px: int = LOCAL_WINDOW_PX,
    roi: np.ndarray | None = None,
    filters: Literal["float64", "float32"] = "float64",
) -> PatchScores:
    """Scores as tensors, without gradients: the fastest eager form within the contract.

        All filters are matrix products with banded blocks, and the map costs one division. Filters in float64 keep the
        contract on every input; in float32, with sum and difference shifted by their patch means, they are faster and
        keep it unless a patch has large areas of different brightness (section 5 has figures). Measured for one 256x256
        FP32 patch, phi + phi_local + heatmap, 1 thread:

            five 11x11 convolutions, 21x21 pooling (as usually written), raw moments     33.8 ms
        five separable convolutions, separable pooling, raw moments                  14.6 ms
        four depthwise convolutions in channels-last order, pooling by doubling       5.9 ms
        differences to the center pixel, by shifted in-place additions, any input     3.2 ms
        this form, filters in float64, any input                                      2.6 ms
        `ssim_distance_map`, which keeps what gradients need, filters in float32      2.5 ms
        this form, filters in float32                                                 1.6 ms

    (Xeon with AVX-512 and 2 MiB of L2, 2 cores shared with other work, so compare the rows only; best of 150
    interleaved runs, PyTorch 2.13, 2026-11.)

        Args:
            x, x_hat: floating point tensors of equal shape (N, C, H, W) on one device, nominally in [0, 1]. Half
                precision is converted to float32 first.
            window, local_window_px, roi: as in `score_patches_f64`.
            filters: precision of the filters; float64 tensors are computed in float64 throughout.

        Returns:
            Scores as float32 tensors (float64 if x is) on the device of x. Identical patches score exactly 0.

        Raises:
            InputError: as `score_patches_f64`, or unknown filters.

        Source: docs/method.md, section 5.
    """
    import torch

    _check_tensors(x, x_hat, window)
    if filters not in ("float64", "float32"):
        raise InputError(f"filters is {filters!r}; expected 'float64' or 'float32'")
    local_window_px = checked_local_window(local_window_px)
    n, channels, h, w = x.shape
    if roi is not None:
        share = torch.from_numpy(_interest_share(roi, tuple(x.shape), window)).to(x.device)
        outside = torch.from_numpy(~roi[:, None]).to(x.device)
        x, x_hat = x.masked_fill(outside, 0), x_hat.masked_fill(outside, 0)
    dtype = _dtype_of(x)
    work = torch.float64 if filters == "float64" else _exact_dtype(dtype)
    phi, phi_local = x.new_empty(n, dtype=dtype), x.new_empty(n, dtype=dtype)
    heatmap = x.new_empty((n, 1, h, w), dtype=dtype)
    step = max(1, (_CHUNK_PX if x.device.type == "cpu" else 64 * _CHUNK_PX) // max(1, channels * h * w))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            a, b = x[part].to(dtype), x_hat[part].to(dtype)
            residual = torch.sub(a, b).abs_()
            heatmap[part] = residual if channels == 1 else residual.mean(1, keepdim=True)
            distance = _distance_inplace(_columns(a, window), _columns(b, window), window, work)
            if channels > 1:
                distance = distance.unflatten(1, (-1, channels)).mean(2)
            phi[part] = distance.mean(2).mean(0)  # at once over both axes, PyTorch is off by up to 4e-7
            taps = min(local_window_px, distance.shape[0], distance.shape[2])
            phi_local[part] = _filter(distance.to(_exact_dtype(dtype)), (1 / taps,) * taps).amax((0, 2)).to(dtype)
    if roi is not None:
        phi = (phi.double() / share).to(dtype)
    return PatchScores(phi, phi_local, heatmap)


@lru_cache(maxsize=2)
def window_taps(window: Window) -> tuple[float, ...]:
    """The 11 weights of a window along one axis; they sum to 1. The window is their outer product.

    Source: docs/method.md, section 5.
    """
    if window == "box":
        return (1 / WINDOW_PX,) * WINDOW_PX
    radius = WINDOW_PX // 2
    weights = [math.exp(-((i - radius) ** 2) / (2 * WINDOW_SIGMA_PX**2)) for i in range(WINDOW_PX)]
    return tuple(weight / math.fsum(weights) for weight in weights)


def _interest_share(roi: np.ndarray, shape: tuple[int, ...], window: Window) -> np.ndarray:
    """(N,) float64: share of the positions of a map whose window holds a pixel of interest.

    Source: docs/method.md, section 6.
    """
    expected = (shape[0], *shape[2:])
    if roi.dtype != np.bool_ or roi.shape != expected or not roi.any(axis=(1, 2)).all():
        raise InputError(
            f"masks of interest are {roi.dtype} {roi.shape}; expected bool {expected} with a pixel set in each, as a "
            "patch without one is not scored"
        )
    if window == "box":
        margin = WINDOW_PX // 2
        roi = np.pad(roi, ((0, 0), (margin, margin), (margin, margin)))
    for axis in (1, 2):
        roi = np.lib.stride_tricks.sliding_window_view(roi, WINDOW_PX, axis).any(axis=-1)
    return roi.mean(axis=(1, 2))


# ------------------------------------------------------------------ float64


def _ssim_distance_f64(x: np.ndarray, y: np.ndarray, window: Window) -> np.ndarray:
    """1 - SSIM of (C, H, W) float64 images, as Wang et al. write it; the box sees zeros outside."""
    shift_x, shift_y = (a.mean(axis=(1, 2), keepdims=True) for a in (x, y))
    if window == "box":
        margin = WINDOW_PX // 2
        x, y = (np.pad(a, ((0, 0), (margin, margin), (margin, margin))) for a in (x, y))
    x, y = x - shift_x, y - shift_y  # after padding: about any constant, moments of the padded image are the same
    taps = window_taps(window)
    mean_x, mean_y = _filter_f64(x, taps), _filter_f64(y, taps)
    var_x = _filter_f64(x * x, taps) - mean_x * mean_x
    var_y = _filter_f64(y * y, taps) - mean_y * mean_y
    cov = _filter_f64(x * y, taps) - mean_x * mean_y
    mean_x, mean_y = mean_x + shift_x, mean_y + shift_y
    similarity = ((2 * mean_x * mean_y + SSIM_C1) * (2 * cov + SSIM_C2)) / (
        (mean_x * mean_x + mean_y * mean_y + SSIM_C1) * (var_x + var_y + SSIM_C2)
    )
    return np.maximum(1 - similarity, 0)  # SSIM <= 1; only rounding goes beyond


def _filter_f64(maps: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    """Correlates the last two axes with taps, valid positions."""
    for axis in (-2, -1):
        n = maps.shape[axis] - len(taps) + 1
        total = np.zeros((*maps.shape[:-2], n, maps.shape[-1]) if axis == -2 else (*maps.shape[:-1], n))
        for i, tap in enumerate(taps):
            total += tap * (maps[..., i : i + n, :] if axis == -2 else maps[..., i : i + n])
        maps = total
    return maps


def _local_mean_f64(distance: np.ndarray, local_window_px: int) -> np.ndarray:
    taps = min(checked_local_window(local_window_px), *distance.shape)
    return _filter_f64(distance, (1 / taps,) * taps)


# -------------------------------------------------------------------- torch


def _columns(t: torch.Tensor, window: Window) -> torch.Tensor:
    """(H, N C, W) view of (N, C, H, W), in which both filters are plain matrix products; padded for the box."""
    t = t.flatten(0, 1).permute(1, 0, 2)
    if window == "box":
        import torch

        margin = WINDOW_PX // 2
        t = torch.nn.functional.pad(t, (margin, margin, 0, 0, margin, margin))
    return t


def _patch_mean(t: torch.Tensor, window: Window) -> torch.Tensor:
    """(1, K, 1) means of (H, K, W) over the patch itself, without the zeros around it."""
    rim = WINDOW_PX - 1 if window == "box" else 0
    return t.sum((0, 2), keepdim=True).div_((t.shape[0] - rim) * (t.shape[2] - rim))


def _distance_inplace(x: torch.Tensor, x_hat: torch.Tensor, window: Window, work: torch.dtype) -> torch.Tensor:
    """1 - SSIM of (H, K, W) tensors, filtered in `work`, with as little memory traffic as eager mode allows."""
    import torch

    h, k, w = x.shape
    maps = x.new_empty((h, 4, k, w), dtype=work)
    s, d = torch.add(x, x_hat, out=maps[:, 0]), torch.sub(x, x_hat, out=maps[:, 1])
    shifts = None
    if work == torch.float32:
        # Both need it: a constant residual cancels in the variance of d as a bright patch does in that of s.
        # The zeros around a box are shifted with the patch, so the variances stay what they are.
        shifts = _patch_mean(s, window), _patch_mean(d, window)
        s.sub_(shifts[0])
        d.sub_(shifts[1])
    torch.mul(maps[:, :2], maps[:, :2], out=maps[:, 2:])
    blurred = _blur(maps, window)
    mean, var = blurred[:, :2], blurred[:, 2:]
    var = var.addcmul_(mean, mean, value=-1).to(x.dtype).clamp_min_(0)
    (mean_s, mean_d), (var_s, var_d) = mean.to(x.dtype).unbind(1), var.unbind(1)
    if shifts is not None:
        mean_s.add_(shifts[0])
        mean_d.add_(shifts[1])
    mean_d2 = mean_d.square_()
    # With p = mean_d^2, A = mean_s^2 + p + 2 C1, B = var_s + var_d + 2 C2, a = 2 p / A, b = 2 var_d / B:
    # a + b - a b = 2 (p (B - 2 var_d) + var_d A) / (A B).
    lower_a = torch.addcmul(mean_d2, mean_s, mean_s).add_(2 * SSIM_C1)
    lower_b = var_s.add_(var_d).add_(2 * SSIM_C2)
    upper = torch.add(lower_b, var_d, alpha=-2).mul_(mean_d2).addcmul_(var_d, lower_a)
    return upper.div_(lower_a.mul_(lower_b)).mul_(2)


def _blur(maps: torch.Tensor, window: Window) -> torch.Tensor:
    """SSIM window over axes 0 and 3 of (H, 4, K, W), valid positions."""
    return _filter(maps.flatten(1, 2), window_taps(window)).unflatten(1, maps.shape[1:3])


def _filter(maps: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    """Correlates axes 0 and 2 of (H, K, W) with taps, valid positions, by products with banded blocks."""
    import torch

    h, k, w = maps.shape
    rim = len(taps) - 1
    flat = maps.reshape(h, k * w)
    rows = torch.cat([_band(b - a, taps, maps.dtype, maps.device) @ flat[a : b + rim] for a, b in _spans(h - rim)])
    rows = rows.view((h - rim) * k, w)
    cols = [rows[:, a : b + rim] @ _band(b - a, taps, maps.dtype, maps.device).T for a, b in _spans(w - rim)]
    return torch.cat(cols, dim=1).view(h - rim, k, w - rim)


@lru_cache(maxsize=256)
def _band(n: int, taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(n, n + len(taps) - 1) matrix that correlates with taps."""
    import torch

    with torch.inference_mode(False):  # cached: it may be used in training later
        band = torch.zeros(n, n + len(taps) - 1, dtype=torch.float64)
        for i in range(n):
            band[i, i : i + len(taps)] = torch.tensor(taps, dtype=torch.float64)
        return band.to(device, dtype)


def _spans(n: int) -> list[tuple[int, int]]:
    parts = max(1, round(n / _BLOCK_PX))
    return [(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


# ------------------------------------------------------------------- checks


def _check_tensors(x: torch.Tensor, x_hat: torch.Tensor, window: Window) -> None:
    floats = x.is_floating_point() and x_hat.is_floating_point()
    _check(tuple(x.shape), tuple(x_hat.shape), floats, f"{x.dtype} and {x_hat.dtype}", window)


def _dtype_of(x: torch.Tensor) -> torch.dtype:
    """Type of the results."""
    import torch

    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float64 where the user allows float32 products in TF32 or BF16: those are a thousand times worse."""
    import torch

    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set per backend, not readable as one
        exact = False
    return dtype if exact else torch.float64


def _check(shape: tuple[int, ...], shape_hat: tuple[int, ...], floats: bool, dtypes: str, window: str) -> None:
    if not floats:
        raise InputError(f"patches to score are {dtypes}; expected floating point values in [0, 1]")
    check_patches(shape, shape_hat, window)


def check_patches(shape: tuple[int, ...], shape_hat: tuple[int, ...], window: str) -> None:
    """Checks the shapes of patches and reconstructions and the window.

    Raises:
        InputError: an unknown window, unequal or empty shapes, or patches that the window does not fit.
    """
    if window not in ("gaussian", "box"):
        raise InputError(f"window is {window!r}; expected 'gaussian' or 'box'")
    if len(shape) != 4 or shape != shape_hat or 0 in shape[1:]:
        raise InputError(
            f"patches have shape {shape} and reconstructions {shape_hat}; expected equal (N, C, H, W), not empty"
        )
    if window == "gaussian" and min(shape[2:]) < WINDOW_PX:
        raise InputError(
            f"patches are {shape[2]}x{shape[3]} px and the SSIM window is {WINDOW_PX}x{WINDOW_PX}; "
            f"use patches of at least {WINDOW_PX} px a side"
        )


def checked_local_window(local_window_px: int) -> int:
    """The value as an integer.

    Raises:
        InputError: it is no integer >= 1.
    """
    try:
        value = operator.index(local_window_px)
    except TypeError:
        value = 0
    if value < 1:
        raise InputError(f"local_window_px is {local_window_px!r}; expected an integer >= 1")
    return value
