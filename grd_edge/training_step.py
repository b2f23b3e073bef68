"""What every training step stands on: learning rate, random numbers, a perturbed batch, Adam, a stored state's tensors.

Source: docs/method.md, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from grd_edge.config import Config, OptimizerConfig
from grd_edge.data.perturb import Perturbed, augment_masked, perturb
from grd_edge.errors import CheckpointError


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Cosine with warm restarts, counted in optimizer steps of this run, after a linear warm-up.

    The first cycle lasts `first_cycle * steps`; each next one is `cycle_mult` times as long.

    Source: docs/method.md, section 4; Loshchilov and Hutter, arXiv 1608.03983.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    at, cycle = float(step), max(1.0, config.first_cycle * steps)
    while at >= cycle:
        at, cycle = at - cycle, cycle * config.cycle_mult
    floor = config.lr_floor
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at / cycle)))


def generator_of_step(config: Config, step: int, rank: int = 0, *, device: torch.device | str) -> torch.Generator:
    """What the random draws of a process in a step come from; a function of (seed, step, process)."""
    entropy = (config.train.seed, step, rank)
    generator = torch.Generator(device=device)
    generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
    return generator


@torch.no_grad()
def perturbed_batch(x: torch.Tensor, config: Config, step: int, rank: int = 0) -> tuple[torch.Tensor, Perturbed]:
    """A process' part of a batch, augmented, and the same perturbed; a function of (seed, step, process)."""
    return perturbed_masked_batch(x, None, config, step, rank)[:2]


@torch.no_grad()
def perturbed_masked_batch(
    x: torch.Tensor, roi: torch.Tensor | None, config: Config, step: int, rank: int = 0
) -> tuple[torch.Tensor, Perturbed, torch.Tensor | None]:
    """As `perturbed_batch`, with the masks of interest of the patches, which move with them."""
    generator = generator_of_step(config, step, rank, device=x.device)
    x, roi = augment_masked(x, roi, config.augmentation, generator)
    return x, perturb(x, config.perturbation, generator), roi


def fast_layout(module: torch.nn.Module, widths: Sequence[int]) -> torch.nn.Module:
    """`module`, of stages of these widths, in channels_last, which oneDNN and cuDNN convolve fastest.

    Not for widths below 16: there the backward pass of a 1x1 convolution of stride 2 writes past its buffer
    (torch 2.13 CPU, AVX-512; a heap corruption that a contiguous layout does not show).
    """
    fits = all(width % 16 == 0 for width in widths)
    return module.to(memory_format=torch.channels_last) if fits else module


def adam_with_state(groups: Any, config: Config) -> torch.optim.Adam:
    """Adam whose state exists from the start, so that a run has the same tensors at every step."""
    # The fused form unscales gradients itself, which clipping in float16 cannot follow.
    fused = config.train.precision != "16-mixed"
    adam = torch.optim.Adam(groups, lr=config.optimizer.lr, betas=config.optimizer.betas, fused=fused)
    for group in adam.param_groups:
        for parameter in group["params"]:
            device = parameter.device if fused else "cpu"
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[parameter] = {"step": torch.zeros((), dtype=torch.float32, device=device), **moments}
    return adam


@torch.no_grad()
def load_tensors(own: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Copies a stored state into the tensors of a run.

    Raises:
        CheckpointError: names a tensor that is missing, foreign or of another shape.
    """
    wrong = sorted(own.keys() ^ found.keys())
    wrong += sorted(key for key in own.keys() & found.keys() if own[key].shape != found[key].shape)
    if wrong:
        raise CheckpointError(f"the state to resume does not fit this configuration at {wrong[0]} ({len(wrong)})")
    for key, value in own.items():
        value.copy_(found[key])
