"""From scores to decisions: patch, product, run. Positive = defective, everywhere.

Runs on the line, so it needs numpy only. Source: docs/method.md, section 7.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from grd_edge.errors import InputError

RunDecision = Literal["good", "defective", "inconsistent"]


def patch_decisions(
    scores: np.ndarray, thresholds: float | Sequence[float], regions: np.ndarray | None = None
) -> np.ndarray:
    """Which patches are defective: all but those with score < threshold of their region, so NaN is never good.

    Args:
        scores: float array of any shape, compared as float32.
        thresholds: one finite number, or one per region; rounded to float32, in which the line compares.
        regions: integer array of the shape of `scores`, index of each patch's threshold. May be left out when there
            is one threshold.

    Returns:
        bool array of the shape of `scores`, True = defective.

    Raises:
        InputError: a threshold that is not finite, or regions that do not fit.
    """
    scores = _as_scores(scores)
    return ~(scores < _threshold_per_patch(scores, thresholds, regions))


def product_decision(defective: np.ndarray, k: int = 1) -> bool:
    """Whether a product is defective: at least k of its patches are.

    Args:
        defective: bool array, the decisions of all patches of the product (all its images).
        k: patches that make a product defective, >= 1. With k = 1 any reject rejects.

    Raises:
        InputError: not bool, no patches at all, or k < 1.
    """
    defective = np.asarray(defective)
    if defective.dtype != np.bool_:
        raise InputError(f"patch decisions are {defective.dtype}; expected bool, True = defective")
    if defective.size == 0:
        raise InputError("a product has no patches, so nothing was inspected; check the frames and the region masks")
    return int(np.count_nonzero(defective)) >= checked_k(k)


def product_score(scores: np.ndarray, k: int = 1) -> float:
    """Score of a product: its k-th largest patch score. With one threshold t, the product is defective if it is >= t.

    Args:
        scores: float array, the scores of all patches of the product.
        k: patches that make a product defective, from 1 to the number of patches.

    Returns:
        A float32 value as float; NaN if any patch scored NaN (such a patch counts as defective, so decide by
        `product_decision`, never by comparing this).

    Raises:
        InputError: no patches, or fewer than k.
    """
    scores, k = _as_scores(scores).ravel(), checked_k(k)
    if scores.size < k:
        raise InputError(
            f"a product has {scores.size} patches and k is {k}; k must not be larger than the number of patches"
        )
    # partition sorts NaN to the end, as the largest; it must win whatever k is.
    return float("nan") if np.isnan(scores).any() else float(np.partition(scores, scores.size - k)[scores.size - k])


def product_margin(
    scores: np.ndarray, thresholds: float | Sequence[float], regions: np.ndarray | None = None, k: int = 1
) -> float:
    """The k-th largest of score - threshold over a product's patches, each with its region's threshold.

    The product is defective exactly if this is >= 0 (or NaN, with k = 1). It makes products of several regions
    comparable, and is what a product's score is when thresholds differ.

    Args:
        scores, thresholds, regions: as in `patch_decisions`.
        k: as in `product_score`.

    Returns:
        A float32 value as float; NaN if any patch scored NaN.

    Raises:
        InputError: as `patch_decisions` and `product_score`.
    """
    scores = _as_scores(scores)
    # A float32 difference is 0 only for equal operands, so its sign is the decision.
    return product_score(scores - _threshold_per_patch(scores, thresholds, regions), k)


class FrameDecision(NamedTuple):
    """What is said of one frame.

    Attributes:
        decision: `good`, `defective`, or `undecided`: without thresholds, and with fewer patches than k, where only the
            other frames of the product can decide.
        score: k-th largest patch score (the least of fewer); with several thresholds the same of the margins. NaN if a
            patch scored NaN.
        threshold: what `score` is compared with: the one threshold, 0 with several, NaN without.
        defective: bool array of the shape of the scores; all False without thresholds.
    """

    decision: Literal["good", "defective", "undecided"]
    score: float
    threshold: float
    defective: np.ndarray


def frame_decision(
    scores: np.ndarray, thresholds: float | Sequence[float] | None, regions: np.ndarray | None = None, k: int = 1
) -> FrameDecision:
    """Decision about one frame from the scores of its inspected patches.

    Args:
        scores, thresholds, regions, k: as in `patch_decisions` and `product_margin`; thresholds None: undecided.

    Raises:
        InputError: as `patch_decisions` and `product_score`.

    Source: docs/method.md, section 7.
    """
    scores = _as_scores(scores)
    if thresholds is None:
        return FrameDecision("undecided", product_score(scores), float("nan"), np.zeros(scores.shape, bool))
    defective = patch_decisions(scores, thresholds, regions)
    enough = scores.size >= checked_k(k)
    decision = "undecided" if not enough else "defective" if product_decision(defective, k) else "good"
    k = min(k, scores.size)
    if np.size(thresholds) > 1:
        return FrameDecision(decision, product_margin(scores, thresholds, regions, k), 0.0, defective)
    threshold = float(np.float32(np.asarray(thresholds).item()))
    return FrameDecision(decision, product_score(scores, k), threshold, defective)


def run_decision(product_decisions: Sequence[bool] | np.ndarray, agreement: float = 0.7) -> RunDecision:
    """Decision about one product that was seen in several acquisitions.

    Args:
        product_decisions: one decision per acquisition, True = defective; at least one.
        agreement: share of the acquisitions that must agree, in (0.5, 1]; 0.7 means 7 of 10.

    Returns:
        "defective" or "good" when that share agrees on it, else "inconsistent" (which must be rejected, too).

    Raises:
        InputError: no acquisitions, decisions that are not bool, or agreement outside (0.5, 1].
    """
    decisions = np.asarray(product_decisions)
    if decisions.size == 0:
        raise InputError("a run has no acquisitions; give at least one decision")
    if decisions.dtype != np.bool_:
        raise InputError(f"the decisions of a run are {decisions.dtype}; expected bool, True = defective")
    checked_agreement(agreement)
    n, defective = decisions.size, int(np.count_nonzero(decisions))
    # A quotient of integers and a literal such as 0.7 are both rounded once, so 7 / 10 >= 0.7 holds;
    # 0.7 * n would be rounded twice.
    if defective / n >= agreement:
        return "defective"
    return "good" if (n - defective) / n >= agreement else "inconsistent"


def checked_k(k: int) -> int:
    """k as an int.

    Raises:
        InputError: not an integer >= 1.
    """
    try:
        value = operator.index(k)
    except TypeError:
        value = 0
    if value < 1:
        raise InputError(f"k is {k!r}; expected an integer >= 1, the number of patches that make a product defective")
    return value


def checked_agreement(agreement: float) -> float:
    """`agreement` itself.

    Raises:
        InputError: outside (0.5, 1].
    """
    if not 0.5 < agreement <= 1:
        raise InputError(f"agreement is {agreement!r}; expected a share in (0.5, 1], such as 0.7")
    return agreement


def _as_scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.dtype.kind not in "fiu":
        raise InputError(f"scores are {scores.dtype}; expected floating point numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, hence defective
        return scores.astype(np.float32)


def _threshold_per_patch(scores: np.ndarray, thresholds, regions: np.ndarray | None) -> np.ndarray:
    """float32, scalar or of the shape of `scores`."""
    with np.errstate(over="ignore"):
        thresholds = np.asarray(thresholds, np.float32).reshape(-1)
    if thresholds.size == 0 or not np.isfinite(thresholds).all():
        raise InputError(f"thresholds are {thresholds.tolist()}; expected finite numbers, one per region")
    if regions is None:
        if thresholds.size > 1:
            raise InputError(f"there are {thresholds.size} thresholds and no regions; say which patch belongs to which")
        return thresholds[0]
    regions = np.asarray(regions)
    if regions.shape != scores.shape or regions.dtype.kind not in "iu":
        raise InputError(
            f"regions are {regions.dtype} {regions.shape} for scores of shape {scores.shape}; "
            f"expected one integer per score"
        )
    if regions.size and (regions.min() < 0 or regions.max() >= thresholds.size):
        raise InputError(
            f"regions run from {regions.min()} to {regions.max()}; expected 0 to {thresholds.size - 1}, "
            f"as there are {thresholds.size} thresholds"
        )
    return thresholds[regions]
