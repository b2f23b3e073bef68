"""The PyTorch reference: the same frames to the same decisions, in eager FP32.

Source: docs/method.md, sections 5 to 7.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from grd_edge.bundle import Bundle
from grd_edge.checkpoint import Checkpoint
from grd_edge.data.frames import grid_from_config
from grd_edge.decide import frame_decision
from grd_edge.patches import prepare_frame
from grd_edge.regions import WHOLE_FRAME, Regions, selected_patches
from grd_edge.runtime import Inspection
from grd_edge.score import score_patches_torch


class TorchInspector:
    """Same interface as `grd_edge.runtime.Inspector`, on the network of a checkpoint.

    Args:
        checkpoint: trained weights and the configuration they belong to.
        threshold: one number per region, a single one for the one region; None leaves every frame undecided.
        k: patches that make a product defective.
        regions: what `threshold` belongs to.
        roi: (H, W) mask of interest of every frame, nonzero = of interest; None: the whole frame.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threshold: float | Sequence[float] | None = None,
        k: int = 1,
        regions: Regions = WHOLE_FRAME,
        roi: np.ndarray | None = None,
    ) -> None:
        self.config = checkpoint.config
        self.net = checkpoint.reconstructor()
        self.grid = grid_from_config(self.config)
        self.threshold, self.k, self.regions, self.roi = threshold, k, regions, roi

    @classmethod
    def of_bundle(cls, checkpoint: Checkpoint, bundle: Bundle) -> TorchInspector:
        """One that decides as a bundle does, with its thresholds, regions and mask of interest."""
        if bundle.decision is None:
            return cls(checkpoint, roi=bundle.roi)
        return cls(
            checkpoint, threshold=bundle.thresholds, k=bundle.decision["k"], regions=bundle.regions, roi=bundle.roi
        )

    @torch.inference_mode()
    def inspect(
        self, frame: np.ndarray, *, roi: np.ndarray | None = None, heatmap: bool = False, x_hat: bool = False
    ) -> Inspection:
        """Scores one frame and decides; see `grd_edge.runtime.Inspector.inspect`."""
        config = self.config
        start = time.perf_counter()
        image = prepare_frame(frame, scale_px=config.geometry.scale_px, channels=config.model.channels)
        roi = self.roi if roi is None else roi
        chosen = selected_patches(self.grid, frame.shape[:2], config.geometry.scale_px, self.regions, roi)
        x = torch.from_numpy(self.grid.cut(image)[chosen.index])
        cut = time.perf_counter()
        rebuilt = self.net(x)
        inferred = time.perf_counter()
        scores = score_patches_torch(
            x, rebuilt, window=config.score.window, local_window_px=config.score.local_window_px, roi=chosen.masks
        )
        phi, phi_local = scores.phi.numpy(), scores.phi_local.numpy()
        deciding = phi if config.score.decides == "phi" else phi_local
        decided = frame_decision(deciding, self.threshold, chosen.regions, self.k)
        positions = self.grid.positions(*image.shape[1:])[chosen.index]
        maps = self.grid.stitch(scores.heatmap.numpy(), *image.shape[1:], positions=positions) if heatmap else None
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
            x_hat=rebuilt.numpy() if x_hat else None,
            times_ms={stage: 1e3 * seconds for stage, seconds in spans.items()},
        )
