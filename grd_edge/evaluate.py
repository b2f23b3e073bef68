"""How good a bundle is on labelled images: metrics with intervals, the untrained generator and a reference beside it.

Source: docs/method.md, section 8; docs/design/precision.md for the comparison with a reference.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grd_edge.bundle import Bundle, read_bundle
from grd_edge.data.dataset import Sample, distinct_products, refuse_seen
from grd_edge.engine.against import Backend, check_precision, reference_inspector
from grd_edge.errors import BundleError, InputError
from grd_edge.heads import RECONSTRUCTION
from grd_edge.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap_interval,
    interval_of,
    paired_bootstrap,
    rate_interval,
)
from grd_edge.parity import Comparison, ReconstructionErrors, Refit, parity_of, refitted
from grd_edge.pixel_metrics import PIXEL_RESAMPLES, pixel_bootstrap_values
from grd_edge.products import ProductRule
from grd_edge.scored import FrameInspector, OnFrame, OnImages, Scored, scored_from_samples, scored_together
from grd_edge.shipped import (
    PER_IMAGE,
    fit_of,
    opened_bundle,
    seen_ids,
    training_of,
    unknown_images,
)

ALPHA = 0.01  # of thresholds that are fitted where a bundle's own do not say


def metrics_from_scored(scored: Scored) -> dict[str, Any]:
    """Metrics of images, products, decisions and pixels, with 95 % intervals; null where `notes` say why.

    Scores are continuous; decisions count only where there are thresholds. Keys that begin with `product` are there
    when some product has several images. Undecided products count as rejected.
    """
    labels, rejected, notes = scored.labels, scored.rejected, list(scored.notes)
    images = scored.image_labels
    result: dict[str, Any] = {"images": len(images), "defective": int(images.sum())}
    both = bool(images.any() and not images.all())
    if not both:
        kind = "defective" if images.any() else "good"
        notes.append(f"all images are {kind}, so there is no AUROC, average precision or balanced accuracy")
    result |= _ranking("image", scored.image_scores, images, both)
    if len(labels) < len(images):
        result |= {"products": len(labels), "products_defective": int(labels.sum())}
        result |= _ranking("product", scored.scores, labels, both)

    if not scored.decided:
        notes.append("the bundle has no thresholds, so there are no decisions to measure")
    if scored.undecided:
        notes.append(
            f"{scored.undecided} of {len(labels)} products have fewer patches than k, so they are undecided and count "
            "as rejected"
        )
    measured = scored.decided and both
    result["balanced_accuracy"] = balanced_accuracy(rejected, labels) if measured else None
    result["balanced_accuracy_ci95"] = (
        list(bootstrap_interval(balanced_accuracy, rejected, labels)) if measured else None
    )
    for name, wrong in (("false_reject", rejected[~labels]), ("escape", ~rejected[labels])):
        counted = scored.decided and len(wrong) > 0
        result[f"{name}_rate"] = float(wrong.mean()) if counted else None
        result[f"{name}_rate_ci95"] = list(rate_interval(int(wrong.sum()), len(wrong))) if counted else None

    quality = scored.quality
    if quality is None and not any(sample.mask for sample in scored.samples):
        notes.append("no defective image has a mask, so there are no pixel metrics")
    elif quality is None:
        notes.append("pixel metrics need defective and good pixels, and heatmaps that were asked for")
    drawn = pixel_bootstrap_values(scored.pixel_counts) if quality and scored.pixel_counts else {}
    for name, value in (("pixel_auroc", quality and quality.auroc), ("aupro", quality and quality.aupro)):
        result |= {name: value, f"{name}_ci95": list(interval_of(drawn[name])) if name in drawn else None}
    result |= {
        "pixel_images": scored.pixel_images,
        "pixel_regions": quality and quality.regions,
        "pixel_error_bound": quality and quality.error_bound,
        "kinds": _kinds(scored),
        "notes": notes,
    }
    return result


def _ranking(name: str, scores: np.ndarray, labels: np.ndarray, both: bool) -> dict[str, Any]:
    """AUROC and average precision with intervals; null unless both classes are there."""
    result: dict[str, Any] = {}
    for short, metric in (("auroc", auroc), ("ap", average_precision)):
        result[f"{name}_{short}"] = metric(scores, labels) if both else None
        result[f"{name}_{short}_ci95"] = list(bootstrap_interval(metric, scores, labels)) if both else None
    return result


def _kinds(scored: Scored) -> dict[str, dict[str, Any]]:
    """Each kind of defect against all good images: images, AUROC; its products, and those decided good."""
    kinds, product_of = np.array([sample.kind for sample in scored.samples]), np.array(scored.product_of)
    good, scores, rejected = ~scored.image_labels, scored.image_scores, scored.rejected
    table = {}
    for kind in sorted(set(kinds[~good].tolist())):
        chosen = kinds == kind
        rows, products = good | chosen, np.unique(product_of[chosen])
        table[kind] = {
            "images": int(chosen.sum()),
            "image_auroc": auroc(scores[rows], chosen[rows]) if good.any() else None,
            "products": len(products),
            "escapes": int((~rejected[products]).sum()) if scored.decided else None,
        }
    return table


def gain_from_scored(scored: Scored, untrained: Scored) -> dict[str, Any]:
    """The untrained generator beside the trained one, with the paired interval of the gain in image AUROC."""
    quality, labels = untrained.quality, scored.image_labels
    result: dict[str, Any] = {
        "image_auroc_untrained": None,
        "auroc_gain": None,
        "auroc_gain_ci95": None,
        "pixel_auroc_untrained": quality and quality.auroc,
        "aupro_untrained": quality and quality.aupro,
    }
    if labels.any() and not labels.all():
        ours, theirs = scored.image_scores, untrained.image_scores
        result["image_auroc_untrained"] = auroc(theirs, labels)
        result["auroc_gain"] = auroc(ours, labels) - result["image_auroc_untrained"]
        result["auroc_gain_ci95"] = list(paired_bootstrap(auroc, ours, theirs, labels))
    return result


class Evaluation(NamedTuple):
    """What is measured of a bundle: the figures, the engine's results, and the reference beside them, if any."""

    result: dict[str, Any]
    scored: Scored
    comparison: Comparison | None


def evaluated_bundle(
    path: Path,
    samples: Sequence[Sample],
    *,
    against: Backend | Path | None = None,
    calibration: Sequence[Sample] = (),
    precision: str | None = None,
    untrained: bool = True,
    on_frame: OnFrame | None = None,
    bar: Callable[[str], OnImages] = lambda name: lambda done: None,
) -> Evaluation:
    """All that is measured of a bundle on labelled images.

    Args:
        samples: test images, none of them used to make the model or to fit its thresholds.
        against: what runs beside the engine, image by image.
        calibration: good images that thresholds of engine and reference are fitted on, to compare these decisions, too.
        precision: of the engine; None: the one the bundle chose.
        untrained: report an untrained generator too, where the model is one and PyTorch is installed.
        on_frame: with `against`, called as `scored_together` says.
        bar: gives the progress callback of the pass with this name.

    Returns:
        What `metrics_from_scored`, `gain_from_scored` and `parity_of` say, and what they were said of.

    Raises:
        InputError: images that model or thresholds were made from, or that do not fit.
        BundleError, CheckpointError, EngineError: see `opened_bundle` and `reference_inspector`.
    """
    if precision:
        check_precision(read_bundle(path), precision)
    with contextlib.ExitStack() as stack:
        inspector, bundle = opened_bundle(path, precision=precision)
        stack.enter_context(inspector)
        refuse_used(bundle, samples)
        rule, options = ProductRule.of_bundle(bundle), {"pixels": True, "roi": bundle.roi}
        reference = stack.enter_context(reference_inspector(bundle, against)) if against else None
        baseline = comparison = None
        if untrained and bundle.manifest["head"] == RECONSTRUCTION:
            with contextlib.suppress(ImportError):
                importlib.import_module("torch")
                baseline = untrained_inspector(bundle)
        precision = precision or bundle.manifest["precision"]["chosen"].get("cpu")
        if reference:
            names = f"{precision} ({inspector.engine_version})", f"{against} ({reference.engine_version})"
            pair = (inspector, reference)
            comparison = _compared(pair, names, bundle, samples, calibration, on_frame=on_frame, bar=bar)
            scored = comparison.engine
        else:
            scored = scored_from_samples(inspector, samples, rule=rule, on_progress=bar("engine"), **options)
    result = {"precision": precision, **metrics_from_scored(scored)}
    result["notes"] += [*_precision_notes(bundle, precision), *mask_notes(bundle, scored), *unknown_images(bundle)]
    if comparison:
        result |= comparison.figures
        result["notes"] += comparison.notes
    if untrained and not baseline and bundle.manifest["head"] == RECONSTRUCTION:
        result["notes"].append("the untrained baseline needs PyTorch: pip install 'grd-edge[train]'")
    elif baseline:
        undecided = replace(rule, thresholds=())
        beside = scored_from_samples(baseline, samples, rule=undecided, on_progress=bar("untrained"), **options)
        result |= gain_from_scored(scored, beside)
    return Evaluation(result, scored, comparison)


def _compared(
    pair: tuple[FrameInspector, FrameInspector],
    names: tuple[str, str],
    bundle: Bundle,
    samples: Sequence[Sample],
    calibration: Sequence[Sample],
    *,
    on_frame: OnFrame | None,
    bar: Callable[[str], OnImages],
) -> Comparison:
    """Engine and reference on the test images, and with thresholds of their own from the calibration images."""
    rule, rebuilds = ProductRule.of_bundle(bundle), bundle.manifest["head"] == RECONSTRUCTION
    errors = ReconstructionErrors() if rebuilds else None

    def watched(index: int, frame: np.ndarray, inspections: Sequence) -> None:
        if errors:
            errors.add(*inspections)
        if on_frame:
            on_frame(index, frame, inspections)

    shown = {"on_frame": watched, "shows": "x_hat" if rebuilds else "heatmap"}
    engine, reference = scored_together(
        pair, samples, rule=rule, pixels=True, roi=bundle.roi, **shown, on_progress=bar("both engines")
    )
    notes, refit = [], None
    try:
        refit = _refit(pair, bundle, rule, calibration, bar)
    except InputError as error:
        notes.append(f"decisions are not compared after refitting: {error}")
    figures = parity_of(engine, reference, rule=rule, refit=refit, reconstructions=errors)
    if (figures["aupro_resamples"] or PIXEL_RESAMPLES) < PIXEL_RESAMPLES:
        notes.append(f"the intervals of the pixel deltas are from {figures['aupro_resamples']} resamples only")
    return Comparison(*names, engine, reference, rule, errors, refit, figures, tuple(notes))


def _refit(
    pair: tuple[FrameInspector, FrameInspector],
    bundle: Bundle,
    rule: ProductRule,
    calibration: Sequence[Sample],
    bar: Callable[[str], OnImages],
) -> Refit:
    """Thresholds of engine and reference, each on its own scores, fitted as the bundle's own were.

    Raises:
        InputError: they cannot be fitted; says why.
    """
    images, alpha = refit_images(bundle, calibration)
    both = scored_together(pair, images, rule=rule, on_progress=bar("calibration"))
    return refitted(*both, rule, alpha=alpha)


def refit_images(bundle: Bundle, calibration: Sequence[Sample]) -> tuple[list[Sample], float]:
    """The images that thresholds can be fitted on again as the bundle's own were, and the alpha of that fit.

    Raises:
        InputError: there are none; says why.
    """
    fit = fit_of(bundle)
    if fit.get("method") == "labelled":
        raise InputError("the thresholds were fitted on labelled images, which a calibration split does not hold")
    if not calibration:
        raise InputError("the data has no calibration images")
    refuse_seen(calibration, seen_ids(training_of(bundle)), purpose="thresholds")
    alpha = fit.get("alpha")
    return distinct_products(calibration)[0], alpha if isinstance(alpha, float) else ALPHA


def refuse_used(bundle: Bundle, samples: Sequence[Sample]) -> None:
    """Raises InputError when a sample was used to make a bundle's model, or to fit its thresholds."""
    refuse_seen(samples, seen_ids(training_of(bundle)), purpose="metrics")
    refuse_seen(samples, seen_ids(fit_of(bundle)), purpose="metrics", used="to fit these thresholds")


def _precision_notes(bundle: Bundle, precision: str | None) -> list[str]:
    """Where thresholds belong to another engine than the one that is measured."""
    engine = fit_of(bundle).get("engine")
    fitted = engine.get("precision") if isinstance(engine, dict) else None
    if not isinstance(fitted, str) or fitted == precision:
        return []
    return [f"the thresholds were fitted on scores of the {fitted} engine, and these are of the {precision} one"]


def mask_notes(bundle: Bundle, scored: Scored) -> list[str]:
    """Where images were measured under another mask of interest than the line's, or than that of the thresholds."""
    notes = []
    if scored.other_masks:
        own = "the whole frame" if bundle.roi is None else "the bundle's"
        notes.append(
            f"{_have(scored.other_masks)} a mask of interest that the bundle does not hold; the line uses {own}"
        )
    bare = sum(sample.roi is None for sample in scored.samples)
    if bare and fit_of(bundle).get("roi") == PER_IMAGE:
        notes.append(f"{_have(bare)} no mask of interest, but the thresholds were fitted under one per image")
    return notes


def _have(images: int) -> str:
    return "1 image has" if images == 1 else f"{images} images have"


def training_seed(bundle: Bundle) -> int:
    """Seed of the split that a bundle's model was trained on; 0 where the bundle does not say."""
    config = bundle.manifest["provenance"].get("config")
    train = config.get("train") if isinstance(config, dict) else None
    seed = train.get("seed") if isinstance(train, dict) else None
    return seed if type(seed) is int and seed >= 0 else 0


def untrained_inspector(bundle: Bundle) -> FrameInspector:
    """The generator that a bundle's model was before its training, with the bundle's k, regions and mask of interest.

    It decides nothing: thresholds belong to the trained model.

    Raises:
        BundleError: the bundle does not say how its model was configured.
    """
    from grd_edge.config import config_from_mapping
    from grd_edge.engine.torch import TorchInspector
    from grd_edge.train import untrained_checkpoint

    if bundle.manifest["head"] != RECONSTRUCTION:
        raise BundleError(
            f"{bundle.path} holds no generator, and only that has an untrained baseline; use --no-untrained"
        )
    config = bundle.manifest["provenance"].get("config")
    if not isinstance(config, dict):
        raise BundleError(
            f"{bundle.path} does not hold the configuration of its model, so there is no untrained baseline; "
            "evaluate it with --no-untrained"
        )
    k = bundle.decision["k"] if bundle.decision else 1
    checkpoint = untrained_checkpoint(config_from_mapping(config))
    return TorchInspector(checkpoint, k=k, regions=bundle.regions, roi=bundle.roi)
