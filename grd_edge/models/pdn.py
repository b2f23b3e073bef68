"""Networks of EfficientAD-S: the patch description network PDN-S and the autoencoder.

Both take images normalized as ImageNet's, (N, 3, H, W).
Source: arXiv 2303.14535, appendix A, tables 5 to 8 (layers, widths, sizes).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

DESCRIPTORS = 384  # channels of the teacher at full width
LATENT = 64
DROPOUT = 0.2


def scaled_width(channels: int, width: float) -> int:
    """Channels at a share `width` of the published ones, a multiple of 8."""
    return max(8, 8 * round(channels * width / 8))


def described_size(patch_px: int, padding: bool) -> int:
    """Cells along an axis of what PDN-S yields, one every 4 px; 0 or less: the patch is too small for it."""
    return patch_px // 4 - (0 if padding else 8)


class PatchDescription(nn.Module):
    """PDN-S: four convolutions that describe every 33x33 px by a vector: (N, 3, H, W) -> (N, out, H', W').

    Names of the weights are those of anomalib's `SmallPatchDescriptionNetwork`. With `padding` H' = H / 4, as the
    teacher was distilled; without, which is how the method uses it, cells that would see beyond the border are left
    out: H' = H / 4 - 8.
    """

    def __init__(self, out_channels: int, width: float, padding: bool) -> None:
        super().__init__()
        first, second = scaled_width(128, width), scaled_width(256, width)
        pad = int(padding)
        self.conv1 = nn.Conv2d(3, first, 4, padding=3 * pad)
        self.conv2 = nn.Conv2d(first, second, 4, padding=3 * pad)
        self.conv3 = nn.Conv2d(second, second, 3, padding=pad)
        self.conv4 = nn.Conv2d(second, out_channels, 4)
        self.pool = nn.AvgPool2d(2, 2, padding=pad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv4(self.hidden(x))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """What the last convolution takes."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return F.relu(self.conv3(x))


class Autoencoder(nn.Module):
    """Autoencoder that predicts the teacher's description of a patch through 64 numbers.

    (N, 3, H, W) -> (N, out, H', W') of the PDN; H and W are multiples of 32. The sizes of its decoder are those
    published for 256 px, 3, 8, 15, 32, 63 and 127, as shares of the patch.
    """

    def __init__(self, out_channels: int, width: float, padding: bool, patch: tuple[int, int]) -> None:
        super().__init__()
        narrow, wide = scaled_width(32, width), scaled_width(64, width)
        widths = (3, narrow, narrow, wide, wide, wide)
        self.encoder = nn.Sequential()
        for before, after in pairwise(widths):
            self.encoder.extend([nn.Conv2d(before, after, 4, 2, padding=1), nn.ReLU()])
        self.encoder.append(nn.Conv2d(wide, LATENT, (patch[0] // 32, patch[1] // 32)))
        self.sizes = [
            tuple(max(1, -(-extent // share) - less) for extent in patch)
            for share, less in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
        ]
        self.sizes.append(tuple(described_size(extent, padding) for extent in patch))
        self.decoder = nn.ModuleList(nn.Conv2d(wide if i else LATENT, wide, 4, padding=2) for i in range(6))
        self.decoder.append(nn.Conv2d(wide, wide, 3, padding=1))
        self.out = nn.Conv2d(wide, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, random: torch.Generator | None = None) -> torch.Tensor:
        """`random` is what dropout, which is for training only, is drawn from; None: no dropout."""
        h = self.encoder(x)
        for index, (size, conv) in enumerate(zip(self.sizes, self.decoder, strict=True)):
            h = F.relu(conv(F.interpolate(h, size, mode="bilinear", align_corners=False)))
            if random is not None and index < 6:
                kept = torch.rand(h.shape, generator=random, device=h.device) >= DROPOUT
                h = h * kept / (1 - DROPOUT)
        return self.out(h)
