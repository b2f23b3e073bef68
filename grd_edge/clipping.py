"""Where to clip an activation: streamed histograms of its magnitude, and what percentile and entropy make of them.

Source: docs/design/precision.md, "Calibration algorithms".
"""

from __future__ import annotations

import math

import numpy as np

BINS = 2048
QUANTIZED_BINS = 128  # magnitudes that a signed byte tells apart
_CHUNK = 1 << 18  # values binned at once: their indices stay in the cache
_LEAST_EXPONENT = -100  # keeps the scale of a bin within float32


class Histogram:
    """Extremes of a stream of values, and counts of their magnitudes in BINS equal bins over [0, 2**exponent).

    The range is the least power of two above all magnitudes. It grows by merging bins in pairs, which is exact, so the
    result does not depend on the order of the values.

    Args:
        binned: False: extremes only.

    Attributes:
        counts: (BINS,) int64.
        peaks: largest magnitude of each call of `add`.
        low, high: float32 values; inf and -inf before the first.
    """

    def __init__(self, *, binned: bool = True) -> None:
        self.binned, self.low, self.high = binned, math.inf, -math.inf
        self.peaks: list[float] = []
        self.counts, self._exponent = np.zeros(BINS, np.int64), _LEAST_EXPONENT

    @property
    def bin_width(self) -> float:
        return math.ldexp(1 / BINS, self._exponent)

    @property
    def top(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: np.ndarray) -> None:
        """Counts finite float32 values of any shape; others set `low` or `high` to NaN or infinity and end the use."""
        low, high = values.min(), values.max()
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))
        self.peaks.append(float(max(abs(low), abs(high))))
        if not self.binned or not math.isfinite(self.top):
            return
        for _ in range(math.frexp(self.top)[1] - self._exponent):
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self._exponent += 1
        scale = np.float32(1 / self.bin_width)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            index = (np.abs(flat[start : start + _CHUNK]) * scale).astype(np.intp)
            self.counts += np.bincount(index, minlength=BINS)

    def percentile(self, percent: float) -> float:
        """Magnitude that `percent` of the values do not exceed, to a bin."""
        reached = np.cumsum(self.counts) >= self.counts.sum() * (percent / 100)
        return min((int(np.argmax(reached)) + 1) * self.bin_width, self.top)

    def peak(self, percent: float) -> float:
        """Magnitude that the peaks of `percent` % of the calls of `add` do not exceed, interpolated."""
        return float(np.percentile(self.peaks, percent))

    def entropy(self) -> float:
        """Magnitude whose clipping loses the least information: the least Kullback-Leibler divergence between the
        distribution, with what is clipped in its last bin, and the same in QUANTIZED_BINS levels.

        Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
        """
        filled = int(np.flatnonzero(self.counts)[-1]) + 1
        best, best_bins = math.inf, filled
        for bins in range(min(QUANTIZED_BINS, filled), filled + 1):
            divergence = _divergence(self.counts, bins)
            if divergence <= best:  # of equals the one that clips less
                best, best_bins = divergence, bins
        return min(best_bins * self.bin_width, self.top)


def _divergence(counts: np.ndarray, bins: int) -> float:
    """Kullback-Leibler divergence when what lies beyond the first `bins` bins is clipped."""
    inside = counts[:bins].astype(np.float64)
    reference = inside.copy()
    reference[-1] += counts[bins:].sum()
    level = np.minimum(np.arange(bins) // max(1, bins // QUANTIZED_BINS), QUANTIZED_BINS - 1)
    used = reference > 0
    share = np.bincount(level, inside) / np.maximum(np.bincount(level, used), 1)
    p, q = reference[used], share[level][used]
    if not q.all():  # clipped values where the levels have none
        return math.inf
    return float((p / p.sum() * np.log((p / p.sum()) / (q / q.sum()))).sum())
