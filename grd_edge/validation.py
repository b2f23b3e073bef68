"""Early stop: good patches of the validation split against the same patches with fixed synthetic defects.

Source: docs/method.md, sections 3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.data.frames import FrameStore, batch_at, grid_from_config
from grd_edge.data.perturb import perturb
from grd_edge.losses import contextual_loss
from grd_edge.metrics import auroc
from grd_edge.models.generator import Reconstructor
from grd_edge.models.segmentor import SegmentedReconstructor
from grd_edge.score import score_patches_torch
from grd_edge.torch_ops import score_patches

PATCHES = 64
SEED = 20260319  # not the run's: two runs are measured on the same defects


@dataclass(frozen=True, order=True)
class Quality:
    """How well synthetic defects stand out (AUROC of the deciding score); ties go to the better reconstruction."""

    auroc: float
    minus_contextual: float

    @property
    def contextual(self) -> float:
        return -self.minus_contextual


class Validator:
    """Measures a reconstructor, always on the same patches: good ones, and each of them once more with a defect."""

    def __init__(self, samples: Sequence[Sample], config: Config) -> None:
        self.config = config
        batch = min(PATCHES, config.train.batch)
        store, grid = FrameStore(samples, config), grid_from_config(config)
        steps = -(-PATCHES // batch)
        good = [batch_at(store, grid, seed=SEED, step=step, batch=batch) for step in range(steps)]
        always = config.perturbation.model_copy(update={"probability": 1.0})
        random = torch.Generator().manual_seed(SEED)
        self.pairs = [(x, perturb(x, always, random).x_noisy) for x in good]

    @torch.no_grad()
    def __call__(self, net: Reconstructor) -> Quality:
        """`net` in evaluation mode, on any device."""
        device, segmented = next(net.parameters()).device, isinstance(net, SegmentedReconstructor)
        scores: dict[bool, list[np.ndarray]] = {False: [], True: []}
        contextual = []
        for pair in self.pairs:
            for defective, x in enumerate(pair):
                x = x.to(device)
                x_hat = net.reconstruct(x) if segmented else net(x)
                if not defective:
                    contextual.append(float(contextual_loss(x, x_hat, self.config.loss)))
                score = net.scores(x, x_hat)[0].cpu().numpy() if segmented else self._score(x, x_hat)
                scores[bool(defective)].append(score)
        good, bad = (np.concatenate(scores[defective]) for defective in (False, True))
        value = auroc(np.concatenate([good, bad]), np.repeat([False, True], [len(good), len(bad)]))
        return Quality(value, -float(np.mean(contextual)))

    def _score(self, x: torch.Tensor, x_hat: torch.Tensor) -> np.ndarray:
        score = self.config.score
        options = {"window": score.window, "local_window_px": score.local_window_px}
        if x.device.type == "cpu":
            phi, phi_local, *_ = score_patches(x, x_hat, heatmap=False, **options)
        else:
            phi, phi_local, _ = score_patches_torch(x, x_hat, **options)
        return (phi if score.decides == "phi" else phi_local).cpu().numpy()
