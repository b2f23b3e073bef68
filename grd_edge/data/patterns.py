"""Synthetic textures, which stand for natural images where a method asks for ones that are none of the part. Training
only.
"""

from __future__ import annotations

import math

import torch

from grd_edge.data.perlin import perlin_noise, uniform


def synthetic_textures(n: int, channels: int, h: int, w: int, generator: torch.Generator) -> torch.Tensor:
    """Two colors mixed by warped stripes or blobs, soft or with sharp edges, under relief and grain.

    Returns:
        (n, channels, h, w) float32 in [0, 1], on the generator's device.
    """
    blobs, warp, relief = perlin_noise(3 * n, h, w, generator).view(3, n, 1, h, w)

    def draw(low: float, high: float, width: int = 1) -> torch.Tensor:
        return uniform((n, width, 1, 1), low, high, generator)

    angle, cycles = draw(0, math.pi), 2 ** draw(0, math.log2(max(2, min(h, w) / 4)))
    y = torch.linspace(0, 1, h, device=generator.device)[:, None]
    x = torch.linspace(0, 1, w, device=generator.device)
    along = angle.sin() * y + angle.cos() * x + draw(0, 0.2) * warp
    stripes = torch.sin(2 * math.pi * (cycles * along + draw(0, 1)))
    pattern = torch.where(draw(0, 1) < 0.5, stripes, blobs)
    mixed = torch.lerp(draw(0, 1, channels), draw(0, 1, channels), (2 ** draw(0, 6) * pattern).sigmoid())
    grain = draw(0, 0.1) * torch.randn((n, channels, h, w), generator=generator, device=generator.device)
    return (mixed + draw(0, 0.3) * relief + grain).clamp(0, 1)
