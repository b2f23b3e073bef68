"""Residual encoder and decoder shared by the generator and the discriminator.

Source: docs/method.md, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LEAKY_SLOPE = 0.2


def conv_bn(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias (BatchNorm has one), size-preserving but for its stride, and its BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_px, stride, padding=kernel_px // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def activation() -> nn.Module:
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a skip connection; 1x1 on the skip when the shape changes, or when
    `projects` says so."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, projects: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = conv_bn(out_channels, out_channels, 3)
        self.act = activation()
        same = stride == 1 and in_channels == out_channels and not projects
        self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.skip(x))


class TransposedUpsampling(nn.Sequential):
    """Transposed convolution k4 s2 p1, BatchNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        up = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
        super().__init__(up, nn.BatchNorm2d(out_channels), activation())


class ResizeConvUpsampling(nn.Sequential):
    """Nearest-neighbor doubling, 3x3 convolution, BatchNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"), *conv_bn(in_channels, out_channels, 3), activation()
        )


class PixelShuffleUpsampling(nn.Sequential):
    """3x3 convolution to four times the channels, depth-to-space, BatchNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1, bias=False)
        super().__init__(conv, nn.PixelShuffle(2), nn.BatchNorm2d(out_channels), activation())


class CenteredLinear(nn.Linear):
    """Dense layer on inputs less their running mean: y = W (x - center) + b.

    The function is that of a plain dense layer with bias b - W center, and `plain` gives that layer; learning is
    not the same. Features behind a LeakyReLU share a large mean; without centering every step of Adam shifts each
    output for all images alike, by more than the images differ, and a short run never leaves the mean image.

    Source: mean-only batch normalization, arXiv 1602.07868, section 2.2.
    """

    MOMENTUM = 0.1

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("center", torch.zeros(in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.center.lerp_(x.mean(0).to(self.center), self.MOMENTUM)
        return F.linear(x - self.center, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """The same function without a center."""
        linear = nn.Linear(self.in_features, self.out_features).to(self.weight)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            shift = self.weight.double() @ self.center.double()
            linear.bias.copy_(self.bias.double() - shift)
        return linear


UPSAMPLING: dict[str, type[nn.Sequential]] = {
    "transposed": TransposedUpsampling,
    "resize_conv": ResizeConvUpsampling,
    "pixel_shuffle": PixelShuffleUpsampling,
}


def _resamples(index: int, count: int, position: str) -> bool:
    """Whether block `index` of a stage of `count` blocks is the one that changes the resolution."""
    return index == (0 if position == "first" else count - 1)


class _StatisticsHeld:
    """BatchNorm normalizes by the batch as in training, but its running statistics stay: the first pass counted.

    A context that may be entered again: each backward pass through a stage computes it once more.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.norms = [m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0  # not track_running_stats: the pass must save the same tensors as the first one

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


class Stages(nn.Module):
    """What runs stage by stage. With `recompute`, training keeps the input of each stage only and computes the rest
    once more in the backward pass.

    Source: arXiv 1604.06174.
    """

    recompute = False

    def run(self, stages: Sequence[Sequence[nn.Module]], x: torch.Tensor) -> torch.Tensor:
        for modules in stages:

            def forward(h: torch.Tensor, modules: Sequence[nn.Module] = modules) -> torch.Tensor:
                for module in modules:
                    h = module(h)
                return h

            if self.recompute and self.training and torch.is_grad_enabled():

                def contexts(modules: Sequence[nn.Module] = modules):
                    return nullcontext(), _StatisticsHeld(modules)

                x = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
            else:
                x = forward(x)
        return x


def _grouped(blocks: nn.Sequential, counts: Sequence[int]) -> list[list[nn.Module]]:
    """The blocks of each stage."""
    rest = iter(blocks)
    return [[next(rest) for _ in range(count)] for count in counts]


class Encoder(Stages):
    """Stem and residual stages; stage i has width widths[i] and halves the size once.

    Shapes: (N, in_channels, H, W) -> (N, widths[S-1], H / 2**S, W / 2**S), S stages.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], stages: tuple[int, ...], resample: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, widths[0], 3), activation())
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, stages, strict=True)):
            for index in range(count):
                stride = 2 if _resamples(index, count, resample) else 1
                # Between stages there is always a projection, also where pruning left both of the same width.
                blocks.append(ResidualBlock(channels, width, stride, projects=stage > 0 and index == 0))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.out_channels = channels
        self.counts = tuple(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = _grouped(self.blocks, self.counts)
        return self.run([[self.stem, *first], *rest], x)


class Decoder(Stages):
    """Mirror of the encoder: in each stage one block is an upsampling; a 3x3 convolution and a sigmoid end it."""

    def __init__(
        self, out_channels: int, widths: tuple[int, ...], stages: tuple[int, ...], resample: str, upsampling: str
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = widths[-1]
        for stage in reversed(range(len(stages))):
            width = widths[stage]
            for index in range(stages[stage]):
                if _resamples(index, stages[stage], resample):
                    blocks.append(UPSAMPLING[upsampling](channels, width))
                else:
                    between = index == 0 and stage < len(stages) - 1
                    blocks.append(ResidualBlock(channels, width, projects=between))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.counts = tuple(reversed(stages))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        *before, last = _grouped(self.blocks, self.counts)
        return F.sigmoid(self.run([*before, [*last, self.out]], h))
