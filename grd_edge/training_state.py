"""State of a training run: networks, optimizers, averaged weights; one step is a function of it and a batch.

Source: docs/method.md, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric

from grd_edge.config import Config
from grd_edge.data.frames import BatchLoader, FrameStore, Masked
from grd_edge.data.perturb import Perturbed
from grd_edge.losses import (
    auxiliary_terms,
    discriminator_loss,
    reconstruction_terms,
    segmentation_loss,
    weighted_sum,
)
from grd_edge.models.blocks import Stages
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator, Reconstructor
from grd_edge.models.segmentor import PREFIX, Segmentor, reconstructor_from_config, segmentor_from_config
from grd_edge.training_step import (
    adam_with_state,
    fast_layout,
    learning_rate,
    load_tensors,
    perturbed_masked_batch,
)

WHITENING_PATCHES = 256
PREVIEW_PATCHES = 4
# Steps in a row without finite gradients after which a run has diverged. In float16 some are skipped while the gradient
# scaler looks for its scale, which each of them halves: from 2^16 down to 1 and on.
FRUITLESS_STEPS = {"16-mixed": 24}


def networks_from_config(config: Config) -> tuple[Generator, Discriminator, Segmentor | None]:
    """Generator, discriminator and, where there is one, segmentor as the seed initializes them."""
    torch.manual_seed(config.train.seed)
    generator, discriminator = Generator(config.model), Discriminator(config.model)
    return generator, discriminator, segmentor_from_config(config) if config.segmented else None


def deployed_weights(net: Reconstructor, segmentor: Segmentor | None) -> dict[str, torch.Tensor]:
    """What of the networks runs at inference, as a checkpoint names it; not copies."""
    more = segmentor.state_dict(prefix=PREFIX) if segmentor else {}
    return {**net.state_dict(), **more}


def _parameter_groups(network: torch.nn.Module, net: Reconstructor, bottleneck_lr: float) -> list[dict]:
    """Adam's groups of a network: where it holds `net`, the projection to the latent gets a share of the learning rate.

    Adam moves every weight by about the learning rate, whatever its gradient; with 8192 inputs to a latent the
    step in the latent is then two orders larger than in a convolution, and high rates blow it up.
    """
    ids = {id(parameter) for parameter in net.latent_down.parameters()}
    parts: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
    for parameter in network.parameters():
        parts[id(parameter) in ids].append(parameter)
    return [{"params": each, "share": bottleneck_lr if slow else 1.0} for slow, each in parts.items() if each]


class ReconstructorState:
    """What the training of a reconstructor holds; `advance` of its kinds is a pure function of this, the seed, the step
    and a batch.

    With several processes each holds all of it and takes its part of a batch; gradients and running statistics are
    averaged, so that all stay the same bit for bit. BatchNorm normalizes each process' part by itself.

    Args:
        net: the reconstructor that ships; one of `networks`, or a part of one.
        segmentor: Delta of GRD-Net 2023, which ships with it and is one of `networks`; None: there is none.
        networks: what is trained, by name, each with an optimizer of its own.

    Attributes:
        ema: weights that ship, averaged over the steps, by name; empty when they are not.
        wanted: whether this process was asked to stop.
        stop: whether any process was, as of the last step; the same on all of them.
        fruitless: steps in a row whose loss or gradients were not finite; the same on all processes.
        trains, validates: whether there is anything to step, and a validation split to stop by.
        provenance: what a checkpoint says besides, plain data.
    """

    trains = validates = True

    def __init__(
        self,
        config: Config,
        fabric: Fabric,
        net: Reconstructor,
        segmentor: Segmentor | None = None,
        /,
        **networks: torch.nn.Module,
    ) -> None:
        self.config, self.fabric, self.net, self.segmentor = config, fabric, net, segmentor
        self._networks = networks
        self.provenance: dict[str, Any] = {}
        self.wanted = self.stop = False
        self.fruitless = 0
        self._adams, self._optimizers = [], []
        for network in networks.values():
            # Not Fabric's setup of modules: its reducer knows neither gradients confined to a network nor idle parts.
            fabric.to_device(network).train()
            for module in network.modules():
                if isinstance(module, Stages):
                    module.recompute = config.train.recompute
            groups = _parameter_groups(network, net, config.optimizer.bottleneck_lr)
            self._adams.append(adam_with_state(groups, config))
            self._optimizers.append(fabric.setup_optimizers(self._adams[-1]))
        averaged = self._deployed() if config.train.ema_decay else {}
        self.ema = {key: value.clone() for key, value in averaged.items()}

    # ------------------------------------------------------------------ steps

    def perturbed(self, batch: torch.Tensor | Masked, step: int) -> tuple[torch.Tensor, Perturbed]:
        """`perturbed_batch` of this process' part."""
        return self._perturbed(batch, step)[:2]

    def _perturbed(
        self, batch: torch.Tensor | Masked, step: int
    ) -> tuple[torch.Tensor, Perturbed, torch.Tensor | None]:
        x, roi = batch if isinstance(batch, Masked) else (batch, None)
        x, roi = self.fabric.to_device((x, roi))
        return perturbed_masked_batch(x, roi, self.config, step, self.fabric.global_rank)

    def begin(self, store: FrameStore, loader: BatchLoader, note: Callable[[str], None]) -> None:
        """What comes before the first step."""
        self.whiten_bottleneck(loader.at, len(store))

    def step_to_time(self, number: int, period: int, steps: int) -> int:
        """The step of a run of `steps` whose cost the n-th one that is timed tells; they repeat after `period`."""
        return number

    @torch.no_grad()
    def preview(self, batch: torch.Tensor | Masked, step: int) -> list[torch.Tensor]:
        """Input, perturbed input, reconstruction, their distance and the segmentor's map, of a few patches."""
        x, perturbed = self.perturbed(batch, step)
        x, noisy = x[:PREVIEW_PATCHES], perturbed.x_noisy[:PREVIEW_PATCHES]
        net = self.reconstructor()
        x_hat = net.reconstruct(noisy) if self.segmentor else net(noisy)
        maps = [net.scores(noisy, x_hat)[1].expand_as(x)] if self.segmentor else []
        return [x, noisy, x_hat, (noisy - x_hat).abs(), *maps]

    def finish(self, store: FrameStore, loader: BatchLoader, note: Callable[[str], None]) -> None:
        """Nothing: the last step ends it."""

    @torch.no_grad()
    def whiten_bottleneck(self, batch_at: Callable[[int], torch.Tensor | Masked], images: int) -> None:
        """Data-dependent start of a dense bottleneck: its latents become the principal components of what the random
        encoder says of good patches, each with mean 0 and variance 1; the way up starts without a bias.

        With the usual start all latents are nearly the same for every image, the decoder learns one mean image, and
        leaving that plateau takes most of a short run (docs/design/training-in-minutes.md).
        Source: the idea of data-dependent initialization is that of arXiv 1511.06422 and 1602.07868.
        """
        net = self.net
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
        self._restart_average()

    def set_rates(self, step: int, steps: int) -> None:
        """Learning rates of a step, in all optimizers."""
        lr = learning_rate(step, steps, self.config.optimizer)
        for adam in self._adams:
            for group in adam.param_groups:
                group["lr"] = lr * group["share"]

    @property
    def diverged(self) -> bool:
        """Whether no step helps any more; the same on all processes."""
        if not self.fruitless:
            return False
        # A forward pass that overflows float16 spoils running statistics for good, though its step is skipped.
        spoiled = any(not value.isfinite().all() for value in self._deployed().values())
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

    def _restart_average(self) -> None:
        """The average begins at the weights as they are."""
        for key, value in self._deployed().items() if self.ema else ():
            self.ema[key].copy_(value)

    @torch.no_grad()
    def _average_weights(self, step: int) -> None:
        """Exponential moving average of all that ships; its decay grows to `ema_decay` at first.

        Source: the growth is that of tf.train.ExponentialMovingAverage.
        """
        if self.ema:
            decay = min(self.config.train.ema_decay, (1 + step) / (10 + step))
            for key, value in self._deployed().items():
                average = self.ema[key]
                average.lerp_(value, 1 - decay) if value.is_floating_point() else average.copy_(value)

    # ------------------------------------------------------------------ state

    def shipped(self) -> dict[str, torch.Tensor]:
        """Weights that a checkpoint gets: the averaged ones where there are, else the last ones; not copies."""
        return self.ema or self._deployed()

    def _deployed(self) -> dict[str, torch.Tensor]:
        return deployed_weights(self.net, self.segmentor)

    def reconstructor(self) -> Reconstructor:
        """A network of its own with the shipped weights, in evaluation mode."""
        net = fast_layout(reconstructor_from_config(self.config), self.config.model.stage_widths)
        net = self.fabric.to_device(net)
        net.load_state_dict(self.shipped())
        return net.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, by name; the tensors themselves, not copies."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for (name, network), adam in zip(self._networks.items(), self._adams, strict=True):
            yield from ((f"{name}.{key}", value) for key, value in network.state_dict().items())
            parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                for key, value in adam.state[parameter].items():
                    yield f"{name}_adam.{index}.{key}", value
        yield from ((f"ema.{key}", value) for key, value in self.ema.items())

    def scaler(self) -> dict[str, Any]:
        """State of the gradient scaler of 16-mixed; empty for other precisions."""
        return self.fabric.strategy.precision.state_dict()

    def load(self, found: dict[str, torch.Tensor], scaler: dict[str, Any]) -> None:
        """Takes over a state of the same configuration.

        Raises:
            CheckpointError: names a tensor that is missing, foreign or of another shape.
        """
        load_tensors(self.tensors(), found)
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


class TrainingState(ReconstructorState):
    """Generator and discriminator, and the segmentor where there is one, with their optimizers."""

    def __init__(self, config: Config, fabric: Fabric) -> None:
        generator, discriminator, segmentor = networks_from_config(config)
        self.generator = fast_layout(generator, config.model.stage_widths)
        self.discriminator = fast_layout(discriminator, config.model.discriminator_widths)
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        if segmentor:
            networks["segmentor"] = fast_layout(segmentor, (config.method.segmentor_base,))
        super().__init__(config, fabric, self.generator.reconstructor, segmentor, **networks)
        self.generator_opt, self.discriminator_opt, *more = self._optimizers
        self.segmentor_opt = more[0] if more else None

    def advance(self, batch: torch.Tensor | Masked, step: int, steps: int) -> dict[str, torch.Tensor]:
        """One optimizer step of the generator and the segmentor, and of the discriminator when it is its turn; the
        losses by name."""
        config, fabric = self.config, self.fabric
        self.set_rates(step, steps)
        x, perturbed, roi = self._perturbed(batch, step)

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
        if self.segmentor:
            # It learns from the reconstruction and the generator nothing from it, as in the authors' code.
            with fabric.autocast():
                logits = self.segmentor(perturbed.x_noisy, x_hat.detach())
            terms["segmentor"] = segmentation_loss(logits.float(), perturbed.mask, roi)
            weighted = config.method.segmentor_weight * terms["segmentor"]
            self.segmentor_opt.zero_grad(set_to_none=True)
            fabric.backward(weighted)
            finite &= self._step(self.segmentor, self.segmentor_opt, weighted)
            total = total + weighted
        self.fruitless = 0 if finite else self.fruitless + 1
        self._average_weights(step)
        return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}
