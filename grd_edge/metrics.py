"""Quality of scores and decisions, with intervals. Positive = defective; a NaN score is the most anomalous of all.

Image metrics are computed on continuous scores, never on 0/1 decisions.

Source: docs/method.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable

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
    values, positive = _checked(scores, labels, "AUROC")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Twice the mean rank of each distinct value, an integer, so that the result does not depend on summation order.
    twice_rank = 2 * np.cumsum(counts) - counts + 1
    p = int(np.count_nonzero(positive))
    n = len(values) - p
    return float((int(twice_rank[inverse[positive]].sum()) - p * (p + 1)) / (2 * p * n))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the precision over the recall gained at each distinct score, from the top down (no interpolation).

    Args:
        scores, labels: as in `auroc`.

    Returns:
        Average precision in (0, 1]; the share of defective samples is what random scores reach.

    Raises:
        InputError: as `auroc`.
    """
    values, positive = _checked(scores, labels, "average precision")
    _, inverse = np.unique(values, return_inverse=True)
    called = np.cumsum(np.bincount(inverse)[::-1])
    hits = np.bincount(inverse, weights=positive)[::-1]
    return float(np.sum(hits * np.cumsum(hits) / called) / positive.sum())


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

    Returns:
        (low, high). On small sets it is coarse: one swapped pair is worth 0.002 to 0.005 AUROC.

    Raises:
        InputError: as `auroc`, or n or level out of range.
    """
    scores = np.asarray(scores)
    _, positive = _checked(scores, labels, "a bootstrap interval")
    drawn = [metric(scores[rows], positive[rows]) for rows in _resamples(positive, n, seed)]
    return _percentiles(np.array(drawn), level)


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
    scores_a, scores_b = np.asarray(scores_a), np.asarray(scores_b)
    _checked(scores_b, labels, "a paired bootstrap")
    _, positive = _checked(scores_a, labels, "a paired bootstrap")
    drawn = [
        metric(scores_a[rows], positive[rows]) - metric(scores_b[rows], positive[rows])
        for rows in _resamples(positive, n, seed)
    ]
    return _percentiles(np.array(drawn), level)


def _resamples(positive: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, m) indices; each row draws with replacement within each class."""
    if n < 1:
        raise InputError(f"a bootstrap of {n} resamples was asked for; expected at least 1, better 2000")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    return np.concatenate([rows[rng.integers(len(rows), size=(n, len(rows)))] for rows in classes], axis=1)


def _percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError(f"the level of an interval is {level!r}; expected a share in (0, 1), such as 0.95")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(scores: np.ndarray, labels: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 with NaN at infinity, labels as bool; both classes occur."""
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
    values = scores.astype(np.float64)
    return np.where(np.isnan(values), np.inf, values), positive


def _as_bool(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise InputError(f"{name} have shape {values.shape}; expected one per sample")
    if values.dtype == np.bool_:
        return values
    if values.dtype.kind not in "iuf" or not np.isin(values, (0, 1)).all():
        raise InputError(f"{name} must be bool or 0 and 1, with 1 = defective")
    return values == 1
