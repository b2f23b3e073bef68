"""Decisions about products of several images, and about runs of several acquisitions. Never imports torch.

The images of a product are inspected one by one; its decision counts the patches of all of them.

Source: docs/method.md, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.decide import frame_decision, product_decision, product_score, run_decision
from grd_edge.runtime import Inspection

# `error`: an image could not be inspected. Everything but `good` must be rejected.
Decision = Literal["good", "defective", "undecided", "error"]


@dataclass(frozen=True)
class ProductResult:
    """What is said of a product; the fields are those of `grd_edge.runtime.Inspection`, over all its images."""

    decision: Decision
    score: float
    threshold: float
    patches: int
    defective_patches: int


@dataclass(frozen=True)
class ProductRule:
    """How patches decide about products, and products about runs, as a bundle says it.

    Attributes:
        decides: `phi` or `phi_local`.
        thresholds: one per region; empty: nothing is decided.
        k: patches that make a product defective.
        run_agreement: share of the acquisitions that must agree.
    """

    decides: str
    thresholds: tuple[float, ...] = ()
    k: int = 1
    run_agreement: float = 0.7

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ProductRule:
        decides = bundle.manifest["score"]["decides"]
        if bundle.decision is None:
            return cls(decides)
        return cls(decides, bundle.thresholds, bundle.decision["k"], bundle.decision["run_agreement"])

    def deciding(self, inspection: Inspection) -> np.ndarray:
        """(N,) float32, the patch scores that are compared with thresholds."""
        return inspection.phi if self.decides == "phi" else inspection.phi_local

    def image_score(self, inspection: Inspection) -> float:
        """Score of one image: the engine's, which without thresholds knows no k."""
        if inspection.decision != "undecided":
            return inspection.score
        scores = self.deciding(inspection)
        return product_score(scores, min(self.k, len(scores)))

    def product(self, inspections: Sequence[Inspection | None]) -> ProductResult:
        """Decision about a product from its images; None stands for an image that could not be inspected.

        A product with such an image is defective if the others show k defective patches, else an `error`.

        Raises:
            InputError: fewer patches than k.
        """
        seen = [inspection for inspection in inspections if inspection is not None]
        if not seen:
            return ProductResult("error", float("nan"), float("nan"), 0, 0)
        scores = np.concatenate([self.deciding(inspection) for inspection in seen])
        # The decision comes from the engine's own patch decisions, so that it cannot differ from the line's.
        defective = np.concatenate([inspection.defective for inspection in seen])
        if any(inspection.decision == "undecided" for inspection in seen) or not self.thresholds:
            decision, score, threshold = "undecided", product_score(scores, self.k), float("nan")
        else:
            regions = np.concatenate([inspection.regions for inspection in seen])
            _, score, threshold, _ = frame_decision(scores, self.thresholds, regions, self.k)
            decision = "defective" if product_decision(defective, self.k) else "good"
        if len(seen) < len(inspections) and decision != "defective":
            decision = "error"
        return ProductResult(decision, score, threshold, len(scores), int(defective.sum()))

    def run(self, decisions: Sequence[Decision]) -> str:
        """Decision about a run from its acquisitions: `good`, `defective`, `inconsistent`, or `undecided`.

        An `error` agrees with neither side.

        Raises:
            InputError: no acquisitions.
        """
        if "undecided" in decisions:
            return "undecided"
        if run_decision([decision != "good" for decision in decisions], self.run_agreement) == "good":
            return "good"
        found = run_decision([decision == "defective" for decision in decisions], self.run_agreement)
        return "defective" if found == "defective" else "inconsistent"
