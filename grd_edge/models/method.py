"""The contract of a method that scores patches itself: one class, fitted on good patches, exported as one graph.

A method is fitted in four steps: `load_pretrained`, `begin` (statistics of good patches), a loop of `loss` (where
`groups` names parameters), `finish` (what is made of good patches afterwards: a memory bank, the scale of the maps).
What it holds then, its `state_dict`, is the checkpoint; `PackedScores` of it is what is exported.

Source: docs/design/methods.md.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from grd_edge.config import Config
from grd_edge.errors import ConfigError

# Method -> where its class is. The generator has a road of its own: its reconstruction is scored by the kernels.
METHODS = {
    "draem": "grd_edge.models.draem:Draem",
    "dsr": "grd_edge.models.dsr:Dsr",
    "supersimplenet": "grd_edge.models.supersimplenet:SuperSimpleNet",
    "generalad": "grd_edge.models.generalad:GeneralAd",
    "patchcore": "grd_edge.models.patchcore:PatchCore",
    "deepsvdd": "grd_edge.models.deepsvdd:DeepSvdd",
    "kdad": "grd_edge.models.kdad:Kdad",
    "efficientad": "grd_edge.models.efficientad:EfficientAd",
}

STATISTICS_PATCHES = 512


@dataclass(frozen=True)
class GoodPatches:
    """The good patches that a method is fitted on.

    Attributes:
        every: all patches of the training images, on the grid of the configuration, unchanged, in batches
            (B, C, patch_h, patch_w) float32 of at most `train.batch`, always in the same order. It may be called again.
        drawn: training batch of a step, at random positions and augmented as the configuration says; a function of
            the seed and the step.
        note: tells the user a remark in a sentence.
    """

    every: Callable[[], Iterator[torch.Tensor]]
    drawn: Callable[[int], torch.Tensor]
    note: Callable[[str], None] = lambda text: None

    def spread(self, most: int = STATISTICS_PATCHES) -> Iterator[torch.Tensor]:
        """Some of `every()`, in batches as large, for statistics of cells: every second one, as often as needed.

        Args:
            most: at most so many patches are left, and at least half as many; all where there are no more.
        """
        kept: list[torch.Tensor] = []
        step, seen, size = 1, 0, 1
        for batch in self.every():
            size = max(size, len(batch))
            for patch in batch:
                if seen % step == 0:
                    kept.append(patch.clone())
                seen += 1
                if len(kept) > most:
                    kept, step = kept[::2], 2 * step
        return (torch.stack(kept[start : start + size]) for start in range(0, len(kept), size))


class Method(nn.Module):
    """A network with its way to be fitted. Construction is cheap: nothing is read, weights are random.

    Attributes:
        provenance: plain data that goes into the checkpoint, by ingredient: which weights a backbone has and whose they
            are; `substitute` of an ingredient says what stands in its place where the paper's was not at hand.
        stepped: whether the least change of a patch can move what it yields by a step, as nearest codes do.
    """

    stepped = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}

    @abstractmethod
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (N, C, patch_h, patch_w) float32 in [0, 1] -> scores (N,) and maps (N, 1, patch_h, patch_w).

        Larger is more anomalous; nothing is bounded. Called in evaluation mode, and exported to ONNX with a free N:
        operators that OpenVINO and TensorRT take, no shape that depends on values.
        """

    def load_pretrained(self) -> None:
        """Reads pretrained weights and notes their source in `provenance`.

        Raises:
            ConfigError: weights that are missing, or of another network.
        """

    def begin(self, patches: GoodPatches) -> None:
        """Statistics of good patches, before the first step."""

    def groups(self) -> list[dict[str, Any]]:
        """Groups of parameters for Adam; `share` of each is its part of `optimizer.lr`. Empty: nothing is trained by
        gradients, and `train.steps` and `train.seconds` do not matter."""
        return []

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        """Terms of the loss of a training batch by name, weighted; their sum is minimized.

        Args:
            x: (B, C, patch_h, patch_w) float32, augmented good patches.
            random: what everything random in a step is drawn from, so that a resumed run repeats it.
            step, steps: number of the step, and how many there are.
        """
        raise NotImplementedError(f"{type(self).__name__} names parameters to train but has no loss")

    def finish(self, patches: GoodPatches) -> None:
        """What is made of good patches after the last step; called in evaluation mode."""

    def fit_shapes(self, weights: dict[str, torch.Tensor]) -> None:
        """Gives buffers whose shape follows from the data that of `weights`, before these are loaded."""

    def prune(self) -> None:
        """Drops what inference does not need; the checkpoint is what is left. Called before `state_dict` is taken, and
        on a new network before a checkpoint is loaded."""


class PackedScores(nn.Module):
    """A method as it is exported: x (N, C, H, W) -> (N, 1, 1 + H, W): the score all along row 0, the map below it.

    One input and one output of rank 4, as of a generator, so that every engine runs it alike (docs/design/methods.md).

    Args:
        method: gives scores and maps, as `Method.forward`.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method
        self.stepped = getattr(method, "stepped", False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score, maps = self.method(x)
        return torch.cat([score.reshape(-1, 1, 1, 1).expand(-1, 1, 1, maps.shape[3]), maps], dim=2)


def method_from_config(config: Config) -> Method:
    """The method that `config.method` names, with random weights.

    Raises:
        ConfigError: the method refuses the patches of the configuration, such as their channels.
    """
    if config.method.name not in METHODS:
        raise ConfigError(
            f"method {config.method.name!r} is a generator, whose reconstruction is scored by the kernels"
        )
    module, _, name = METHODS[config.method.name].partition(":")
    return getattr(importlib.import_module(module), name)(config)
