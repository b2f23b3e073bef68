"""DRAEM: a reconstructive and a discriminative sub-network, trained together on synthetic anomalies.

Source: Zavrtanik et al., "DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection",
arXiv 2108.07610; widths, the weights of the losses and the smoothing are those of the authors' code
(github.com/VitjanZ/DRAEM).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.data.perturb import Perturbed, perturb
from grd_edge.data.textures import TextureImages
from grd_edge.losses import focal_loss
from grd_edge.method_config import DraemConfig
from grd_edge.models.method import Method
from grd_edge.models.unet import Hourglass, UNet, anomaly_logits, box_mean, check_halvings, stage_widths
from grd_edge.score import ssim_distance_map


class Draem(Method):
    """x_hat = R(x); the map is the softmax of D(x_hat, x) for "anomalous", smoothed; its largest value is the score."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings: DraemConfig = config.method
        settings, channels = self.settings, config.model.channels
        check_halvings(config.model, settings.depth + 1, f"method.depth {settings.depth} of draem")
        self.reconstructive = Hourglass(channels, channels, stage_widths(settings.base, settings.depth))
        base = settings.discriminative_base or max(1, settings.base // 2)
        self.discriminative = UNet(2 * channels, 2, base, settings.depth + 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.discriminative(torch.cat([self.reconstructive(x), x], dim=1))
        maps = box_mean(torch.sigmoid(anomaly_logits(logits)), self.settings.smoothing_px)
        return maps.amax((1, 2, 3)), maps

    def load_pretrained(self) -> None:
        """Nothing is pretrained; textures are read.

        Raises:
            InputError: as `TextureImages`.
        """
        if self._textures is None:
            kinds = ", ".join(self.config.perturbation.textures)
            self.provenance["textures"] = {"substitute": f"{kinds}, in place of DTD"}
        else:
            counts = {"images": self._textures.kept, "found": self._textures.found}
            self.provenance["textures"] = {"folder": Path(self.settings.textures).name, **counts}

    @cached_property
    def _textures(self) -> TextureImages | None:
        """Read when a run begins, or when a resumed one first needs them."""
        folder = self.settings.textures
        return None if folder is None else TextureImages(Path(folder), self.config.model, self.settings.textures_mb)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "share": 1.0}]

    def perturbed(self, x: torch.Tensor, random: torch.Generator) -> Perturbed:
        """Synthetic anomalies on patches, as `perturbation` says, of the folder's textures where there is one."""
        if self._textures is None:
            return perturb(x, self.config.perturbation, random)
        of_images = self.config.perturbation.model_copy(update={"textures": ("image",)})
        return perturb(x, of_images, random, self._textures.draw(len(x), random))

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            x_noisy, mask, *_ = self.perturbed(x, random)
        x_hat = self.reconstructive(x_noisy)
        logits = self.discriminative(torch.cat([x_hat, x_noisy], dim=1))
        return {
            "l2": F.mse_loss(x_hat, x),
            "ssim": ssim_distance_map(x, x_hat).mean(),
            "focal": focal_loss(anomaly_logits(logits.float()), mask),
        }
