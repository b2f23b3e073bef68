"""Quantized latent space of DSR: an encoder of two resolutions, a codebook each, the general-object decoder.

Sources: Zavrtanik et al., arXiv 2208.01521, section 3.1; van den Oord et al., arXiv 1711.00937 (codebooks, and running
means in appendix A.1); restarts of idle codes: Dhariwal et al., arXiv 2005.00341, section 3.2.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.checkpoint import first_keys
from grd_edge.errors import ConfigError

COMMITMENT = 0.25  # weight of the pull of features towards their codes; arXiv 1711.00937, equation 3
START_CONTRAST = 0.1
IDLE = 0.5  # features per batch, as a running mean, below which a code starts anew


class VectorQuantizer(nn.Module):
    """The nearest of `codes` vectors at each position: z (N, dim, H, W) -> q of the same shape.

    |z - c|^2 is least where z c - |c|^2 / 2 is largest: a 1x1 convolution, an ArgMax and a lookup in the graph. Codes
    are no parameters: they are running means of the features that chose them.
    """

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(codes, dim, 1, 1))
        self.register_buffer("bias", torch.zeros(codes))
        self.register_buffer("running_size", torch.zeros(codes))
        self.register_buffer("running_sum", torch.zeros(codes, dim))
        self.store(self.codebook)

    @property
    def codebook(self) -> torch.Tensor:
        """(codes, dim)."""
        return self.weight.flatten(1)

    @torch.no_grad()
    def store(self, codebook: torch.Tensor) -> None:
        self.weight.copy_(codebook[:, :, None, None])
        self.bias.copy_(-0.5 * codebook.square().sum(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        nearest = F.conv2d(z, self.weight, self.bias).argmax(1)
        return F.embedding(nearest, self.codebook).movedim(-1, 1)

    def by_distance(self, z: torch.Tensor) -> torch.Tensor:
        """Numbers of all codes for features (P, dim), the nearest first: (P, codes)."""
        return F.linear(z, self.codebook, self.bias).argsort(1, descending=True)

    def straight_through(self, z: torch.Tensor) -> torch.Tensor:
        """`forward` whose gradient goes to z as if nothing were quantized."""
        return z + (self(z.detach()) - z).detach()

    @torch.no_grad()
    def adapt(self, z: torch.Tensor, decay: float, random: torch.Generator) -> None:
        """Moves the codes towards the features of a batch; a code that none chose for long becomes one of them."""
        with torch.autocast(z.device.type, enabled=False):  # means of many small steps
            flat = z.float().movedim(1, -1).flatten(0, 2)
            drawn = torch.randint(0, len(flat), (len(self.codebook),), generator=random, device=z.device)
            idle = self.running_size < IDLE
            self.running_sum.copy_(torch.where(idle[:, None], flat[drawn], self.running_sum))
            self.running_size.masked_fill_(idle, 1)
            self.store(self.running_sum / self.running_size[:, None])
            chosen = F.linear(flat, self.codebook, self.bias).argmax(1, keepdim=True)
            members = torch.zeros(len(flat), len(self.codebook), device=z.device).scatter_(1, chosen, 1)
            self.running_size.lerp_(members.sum(0), 1 - decay)
            self.running_sum.lerp_(members.T @ flat, 1 - decay)
            self.store(self.running_sum / self.running_size[:, None])

    def prune(self) -> None:
        """Drops what only `adapt` needs."""
        self.running_size = self.running_sum = None


class Residual(nn.Module):
    """3x3 and 1x1 convolution around a skip connection that starts behind the first ReLU.

    Source: the published weights were trained so, since that ReLU works in place
    (github.com/VitjanZ/DSR_anomaly_detection).
    """

    def __init__(self, channels: int, between: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, between, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(between, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


def residuals(channels: int, between: int) -> nn.Sequential:
    """Two of them and a ReLU."""
    return nn.Sequential(Residual(channels, between), Residual(channels, between), nn.ReLU())


class ImageDecoder(nn.Module):
    """Features (N, in_channels, H / 4, W / 4) -> image (N, out_channels, H, W), not bounded."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, between: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.residuals = residuals(hidden, between)
        self.conv_trans_1 = nn.ConvTranspose2d(hidden, hidden // 2, 4, stride=2, padding=1)
        self.conv_trans_2 = nn.ConvTranspose2d(hidden // 2, out_channels, 4, stride=2, padding=1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.conv_trans_2(F.relu(self.conv_trans_1(self.residuals(self.conv_1(h)))))

    @torch.no_grad()
    def start(self, x: torch.Tensor) -> None:
        """Begins near the mean color of patches x: a random image is worse, and unlearning it silences the layers."""
        self.conv_trans_2.weight.mul_(START_CONTRAST)
        self.conv_trans_2.bias.copy_(x.mean((0, 2, 3)))


def _encoder(*convolutions: nn.Conv2d, between: int) -> nn.Sequential:
    """Convolutions, each but the last with a ReLU, and residual blocks of their width."""
    layers: dict[str, nn.Module] = {}
    for number, conv in enumerate(convolutions, 1):
        layers[f"conv_{number}"] = conv
        layers[f"relu_{number}"] = nn.ReLU()
    del layers[f"relu_{len(convolutions)}"]
    return nn.Sequential(OrderedDict(layers, residuals=residuals(convolutions[-1].out_channels, between)))


@torch.no_grad()
def keep_scale(network: nn.Module) -> None:
    """Weights with which activations keep their scale from layer to layer (arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # Of a transposed convolution each output meets a share 1 / stride^2 of the kernel.
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
            reached = inputs / (1 if isinstance(module, nn.Conv2d) else module.stride[0] * module.stride[1])
            module.weight.normal_(0, (2 / reached) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def _normalize(conv: nn.Conv2d, h: torch.Tensor) -> None:
    """Makes what `conv` gives for h have mean 0 and variance 1 per channel."""
    z = conv(h)
    deviation = z.std((0, 2, 3)).clamp_min(1e-6)
    conv.weight.div_(deviation[:, None, None, None])
    conv.bias.sub_(z.mean((0, 2, 3))).div_(deviation)


class Latents(NamedTuple):
    """Features before quantization and after it, of the low (H / 8) and the high resolution (H / 4)."""

    z_lo: torch.Tensor
    q_lo: torch.Tensor
    z_hi: torch.Tensor
    q_hi: torch.Tensor


class DiscreteLatents(nn.Module):
    """Encoder, codebooks and general-object decoder. Images (N, channels, H, W), H and W multiples of 8.

    Modules are named as the authors do, less leading underscores: `t` (top) is the low resolution, `b` the high.
    """

    def __init__(self, channels: int, hidden: int, codes: int, dim: int) -> None:
        super().__init__()
        between = max(1, hidden // 2)
        self.encoder_b = _encoder(
            nn.Conv2d(channels, hidden // 2, 4, stride=2, padding=1),
            nn.Conv2d(hidden // 2, hidden, 4, stride=2, padding=1),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            between=between,
        )
        self.encoder_t = _encoder(
            nn.Conv2d(hidden, hidden, 4, stride=2, padding=1), nn.Conv2d(hidden, hidden, 3, padding=1), between=between
        )
        self.pre_vq_conv_top = nn.Conv2d(hidden, dim, 1)
        self.pre_vq_conv_bot = nn.Conv2d(hidden + dim, dim, 1)
        self.vq_vae_top = VectorQuantizer(codes, dim)
        self.vq_vae_bot = VectorQuantizer(codes, dim)
        self.upsample_t = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)
        self.decoder_b = ImageDecoder(2 * dim, channels, hidden, between)
        keep_scale(self)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, Latents]:
        """Features of the encoder at the high resolution, and the latents."""
        features = self.encoder_b(x)
        z_lo = self.pre_vq_conv_top(self.encoder_t(features))
        q_lo = self.vq_vae_top(z_lo)
        z_hi = self.high(features, q_lo)
        return features, Latents(z_lo, q_lo, z_hi, self.vq_vae_bot(z_hi))

    def high(self, features: torch.Tensor, q_lo: torch.Tensor) -> torch.Tensor:
        """z of the high resolution, which depends on q of the low one."""
        return self.pre_vq_conv_bot(torch.cat([features, self.upsample_t(q_lo)], dim=1))

    def joined(self, q_lo: torch.Tensor, q_hi: torch.Tensor) -> torch.Tensor:
        """What decoders take: (N, 2 dim, H / 4, W / 4)."""
        return torch.cat([self.upsample_t(q_lo), q_hi], dim=1)

    @torch.no_grad()
    def start(self, x: torch.Tensor) -> None:
        """Data-dependent start: features of patches x get mean 0 and variance 1 per channel, images their mean color.

        With the usual start all features are nearly one point, all codes with them, and short runs never leave it.
        Source: the idea is that of arXiv 1511.06422.
        """
        features = self.encoder_b(x)
        low = self.encoder_t(features)
        _normalize(self.pre_vq_conv_top, low)
        _normalize(self.pre_vq_conv_bot, torch.cat([features, self.upsample_t(self.pre_vq_conv_top(low))], dim=1))
        self.decoder_b.start(x)

    def loss(self, x: torch.Tensor, quantized: bool, decay: float, random: torch.Generator) -> dict[str, torch.Tensor]:
        """Terms that train all of it on images as they are; moves the codebooks.

        The squared error counts in variances within an image, much as in the public code of VQ-VAE. Not quantized,
        features pass as they are, and codebooks stay: features that say nothing yet would be pulled to one point.
        """

        def coded(z: torch.Tensor, quantizer: VectorQuantizer) -> torch.Tensor:
            if not quantized:
                return z
            quantizer.adapt(z, decay, random)
            return quantizer.straight_through(z)

        features = self.encoder_b(x)
        z_lo = self.pre_vq_conv_top(self.encoder_t(features))
        q_lo = coded(z_lo, self.vq_vae_top)
        z_hi = self.high(features, q_lo)
        q_hi = coded(z_hi, self.vq_vae_bot)
        x_hat = self.decoder_b(self.joined(q_lo, q_hi))
        pulls = F.mse_loss(z_lo, q_lo.detach()) + F.mse_loss(z_hi, q_hi.detach())
        return {
            "general_l2": F.mse_loss(x_hat, x) / x.var((2, 3)).mean().clamp_min(1e-4),
            "commitment": COMMITMENT * pulls,
        }

    def prune(self) -> None:
        self.vq_vae_top.prune()
        self.vq_vae_bot.prune()

    def published_names(self) -> dict[str, str]:
        """Name of each weight here -> that of the authors, less underscores that begin a part of it."""
        names = {}
        for key in self.state_dict():
            name = re.sub(r"residuals\.(\d+)\.conv1", r"residual_stack.layers.\1.block.1", key)
            name = re.sub(r"residuals\.(\d+)\.conv2", r"residual_stack.layers.\1.block.3", name)
            if not re.match(r"vq_vae_(top|bot)\.(bias|running)", name):
                names[key] = re.sub(r"^(vq_vae_\w+)\.weight", r"\1.embedding.weight", name)
        return names

    def take(self, given: Mapping[str, torch.Tensor], what: str) -> None:
        """Loads the authors' weights, `vq_model_pretrained_128_4096`; running means in them are left out.

        Raises:
            ConfigError: weights are missing, foreign, of another shape or not finite.
        """
        names, state = self.published_names(), self.state_dict()
        given = {re.sub(r"(^|\.)_", r"\1", key): value for key, value in given.items()}
        beyond = re.compile(r"vq_vae_(top|bot)\.ema_(w|cluster_size)$")
        missing = sorted(set(names.values()) - given.keys())
        foreign = sorted(key for key in given.keys() - set(names.values()) if not beyond.match(key))
        for has, keys in (("lacks", missing), ("has foreign", foreign)):
            if keys:
                raise ConfigError(
                    f"{what} {has} weights: {first_keys(keys)}; expected those of vq_model_pretrained_128_4096 of DSR"
                )
        taken = {key: given[name].float() for key, name in names.items()}
        for key, name in names.items():
            if name.endswith("embedding.weight"):
                taken[key] = taken[key][:, :, None, None]
        for key, value in taken.items():
            if value.shape != state[key].shape:
                raise ConfigError(
                    f"{what} has {names[key]} of shape {tuple(given[names[key]].shape)}, which does not fit these "
                    "settings; the authors' weights need model.channels=3, method.hidden=128, method.codes=4096 and "
                    "method.code_dim=128"
                )
        if bad := sorted(names[key] for key, value in taken.items() if not torch.isfinite(value).all()):
            raise ConfigError(f"{what} has weights that are not finite: {first_keys(bad)}; copy it again")
        self.load_state_dict({**state, **taken})
        for quantizer in (self.vq_vae_top, self.vq_vae_bot):
            quantizer.store(quantizer.codebook.clone())
