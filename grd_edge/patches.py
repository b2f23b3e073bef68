"""Where patches lie in a frame, and how a frame becomes patches: working scale, grey, cutting, stitching.

The native cutter (`grd_cut_*` of grd_edge.h) follows the same rules; this module is their readable definition.
It runs on the line, so it needs numpy only. Axes are (y, x), images are (C, H, W).

Source: docs/method.md, section 6.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from grd_edge.errors import InputError

SSIM_MARGIN_PX = 10
"""Pixels at the rim of a patch that fewer 11x11 windows see than the others. Source: docs/method.md, section 6."""

# Output rows per matrix product: small enough that few of the weights of a block are zero.
_BLOCK_PX = 8


def default_stride(patch_px: int) -> int:
    """Stride at which every pixel, but the image's own border, lies at least 10 px inside some patch.

    A patch of 20 px or less has no such interior at any stride; half a patch is taken there.

    Args:
        patch_px: extent of the patch along the axis, in px, >= 1.

    Returns:
        Stride in px, >= 1: patch_px - 20, or half the patch where patch_px <= 20.

    Raises:
        InputError: patch_px is not a positive integer.

    Source: docs/method.md, section 6.
    """
    patch_px = _positive("patch_px", patch_px)
    if patch_px > 2 * SSIM_MARGIN_PX:
        return patch_px - 2 * SSIM_MARGIN_PX
    return max(1, patch_px // 2)


@dataclass(frozen=True)
class PatchGrid:
    """Grid of equally sized patches that covers every pixel of a frame.

    Along an axis patches begin at 0, stride, 2 stride, ... while position + patch < extent; the last one begins at
    extent - patch. All sizes are px of the frame after the working scale.

    Attributes:
        patch_h, patch_w: extent of a patch, >= 1.
        stride_y, stride_x: distance of neighbors, from 1 to the extent of the patch (beyond it pixels would be lost).
        padding: what happens to a frame smaller than a patch. "error" refuses it; "reflect" grows it on its lower
            and right side to exactly one patch, by reflection that does not repeat the edge.

    Raises:
        InputError: a size is not a positive integer, a stride is larger than its patch, or padding is unknown.

    Source: docs/method.md, section 6.
    """

    patch_h: int
    patch_w: int
    stride_y: int
    stride_x: int
    padding: Literal["error", "reflect"] = "error"

    def __post_init__(self) -> None:
        for name in ("patch_h", "patch_w", "stride_y", "stride_x"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        for stride, patch in (("stride_y", "patch_h"), ("stride_x", "patch_w")):
            if getattr(self, stride) > getattr(self, patch):
                raise InputError(
                    f"{stride} is {getattr(self, stride)} px but {patch} is {getattr(self, patch)} px, so pixels would "
                    f"never be inspected; choose a {stride} of at most {getattr(self, patch)}"
                )
        if self.padding not in ("error", "reflect"):
            raise InputError(f"padding is {self.padding!r}; expected 'error' or 'reflect'")

    def positions(self, h: int, w: int) -> np.ndarray:
        """Top left corners of all patches of an h x w frame, row by row.

        Returns:
            int64 array (N, 2) of (y, x) in px. With padding "reflect" they are positions in the grown frame.

        Raises:
            InputError: the frame is smaller than a patch and padding is "error".
        """
        ys, xs = self._axes(h, w)
        return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)

    def shape(self, h: int, w: int) -> tuple[int, int]:
        """Rows and columns of patches of an h x w frame. Raises as `positions`."""
        ys, xs = self._axes(h, w)
        return len(ys), len(xs)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Patches of an image, in the order of `positions`.

        Args:
            image: (C, H, W), any dtype; never written.

        Returns:
            New dense array (N, C, patch_h, patch_w) of the same dtype.

        Raises:
            InputError: not three axes, or smaller than a patch while padding is "error".
        """
        image = np.asarray(image)
        if image.ndim != 3:
            raise InputError(f"an image to cut has shape {image.shape}; expected (C, H, W)")
        channels, h, w = image.shape
        positions = self.positions(h, w)
        if h < self.patch_h or w < self.patch_w:
            rows = _reflected(h, max(h, self.patch_h))
            cols = _reflected(w, max(w, self.patch_w))
            image = image[:, rows[:, None], cols]
        patches = np.empty((len(positions), channels, self.patch_h, self.patch_w), image.dtype)
        for patch, (y, x) in zip(patches, positions, strict=True):
            patch[...] = image[:, y : y + self.patch_h, x : x + self.patch_w]
        return patches

    def stitch(self, maps: np.ndarray, h: int, w: int, *, positions: np.ndarray | None = None) -> np.ndarray:
        """Map of an h x w frame from the maps of its patches; the mean where patches overlap, 0 where none is given.

        Args:
            maps: (N, patch_h, patch_w) or (N, C, patch_h, patch_w), real dtype, in the order of `positions`.
            h, w: extent of the frame in px, before padding; what padding added is dropped.
            positions: (N, 2) corners (y, x) of the patches that `maps` are of; None: all of the grid.

        Returns:
            float32 (h, w) or (C, h, w). Stitching what `cut` returned gives back the image, exactly if it was float32.

        Raises:
            InputError: maps do not fit the grid of such a frame.
        """
        maps = np.asarray(maps)
        positions = self.positions(h, w) if positions is None else positions
        expected = (len(positions), self.patch_h, self.patch_w)
        if maps.ndim not in (3, 4) or (maps.shape[0], *maps.shape[-2:]) != expected:
            raise InputError(
                f"maps of shape {maps.shape} do not fit a {h}x{w} frame; expected {expected[0]} maps of "
                f"{self.patch_h}x{self.patch_w}, as (N, patch_h, patch_w) or (N, C, patch_h, patch_w)"
            )
        grown = (max(h, self.patch_h), max(w, self.patch_w))
        # float64: the mean of equal float32 values is then exactly that value.
        total = np.zeros((*maps.shape[1:-2], *grown), np.float64)
        count = np.zeros(grown, np.int64)
        for patch_map, (y, x) in zip(maps, positions, strict=True):
            total[..., y : y + self.patch_h, x : x + self.patch_w] += patch_map
            count[y : y + self.patch_h, x : x + self.patch_w] += 1
        return (total[..., :h, :w] / np.maximum(count[:h, :w], 1)).astype(np.float32)

    def _axes(self, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
        h, w = _positive("frame height", h), _positive("frame width", w)
        if self.padding == "error" and (h < self.patch_h or w < self.patch_w):
            raise InputError(
                f"the frame is {h}x{w} px and smaller than a patch of {self.patch_h}x{self.patch_w} px; use larger "
                f"frames or a larger scale_px, or set padding to 'reflect' to grow it"
            )
        return _axis_positions(h, self.patch_h, self.stride_y), _axis_positions(w, self.patch_w, self.stride_x)


def working_size(h: int, w: int, scale_px: int | None) -> tuple[int, int]:
    """Size of an h x w frame at working scale: the shorter side becomes scale_px, the other keeps the proportion.

    The longer side is (2 * longer * scale_px + shorter) // (2 * shorter): rounded to nearest, halves up, in integers.

    Args:
        h, w: size of the frame in px, >= 1.
        scale_px: shorter side after scaling in px, >= 1; None or 0 keeps native resolution.

    Returns:
        (h, w) at working scale, in px.

    Raises:
        InputError: a size is not a positive integer.

    Source: docs/method.md, section 6.
    """
    h, w = _positive("frame height", h), _positive("frame width", w)
    if scale_px is None or scale_px == 0:
        return h, w
    scale_px = _positive("scale_px", scale_px)
    shorter, longer = min(h, w), max(h, w)
    scaled = (2 * longer * scale_px + shorter) // (2 * shorter)
    return (scale_px, scaled) if h <= w else (scaled, scale_px)


def area_resample(image: np.ndarray, out_h: int, out_w: int) -> np.ndarray:
    """Resamples by area: output pixel i of an axis is the mean of the input over [i n_in/n_out, (i+1) n_in/n_out).

    Pixels at both ends of the interval count by the fraction that is covered, also when enlarging. Separable;
    computed in float64 and rounded once, so the result hardly depends on the order of a sum.

    Args:
        image: (C, H, W), float32.
        out_h, out_w: size wanted, in px, >= 1.

    Returns:
        float32 (C, out_h, out_w), a new array; bit-identical to `image` where the size does not change.

    Raises:
        InputError: not float32 of three axes, empty, or a size that is not a positive integer.

    Source: docs/method.md, section 6.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.dtype != np.float32 or 0 in image.shape:
        raise InputError(f"an image to resample is {image.dtype} {image.shape}; expected float32 (C, H, W), not empty")
    out_h, out_w = _positive("out_h", out_h), _positive("out_w", out_w)
    channels, h, w = image.shape
    if (h, w) == (out_h, out_w):
        return image.copy()
    rows = np.empty((channels, out_h, w), np.float64)
    for start, stop, first, weights in _area_blocks(h, out_h):
        rows[:, start:stop] = weights @ image[:, first : first + weights.shape[1]].astype(np.float64)
    out = np.empty((channels, out_h, out_w), np.float32)
    for start, stop, first, weights in _area_blocks(w, out_w):
        out[:, :, start:stop] = rows[:, :, first : first + weights.shape[1]] @ weights.T
    return out


def to_unit_float(frame: np.ndarray) -> np.ndarray:
    """Pixel values as float32 in [0, 1]: uint8 / 255, uint16 / 65535; float32 passes if it is in that range.

    Args:
        frame: any shape; uint8, uint16, or float32 in [0, 1].

    Returns:
        float32 of the same shape; a float32 input is returned as it is, without a copy.

    Raises:
        InputError: another dtype, or float32 values that are NaN or outside [0, 1].
    """
    frame = np.asarray(frame)
    full_scale = _full_scale(frame)
    if full_scale is not None:
        return frame.astype(np.float32) / np.float32(full_scale)
    low, high = (float(frame.min()), float(frame.max())) if frame.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise InputError(
            f"a float32 frame holds values from {low:g} to {high:g}; expected [0, 1] without NaN, "
            f"so divide by the sensor's full scale first"
        )
    return frame


def prepare_frame(frame: np.ndarray, *, scale_px: int | None, channels: int) -> np.ndarray:
    """A camera frame as the image that patches are cut from: unit range, grey if asked for, working scale.

    Grey is 0.299 R + 0.587 G + 0.114 B of the unit values (of integer frames as one integer sum and one division,
    which makes white exactly 1).

    Args:
        frame: (H, W) or (H, W, C), C 1 or 3 (RGB); uint8, uint16, or float32 in [0, 1].
        scale_px: shorter side after area resampling in px; None or 0 keeps native resolution.
        channels: of the result, 1 or 3. A frame of one channel is refused where 3 are asked for.

    Returns:
        float32 (channels, H', W') in [0, 1], dense, never a view of `frame`.

    Raises:
        InputError: dtype, shape, range or channels that cannot be used.

    Source: docs/method.md, section 6.
    """
    frame = np.asarray(frame)
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.ndim != 3 or 0 in frame.shape:
        raise InputError(f"a frame has shape {frame.shape}; expected (H, W) or (H, W, C), not empty")
    h, w, found = frame.shape
    if channels not in (1, 3):
        raise InputError(f"channels is {channels!r}; expected 1 or 3")
    if found not in (1, 3):
        raise InputError(f"a frame of {h}x{w} px has {found} channels; expected 1 (grey) or 3 (RGB)")
    if found < channels:
        raise InputError(
            f"a frame of {h}x{w} px has 1 channel but the model takes 3; give RGB frames or use a model of 1 channel"
        )
    image = _grey(frame)[None] if found > channels else to_unit_float(frame).transpose(2, 0, 1)
    out_h, out_w = working_size(h, w, scale_px)
    if (out_h, out_w) == (h, w):
        return np.array(image, np.float32, order="C")
    return area_resample(image, out_h, out_w)


def _grey(frame: np.ndarray) -> np.ndarray:
    """float32 (H, W) in [0, 1] of an RGB frame."""
    full_scale = _full_scale(frame)
    if full_scale is not None:
        red, green, blue = (frame[:, :, i].astype(np.int32) for i in range(3))
        return (299 * red + 587 * green + 114 * blue).astype(np.float32) / np.float32(1000 * full_scale)
    return (to_unit_float(frame).astype(np.float64) @ np.array([0.299, 0.587, 0.114])).astype(np.float32)


def _full_scale(frame: np.ndarray) -> int | None:
    """Largest value of an integer frame, None for float32."""
    if frame.dtype == np.uint8:
        return 255
    if frame.dtype == np.uint16:
        return 65535
    if frame.dtype == np.float32:
        return None
    raise InputError(f"a frame is {frame.dtype}; expected uint8, uint16, or float32 in [0, 1]")


@lru_cache(maxsize=64)
def _area_blocks(n_in: int, n_out: int) -> tuple[tuple[int, int, int, np.ndarray], ...]:
    """Weights of area resampling along an axis, as blocks (start, stop, first, weights): output pixels start:stop are
    `weights` times the input pixels from `first` on. Weights are float64 (stop - start, inputs) and read-only.
    """
    blocks = []
    for start in range(0, n_out, _BLOCK_PX):
        stop = min(start + _BLOCK_PX, n_out)
        first, last = start * n_in // n_out, -(-stop * n_in // n_out)
        # Ends of intervals in units of 1 / n_out input pixel: integers, so that coverage is exact.
        begin = np.arange(start, stop, dtype=np.int64)[:, None] * n_in
        pixel = np.arange(first, last, dtype=np.int64) * n_out
        covered = np.minimum(begin + n_in, pixel + n_out) - np.maximum(begin, pixel)
        weights = np.maximum(covered, 0) / n_in
        weights.flags.writeable = False
        blocks.append((start, stop, first, weights))
    return tuple(blocks)


def _axis_positions(extent: int, patch: int, stride: int) -> np.ndarray:
    last = max(extent - patch, 0)
    return np.append(np.arange(0, last, stride, dtype=np.int64), last)


def _reflected(n: int, grown: int) -> np.ndarray:
    """Indices 0 .. grown - 1 of an axis of n pixels that is reflected without repeating the edge, repeatedly."""
    period = max(2 * (n - 1), 1)
    inside = np.arange(grown) % period
    return np.where(inside < n, inside, period - inside)


def _positive(name: str, value: int) -> int:
    try:
        checked = operator.index(value)
    except TypeError:
        checked = 0
    if checked < 1 or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; expected an integer >= 1")
    return checked
