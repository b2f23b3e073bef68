"""Augmentation and perturbation of a batch on the training device. Training only.

Source: docs/method.md, section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from grd_edge.config import AugmentationConfig, PerturbationConfig
from grd_edge.data.perlin import perlin_mask, perlin_noise, uniform


class Perturbed(NamedTuple):
    """X_n (N, C, H, W), M (N, 1, H, W), N masked texture (N, C, H, W), beta (N, 1, 1, 1)."""

    x_noisy: torch.Tensor
    mask: torch.Tensor
    texture: torch.Tensor
    beta: torch.Tensor


def augment(x: torch.Tensor, config: AugmentationConfig, generator: torch.Generator) -> torch.Tensor:
    """Rotation and flips with reflected borders, then Gaussian sensor noise; clamped to [0, 1]."""
    return augment_masked(x, None, config, generator)[0]


def augment_masked(
    x: torch.Tensor, roi: torch.Tensor | None, config: AugmentationConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `augment`, with a mask (N, 1, H, W) of 0 and 1 that is moved as `x` is, to the nearest pixel."""
    n, device = x.shape[0], x.device
    if config.rotation_deg:
        angle = uniform((n,), -config.rotation_deg, config.rotation_deg, generator) * (math.pi / 180)
        # Angles live in pixels: a patch that is not square must not be sheared by normalized coordinates.
        ratio = x.shape[2] / x.shape[3]
        theta = torch.zeros(n, 2, 3, device=device)
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * ratio, angle.sin() / ratio
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if roi is not None:
            roi = F.grid_sample(roi, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    for wanted, dim in ((config.flip_x, 3), (config.flip_y, 2)):
        if wanted:
            chosen = torch.rand((n, 1, 1, 1), generator=generator, device=device) < 0.5
            x = torch.where(chosen, x.flip(dim), x)
            roi = roi if roi is None else torch.where(chosen, roi.flip(dim), roi)
    if config.noise_sigma:
        sigma = uniform((n, 1, 1, 1), 0, config.noise_sigma, generator)
        x = x + sigma * torch.randn(x.shape, generator=generator, device=device)
    return x.clamp(0, 1), roi


def perturb(
    x: torch.Tensor, config: PerturbationConfig, generator: torch.Generator, images: torch.Tensor | None = None
) -> Perturbed:
    """X_n = (1 - M) X + (1 - beta) M X + beta M N; outside M, X_n equals X exactly.

    Args:
        images: of the shape of x, in [0, 1]: what textures of the kind `image` are made of, in place of other images of
            the batch.
    """
    n, _, h, w = x.shape
    noise = perlin_noise(2 * n, h, w, generator)
    mask = perlin_mask(noise[:n], config.min_area_px)
    chosen = torch.rand((n, 1, 1, 1), generator=generator, device=x.device) < config.probability
    mask = mask * chosen
    texture = _textures(x, noise[n:], config, generator, images) * mask
    beta = uniform((n, 1, 1, 1), config.beta_min, config.beta_max, generator)
    mixed = (1 - beta) * x + beta * texture
    return Perturbed(torch.where(mask.bool(), mixed, x), mask, texture, beta)


def _textures(
    x: torch.Tensor,
    noise: torch.Tensor,
    config: PerturbationConfig,
    generator: torch.Generator,
    images: torch.Tensor | None,
) -> torch.Tensor:
    """One texture per image in [0, 1], of a kind drawn at random from the configured ones."""
    n, c = x.shape[:2]
    device = x.device

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand((n, *shape, 1, 1), generator=generator, device=device)

    kind = torch.randint(0, len(config.textures), (n, 1, 1, 1), generator=generator, device=device)
    texture = torch.empty_like(x)
    for index, name in enumerate(config.textures):
        if name == "image":
            other = 1 + int(torch.randint(0, max(1, n - 1), (1,), generator=generator, device=device))
            made = x.roll(other, 0) if images is None else images
            for dim in (2, 3):
                made = torch.where(draw(1) < 0.5, made.flip(dim), made)
            made = torch.where(draw(1) < 0.5, 1 - made, made)
            made = made.clamp_min(1e-6) ** torch.exp2(2 * draw(1) - 1)  # gamma 0.5 to 2
        elif name == "flat":
            level = draw(c)
            # Half of them near black or white: dark and bright spots are the commonest real defects.
            made = torch.where(draw(1) < 0.5, 0.15 * level + 0.85 * (draw(1) < 0.5), level).expand_as(x)
        elif name == "perlin":
            low, high = noise.amin((1, 2), keepdim=True), noise.amax((1, 2), keepdim=True)
            made = ((noise - low) / (high - low + 1e-8))[:, None].expand_as(x)
        else:
            made = torch.rand(x.shape, generator=generator, device=device)
        texture = torch.where(kind == index, made, texture)
    return texture
