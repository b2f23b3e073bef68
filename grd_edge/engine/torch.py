"""The PyTorch reference: the same frames to the same decisions, in eager FP32.

Source: docs/method.md, sections 5 to 7.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from grd_edge.checkpoint import Checkpoint
from grd_edge.data.frames import grid_from_config
from grd_edge.decide import patch_decisions, product_decision, product_score
from grd_edge.patches import prepare_frame
from grd_edge.runtime import Inspection
from grd_edge.score import score_patches_torch


class TorchInspector:
    """Same interface as `grd_edge.runtime.Inspector`, on the network of a checkpoint.

    Args:
        checkpoint: trained weights and the configuration they belong to.
        threshold: of the one region; None leaves every frame undecided.
        k: patches that make a product defective.
    """

    def __init__(self, checkpoint: Checkpoint, *, threshold: float | None = None, k: int = 1) -> None:
        self.config = checkpoint.config
        self.net = checkpoint.reconstructor()
        self.grid = grid_from_config(self.config)
        self.threshold, self.k = threshold, k

    @torch.inference_mode()
    def inspect(self, frame: np.ndarray, *, heatmap: bool = False, x_hat: bool = False) -> Inspection:
        """Scores one frame and decides; see `grd_edge.runtime.Inspector.inspect`."""
        config = self.config
        start = time.perf_counter()
        image = prepare_frame(frame, scale_px=config.geometry.scale_px, channels=config.model.channels)
        x = torch.from_numpy(self.grid.cut(image))
        cut = time.perf_counter()
        rebuilt = self.net(x)
        inferred = time.perf_counter()
        scores = score_patches_torch(
            x, rebuilt, window=config.score.window, local_window_px=config.score.local_window_px
        )
        phi, phi_local = scores.phi.numpy(), scores.phi_local.numpy()
        deciding = phi if config.score.decides == "phi" else phi_local
        if self.threshold is None:
            defective, decision = np.zeros(len(phi), bool), "undecided"
        else:
            defective = patch_decisions(deciding, self.threshold)
            decision = "defective" if product_decision(defective, self.k) else "good"
        score = product_score(deciding, self.k)
        maps = self.grid.stitch(scores.heatmap.numpy(), *image.shape[1:]) if heatmap else None
        end = time.perf_counter()
        spans = {"cut": cut - start, "infer": inferred - cut, "score": end - inferred, "total": end - start}
        return Inspection(
            decision=decision,
            score=score,
            threshold=float("nan") if self.threshold is None else self.threshold,
            positions=self.grid.positions(*image.shape[1:]),
            phi=phi,
            phi_local=phi_local,
            defective=defective,
            heatmap=maps,
            x_hat=rebuilt.numpy() if x_hat else None,
            times_ms={stage: 1e3 * seconds for stage, seconds in spans.items()},
        )
