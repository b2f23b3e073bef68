"""The straightforward training step: what grd_edge.training_state is raced against.

The same networks, losses and data, written as usual: contiguous tensors, every term in every step, a discriminator step
with forward passes of its own, SSIM by five dense convolutions, Adam as PyTorch offers it. Source: docs/method.md,
section 4.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.data.perturb import augment, perturb
from grd_edge.losses import adversarial_loss, discriminator_loss, encoder_loss, noise_loss
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator
from grd_edge.score import SSIM_C1, SSIM_C2, window_taps


def ssim_as_usual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of (N, C, H, W): raw moments, an 11x11 window, five depthwise convolutions."""
    channels = x.shape[1]
    taps = torch.tensor(window_taps("gaussian"), dtype=x.dtype)
    window = (taps[:, None] * taps).expand(channels, 1, 11, 11).contiguous()

    def blur(t: torch.Tensor) -> torch.Tensor:
        return F.conv2d(t, window, groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x * mean_x
    var_y = blur(y * y) - mean_y * mean_y
    cov = blur(x * y) - mean_x * mean_y
    upper = (2 * mean_x * mean_y + SSIM_C1) * (2 * cov + SSIM_C2)
    return (upper / ((mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2))).mean()


class StraightforwardStep:
    """Networks and optimizers; `advance(x)` takes a batch (N, C, H, W) through one step of both."""

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.manual_seed(config.train.seed)
        self.generator, self.discriminator = Generator(config.model), Discriminator(config.model)
        adam = {"lr": config.optimizer.lr, "betas": config.optimizer.betas}
        self.generator_opt = torch.optim.Adam(self.generator.parameters(), **adam)
        self.discriminator_opt = torch.optim.Adam(self.discriminator.parameters(), **adam)

    def advance(self, x: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        config, loss = self.config, self.config.loss
        random = torch.Generator().manual_seed(int(np.random.SeedSequence((config.train.seed, step)).entropy[1]))
        x = augment(x, config.augmentation, random)
        x_noisy, mask, texture, beta = perturb(x, config.perturbation, random)

        out = self.generator(x_noisy)
        features, _ = self.discriminator(x)
        features_hat, _ = self.discriminator(out.x_hat)
        pixel = F.huber_loss(out.x_hat, x) if loss.pixel == "huber" else F.l1_loss(out.x_hat, x)
        contextual = loss.pixel_weight * pixel + loss.ssim_weight * (1 - ssim_as_usual(x, out.x_hat))
        total = (
            loss.adversarial * adversarial_loss(features, features_hat)
            + loss.contextual * contextual
            + loss.encoder * encoder_loss(out.z, out.z_hat)
            + loss.noise * noise_loss(x_noisy, out.x_hat, mask, texture, beta)
        )
        self.generator_opt.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), config.optimizer.grad_norm)
        self.generator_opt.step()

        _, logits = self.discriminator(x)
        _, logits_hat = self.discriminator(out.x_hat.detach())
        disc = discriminator_loss(logits, logits_hat)
        self.discriminator_opt.zero_grad()
        disc.backward()
        torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), config.optimizer.grad_norm)
        self.discriminator_opt.step()
        return {"total": total.detach(), "contextual": contextual.detach(), "discriminator": disc.detach()}
