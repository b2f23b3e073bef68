"""SuperSimpleNet, unsupervised: heads that tell features of good patches from the same with noise in blobs.

Features of two layers of a frozen backbone are enlarged, averaged over 3x3 cells and adapted; a segmentation head gives
the map, a classification head, which sees that map, too, the score. Noise is for training only.

Source: arXiv 2408.03143, section 3; widths, initialization, gamma and the level of the blobs are those of its public
code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.data.perlin import perlin_noise
from grd_edge.losses import focal_loss
from grd_edge.models.backbones import backbone_from_config
from grd_edge.models.blocks import LEAKY_SLOPE, conv_bn
from grd_edge.models.method import GoodPatches, Method
from grd_edge.models.moments import channel_moments

LAYERS = ("stride8", "stride16")
MARGIN = 0.5  # of the truncated L1 loss
FOCUS = 4.0  # gamma of the focal losses
BLOB_LEVEL = 0.2  # of Perlin noise, above which features get noise
BLOB_SHARE = 0.5  # of the patches that get any
ADAPTOR_SHARE = 0.5  # its rate beside that of the heads: 1e-4 and 2e-4
SMOOTHING_PX = 4.0  # sigma, at patch resolution


class SuperSimpleNet(Method):
    """Frozen backbone, adaptor and the two heads; see the module."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        method = config.method
        self.backbone = backbone_from_config(method.backbone, LAYERS)
        channels = sum(self.backbone.channels)
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation = nn.Sequential(
            *conv_bn(channels, method.hidden, 1), nn.LeakyReLU(LEAKY_SLOPE), nn.Conv2d(method.hidden, 1, 1, bias=False)
        )
        self.classification = nn.Sequential(*conv_bn(channels + 1, method.classifier, 5), nn.ReLU())
        self.verdict = nn.Linear(2 * method.classifier + 2, 1)
        for module in (self.adaptor, *self.segmentation, *self.classification, self.verdict):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self.register_buffer("window", gaussian_window(SMOOTHING_PX), persistent=False)

    # -------------------------------------------------------------- inference

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, verdict = self._heads(self.adaptor(self._features(x)))
        maps = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
        return verdict.sigmoid(), self._smoothed(maps).sigmoid()

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, 2 h, 2 w), with h, w of the largest layer."""
        layers = self.backbone(x)
        size = [2 * extent for extent in layers[0].shape[2:]]
        enlarged = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in layers]
        return F.avg_pool2d(torch.cat(enlarged, 1), 3, 1, padding=1)

    def _heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the cells (N, 1, h, w) and of the patches (N,); the classification does not train the other."""
        logits = self.segmentation(features)
        seen = logits.detach()
        h = self.classification(torch.cat([features, seen], 1))
        pooled = [h.amax((2, 3)), h.mean((2, 3)), seen.amax((2, 3)), seen.mean((2, 3))]
        return logits, self.verdict(torch.cat(pooled, 1))[:, 0]

    def _smoothed(self, maps: torch.Tensor) -> torch.Tensor:
        reach = self.window.shape[3] // 2
        maps = F.pad(maps, (reach, reach, reach, reach), mode="reflect")
        return F.conv2d(F.conv2d(maps, self.window), self.window.transpose(2, 3))

    # --------------------------------------------------------------- training

    def load_pretrained(self) -> None:
        self.provenance["backbone"] = self.backbone.load(self.config.method.backbone)

    @torch.no_grad()
    def begin(self, patches: GoodPatches) -> None:
        """The adaptor starts on normalized features, so that noise is as strong beside those of every backbone."""
        mean, std = channel_moments(self._features(x.to(self.window)) for x in patches.spread())
        self.adaptor.weight /= std.view(1, -1, 1, 1)
        self.adaptor.bias.copy_(-self.adaptor.weight[:, :, 0, 0] @ mean)

    def groups(self) -> list[dict[str, Any]]:
        classifier = [*self.classification.parameters(), *self.verdict.parameters()]
        return [
            {"params": list(self.adaptor.parameters()), "share": ADAPTOR_SHARE},
            {"params": list(self.segmentation.parameters()), "share": 1.0},
            {"params": classifier, "share": self.config.method.classifier_share},
        ]

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            features = self._features(x)
        features = self.adaptor(features).repeat(2, 1, 1, 1)
        mask = blobs(len(features), *features.shape[2:], random)
        noise = torch.randn(features.shape, generator=random, device=features.device)
        logits, verdict = self._heads(features + self.config.method.noise_sigma * noise * mask)
        logits, verdict = logits.float(), verdict.float()
        return {
            "truncated_l1": truncated_l1(logits, mask),
            "focal": focal_loss(logits, mask, gamma=FOCUS),
            "classification": focal_loss(verdict, mask.amax((1, 2, 3)), gamma=FOCUS),
        }


def blobs(n: int, h: int, w: int, random: torch.Generator) -> torch.Tensor:
    """Masks (n, 1, h, w) float32 where features get noise; half of them are empty."""
    chosen = torch.rand((n, 1, 1, 1), generator=random, device=random.device) < BLOB_SHARE
    return ((perlin_noise(n, h, w, random)[:, None] > BLOB_LEVEL) & chosen).float()


def truncated_l1(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of max(0, 0.5 + logit) where the mask is 0, plus that of max(0, 0.5 - logit) where it is 1."""
    good = (F.relu(MARGIN + logits) * (1 - mask)).sum() / (1 - mask).sum().clamp_min(1)
    return good + (F.relu(MARGIN - logits) * mask).sum() / mask.sum().clamp_min(1)


def gaussian_window(sigma_px: float) -> torch.Tensor:
    """Window (1, 1, 1, 2 ceil(3 sigma) + 1) of sum 1."""
    reach = math.ceil(3 * sigma_px)
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    return (window / window.sum()).view(1, 1, 1, -1)
