"""U-Net and hourglass: an encoder by max-pooling and a decoder by bilinear doubling, with and without skips.

Sources: Ronneberger et al., arXiv 1505.04597; with BatchNorm and these widths as the discriminative sub-network of
DRAEM, arXiv 2108.07610, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import ModelConfig
from grd_edge.errors import ConfigError
from grd_edge.models.blocks import conv_bn


def conv_pair(in_channels: int, between: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""
    first, second = conv_bn(in_channels, between, 3), conv_bn(between, out_channels, 3)
    return nn.Sequential(*first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True))


def upsampled(in_channels: int, out_channels: int) -> nn.Sequential:
    """Bilinear doubling, 3x3 convolution, BatchNorm, ReLU."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(up, *conv_bn(in_channels, out_channels, 3), nn.ReLU(inplace=True))


def stage_widths(base: int, depth: int, most: int = 8) -> list[int]:
    """Channels of the full resolution and of each of `depth` halvings: base doubled each time, up to `most` times."""
    return [base * min(2**level, most) for level in range(depth + 1)]


class PooledEncoder(nn.Module):
    """Pairs of convolutions with a 2x2 max-pooling between them: x -> maps of every level, the finest first."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(
            conv_pair(before, width, width) for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.pairs[0](x)]
        for pair in self.pairs[1:]:
            maps.append(pair(self.pool(maps[-1])))
        return maps


class Hourglass(nn.Module):
    """x (N, in_channels, H, W) -> (N, out_channels, H, W) without skips; H and W are multiples of 2**depth.

    Args:
        widths: channels of the full resolution and of each halving.
        ahead: a level's decoder already ends with the width of the next finer level.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], ahead: bool = True) -> None:
        super().__init__()
        self.encoder = PooledEncoder(in_channels, widths)
        stages: list[nn.Module] = []
        channels = widths[-1]
        for level in reversed(range(len(widths) - 1)):
            after = widths[max(0, level - 1)] if ahead else widths[level]
            stages += [upsampled(channels, widths[level]), conv_pair(widths[level], widths[level], after)]
            channels = after
        self.decoder = nn.Sequential(*stages, nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x)[-1])


class UNet(nn.Module):
    """x (N, in_channels, H, W) -> logits (N, out_channels, H, W); H and W are multiples of 2**depth.

    Args:
        base: channels at full resolution; each halving doubles them, up to `most` times the base.
        depth: halvings.
        ahead: a level's decoder already has the width of the next finer level.
    """

    def __init__(
        self, in_channels: int, out_channels: int, base: int, depth: int, most: int = 8, ahead: bool = True
    ) -> None:
        super().__init__()
        widths = stage_widths(base, depth, most)
        self.encoder = PooledEncoder(in_channels, widths)
        self.ups, self.pairs = nn.ModuleList(), nn.ModuleList()
        channels = widths[-1]
        for level in reversed(range(depth)):
            width = widths[max(0, level - 1)] if ahead else widths[level]
            self.ups.append(upsampled(channels, width))
            self.pairs.append(conv_pair(width + widths[level], width, width))
            channels = width
        self.out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *skips, h = self.encoder(x)
        for up, pair, skip in zip(self.ups, self.pairs, reversed(skips), strict=True):
            h = pair(torch.cat([up(h), skip], dim=1))
        return self.out(h)


def check_halvings(config: ModelConfig, depth: int, what: str) -> None:
    """Raises ConfigError for patches that cannot be halved `depth` times."""
    step = 2**depth
    if config.patch_h % step or config.patch_w % step:
        raise ConfigError(
            f"patch {config.patch_h}x{config.patch_w} is not a multiple of {step} px, which {what} needs; "
            "choose a multiple"
        )


def anomaly_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits (N, 2, H, W) of good and anomalous -> (N, 1, H, W), whose sigmoid is channel 1 of their softmax."""
    return logits[:, 1:] - logits[:, :1]


def box_mean(maps: torch.Tensor, px: int) -> torch.Tensor:
    """Mean over px x px, px odd, of maps (N, 1, H, W); 0 outside them. Separable, which costs px / 2 times less."""
    rows = F.avg_pool2d(maps, (px, 1), stride=1, padding=(px // 2, 0))
    return F.avg_pool2d(rows, (1, px), stride=1, padding=(0, px // 2))
