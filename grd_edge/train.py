"""Training on good images: the loop, with what makes a run survive.

Source: docs/method.md, sections 3 and 4; docs/design/foundation.md for the run folder.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.config import Config
from grd_edge.data.check import check_dataset
from grd_edge.data.dataset import SEEN_IMAGES, Dataset, content_ids
from grd_edge.data.frames import BatchLoader, FrameStore, grid_from_config
from grd_edge.data.manifest import write_manifest
from grd_edge.distill import DistillationState, Teacher
from grd_edge.errors import CheckpointError, DivergedError, GrdError, InputError, StoppedError
from grd_edge.heap import keep_heap
from grd_edge.method_config import GENERATOR
from grd_edge.method_state import MethodState
from grd_edge.pace import TIMED_STEPS, steps_within
from grd_edge.processes import fabric_from_config, on_first_process
from grd_edge.run_folder import PREVIEWS, RunFolder, check_output, difference, run_folder_of
from grd_edge.training_state import TrainingState, deployed_weights, networks_from_config
from grd_edge.training_step import learning_rate
from grd_edge.validation import Quality, Validator

FAR = 1_000_000  # steps of the run whose steps are timed


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows: steps done and planned, and the losses of the last step by name."""

    step: int
    steps: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Watcher:
    """What a front end is told: each step, and remarks in a sentence."""

    training: Callable[[Progress], None] = lambda progress: None
    note: Callable[[str], None] = lambda text: None


@dataclass
class _Course:
    """Where a run stands besides its tensors. Everything in it is stored and comes back."""

    steps: int  # planned, fixed once
    step: int = 0  # done
    seconds: float = 0.0
    best: tuple[float, float] | None = None
    best_step: int = 0
    since_best: int = 0  # validations
    finished: bool = False
    losses: dict[str, float] | None = None


class _Run:
    """One training from its first or resumed step to its checkpoint."""

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        fabric: Fabric,
        folder: RunFolder | None,
        watch: Watcher,
        teacher: Teacher | None = None,
    ):
        self.dataset, self.config, self.fabric, self.folder, self.watch = dataset, config, fabric, folder, watch
        self.teacher = teacher
        if teacher:
            self.state = DistillationState(config, fabric, teacher)
        else:
            self.state = (TrainingState if config.method.name == GENERATOR else MethodState)(config, fabric)
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.validated = bool(dataset.validation) and self.state.validates
        self.validator = Validator(dataset.validation, config) if self.validated and fabric.is_global_zero else None
        self.store = FrameStore(dataset.train, config)
        world, rank = fabric.world_size, fabric.global_rank
        self.loader = BatchLoader(
            self.store,
            grid_from_config(config),
            seed=config.train.seed,
            batch=config.train.batch // world,
            rank=rank,
            world=world,
            masked=config.segmented and any(sample.roi for sample in dataset.train),
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with its first part."""
        return {
            "config": self.config.to_json(),
            "dataset": self.dataset.name,
            "manifest_sha256": self.dataset.manifest_sha256(),
            "train_images": len(self.dataset.train),
            "world_size": self.fabric.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({"teacher_sha256": self.teacher.sha256} if self.teacher else {}),
        }

    def result(self) -> Checkpoint:
        """Best weights where there is a validation split, else the last ones."""
        course, config = self.course, self.config
        stored = ("config", "teacher_sha256")  # elsewhere
        provenance = {key: value for key, value in self.identity.items() if key not in stored}
        provenance |= {
            "validation_images": len(self.dataset.validation),
            "seen": content_ids((*self.dataset.train, *self.dataset.validation))[:SEEN_IMAGES],
            "steps": course.step,
            "planned_steps": course.steps,
            "seconds": round(course.seconds, 1),
            "losses": {name: _finite(value) for name, value in (course.losses or {}).items()},
            "precision": config.train.precision,
            "ema_decay": config.train.ema_decay,
        }
        if course.best:
            quality = Quality(*course.best)
            provenance["validation"] = {
                "step": course.best_step,
                "auroc": _finite(quality.auroc),
                "contextual": _finite(quality.contextual),
            }
        provenance |= self.state.provenance
        if self.teacher:
            provenance |= self.teacher.described(config, provenance["seen"])
            config = self.teacher.splitting(config)
        weights = self.best_weights if self.best_weights is not None else self.state.shipped()
        return Checkpoint(config, {key: value.detach().clone() for key, value in weights.items()}, provenance)

    # ------------------------------------------------------------ start, stop

    def start(self) -> None:
        """From the seed: what comes before the first step, and the number of steps."""
        began = time.perf_counter()
        self.state.begin(self.store, self.loader, self.watch.note)
        self.state.share()
        steps = 0
        if self.state.trains:
            train, spent = self.config.train, time.perf_counter() - began
            steps = train.steps or self._steps_within(max(1.0, train.seconds - spent))
        self.course = _Course(self.fabric.broadcast(steps) if self.fabric.world_size > 1 else steps)
        self.course.seconds = time.perf_counter() - began
        self.save()

    def resume(self, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        self.state.load(tensors, about["scaler"])
        self.state.provenance = about.get("provenance", {})
        for name in ("threads", "torch"):
            if about[name] != self.identity[name]:
                self.watch.note(
                    f"the run began with {name} {about[name]}, now {self.identity[name]}: "
                    "it goes on, but not bit for bit as it would have"
                )
        if about["course"]["best"]:
            self.best_weights = self.folder.read_best().weights

    def _steps_within(self, seconds: float) -> int:
        """Steps that fit into `seconds`, from timing a few that are then undone, so that they leave no trace."""
        state, period = self.state, max(TIMED_STEPS, self.config.train.auxiliary_every)
        before = {key: value.clone() for key, value in state.tensors().items()}
        scaler = state.scaler()

        def advance(number: int) -> None:
            state.advance(self.loader.at(number), state.step_to_time(number, period, FAR), FAR)

        steps = steps_within(seconds, advance, period)
        state.load(before, scaler)
        return steps

    def save(self) -> None:
        """Writes the whole state where there is a run folder."""
        if self.folder:
            about = {"course": vars(self.course), "scaler": self.state.scaler(), "provenance": self.state.provenance}
            about |= self.identity
            self.folder.write_last(self.state.tensors(), about)

    # ------------------------------------------------------------------- loop

    def go_on(self) -> None:
        """Steps until the planned number is done, the validation ends the run, or someone asks to stop.

        Raises:
            StoppedError: someone asked; the state is saved before.
            DivergedError: on all processes alike; the newest saved state is of a step before.
        """
        course, state, train = self.course, self.state, self.config.train
        saved = began = time.perf_counter()
        before = course.seconds
        course.finished |= course.step >= course.steps
        while not course.finished:
            step = course.step
            batch = self.loader.at(step)
            parts = state.advance(batch, step, course.steps)
            if state.diverged:  # before anything of this step is stored
                raise DivergedError(
                    f"training diverged at step {step + 1} of {course.steps}, its loss or gradients are not finite; "
                    "lower optimizer.lr"
                )
            course.step, course.losses = step + 1, {name: float(value) for name, value in parts.items()}
            course.seconds = before + time.perf_counter() - began
            lr = learning_rate(step, course.steps, self.config.optimizer)
            row = {"step": course.step, "seconds": course.seconds, "lr": lr, **course.losses}
            row |= self._validated()
            course.finished |= course.step == course.steps
            if self.folder:
                self.folder.log(row)
                shows = course.step * PREVIEWS // course.steps > step * PREVIEWS // course.steps
                if shows and (columns := state.preview(batch, step)):
                    self.folder.preview(course.step, columns)
            due = time.perf_counter() - saved >= train.save_seconds
            if due or state.stop or course.finished or (train.save_steps and course.step % train.save_steps == 0):
                self.save()
                saved = time.perf_counter()
            self.watch.training(Progress(course.step, course.steps, course.losses))
            if state.stop and not course.finished:
                raise StoppedError(f"stopped after step {course.step} of {course.steps}")

    def finish(self) -> None:
        """What is made of good patches after the last step; nothing of it is in the saved state."""
        began = time.perf_counter()
        self.state.finish(self.store, self.loader, self.watch.note)
        self.course.seconds += time.perf_counter() - began

    def _validated(self) -> dict[str, float]:
        """Validation, when it is due, and what follows from it on all processes; columns of the log."""
        course, train = self.course, self.config.train
        if not self.validated or (course.step % train.validate_every and course.step != course.steps):
            return {}
        row = {}
        if self.validator:
            quality = self.validator(self.state.reconstructor())
            row = {"validation_auroc": quality.auroc, "validation_contextual": quality.contextual}
            if course.best is None or quality > Quality(*course.best):
                course.best, course.best_step = (quality.auroc, quality.minus_contextual), course.step
                course.since_best = 0
                self.best_weights = {key: value.cpu().clone() for key, value in self.state.shipped().items()}
                if self.folder:
                    self.folder.write_best(self.result())
            else:
                course.since_best += 1
            course.finished = train.patience is not None and course.since_best >= train.patience
        if self.fabric.world_size > 1:
            course.finished = self.fabric.broadcast(course.finished)
        return row


@contextlib.contextmanager
def _asking(run: _Run) -> Iterator[None]:
    """Ctrl-C and a polite kill end the run behind a whole step; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {}

    def ask(number: int, frame: object) -> None:
        run.state.wanted = True
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def checkpoint_from_dataset(
    dataset: Dataset,
    config: Config,
    *,
    teacher: Teacher | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Checkpoint:
    """Trains on the good images of `dataset.train`, in this process and without a run folder.

    A time budget (`train.seconds`) becomes a step count once, before the first step; the count is stored with the
    result, so that the same count gives the same weights on the same machine with the same number of threads.

    Args:
        teacher: of a student, whose `config` is of `student_config`.

    Returns:
        Checkpoint with the weights of what runs at inference, float32: of a generator the best ones on
        `dataset.validation` where there is one, else the last ones; averaged with `train.ema_decay`.
    """
    check_dataset(dataset, config)
    watch = Watcher(on_progress or Watcher.training)
    with _run(dataset, config, fabric_from_config(config), None, watch, teacher) as run:
        run.start()
        run.go_on()
        run.finish()
        return run.result()


def train_run(
    dataset: Dataset,
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watcher = Watcher(),
    teacher: Teacher | None = None,
) -> Checkpoint | None:
    """Trains into `output` with a run folder beside it, from which `resume` goes on bit for bit.

    Returns:
        The checkpoint that `output` holds now; None on every process but the first.

    Raises:
        InputError: a run or a checkpoint is there and neither `resume` nor `overwrite` is given; another process is at
            it; `output` is a folder.
        CheckpointError: the run belongs to other settings, images or number of processes.
        StoppedError: Ctrl-C or SIGTERM; the state is saved.
        DivergedError: the loss is not finite any more; the state saved before stays.
    """
    output = Path(output)
    check_output(output)
    check_dataset(dataset, config)  # before an earlier run is touched
    fabric = fabric_from_config(config)
    with contextlib.ExitStack() as stack:
        folder = None

        def opened() -> None:
            nonlocal folder
            path = run_folder_of(output)
            # A run that can go on owns its output; any other checkpoint there was made or put there by somebody.
            if output.exists() and not overwrite and not (path / "last.safetensors").exists():
                nothing = f", and {path} holds nothing to resume" if resume else ""
                raise InputError(
                    f"{output} is there already{nothing}; replace it with --overwrite, or choose another --output"
                )
            folder = stack.enter_context(RunFolder(path))
            if folder.last.exists() and not (resume or overwrite):
                raise InputError(
                    f"{folder.path} holds a run; go on with --resume, start anew with --overwrite, "
                    "or choose another --output"
                )
            if not resume:
                folder.clear()

        on_first_process(fabric, opened)
        run = stack.enter_context(_run(dataset, config, fabric, folder, watch, teacher))

        def prepared() -> dict[str, Any] | None:
            course = resumed()
            if not (course and course["finished"]):
                write_manifest(folder.path / "manifest.json", dataset)
                folder.start_log(config, course["step"] if course else 0)
                if not folder.has_board:
                    watch.note("tensorboard is not installed, so log.csv is the only log; pip install 'grd-edge[logs]'")
            return course

        def resumed() -> dict[str, Any] | None:
            found = folder.read_last() if resume else None
            if found is None:
                if resume:
                    watch.note(f"{folder.path} holds no state yet, so the training starts from its first step")
                return None
            tensors, about = found
            if other := difference(about, run.identity):
                raise CheckpointError(
                    f"{folder.path} cannot be resumed: {other}; give what it began with, or start anew with --overwrite"
                )
            run.resume(tensors, about)
            return about["course"]

        course = on_first_process(fabric, prepared)
        for remark in teacher.notes(dataset) if teacher else ():
            watch.note(remark)
        if course:
            run.course = _Course(**course)
            run.state.share()
        if folder and course and run.course.finished:
            watch.note(f"the run is complete: {run.course.step} of {run.course.steps} steps; nothing is trained")
        try:
            if not course:
                run.start()
            with _asking(run):
                run.go_on()
            run.finish()
        except StoppedError as error:
            raise StoppedError(f"{error}; {run_folder_of(output)} is saved, go on with --resume") from error
        except DivergedError as error:
            kept = f"{run_folder_of(output)} keeps the last state that was saved before"
            raise DivergedError(f"{error} and start anew with --overwrite, {kept}") from error
        except (GrdError, OSError) as error:
            if fabric.world_size == 1:
                raise
            # This process alone knows, the others are in the middle of a step: they end, and nothing is run after it.
            raise StoppedError(f"{error}; the training ended in all processes") from error
        except RuntimeError as error:
            if fabric.world_size == 1 or not any(name in str(error) for name in ("gloo", "NCCL")):
                raise
            raise StoppedError(
                f"another process of this training ended ({str(error).splitlines()[0]}); go on with --resume"
            ) from error
        if not folder:
            return None
        checkpoint = run.result()
        for path in (output,) if run.course.best else (folder.best, output):
            if not _holds(path, checkpoint):
                write_checkpoint(path, checkpoint)
        return checkpoint


def _finite(value: float) -> float | None:
    """`value` as JSON has it."""
    return value if math.isfinite(value) else None


def _holds(path: Path, checkpoint: Checkpoint) -> bool:
    try:
        return read_checkpoint(path).provenance == checkpoint.provenance
    except CheckpointError:
        return False


@contextlib.contextmanager
def _run(*arguments: Any) -> Iterator[_Run]:
    run = _Run(*arguments)
    with keep_heap(not run.config.train.recompute), run.loader:
        yield run


def untrained_checkpoint(config: Config) -> Checkpoint:
    """The generator as the seed initializes it: the baseline that every trained model is reported beside.

    Source: docs/method.md, section 8.
    """
    generator, _, segmentor = networks_from_config(config)
    return Checkpoint(config, deployed_weights(generator.reconstructor, segmentor), {"steps": 0})
