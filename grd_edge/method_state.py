"""State of the training of a method that scores patches itself; one step is a function of it and a batch.

The same calls as `TrainingState`, which is the generator's. Source: docs/design/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric

from grd_edge.config import Config
from grd_edge.data.frames import BatchLoader, FrameStore, grid_from_config
from grd_edge.data.perturb import augment
from grd_edge.models.method import GoodPatches, Method, method_from_config
from grd_edge.regions import patches_with_interest
from grd_edge.training_step import adam_with_state, generator_of_step, learning_rate, load_tensors


class MethodState:
    """A method and its optimizer; `advance` is a pure function of this state, the seed, the step and a batch.

    Attributes:
        wanted, stop: whether someone asked the run to stop.
        trains, validates: whether there is anything to step (if not, a run has no steps), and a validation to stop by.
        diverged: whether a loss or gradient was not finite.
    """

    validates = False

    def __init__(self, config: Config, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        self.wanted = self.diverged = False
        torch.manual_seed(config.train.seed)
        self.method: Method = fabric.to_device(method_from_config(config))
        groups = self.method.groups()
        self.trains = bool(groups)
        self._adam = adam_with_state(groups, config) if groups else None
        self._optimizer = fabric.setup_optimizers(self._adam) if groups else None
        self.method.train()

    @property
    def stop(self) -> bool:
        return self.wanted

    @property
    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says besides, plain data."""
        return {"method": self.config.method.name, **self.method.provenance}

    @provenance.setter
    def provenance(self, found: dict[str, Any]) -> None:
        self.method.provenance = {key: value for key, value in found.items() if key != "method"}

    # ------------------------------------------------------------------ steps

    def begin(self, store: FrameStore, loader: BatchLoader, note: Callable[[str], None]) -> None:
        """Pretrained weights and statistics of good patches.

        Raises:
            ConfigError: weights that cannot be used.
        """
        self.method.load_pretrained()
        self.method.begin(good_patches(store, loader, self.augmented, note))

    def step_to_time(self, number: int, period: int, steps: int) -> int:
        """Steps from all over a run: the parts of a method's training need not cost the same."""
        return number % period * steps // period

    def preview(self, batch: torch.Tensor, step: int) -> list[torch.Tensor]:
        """None: what a method sees before it is finished has no common form."""
        return []

    def augmented(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Generator]:
        """A batch augmented, and what else the step draws from."""
        x = self.fabric.to_device(batch)
        random = generator_of_step(self.config, step, device=x.device)
        return augment(x, self.config.augmentation, random), random

    def advance(self, batch: torch.Tensor, step: int, steps: int) -> dict[str, torch.Tensor]:
        """One optimizer step; the losses by name."""
        lr = learning_rate(step, steps, self.config.optimizer)
        for group in self._adam.param_groups:
            group["lr"] = lr * group.get("share", 1.0)
        x, random = self.augmented(batch, step)
        with self.fabric.autocast():
            terms = self.method.loss(x, random, step, steps)
        total = sum(terms.values())
        self._optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        norm = self.fabric.clip_gradients(
            self.method, self._optimizer, max_norm=self.config.optimizer.grad_norm, error_if_nonfinite=False
        )
        self._optimizer.step()
        self.diverged = not bool(torch.isfinite(norm) & torch.isfinite(total.detach()))
        return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}

    @torch.no_grad()
    def finish(self, store: FrameStore, loader: BatchLoader, note: Callable[[str], None]) -> None:
        """What follows the last step; afterwards only what inference needs is left."""
        self.method.eval()
        self.method.finish(good_patches(store, loader, self.augmented, note))
        self.method.prune()

    # ------------------------------------------------------------------ state

    def shipped(self) -> dict[str, torch.Tensor]:
        """Weights that a checkpoint gets, after `finish`; not copies."""
        return self.method.state_dict()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, by name; the tensors themselves, not copies."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((f"method.{key}", value) for key, value in self.method.state_dict().items())
        parameters = [each for group in self._adam.param_groups for each in group["params"]] if self._adam else []
        for index, parameter in enumerate(parameters):
            yield from ((f"adam.{index}.{key}", value) for key, value in self._adam.state[parameter].items())

    def scaler(self) -> dict[str, Any]:
        """State of the gradient scaler of 16-mixed; empty for other precisions."""
        return self.fabric.strategy.precision.state_dict()

    def load(self, found: dict[str, torch.Tensor], scaler: dict[str, Any]) -> None:
        """Takes over a state of the same configuration.

        Raises:
            CheckpointError: names a tensor that is missing, foreign or of another shape.
        """
        self.method.fit_shapes(
            {key.removeprefix("method."): v for key, v in found.items() if key.startswith("method.")}
        )
        load_tensors(self.tensors(), found)
        self.diverged = False
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)

    def share(self) -> None:
        """Nothing: there is one process."""


def good_patches(
    store: FrameStore,
    loader: BatchLoader,
    augmented: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Generator]],
    note: Callable[[str], None],
) -> GoodPatches:
    """The patches of a split, as a method is given them."""
    grid, batch = grid_from_config(store.config), store.config.train.batch

    def every() -> Iterator[torch.Tensor]:
        waiting = torch.empty(0)
        for index in range(len(store)):
            frame, interest = store[index], store.frame(index).interest
            cut = grid.cut(frame)
            if interest is not None:
                positions = grid.positions(*frame.shape[1:])
                cut = cut[patches_with_interest(interest, positions, grid.patch_h, grid.patch_w)]
            waiting = torch.cat([waiting, torch.from_numpy(cut)]) if len(waiting) else torch.from_numpy(cut)
            while len(waiting) >= batch:
                yield waiting[:batch]
                waiting = waiting[batch:]
        if len(waiting):
            yield waiting

    return GoodPatches(every, lambda step: augmented(loader.at(step), step)[0], note)
