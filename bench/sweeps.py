"""Sweeps of bench/scaling.py: the same frames at several sizes of one thing, in turn, and exponents fitted to them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from grd_edge.bench.exponents import Statistic, affine_power_fit, power_fit
from grd_edge.bench.timer import interleaved

from grd_edge.errors import CheckFailedError
from grd_edge.runtime import Inspector
from grd_edge.stream import Stream

SETTLE_MS = 10  # bench/timer.py says why
OWN = "the bundle's"  # precision
OVERLOAD = 1.5  # frames come this many times as fast as they can be inspected


class NotMeasured(Exception):
    """This machine, or this bundle, does not allow a sweep; the text says why."""


@dataclass(frozen=True)
class Sweep:
    """Times at each size, in turn.

    Attributes:
        name: of scaling.SWEEPS.
        key: unique among all sweeps; letters, digits, _.
        x_label, y_label: what the sizes and the times are.
        engine: its precision, or what else tells sweeps of one name apart.
        times_ms: (rounds, sizes).
        others: further figures, by size: medians of `cut_ms`, `infer_ms`, `score_ms`.
    """

    name: str
    key: str
    x_label: str
    y_label: str
    engine: str
    sizes: tuple[int, ...]
    times_ms: np.ndarray
    others: dict[str, list[float]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The row of the record's table."""
        row: dict[str, Any] = {
            "sweep": self.x_label,
            "engine": self.engine,
            "cost": self.y_label,
            "sizes": ", ".join(map(str, self.sizes)),
            "values": ", ".join(f"{ms:.3g}" for ms in self.times_ms.min(0)),
        }
        try:
            row |= {f"exponent_{of}": str(power_fit(self.sizes, self.times_ms, of)) for of in ("min", "p50")}
        except CheckFailedError as error:
            return {**row, "not_measured": f"no exponent: {error}"}
        with suppress(CheckFailedError):  # costs that fall with the size, or too few sizes: no form for them
            beside = affine_power_fit(self.sizes, self.times_ms)
            row["affine"] = f"{beside}, {beside.fixed:.2g} ms"
        return row

    def figures(self) -> dict[str, Any]:
        """Single figures of the record: lists by size, and the exponents where they can be fitted."""
        found: dict[str, Any] = {"sizes": list(self.sizes)}
        found |= {"min_ms": self.times_ms.min(0).tolist(), "p50_ms": np.median(self.times_ms, axis=0).tolist()}
        found |= self.others
        statistics: tuple[Statistic, ...] = ("min", "p50")
        for of in statistics:
            for form, fitted in (("exponent", power_fit), ("affine_exponent", affine_power_fit)):
                with suppress(CheckFailedError):
                    fit = fitted(self.sizes, self.times_ms, of)
                    found[f"{form}_{of}"], found[f"{form}_{of}_interval"] = fit.exponent, [fit.low, fit.high]
                    if fit.fixed is not None:
                        found[f"fixed_{of}_ms"] = fit.fixed
        return {f"{self.key}_{name}": value for name, value in found.items()}


def inspected(
    name: str,
    x_label: str,
    runs: Mapping[int, tuple[Inspector, np.ndarray, int]],
    rounds: int,
    precision: str | None,
    *,
    note: str = "",
    settle_ms: float = SETTLE_MS,
) -> Sweep:
    """Frame in, decision out.

    Args:
        runs: size -> inspector, frame, and the patches that it has.
        precision: None: the one the bundle chose.
        note: what else tells sweeps of one name and precision apart.

    Raises:
        CheckFailedError: a frame has other patches, or the scores of its first are not finite; nothing is timed.
    """
    stages: dict[int, list[dict[str, float]]] = {size: [] for size in runs}

    def run(size: int):
        inspector, frame, _ = runs[size]
        found = inspector.inspect(frame)
        stages[size].append(found.times_ms)
        return found

    def check(outputs: dict[str, Any]) -> None:
        for size, (_, _, patches) in runs.items():
            phi = outputs[str(size)].phi
            if len(phi) != patches or not np.isfinite(phi).all():
                raise CheckFailedError(
                    f"a frame of {patches} patches came back with {len(phi)}, scores {phi.min():.3g} to "
                    f"{phi.max():.3g}; a wrong result is not timed"
                )

    timings = interleaved(
        {str(size): lambda _, size=size: run(size) for size in runs}, rounds=rounds, settle_ms=settle_ms, check=check
    )
    others = {
        f"{stage}_ms": [float(np.median([each[stage] for each in stages[size][-rounds:]])) for size in runs]
        for stage in ("cut", "infer", "score")
    }
    times = np.stack([timing.times_ms for timing in timings.values()], axis=1)
    engine = f"{precision or OWN}{note and f', {note}'}"
    key = re.sub(r"\W+", "_", f"{name}_{precision or 'own'} {note}".strip())
    return Sweep(name, key, x_label, "ms a frame", engine, tuple(runs), times, others)


def streamed(
    path: Path, frame: np.ndarray, depths: Sequence[int], *, frames: int, rounds: int, precision: str | None
) -> Iterator[Sweep]:
    """Frames of one patch through streams of different queue depths.

    `block`: frames are submitted as fast as the stream takes them: time a frame, and latency from submission to result.
    `drop-oldest`: they come `OVERLOAD` times as fast as that, at even distances: latency of those that are inspected,
    and the share that is dropped.
    """
    x_label, engine = "queue depth", precision or OWN
    block = _Runs(frames, pace_ms=0)
    with ExitStack() as stack:
        timings = interleaved(block.opened(stack, path, frame, depths, "block", precision), rounds=rounds, warmup=1)
    times = np.stack([timing.times_ms for timing in timings.values()], axis=1) / frames
    key, sizes = f"queue_depth_{precision or 'own'}", tuple(depths)
    yield Sweep("queue-depth", f"{key}_block_cost", x_label, "block: ms a frame", engine, sizes, times)
    latency = block.latencies(rounds)
    yield Sweep("queue-depth", f"{key}_block_latency", x_label, "block: ms of latency", engine, sizes, latency)
    paced = _Runs(frames, pace_ms=float(np.median(times, axis=0).min()) / OVERLOAD)
    with ExitStack() as stack:
        interleaved(paced.opened(stack, path, frame, depths, "drop-oldest", precision), rounds=rounds, warmup=1)
    y_label = f"drop-oldest, {OVERLOAD:g} times the frames: ms of latency"
    dropped = {"dropped": [float(np.mean(paced.dropped[depth][-rounds:])) for depth in depths]}
    yield Sweep("queue-depth", f"{key}_drop_latency", x_label, y_label, engine, sizes, paced.latencies(rounds), dropped)


class _Runs:
    """Runs of frames through streams; what each run found, by queue depth.

    Attributes:
        latency_ms: medians, of the frames inspected once the queue had filled.
        dropped: shares of the frames.
    """

    def __init__(self, frames: int, *, pace_ms: float) -> None:
        self.frames, self.pace_s = frames, pace_ms / 1e3
        self.latency_ms: dict[int, list[float]] = {}
        self.dropped: dict[int, list[float]] = {}

    def opened(self, stack: ExitStack, path: Path, frame, depths, overload: str, precision: str | None):
        """Contenders of the timer."""
        runs = {}
        for depth in depths:
            self.latency_ms[depth], self.dropped[depth] = [], []
            stream = stack.enter_context(
                Stream(
                    path,
                    precision=precision,
                    queue_depth=depth,
                    capacity=self.frames + depth,
                    overload=overload,
                    frame_shape=frame.shape,
                )
            )
            runs[str(depth)] = lambda _, stream=stream, depth=depth: self._run(stream, depth, frame)
        return runs

    def latencies(self, rounds: int) -> np.ndarray:
        """(rounds, depths)."""
        return np.array([each[-rounds:] for each in self.latency_ms.values()]).T

    def _run(self, stream: Stream, depth: int, frame: np.ndarray) -> None:
        begin = time.perf_counter()
        for index in range(self.frames):
            time.sleep(max(0.0, begin + index * self.pace_s - time.perf_counter()) if self.pace_s else 0)
            stream.submit(frame, id=index)
        results = [stream.wait() for _ in range(self.frames)]
        scored = [result for result in results if result.outcome == "scored"]
        dropped = sum(result.outcome == "dropped" for result in results)
        if len(scored) + dropped != self.frames or len(scored) < 2:
            raise CheckFailedError(f"of {self.frames} frames {len(scored)} were inspected and {dropped} dropped")
        self.dropped[depth].append(dropped / self.frames)
        late = scored[len(scored) // 2 :]
        self.latency_ms[depth].append(float(np.median([result.times_ms["total"] for result in late])))
