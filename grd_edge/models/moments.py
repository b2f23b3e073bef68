"""Mean and deviation of features of good patches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

LEAST_SHARE = 1e-3  # of the mean deviation: what a channel that hardly varies has


@torch.no_grad()
def channel_moments(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel over batches (N, C, H, W): two tensors (C,) float32, deviations above 0."""
    count, total, squares = 0, 0, 0
    for batch in batches:
        batch = batch.double()
        count += batch[:, 0].numel()
        total, squares = total + batch.sum((0, 2, 3)), squares + batch.square().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(max(LEAST_SHARE * float(std.mean()), 1e-12)).float()
