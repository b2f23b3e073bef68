"""Scores of labelled images, and how well one engine agrees with another.

An inspector is anything with `inspect(frame) -> Inspection`: the native one or a reference of `grd_edge.engine`.
Source: docs/method.md, sections 5 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from grd_edge.data.dataset import Sample
from grd_edge.data.images import read_image
from grd_edge.errors import InputError
from grd_edge.metrics import auroc, average_precision, balanced_accuracy, bootstrap_interval
from grd_edge.runtime import Inspection


class FrameInspector(Protocol):
    def inspect(self, frame: np.ndarray, *, heatmap: bool = False, x_hat: bool = False) -> Inspection: ...


@dataclass(frozen=True)
class Scored:
    """What an engine said of N images, in the order of the samples.

    Attributes:
        scores: (N,) float32 product scores; labels: (N,) bool, True = defective.
        inspections: the results themselves, without heatmaps.
    """

    scores: np.ndarray
    labels: np.ndarray
    inspections: tuple[Inspection, ...]

    @property
    def patch_scores(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """phi and phi_local of every image's patches."""
        return [i.phi for i in self.inspections], [i.phi_local for i in self.inspections]

    @property
    def rejected(self) -> np.ndarray:
        """(N,) bool: every decision but `good`."""
        return np.array([i.decision != "good" for i in self.inspections])


def scored_from_samples(
    inspector: FrameInspector, samples: Sequence[Sample], *, on_progress: Callable[[int], None] | None = None
) -> Scored:
    """Inspects every sample.

    Raises:
        InputError: an image cannot be read or does not fit the engine; names the file.
    """
    found = []
    for done, sample in enumerate(samples, start=1):
        frame = read_image(sample.path)
        try:
            found.append(inspector.inspect(frame))
        except InputError as error:
            raise InputError(f"{sample.path}: {error}") from error
        if on_progress:
            on_progress(done)
    scores = np.array([inspection.score for inspection in found], np.float32)
    return Scored(scores, np.array([sample.defective for sample in samples]), tuple(found))


def metrics_from_scored(scored: Scored) -> dict[str, Any]:
    """Image metrics on continuous scores with 95 % intervals; decisions only where there are thresholds."""
    low, high = bootstrap_interval(auroc, scored.scores, scored.labels)
    decided = all(inspection.decision != "undecided" for inspection in scored.inspections)
    rejected, labels = scored.rejected, scored.labels
    return {
        "images": len(labels),
        "defective": int(labels.sum()),
        "image_auroc": float(auroc(scored.scores, labels)),
        "image_auroc_ci95": [float(low), float(high)],
        "image_ap": float(average_precision(scored.scores, labels)),
        "balanced_accuracy": float(balanced_accuracy(rejected, labels)) if decided else None,
        "false_reject_rate": float(rejected[~labels].mean()) if decided else None,
        "escape_rate": float((~rejected[labels]).mean()) if decided else None,
    }


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
