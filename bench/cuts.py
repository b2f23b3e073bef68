"""Cutting raced against a copy of the bytes that it must write, and against OpenCV's conversion of the same patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from grd_edge.bench.baselines import library_threads
from grd_edge.bench.limits import copy_limit
from grd_edge.bench.timer import figures, interleaved

from grd_edge.errors import CheckFailedError
from grd_edge.kernels import Cutter
from grd_edge.patches import PatchGrid, prepare_frame


def cut_frame(h: int, w: int, colors: int) -> np.ndarray:
    """A frame of noise, uint8, (h, w) or (h, w, 3)."""
    return np.random.default_rng(0).integers(0, 256, (h, w, colors)[: 2 if colors == 1 else 3], np.uint8)


def opencv_patches(frame: np.ndarray, positions: np.ndarray, grid: PatchGrid, channels: int) -> np.ndarray:
    """Patches of a uint8 frame as OpenCV makes them, (N, channels, patch_h, patch_w) float32 in [0, 1]."""
    import cv2

    image = frame if frame.ndim == (2 if channels == 1 else 3) else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.dnn.blobFromImages([image[y : y + grid.patch_h, x : x + grid.patch_w] for y, x in positions], 1 / 255)


def torch_patches(frame: np.ndarray, positions: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """The same of a grey frame in eager PyTorch."""
    import torch

    image = torch.from_numpy(frame).float().div_(255)
    return torch.stack([image[y : y + grid.patch_h, x : x + grid.patch_w] for y, x in positions])[:, None].numpy()


def cut_check(exact: np.ndarray, *, rounded: bool) -> Callable[[dict[str, Any]], None]:
    """A check of patches by name: those named `native…` are the definition's, all others within 1e-6 of them.

    Args:
        rounded: other ways round grey values to uint8, and are within 2.1e-3.
    """

    def check(outputs: dict[str, Any]) -> None:
        for name, patches in outputs.items():
            if name.startswith("native"):
                if not np.array_equal(patches, exact):
                    raise CheckFailedError(
                        f"{name} cuts other patches than the definition; a wrong result is not timed"
                    )
                continue
            worst = float(np.abs(patches - exact).max())
            if not worst <= (2.1e-3 if rounded else 1e-6):
                raise CheckFailedError(f"the patches of {name} are {worst:.1e} off; a wrong result is not timed")

    return check


def race_cuts(
    *,
    h: int = 1024,
    w: int = 1024,
    patch_px: int = 256,
    stride_px: int | None = None,
    colors: int = 1,
    channels: int = 1,
    rounds: int = 100,
    variant: str | None = None,
) -> dict[str, float]:
    """Min and median ms per uint8 frame to float32 patches (NCHW, native resolution), one thread each, interleaved.

    Args:
        colors, channels: of the frame and of the patches, 1 or 3.
        stride_px: None: patches side by side.

    Returns:
        `native`, `memcpy` (as many bytes into the same destination) and `opencv` (`cv2.dnn.blobFromImages` of the
        patches, after `cv2.cvtColor` of the frame where it turns grey) with `_min_ms` and `_p50_ms`.

    Raises:
        CheckFailedError: patches are wrong; see `cut_check`.
    """
    frame = cut_frame(h, w, colors)
    grid = PatchGrid(patch_px, patch_px, stride_px or patch_px, stride_px or patch_px)
    cutter = Cutter((h, w), grid, scale_px=None, channels=channels, variant=variant)
    exact = grid.cut(prepare_frame(frame, scale_px=None, channels=channels))
    positions = grid.positions(h, w)
    check = cut_check(exact, rounded=colors != channels)
    contenders: dict[str, Callable[[object], object]] = {
        "native": lambda _: cutter(frame),
        "memcpy": copy_limit(2 * exact.nbytes).run,
        "opencv": lambda _: opencv_patches(frame, positions, grid, channels),
    }
    with library_threads(1):
        return figures(
            interleaved(
                contenders,
                rounds=rounds,
                check=lambda found: check({name: each for name, each in found.items() if name != "memcpy"}),
            )
        )
