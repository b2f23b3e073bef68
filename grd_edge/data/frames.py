"""Frames at working scale, cached within a memory limit, and the random patches that training draws from them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.data.images import read_image
from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, default_stride, prepare_frame


def grid_from_config(config: Config) -> PatchGrid:
    """The patch grid of a configuration; a stride of null is patch - 20 px."""
    model, geometry = config.model, config.geometry
    return PatchGrid(
        model.patch_h,
        model.patch_w,
        geometry.stride_y or default_stride(model.patch_h),
        geometry.stride_x or default_stride(model.patch_w),
        geometry.padding,
    )


def read_frame(sample: Sample, config: Config) -> np.ndarray:
    """Frame of a sample at working scale: float32 (C, H, W) in [0, 1]."""
    try:
        return prepare_frame(read_image(sample.path), scale_px=config.geometry.scale_px, channels=config.model.channels)
    except InputError as error:
        raise error if str(sample.path) in str(error) else InputError(f"{sample.path}: {error}") from error


class FrameStore:
    """Prepared frames of a split; kept in memory up to `cache_mb`, decoded again beyond it."""

    def __init__(self, samples: Sequence[Sample], config: Config) -> None:
        self.samples = list(samples)
        self.config = config
        self._cache: dict[int, np.ndarray] = {}
        self._left_bytes = config.train.cache_mb << 20
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray:
        frame = self._cache.get(index)
        if frame is None:
            frame = read_frame(self.samples[index], self.config)
            with self._lock:
                if index not in self._cache and frame.nbytes <= self._left_bytes:
                    self._cache[index] = frame
                    self._left_bytes -= frame.nbytes
        return frame

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def batch_at(store: FrameStore, grid: PatchGrid, *, seed: int, step: int, batch: int) -> torch.Tensor:
    """Training batch of a step: (batch, C, patch_h, patch_w) float32.

    A pure function of (seed, step): epochs are permutations of the frames, positions are uniform in the frame.
    """
    n = len(store)
    patches = []
    for slot in range(batch):
        epoch, at = divmod(step * batch + slot, n)
        index = int(_permutation(n, seed, epoch)[at])
        frame = store[index]
        rng = np.random.default_rng((seed, step, slot))
        h, w = frame.shape[1:]
        if h < grid.patch_h or w < grid.patch_w:
            patches.append(grid.cut(frame)[int(rng.integers(len(grid.positions(h, w))))])
            continue
        y, x = int(rng.integers(h - grid.patch_h + 1)), int(rng.integers(w - grid.patch_w + 1))
        patches.append(frame[:, y : y + grid.patch_h, x : x + grid.patch_w])
    return torch.from_numpy(np.stack(patches))


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)
