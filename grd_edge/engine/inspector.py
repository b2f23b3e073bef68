"""A reference from frame to decision: cutting, scoring and deciding as defined, around any engine's reconstruction.

Source: docs/method.md, sections 5 to 7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.decide import frame_decision
from grd_edge.heads import RECONSTRUCTION, SCORE_MAP, scores_from_maps
from grd_edge.patches import PatchGrid, prepare_frame
from grd_edge.regions import WHOLE_FRAME, Regions, selected_patches
from grd_edge.runtime import Inspection
from grd_edge.score import PatchScores, Window, score_patches_torch


def scores_in_torch(x: np.ndarray, x_hat: np.ndarray, **options: Any) -> PatchScores:
    """`score_patches_torch` on arrays; `options` are its."""
    import torch

    with torch.inference_mode():
        scores = score_patches_torch(torch.from_numpy(x), torch.from_numpy(x_hat), **options)
        return PatchScores(*(values.numpy() for values in scores))


class ReferenceInspector:
    """Same interface as `grd_edge.runtime.Inspector`, with the Python definitions of all but the network.

    Args:
        reconstruct: patches (N, C, patch_h, patch_w) float32 to what the network yields for them, as `head` says.
        version: name and version of what reconstructs.
        grid, scale_px, channels: how a frame becomes patches.
        decides, window, local_window_px: how patches are scored, and by which score they are decided.
        threshold: one number per region, a single one for the one region; None leaves every frame undecided.
        k: patches that make a product defective.
        regions: what `threshold` belongs to.
        roi: (H, W) mask of interest of every frame, nonzero = of interest; None: the whole frame.
        score: scores reconstructions as `score_patches_f64` does, on float32 arrays.
        head: what `reconstruct` yields, of `grd_edge.heads`.
        close: gives back what `reconstruct` holds.
    """

    def __init__(
        self,
        reconstruct: Callable[[np.ndarray], np.ndarray],
        version: str,
        *,
        grid: PatchGrid,
        scale_px: int | None,
        channels: int,
        decides: str,
        window: Window,
        local_window_px: int,
        threshold: float | Sequence[float] | None = None,
        k: int = 1,
        regions: Regions = WHOLE_FRAME,
        roi: np.ndarray | None = None,
        score: Callable[..., PatchScores] = scores_in_torch,
        head: str = RECONSTRUCTION,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.head = head
        self.reconstruct, self.engine_version = reconstruct, version
        self.grid, self.scale_px, self.channels = grid, scale_px, channels
        self.decides, self.window, self.local_window_px = decides, window, local_window_px
        self.threshold, self.k, self.regions, self.roi = threshold, k, regions, roi
        self.score, self.close = score, close

    def __enter__(self) -> ReferenceInspector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def inspect(
        self, frame: np.ndarray, *, roi: np.ndarray | None = None, heatmap: bool = False, x_hat: bool = False
    ) -> Inspection:
        """Scores one frame and decides; see `grd_edge.runtime.Inspector.inspect`."""
        start = time.perf_counter()
        image = prepare_frame(frame, scale_px=self.scale_px, channels=self.channels)
        roi = self.roi if roi is None else roi
        chosen = selected_patches(self.grid, frame.shape[:2], self.scale_px, self.regions, roi)
        x = self.grid.cut(image)[chosen.index]
        cut = time.perf_counter()
        rebuilt = self.reconstruct(x)
        inferred = time.perf_counter()
        if self.head == SCORE_MAP:
            scores = scores_from_maps(rebuilt, chosen.masks)
        else:
            how = {"window": self.window, "local_window_px": self.local_window_px}
            scores = self.score(x, rebuilt, **how, roi=chosen.masks)
        phi, phi_local = scores.phi, scores.phi_local
        deciding = phi if self.decides == "phi" else phi_local
        decided = frame_decision(deciding, self.threshold, chosen.regions, self.k)
        positions = self.grid.positions(*image.shape[1:])[chosen.index]
        maps = self.grid.stitch(scores.heatmap, *image.shape[1:], positions=positions) if heatmap else None
        end = time.perf_counter()
        spans = {"cut": cut - start, "infer": inferred - cut, "score": end - inferred, "total": end - start}
        return Inspection(
            decision=decided.decision,
            score=decided.score,
            threshold=decided.threshold,
            positions=positions,
            phi=phi,
            phi_local=phi_local,
            defective=decided.defective,
            regions=chosen.regions,
            region_names=self.regions.names,
            heatmap=maps if maps is None else maps[0],
            x_hat=rebuilt if x_hat else None,
            times_ms={stage: 1e3 * seconds for stage, seconds in spans.items()},
        )


def geometry_of_bundle(bundle: Bundle) -> dict[str, Any]:
    """Arguments of `ReferenceInspector` for how a bundle cuts and scores."""
    geometry = bundle.manifest["geometry"]
    return {
        "grid": bundle.grid,
        "scale_px": geometry["scale_px"],
        "channels": geometry["channels"],
        "head": bundle.manifest["head"],
        **bundle.manifest["score"],
    }


def decision_of_bundle(bundle: Bundle) -> dict[str, Any]:
    """Arguments of `ReferenceInspector` that make it decide as a bundle does."""
    if bundle.decision is None:
        return {"roi": bundle.roi}
    return {
        "threshold": bundle.thresholds,
        "k": bundle.decision["k"],
        "regions": bundle.regions,
        "roi": bundle.roi,
    }
