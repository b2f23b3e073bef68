"""Streamed histograms and the clippings that are made from them."""

import math

import numpy as np
import pytest

from grd_edge.clipping import BINS, QUANTIZED_BINS, Histogram


def values(seed: int, n: int = 20_011) -> np.ndarray:
    """Long-tailed, with zeros, as activations are."""
    drawn = np.random.default_rng(seed).standard_t(3, n).astype(np.float32)
    drawn[::7] = 0
    return drawn


def histogram(*parts: np.ndarray) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def test_bins_are_those_of_numpy_and_do_not_depend_on_the_order():
    x = values(0)
    x = np.sort(np.concatenate([x, x * 37]))
    growing = histogram(*np.array_split(x[np.argsort(np.abs(x))], 9))
    at_once, falling = histogram(x.reshape(-1, 2)), histogram(*np.array_split(x[np.argsort(-np.abs(x))], 9))
    extent = growing.bin_width * BINS
    assert math.frexp(extent)[0] == 0.5 and extent / 2 <= growing.top < extent
    expected = np.histogram(np.abs(x), BINS, (0, extent))[0]
    for made in (growing, at_once, falling):
        np.testing.assert_array_equal(made.counts, expected)
        assert (made.low, made.high) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 2**18 + 1])
def test_every_value_counts_once(size):
    assert histogram(values(1, size), np.zeros(5, np.float32)).counts.sum() == size + 5


@pytest.mark.parametrize("top", [0.0, 1e-44, 1e-38, 1.0, 2.0, 3e38])
def test_extents_from_nothing_to_the_largest_float(top):
    made = histogram(np.float32([0, 0]), np.float32([top]), np.float32([-top / 2]))
    assert made.counts.sum() == 4 and made.top == float(np.float32(top))
    assert made.percentile(100) == made.top


def test_values_that_are_no_number_show_in_the_extremes():
    for bad in (np.nan, np.inf, -np.inf):
        made = histogram(values(2), np.float32([bad, 1]), values(3))
        assert not math.isfinite(made.top)


@pytest.mark.parametrize("percent", [51, 90, 99, 99.9, 100])
def test_percentile_is_exact_to_a_bin(percent):
    x = values(4)
    made = histogram(x[:5000], x[5000:])
    expected = np.percentile(np.abs(x), percent, method="inverted_cdf")
    assert expected <= made.percentile(percent) <= expected + made.bin_width
    assert made.percentile(100) == made.top


def slow_divergence(counts: list[int], bins: int) -> float:
    """As the definition says it, loop by loop."""
    p = counts[:bins]
    p[-1] += sum(counts[bins:])
    merged, q = bins // QUANTIZED_BINS, [0.0] * bins
    for level in range(QUANTIZED_BINS):
        stop = bins if level == QUANTIZED_BINS - 1 else (level + 1) * merged
        inside = range(level * merged, stop)
        used = [i for i in inside if p[i]]
        for i in used:
            q[i] = sum(counts[j] for j in inside) / len(used)
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a:
            if not b:
                return math.inf
            total += a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
    return total


@pytest.mark.parametrize("seed", [5, 6])
def test_entropy_is_the_least_divergence_of_the_definition(seed):
    made = histogram(values(seed))
    found = made.entropy()
    counts = made.counts.tolist()
    filled = max(i for i, count in enumerate(counts) if count) + 1
    tried = sorted({*range(QUANTIZED_BINS, filled, 37), filled, round(found / made.bin_width)} - {0})
    divergences = {bins: slow_divergence(list(counts), bins) for bins in tried if bins >= QUANTIZED_BINS}
    least = min(divergences, key=lambda bins: (divergences[bins], -bins))
    assert found == min(least * made.bin_width, made.top)
    assert found < made.top  # a tail of single values is clipped


def test_entropy_clips_nothing_of_few_levels():
    made = histogram(np.float32([0, 0.25, 0.5, 1] * 9))
    assert made.entropy() == 1
