"""Discriminator C: the generator's encoder with a linear head. Training only.

Source: docs/method.md, section 2.
"""

from __future__ import annotations

import torch
from torch import nn

from grd_edge.config import ModelConfig
from grd_edge.models.blocks import Encoder


class Discriminator(nn.Module):
    """X (N, C, H, W) -> (last convolutional features F_C, logits (N, 1))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages = tuple(config.stages)
        self.encoder = Encoder(config.channels, config.discriminator_widths, stages, config.resample)
        grid = (config.patch_h >> len(stages)) * (config.patch_w >> len(stages))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(self.encoder.out_channels * grid, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(x)
        return features, self.head(features)
