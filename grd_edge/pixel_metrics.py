"""Pixel AUROC and AUPRO of heatmaps against ground truth masks, image by image within bounded memory.

Source: docs/method.md, section 8; AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", International Journal
of Computer Vision 129 (2021), 1038-1059, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from grd_edge.errors import InputError, require
from grd_edge.metrics import auroc_of_counts, interval_of, resamples

AUPRO_LIMIT = 0.3
EXACT_PIXELS = 1 << 25
PIXEL_RESAMPLES = 1000
_RESAMPLED_IMAGES = 1_000_000  # images of all resamples together; from 200 resamples on
_CURVE_POINTS = 254
_DROPPED_BITS = 8  # beyond EXACT_PIXELS: values that agree in all but the last 8 bits of their float32 count as tied
_SIGN = np.uint32(1 << 31)
# Magnitudes as they are counted image by image, of negative values and of others: 64 classes to an octave.
_CLASS_SHIFT = 17
_CLASSES = (0x7F800000 >> _CLASS_SHIFT) + 1  # up to infinity


@dataclass(frozen=True)
class PixelQuality:
    """Pixel AUROC and AUPRO, both in [0, 1]; each is off by at most `error_bound`, which is 0 when it is exact.

    Attributes:
        roc, pro: (points, 2) float64, at most 256 points of both curves, each (false positive rate, height).
    """

    auroc: float
    aupro: float
    regions: int
    error_bound: float
    roc: np.ndarray = field(compare=False, repr=False)
    pro: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True)
class ImageCounts:
    """Heatmap values image by image, in classes, 64 to an octave: enough for pixel AUROC and AUPRO of resampled images.

    Attributes:
        good: (N, classes) float32, good pixels of each image by value, ascending; classes that no image uses are left
            out.
        found: (N, classes) float32, its defective pixels.
        gained: (N, classes) float32, shares of its regions.
        defective: (N,) bool, whether it has a region.
    """

    good: np.ndarray
    found: np.ndarray
    gained: np.ndarray
    defective: np.ndarray


class PixelScores:
    """Heatmaps and masks, added one by one, then `quality()`, and `counts()` where `per_image` was asked for.

    Up to `exact_pixels` pixels are kept as they are (4 bytes each) and sorted once. Beyond, they are counted by value
    in three tables, together 100 MB for values from 0 to 1, in which values closer than 2^-15 of themselves are tied.
    """

    def __init__(self, exact_pixels: int = EXACT_PIXELS, *, per_image: bool = False) -> None:
        self.exact_pixels, self.per_image = exact_pixels, per_image
        self._images: list[tuple[_Counted, _Counted, _Counted]] = []
        self.pixels = self.regions = 0
        self._good: list[np.ndarray] = []
        self._defective: list[np.ndarray] = []
        self._shares: list[np.ndarray] = []  # of a defective pixel in its region
        self._tables: list[np.ndarray] | None = None
        self._first = int(_SIGN >> _DROPPED_BITS)  # class that the tables begin with, that of 0

    def add(self, heatmap: np.ndarray, mask: np.ndarray | None = None, roi: np.ndarray | None = None) -> None:
        """Adds the pixels of one image.

        Args:
            heatmap: (H, W) float; NaN counts as larger than all, as infinity does.
            mask: (H, W) bool, True = defective; None: a good image.
            roi: (H, W) bool, True = of interest; other pixels are left out. None: all.

        Raises:
            InputError: shapes that differ.
            MissingExtraError: OpenCV, which finds the regions, is not installed.
        """
        values = np.asarray(heatmap, np.float32)
        for name, other in (("mask", mask), ("mask of interest", roi)):
            if other is not None and (other.shape != values.shape or other.dtype != np.bool_):
                raise InputError(
                    f"a heatmap of {values.shape} has a {name} of {other.dtype} {other.shape}; expected bool"
                )
        keys = _keys(values)
        if mask is None:
            mask = np.zeros(values.shape, bool)
        defective = mask if roi is None else mask & roi
        good = ~mask if roi is None else roi & ~mask
        self._good.append(keys[good])
        self.pixels += len(self._good[-1])
        found = gained = _Counted(np.empty(0, np.int64), np.empty(0))
        if defective.any():
            cv2 = require("cv2", extra="images", purpose="to find the regions of a mask")
            count, labels = cv2.connectedComponents(defective.view(np.uint8), connectivity=8)
            labels = labels[defective]
            self._defective.append(keys[defective])
            self._shares.append(1 / np.bincount(labels, minlength=count)[labels])
            self.pixels += len(labels)
            self.regions += count - 1
            if self.per_image:
                found, gained = (_counted(self._defective[-1], weights) for weights in (None, self._shares[-1]))
        if self.per_image:
            self._images.append((_counted(self._good[-1]), found, gained))
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
            roc=_thinned(*_curve(good, defective)),
            pro=_thinned(*_curve(good, share)),
        )

    def counts(self) -> ImageCounts | None:
        """What was added image by image; None where it was not asked for."""
        if not self._images:
            return None
        used = np.unique(np.concatenate([each.classes for image in self._images for each in image]))
        parts = []
        for images in zip(*self._images, strict=True):
            dense = np.zeros((len(images), len(used)), np.float32)
            for row, each in zip(dense, images, strict=True):
                row[np.searchsorted(used, each.classes)] = each.counts
            parts.append(dense)
        return ImageCounts(*parts, parts[-1].any(axis=1))

    def _count(self) -> None:
        """Moves what is kept into the tables."""
        self._tables = self._tables or [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)]
        kept = ((self._good, None), (self._defective, None), (self._defective, self._shares))
        for place, (parts, weights) in enumerate(kept):
            for index, part in enumerate(parts):
                if len(part):
                    classes = (part >> _DROPPED_BITS).astype(np.int64)
                    first = min(self._first, int(classes.min()))
                    found = np.bincount(classes - first, None if weights is None else weights[index])
                    self._add_to(place, found, first)
        self._good, self._defective, self._shares = [], [], []

    def _add_to(self, place: int, found: np.ndarray, first: int) -> None:
        """Adds counts of classes from `first` on, which is not above that of the tables."""
        below, self._first = self._first - first, first
        size = max(len(found), below + max(map(len, self._tables)))
        for index, table in enumerate(self._tables):
            if len(table) < size:
                self._tables[index] = np.pad(table, (below, size - below - len(table)))
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


def _keys(values: np.ndarray) -> np.ndarray:
    """uint32 that sort as float32 values do; NaN as infinity, -0 as 0."""
    bits = (np.where(np.isnan(values), np.float32(np.inf), values) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


class _Counted(NamedTuple):
    """How many values of one image are in a class, or what they weigh: classes (n,) int64, ascending, and counts."""

    classes: np.ndarray
    counts: np.ndarray


def _counted(keys: np.ndarray, weights: np.ndarray | None = None) -> _Counted:
    """Values in the classes of `ImageCounts`."""
    negative = keys < _SIGN
    places = ((np.where(negative, ~keys, keys) & ~_SIGN) >> _CLASS_SHIFT).astype(np.int64)
    places = np.where(negative, _CLASSES - 1 - places, _CLASSES + places)
    counts = np.bincount(places, weights, minlength=2 * _CLASSES)
    classes = np.flatnonzero(counts)
    return _Counted(classes, counts[classes].astype(np.float32))


def pixel_bootstrap_values(counts: ImageCounts, *, n: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """`pixel_auroc` and `aupro` on resampled images, (n,) float64 each; two engines' are paired on the same images.

    Images with regions and images without are resampled separately. The curves go straight through each class of
    values, which moves a difference by far less than its interval is wide.

    Args:
        n: resamples; None: those of `pixel_resamples`.

    Returns:
        Empty without an image of both kinds.
    """
    images, defective = len(counts.defective), np.flatnonzero(counts.defective)
    if len(defective) in (0, images):
        return {}
    rest = np.flatnonzero(~counts.defective)
    times = np.stack(
        [
            np.bincount(np.concatenate([defective[a], rest[b]]), minlength=images).astype(np.float32)
            for a, b in resamples(counts.defective, n or pixel_resamples(images), seed)
        ]
    )
    good, found, gained = ((times @ each).astype(np.float64) for each in (counts.good, counts.found, counts.gained))
    return {
        "pixel_auroc": np.array([auroc_of_counts(a, b) for a, b in zip(_whole(found), _whole(good), strict=True)]),
        "aupro": np.array(
            [area_under_curve(a, b, AUPRO_LIMIT) / AUPRO_LIMIT for a, b in zip(good, gained, strict=True)]
        ),
    }


def _whole(counts: np.ndarray) -> np.ndarray:
    return counts.round().astype(np.int64)


def paired_pixel_intervals(
    a: ImageCounts, b: ImageCounts, *, n: int | None = None, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals (low, high) of `pixel_auroc` and `aupro` of a less those of b, on the same
    images; arguments and what is left out as of `pixel_bootstrap_values`."""
    ours, theirs = (pixel_bootstrap_values(each, n=n, seed=seed) for each in (a, b))
    return {name: interval_of(ours[name] - theirs[name]) for name in ours}


def pixel_resamples(images: int) -> int:
    """Resamples of `pixel_bootstrap_values`: 1000, fewer (but 200) where that is more than a million images."""
    return min(PIXEL_RESAMPLES, max(200, _RESAMPLED_IMAGES // images))


def area_under_curve(good: np.ndarray, gained: np.ndarray, limit: float = 1.0) -> float:
    """Area under the curve of the share gained over the false positive rate, from 0 to `limit`, ties by straight lines.

    Args:
        good: (m,) good pixels at each distinct value, ascending; not all 0.
        gained: (m,) what is gained there (pixels, or shares of regions); not all 0.
        limit: of the false positive rate, in (0, 1].
    """
    fpr, height = _curve(good, gained)
    last = int(np.searchsorted(fpr, limit))  # the first point at or beyond the limit
    part = (limit - fpr[last - 1]) / (fpr[last] - fpr[last - 1])
    x = np.append(fpr[:last], limit)
    y = np.append(height[:last], height[last - 1] + part * (height[last] - height[last - 1]))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _curve(good: np.ndarray, gained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and share gained, from (0, 0) to (1, 1); arguments as of `area_under_curve`."""
    fpr = np.concatenate([[0.0], np.cumsum(good[::-1]) / good.sum()])
    height = np.concatenate([[0.0], np.cumsum(gained[::-1])])
    height /= height[-1]
    return fpr, height


def _thinned(fpr: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Points of a curve evenly spread along it, its ends among them."""
    # Both rise from 0 to 1, so their sum is the way gone along the curve.
    places = np.searchsorted(fpr + height, np.linspace(0, 2, _CURVE_POINTS)).clip(0, len(fpr) - 1)
    places = np.unique(np.append(places, [0, len(fpr) - 1]))
    return np.stack([fpr[places], height[places]], axis=1)


def _tied_area(good: np.ndarray, gained: np.ndarray) -> float:
    """Half the area of the rectangles that ties span: how far any order of the tied pixels can move the area."""
    return float(np.sum(good * (gained / gained.sum())) / good.sum() / 2)
