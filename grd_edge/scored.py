"""What engines say of labelled images: decisions, scores, and heatmaps held against ground truth.

An inspector is anything with `inspect(frame) -> Inspection`: the native one or a reference of `grd_edge.engine`.
Source: docs/method.md, sections 5 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from grd_edge.data.dataset import Sample
from grd_edge.data.images import read_image, read_mask
from grd_edge.errors import InputError
from grd_edge.pixel_metrics import ImageCounts, PixelQuality, PixelScores
from grd_edge.products import ProductResult, ProductRule
from grd_edge.regions import scaled_mask
from grd_edge.runtime import Inspection
from grd_edge.shipped import is_other_mask

OnImages = Callable[[int], None]
OnFrame = Callable[[int, np.ndarray, Sequence[Inspection]], None]

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
        pixel_counts: the heatmaps' values image by image, where they were compared.
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
    pixel_counts: ImageCounts | None = None
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
    return scored_together((inspector,), samples, rule=rule, pixels=pixels, roi=roi, on_progress=on_progress)[0]


def scored_together(
    inspectors: Sequence[FrameInspector],
    samples: Sequence[Sample],
    *,
    rule: ProductRule | None = None,
    pixels: bool = False,
    roi: np.ndarray | None = None,
    on_frame: OnFrame | None = None,
    shows: Literal["x_hat", "heatmap"] = "x_hat",
    on_progress: OnImages | None = None,
) -> tuple[Scored, ...]:
    """Inspects every sample with every inspector before the next one, and says what each said.

    Args:
        rule, pixels, roi: as in `scored_from_samples`.
        on_frame: called with the sample's index, its frame and the inspections with what `shows` names. `Scored` keeps
            none of these.

    Raises:
        InputError: as `scored_from_samples`.
    """
    samples = tuple(samples)
    pixels = pixels and any(sample.mask for sample in samples)
    maps = [_Maps(roi) for _ in inspectors] if pixels else []
    asked = {"heatmap": pixels} | ({shows: True} if on_frame else {})
    found: list[list[Inspection]] = [[] for _ in inspectors]
    others = 0
    for index, sample in enumerate(samples):
        frame = read_image(sample.path)
        mask = read_mask(sample.roi, frame.shape[:2]) if sample.roi else None
        masked = {} if mask is None else {"roi": mask}
        try:
            seen = [inspector.inspect(frame, **asked, **masked) for inspector in inspectors]
        except InputError as error:
            raise InputError(f"{sample.path}: {error}") from error
        for each, inspection in zip(maps, seen, strict=False):  # no maps: nothing to do
            each.add(sample, inspection.heatmap, frame.shape[:2], mask)
        others += is_other_mask(mask, roi)
        if on_frame:
            on_frame(index, frame, seen)
        for kept, inspection in zip(found, seen, strict=True):
            kept.append(replace(inspection, heatmap=None, x_hat=None))
        if on_progress:
            on_progress(index + 1)
    results = [replace(_decided(samples, inspections, rule), other_masks=others) for inspections in found]
    if not maps:
        return tuple(results)
    return tuple(
        replace(scored, quality=each.quality, pixel_images=each.images, pixel_counts=each.counts, notes=each.notes)
        for scored, each in zip(results, maps, strict=True)
    )


def _decided(samples: tuple[Sample, ...], found: list[Inspection], rule: ProductRule | None) -> Scored:
    """What the inspections of the samples say of images and products."""
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
    return Scored(samples, tuple(found), np.array(scores, np.float32), tuple(products), labels, product_of)


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
        self.roi, self.scores = roi, PixelScores(per_image=True)
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
    def counts(self) -> ImageCounts | None:
        return self.scores.counts()

    @property
    def notes(self) -> tuple[str, ...]:
        lines = (
            (self.without, "without a mask: defects for the image metrics, left out of the pixel metrics"),
            (self.lost, "whose mask has no pixel of interest at working scale: left out of the pixel metrics"),
        )
        return tuple(f"{count} defective image{'s' * (count > 1)} {what}" for count, what in lines if count)


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
