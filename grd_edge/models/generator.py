"""Generator G: encoder, bottleneck, decoder, and (for training only) a second encoder.

Source: docs/method.md, section 2.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from grd_edge.config import ModelConfig
from grd_edge.models.blocks import CenteredLinear, Decoder, Encoder, ResidualBlock, activation

M = TypeVar("M", bound=nn.Module)


class GeneratorOutput(NamedTuple):
    """What training needs of one pass: reconstruction (N, C, H, W) and the latents of X and of X^ (N, L).

    `z_hat` is None when the second encoder was left out.
    """

    x_hat: torch.Tensor
    z: torch.Tensor
    z_hat: torch.Tensor | None


class Reconstructor(nn.Module):
    """Encoder, bottleneck, decoder: all that runs at inference. X (N, C, H, W) in [0, 1] -> X^ of the same shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages = tuple(config.stages)
        self.encoder = Encoder(config.channels, config.stage_widths, stages, config.resample)
        channels = self.encoder.out_channels
        self.grid_h, self.grid_w = config.patch_h >> len(stages), config.patch_w >> len(stages)
        self.dense = config.bottleneck == "dense"
        if self.dense:
            flat = channels * self.grid_h * self.grid_w
            self.latent_down = nn.Sequential(nn.Flatten(), CenteredLinear(flat, config.latent), activation())
            self.latent_up = nn.Sequential(nn.Linear(config.latent, flat), activation())
        else:
            self.latent_down = nn.Sequential(nn.Conv2d(channels, config.latent, 1), activation())
            self.latent_up = nn.Sequential(nn.Conv2d(config.latent, channels, 1), activation())
        position = config.decoder_resample or config.resample
        self.decoder = Decoder(config.channels, config.stage_widths, stages, position, config.upsampling)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.latent_down(self.encoder(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        h = self.latent_up(z)
        if self.dense:
            h = h.view(-1, self.encoder.out_channels, self.grid_h, self.grid_w)
        return self.decoder(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))


class Generator(nn.Module):
    """The reconstructor together with the second encoder, which is for training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.reconstructor = Reconstructor(config)
        self.encoder_hat = Encoder(config.channels, config.stage_widths, tuple(config.stages), config.resample)

    def forward(self, x: torch.Tensor, second_encoder: bool = True) -> GeneratorOutput:
        net = self.reconstructor
        z = net.encode(x)
        x_hat = net.decode(z)
        if not second_encoder:
            return GeneratorOutput(x_hat, z.flatten(1), None)
        # Both encoders share the projection to the latent, as in both code bases of the authors.
        z_hat = net.latent_down(self.encoder_hat(x_hat))
        return GeneratorOutput(x_hat, z.flatten(1), z_hat.flatten(1))


def folded(net: M) -> M:
    """Copy of `net` in evaluation mode with every BatchNorm folded into the convolution before it, in residual blocks
    and sequences, and the centering of the bottleneck into its bias.

    Source: exact for frozen statistics; torch.nn.utils.fusion does the arithmetic.
    """
    net = copy.deepcopy(net).eval()
    for module in list(net.modules()):
        if isinstance(module, ResidualBlock):
            for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
                setattr(module, bn, nn.Identity())
        elif isinstance(module, nn.Sequential):
            _fold_sequence(module)
    return net


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Folds convolution + BatchNorm neighbors of a Sequential in place (PixelShuffle may stand between them), and the
    center of a dense layer into its bias."""
    for index, bn in enumerate(sequence):
        if isinstance(bn, CenteredLinear):
            sequence[index] = bn.plain()
        if not isinstance(bn, nn.BatchNorm2d):
            continue
        before = sequence[index - 1] if index else None
        if isinstance(before, nn.PixelShuffle):
            sequence[index - 2] = fuse_conv_bn_eval(sequence[index - 2], _spread(bn, before.upscale_factor**2))
        elif isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(before, nn.ConvTranspose2d)
            sequence[index - 1] = fuse_conv_bn_eval(before, bn, transpose=transposed)
        else:
            continue
        sequence[index] = nn.Identity()


def _spread(bn: nn.BatchNorm2d, times: int) -> nn.BatchNorm2d:
    """BatchNorm that acts before a depth-to-space as `bn` acts after it."""
    wide = nn.BatchNorm2d(bn.num_features * times, eps=bn.eps).to(bn.weight).eval()
    state = {key: value.repeat_interleave(times) for key, value in bn.state_dict().items() if value.ndim}
    wide.load_state_dict(state, strict=False)
    return wide
