"""Scores of labelled images, and how well one engine agrees with another.

An inspector is anything with `inspect(frame) -> Inspection`: the native one or a reference of `grd_edge.engine`.
Source: docs/method.md, sections 5 to 8.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.data.dataset import Sample, refuse_seen
from grd_edge.data.images import read_image, read_mask
from grd_edge.errors import BundleError, CheckpointError, InputError
from grd_edge.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap_interval,
    paired_bootstrap,
    rate_interval,
)
from grd_edge.pixel_metrics import PixelQuality, PixelScores
from grd_edge.products import ProductResult, ProductRule
from grd_edge.regions import scaled_mask
from grd_edge.runtime import Inspection
from grd_edge.shipped import (
    PER_IMAGE,
    fit_of,
    is_other_mask,
    opened_bundle,
    seen_ids,
    training_of,
    unknown_images,
)

OnImages = Callable[[int], None]

# columns of the table of images
COLUMNS = (
    "image",
    "kind",
    "product",
    "decision",
    "correct",
    "score",
    "threshold",
    "patches",
    "defective_patches",
    "phi_max",
    "phi_local_max",
)


class FrameInspector(Protocol):
    def inspect(
        self, frame: np.ndarray, *, roi: np.ndarray | None = None, heatmap: bool = False, x_hat: bool = False
    ) -> Inspection: ...


@dataclass(frozen=True)
class Scored:
    """What an engine said of labelled images. An image that shares its product with no other is a product of its own.

    Attributes:
        samples, inspections: the images in order, and the results without heatmaps.
        image_scores: (N,) float32, one per image.
        products, labels: one result per product, in the order of their first images; True = defective.
        product_of: index of each image's product.
        quality: of the heatmaps; None when they were not asked for or cannot be measured, which `notes` explain.
        pixel_images: images that `quality` was measured on.
        notes: sentences on what was left out.
        other_masks: images whose own mask of interest is another than the inspector's.
    """

    samples: tuple[Sample, ...]
    inspections: tuple[Inspection, ...]
    image_scores: np.ndarray
    products: tuple[ProductResult, ...]
    labels: np.ndarray
    product_of: tuple[int, ...]
    quality: PixelQuality | None = None
    pixel_images: int = 0
    notes: tuple[str, ...] = ()
    other_masks: int = 0

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32, one per product."""
        return np.array([product.score for product in self.products], np.float32)

    @property
    def image_labels(self) -> np.ndarray:
        return np.array([sample.defective for sample in self.samples])

    @property
    def patch_scores(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """phi and phi_local of every image's patches."""
        return [i.phi for i in self.inspections], [i.phi_local for i in self.inspections]

    @property
    def rejected(self) -> np.ndarray:
        """(N,) bool, one per product: every decision but `good`."""
        return np.array([product.decision != "good" for product in self.products])

    @property
    def decided(self) -> bool:
        """Whether there are thresholds. Products with fewer patches than k are undecided all the same."""
        return not any(np.isnan(product.threshold) for product in self.products)

    @property
    def undecided(self) -> int:
        """Products that thresholds did not decide about, as they have fewer patches than k."""
        return sum(product.decision == "undecided" for product in self.products) if self.decided else 0


def scored_from_samples(
    inspector: FrameInspector,
    samples: Sequence[Sample],
    *,
    rule: ProductRule | None = None,
    pixels: bool = False,
    roi: np.ndarray | None = None,
    on_progress: OnImages | None = None,
) -> Scored:
    """Inspects every sample.

    Args:
        rule: how the images of a product decide together; None: every image is a product of its own.
        pixels: compare heatmaps with ground truth masks too, at working scale.
        roi: the inspector's own mask of interest, for samples that have none; pixels outside count for nothing.

    Raises:
        InputError: an image or mask cannot be read, does not fit the engine or the image; names the file.
    """
    samples = tuple(samples)
    pixels = pixels and any(sample.mask for sample in samples)
    maps = _Maps(roi) if pixels else None
    found, others = [], 0
    for done, sample in enumerate(samples, start=1):
        frame = read_image(sample.path)
        mask = read_mask(sample.roi, frame.shape[:2]) if sample.roi else None
        try:
            inspection = inspector.inspect(frame, heatmap=pixels, **({} if mask is None else {"roi": mask}))
        except InputError as error:
            raise InputError(f"{sample.path}: {error}") from error
        if maps:
            maps.add(sample, inspection.heatmap, frame.shape[:2], mask)
        others += is_other_mask(mask, roi)
        found.append(replace(inspection, heatmap=None))
        if on_progress:
            on_progress(done)
    groups: dict[str, list[int]] = {}
    names = [(rule and sample.product) or f"/{index}" for index, sample in enumerate(samples)]
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    order = {name: index for index, name in enumerate(groups)}
    product_of = tuple(order[name] for name in names)
    products = [
        rule.product([found[i] for i in group]) if rule else _product_of_image(found[group[0]])
        for group in groups.values()
    ]
    labels = np.array([any(samples[i].defective for i in group) for group in groups.values()])
    scores = [rule.image_score(inspection) if rule else inspection.score for inspection in found]
    scored = Scored(
        samples, tuple(found), np.array(scores, np.float32), tuple(products), labels, product_of, other_masks=others
    )
    return replace(scored, quality=maps.quality, pixel_images=maps.images, notes=maps.notes) if maps else scored


def _product_of_image(inspection: Inspection) -> ProductResult:
    return ProductResult(
        inspection.decision,
        inspection.score,
        inspection.threshold,
        len(inspection.phi),
        int(inspection.defective.sum()),
    )


class _Maps:
    """Heatmaps against ground truth. A defect without a mask, or whose mask is lost at working scale, is left out."""

    def __init__(self, roi: np.ndarray | None) -> None:
        self.roi, self.scores = roi, PixelScores()
        self.images = self.without = self.lost = 0

    def add(self, sample: Sample, heatmap: np.ndarray, frame_px: tuple[int, int], roi: np.ndarray | None) -> None:
        if sample.defective and sample.mask is None:
            self.without += 1
            return
        roi = self.roi if roi is None else roi
        inside = None if roi is None else scaled_mask(roi, *heatmap.shape)
        truth = None
        if sample.mask:
            truth = scaled_mask(read_mask(sample.mask, frame_px), *heatmap.shape)
            if not (truth if inside is None else truth & inside).any():
                self.lost += 1
                return
        self.images += 1
        self.scores.add(heatmap, truth, inside)

    @property
    def quality(self) -> PixelQuality | None:
        return self.scores.quality()

    @property
    def notes(self) -> tuple[str, ...]:
        lines = (
            (self.without, "without a mask: defects for the image metrics, left out of the pixel metrics"),
            (self.lost, "whose mask has no pixel of interest at working scale: left out of the pixel metrics"),
        )
        return tuple(f"{count} defective image{'s' * (count > 1)} {what}" for count, what in lines if count)


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
    result |= {
        "pixel_auroc": quality and quality.auroc,
        "aupro": quality and quality.aupro,
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


def parity_from_scored(engine: Scored, reference: Scored) -> dict[str, Any]:
    """How an engine differs from the reference on the same images, patch by patch."""
    differences = {}
    for name, ours, theirs in zip(("phi", "phi_local"), engine.patch_scores, reference.patch_scores, strict=True):
        difference = np.abs(np.concatenate(ours).astype(np.float64) - np.concatenate(theirs))
        differences[f"{name}_max_abs_diff"] = float(difference.max())
        differences[f"{name}_p99_abs_diff"] = float(np.quantile(difference, 0.99))
    patch_flips = sum(
        int((a.defective != b.defective).sum()) for a, b in zip(engine.inspections, reference.inspections, strict=True)
    )
    return {
        **differences,
        "decision_flips": int((engine.rejected != reference.rejected).sum()),
        "patch_decision_flips": patch_flips,
    }


def rows_from_scored(scored: Scored) -> list[dict[str, Any]]:
    """One row of `COLUMNS` per image; `correct` is empty where an image is undecided by itself."""
    return [
        {
            "image": str(sample.path),
            "kind": sample.kind,
            "product": sample.product or "",
            "decision": inspection.decision,
            "correct": ""
            if inspection.decision == "undecided"
            else (inspection.decision != "good") == sample.defective,
            "score": inspection.score,
            "threshold": inspection.threshold,
            "patches": len(inspection.phi),
            "defective_patches": int(inspection.defective.sum()),
            "phi_max": float(inspection.phi.max()),
            "phi_local_max": float(inspection.phi_local.max()),
        }
        for sample, inspection in zip(scored.samples, scored.inspections, strict=True)
    ]


def evaluated_bundle(
    path: Path,
    samples: Sequence[Sample],
    *,
    against: Path | None = None,
    untrained: bool = True,
    bar: Callable[[str], OnImages] = lambda name: lambda done: None,
) -> tuple[dict[str, Any], Scored]:
    """All that is measured of a bundle on labelled images.

    Args:
        samples: test images, none of them used to make the model or to fit its thresholds.
        against: checkpoint whose network runs in PyTorch beside the engine.
        untrained: report an untrained generator too, where PyTorch is installed.
        bar: gives the progress callback of the pass with this name.

    Returns:
        What `metrics_from_scored`, `gain_from_scored` and `parity_from_scored` say, and the engine's results.

    Raises:
        InputError: images that model or thresholds were made from, or that do not fit.
        BundleError, CheckpointError, EngineError: see `opened_bundle` and `reference_inspector`.
    """
    inspector, bundle = opened_bundle(path)
    with inspector:
        refuse_seen(samples, seen_ids(training_of(bundle)), purpose="metrics")
        refuse_seen(samples, seen_ids(fit_of(bundle)), purpose="metrics", used="to fit these thresholds")
        rule, options = ProductRule.of_bundle(bundle), {"pixels": True, "roi": bundle.roi}
        reference = reference_inspector(bundle, against) if against else None
        baseline = None
        if untrained:
            with contextlib.suppress(ImportError):
                importlib.import_module("torch")
                baseline = untrained_inspector(bundle)
        scored = scored_from_samples(inspector, samples, rule=rule, on_progress=bar("engine"), **options)
    result = metrics_from_scored(scored)
    result["notes"] += [*_mask_notes(bundle, scored), *unknown_images(bundle)]
    if reference:
        expected = scored_from_samples(reference, samples, rule=rule, on_progress=bar("reference"))
        both = result["image_auroc"] is not None
        result["auroc_reference"] = auroc(expected.image_scores, scored.image_labels) if both else None
        result |= parity_from_scored(scored, expected)
    if untrained and not baseline:
        result["notes"].append("the untrained baseline needs PyTorch: pip install 'grd-edge[train]'")
    elif baseline:
        undecided = replace(rule, thresholds=())
        beside = scored_from_samples(baseline, samples, rule=undecided, on_progress=bar("untrained"), **options)
        result |= gain_from_scored(scored, beside)
    return result, scored


def _mask_notes(bundle: Bundle, scored: Scored) -> list[str]:
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


def reference_inspector(bundle: Bundle, checkpoint: Path) -> FrameInspector:
    """A checkpoint's network in PyTorch, deciding as the bundle does.

    Raises:
        CheckpointError: it cannot be read, or belongs to a model that sees other patches than the bundle.
    """
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.engine.torch import TorchInspector

    inspector = TorchInspector.of_bundle(read_checkpoint(checkpoint), bundle)
    config, geometry = inspector.config, bundle.manifest["geometry"]
    seen = (inspector.grid, config.geometry.scale_px, config.model.channels)
    if seen != (bundle.grid, geometry["scale_px"], geometry["channels"]):
        raise CheckpointError(
            f"{checkpoint} was trained on other patches than {bundle.path} inspects; "
            "give the checkpoint that the bundle was built from"
        )
    return inspector


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

    config = bundle.manifest["provenance"].get("config")
    if not isinstance(config, dict):
        raise BundleError(
            f"{bundle.path} does not hold the configuration of its model, so there is no untrained baseline; "
            "evaluate it with --no-untrained"
        )
    k = bundle.decision["k"] if bundle.decision else 1
    checkpoint = untrained_checkpoint(config_from_mapping(config))
    return TorchInspector(checkpoint, k=k, regions=bundle.regions, roi=bundle.roi)
