"""Perlin noise for a whole batch at once, for every image size, on the training device.

Source: docs/method.md, section 3; gradient noise after Perlin, "Improving Noise" (SIGGRAPH 2002).
"""

from __future__ import annotations

import math

import torch

MAX_OCTAVE = 5  # 2**5 = 32 lattice cells along an axis at most
MIN_CELL_PX = 4  # gradient noise is 0 at every lattice point: finer cells would leave little of it


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """float32 samples of U(low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def perlin_noise(n: int, h: int, w: int, generator: torch.Generator) -> torch.Tensor:
    """Gradient noise (n, h, w), float32, about [-1, 1]; each image has lattices of 2**U{0..5} cells in y and x.

    Small images get fewer octaves, so that a cell is at least 4 px.
    """
    device = generator.device

    def cells(extent: int) -> torch.Tensor:
        octaves = min(MAX_OCTAVE, max(0, int(math.log2(max(1, extent // MIN_CELL_PX)))))
        return 2 ** torch.randint(0, octaves + 1, (n, 1), generator=generator, device=device)

    side = 2**MAX_OCTAVE + 1
    angles = uniform((n, side * side), 0, 2 * math.pi, generator)
    gradients_y, gradients_x = angles.sin(), angles.cos()

    def axis(length: int, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = torch.arange(length, device=device) * count / length  # (n, length), in cells
        cell = at.long()
        offset = at - cell
        return cell, offset, offset**3 * (offset * (offset * 6 - 15) + 10)

    (cell_y, off_y, fade_y), (cell_x, off_x, fade_x) = axis(h, cells(h)), axis(w, cells(w))
    base = (cell_y[:, :, None] * side + cell_x[:, None, :]).flatten(1)

    def corner(dy: int, dx: int) -> torch.Tensor:
        index = base + (dy * side + dx)
        along_y = gradients_y.gather(1, index).view(n, h, w) * (off_y - dy)[:, :, None]
        return along_y.addcmul_(gradients_x.gather(1, index).view(n, h, w), (off_x - dx)[:, None, :])

    top = torch.lerp(corner(0, 0), corner(0, 1), fade_x[:, None, :])
    bottom = torch.lerp(corner(1, 0), corner(1, 1), fade_x[:, None, :])
    return torch.lerp(top, bottom, fade_y[:, :, None]).mul_(math.sqrt(2))


def perlin_mask(noise: torch.Tensor, min_area_px: int, threshold: float = 0.5) -> torch.Tensor:
    """Binary masks (n, 1, h, w) float32 of noise (n, h, w): above `threshold`, and at least `min_area_px` each.

    Where the threshold leaves too little, it is lowered to the min_area_px-th largest value of that image.
    """
    flat = noise.flatten(1)
    largest = flat.topk(min(min_area_px, flat.shape[1]), dim=1).values[:, -1:]
    level = largest.clamp(max=threshold)[:, :, None]
    return (noise >= level).float()[:, None]
