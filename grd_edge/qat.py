"""Fine-tuning of a trained checkpoint so that its INT8 form holds: quantization-aware training.

The student computes what the Q/DQ model computes (grd_edge.fake_quant) and learns to reconstruct as the FP32
checkpoint, its teacher, does; BatchNorm is frozen. Source: docs/design/precision.md, which has the figures.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from grd_edge.calibrate import ranges_from_images
from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.config import Config, overlaid_config
from grd_edge.data.check import check_dataset
from grd_edge.data.dataset import SEEN_IMAGES, Dataset, Sample, content_ids, images_sha256, refuse_seen
from grd_edge.data.frames import BatchLoader, FrameStore, grid_from_config, read_frame
from grd_edge.data.images import file_sha256
from grd_edge.errors import CheckpointError, ConfigError, DivergedError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.fake_quant import ActivationGrid, fake_quantized, grids_of_layers
from grd_edge.files import sha256_hex
from grd_edge.heads import RECONSTRUCTION
from grd_edge.heap import keep_heap
from grd_edge.losses import imitation_terms, weighted_sum
from grd_edge.models.generator import Reconstructor
from grd_edge.pace import steps_within
from grd_edge.processes import fabric_from_config
from grd_edge.quantize import Layer, Style, layers_of, quantized_layers
from grd_edge.ranges import IMAGE, RangeTable, check_fresh
from grd_edge.recipes import load_recipe
from grd_edge.run_folder import check_output, run_folder_of
from grd_edge.score import score_patches_torch
from grd_edge.selection import selection_from_samples
from grd_edge.train import Progress, Watcher
from grd_edge.training_step import fast_layout, learning_rate, perturbed_batch

STEPS = 200  # where neither steps nor seconds are asked for
MEASURED_PATCHES = 256  # of the calibration images, on which before and after are compared
BATCH = 8  # patches a pass without gradients
STYLE: Style = "openvino"  # quantizes most layers, and nothing but what all styles quantize: inputs and weights
SILENT = Watcher()


def qat_config(teacher: Config, *, path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Configuration of a fine-tuning: that of the checkpoint, `STEPS` steps, a user's YAML file and settings over it.

    Raises:
        ConfigError: as `load_config`; a shape or geometry other than the checkpoint's, a precision other than float32,
            or several processes.
    """
    ours = {"steps": STEPS, "seconds": None, "precision": "32-true", "devices": 1, "num_nodes": 1, "recompute": False}
    base = teacher.model_copy(update={"train": teacher.train.model_copy(update=ours)})
    config = overlaid_config(base, path=path, overrides=overrides)
    for section in ("model", "geometry"):
        before, now = (getattr(each, section).model_dump(mode="json") for each in (teacher, config))
        for key, value in before.items():
            if now[key] != value:
                raise ConfigError(
                    f"setting {section}.{key}={now[key]} contradicts the checkpoint, which was trained with {value}; "
                    "leave it out, or train a checkpoint of that kind first"
                )
    for key in ("precision", "devices", "num_nodes"):
        if getattr(config.train, key) != ours[key]:
            raise ConfigError(
                f"setting train.{key}={getattr(config.train, key)} does not go with fine-tuning, which runs in one "
                f"process and float32; leave it out"
            )
    return config


class _FineTuning:
    """Teacher, student and optimizer; `advance` is a pure function of them, the seed, the step and a batch."""

    def __init__(self, teacher: Checkpoint, config: Config, layers: Sequence[Layer], device: torch.device) -> None:
        self.config, self.layers, self.device = config, layers, device
        widths = config.model.stage_widths
        self.teacher = fast_layout(fake_quantized(teacher.reconstructor(), {}), widths).to(device).requires_grad_(False)
        self.net: Reconstructor = fast_layout(teacher.reconstructor(), widths).to(device)

    def quantize(self, ranges: dict[str, tuple[float, float]]) -> None:
        """Makes the student, from ranges by layer."""
        qat = self.config.qat
        self.grids = grids_of_layers(self.layers, ranges)
        self.student = fake_quantized(self.net, self.grids).to(self.device)
        learned = {id(grid): grid for grid in self.grids.values() if isinstance(grid, ActivationGrid)}
        self.growths = [grid.growth.requires_grad_(qat.range_lr > 0) for grid in learned.values()]
        slow = list(self.net.latent_down.parameters())  # as in training
        rest = [each for each in self.net.parameters() if not any(each is other for other in slow)]
        groups = [
            {"params": rest, "share": 1.0},
            {"params": slow, "share": self.config.optimizer.bottleneck_lr},
            {"params": self.growths if qat.range_lr else [], "share": qat.range_lr / qat.lr},
        ]
        self.adam = torch.optim.Adam(
            [group for group in groups if group["params"]], betas=self.config.optimizer.betas, fused=True
        )
        self.schedule = self.config.optimizer.model_copy(update={"lr": qat.lr, "first_cycle": 1.0, "warmup_steps": 0})

    def advance(self, batch: torch.Tensor, step: int, steps: int) -> dict[str, float]:
        """One optimizer step; the losses by name.

        Raises:
            DivergedError: the loss or the gradients are not finite; nothing was changed by this step.
        """
        config, qat = self.config, self.config.qat
        x, perturbed = perturbed_batch(batch.to(self.device), config, step)
        noisy = perturbed.x_noisy
        with torch.no_grad():
            target = self.teacher(noisy)
        x_hat = self.student(noisy)
        terms = imitation_terms(x, perturbed, x_hat, target, qat, config.loss)
        total = weighted_sum(terms, qat)
        self.adam.zero_grad(set_to_none=True)
        total.backward()
        # Gradients of ranges are sums over a whole activation and would drown the others in a common norm.
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.optimizer.grad_norm)
        of_ranges = [growth.grad for growth in self.growths if growth.grad is not None]
        if not all(bool(value.isfinite()) for value in (total, norm, *of_ranges)):
            raise DivergedError(
                f"fine-tuning diverged at step {step + 1} of {steps}, its loss or gradients are not finite; "
                "lower qat.lr and qat.range_lr"
            )
        for group in self.adam.param_groups:
            group["lr"] = group["share"] * learning_rate(step, steps, self.schedule)
        self.adam.step()
        return {"total": total.item(), **{name: value.item() for name, value in terms.items()}}

    @torch.no_grad()
    def phi(self, net: torch.nn.Module, patches: np.ndarray) -> np.ndarray:
        """phi of patches (N, C, H, W) as `net` reconstructs them."""
        found = []
        for start in range(0, len(patches), BATCH):
            x = torch.from_numpy(patches[start : start + BATCH]).to(self.device)
            found.append(score_patches_torch(x, net(x), window=self.config.score.window).phi.cpu())
        return torch.cat(found).numpy()


def checkpoint_from_qat(
    teacher: Checkpoint,
    dataset: Dataset,
    config: Config,
    *,
    table: RangeTable | None = None,
    keep: Collection[str] = (),
    teacher_sha256: str = "",
    watch: Watcher = SILENT,
) -> Checkpoint:
    """Fine-tunes `teacher` on the good images of `dataset.train` for its INT8 form.

    The same seed and number of steps give the same weights and ranges on the same machine with the same number of
    threads; a time budget becomes a step count once.

    Args:
        config: of `qat_config`.
        table: ranges of the teacher's exported model to start from, and what its recipe keeps; None: that of
            the default recipe on training images, as a build has it: a certified threshold needs calibration images
            that had no part in what makes the score.
        keep: layers, or patterns of them, that stay in float32 besides.
        teacher_sha256: of the teacher's file.

    Returns:
        Checkpoint of the same kind. Its `provenance["qat"]` holds the ranges by layer, the settings, and mean and p99
        of |phi of INT8 - phi of the teacher| on calibration patches before and after.

    Raises:
        CheckpointError: a teacher whose network scores patches itself.
        InputError: images that do not fit; calibration images that the teacher was trained on, which would tell nothing
            of the error; a stale table; a layer that is not there; nothing left to quantize.
        DivergedError: the loss is not finite any more.
    """
    if teacher.head != RECONSTRUCTION:
        raise CheckpointError(
            "fine-tuning for INT8 follows the reconstruction, and this checkpoint's network scores patches itself; "
            "build its INT8 form without it"
        )
    check_dataset(dataset, config)
    refuse_seen(dataset.calibration, teacher.provenance.get("seen", ()), purpose="the error of INT8")
    fabric = fabric_from_config(config)
    model = onnx_from_checkpoint(teacher)
    kept = {**(table.keep if table else {}), **dict.fromkeys(keep, "kept by the fine-tuning")}
    layers = quantized_layers(onnx.load_from_string(model), STYLE, kept)
    if not layers:
        raise InputError("no layer is left to quantize, so there is nothing to fine-tune; keep fewer layers")
    if table is None:
        table = ranges_from_images(
            model,
            selection_from_samples(dataset.train, config).images(),
            recipe=load_recipe(),
            images_sha256=images_sha256(dataset.train),
            score=config.score,
        )
    check_fresh(table, sha256_hex(model))
    for layer in layers:
        table.grid(layer.tensor)  # refuses what has no range
    start = {layer.name: table.ranges[layer.tensor] for layer in layers if layer.tensor != IMAGE}
    state = _FineTuning(teacher, config, layers, fabric.device)
    state.quantize(start)
    measured = _measured_patches(dataset.calibration, config)
    expected = state.phi(state.teacher, measured)
    before = _error(state.phi(state.student, measured), expected)

    train = config.train
    loader = BatchLoader(
        FrameStore(dataset.train, config), grid_from_config(config), seed=train.seed, batch=train.batch
    )
    with keep_heap(), loader:
        began = time.perf_counter()
        steps = train.steps or _steps_within(state, loader, start, train.seconds)
        for step in range(steps):
            losses = state.advance(loader.at(step), step, steps)
            watch.training(Progress(step + 1, steps, losses))
        seconds = time.perf_counter() - began
    after = _error(state.phi(state.student, measured), expected)

    described: dict[str, Any] = {
        "teacher_sha256": teacher_sha256,
        "dataset": dataset.name,
        "manifest_sha256": dataset.manifest_sha256(),
        "train_images": len(dataset.train),
        "style": STYLE,
        "keep": kept,
        "start": {name: getattr(table, name) for name in ("algorithm", "images_sha256", "images", "patches", "recipe")},
        "steps": steps,
        "seconds": round(seconds, 1),
        "train": train.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "losses": losses,
        "measured_patches": len(measured),
        "before": before,
        "after": after,
        "ranges": {name: list(grid.range()) for name, grid in state.grids.items() if isinstance(grid, ActivationGrid)},
    }
    seen = {*teacher.provenance.get("seen", ()), *content_ids(dataset.train)}
    provenance = {**teacher.provenance, "seen": sorted(seen)[:SEEN_IMAGES], "qat": described}
    weights = {key: value.detach().cpu().clone() for key, value in state.net.state_dict().items()}
    # The split of a folder follows the seed: calibration images stay what they were.
    return Checkpoint(config.model_copy(update={"train": teacher.config.train}), weights, provenance)


def _steps_within(
    state: _FineTuning, loader: BatchLoader, start: dict[str, tuple[float, float]], seconds: float
) -> int:
    """As `steps_within`; what the timed steps changed is undone."""
    before = [value.detach().clone() for value in state.net.parameters()]
    steps = steps_within(seconds, lambda step: state.advance(loader.at(step), step, 1_000_000))
    with torch.no_grad():
        for value, old in zip(state.net.parameters(), before, strict=True):
            value.copy_(old)
    state.quantize(start)
    return steps


def _measured_patches(samples: Sequence[Sample], config: Config) -> np.ndarray:
    """Up to MEASURED_PATCHES patches (N, C, H, W), as many of each image, spread over it."""
    grid = grid_from_config(config)
    chosen = samples[:: -(-len(samples) // MEASURED_PATCHES)]
    each = MEASURED_PATCHES // len(chosen)
    found = []
    for sample in chosen:
        patches = grid.cut(read_frame(sample, config))
        found.append(patches[:: -(-len(patches) // each)])
    return np.concatenate(found)


def _error(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    difference = np.abs(found.astype(np.float64) - expected)
    return {"phi_mean": float(difference.mean()), "phi_p99": float(np.quantile(difference, 0.99))}


def qat_run(
    checkpoint: Path, dataset: Dataset, output: Path, config: Config, *, overwrite: bool = False, **options: Any
) -> Checkpoint:
    """Fine-tunes the checkpoint of a file into `output`, which is written once, at the end.

    Args:
        options: as of `checkpoint_from_qat`.

    Raises:
        InputError: `output` is a folder, the checkpoint itself, the result of a training run, or there already and
            `overwrite` is not given.
        CheckpointError, and what `checkpoint_from_qat` raises.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_output(output)
    teacher = read_checkpoint(checkpoint)
    run = run_folder_of(output)
    if output.exists() and output.samefile(checkpoint):
        raise InputError(f"{output} is the checkpoint itself; choose another --output")
    if (run / "last.safetensors").exists():
        raise InputError(f"{output} is the result of the training in {run}; choose another --output")
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; replace it with --overwrite, or choose another --output")
    result = checkpoint_from_qat(teacher, dataset, config, teacher_sha256=file_sha256(checkpoint), **options)
    write_checkpoint(output, result)
    return result


def ranges_of_checkpoint(checkpoint: Checkpoint) -> dict[str, tuple[float, float]] | None:
    """Activation ranges by layer that a fine-tuned checkpoint was made for; None of any other.

    Raises:
        CheckpointError: they are damaged.
    """
    qat = checkpoint.provenance.get("qat")
    if qat is None:
        return None
    try:
        return {str(layer): (float(low), float(high)) for layer, (low, high) in qat["ranges"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's activation ranges are damaged ({error}); fine-tune again") from error


def table_of_checkpoint(checkpoint: Checkpoint, model: bytes, table: RangeTable | None = None) -> RangeTable | None:
    """Range table of a fine-tuned checkpoint, which its INT8 form is to be written from; None of any other.

    Args:
        model: the checkpoint's exported model, serialized.
        table: of the same model, for tensors and layers to keep that the fine-tuning says nothing about; None: none.

    Raises:
        InputError: the table belongs to another model.
    """
    ranges = ranges_of_checkpoint(checkpoint)
    if ranges is None:
        return None
    identity, qat = sha256_hex(model), checkpoint.provenance["qat"]
    if table is None:
        table = RangeTable(model_sha256=identity, ranges={}, **qat["start"])
    check_fresh(table, identity)
    learned = {}
    for layer in layers_of(onnx.load_from_string(model)):
        if layer.name in ranges and layer.tensor != IMAGE:
            learned[layer.tensor] = ranges[layer.name]
    return replace(table, algorithm="qat", ranges={**table.ranges, **learned}, keep={**table.keep, **qat["keep"]})


def student_of(teacher: Path, path: Path) -> Checkpoint:
    """The checkpoint at `path`, fine-tuned from the one at `teacher`.

    Raises:
        CheckpointError: it was not fine-tuned, or from another checkpoint.
    """
    student = read_checkpoint(path)
    found = (student.provenance.get("qat") or {}).get("teacher_sha256")
    if found is None:
        raise CheckpointError(f"{path} was not fine-tuned; make such a checkpoint with: grd-edge train --qat {teacher}")
    if found != file_sha256(Path(teacher)):
        raise CheckpointError(
            f"{path} was fine-tuned from another checkpoint than {teacher}; give that one, or fine-tune again with: "
            f"grd-edge train --qat {teacher}"
        )
    return student
