"""What `grd-edge compare` measures of a method: accuracy of its bundle on test images, sizes, memory, and times beside
those of the others. Never imports torch.

Source: docs/compare.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bench.timer import interleaved
from grd_edge.bundle import Bundle, read_bundle
from grd_edge.cold_start import cold_start
from grd_edge.data.dataset import Dataset, Sample, parts_of_kinds
from grd_edge.data.images import read_image
from grd_edge.errors import InputError
from grd_edge.eval_benchmark import drawn_from_scored
from grd_edge.evaluate import evaluated_bundle
from grd_edge.latency import MB, SETTLE_MS, WARMUP, distribution
from grd_edge.latency_frames import frames_from_images
from grd_edge.report.details import DETAILS, write_details
from grd_edge.runtime import Inspector
from grd_edge.scored import OnImages, Scored
from grd_edge.targets import CPU

FIGURES = ("image_auroc", "pixel_auroc", "aupro", "balanced_accuracy")  # that methods are chosen by
PIXEL_FIGURES = ("pixel_auroc", "aupro")
ROUNDS = 100  # frames timed of each method: p99 needs so many
HEAT_ROUNDS = 10
REACH = 3.0  # a method whose median in the heat is so many times the budget is timed no more
MEMORY_FRAMES = 3


@dataclass(frozen=True)
class Measured:
    """A bundle on test images.

    Attributes:
        result: JSON-ready: `figures` that are reported and `choosing`, those that the choice sees (null: the same),
            `confusion`, `precision`, `engine_mb`, `memory_mb`.
        drawn: figure -> its values on resampled images of those that choose.
    """

    result: dict[str, Any]
    drawn: dict[str, np.ndarray]


@dataclass(frozen=True)
class Halves:
    """Test images that choose the method, and those that its figures are of; the same where nothing is held out."""

    choosing: tuple[Sample, ...]
    reported: tuple[Sample, ...]

    @property
    def held_out(self) -> bool:
        return self.choosing is not self.reported


def halves_of_test(dataset: Dataset, *, by: str = FIGURES[0], holdout: float | None = None, seed: int = 0) -> Halves:
    """The test images of a comparison.

    Args:
        by: figure that methods are chosen by.
        holdout: share that has no part in the choice, of each kind; None: all images choose, and all are reported.

    Raises:
        InputError: images that tell nothing about `by`: no good or no defective ones, or no masks.
    """
    if holdout is None:
        parts = Halves(dataset.test, dataset.test)
    else:
        reported, choosing = parts_of_kinds(dataset.test, holdout, seed)
        parts = Halves(choosing, reported)
    for which, samples in (("choose the method", parts.choosing), ("be held out", parts.reported)):
        if not parts.held_out:
            which = "compare methods on"
        defective = sum(sample.defective for sample in samples)
        if not 0 < defective < len(samples):
            raise InputError(
                f"{dataset.name} has {defective} defective and {len(samples) - defective} good test images to {which}; "
                "put images of both into test/good and test/<defect>" + (", or lower --holdout" * parts.held_out)
            )
        if by in PIXEL_FIGURES and not any(sample.mask for sample in samples):
            raise InputError(
                f"{dataset.name} has no masks of defects to {which}, so there is no {by}; put them into "
                "ground_truth/<defect>, or choose --by image_auroc"
            )
    return parts


def measured_bundle(
    path: Path, parts: Halves, folder: Path, *, data: str, bar: Callable[[str], OnImages] = lambda name: lambda n: None
) -> Measured:
    """Measures a bundle; leaves pictures of its worst errors and what `write_details` writes in `folder`.

    Args:
        data: where the images come from, as the user said it.
        bar: gives the progress callback of the pass with this name.

    Raises:
        As `evaluated_bundle`, `write_details` and `cold_start`.
    """
    chosen_by = evaluated_bundle(path, parts.choosing, untrained=False, bar=bar)
    reported = chosen_by
    if parts.held_out:
        reported = evaluated_bundle(path, parts.reported, untrained=False, bar=bar)
    write_details(folder, path, reported.scored, precision=None, data=data)
    bundle = read_bundle(path)
    started = cold_start(path, read_image(parts.reported[0].path), frames=MEMORY_FRAMES)
    result = {
        "figures": reported.result,
        "choosing": chosen_by.result if parts.held_out else None,
        "confusion": confusion_of(reported.scored),
        "precision": bundle.manifest["precision"]["chosen"][CPU],
        "engine_mb": engine_bytes(bundle) / MB,
        "memory_mb": started["peak_mb"],
        "details": DETAILS,
    }
    return Measured(result, drawn_from_scored(chosen_by.scored))


def confusion_of(scored: Scored) -> dict[str, int]:
    """Products by label and decision; undecided ones count as rejected."""
    labels, rejected = scored.labels, scored.rejected
    return {
        "good_passed": int((~labels & ~rejected).sum()),
        "good_rejected": int((~labels & rejected).sum()),
        "defective_rejected": int((labels & rejected).sum()),
        "defective_passed": int((labels & ~rejected).sum()),
    }


def engine_bytes(bundle: Bundle) -> int:
    """Size of the engine that ships for the CPU."""
    precision = bundle.manifest["precision"]["chosen"][CPU]
    wanted = (CPU, precision)
    entry = next(each for each in bundle.manifest["engines"] if (each["target"], each["precision"]) == wanted)
    return len(bundle.files[entry["file"]])


def raced(
    bundles: Mapping[str, Path],
    samples: Sequence[Sample],
    *,
    rounds: int = ROUNDS,
    threads: int = 0,
    budget_ms: float | None = None,
    seconds: float | None = None,
    precision: str | None = None,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Frame in, decision out, of all bundles in turn in one process, so that what disturbs the machine hits all alike.

    Args:
        samples: whose images are the frames.
        budget_ms: a bundle far beyond it is timed in a short heat only, so that it does not hold up the others.
        seconds: that all of it may take; beyond, the slowest are timed in the heat only.
        precision: of the engines; None: what each bundle chose.

    Returns:
        name -> `rounds`, `p50_ms`, `p99_ms` (null below 100 rounds), `worst_ms`, `times_ms`.
    """
    began = time.monotonic()
    frames = frames_from_images([sample.path for sample in samples])
    options = {"inputs": frames, "warmup": WARMUP, "settle_ms": SETTLE_MS}
    with ExitStack() as stack:
        inspect = {
            name: stack.enter_context(Inspector(path, threads=threads, precision=precision)).inspect
            for name, path in bundles.items()
        }
        timings = interleaved(inspect, rounds=min(HEAT_ROUNDS, rounds), **options)
        if budget_ms is not None:
            inspect = {name: run for name, run in inspect.items() if timings[name].p50_ms <= REACH * budget_ms}
        if seconds is not None:
            left = seconds - (time.monotonic() - began)
            inspect = _within(inspect, {name: timings[name].p50_ms + SETTLE_MS for name in inspect}, rounds, left)
        if inspect and rounds > HEAT_ROUNDS:
            timings |= interleaved(inspect, rounds=rounds, on_round=on_round, **options)
    result = {}
    for name, timing in timings.items():
        figures, _ = distribution(timing.times_ms)
        result[name] = {
            "rounds": len(timing.times_ms),
            **{key: figures[key] for key in ("p50_ms", "p99_ms", "worst_ms")},
            "times_ms": timing.times_ms.tolist(),
        }
    return result


def _within(runs: Mapping[str, Callable], ms: Mapping[str, float], rounds: int, seconds: float) -> dict[str, Callable]:
    """As many of the runs as so many rounds take at most so long of, the fastest first; one in any case."""
    left, kept = 1e3 * seconds / rounds, {}
    for name in sorted(runs, key=ms.__getitem__):
        left -= ms[name]
        if left < 0 and kept:
            break
        kept[name] = runs[name]
    return kept
