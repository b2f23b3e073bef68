"""Pixel AUROC and AUPRO against slow definitions and scikit-learn: docs/method.md, section 8."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from grd_edge.errors import InputError
from grd_edge.metrics import auroc
from grd_edge.pixel_metrics import AUPRO_LIMIT, PixelScores, pixel_bootstrap_values


def regions_by_definition(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions, by flooding."""
    left, found = {tuple(at) for at in np.argwhere(mask).tolist()}, []
    while left:
        queue = [left.pop()]
        for y, x in queue:
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            queue += sorted(around)
        found.append(queue)
    return found


def aupro_by_definition(images) -> float:
    """For every threshold the false positive rate and the mean overlap of the regions, then the trapezoids to 0.3."""
    good = [value for heatmap, mask in images for value in heatmap[~mask]]
    regions = [[heatmap[at] for at in region] for heatmap, mask in images for region in regions_by_definition(mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for heatmap, _ in images for value in heatmap.ravel()}, reverse=True):
        fpr = sum(value >= threshold for value in good) / len(good)
        overlaps = [sum(value >= threshold for value in region) / len(region) for region in regions]
        points.append((fpr, sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < AUPRO_LIMIT:
            x, y = (x1, y1) if x1 <= AUPRO_LIMIT else (AUPRO_LIMIT, y0 + (y1 - y0) * (AUPRO_LIMIT - x0) / (x1 - x0))
            area += (x - x0) * (y + y0) / 2
    return area / AUPRO_LIMIT


def images(seed: int, levels: int | None, count: int = 4, h: int = 13, w: int = 17):
    """Heatmaps that see the defects a little; few levels make ties common."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        mask = rng.random((h, w)) < 0.08 if index else np.zeros((h, w), bool)
        heatmap = rng.random((h, w)) + 0.4 * mask
        heatmap = np.floor(heatmap * levels) / levels if levels else heatmap
        yield heatmap.astype(np.float32), mask


def added(pairs, **options) -> PixelScores:
    scores = PixelScores(**options)
    for heatmap, mask in pairs:
        scores.add(heatmap, mask)
    return scores


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [None, 5, 1])
def test_definitions_agree(seed, levels):
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = list(images(seed, levels))
    quality = added(pairs).quality()
    values = np.concatenate([heatmap.ravel() for heatmap, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    assert abs(quality.auroc - metrics.roc_auc_score(labels, values)) < 1e-12
    assert abs(quality.aupro - aupro_by_definition(pairs)) < 1e-12
    assert quality.regions == sum(len(regions_by_definition(mask)) for _, mask in pairs)
    assert quality.error_bound == 0


@pytest.mark.parametrize("seed", range(4))
def test_tables_stay_within_the_bound_they_state(seed):
    pairs = list(images(seed, None, count=8, h=63, w=65))
    exact, counted = added(pairs).quality(), added(pairs, exact_pixels=20_000).quality()
    assert 0 < counted.error_bound < 1e-3
    assert abs(counted.auroc - exact.auroc) <= counted.error_bound
    assert abs(counted.aupro - exact.aupro) <= counted.error_bound
    # Values that differ by more than the tables resolve are told apart exactly.
    coarse = list(images(seed, 50, count=8))
    assert added(coarse, exact_pixels=0).quality().auroc == added(coarse).quality().auroc


def test_known_values():
    mask = np.zeros((10, 10), bool)
    mask[:2, :2] = True
    quality = added([(mask.astype(np.float32), mask)]).quality()
    assert (quality.auroc, quality.aupro, quality.regions) == (1, 1, 1)
    quality = added([(1 - mask.astype(np.float32), mask)]).quality()
    assert (quality.auroc, quality.aupro) == (0, 0)
    # A tie of everything is the diagonal: half for AUROC, half of the limit on average below it.
    quality = added([(np.zeros((10, 10)), mask)]).quality()
    assert quality.auroc == 0.5 and abs(quality.aupro - AUPRO_LIMIT / 2) < 1e-12


def test_every_region_counts_the_same_whatever_its_size():
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = True  # found
    mask[30, 30] = True  # missed
    heatmap = np.zeros((40, 40), np.float32)
    heatmap[:20, :20] = 1
    heatmap[30, 30] = -0.0
    quality = added([(heatmap, mask)]).quality()
    assert 0.5 < quality.aupro < 0.6 and quality.auroc > 0.99


def test_diagonal_neighbors_are_one_region():
    assert added([(np.zeros((5, 5)), np.eye(5, dtype=bool))]).quality().regions == 1


def test_nan_is_the_most_anomalous():
    mask = np.array([[True, True, False, False]])
    assert added([(np.array([[np.nan, np.inf, 5, 0]]), mask)]).quality().auroc == 1
    assert added([(np.array([[np.nan, 0, np.nan, 0]]), mask)]).quality().auroc == 0.5


def test_pixels_outside_the_mask_of_interest_count_for_nothing():
    rng = np.random.default_rng(0)
    roi = np.zeros((20, 30), bool)
    roi[5:15, 5:25] = True
    heatmap = rng.random((20, 30)).astype(np.float32)
    mask = rng.random((20, 30)) < 0.1
    scores = PixelScores()
    scores.add(heatmap, mask, roi)
    inside = added([(heatmap[5:15, 5:25], mask[5:15, 5:25])]).quality()
    assert scores.quality() == inside
    wild = np.where(roi, heatmap, np.float32(np.nan))
    again = PixelScores()
    again.add(wild, mask, roi)
    assert again.quality() == inside


def test_without_defects_or_good_pixels_there_is_no_figure():
    assert PixelScores().quality() is None
    assert added([(np.zeros((3, 3)), np.zeros((3, 3), bool))]).quality() is None
    assert added([(np.zeros((3, 3)), np.ones((3, 3), bool))]).quality() is None
    assert added([(np.zeros((3, 3)), np.zeros((3, 3), bool))], exact_pixels=0).quality() is None


def test_unusable_input_is_refused():
    scores = PixelScores()
    with pytest.raises(InputError, match="mask"):
        scores.add(np.zeros((3, 3)), np.zeros((3, 4), bool))
    with pytest.raises(InputError, match="expected bool"):
        scores.add(np.zeros((3, 3)), None, np.zeros((3, 3), np.uint8))


@pytest.mark.parametrize(("factor", "offset"), [(20, 0), (1, -0.7), (-1, 0), (1e-30, 0), (300, -90)])
@pytest.mark.parametrize("exact_pixels", [1 << 25, 0])
def test_maps_of_any_scale_and_sign(factor, offset, exact_pixels):
    """Methods that score patches themselves give distances, sigmoids and logits."""
    pairs = [(np.float32(factor) * heatmap + np.float32(offset), mask) for heatmap, mask in images(3, None, 8)]
    scores = added(pairs, exact_pixels=exact_pixels, per_image=True)
    quality, values = scores.quality(), pixel_bootstrap_values(scores.counts())
    flat = [np.concatenate([each[index].ravel() for each in pairs]) for index in (0, 1)]
    bound = max(1e-9, 2 * quality.error_bound)
    assert quality.auroc == pytest.approx(auroc(*flat), abs=bound)
    assert quality.aupro == pytest.approx(aupro_by_definition(pairs), abs=bound)
    assert quality.error_bound < 1e-3
    low, high = np.quantile(values["pixel_auroc"], (0.025, 0.975))
    assert low < quality.auroc < high and abs(values["pixel_auroc"].mean() - quality.auroc) < 0.01
    assert abs(values["aupro"].mean() - quality.aupro) < 0.02


def test_large_frames_stay_within_memory():
    """24 frames of 2700 x 900 px are 58 million pixels: beyond what is kept, so the tables take over."""
    rng = np.random.default_rng(0)
    heatmap = np.abs(rng.normal(0, 0.05, (900, 2700))).astype(np.float32)
    mask = np.zeros(heatmap.shape, bool)
    mask[100:130, 200:260] = True
    scores = PixelScores(exact_pixels=1 << 23)
    begin = time.perf_counter()
    tracemalloc.start()
    for index in range(24):
        scores.add(np.roll(heatmap, 37 * index, 1), mask)
    quality = scores.quality()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.pixels == 24 * 2700 * 900
    assert peak < 700e6  # every pixel kept with its sort would be over 1 GB
    assert quality.error_bound < 1e-4
    assert abs(quality.auroc - 0.5) < 0.05
    assert time.perf_counter() - begin < 60  # 0.9 s on an idle machine
