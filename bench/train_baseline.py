"""The straightforward training step, and the race of grd_edge.training_state against it.

The same networks, losses and data, written as usual: contiguous tensors, every term in every step, a discriminator step
with forward passes of its own, SSIM by five dense convolutions, Adam as PyTorch offers it. Source: docs/method.md,
section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from grd_edge.bench.timer import interleaved
from lightning_fabric import Fabric
from torch.nn import functional as F

from grd_edge.config import Config, load_config
from grd_edge.data.perturb import Perturbed
from grd_edge.errors import CheckFailedError
from grd_edge.heap import keep_heap
from grd_edge.losses import adversarial_loss, discriminator_loss, encoder_loss, noise_loss, weighted_sum
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator
from grd_edge.score import SSIM_C1, SSIM_C2, window_taps
from grd_edge.training_state import TrainingState


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
    """Networks and optimizers; `advance` takes a batch through one step of both."""

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.manual_seed(config.train.seed)
        self.generator, self.discriminator = Generator(config.model), Discriminator(config.model)
        adam = {"lr": config.optimizer.lr, "betas": config.optimizer.betas}
        self.generator_opt = torch.optim.Adam(self.generator.parameters(), **adam)
        self.discriminator_opt = torch.optim.Adam(self.discriminator.parameters(), **adam)

    def advance(self, x: torch.Tensor, perturbed: Perturbed) -> dict[str, torch.Tensor]:
        config, loss = self.config, self.config.loss
        x_noisy, mask, texture, beta = perturbed

        out = self.generator(x_noisy)
        features, _ = self.discriminator(x)
        features_hat, _ = self.discriminator(out.x_hat)
        pixel = F.huber_loss(out.x_hat, x) if loss.pixel == "huber" else F.l1_loss(out.x_hat, x)
        terms = {
            "contextual": loss.pixel_weight * pixel + loss.ssim_weight * (1 - ssim_as_usual(x, out.x_hat)),
            "noise": noise_loss(x_noisy, out.x_hat, mask, texture, beta),
            "adversarial": adversarial_loss(features, features_hat),
            "encoder": encoder_loss(out.z, out.z_hat),
        }
        total = weighted_sum(terms, loss)
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
        return {name: value.detach() for name, value in terms.items()} | {"discriminator": disc.detach()}


class Steps(NamedTuple):
    """Both sides, from the same weights and batch.

    Attributes:
        own: the product's, whose even steps carry all terms.
        plain: the straightforward one.
        x: the batch, (N, C, H, W) float32 in [0, 1].
    """

    own: TrainingState
    plain: StraightforwardStep
    x: torch.Tensor


def training_steps(*, base: int, patch_px: int, batch: int) -> Steps:
    """Steps on the CPU, for networks of this width on square patches."""
    shape = [f"model.base={base}", f"model.patch_h={patch_px}", f"model.patch_w={patch_px}", f"train.batch={batch}"]
    config = load_config(overrides=[*shape, "train.auxiliary_every=2"])  # even steps carry twice the auxiliary terms
    own, plain = TrainingState(config, Fabric(accelerator="cpu", devices=1)), StraightforwardStep(config)
    size = (batch, config.model.channels, patch_px, patch_px)
    return Steps(own, plain, torch.rand(size, generator=torch.Generator().manual_seed(0)))


def check_losses(reference: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Holds the losses of a first step against another's.

    Raises:
        CheckFailedError: they do not agree within 1e-3.
    """
    for name in ("contextual", "adversarial", "encoder", "noise", "discriminator"):
        a, b = float(reference[name]), float(found[name])
        if not abs(a - b) <= 1e-3 * abs(b):
            raise CheckFailedError(f"{name} is {a} and {b}; steps that differ are not timed")


def race_training_steps(
    *, base: int = 32, patch_px: int = 128, batch: int = 16, rounds: int = 5, warmup: int = 1
) -> dict[str, float]:
    """Min ms per step on the CPU, interleaved: every term in every step on both sides, from the same weights and batch.

    Keys end in `_min_ms`: `straightforward`, `own`, `own_bare` (a step without the auxiliary terms), `perturbation`
    (with augmentation; both other sides contain it). All run with the heap kept (grd_edge.heap), so that the networks
    and not the allocator are compared; `straightforward_plain_heap` and `own_fresh_heap` are with the allocator as it
    is, and with a heap that is kept during one step only.

    Raises:
        CheckFailedError: the losses of the first step do not agree within 1e-3.
    """
    own, plain, x = training_steps(base=base, patch_px=patch_px, batch=batch)

    def check(outputs: dict[str, dict[str, torch.Tensor]]) -> None:
        check_losses(outputs["straightforward"], outputs["own"])

    contenders = {
        "straightforward": lambda _: plain.advance(*own.perturbed(x, 0)),
        "own": lambda _: own.advance(x, 0, 1000),
        "own_bare": lambda _: own.advance(x, 1, 1000),
        "perturbation": lambda _: own.perturbed(x, 0),
    }
    with keep_heap():
        timings = interleaved(contenders, rounds=rounds, warmup=warmup, check=check)

    def fresh(_: object) -> None:
        with keep_heap():
            own.advance(x, 0, 1000)

    del contenders["own"], contenders["own_bare"], contenders["perturbation"]
    timings |= {
        f"{name}_{'fresh' if name == 'own' else 'plain'}_heap": timing
        for name, timing in interleaved(contenders | {"own": fresh}, rounds=rounds, warmup=warmup).items()
    }
    return {f"{name}_min_ms": timing.min_ms for name, timing in timings.items()}
