"""Images to thresholds, into a bundle, with the engine that ships. Never imports torch: it runs on the device, too.

Source: docs/method.md, section 8; docs/bundle.md.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from grd_edge import bundle as bundles
from grd_edge.bundle import Bundle
from grd_edge.bundle_schema import decision_regions
from grd_edge.data.dataset import Sample, content_ids, distinct_products, images_sha256, product_key, refuse_seen
from grd_edge.data.images import read_image, read_mask
from grd_edge.decide import checked_agreement, checked_k, product_score
from grd_edge.errors import InputError
from grd_edge.patches import working_size
from grd_edge.regions import Regions
from grd_edge.runtime import Inspector
from grd_edge.shipped import PER_IMAGE, is_other_mask, opened_bundle, seen_ids, training_of
from grd_edge.thresholds import Objective, checked_alpha, checked_objective, fit_good_only, fit_labelled

SEEN_IMAGES = 10_000  # of a fit: their ids take 0.2 of the 1 MiB that decision.json may have


def recalibrated_bundle(
    path: Path,
    samples: Sequence[Sample],
    *,
    alpha: float = 0.01,
    k: int | None = None,
    run_agreement: float | None = None,
    regions: Regions | None = None,
    target: str = "cpu",
    method: Literal["good_only", "labelled"] = "good_only",
    objective: Objective = "balanced_accuracy",
    beta: float = 1.0,
    precision: float | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Bundle:
    """Fits thresholds with the engine that ships, and puts them into the bundle; on failure it stays as it was.

    The statistic is that of a product: all patches of all its images (`Sample.product`). Products of the same contents
    count once, as copies certify nothing; `fit.duplicates` says how many were left out.

    Args:
        samples: images that were used neither for training nor for testing: good ones, or good and defective ones.
        alpha: false-reject rate per product that is asked for; for `good_only`.
        k, run_agreement, regions: of the decision; None: what the bundle has, else 1, 0.7 and the whole frame.
        target: whose engine scores the images, in the precision that the bundle chose for it.
        method: `good_only`, or `labelled`, which takes one region: a label does not say where a defect is.
        objective, beta, precision: as in `fit_labelled`.

    Raises:
        InputError: no images, images that the model was made from, products without a patch in some region, a
            defective image for `good_only`, one content under two labels, or scores that cannot be used.
    """
    inspector, bundle = opened_bundle(path, decide=False, target=target)
    with inspector:
        kept = bundle.decision or {"k": 1, "run_agreement": 0.7}
        k = checked_k(kept["k"] if k is None else k)
        agreement = checked_agreement(kept["run_agreement"] if run_agreement is None else run_agreement)
        regions = bundle.regions if regions is None else regions
        if method not in ("good_only", "labelled"):
            raise InputError(f"the method of the fit is {method!r}; expected 'good_only' or 'labelled'")
        if method == "labelled" and len(regions.regions) > 1:
            raise InputError(
                f"a labelled fit takes one region and this bundle has {', '.join(regions.names)}, as a label does not "
                "say in which of them a defect is; fit on good images, or use one region"
            )
        if method == "good_only" and (defective := [sample for sample in samples if sample.defective]):
            raise InputError(f"{defective[0].path} is defective and the fit takes good images only; use a labelled fit")
        # What the fit would refuse after minutes of scoring.
        checked_alpha(alpha) if method == "good_only" else checked_objective(objective, beta, precision)
        refuse_seen(samples, seen_ids(training_of(bundle)), purpose="thresholds")
        samples, duplicates = distinct_products(samples)
        products = _product_patches(inspector, bundle, samples, regions, on_progress)
        version = inspector.engine_version
    scores, indices = [product.scores for product in products], [product.regions for product in products]
    if method == "labelled":
        labels = np.array([product.defective for product in products])
        fit = fit_labelled(
            np.array([product_score(patches, k) for patches in scores], np.float32),
            labels,
            objective=objective,
            beta=beta,
            precision=precision,
            k=k,
        )
        counted = {"good": int((~labels).sum()), "defective": int(labels.sum())}
    else:
        fit = fit_good_only(scores, alpha=alpha, k=k, regions=indices)
        counted = {}
    details: dict[str, Any] = {
        **fit.to_json(),
        **counted,
        "images": len(samples),
        "duplicates": duplicates,
        "regions": list(regions.names),
        "roi": _roi_of_fit(bundle, [product.sealed_roi for product in products]),
        "engine": {"target": target, "precision": bundle.manifest["precision"]["chosen"][target], "version": version},
        "seen": content_ids(samples)[:SEEN_IMAGES],
        "images_sha256": images_sha256(samples),
        "grd_edge": metadata.version("grd-edge"),
        "machine": platform.machine(),
        "fitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    decision = {
        **decision_regions(regions, fit.thresholds),
        "k": k,
        "run_agreement": agreement,
        "fit": details,
    }
    return bundles.write_decision(path, decision, of=bundle)


def _roi_of_fit(bundle: Bundle, sealed_roi: Sequence[bool]) -> str:
    """`roi` of a fit."""
    return PER_IMAGE if not all(sealed_roi) else "none" if bundle.roi is None else "bundle"


class _Product(NamedTuple):
    """Deciding scores of all inspected patches of a product, and their regions.

    `sealed_roi`: whether what was of interest is what the bundle says.
    """

    scores: np.ndarray
    regions: np.ndarray
    defective: bool
    sealed_roi: bool


def _product_patches(
    inspector: Inspector,
    bundle: Bundle,
    samples: Sequence[Sample],
    regions: Regions,
    on_progress: Callable[[int], None] | None,
) -> list[_Product]:
    """What `fit_good_only` and `fit_labelled` take, in the order of the products' first images."""
    geometry, decides = bundle.manifest["geometry"], bundle.manifest["score"]["decides"]
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    of_product: dict[str, list[Sample]] = {}
    others: set[str] = set()
    sealed = bundle.roi
    for done, sample in enumerate(samples, start=1):
        frame = read_image(sample.path)
        h, w = frame.shape[:2]
        try:
            regions.check_frame(h, w)
            mask = read_mask(sample.roi, (h, w)) if sample.roi else None
            inspection = inspector.inspect(frame, roi=mask)
        except InputError as error:
            raise InputError(f"{sample.path}: {error}") from error
        scaled = working_size(h, w, geometry["scale_px"])
        index = regions.of_patches(inspection.positions, geometry["patch_h"], geometry["patch_w"], *scaled)
        scores = inspection.phi if decides == "phi" else inspection.phi_local
        key = product_key(sample)
        if is_other_mask(mask, sealed):
            others.add(key)
        found.setdefault(key, []).append((scores[index >= 0], index[index >= 0]))
        of_product.setdefault(key, []).append(sample)
        if on_progress:
            on_progress(done)
    products = []
    for key, parts in found.items():
        scores, index = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        missing = set(range(len(regions.regions))) - set(index.tolist())
        if missing:
            raise InputError(
                f"{of_product[key][0].path}: the product has no inspected patch in region "
                f"{regions.names[min(missing)]!r}, so it can have no threshold; correct the regions or the masks"
            )
        defective = any(sample.defective for sample in of_product[key])
        products.append(_Product(scores, index, defective, key not in others))
    return products
