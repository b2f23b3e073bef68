"""What a bundle costs on this machine: frame in to decision out, beside a baseline, checked before it is timed.

Never imports torch but for the baseline `torch`. Source: docs/bench.md.
"""

from __future__ import annotations

import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bench.timer import interleaved, speedup
from grd_edge.bundle import Bundle
from grd_edge.cold_start import cold_start
from grd_edge.energy import counters, spent
from grd_edge.errors import BundleError, MissingExtraError
from grd_edge.gates import ENERGY, FRAMES, METRICS, PARTS, SIZES, START, THROUGHPUT, Gate, Verdict, verdicts
from grd_edge.heads import RECONSTRUCTION
from grd_edge.installed import install_bytes, library_bytes
from grd_edge.latency_check import Baseline, baseline_of, check_frames
from grd_edge.latency_frames import described_frames, frames_from_images, made_frames
from grd_edge.machine import fingerprint, usable_cores
from grd_edge.runtime import Inspector
from grd_edge.shipped import opened_bundle
from grd_edge.targets import CPU
from grd_edge.watch import SILENT, Watcher

SCHEMA = 1
ROUNDS = 200
SETTLE_MS = 20  # as the demo; bench/timer.py says why
THROUGHPUT_ROUNDS = 20
MIN_ROUNDS, WARMUP = 3, 3
MAX_BATCH = 64  # of the throughput's table, when frames have so many patches
ENERGY_S = 2.0
MB = 1e6


@dataclass(frozen=True)
class LatencyOptions:
    """What is measured, and how.

    Attributes:
        target, precision, threads, batch_limit: of `Inspector`.
        patches: of a frame that is made; None: 16, or as near to it as the bundle's scale allows.
        images: frames in place of made ones.
        against: `torch`, `onnxruntime` or `none`; None: torch where it is installed; where the graph scores
            patches itself, onnxruntime.
        rounds: frames timed, at least 3.
        seconds: as many frames as take about so long, in place of `rounds`.
        cold_starts: fresh processes.
        parts: of `PARTS`.
    """

    target: str = CPU
    precision: str | None = None
    threads: int = 0
    batch_limit: int = 16
    patches: int | None = None
    images: tuple[Path, ...] = ()
    against: str | None = None
    rounds: int = ROUNDS
    seconds: float | None = None
    cold_starts: int = 5
    parts: tuple[str, ...] = PARTS

    @property
    def engine(self) -> dict[str, Any]:
        """Arguments of `Inspector`."""
        return {"target": self.target, "precision": self.precision, "threads": self.threads}


def measured(
    path: Path, options: LatencyOptions, gates: Sequence[Gate] = (), *, watch: Watcher = SILENT
) -> dict[str, Any]:
    """Measures a bundle; docs/bench.md lists what the result holds, ready for JSON.

    Raises:
        InputError: frames or options that do not go with the bundle.
        BundleError, EngineError, MissingExtraError: see `Inspector` and `baseline_of`.
        CheckFailedError: the engine or the baseline computes something else than the reference; nothing was timed.
    """
    watch.stage("checking")
    found = _Measured(path, options, watch)
    result: dict[str, Any] = {"schema": SCHEMA, "kind": "latency"}
    with ExitStack() as stack:
        inspector, bundle = opened_bundle(path, batch_limit=options.batch_limit, **options.engine)
        stack.enter_context(inspector)
        frames = frames_from_images(options.images) if options.images else made_frames(bundle, options.patches)
        precision = options.precision or bundle.manifest["precision"]["chosen"][options.target]
        result["bundle"] = _described_bundle(bundle, options.target, precision, inspector.engine_version)
        result["options"] = {key: getattr(options, key) for key in ("threads", "batch_limit")}
        result["options"] |= {"settle_ms": SETTLE_MS, "images": len(options.images)}
        baseline = found.baseline(bundle)
        if baseline:
            stack.callback(baseline.inspector.close)
        with _torch_threads(options.threads):
            result["checked"] = check_frames(inspector, bundle, frames, precision, baseline)
            result["frame"] = described_frames(inspector, frames, made=not options.images)
            if FRAMES in options.parts:
                result |= found.frames(inspector, baseline, frames)
        if ENERGY in options.parts:
            result["energy"] = found.energy(inspector, frames)
    if THROUGHPUT in options.parts:
        result["throughput"] = found.throughput(frames)
    if START in options.parts:
        result |= found.starts(frames[0])
    if SIZES in options.parts:
        result["sizes_mb"] = found.sizes(bundle, options.target, precision)
    why = {name: found.why.get(name, "it was left out") for name, value in found.figures.items() if value is None}
    return {
        **result,
        "figures": found.figures,
        "not_measured": why,
        "gates": [verdict.to_json() for verdict in verdicts(gates, found.figures, why)],
        "machine": fingerprint(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def verdicts_of(result: dict[str, Any]) -> list[Verdict]:
    """The gates of a result."""
    return [Verdict(**verdict) for verdict in result["gates"]]


def quantile(times_ms: np.ndarray, share: float) -> float:
    """The least time that at least `share` of the frames did not exceed: one that was measured, never between two."""
    return float(np.quantile(times_ms, share, method="inverted_cdf"))


def distribution(times_ms: np.ndarray) -> tuple[dict[str, float | None], dict[str, str]]:
    """The figures that times alone give, and why some are None: there are too few of them."""
    found: dict[str, float | None] = {"worst_ms": float(times_ms.max())}
    why = {}
    for name, metric in METRICS.items():
        if metric.quantile is None:
            continue
        found[name] = None
        if len(times_ms) < metric.rounds:
            why[name] = f"it needs {metric.rounds} frames and {len(times_ms)} were timed; raise --rounds"
        elif name == "jitter_ms":
            found[name] = found["p99_ms"] - found["p50_ms"]
        elif name == "jitter":
            found[name] = found["p99_ms"] / found["p50_ms"] - 1
        else:
            found[name] = quantile(times_ms, metric.quantile)
    return found, why


class _Measured:
    """The parts of a bench, and what they found.

    Attributes:
        figures: metric -> value; None: not measured.
        why: metric -> why it was not.
    """

    def __init__(self, path: Path, options: LatencyOptions, watch: Watcher) -> None:
        self.path, self.options, self.watch = path, options, watch
        self.figures: dict[str, float | None] = dict.fromkeys(METRICS)
        self.why: dict[str, str] = {}

    def baseline(self, bundle: Bundle) -> Baseline | None:
        """What the engine is timed beside, to be closed; None where nobody asked for it and it cannot be had."""
        against, threads = self.options.against, self.options.threads
        if against == "none":
            self.why["speedup"] = "the baseline was left out; choose --against torch or onnxruntime"
        try:
            usual = "torch" if bundle.head == RECONSTRUCTION else "onnxruntime"
            return baseline_of(bundle, against or usual, threads=threads)
        except (MissingExtraError, BundleError) as error:
            if against:
                raise
            self.why["speedup"] = str(error)
        return None

    def frames(self, inspector: Inspector, baseline: Baseline | None, frames: Sequence[np.ndarray]) -> dict[str, Any]:
        """Frame in, decision out: the engine and its baseline in turn."""
        stages: list[dict[str, float]] = []
        rounds = self.options.rounds

        def inspect(frame: np.ndarray) -> None:
            stages.append(inspector.inspect(frame).times_ms)

        contenders: dict[str, Callable[[Any], Any]] = {"engine": inspect}
        if baseline:
            contenders["baseline"] = baseline.inspector.inspect
        if self.options.seconds is not None:
            start = time.perf_counter()
            interleaved(contenders, rounds=MIN_ROUNDS, inputs=frames, warmup=WARMUP, settle_ms=SETTLE_MS)
            round_s = (time.perf_counter() - start) / (MIN_ROUNDS + WARMUP)
            rounds = max(MIN_ROUNDS, int(self.options.seconds / round_s))
        self.watch.stage(f"timing {rounds} frames")
        timings = interleaved(
            contenders,
            rounds=rounds,
            inputs=frames,
            warmup=WARMUP,
            settle_ms=SETTLE_MS,
            on_round=self.watch.progress,
        )
        timed = stages[-rounds:]
        figures, why = distribution(timings["engine"].times_ms)
        self.figures |= figures
        self.why |= why
        shares = [(each["cut"] + each["score"]) / each["total"] for each in timed]
        self.figures["kernels_share"] = statistics.median(shares)
        result: dict[str, Any] = {
            "rounds": rounds,
            "stages_ms": {name: statistics.median(each[name] for each in timed) for name in timed[0]},
            "baseline": None,
            "times_ms": {name: timing.times_ms.tolist() for name, timing in timings.items()},
        }
        if baseline:
            self.figures["speedup"] = speedup(timings["baseline"], timings["engine"])
            result["baseline"] = {
                "name": baseline.name,
                "version": baseline.inspector.engine_version,
                "scoring": baseline.scoring,
                "figures": distribution(timings["baseline"].times_ms)[0],
            }
        return result

    def throughput(self, frames: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Frames one after the other, by patches per engine call; the figures are those of the options' batch limit."""
        self.watch.stage("timing batch sizes")
        with ExitStack() as stack:

            def opened(batch: int) -> Inspector:
                return stack.enter_context(Inspector(self.path, batch_limit=batch, **self.options.engine))

            own = opened(self.options.batch_limit)
            patches = [len(own.inspect(frame).phi) for frame in frames]
            largest = min(max(patches), MAX_BATCH)
            batches = {1 << power for power in range(largest.bit_length())} | {largest}
            others = sorted(batches - {self.options.batch_limit})
            contenders = {str(batch): opened(batch).inspect for batch in others}
            contenders[str(self.options.batch_limit)] = own.inspect
            # All frames equally often, so that a frame has the mean one's patches.
            rounds = len(frames) * max(1, round(min(self.options.rounds, THROUGHPUT_ROUNDS) / len(frames)))
            rounds = max(MIN_ROUNDS, rounds)
            timings = interleaved(contenders, rounds=rounds, inputs=frames, on_round=self.watch.progress)
        rows = {}
        for batch in sorted(map(int, timings)):
            frames_per_s = 1e3 / float(timings[str(batch)].times_ms.mean())
            patches_per_s = frames_per_s * statistics.mean(patches)
            rows[batch] = {"batch": batch, "frames_per_s": frames_per_s, "patches_per_s": patches_per_s}
        row = rows[self.options.batch_limit]
        self.figures["throughput"], self.figures["throughput_patches"] = row["frames_per_s"], row["patches_per_s"]
        return list(rows.values())

    def starts(self, frame: np.ndarray) -> dict[str, Any]:
        """Cold starts, and the resident memory of the processes."""
        options, starts = self.options, []
        for index in range(options.cold_starts):
            self.watch.stage(f"cold start {index + 1} of {options.cold_starts}")
            starts.append(cold_start(self.path, frame, batch_limit=options.batch_limit, **options.engine))
        if not starts:
            self.why["cold_start_ms"] = self.why["memory_mb"] = "no process was started; raise --cold-starts"
            return {}
        times, memory = {}, {}
        for name in starts[0]:
            each = [start[name] for start in starts]
            if name.endswith("_ms"):
                times[name] = {"min": min(each), "median": statistics.median(each)}
            else:
                memory[name.removesuffix("_mb")] = None if None in each else max(each)
        self.figures["cold_start_ms"], self.figures["memory_mb"] = times["cold_start_ms"]["median"], memory["peak"]
        self.why["memory_mb"] = "this system does not tell it"
        return {"cold_start": {"processes": len(starts), **times}, "memory_mb": memory}

    def sizes(self, bundle: Bundle, target: str, precision: str) -> dict[str, Any]:
        """The engine, the native library and the installed packages, in MB."""
        engines = bundle.manifest["engines"]
        entry = next(each for each in engines if (each["target"], each["precision"]) == (target, precision))
        packages = {name: size / MB for name, size in install_bytes().items()}
        library = library_bytes()
        sizes = {
            "engine_mb": len(bundle.files[entry["file"]]) / MB,
            "library_mb": library and library / MB,
            "install_mb": sum(packages.values()),
        }
        self.figures |= sizes
        self.why["library_mb"] = "it is not where it belongs; run: grd-edge doctor"
        return {**sizes, "packages": packages}

    def energy(self, inspector: Inspector, frames: Sequence[np.ndarray]) -> dict[str, Any]:
        """Joules of a frame, of frames one after the other, and the power while nothing is inspected."""
        counted, reason = counters(gpu=self.options.target != CPU)
        if not counted:
            self.why["frame_joules"] = reason
            return {"not_told": reason}
        self.watch.stage("reading energy counters")
        done = 0

        def work() -> None:
            nonlocal done
            end = time.perf_counter() + ENERGY_S
            while time.perf_counter() < end:
                inspector.inspect(frames[done % len(frames)])
                done += 1

        idle, idle_s = spent(counted, lambda: time.sleep(ENERGY_S))
        used, busy_s = spent(counted, work)
        self.figures["frame_joules"] = sum(used.values()) / done
        return {
            "frames": done,
            "counters": {
                name: {"watts": joules / busy_s, "idle_watts": idle[name] / idle_s, "frame_joules": joules / done}
                for name, joules in used.items()
            },
        }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """As many threads for PyTorch as for the engine, where PyTorch is there for the baseline."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _described_bundle(bundle: Bundle, target: str, precision: str, version: str) -> dict[str, Any]:
    geometry = bundle.manifest["geometry"]
    return {
        "name": bundle.manifest["name"],
        "path": os.fspath(bundle.path),
        "seal": bundle.seal,
        "head": bundle.head,
        "target": target,
        "precision": precision,
        "engine": version,
        **{key: geometry[key] for key in ("patch_h", "patch_w", "channels", "scale_px")},
    }
