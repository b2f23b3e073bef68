"""State of a training run: networks, optimizers, averaged weights; one step is a function of it and a batch.

Source: docs/method.md, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from grd_edge.config import Config, OptimizerConfig
from grd_edge.data.perturb import Perturbed, augment, perturb
from grd_edge.errors import CheckpointError
from grd_edge.losses import auxiliary_terms, discriminator_loss, reconstruction_terms, weighted_sum
from grd_edge.models.blocks import Stages
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator, Reconstructor

WHITENING_PATCHES = 256
# Steps in a row without finite gradients after which a run has diverged. In float16 some are skipped while the gradient
# scaler looks for its scale, which each of them halves: from 2^16 down to 1 and on.
FRUITLESS_STEPS = {"16-mixed": 24}


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


@torch.no_grad()
def perturbed_batch(x: torch.Tensor, config: Config, step: int, rank: int = 0) -> tuple[torch.Tensor, Perturbed]:
    """A process' part of a batch, augmented, and the same perturbed; a function of (seed, step, process)."""
    entropy = (config.train.seed, step, rank)
    generator = torch.Generator(device=x.device)
    generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
    x = augment(x, config.augmentation, generator)
    return x, perturb(x, config.perturbation, generator)


def fast_layout(module: torch.nn.Module, base: int) -> torch.nn.Module:
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


def _adam(groups: Any, config: Config) -> torch.optim.Adam:
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


class TrainingState:
    """Networks and optimizers of a run; `advance` is a pure function of this state, the seed, the step and a batch.

    With several processes each holds all of it and takes its part of a batch; gradients and running statistics are
    averaged, so that all stay the same bit for bit. BatchNorm normalizes each process' part by itself.

    Attributes:
        ema: weights of the reconstructor averaged over the steps, by name; empty when they are not.
        wanted: whether this process was asked to stop.
        stop: whether any process was, as of the last step; the same on all of them.
        fruitless: steps in a row whose loss or gradients were not finite; the same on all processes.
    """

    def __init__(self, config: Config, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        self.wanted = self.stop = False
        self.fruitless = 0
        torch.manual_seed(config.train.seed)
        generator = fast_layout(Generator(config.model), config.model.base)
        discriminator = fast_layout(Discriminator(config.model), config.model.discriminator_base or config.model.base)
        # Not Fabric's setup of modules: its reducer knows neither gradients confined to a network nor idle parts.
        self.generator, self.discriminator = fabric.to_device(generator), fabric.to_device(discriminator)
        for module in (*self.generator.modules(), *self.discriminator.modules()):
            if isinstance(module, Stages):
                module.recompute = config.train.recompute
        groups = _parameter_groups(self.generator, config.optimizer.bottleneck_lr)
        self._adams = _adam(groups, config), _adam(self.discriminator.parameters(), config)
        self.generator_opt, self.discriminator_opt = (fabric.setup_optimizers(adam) for adam in self._adams)
        self.generator.train()
        self.discriminator.train()
        averaged = self.generator.reconstructor.state_dict() if config.train.ema_decay else {}
        self.ema = {key: value.clone() for key, value in averaged.items()}

    # ------------------------------------------------------------------ steps

    def perturbed(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, Perturbed]:
        """`perturbed_batch` of this process' part."""
        return perturbed_batch(self.fabric.to_device(batch), self.config, step, self.fabric.global_rank)

    @torch.no_grad()
    def whiten_bottleneck(self, batch_at: Callable[[int], torch.Tensor], images: int) -> None:
        """Data-dependent start of a dense bottleneck: its latents become the principal components of what the random
        encoder says of good patches, each with mean 0 and variance 1; the way up starts without a bias.

        With the usual start all latents are nearly the same for every image, the decoder learns one mean image, and
        leaving that plateau takes most of a short run (docs/design/training-in-minutes.md).
        Source: the idea of data-dependent initialization is that of arXiv 1511.06422 and 1602.07868.
        """
        net = self.generator.reconstructor
        down, up = net.latent_down, net.latent_up
        if not net.dense:
            return
        batches = -(-min(WHITENING_PATCHES, 4 * images) // self.config.train.batch)
        features = []
        with self.fabric.autocast():
            for step in range(batches):
                x = self.perturbed(batch_at(step), step)[0].contiguous(memory_format=torch.channels_last)
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
        for key, value in net.state_dict().items() if self.ema else ():
            self.ema[key].copy_(value)

    def advance(self, batch: torch.Tensor, step: int, steps: int) -> dict[str, torch.Tensor]:
        """One optimizer step of the generator, and of the discriminator when it is its turn; the losses by name."""
        config, fabric = self.config, self.fabric
        lr = learning_rate(step, steps, config.optimizer)
        for optimizer in self._adams:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("share", 1.0)
        x, perturbed = self.perturbed(batch, step)

        # Lazy regularization: the second encoder and the discriminator cost more than the reconstruction itself, and
        # their terms change slowly, so every n-th step carries them n-fold. Source: arXiv 1912.04958, appendix B.
        every = config.train.auxiliary_every
        auxiliary = step % every == 0
        with fabric.autocast():
            out = self.generator(perturbed.x_noisy, second_encoder=auxiliary)
        x_hat = out.x_hat.float()
        terms = reconstruction_terms(x, perturbed, x_hat, config.loss)
        total = weighted_sum(terms, config.loss)
        if auxiliary:
            with fabric.autocast():
                features, logits = self.discriminator(x)
                features_hat, logits_hat = self.discriminator(x_hat)
            more = auxiliary_terms(out, features, features_hat)
            total = total + weighted_sum(more, config.loss, scale=every)
            terms |= more
        # Both networks learn from one pass through the discriminator: each backward pass is confined to its own
        # parameters, which saves the two further passes that a separate discriminator step would cost.
        self.generator_opt.zero_grad(set_to_none=True)
        fabric.backward(total, inputs=list(self.generator.parameters()), retain_graph=auxiliary)
        finite = self._step(self.generator, self.generator_opt, total)
        if auxiliary:
            terms["discriminator"] = discriminator_loss(logits.float(), logits_hat.float())
            self.discriminator_opt.zero_grad(set_to_none=True)
            fabric.backward(terms["discriminator"], inputs=list(self.discriminator.parameters()))
            finite &= self._step(self.discriminator, self.discriminator_opt, terms["discriminator"])
        self.fruitless = 0 if finite else self.fruitless + 1
        self._average_weights(step)
        return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}

    @property
    def diverged(self) -> bool:
        """Whether no step helps any more; the same on all processes."""
        if not self.fruitless:
            return False
        # A forward pass that overflows float16 spoils running statistics for good, though its step is skipped.
        spoiled = any(not value.isfinite().all() for value in self.generator.reconstructor.state_dict().values())
        return spoiled or self.fruitless >= FRUITLESS_STEPS.get(self.config.train.precision, 1)

    def _step(self, module: torch.nn.Module, optimizer, loss: torch.Tensor) -> bool:
        """One step of an optimizer; whether the loss and the gradients of all processes were finite."""
        loss = self._average_over_processes(module, loss.detach())
        max_norm = self.config.optimizer.grad_norm
        norm = self.fabric.clip_gradients(module, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        optimizer.step()
        return bool(torch.isfinite(norm) & torch.isfinite(loss))

    @torch.no_grad()
    def _average_over_processes(self, module: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Gradients and running statistics become their mean over the processes, in one message with the wish to
        stop and the loss; the mean loss."""
        world = self.fabric.world_size
        if world == 1:
            self.stop = self.wanted
            return loss
        parts = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        parts += [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        wish = torch.full((1,), float(self.wanted), device=self.fabric.device)
        flat = torch.cat([wish, loss.reshape(1).float(), *(part.reshape(-1) for part in parts)])
        torch.distributed.all_reduce(flat)
        flat /= world
        self.stop = bool(flat[0] > 0)
        start = 2
        for part in parts:
            part.copy_(flat[start : start + part.numel()].view(part.shape))
            start += part.numel()
        return flat[1]

    @torch.no_grad()
    def _average_weights(self, step: int) -> None:
        """Exponential moving average of all that the reconstructor holds; its decay grows to `ema_decay` at first.

        Source: the growth is that of tf.train.ExponentialMovingAverage.
        """
        if self.ema:
            decay = min(self.config.train.ema_decay, (1 + step) / (10 + step))
            for key, value in self.generator.reconstructor.state_dict().items():
                average = self.ema[key]
                average.lerp_(value, 1 - decay) if value.is_floating_point() else average.copy_(value)

    # ------------------------------------------------------------------ state

    def shipped(self) -> dict[str, torch.Tensor]:
        """Weights that a checkpoint gets: the averaged ones where there are, else the last ones; not copies."""
        return self.ema or self.generator.reconstructor.state_dict()

    def reconstructor(self) -> Reconstructor:
        """A network of its own with the shipped weights, in evaluation mode."""
        net = fast_layout(Reconstructor(self.config.model), self.config.model.base)
        net = self.fabric.to_device(net)
        net.load_state_dict(self.shipped())
        return net.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, by name; the tensors themselves, not copies."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        networks = (("generator", self.generator), ("discriminator", self.discriminator))
        for (name, network), adam in zip(networks, self._adams, strict=True):
            yield from ((f"{name}.{key}", value) for key, value in network.state_dict().items())
            parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                for key, value in adam.state[parameter].items():
                    yield f"{name}_adam.{index}.{key}", value
        yield from ((f"ema.{key}", value) for key, value in self.ema.items())

    def scaler(self) -> dict[str, Any]:
        """State of the gradient scaler of 16-mixed; empty for other precisions."""
        return self.fabric.strategy.precision.state_dict()

    @torch.no_grad()
    def load(self, found: dict[str, torch.Tensor], scaler: dict[str, Any]) -> None:
        """Takes over a state of the same configuration.

        Raises:
            CheckpointError: names a tensor that is missing, foreign or of another shape.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ found.keys())
        wrong += sorted(key for key in own.keys() & found.keys() if own[key].shape != found[key].shape)
        if wrong:
            raise CheckpointError(f"the state to resume does not fit this configuration at {wrong[0]} ({len(wrong)})")
        for key, value in own.items():
            value.copy_(found[key])
        self.fruitless = 0
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)

    @torch.no_grad()
    def share(self) -> None:
        """Every process takes over the state of the first one, its gradient scaler included."""
        if self.fabric.world_size > 1:
            for value in self.tensors().values():
                whole = value.contiguous()
                torch.distributed.broadcast(whole, 0)
                value.copy_(whole)
            if scaler := self.fabric.broadcast(self.scaler()):
                self.fabric.strategy.precision.load_state_dict(scaler)
