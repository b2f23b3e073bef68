"""Training of the generator on good images: the loop on Lightning Fabric.

Source: docs/method.md, sections 3 and 4.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import Config, OptimizerConfig
from grd_edge.data.dataset import Dataset
from grd_edge.data.frames import FrameStore, batch_at, grid_from_config
from grd_edge.data.perturb import augment, perturb
from grd_edge.losses import auxiliary_terms, discriminator_loss, reconstruction_terms, weighted_sum
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator

TIMED_STEPS = 8
WARM_STEPS = 3
WHITENING_PATCHES = 256


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows: steps done and planned, and the losses of the last step by name."""

    step: int
    steps: int
    losses: dict[str, float]


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


def _fast_layout(module: torch.nn.Module, base: int) -> torch.nn.Module:
    """`module` in channels_last, which oneDNN and cuDNN convolve fastest.

    Not for widths below 16: there the backward pass of a 1x1 convolution of stride 2 writes past its buffer
    (torch 2.13 CPU, AVX-512; a heap corruption that a contiguous layout does not show).
    """
    return module.to(memory_format=torch.channels_last) if base % 16 == 0 else module


def _parameter_groups(generator: Generator, bottleneck_lr: float) -> list[dict]:
    """Adam's groups: the projection to the latent gets a share of the learning rate.

    Adam moves every weight by about the learning rate, whatever its gradient; with 8192 inputs to a latent the
    step in the latent is then two orders larger than in a convolution, and high rates blow it up.
    """
    slow = list(generator.reconstructor.latent_down.parameters())
    ids = {id(parameter) for parameter in slow}
    rest = [parameter for parameter in generator.parameters() if id(parameter) not in ids]
    return [{"params": rest, "share": 1.0}, {"params": slow, "share": bottleneck_lr}]


class TrainingState:
    """Networks and optimizers of a run; `advance(step)` is a pure function of the state, the seed and the step."""

    def __init__(self, config: Config, store: FrameStore, fabric: Fabric) -> None:
        self.config, self.store, self.fabric = config, store, fabric
        self.grid = grid_from_config(config)
        torch.manual_seed(config.train.seed)
        generator = _fast_layout(Generator(config.model), config.model.base)
        discriminator = _fast_layout(Discriminator(config.model), config.model.discriminator_base or config.model.base)
        adam = {"lr": config.optimizer.lr, "betas": config.optimizer.betas, "fused": True}
        groups = _parameter_groups(generator, config.optimizer.bottleneck_lr)
        self.generator, self.generator_opt = fabric.setup(generator, torch.optim.Adam(groups, **adam))
        self.discriminator, self.discriminator_opt = fabric.setup(
            discriminator, torch.optim.Adam(discriminator.parameters(), **adam)
        )

    @torch.no_grad()
    def whiten_bottleneck(self) -> None:
        """Data-dependent start of a dense bottleneck: its latents become the principal components of what the random
        encoder says of good patches, each with mean 0 and variance 1; the way up starts without a bias.

        With the usual start all latents are nearly the same for every image, the decoder learns one mean image, and
        leaving that plateau takes most of a short run (docs/design/training-in-minutes.md).
        Source: the idea of data-dependent initialization is that of arXiv 1511.06422 and 1602.07868.
        """
        net = self.generator.module.reconstructor
        down, up = net.latent_down, net.latent_up
        if not net.dense:
            return
        batches = -(-min(WHITENING_PATCHES, 4 * len(self.store)) // self.config.train.batch)
        features = []
        for step in range(batches):
            x = self._batch(step)[0].contiguous(memory_format=torch.channels_last)
            features.append(net.encoder(x).flatten(1).float())
        for module in net.encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        centered = torch.cat(features)
        mean = centered.mean(0)
        centered -= mean
        # The Gram matrix is small: patches by patches instead of features by features.
        values, vectors = torch.linalg.eigh(centered.double() @ centered.double().T / len(centered))
        latents = min(down[1].out_features, int((values > 1e-6 * values[-1]).sum()))
        values, vectors = values[-latents:].flip(0), vectors[:, -latents:].flip(1)
        # Row k maps centered features to component k divided by its deviation.
        rows = (vectors / (values * len(centered) ** 0.5)).T.float() @ centered
        down[1].weight[:latents] = rows
        down[1].center.copy_(mean)
        torch.nn.init.zeros_(down[1].bias)
        torch.nn.init.zeros_(up[0].bias)

    def advance(self, step: int, steps: int) -> dict[str, torch.Tensor]:
        """One optimizer step of the generator, and of the discriminator when it is its turn; the losses by name."""
        config, fabric = self.config, self.fabric
        lr = learning_rate(step, steps, config.optimizer)
        for optimizer in (self.generator_opt, self.discriminator_opt):
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("share", 1.0)
        x, perturbed = self._batch(step)

        # Lazy regularization: the second encoder and the discriminator cost more than the reconstruction itself, and
        # their terms change slowly, so every n-th step carries them n-fold. Source: arXiv 1912.04958, appendix B.
        every = config.train.auxiliary_every
        auxiliary = step % every == 0
        out = self.generator(perturbed.x_noisy, second_encoder=auxiliary)
        x_hat = out.x_hat.float()
        terms = reconstruction_terms(x, perturbed, x_hat, config.loss)
        total = weighted_sum(terms, config.loss)
        if auxiliary:
            features, logits = self.discriminator(x)
            features_hat, logits_hat = self.discriminator(x_hat)
            more = auxiliary_terms(out, features, features_hat)
            total = total + weighted_sum(more, config.loss, scale=every)
            terms |= more
        # Both networks learn from one pass through the discriminator: each backward pass is confined to its own
        # parameters, which saves the two further passes that a separate discriminator step would cost.
        self.generator_opt.zero_grad(set_to_none=True)
        fabric.backward(total, inputs=list(self.generator.parameters()), retain_graph=auxiliary)
        if auxiliary:
            terms["discriminator"] = discriminator_loss(logits, logits_hat)
            self.discriminator_opt.zero_grad(set_to_none=True)
            fabric.backward(terms["discriminator"], inputs=list(self.discriminator.parameters()))
            self._step(self.discriminator, self.discriminator_opt)
        self._step(self.generator, self.generator_opt)
        return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}

    def _batch(self, step: int):
        config = self.config
        seed = config.train.seed
        patches = batch_at(self.store, self.grid, seed=seed, step=step, batch=config.train.batch)
        x = self.fabric.to_device(patches)
        generator = torch.Generator(device=x.device)
        generator.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1))
        with torch.no_grad():
            x = augment(x, config.augmentation, generator)
            return x, perturb(x, config.perturbation, generator)

    def _step(self, module, optimizer) -> None:
        self.fabric.clip_gradients(module, optimizer, max_norm=self.config.optimizer.grad_norm)
        optimizer.step()

    def snapshot(self) -> dict[str, object]:
        parts = (self.generator, self.discriminator, self.generator_opt, self.discriminator_opt)
        return {"parts": [copy.deepcopy(part.state_dict()) for part in parts]}

    def restore(self, snapshot: dict[str, object]) -> None:
        parts = (self.generator, self.discriminator, self.generator_opt, self.discriminator_opt)
        for part, state in zip(parts, snapshot["parts"], strict=True):
            part.load_state_dict(state)


def _steps_within(state: TrainingState, seconds: float) -> int:
    """Steps that fit into `seconds`, from timing a few that are then undone, so that they leave no trace."""
    before = state.snapshot()
    times = []
    for step in range(WARM_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        state.advance(step, 1_000_000)
        times.append(time.perf_counter() - start)
    state.restore(before)
    spent, per_step = sum(times), float(np.mean(times[WARM_STEPS:]))
    return max(1, int((seconds - spent) / per_step))


def checkpoint_from_dataset(
    dataset: Dataset, config: Config, *, on_progress: Callable[[Progress], None] | None = None
) -> Checkpoint:
    """Trains the generator on the good images of `dataset.train`.

    A time budget (`train.seconds`) becomes a step count once, before the first step; the count is stored with the
    result, so that the same count gives the same weights on the same machine with the same number of threads.

    Returns:
        Checkpoint with the reconstructor's weights, float32.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.train.precision)
    fabric.launch()
    state = TrainingState(config, FrameStore(dataset.train, config), fabric)
    state.generator.train()
    state.discriminator.train()
    start = time.perf_counter()
    state.whiten_bottleneck()
    steps = config.train.steps or _steps_within(state, config.train.seconds)
    losses: dict[str, float] = {}
    for step in range(steps):
        parts = state.advance(step, steps)
        losses = {name: float(value) for name, value in parts.items()}
        if on_progress:
            on_progress(Progress(step + 1, steps, losses))
    provenance = {
        "dataset": dataset.name,
        "manifest_sha256": dataset.manifest_sha256(),
        "train_images": len(dataset.train),
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "losses": losses,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return Checkpoint(config, state.generator.module.reconstructor.state_dict(), provenance)


def untrained_checkpoint(config: Config) -> Checkpoint:
    """The generator as the seed initializes it: the baseline that every trained model is reported beside.

    Source: docs/method.md, section 8.
    """
    torch.manual_seed(config.train.seed)
    net = Generator(config.model).reconstructor
    return Checkpoint(config, net.state_dict(), {"steps": 0})
