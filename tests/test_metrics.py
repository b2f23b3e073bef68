"""Metrics against definitions and scikit-learn, and intervals: docs/method.md, section 8."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge.errors import InputError
from grd_edge.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap_interval,
    paired_bootstrap,
    rate_interval,
)

# Few distinct values, so that ties are common.
samples = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def split(pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in pairs], np.float32) / 7, np.array([label for _, label in pairs])


def auroc_by_definition(scores: np.ndarray, labels: np.ndarray) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    return float(np.mean(wins))


@settings(max_examples=200, deadline=None)
@given(samples)
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    scores, labels = split(pairs)
    assert abs(auroc(scores, labels) - auroc_by_definition(scores, labels)) < 1e-12
    assert abs(auroc(-scores, labels) - (1 - auroc(scores, labels))) < 1e-12
    assert auroc(scores, labels.astype(int)) == auroc(scores, labels)


@settings(max_examples=100, deadline=None)
@given(samples)
def test_scikit_learn_agrees(pairs):
    reference = pytest.importorskip("sklearn.metrics")
    scores, labels = split(pairs)
    assert abs(auroc(scores, labels) - reference.roc_auc_score(labels, scores)) < 1e-12
    assert abs(average_precision(scores, labels) - reference.average_precision_score(labels, scores)) < 1e-12
    decisions = scores > 0.4
    assert abs(balanced_accuracy(decisions, labels) - reference.balanced_accuracy_score(labels, decisions)) < 1e-12


def test_known_values():
    labels = np.array([0, 0, 1, 1])
    assert auroc(np.array([1, 2, 3, 4]), labels) == 1
    assert auroc(np.array([4, 3, 2, 1]), labels) == 0
    assert auroc(np.zeros(4), labels) == 0.5
    assert average_precision(np.zeros(4), labels) == 0.5
    assert average_precision(np.array([1, 2, 3, 4]), labels) == 1
    assert balanced_accuracy(np.array([0, 1, 1, 1]), labels) == 0.75


def test_nan_is_the_most_anomalous():
    labels = np.array([False, False, True, True])
    assert auroc(np.array([0.1, 0.9, 0.5, np.nan]), labels) == 0.75
    assert auroc(np.array([0.1, np.nan, 0.5, 0.6]), labels) == 0.5
    assert auroc(np.array([0.1, np.inf, 0.5, np.nan]), labels) == 0.625  # a tie at infinity
    assert average_precision(np.array([0.1, 0.2, np.nan, np.nan]), labels) == 1


@pytest.mark.parametrize("metric", [auroc, average_precision, balanced_accuracy])
def test_unusable_input_is_refused(metric):
    values = np.array([0.0, 1.0])
    for labels in ([0, 0], [1, 1], [True, True]):
        with pytest.raises(InputError, match="good and defective"):
            metric(values, np.array(labels))
    for scores, labels in ((values, [0, 1, 1]), (values, [0, 2]), (values, [0.5, 1]), (values[None], [0, 1])):
        with pytest.raises(InputError):
            metric(scores, np.array(labels))
    with pytest.raises(InputError):
        metric(np.array([]), np.array([], bool))


def test_auroc_of_many_is_quick_and_exact():
    rng = np.random.default_rng(0)
    n = 200_000
    labels = np.arange(n) % 2 == 1
    begin = time.perf_counter()
    assert auroc(np.arange(n), np.arange(n) >= n // 2) == 1
    assert abs(auroc(rng.random(n), labels) - 0.5) < 0.01
    assert time.perf_counter() - begin < 2  # all pairs would be 10^10


class TestBootstrap:
    @pytest.fixture
    def data(self):
        rng = np.random.default_rng(0)
        labels = rng.random(500) < 0.3
        a = rng.normal(size=500) + 1.2 * labels
        return a, labels, rng

    def test_brackets_the_estimate_and_repeats(self, data):
        a, labels, _ = data
        low, high = bootstrap_interval(auroc, a, labels, n=500)
        assert low < auroc(a, labels) < high and 0.02 < high - low < 0.15
        assert (low, high) == bootstrap_interval(auroc, a, labels, n=500)
        assert (low, high) != bootstrap_interval(auroc, a, labels, n=500, seed=1)
        narrow = bootstrap_interval(auroc, a, labels, n=500, level=0.5)
        assert low < narrow[0] < narrow[1] < high

    def test_pairs_are_resampled_together(self, data):
        a, labels, rng = data
        assert paired_bootstrap(auroc, a, a, labels, n=50) == (0, 0)
        assert paired_bootstrap(auroc, a, np.exp(a), labels, n=50) == (0, 0)  # same order, same AUROC
        noisy = a + rng.normal(size=500)
        low, high = paired_bootstrap(auroc, a, noisy, labels, n=500)
        assert 0 < low < auroc(a, labels) - auroc(noisy, labels) < high
        mirrored = paired_bootstrap(auroc, noisy, a, labels, n=500)
        np.testing.assert_allclose(mirrored, (-high, -low))

    def test_default_size_is_quick(self, data):
        a, labels, rng = data
        begin = time.perf_counter()
        paired_bootstrap(auroc, a, a + rng.normal(size=500), labels)
        assert time.perf_counter() - begin < 10  # 0.25 s on one idle core

    def test_classes_keep_their_sizes(self):
        labels = np.array([True] + [False] * 30)
        sizes = []
        bootstrap_interval(lambda s, y: sizes.append((int(y.sum()), len(y))) or 0.0, np.arange(31.0), labels, n=20)
        assert set(sizes) == {(1, 31)}

    def test_decisions_and_bad_arguments(self, data):
        a, labels, _ = data
        low, high = bootstrap_interval(balanced_accuracy, a > 0.5, labels, n=50)
        assert 0 < low <= high < 1
        with pytest.raises(InputError, match="resamples"):
            bootstrap_interval(auroc, a, labels, n=0)
        with pytest.raises(InputError, match="level"):
            bootstrap_interval(auroc, a, labels, n=5, level=1)
        with pytest.raises(InputError, match="one label per score"):
            paired_bootstrap(auroc, a, a[1:], labels, n=5)

    def test_sorting_once_gives_what_each_resample_gives(self, data):
        a, labels, rng = data
        rounded, other = np.round(a, 1), np.round(a + rng.normal(size=500), 1)  # with ties
        for metric in (auroc, average_precision):
            slow = lambda scores, y, metric=metric: metric(scores, y)  # noqa: E731 (unknown, hence not sorted once)
            expected = bootstrap_interval(slow, rounded, labels, n=60)
            np.testing.assert_allclose(bootstrap_interval(metric, rounded, labels, n=60), expected, atol=1e-12)
            expected = paired_bootstrap(slow, rounded, other, labels, n=60)
            np.testing.assert_allclose(paired_bootstrap(metric, rounded, other, labels, n=60), expected, atol=1e-12)

    def test_a_hundred_thousand_samples_are_quick_and_small(self):
        rng = np.random.default_rng(0)
        labels = rng.random(100_000) < 0.1
        scores = (rng.normal(size=100_000) + labels).astype(np.float32)
        begin = time.perf_counter()
        tracemalloc.start()
        low, high = bootstrap_interval(auroc, scores, labels, n=200)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert low < auroc(scores, labels) < high
        assert time.perf_counter() - begin < 10  # whole test: 0.5 s on an idle machine
        assert peak < 50e6  # all indices at once would be 160 MB


def wilson_by_definition(events: int, n: int, z: float) -> list[float]:
    """Rates p at which (events / n - p)^2 = z^2 p (1 - p) / n, by bisection from the estimate outwards."""
    found = []
    for end in (0.0, 1.0):
        inside, outside = events / n, end
        for _ in range(80):
            middle = (inside + outside) / 2
            within = (events / n - middle) ** 2 <= z * z * middle * (1 - middle) / n
            inside, outside = (middle, outside) if within else (inside, middle)
        found.append(inside)
    return found


@pytest.mark.parametrize(("events", "n"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (117, 430)])
def test_rate_interval_solves_its_equation(events, n):
    low, high = rate_interval(events, n)
    np.testing.assert_allclose((low, high), wilson_by_definition(events, n, 1.959963984540054), atol=1e-9)
    assert 0 <= low <= events / n <= high <= 1
    assert (low == 0) == (events == 0) and (high == 1) == (events == n)
    wide = rate_interval(events, n, level=0.99)
    assert wide[0] <= low and high <= wide[1]


def test_rate_interval_refuses_what_is_no_rate():
    for events, n in ((1, 0), (2, 1), (-1, 5)):
        with pytest.raises(InputError, match="rate"):
            rate_interval(events, n)
    with pytest.raises(InputError, match="level"):
        rate_interval(1, 2, level=0)
