"""The patches that precisions are judged by: good ones of the training, and the same with synthetic defects.

The calibration split stays out of it: thresholds are certified only on images that had no part in choosing the engine.
Source: docs/method.md, sections 3 and 8; docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.data.perturb import perturb
from grd_edge.errors import InputError

GOOD_PATCHES = 256
DEFECTIVE_PATCHES = 384
SEED = 20260326


@dataclass(frozen=True)
class Selection:
    """Patches (N, patch_h, patch_w, C) uint8.

    Attributes:
        good: of good images, in order.
        image: (N,) index of the image that each good patch is from.
        defective: good patches with a synthetic defect each.
    """

    good: np.ndarray
    image: np.ndarray
    defective: np.ndarray

    @property
    def patches(self) -> np.ndarray:
        return np.concatenate([self.good, self.defective])

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool of `patches`, True = defective."""
        return np.repeat([False, True], [len(self.good), len(self.defective)])

    def images(self) -> list[np.ndarray]:
        """Good patches of each image as the network sees them, (n, C, patch_h, patch_w) float32 in [0, 1]."""
        unit = unit_patches(self.good)
        return [unit[self.image == index] for index in np.unique(self.image)]

    def part(self, count: int) -> Selection:
        """About `count` of the good and as many of the defective patches, spread evenly."""
        good, defective = (spread(len(patches), count) for patches in (self.good, self.defective))
        return Selection(self.good[good], self.image[good], self.defective[defective])


def unit_patches(patches: np.ndarray) -> np.ndarray:
    """Patches (N, patch_h, patch_w, C) uint8 as the network sees them, (N, C, patch_h, patch_w) float32 in [0, 1]."""
    return patches.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255)


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` indices below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))


def selection_from_samples(samples: Sequence[Sample], config: Config) -> Selection:
    """Patches of good images, as many of each image, and fixed synthetic defects in them.

    Raises:
        InputError: no images, or one that cannot be used.
    """
    if not samples:
        raise InputError("there are no good images to judge precisions by; give the data that the model was trained on")
    chosen = [samples[index] for index in spread(len(samples), GOOD_PATCHES)]
    grid, per_image = grid_from_config(config), max(1, GOOD_PATCHES // len(chosen))
    parts = []
    for sample in chosen:
        patches = grid.cut(read_frame(sample, config))
        parts.append(patches[spread(len(patches), per_image)])
    image = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    good = torch.from_numpy(np.concatenate(parts))
    always = config.perturbation.model_copy(update={"probability": 1.0})
    random = torch.Generator().manual_seed(SEED)
    rounds = -(-DEFECTIVE_PATCHES // len(good))
    defective = torch.cat([perturb(good, always, random).x_noisy for _ in range(rounds)])[:DEFECTIVE_PATCHES]
    return Selection(_bytes(good), image, _bytes(defective))


def _bytes(patches: torch.Tensor) -> np.ndarray:
    return (255 * patches).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
