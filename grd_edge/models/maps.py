"""From the maps of a backbone to features on one grid, and from scores on a grid to the map of a patch."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.models.backbones import Backbone
from grd_edge.models.trunks import vit_grid

REACH = 3.0  # sigmas; what lies beyond is 0.3 % of the Gaussian


class JoinedFeatures(nn.Module):
    """Maps of a backbone at the finest of their grids: (N, channels, h, w).

    Args:
        pooled: each is averaged over 3x3 positions first. Source: arXiv 2106.08265, section 3.1.
        zeros: positions beyond the border count as zeros in that average, as in the public code of PatchCore.
    """

    def __init__(self, backbone: Backbone, pooled: bool = True, zeros: bool = False) -> None:
        super().__init__()
        self.backbone, self.pooled, self.zeros = backbone, pooled, zeros
        self.channels = sum(backbone.channels)
        self.stride = min(backbone.strides)
        self.finest = backbone.strides.index(self.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(x)
        if self.pooled:
            maps = [F.avg_pool2d(each, 3, 1, 1, count_include_pad=self.zeros) for each in maps]
        grid = maps[self.finest].shape[2:]
        resized = [each if each.shape[2:] == grid else F.interpolate(each, grid, mode="bilinear") for each in maps]
        return torch.cat(resized, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of an image whose extents are multiples of the stride, but for a ViT."""
        if self.backbone.name.startswith("vit"):
            return vit_grid(height, width)
        return height // self.stride, width // self.stride


class GaussianUpsampling(nn.Module):
    """Scores of a grid (N, 1, h, w) -> map (N, 1, patch_h, patch_w): each position spreads as a Gaussian.

    A transposed convolution, as in FCDD, in two passes. Weights are normalized per pixel and the grid goes on beyond
    its border, so that a constant stays that constant: score and map share a scale.

    Source: "receptive upsampling" of FCDD, arXiv 2007.01760, section 3; there the border fades out.

    Args:
        size: (patch_h, patch_w); where it is no multiple of the stride, the map is resized to it.
        stride: px between two positions.
        sigma: of the Gaussian, in strides.
        offset_px: pixel that position 0 looks at; None: the middle of its stride.
    """

    def __init__(self, size: tuple[int, int], stride: int, sigma: float, offset_px: float | None = None) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.margin = math.ceil(REACH * sigma)
        offset = (stride - 1) / 2 if offset_px is None else offset_px
        taps = 2 * self.margin + 1
        distance_px = torch.arange(taps * stride, dtype=torch.float64) - self.margin * stride - offset
        kernel = torch.exp(-0.5 * (distance_px / (sigma * stride)) ** 2).view(taps, stride)
        kernel = (kernel / kernel.sum(0)).flatten().float()
        self.register_buffer("rows", kernel.view(1, 1, -1, 1), persistent=False)
        self.register_buffer("columns", kernel.view(1, 1, 1, -1), persistent=False)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        stride, margin, cut = self.stride, self.margin, 2 * self.margin * self.stride
        scores = F.pad(scores, (margin, margin, margin, margin), mode="replicate")
        scores = F.conv_transpose2d(scores, self.rows, stride=(stride, 1), padding=(cut, 0))
        maps = F.conv_transpose2d(scores, self.columns, stride=(1, stride), padding=(0, cut))
        return maps if maps.shape[2:] == self.size else F.interpolate(maps, self.size, mode="bilinear")
