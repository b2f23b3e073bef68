"""Quality of scores and decisions, with intervals. Positive = defective; a NaN score is the most anomalous of all.

Image metrics are computed on continuous scores, never on 0/1 decisions. Metrics of pixels: `grd_edge.pixel_metrics`.

Source: docs/method.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

from grd_edge.errors import InputError

Metric = Callable[[np.ndarray, np.ndarray], float]


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a defective sample scores above a good one; ties count half. O(n log n).

    Args:
        scores: (n,) numbers, larger = more anomalous; NaN counts as larger than all, as infinity does.
        labels: (n,) bool or 0/1, 1 = defective.

    Returns:
        AUROC in [0, 1].

    Raises:
        InputError: lengths differ, labels that are not 0/1, or one class only.
    """
    return auroc_of_counts(*_counts(scores, labels, "AUROC"))


def auroc_of_counts(defective: np.ndarray, good: np.ndarray) -> float:
    """AUROC from how many defective and good samples have each distinct score, in ascending order of the score.

    Args:
        defective, good: (m,) integers >= 0, neither all 0; at most 10^9 samples of each.
    """
    # Integers, so that the result does not depend on summation order.
    twice_below = 2 * np.cumsum(good) - good
    return int((defective * twice_below).sum()) / (2 * int(defective.sum()) * int(good.sum()))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the precision over the recall gained at each distinct score, from the top down (no interpolation).

    Args:
        scores, labels: as in `auroc`.

    Returns:
        Average precision in (0, 1]; the share of defective samples is what random scores reach.

    Raises:
        InputError: as `auroc`.
    """
    return _average_precision_of_counts(*_counts(scores, labels, "average precision"))


def _average_precision_of_counts(defective: np.ndarray, good: np.ndarray) -> float:
    hits = defective[::-1]
    called = np.cumsum(hits + good[::-1])
    return float(np.sum(hits * np.cumsum(hits) / np.maximum(called, 1)) / hits.sum())


def balanced_accuracy(decisions: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the shares of defective and of good samples that are decided right.

    Args:
        decisions: (n,) bool or 0/1, 1 = called defective.
        labels: (n,) bool or 0/1, 1 = defective.

    Returns:
        Balanced accuracy in [0, 1].

    Raises:
        InputError: lengths differ, values that are not 0/1, or one class only.
    """
    called = _as_bool(decisions, "decisions")
    _, positive = _checked(called, labels, "balanced accuracy")
    return float((called[positive].mean() + (~called[~positive]).mean()) / 2)


def rate_interval(events: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate; meaningful for 0 events, too.

    Args:
        events: from 0 to n.
        n: trials, >= 1.
        level: coverage, in (0, 1).

    Raises:
        InputError: counts or level out of range.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if not 0 <= events <= n or n < 1:
        raise InputError(f"a rate of {events} of {n} was asked for; expected 0 to n events of n >= 1 trials")
    z2 = NormalDist().inv_cdf(0.5 + _level(level) / 2) ** 2
    center = (events + z2 / 2) / (n + z2)
    half = (z2 * (events * (n - events) / n + z2 / 4)) ** 0.5 / (n + z2)
    # At the ends the exact bounds are 0 and 1, which rounding would miss.
    return (0.0 if events == 0 else center - half), (1.0 if events == n else center + half)


def bootstrap_interval(
    metric: Metric, scores: np.ndarray, labels: np.ndarray, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric, resampling good and defective samples separately.

    Args:
        metric: function of (scores, labels), such as `auroc`.
        scores: (m,) scores, or decisions for a metric of decisions.
        labels: (m,) bool or 0/1, 1 = defective.
        n: resamples, >= 1.
        seed: of the resampling; the same for the same m and labels.
        level: coverage, in (0, 1).

    A resample costs O(m) for `auroc` and `average_precision`, which are sorted once; memory does not grow with n.

    Returns:
        (low, high). On small sets it is coarse: one swapped pair is worth 0.002 to 0.005 AUROC.

    Raises:
        InputError: as `auroc`, or n or level out of range.
    """
    return interval_of(bootstrap_values(metric, scores, labels, n, seed), level)


def bootstrap_values(
    metric: Metric, scores: np.ndarray, labels: np.ndarray, n: int = 2000, seed: int = 0
) -> np.ndarray:
    """(n,) float64, the metric on each resample of `bootstrap_interval`; two models' are paired where m and labels are.

    Raises:
        InputError: as `auroc`, or n out of range.
    """
    scores = np.asarray(scores)
    _, positive = _checked(scores, labels, "a bootstrap interval")
    value = _on_draws(metric, scores, positive)
    return np.array([value(*draw) for draw in resamples(positive, n, seed)])


def interval_of(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval (low, high) from the values of resamples.

    Raises:
        InputError: level out of range.
    """
    low, high = np.quantile(values, [(1 - _level(level)) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    metric: Metric,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    labels: np.ndarray,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of metric(a) - metric(b) on the same samples, resampled together.

    Args:
        metric: function of (scores, labels), such as `auroc`.
        scores_a, scores_b: (m,) scores of the same samples by two models, or precisions.
        labels, n, seed, level: as in `bootstrap_interval`.

    Returns:
        (low, high); an interval that holds 0 shows no difference.

    Raises:
        InputError: as `bootstrap_interval`.
    """
    a, b = (bootstrap_values(metric, scores, labels, n, seed) for scores in (scores_a, scores_b))
    return interval_of(a - b, level)


def resamples(positive: np.ndarray, n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """n resamples: places among the defective and among the good samples, drawn with replacement.

    Args:
        positive: (m,) bool, True = defective.

    Raises:
        InputError: n out of range.
    """
    if n < 1:
        raise InputError(f"a bootstrap of {n} resamples was asked for; expected at least 1, better 2000")
    rng = np.random.default_rng(seed)
    p = int(np.count_nonzero(positive))
    for _ in range(n):
        yield rng.integers(p, size=p), rng.integers(len(positive) - p, size=len(positive) - p)


def _on_draws(metric: Metric, scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """The metric as a function of a resample of `resamples`."""
    of_counts = {auroc: auroc_of_counts, average_precision: _average_precision_of_counts}.get(metric)
    if of_counts is None:
        defective, good = np.flatnonzero(positive), np.flatnonzero(~positive)

        def value(drawn_defective: np.ndarray, drawn_good: np.ndarray) -> float:
            rows = np.concatenate([defective[drawn_defective], good[drawn_good]])
            return metric(scores[rows], positive[rows])

        return value
    places, m = _places(scores)
    defective, good = places[positive], places[~positive]
    return lambda a, b: of_counts(np.bincount(defective[a], minlength=m), np.bincount(good[b], minlength=m))


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is {level!r}; expected a share in (0, 1), such as 0.95")
    return level


def _places(scores: np.ndarray) -> tuple[np.ndarray, int]:
    """Place of each score among the distinct ones, ascending, NaN at infinity; and how many distinct ones there are."""
    values = scores.astype(np.float64)
    distinct, places = np.unique(np.where(np.isnan(values), np.inf, values), return_inverse=True)
    return places, len(distinct)


def _counts(scores: np.ndarray, labels: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """How many defective and good samples have each distinct score, ascending."""
    scores, positive = _checked(scores, labels, what)
    places, m = _places(scores)
    return np.bincount(places[positive], minlength=m), np.bincount(places[~positive], minlength=m)


def _checked(scores: np.ndarray, labels: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels as arrays, labels as bool; both classes occur."""
    scores, positive = np.asarray(scores), _as_bool(labels, "labels")
    if scores.ndim != 1 or scores.dtype.kind not in "fiub":
        raise InputError(f"scores are {scores.dtype} {scores.shape}; expected one number per sample")
    if len(scores) != len(positive):
        raise InputError(f"there are {len(scores)} scores and {len(positive)} labels; expected one label per score")
    if positive.all() or not positive.any():
        raise InputError(
            f"{int(positive.sum())} of {len(positive)} labels are defective; {what} needs good and defective samples, "
            f"so add the missing kind"
        )
    return scores, positive


def _as_bool(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise InputError(f"{name} have shape {values.shape}; expected one per sample")
    if values.dtype == np.bool_:
        return values
    if values.dtype.kind not in "iuf" or not np.isin(values, (0, 1)).all():
        raise InputError(f"{name} must be bool or 0 and 1, with 1 = defective")
    return values == 1
