"""Cutting raced against a copy of the bytes that it must write, and against OpenCV's conversion of the same patches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from grd_edge.bench.timer import figures, interleaved

from grd_edge.errors import CheckFailedError
from grd_edge.kernels import Cutter
from grd_edge.patches import PatchGrid, prepare_frame


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
        CheckFailedError: the native patches are not those of the definition, or OpenCV's are 2e-3 off (its grey values
            are rounded to uint8).
    """
    import cv2

    frame = np.random.default_rng(0).integers(0, 256, (h, w, colors)[: 2 if colors == 1 else 3], np.uint8)
    grid = PatchGrid(patch_px, patch_px, stride_px or patch_px, stride_px or patch_px)
    cutter = Cutter((h, w), grid, scale_px=None, channels=channels, variant=variant)
    exact = grid.cut(prepare_frame(frame, scale_px=None, channels=channels))
    positions = grid.positions(h, w)
    written = cutter(frame)
    source = written.copy()

    def copy(_: object) -> None:
        ctypes.memmove(written.ctypes.data, source.ctypes.data, source.nbytes)

    def opencv(_: object) -> np.ndarray:
        image = frame if colors == channels else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return cv2.dnn.blobFromImages([image[y : y + patch_px, x : x + patch_px] for y, x in positions], 1 / 255)

    def check(outputs: dict[str, object]) -> None:
        if not np.array_equal(outputs["native"], exact):
            raise CheckFailedError("the native patches are not those of the definition; a wrong result is not timed")
        worst = float(np.abs(outputs["opencv"] - exact).max())
        if not worst <= (1e-6 if colors == channels else 2.1e-3):
            raise CheckFailedError(f"OpenCV's patches are {worst:.1e} off; a wrong result is not timed")

    contenders: dict[str, Callable[[object], object]] = {
        "native": lambda _: cutter(frame),
        "memcpy": copy,
        "opencv": opencv,
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return figures(interleaved(contenders, rounds=rounds, check=check))
    finally:
        cv2.setNumThreads(threads)
