"""Pixel AUROC and AUPRO of heatmaps against ground truth masks, image by image within bounded memory.

Source: docs/method.md, section 8; AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", International Journal
of Computer Vision 129 (2021), 1038-1059, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grd_edge.errors import InputError, require
from grd_edge.metrics import auroc_of_counts, paired_bootstrap

AUPRO_LIMIT = 0.3
EXACT_PIXELS = 1 << 25
AUPRO_RESAMPLES = 1000
_RESAMPLED_IMAGES = 1_000_000  # images of all resamples together; from 200 resamples on
_DROPPED_BITS = 8  # beyond EXACT_PIXELS: values that agree in all but the last 8 bits of their float32 count as tied
# Values as they are counted image by image: 64 to an octave from 2^-16 to 1, what lies outside in the first and last.
_BINS, _BIN_SHIFT, _FIRST_BIN = 1024, 17, 0x37800000 >> 17


@dataclass(frozen=True)
class PixelQuality:
    """Pixel AUROC and AUPRO, both in [0, 1]; each is off by at most `error_bound`, which is 0 when it is exact."""

    auroc: float
    aupro: float
    regions: int
    error_bound: float


@dataclass(frozen=True)
class ImageCounts:
    """Heatmap values image by image, in 1024 classes: enough for AUPRO of resampled images.

    Attributes:
        good: (N, 1024) float32, good pixels of each image by value, ascending.
        gained: (N, 1024) float32, shares of its regions.
        defective: (N,) bool, whether it has a region.
    """

    good: np.ndarray
    gained: np.ndarray
    defective: np.ndarray


class PixelScores:
    """Heatmaps and masks, added one by one, then `quality()`, and `counts()` where `per_image` was asked for.

    Up to `exact_pixels` pixels are kept as they are (4 bytes each) and sorted once. Beyond, they are counted by value
    in three tables, together 100 MB for values up to 1, in which values closer than 2^-15 of themselves are tied.
    """

    def __init__(self, exact_pixels: int = EXACT_PIXELS, *, per_image: bool = False) -> None:
        self.exact_pixels, self.per_image = exact_pixels, per_image
        self._images: list[tuple[np.ndarray, np.ndarray]] = []
        self.pixels = self.regions = 0
        self._good: list[np.ndarray] = []
        self._defective: list[np.ndarray] = []
        self._shares: list[np.ndarray] = []  # of a defective pixel in its region
        self._tables: list[np.ndarray] | None = None

    def add(self, heatmap: np.ndarray, mask: np.ndarray | None = None, roi: np.ndarray | None = None) -> None:
        """Adds the pixels of one image.

        Args:
            heatmap: (H, W) float, >= 0; NaN counts as larger than all, as infinity does.
            mask: (H, W) bool, True = defective; None: a good image.
            roi: (H, W) bool, True = of interest; other pixels are left out. None: all.

        Raises:
            InputError: shapes that differ, or negative values.
            MissingExtraError: OpenCV, which finds the regions, is not installed.
        """
        values = np.asarray(heatmap, np.float32)
        for name, other in (("mask", mask), ("mask of interest", roi)):
            if other is not None and (other.shape != values.shape or other.dtype != np.bool_):
                raise InputError(
                    f"a heatmap of {values.shape} has a {name} of {other.dtype} {other.shape}; expected bool"
                )
        if (values < 0).any():
            raise InputError(f"a heatmap holds {values.min():g}; expected absolute differences")
        # Bits of floats that are not negative sort as the floats do; + 0 turns -0 into 0.
        keys = (np.where(np.isnan(values), np.float32(np.inf), values) + np.float32(0)).view(np.uint32)
        if mask is None:
            mask = np.zeros(values.shape, bool)
        defective = mask if roi is None else mask & roi
        good = ~mask if roi is None else roi & ~mask
        self._good.append(keys[good])
        self.pixels += len(self._good[-1])
        gained = np.zeros(_BINS, np.float32)
        if defective.any():
            cv2 = require("cv2", extra="images", purpose="to find the regions of a mask")
            count, labels = cv2.connectedComponents(defective.view(np.uint8), connectivity=8)
            labels = labels[defective]
            self._defective.append(keys[defective])
            self._shares.append(1 / np.bincount(labels, minlength=count)[labels])
            self.pixels += len(labels)
            self.regions += count - 1
            if self.per_image:
                gained = _binned(self._defective[-1], self._shares[-1])
        if self.per_image:
            self._images.append((_binned(self._good[-1]), gained))
        if self._tables or self.pixels > self.exact_pixels:
            self._count()

    def quality(self) -> PixelQuality | None:
        """AUROC and AUPRO of what was added; None without a good or a defective pixel. Ties count half."""
        if self._tables:
            good, defective, share = self._tables
        else:
            good, defective, share = self._exact()
        if not self.regions or not good.any():
            return None
        error = _tied_area(good, defective) if self._tables else 0.0
        error_pro = _tied_area(good, share) / AUPRO_LIMIT if self._tables else 0.0
        return PixelQuality(
            auroc=auroc_of_counts(defective, good),
            aupro=area_under_curve(good, share, AUPRO_LIMIT) / AUPRO_LIMIT,
            regions=self.regions,
            error_bound=max(error, error_pro),
        )

    def counts(self) -> ImageCounts | None:
        """What was added image by image; None where it was not asked for."""
        if not self._images:
            return None
        good, gained = (np.stack(arrays) for arrays in zip(*self._images, strict=True))
        return ImageCounts(good, gained, gained.any(axis=1))

    def _count(self) -> None:
        """Moves what is kept into the tables."""
        self._tables = self._tables or [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)]
        kept = ((self._good, None), (self._defective, None), (self._defective, self._shares))
        for place, (parts, weights) in enumerate(kept):
            for index, part in enumerate(parts):
                found = np.bincount(part >> _DROPPED_BITS, None if weights is None else weights[index])
                self._add_to(place, found)
        self._good, self._defective, self._shares = [], [], []

    def _add_to(self, place: int, found: np.ndarray) -> None:
        size = max(len(found), max(map(len, self._tables)))
        for index, table in enumerate(self._tables):
            if len(table) < size:
                self._tables[index] = np.concatenate([table, np.zeros(size - len(table), table.dtype)])
        self._tables[place][: len(found)] += found.astype(self._tables[place].dtype, copy=False)

    def _exact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Good pixels, defective pixels and shares by ascending value: at each distinct value of a defective pixel, and
        between two of them, where only good pixels are.
        """
        good = np.sort(np.concatenate(self._good)) if self._good else np.zeros(0, np.uint32)
        self._good = [good]
        keys = np.concatenate(self._defective) if self._defective else np.zeros(0, np.uint32)
        shares = np.concatenate(self._shares) if self._shares else np.zeros(0)
        distinct, places = np.unique(keys, return_inverse=True)
        edges = np.stack([np.searchsorted(good, distinct), np.searchsorted(good, distinct, side="right")], axis=1)
        steps = np.diff(edges.ravel(), prepend=0, append=len(good))  # between, at, between, at, ..., between
        at = np.zeros((2, len(steps)))
        at[0, 1::2] = np.bincount(places, minlength=len(distinct))
        at[1, 1::2] = np.bincount(places, shares, minlength=len(distinct))
        return steps, at[0].astype(np.int64), at[1]


def _binned(keys: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(1024,) float32, values of each class of `ImageCounts`, from the bits of non-negative float32."""
    places = (keys >> _BIN_SHIFT).astype(np.int64) - _FIRST_BIN
    return np.bincount(places.clip(0, _BINS - 1), weights, minlength=_BINS).astype(np.float32)


def paired_aupro_bootstrap(
    a: ImageCounts, b: ImageCounts, *, n: int | None = None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of AUPRO(a) - AUPRO(b) on the same images, resampled together.

    Images with regions and images without are resampled separately. The curve goes straight through each class of
    values, which moves a difference by far less than the interval is wide.

    Args:
        n: resamples; None: 1000, fewer (but 200) where that is more than a million images.

    Returns:
        (low, high); None without an image of both kinds.
    """
    images = len(a.defective)
    if a.defective.all() or not a.defective.any():
        return None

    def aupro(rows: np.ndarray, _: np.ndarray) -> float:
        # The rows of b follow those of a.
        counts = b if rows[0] >= images else a
        times = np.bincount(rows % images, minlength=images).astype(np.float32)
        good, gained = (times @ counts.good).astype(np.float64), (times @ counts.gained).astype(np.float64)
        return area_under_curve(good, gained, AUPRO_LIMIT) / AUPRO_LIMIT

    rows = np.arange(images)
    return paired_bootstrap(aupro, rows, rows + images, a.defective, n=n or aupro_resamples(images), seed=seed)


def aupro_resamples(images: int) -> int:
    """Resamples of `paired_aupro_bootstrap` for so many images."""
    return min(AUPRO_RESAMPLES, max(200, _RESAMPLED_IMAGES // images))


def area_under_curve(good: np.ndarray, gained: np.ndarray, limit: float = 1.0) -> float:
    """Area under the curve of the share gained over the false positive rate, from 0 to `limit`, ties by straight lines.

    Args:
        good: (m,) good pixels at each distinct value, ascending; not all 0.
        gained: (m,) what is gained there (pixels, or shares of regions); not all 0.
        limit: of the false positive rate, in (0, 1].
    """
    fpr = np.concatenate([[0.0], np.cumsum(good[::-1]) / good.sum()])
    height = np.concatenate([[0.0], np.cumsum(gained[::-1])])
    height /= height[-1]
    last = int(np.searchsorted(fpr, limit))  # the first point at or beyond the limit
    part = (limit - fpr[last - 1]) / (fpr[last] - fpr[last - 1])
    x = np.append(fpr[:last], limit)
    y = np.append(height[:last], height[last - 1] + part * (height[last] - height[last - 1]))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _tied_area(good: np.ndarray, gained: np.ndarray) -> float:
    """Half the area of the rectangles that ties span: how far any order of the tied pixels can move the area."""
    return float(np.sum(good * (gained / gained.sum())) / good.sum() / 2)
