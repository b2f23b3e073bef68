"""GRD-Net 2023: the U-Net segmentor Delta, and the generator and it as they are deployed.

Source: docs/method.md, sections 2, 4 and 5; layers as in docs/design/official-checkpoints.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.models.generator import Reconstructor
from grd_edge.models.unet import PooledEncoder, conv_pair, stage_widths

PREFIX = "segmentor."  # of its weights in a checkpoint; the reconstructor's have none


class Segmentor(nn.Module):
    """Delta: X_n and X^, each (N, C, H, W), -> logits of the mask (N, 1, H, W); H and W are multiples of 2**depth."""

    def __init__(self, channels: int, base: int, depth: int) -> None:
        super().__init__()
        widths = stage_widths(base, depth)
        self.encoder = PooledEncoder(2 * channels, widths)
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (channels below, channels above), deepest first
        self.ups = nn.ModuleList(nn.ConvTranspose2d(below, above, 2, stride=2) for below, above in steps)
        self.pairs = nn.ModuleList(conv_pair(2 * above, above, above) for _, above in steps)
        self.out = nn.Conv2d(base, 1, 1)

    def forward(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        *skips, h = self.encoder(torch.cat([x, x_hat], dim=1))
        for up, pair, skip in zip(self.ups, self.pairs, reversed(skips), strict=True):
            h = pair(torch.cat([up(h), skip], dim=1))
        return self.out(h)


def smoothed(maps: torch.Tensor, width_px: int) -> torch.Tensor:
    """Mean of (N, 1, H, W) over the width_px x width_px around each position, of the pixels that exist there.

    Size-preserving; dividing by the whole window would darken the borders, where defects would then hide.
    """
    if width_px == 1:
        return maps
    for window in ((width_px, 1), (1, width_px)):  # a window within a rectangle is a rectangle: exact, and cheaper
        padding = (window[0] // 2, window[1] // 2)
        maps = F.avg_pool2d(maps, window, stride=1, padding=padding, count_include_pad=False)
    return maps


class SegmentedReconstructor(Reconstructor):
    """Generator and segmentor in one graph: X (N, C, H, W) in [0, 1] -> scores (N,) and maps (N, 1, H, W) in [0, 1].

    The map is Delta(X, X^) after sigmoid and `smoothed`; the score is its largest value. The weights are those of the
    reconstructor, and with `PREFIX` those of the segmentor.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.model)
        self.segmentor = segmentor_from_config(config)
        self.smoothing_px = config.method.smoothing_px

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """X^ of X."""
        return super().forward(x)

    def scores(self, x: torch.Tensor, x_hat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and maps of X and what `reconstruct` made of it."""
        maps = smoothed(torch.sigmoid(self.segmentor(x, x_hat)), self.smoothing_px)
        return maps.amax((1, 2, 3)), maps

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores(x, self.reconstruct(x))


def reconstructor_from_config(config: Config) -> Reconstructor:
    """What of a generator runs at inference, its segmentor included where it has one, with random weights."""
    return SegmentedReconstructor(config) if config.segmented else Reconstructor(config.model)


def segmentor_from_config(config: Config) -> Segmentor:
    """The segmentor of a generator with `method.segmentor`, with random weights."""
    return Segmentor(config.model.channels, config.method.segmentor_base, config.method.segmentor_depth)
