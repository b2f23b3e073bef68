"""Training of a narrower generator after a trained one, its teacher: distillation, from pruned weights where they fit.

The loop is that of any training (grd_edge.train); here are the settings, the start and the step.
Source: docs/design/distillation.md, which has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from grd_edge.checkpoint import Checkpoint, read_checkpoint
from grd_edge.config import Config, overlaid_config
from grd_edge.data.dataset import SEEN_IMAGES, Dataset, content_ids
from grd_edge.data.frames import BatchLoader, FrameStore
from grd_edge.data.images import file_sha256
from grd_edge.errors import CheckpointError, ConfigError
from grd_edge.losses import imitation_terms, weighted_sum
from grd_edge.method_config import GENERATOR
from grd_edge.models.cost import multiply_adds_of_config
from grd_edge.models.generator import Reconstructor
from grd_edge.prune import can_be_cut, pruned_weights, widths_within
from grd_edge.training_state import ReconstructorState
from grd_edge.training_step import fast_layout

CUT_LR = 2e-3  # where weights are cut from the teacher's; higher rates forget them
SEEN_SETTINGS = ("channels", "patch_h", "patch_w")  # of `model`: what a network is given to see


@dataclass(frozen=True)
class Teacher:
    """A trained generator and the sha256 of its file."""

    checkpoint: Checkpoint
    sha256: str = ""

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    def costs(self, student: Config) -> tuple[int, int]:
        """Multiply-adds per patch of the student and of the teacher."""
        return multiply_adds_of_config(student.model), multiply_adds_of_config(self.config.model)

    def described(self, student: Config, seen: Sequence[str]) -> dict[str, Any]:
        """What a student's provenance says of its making; `seen` are the images that it was trained on itself."""
        cost, whole = self.costs(student)
        distilled = {
            "teacher_sha256": self.sha256,
            "multiply_adds": cost,
            "teacher_multiply_adds": whole,
            "start": start_of(self.config, student),
            "seed": student.train.seed,
        }
        everything = sorted({*self.checkpoint.provenance.get("seen", ()), *seen})
        return {"seen": everything[:SEEN_IMAGES], "distilled": distilled}

    def splitting(self, student: Config) -> Config:
        """The student's configuration with the teacher's seed, which the split of a folder follows: images that are to
        tell of both must be new to both."""
        train = student.train.model_copy(update={"seed": self.config.train.seed})
        return student.model_copy(update={"train": train})

    def notes(self, dataset: Dataset) -> Iterator[str]:
        """Remarks on images that the teacher was not trained on."""
        seen, ids = set(self.checkpoint.provenance.get("seen", ())), content_ids(dataset.train)
        new = sum(each not in seen for each in ids)
        if new and 0 < len(seen) < SEEN_IMAGES:
            yield (
                f"{new} of {len(ids)} training images are none that the teacher was trained on, so what it "
                "reconstructs there may be no good example"
            )


def read_teacher(path: Path) -> Teacher:
    """The teacher in a file.

    Raises:
        CheckpointError: as `read_checkpoint`; of another method than the generator; with a segmentor; fine-tuned for
            INT8.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.config.method.name != GENERATOR:
        raise CheckpointError(
            f"{path} is of method {checkpoint.config.method.name}, and only a generator can teach another; "
            "give a checkpoint that was trained with method.name=generator"
        )
    if checkpoint.config.segmented:
        raise CheckpointError(
            f"{path} scores by its segmentor, and a student follows reconstructions alone; "
            "give a generator that was trained with method.segmentor=false"
        )
    if "qat" in checkpoint.provenance:
        raise CheckpointError(
            f"{path} was fine-tuned for INT8, and its FP32 form is no reference; give the checkpoint that it was "
            "fine-tuned from, and fine-tune the student with --qat afterwards"
        )
    return Teacher(checkpoint, file_sha256(Path(path)))


def student_config(
    teacher: Config,
    *,
    shape: Iterable[str] = (),
    share: float | None = None,
    path: Path | None = None,
    overrides: Iterable[str] = (),
) -> Config:
    """Configuration of a student: its teacher's, a user's YAML file and settings over it, and its shape.

    Args:
        shape: settings of `model`, such as `base=8`.
        share: of the teacher's multiply-adds that the student may cost, with the teacher's stages narrowed evenly;
            None: the shape says it all.

    Raises:
        ConfigError: as `load_config`; a student that is not cheaper, or sees other patches, than its teacher.
    """
    shape = [f"model.{each.strip()}" for each in shape]
    ours: dict[str, Any] = {"train": {"devices": 1, "num_nodes": 1, "recompute": False}}
    if any(each.startswith("model.base=") for each in shape):
        ours["model"] = {"widths": None}  # the teacher's, which would hide it
    base = _updated(teacher, ours)
    settings = [*shape, *overrides]
    config = overlaid_config(base, path=path, overrides=settings)
    if share is not None:
        settings.append(f"model.widths={list(widths_within(config.model, share))}")
        config = overlaid_config(base, path=path, overrides=settings)
    if config.segmented:
        raise ConfigError(
            "setting method.segmentor=true does not go with a teacher: students learn reconstructions only; drop it"
        )
    for section, names in (("model", SEEN_SETTINGS), ("geometry", type(config.geometry).model_fields)):
        for name in names:
            before, now = (getattr(getattr(each, section), name) for each in (teacher, config))
            if now != before:
                raise ConfigError(
                    f"setting {section}.{name}={now} is not the teacher's, which sees patches with {before}; "
                    "leave it out, or train a teacher of that kind first"
                )
    student, whole = multiply_adds_of_config(config.model), multiply_adds_of_config(teacher.model)
    if student >= whole:
        raise ConfigError(
            f"the student costs {student / 1e9:.3g} GMAC per patch and its teacher {whole / 1e9:.3g}; give a student "
            "that costs less, such as --student base=8, or --prune-to 0.25"
        )
    if start_of(teacher, config) == "cut":
        lower = {"optimizer": {"lr": min(CUT_LR, teacher.optimizer.lr)}}
        config = overlaid_config(_updated(base, lower), path=path, overrides=settings)
    return config


def _updated(config: Config, values: dict[str, dict[str, Any]]) -> Config:
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in values.items()}
    return config.model_copy(update=sections)


def start_of(teacher: Config, student: Config) -> str:
    """Where a student's weights begin: `cut` from the teacher's, or `random`."""
    return "cut" if student.distill.start == "cut" and can_be_cut(teacher.model, student.model) else "random"


class DistillationState(ReconstructorState):
    """A student with its optimizer, and the teacher, which stays as it is."""

    def __init__(self, config: Config, fabric: Fabric, teacher: Teacher) -> None:
        torch.manual_seed(config.train.seed)
        net = fast_layout(Reconstructor(config.model), config.model.stage_widths)
        super().__init__(config, fabric, net, student=net)
        frozen = fast_layout(teacher.checkpoint.reconstructor(), teacher.config.model.stage_widths)
        self.teacher, self.teacher_config = fabric.to_device(frozen).requires_grad_(False), teacher.config

    def begin(self, store: FrameStore, loader: BatchLoader, note: Callable[[str], None]) -> None:
        """The teacher's largest channels, or a whitened bottleneck where the student starts from random weights."""
        if start_of(self.teacher_config, self.config) == "random":
            super().begin(store, loader, note)
            return
        self.net.load_state_dict(pruned_weights(self.teacher, self.config.model.stage_widths))
        self._restart_average()

    def advance(self, batch: torch.Tensor, step: int, steps: int) -> dict[str, torch.Tensor]:
        """One optimizer step of the student; the losses by name."""
        config, fabric, weights = self.config, self.fabric, self.config.distill
        self.set_rates(step, steps)
        x, perturbed = self.perturbed(batch, step)
        noisy = perturbed.x_noisy
        with fabric.autocast():
            with torch.no_grad():
                target = self.teacher(noisy)
            x_hat = self.net(noisy)
        terms = imitation_terms(x, perturbed, x_hat.float(), target.float(), weights, config.loss)
        total = weighted_sum(terms, weights)
        self._optimizers[0].zero_grad(set_to_none=True)
        fabric.backward(total)
        finite = self._step(self.net, self._optimizers[0], total)
        self.fruitless = 0 if finite else self.fruitless + 1
        self._average_weights(step)
        return {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}
