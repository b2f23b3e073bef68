"""Frames to time a bundle with: made to its geometry, or images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.data.images import images_of, read_image
from grd_edge.errors import InputError
from grd_edge.runtime import Inspector

PATCHES = 16
MADE_FRAMES = 4
MAX_IMAGES = 64
_TEXTURE_PX = 16


def frames_from_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Up to `MAX_IMAGES` images, spread over those that are named.

    Raises:
        InputError: an image or folder cannot be read.
    """
    files = images_of(paths)
    chosen = np.linspace(0, len(files) - 1, min(MAX_IMAGES, len(files))).astype(int)
    return [read_image(files[index]) for index in chosen]


def made_frames(bundle: Bundle, patches: int | None = None) -> list[np.ndarray]:
    """Textured frames, uint8, H x W or H x W x 3, of a size that the bundle takes.

    Where it scales frames, they come with twice the working scale, so that resampling costs what it costs.

    Args:
        patches: of each frame; None: `PATCHES`, or as near to it as the scale allows.

    Raises:
        InputError: the bundle's scale, mask of interest or regions do not allow so many.
    """
    h, w = _frame_px(bundle, patches)
    channels = bundle.manifest["geometry"]["channels"]
    frames = []
    for seed in range(MADE_FRAMES):
        rng = np.random.default_rng(seed)
        texture = rng.integers(60, 200, (-(-h // _TEXTURE_PX), -(-w // _TEXTURE_PX), channels), np.uint8)
        frame = texture.repeat(_TEXTURE_PX, axis=0).repeat(_TEXTURE_PX, axis=1)[:h, :w]
        frame = frame + rng.integers(0, 16, frame.shape, np.uint8)
        frames.append(frame[:, :, 0] if channels == 1 else frame)
    return frames


def described_frames(inspector: Inspector, frames: Sequence[np.ndarray], *, made: bool) -> dict[str, Any]:
    """What was timed, for the result: how many frames, their sizes, the least and most patches inspected."""
    counts = [len(inspector.inspect(frame).phi) for frame in frames]
    return {
        "made": made,
        "count": len(frames),
        "shapes": sorted({frame.shape for frame in frames}),
        "patches": [min(counts), max(counts)],
    }


def _frame_px(bundle: Bundle, patches: int | None) -> tuple[int, int]:
    roi, regions = bundle.roi, bundle.regions
    fixed = roi.shape if roi is not None else (regions.frame_h, regions.frame_w)
    if fixed[0] is not None:
        if patches is not None:
            raise InputError(
                f"frames of {bundle.path} are {fixed[0]}x{fixed[1]} px, as its mask of interest or its regions are, so "
                "the number of their patches is given; leave --patches out"
            )
        return fixed
    grid, scale = bundle.grid, bundle.manifest["geometry"]["scale_px"]
    wanted = patches or PATCHES

    def extent(count: int, patch: int, stride: int) -> int:
        return patch + (count - 1) * stride

    if not scale:
        rows = next(rows for rows in range(math.isqrt(wanted), 0, -1) if wanted % rows == 0)
        return extent(rows, grid.patch_h, grid.stride_y), extent(wanted // rows, grid.patch_w, grid.stride_x)
    rows, cols = grid.shape(scale, scale)
    # The shorter side is given: longer frames have more columns, or else more rows.
    if patches is None:
        wanted = rows * max(cols, round(PATCHES / rows))
    if wanted % rows == 0 and wanted >= rows * cols:
        return 2 * scale, 2 * max(scale, extent(wanted // rows, grid.patch_w, grid.stride_x))
    if wanted % cols == 0 and wanted >= rows * cols:
        return 2 * max(scale, extent(wanted // cols, grid.patch_h, grid.stride_y)), 2 * scale
    near = rows * max(cols, round(wanted / rows))
    raise InputError(
        f"frames of {bundle.path}, whose shorter side becomes {scale} px, cannot have {wanted} patches; "
        f"choose --patches {near}, or give frames with --images"
    )
