"""Frames at working scale, cached within a memory limit, and the random patches that training draws from them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.data.images import read_image, read_mask
from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, default_stride, prepare_frame, working_size
from grd_edge.regions import patches_with_interest, scaled_mask

ROI_TRIES = 32  # random positions before all positions are looked at


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
    return _prepared(sample, read_image(sample.path), config)


def _prepared(sample: Sample, image: np.ndarray, config: Config) -> np.ndarray:
    try:
        return prepare_frame(image, scale_px=config.geometry.scale_px, channels=config.model.channels)
    except InputError as error:
        raise InputError(f"{sample.path}: {error}") from error


def _is_grey(image: np.ndarray) -> bool:
    """Whether all channels of (H, W, 3) are equal; a few pixels mostly tell that they are not."""
    return all(bool((part == part[:, :, :1]).all()) for part in (image[::17, ::17], image))


class Frame(NamedTuple):
    """A frame as it is kept, at working scale.

    Attributes:
        pixels: uint8 or uint16 (H, W) or (H, W, C) as the file holds them, or float32 (H, W, C) of a prepared frame.
        interest: bool (H, W), the mask of interest; None: the whole frame.
    """

    pixels: np.ndarray
    interest: np.ndarray | None = None


class FrameStore:
    """Frames of a split; kept in memory up to `data.cache_mb`, decoded again beyond it. Safe to use from threads.

    Where the working scale changes nothing, the integers of the file are kept: a quarter of the floats they become.
    """

    def __init__(self, samples: Sequence[Sample], config: Config) -> None:
        self.samples = list(samples)
        self.config = config
        self._cache: dict[int, Frame] = {}
        self._left_bytes = config.data.cache_mb << 20
        self._lock = threading.Lock()
        # A mask of several images is kept once, beside the limit.
        uses = Counter(sample.roi for sample in self.samples)
        self._shared = {path for path, count in uses.items() if path and count > 1}
        self._shared_masks: dict[tuple[Path, tuple[int, ...]], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame at working scale: float32 (C, H, W) in [0, 1]; not to be written to."""
        return self.unit(self.frame(index).pixels)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def frame(self, index: int) -> Frame:
        """The frame as it is kept.

        Raises:
            InputError: an image or its mask of interest cannot be used.
        """
        frame = self._cache.get(index)
        if frame is None:
            frame = self._decoded(self.samples[index])
            shared = self.samples[index].roi in self._shared
            size = frame.pixels.nbytes + (0 if shared or frame.interest is None else frame.interest.nbytes)
            with self._lock:
                if index not in self._cache and size <= self._left_bytes:
                    self._cache[index] = frame
                    self._left_bytes -= size
        return frame

    def unit(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (C, h, w) in [0, 1] of `pixels` of a frame, or of a part of them: the values of the whole frame."""
        if pixels.dtype == np.float32:
            return pixels.transpose(2, 0, 1)
        return prepare_frame(pixels, scale_px=None, channels=self.config.model.channels)

    def _decoded(self, sample: Sample) -> Frame:
        image = read_image(sample.path)
        shape, channels = image.shape[:2], self.config.model.channels
        scaled = working_size(*shape, self.config.geometry.scale_px)
        usable = image.dtype != np.float32 and image[0, 0].size >= channels
        if not usable or scaled != shape:
            pixels = _prepared(sample, image, self.config).transpose(1, 2, 0)
        elif image[0, 0].size > channels and image.dtype == np.uint8 and _is_grey(image):
            pixels = image[:, :, 0].copy()  # 1000 v / 255000 is v / 255 in float32, too
        else:
            pixels = image
        return Frame(pixels, self._interest(sample, shape, scaled))

    def _interest(self, sample: Sample, shape: tuple[int, int], scaled: tuple[int, int]) -> np.ndarray | None:
        if sample.roi is None:
            return None
        mask = self._shared_masks.get((sample.roi, shape))
        if mask is None:
            mask = scaled_mask(read_mask(sample.roi, shape), *scaled)
            if not mask.any():
                raise InputError(
                    f"the mask {sample.roi} is empty at the working scale of {scaled[0]}x{scaled[1]} px; "
                    "mark larger areas or raise geometry.scale_px"
                )
            if sample.roi in self._shared:
                self._shared_masks[sample.roi, shape] = mask
        return mask


class Masked(NamedTuple):
    """Patches (N, C, H, W) float32 and their pixels of interest, (N, 1, H, W) float32 of 0 and 1."""

    x: torch.Tensor
    roi: torch.Tensor


def batch_at(
    store: FrameStore, grid: PatchGrid, *, seed: int, step: int, batch: int, rank: int = 0, world: int = 1
) -> torch.Tensor:
    """Training batch of a step: (batch, C, patch_h, patch_w) float32.

    A pure function of (seed, step, rank, world): epochs are permutations of the frames, positions are uniform among
    those that show a pixel of interest. `batch` is that of one rank; rank r of w takes the r-th part of the batch of
    w * batch that a single process would draw.
    """
    return torch.from_numpy(np.stack([x for x, _ in _drawn(store, grid, seed, step, batch, rank, world)]))


def masked_batch_at(
    store: FrameStore, grid: PatchGrid, *, seed: int, step: int, batch: int, rank: int = 0, world: int = 1
) -> Masked:
    """As `batch_at`, with the mask of interest of each patch; without one all of it is, else nothing that padding
    added."""
    patches, masks = [], np.ones((batch, 1, grid.patch_h, grid.patch_w), np.float32)
    for mask, (x, interest) in zip(masks, _drawn(store, grid, seed, step, batch, rank, world), strict=True):
        patches.append(x)
        if interest is not None:
            mask[:] = 0
            mask[0, : interest.shape[0], : interest.shape[1]] = interest
    return Masked(torch.from_numpy(np.stack(patches)), torch.from_numpy(masks))


def _drawn(
    store: FrameStore, grid: PatchGrid, seed: int, step: int, batch: int, rank: int, world: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Patches (C, patch_h, patch_w) of a batch and their part of the frame's mask of interest, smaller than the patch
    where that is padded."""
    n = len(store)
    for slot in range(rank * batch, (rank + 1) * batch):
        epoch, at = divmod(step * batch * world + slot, n)
        index = int(_permutation(n, seed, epoch)[at])
        pixels, interest = store.frame(index)
        rng = np.random.default_rng((seed, step, slot))
        h, w = pixels.shape[:2]
        if h < grid.patch_h or w < grid.patch_w:
            positions = grid.positions(h, w)
            of_interest = np.arange(len(positions))
            if interest is not None:
                of_interest = np.flatnonzero(patches_with_interest(interest, positions, grid.patch_h, grid.patch_w))
            at = of_interest[int(rng.integers(len(of_interest)))]
            (y, x), patch = positions[at], grid.cut(store.unit(pixels))[at]
        else:
            y, x = _position(rng, h, w, grid, interest)
            patch = store.unit(pixels[y : y + grid.patch_h, x : x + grid.patch_w])
        yield patch, None if interest is None else interest[y : y + grid.patch_h, x : x + grid.patch_w]


def _position(
    rng: np.random.Generator, h: int, w: int, grid: PatchGrid, interest: np.ndarray | None
) -> tuple[int, int]:
    """Top left corner (y, x) of a patch that shows a pixel of interest, uniform among all of them."""
    patch_h, patch_w = grid.patch_h, grid.patch_w
    for _ in range(ROI_TRIES):
        y, x = int(rng.integers(h - patch_h + 1)), int(rng.integers(w - patch_w + 1))
        if interest is None or interest[y : y + patch_h, x : x + patch_w].any():
            return y, x
    sums = np.zeros((h + 1, w + 1), np.int64)
    sums[1:, 1:] = interest.cumsum(0).cumsum(1)
    inside = (
        sums[patch_h:, patch_w:] - sums[:-patch_h, patch_w:] - sums[patch_h:, :-patch_w] + sums[:-patch_h, :-patch_w]
    )
    places = np.flatnonzero(inside)
    return divmod(int(places[int(rng.integers(len(places)))]), inside.shape[1])


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


class BatchLoader:
    """`batch_at` of consecutive steps, made ahead in threads: `with BatchLoader(...) as batches: x = batches.at(step)`.

    Decoding, numpy and torch release the interpreter lock, so that threads work beside the training step. A batch is
    the same, bit for bit, as that of `batch_at`. Steps may be asked for in any order, but only those in a row from
    any step on are made ahead. An error of a worker is raised where its step is asked for.

    Args:
        store: frames, with `data.workers` threads and `data.prefetch` batches ahead of its configuration.
        batch, rank, world: as of `batch_at`.
        masked: batches are those of `masked_batch_at`.
    """

    def __init__(
        self,
        store: FrameStore,
        grid: PatchGrid,
        *,
        seed: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        masked: bool = False,
    ) -> None:
        make = masked_batch_at if masked else batch_at
        self._make = partial(make, store, grid, seed=seed, batch=batch, rank=rank, world=world)
        self._ahead = store.config.data.prefetch
        workers = store.config.data.workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="grd-batch") if workers else None
        self._pending: dict[int, Future[torch.Tensor | Masked]] = {}

    def at(self, step: int) -> torch.Tensor | Masked:
        """Batch of a step, as `batch_at` returns it. Raises what `batch_at` raises."""
        if self._pool is None:
            return self._make(step=step)
        for other in [other for other in self._pending if not step <= other <= step + self._ahead]:
            self._pending.pop(other).cancel()
        for wanted in range(step, step + self._ahead + 1):
            if wanted not in self._pending:
                self._pending[wanted] = self._pool.submit(self._make, step=wanted)
        return self._pending.pop(step).result()

    def close(self) -> None:
        """Drops what was made ahead and ends the threads, after the batch that each is at."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
