"""How an engine differs from a reference: reconstructions, scores, their order, metrics, decisions.

Nothing here reads or writes files. "Difference" is engine less reference; a flip is a decision that the reference takes
differently. NaN counts as the most anomalous score, as in `grd_edge.metrics`.

Source: docs/design/precision.md, section "Parity report".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from grd_edge.decide import patch_decisions
from grd_edge.errors import InputError
from grd_edge.metrics import Metric, auroc, average_precision, balanced_accuracy, paired_bootstrap
from grd_edge.pixel_metrics import paired_pixel_intervals, pixel_resamples
from grd_edge.products import ProductRule
from grd_edge.runtime import Inspection
from grd_edge.scored import Scored
from grd_edge.thresholds import ThresholdFit, fit_good_only

P99 = 0.99
_KEY_SHIFT = 12  # of the bits of a float32: values within 2^-11 of themselves are counted together


# ------------------------------------------------------------------------------------------------- on arrays


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(n,) float64, ours - theirs; where both are NaN 0, where one is infinite: a NaN is the largest of all scores."""
    a, b = (_ordered(values) for values in (ours, theirs))
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def difference_figures(name: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Maximum, 99th percentile and mean of |ours - theirs|."""
    difference = np.abs(differences(ours, theirs))
    return {
        f"{name}_max_abs_diff": float(difference.max()),
        f"{name}_p99_abs_diff": float(np.quantile(difference, P99, method="higher")),
        f"{name}_mean_abs_diff": float(difference.mean()),
    }


def rank_correlation(ours: np.ndarray, theirs: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman's rho and Kendall's tau-b, both in [-1, 1]: ties get mean ranks, and are allowed for in tau's scale.

    None where a side has fewer than two distinct scores, so that nothing is ordered.

    Args:
        ours, theirs: (n,) scores of the same things.
    """
    a, b = (_ordered(values) for values in (ours, theirs))
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return None, None
    ranks = [stats.rankdata(values) for values in (a, b)]
    if np.array_equal(*ranks):
        return 1.0, 1.0  # which rounding would miss
    return float(np.corrcoef(*ranks)[0, 1].clip(-1, 1)), float(stats.kendalltau(*ranks).statistic)


def exact_interval(events: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate: it covers the true one with at least `level`, however rare the event.

    Args:
        events: from 0 to n.
        n: trials, >= 1, independent ones. Patches of one image are not quite.

    Source: Clopper and Pearson, Biometrika 26 (1934), 404-413.
    """
    low, high = stats.binomtest(events, n).proportion_ci(level, method="exact")
    return float(low), float(high)


def flips_of(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """How many decisions flipped, and from what to what, each with its rate and exact 95 % interval.

    Args:
        ours, theirs: (n,) bool, True = defective (or rejected), of the engine and of the reference.
    """

    def counted(flipped: np.ndarray) -> dict[str, Any]:
        events, n = int(flipped.sum()), len(flipped)
        return {"flips": events, "rate": events / n, "rate_ci95": list(exact_interval(events, n))}

    return {
        "n": len(ours),
        **counted(ours != theirs),
        "good_to_defective": counted(ours & ~theirs),
        "defective_to_good": counted(~ours & theirs),
    }


def metric_delta(
    name: str, metric: Metric, ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, resamples: int = 2000
) -> dict[str, Any]:
    """A metric of the reference, and by how much the engine's is higher, with a paired 95 % interval.

    All None where all labels are equal.
    """
    result: dict[str, Any] = dict.fromkeys((f"{name}_reference", f"{name}_delta", f"{name}_delta_ci95"))
    if labels.any() and not labels.all():
        expected = metric(theirs, labels)
        result[f"{name}_reference"] = expected
        result[f"{name}_delta"] = metric(ours, labels) - expected
        result[f"{name}_delta_ci95"] = list(paired_bootstrap(metric, ours, theirs, labels, n=resamples))
    return result


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Scores as float64, NaN as infinity."""
    values = np.asarray(scores).astype(np.float64).ravel()
    return np.where(np.isnan(values), np.inf, values)


# ------------------------------------------------------------------------------------------- reconstructions


@dataclass
class ReconstructionErrors:
    """|x_hat - x_hat_ref| over all pixels of all patches, added image by image.

    Attributes:
        patch_max, patch_mean: of the patches of each image added.
    """

    patch_max: list[np.ndarray] = field(default_factory=list)
    patch_mean: list[np.ndarray] = field(default_factory=list)
    _counts: np.ndarray = field(default_factory=lambda: np.zeros((0x7F800000 >> _KEY_SHIFT) + 1, np.int64))

    def add(self, ours: Inspection, theirs: Inspection) -> None:
        """Adds an image that both inspected, with its reconstructions; a NaN differs infinitely."""
        difference = np.abs(ours.x_hat - theirs.x_hat)
        difference[np.isnan(difference)] = np.inf
        self._counts += np.bincount(difference.view(np.uint32).ravel() >> _KEY_SHIFT, minlength=len(self._counts))
        self.patch_max.append(difference.max(axis=(1, 2, 3)))
        self.patch_mean.append(difference.mean(axis=(1, 2, 3), dtype=np.float64))

    def figures(self) -> dict[str, float]:
        """Maximum and mean exactly, the 99th percentile up to 0.05 % too high."""
        reached = np.cumsum(self._counts)
        place = int(np.searchsorted(reached, P99 * reached[-1]))
        # The largest value that is counted there.
        top = np.uint32(((place + 1) << _KEY_SHIFT) - 1).view(np.float32) if place else np.float32(0)
        largest = float(np.concatenate(self.patch_max).max())
        return {
            "x_hat_max_abs_diff": largest,
            "x_hat_p99_abs_diff": min(float(top), largest),
            "x_hat_mean_abs_diff": float(np.concatenate(self.patch_mean).mean()),
        }


# ------------------------------------------------------------------------------------------------ on engines


@dataclass(frozen=True)
class Refit:
    """Thresholds that engine and reference get by the same method, each on its own scores of the same images."""

    engine: ThresholdFit
    reference: ThresholdFit

    def to_json(self) -> dict[str, Any]:
        """What is told of it; both fits share everything but their thresholds."""
        fit = self.engine
        return {
            "thresholds": list(fit.thresholds),
            "thresholds_reference": list(self.reference.thresholds),
            "alpha": fit.alpha,
            "k": fit.k,
            "products": fit.n,
            "certified": fit.certified,
        }


@dataclass(frozen=True)
class Comparison:
    """An engine beside a reference, for tables and pictures.

    Attributes:
        engine_name, reference_name: what a reader is told they are.
        engine, reference: what they said of the same images.
        rule: by which both decided.
        reconstructions: how these differ; None where the networks give none.
        refit: thresholds of both on calibration images; None where they could not be fitted, which `notes` explain.
        figures: of `parity_of`.
    """

    engine_name: str
    reference_name: str
    engine: Scored
    reference: Scored
    rule: ProductRule
    reconstructions: ReconstructionErrors | None
    refit: Refit | None
    figures: dict[str, Any]
    notes: tuple[str, ...] = ()


def refitted(engine: Scored, reference: Scored, rule: ProductRule, *, alpha: float = 0.01) -> Refit:
    """Thresholds of both on calibration images: `fit_good_only` with the rule's k and the regions of the patches.

    Raises:
        InputError: as `fit_good_only`, or a region that no calibration image has a patch in.
    """

    return Refit(*(thresholds_of(scored, rule, alpha=alpha) for scored in (engine, reference)))


def thresholds_of(scored: Scored, rule: ProductRule, *, alpha: float = 0.01) -> ThresholdFit:
    """Thresholds of one engine on its scores of calibration images, as `refitted` fits them.

    Raises:
        InputError: as `refitted`.
    """
    regions = _by_product(scored, lambda inspection: inspection.regions)
    found = fit_good_only(_by_product(scored, rule.deciding), alpha=alpha, k=rule.k, regions=regions)
    if rule.thresholds and len(found.thresholds) != len(rule.thresholds):
        raise InputError(
            f"the calibration images have patches in {len(found.thresholds)} of {len(rule.thresholds)} regions"
        )
    return found


def decided_patches(scored: Scored, rule: ProductRule, thresholds: Sequence[float]) -> list[np.ndarray]:
    """Decisions (True = defective) about the patches of each image with other thresholds than those it was made with.

    Args:
        thresholds: one per region, or a single one.
    """
    return [patch_decisions(rule.deciding(each), thresholds, each.regions) for each in scored.inspections]


def parity_of(
    engine: Scored,
    reference: Scored,
    *,
    rule: ProductRule,
    refit: Refit | None = None,
    reconstructions: ReconstructionErrors | None = None,
    resamples: int = 2000,
) -> dict[str, Any]:
    """How an engine differs from a reference on the same labelled images.

    Args:
        rule: by which both decided: the score that decides, k, and the shipped thresholds (empty: no decisions).
        refit: thresholds of both for the decisions "after refitting"; None: these are null.
        reconstructions: of the same images.
        resamples: of the paired bootstraps of AUROC and average precision.

    Returns:
        JSON-ready figures; null where they have no meaning. Those that end in `_delta` are engine less reference. Of
        the decisions, `decision_flips` are of products and `patch_decision_flips` of patches, at the shipped threshold
        and, with `_refit`, after refitting; `flips` has their rates, intervals and directions.

    Raises:
        InputError: the two are not of the same patches.
    """
    _check_same(engine, reference)
    ours, theirs = (np.concatenate([rule.deciding(each) for each in s.inspections]) for s in (engine, reference))
    result: dict[str, Any] = {"patches": len(ours)}
    if reconstructions:
        result |= reconstructions.figures()
    for name, a, b in zip(("phi", "phi_local"), engine.patch_scores, reference.patch_scores, strict=True):
        result |= difference_figures(name, np.concatenate(a), np.concatenate(b))
    for name, a, b in (("patch", ours, theirs), ("image", engine.image_scores, reference.image_scores)):
        result[f"{name}_spearman"], result[f"{name}_kendall"] = rank_correlation(a, b)

    scores, labels = (engine.image_scores, reference.image_scores), engine.image_labels
    result |= metric_delta("auroc", auroc, *scores, labels, resamples)
    result |= metric_delta("ap", average_precision, *scores, labels, resamples)
    if len(engine.labels) < len(labels):
        result |= metric_delta("product_auroc", auroc, engine.scores, reference.scores, engine.labels, resamples)
    if rule.thresholds:
        decided = (engine.rejected, reference.rejected)
        result |= metric_delta("balanced_accuracy", balanced_accuracy, *decided, engine.labels, resamples)
    result |= _pixel_deltas(engine, reference)

    shipped = [[each.defective for each in scored.inspections] for scored in (engine, reference)]
    flips = {"shipped": _flips(engine, *shipped, rule.k) if rule.thresholds else None, "refit": None}
    if refit:
        fits = ((engine, refit.engine), (reference, refit.reference))
        flips["refit"] = _flips(engine, *(decided_patches(s, rule, fit.thresholds) for s, fit in fits), rule.k)
    for suffix, found in (("", flips["shipped"]), ("_refit", flips["refit"])):
        result[f"decision_flips{suffix}"] = found and found["product"]["flips"]
        result[f"patch_decision_flips{suffix}"] = found and found["patch"]["flips"]
    return {**result, "flips": flips, "refit": refit and refit.to_json()}


def _flips(scored: Scored, ours: list[np.ndarray], theirs: list[np.ndarray], k: int) -> dict[str, dict[str, Any]]:
    """Flips of patches and of products, from what was decided about the patches of each image; a product with fewer
    patches than k is rejected by both."""
    products = [
        np.array([len(each) < k or np.count_nonzero(each) >= k for each in _grouped(scored, decided)])
        for decided in (ours, theirs)
    ]
    return {"patch": flips_of(np.concatenate(ours), np.concatenate(theirs)), "product": flips_of(*products)}


def _pixel_deltas(engine: Scored, reference: Scored) -> dict[str, Any]:
    """As `metric_delta`, of the heatmaps, each metric; None where they were not measured."""
    counted = engine.quality and reference.quality and engine.pixel_counts and reference.pixel_counts
    intervals = paired_pixel_intervals(engine.pixel_counts, reference.pixel_counts) if counted else {}
    result: dict[str, Any] = {}
    for name, metric in (("pixel_auroc", "auroc"), ("aupro", "aupro")):
        values = [getattr(each.quality, metric) for each in (engine, reference)] if counted else None
        result[f"{name}_reference"] = values and values[1]
        result[f"{name}_delta"] = values and values[0] - values[1]
        result[f"{name}_delta_ci95"] = list(intervals[name]) if name in intervals else None
    result["aupro_resamples"] = pixel_resamples(len(engine.pixel_counts.defective)) if intervals else None
    return result


def _check_same(engine: Scored, reference: Scored) -> None:
    same = len(engine.inspections) == len(reference.inspections) and all(
        np.array_equal(a.positions, b.positions) for a, b in zip(engine.inspections, reference.inspections, strict=True)
    )
    if not same:
        raise InputError("engine and reference did not inspect the same patches; score the same images with both")


def _by_product(scored: Scored, of_image: Callable[[Inspection], np.ndarray]) -> list[np.ndarray]:
    return _grouped(scored, [of_image(inspection) for inspection in scored.inspections])


def _grouped(scored: Scored, of_images: list[np.ndarray]) -> list[np.ndarray]:
    """What each image has, joined by product."""
    groups: list[list[np.ndarray]] = [[] for _ in scored.products]
    for product, values in zip(scored.product_of, of_images, strict=True):
        groups[product].append(values)
    return [np.concatenate(group) for group in groups]
