"""Fits the thresholds of the decision, on calibration scores of the engine that ships.

A patch is good exactly if its score is below the threshold of its region (`grd_edge.decide`), in float32. So the
"next float32 above" a statistic is the smallest threshold that keeps the product it came from good.

Source: docs/method.md, section 8; conformal prediction: arXiv 2107.07511.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from grd_edge.decide import checked_k, product_score
from grd_edge.errors import InputError

Objective = Literal["balanced_accuracy", "f_beta", "recall_at_precision"]


@dataclass(frozen=True)
class ThresholdFit:
    """Thresholds, and how they came about.

    Attributes:
        method: "good_only" or "labelled".
        thresholds: one per region, finite; each is a float32 value.
        n: products (good only) or scores (labelled) they were fitted on.
        k: patches that make a product defective.
        score_max: largest patch score (good only) or score (labelled) among them.
        alpha: false-reject rate per product that was asked for; None if labelled, as are the next three.
        achievable_alpha: least rate that n products can certify.
        certified: whether `alpha` holds. If not, the thresholds lie just above everything in the calibration set.
        n_needed: least n that certifies `alpha`.
        objective: what was maximized; None if good only, as are the next two.
        objective_value: the maximum, on the scores of the fit.
        objective_parameter: beta of f_beta, the precision of recall_at_precision, else None.
    """

    method: Literal["good_only", "labelled"]
    thresholds: tuple[float, ...]
    n: int
    k: int
    score_max: float
    alpha: float | None = None
    achievable_alpha: float | None = None
    certified: bool | None = None
    n_needed: int | None = None
    objective: str | None = None
    objective_value: float | None = None
    objective_parameter: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON object, such as `fit` of decision.json; None values are left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {**values, "thresholds": list(self.thresholds)}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> ThresholdFit:
        """The fit that `to_json` described; keys that are not its own are ignored.

        Raises:
            InputError: a key is missing, or a threshold is not a finite float32 value.
        """
        known = {field.name: mapping[field.name] for field in fields(cls) if field.name in mapping}
        try:
            fit = cls(**{**known, "thresholds": tuple(float(value) for value in known["thresholds"])})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a stored threshold fit is incomplete or malformed ({error}); fit the thresholds again"
            ) from error
        with np.errstate(over="ignore"):
            exact = all(math.isfinite(value) and float(np.float32(value)) == value for value in fit.thresholds)
        if not exact or not fit.thresholds:
            raise InputError(
                f"stored thresholds are {list(fit.thresholds)}; expected finite float32 values, so fit them again"
            )
        return fit


def fit_good_only(
    product_scores: Sequence[np.ndarray],
    *,
    alpha: float = 0.01,
    k: int = 1,
    regions: Sequence[np.ndarray] | None = None,
) -> ThresholdFit:
    """Split conformal thresholds from good products: at most `alpha` of good products will be rejected.

    The statistic of a product is its k-th largest patch score; patches of one product are not exchangeable, products
    are. The threshold is the next float32 above the ceil((n + 1)(1 - alpha))-th smallest statistic. A good product is
    then rejected with probability at most alpha, on average over calibration sets. Where n is too small for such a
    rank, the threshold is the next float32 above the largest statistic, and the fit says that it is not certified.

    With R regions each gets alpha / R (Bonferroni) and the statistic ceil(k / R)-th largest score in the region: of k
    defective patches, at least that many share a region. For k = 1 or R = 1 this is the k-th largest score.

    Args:
        product_scores: one array of patch scores per good product; float32, or rounded to it.
        alpha: false-reject rate per product, in (0, 1).
        k: patches that make a product defective, >= 1.
        regions: one integer array per product, region of each patch, 0 to R - 1; every product has every region.

    Returns:
        The fit; `achievable_alpha` is R / (n + 1).

    Raises:
        InputError: no products, NaN or infinite scores, alpha or k out of range, too few patches, regions that do not
            fit.

    Source: docs/method.md, section 8.
    """
    k, alpha = checked_k(k), checked_alpha(alpha)
    n = len(product_scores)
    if n == 0:
        raise InputError("there are no good products to fit a threshold on; give at least one, better 99 or more")
    products = [_finite_scores(scores, f"product {i}") for i, scores in enumerate(product_scores)]
    for i, scores in enumerate(products):
        if scores.size < k:
            raise InputError(
                f"product {i} has {scores.size} patches and k is {k}, so it could never be rejected; "
                f"choose k of at most {max(1, scores.size)}, or smaller patches"
            )
    by_region = _by_region(products, regions)
    count = len(by_region)
    k_region = -(-k // count)
    # Exact in the decimal that was written: 0.01 means 1/100, and no rank is off by one.
    alpha_region = Fraction(repr(float(alpha))) / count
    rank = n + 1 - math.floor((n + 1) * alpha_region)  # = ceil((n + 1)(1 - alpha_region))
    thresholds = []
    for region, parts in enumerate(by_region):
        for i, part in enumerate(parts):
            if part.size < k_region:
                raise InputError(
                    f"product {i} has {part.size} patches in region {region}; expected at least {k_region} for "
                    f"k = {k} and {count} regions, so choose a smaller k or give complete products"
                )
        statistics = np.sort(np.array([product_score(part, k_region) for part in parts], np.float32))
        thresholds.append(_next_above(statistics[min(rank, n) - 1]))
    return ThresholdFit(
        method="good_only",
        thresholds=tuple(thresholds),
        n=n,
        k=k,
        score_max=float(max(scores.max() for scores in products)),
        alpha=float(alpha),
        achievable_alpha=min(1.0, count / (n + 1)),
        certified=rank <= n,
        n_needed=math.ceil(1 / alpha_region) - 1,
    )


def fit_labelled(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    objective: Objective = "balanced_accuracy",
    beta: float = 1.0,
    precision: float | None = None,
    k: int = 1,
) -> ThresholdFit:
    """The threshold that maximizes an objective on labelled scores, in O(n log n).

    A product is called defective if its score is >= the threshold. All cuts between distinct scores are compared; of
    equally good ones the lowest is taken (missing a defect costs more). Between two scores the threshold is their
    middle, rounded to float32.

    Args:
        scores: (n,) product scores (k-th largest patch score), or patch scores; float32, or rounded to it.
        labels: (n,) bool or 0/1, 1 = defective; both occur.
        objective: "balanced_accuracy"; "f_beta"; "recall_at_precision": the largest recall among cuts that call at
            least one defective and have at least that precision.
        beta: weight of recall in f_beta, > 0.
        precision: in (0, 1]; for recall_at_precision only.
        k: stored with the fit; the k that the product scores were made with.

    Returns:
        The fit, with one threshold.

    Raises:
        InputError: lengths differ, one class only, NaN or infinite scores, parameters out of range, or a precision that
            no cut reaches.

    Source: docs/method.md, section 8.
    """
    scores = _finite_scores(scores, "the labelled set")
    positive = _checked_labels(labels, scores.size)
    parameter = checked_objective(objective, beta, precision)
    values, inverse = np.unique(scores, return_inverse=True)
    # Cut i calls everything from values[i] on defective; the last cut calls nothing defective.
    tp, fp = (
        np.append(np.cumsum(np.bincount(inverse[mask], minlength=len(values))[::-1])[::-1], 0)
        for mask in (positive, ~positive)
    )
    p, n = tp[0], fp[0]
    called = tp + fp
    if objective == "balanced_accuracy":
        quality = (tp / p + (n - fp) / n) / 2
    elif objective == "f_beta":
        quality = (1 + beta**2) * tp / (called + beta**2 * p)
    else:
        reached = np.divide(tp, called, out=np.zeros(len(tp)), where=called > 0)
        quality = np.where(reached >= precision, tp / p, -1.0)
        if quality.max() < 0:
            raise InputError(
                f"no threshold reaches a precision of {precision}; the best is {reached.max():.4g}, so ask for less"
            )
    # Equally good ones can differ by rounding; others differ by 1 / (2 p n) at least.
    best = int(np.argmax(quality >= quality.max() - 1e-12))
    return ThresholdFit(
        method="labelled",
        thresholds=(_between(values, best),),
        n=scores.size,
        k=checked_k(k),
        score_max=float(values[-1]),
        objective=objective,
        objective_value=float(quality[best]),
        objective_parameter=parameter,
    )


def _between(values: np.ndarray, cut: int) -> float:
    """Threshold of a cut of sorted distinct float32 values: above values[cut - 1], at most values[cut]."""
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return _next_above(values[-1])
    low, high = values[cut - 1], values[cut]
    middle = np.float32((float(low) + float(high)) / 2)
    return float(middle if middle > low else high)


def _next_above(value: np.float32) -> float:
    with np.errstate(over="ignore"):
        above = float(np.nextafter(np.float32(value), np.float32(np.inf)))
    if not math.isfinite(above):
        raise InputError(f"a calibration score of {float(value):g} leaves no float32 above it; check the scores")
    return above


def _finite_scores(scores: np.ndarray, where: str) -> np.ndarray:
    """(n,) float32."""
    scores = np.asarray(scores)
    if scores.dtype.kind not in "fiu":
        raise InputError(f"scores of {where} are {scores.dtype}; expected floating point numbers")
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32).ravel()
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    if bad:
        raise InputError(
            f"{bad} of {scores.size} scores of {where} are NaN or infinite, and a threshold fitted on them would mean "
            f"nothing; find out why the engine scores them so, or leave that image out"
        )
    return scores


def _by_region(products: list[np.ndarray], regions: Sequence[np.ndarray] | None) -> list[list[np.ndarray]]:
    """Scores by region, then product."""
    if regions is None:
        return [products]
    if len(regions) != len(products):
        raise InputError(f"there are regions of {len(regions)} products and scores of {len(products)}; give one each")
    indices = [np.asarray(region).ravel() for region in regions]
    for i, (index, scores) in enumerate(zip(indices, products, strict=True)):
        if index.dtype.kind not in "iu" or index.size != scores.size or index.min(initial=0) < 0:
            raise InputError(
                f"regions of product {i} are {index.size} values of {index.dtype} for {scores.size} patches; "
                f"expected one integer >= 0 per patch"
            )
    count = 1 + max(int(index.max(initial=0)) for index in indices)
    if count > min(scores.size for scores in products):
        raise InputError(
            f"regions run up to {count - 1} but a product has only {min(scores.size for scores in products)} patches; "
            f"number regions from 0 without gaps, and give every product a patch of each"
        )
    return [
        [scores[index == region] for scores, index in zip(products, indices, strict=True)] for region in range(count)
    ]


def _checked_labels(labels: np.ndarray, n: int) -> np.ndarray:
    """(n,) bool, True = defective."""
    labels = np.asarray(labels).ravel()
    if labels.size != n:
        raise InputError(f"there are {labels.size} labels and {n} scores; give one label per score")
    if labels.dtype != np.bool_:
        if labels.dtype.kind not in "iuf" or not np.isin(labels, (0, 1)).all():
            raise InputError("labels must be bool or 0 and 1, with 1 = defective")
        labels = labels == 1
    if n == 0 or labels.all() or not labels.any():
        raise InputError(
            f"{int(labels.sum())} of {n} labels are defective; a labelled fit needs good and defective ones, "
            f"so add the missing kind or fit on good products only"
        )
    return labels


def checked_alpha(alpha: float) -> float:
    """`alpha` if it is a rate in (0, 1); raises InputError otherwise."""
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha!r}; expected a false-reject rate in (0, 1), such as 0.01")
    return alpha


def checked_objective(objective: str, beta: float, precision: float | None) -> float | None:
    """The parameter of an objective of `fit_labelled`; raises InputError where it cannot be used."""
    if objective not in ("balanced_accuracy", "f_beta", "recall_at_precision"):
        raise InputError(f"objective is {objective!r}; expected balanced_accuracy, f_beta or recall_at_precision")
    if objective == "recall_at_precision":
        if precision is None or not 0 < precision <= 1:
            raise InputError(f"precision is {precision!r}; recall_at_precision needs one in (0, 1], such as 0.95")
        return float(precision)
    if precision is not None:
        raise InputError(f"precision is {precision!r} but the objective is {objective}; leave one of the two out")
    if objective == "f_beta":
        if not (math.isfinite(beta) and beta > 0):
            raise InputError(f"beta is {beta!r}; expected a positive number, such as 1 or 2")
        return float(beta)
    return None
