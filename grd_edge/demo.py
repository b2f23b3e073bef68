"""The main job: train, export, build, fit thresholds, and prove on test images that the engine decides like PyTorch."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bench.baselines import race_scores
from grd_edge.bench.timer import Timing, interleaved, speedup
from grd_edge.build import bundle_from_checkpoint, roi_of_dataset
from grd_edge.bundle import MODEL
from grd_edge.checkpoint import write_checkpoint
from grd_edge.config import Config, load_config
from grd_edge.data.dataset import Dataset, Sample
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.data.images import file_sha256, read_image
from grd_edge.engine.torch import TorchInspector
from grd_edge.evaluate import gain_from_scored, metrics_from_scored
from grd_edge.files import write_atomically
from grd_edge.kernels import active_variant
from grd_edge.machine import cpu_name
from grd_edge.parity import parity_of
from grd_edge.precision import Request
from grd_edge.products import ProductRule
from grd_edge.qat import checkpoint_from_qat, qat_config
from grd_edge.recalibrate import recalibrated_bundle
from grd_edge.report.contact_sheet import Panel, write_contact_sheet
from grd_edge.results import csv_lines
from grd_edge.runtime import Inspector
from grd_edge.scored import COLUMNS, rows_from_scored, scored_from_samples
from grd_edge.search import choice_of_checkpoint
from grd_edge.train import Progress, checkpoint_from_dataset, untrained_checkpoint
from grd_edge.train import Watcher as TrainWatcher
from grd_edge.watch import Watcher as SearchWatcher

# Solar cells come aligned, with busbars in a few places: turning or mirroring them only multiplies the layouts that
# the generator has to learn. They are smooth, and noise in the target drowns what SSIM sees of them.
ELPV_SETTINGS = (
    "augmentation.rotation_deg=0",
    "augmentation.flip_x=false",
    "augmentation.flip_y=false",
    "augmentation.noise_sigma=0",
    "score.decides=phi_local",
)
WORKING_SCALE_PX = 128
TIMED_FRAMES = 60
SHOWN_PER_CLASS = 8


@dataclass(frozen=True)
class Watcher:
    """What a front end is told: the step that begins, training progress, and images done of a pass."""

    stage: Callable[[str], None] = lambda text: None
    training: Callable[[Progress], None] = lambda progress: None
    images: Callable[[int, int], None] = lambda done, total: None


def demo_config(*, train_seconds: float, seed: int = 0, settings: Sequence[str] = ()) -> Config:
    """The edge profile at working scale 128 with a time budget; `settings` overlay it."""
    return load_config(
        overrides=[
            f"geometry.scale_px={WORKING_SCALE_PX}",
            f"train.seconds={train_seconds}",
            f"train.seed={seed}",
            *settings,
        ]
    )


def run_demo(
    dataset: Dataset,
    config: Config,
    out: Path,
    watch: Watcher = Watcher(),
    *,
    precision: Request = "auto",
    qat_seconds: float = 0,
) -> dict[str, Any]:
    """Runs the whole way on `dataset` and writes `checkpoint.safetensors`, `<name>.grdb`, `contact_sheet.png`,
    `images.csv` and `summary.json` into `out`; `fine-tuned.safetensors`, too, where there is a fine-tuning.

    Args:
        precision: of the bundle, as `build bundle` takes it.
        qat_seconds: time budget of the fine-tuning for INT8; 0: none.

    Returns:
        The content of summary.json.
    """
    out, began = Path(out), time.perf_counter()
    watch.stage(f"training on {len(dataset.train)} good images")
    checkpoint = checkpoint_from_dataset(dataset, config, on_progress=watch.training)
    write_checkpoint(out / "checkpoint.safetensors", checkpoint)

    student = None
    if qat_seconds:
        watch.stage("fine-tuning for INT8")
        tuning = qat_config(config, overrides=["train.steps=null", f"train.seconds={qat_seconds}"])
        student = checkpoint_from_qat(
            checkpoint,
            dataset,
            tuning,
            teacher_sha256=file_sha256(out / "checkpoint.safetensors"),
            watch=TrainWatcher(watch.training),
        )
        write_checkpoint(out / "fine-tuned.safetensors", student)

    watch.stage("exporting and building the cpu bundle")
    path = out / f"{dataset.name}.grdb"
    bundle_from_checkpoint(
        checkpoint,
        path,
        name=dataset.name,
        roi=roi_of_dataset(dataset),
        choose=lambda model: choice_of_checkpoint(
            checkpoint,
            dataset.train,
            model,
            MODEL,
            student=student,
            request=precision,
            watch=SearchWatcher(watch.stage),
        ),
    )
    watch.stage(f"fitting the threshold on {len(dataset.calibration)} calibration images")
    bundle = recalibrated_bundle(
        path,
        dataset.calibration,
        alpha=config.decision.alpha,
        k=config.decision.k,
        run_agreement=config.decision.run_agreement,
        regions=dataset.regions,
        on_progress=lambda done: watch.images(done, len(dataset.calibration)),
    )

    total = len(dataset.test)
    reference = TorchInspector.of_bundle(checkpoint, bundle)
    scored, rule = {}, ProductRule.of_bundle(bundle)
    with Inspector(path) as engine:
        untrained = TorchInspector(untrained_checkpoint(config), k=rule.k, roi=bundle.roi)
        for name, inspector in (("engine", engine), ("reference", reference), ("untrained", untrained)):
            watch.stage(f"scoring {total} test images: {name}")
            scored[name] = scored_from_samples(
                inspector,
                dataset.test,
                rule=replace(rule, thresholds=()) if name == "untrained" else rule,
                on_progress=lambda done: watch.images(done, total),
            )
        watch.stage("timing engine and reference in turn")
        frames = _race_frames(engine, reference, dataset.test)
        engine_version = engine.engine_version
        watch.stage("drawing the contact sheet")
        _draw(out / "contact_sheet.png", dataset, config, engine)
    race = race_scores()

    parity = parity_of(scored["engine"], scored["reference"], rule=rule)
    metrics = metrics_from_scored(scored["engine"])
    summary = {
        "dataset": dataset.name,
        **metrics,
        **gain_from_scored(scored["engine"], scored["untrained"]),
        **parity,
        "precision": bundle.manifest["precision"],
        "threshold": bundle.threshold,
        "threshold_fit": _without_ids(bundle.decision["fit"]),
        "p50_ms": frames["engine"].p50_ms,
        "p99_ms": frames["engine"].p99_ms,
        "p50_ms_reference": frames["reference"].p50_ms,
        "times_ms": {name: frame.times_ms.tolist() for name, frame in frames.items()},
        "speedup": speedup(frames["reference"], frames["engine"]),
        "score_speedup": race["torch_separable_min_ms"] / race["native_min_ms"],
        "score_race_ms": race,
        "score_variant": active_variant(),
        "training": _without_ids(checkpoint.provenance),
        "versions": versions(engine_version),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_atomically(out / "images.csv", csv_lines(COLUMNS, rows_from_scored(scored["engine"])))
    write_atomically(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _without_ids(about: dict[str, Any]) -> dict[str, Any]:
    """Provenance without its list of images, which is for programs."""
    return {key: value for key, value in about.items() if key != "seen"}


def versions(engine_version: str) -> dict[str, str]:
    """What produced a result: packages, engine, processor."""
    names = ("grd-edge", "torch", "numpy", "onnx", "onnxruntime", "openvino", "opencv-python-headless")
    found = {name: metadata.version(name) for name in names}
    return {**found, "python": platform.python_version(), "engine": engine_version, "cpu": cpu_name()}


def _race_frames(engine: Inspector, reference: TorchInspector, samples: Sequence[Sample]) -> dict[str, Timing]:
    """Frame in, decision out, interleaved over frames spread across the test split."""
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(TIMED_FRAMES, len(samples))).astype(int)]
    frames = [read_image(sample.path) for sample in chosen]
    contenders = {"engine": engine.inspect, "reference": reference.inspect}
    return interleaved(contenders, rounds=max(TIMED_FRAMES, len(frames)), inputs=frames, settle_ms=20)


def _draw(path: Path, dataset: Dataset, config: Config, engine: Inspector) -> None:
    panels = []
    for defective in (False, True):
        group = [sample for sample in dataset.test if sample.defective == defective]
        for index in np.linspace(0, len(group) - 1, min(SHOWN_PER_CLASS, len(group))).astype(int):
            sample = group[index]
            result = engine.inspect(read_image(sample.path), heatmap=True, x_hat=True)
            image = read_frame(sample, config)
            rebuilt = grid_from_config(config).stitch(result.x_hat, *image.shape[1:], positions=result.positions)
            panels.append(
                Panel(
                    title=f"{sample.kind} → {result.decision}\n{result.score:.3f} / {result.threshold:.3f}",
                    pictures=(
                        image.transpose(1, 2, 0).squeeze(),
                        rebuilt.transpose(1, 2, 0).squeeze(),
                        result.heatmap,
                    ),
                    correct=(result.decision != "good") == sample.defective,
                )
            )
    write_contact_sheet(
        path, panels, title=f"{dataset.name}: label → decision, score / threshold (red: wrong)", columns=SHOWN_PER_CLASS
    )
