"""Gates on what `grd-edge bench` measures: a metric, and the limit that it is held to.

A gate whose metric could not be measured fails: nobody ships by a figure that is not there.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from grd_edge.errors import InputError


@dataclass(frozen=True)
class Metric:
    """A figure of a bench.

    Attributes:
        name: as in `--gate`; its end is the unit (`_ms`, `_mb` = 10^6 bytes).
        part: of the bench that measures it.
        text: for people.
        at_least: a gate is a lower limit, else an upper one.
        quantile: the share of frames that it bounds; None: it is no quantile.
    """

    name: str
    part: str
    text: str
    at_least: bool = False
    quantile: float | None = None

    @property
    def rounds(self) -> int:
        """Frames that must be timed before it means anything: for p99 100, of which one is slower."""
        return 1 if self.quantile is None else round(1 / (1 - self.quantile))


FRAMES, THROUGHPUT, START, SIZES, ENERGY = PARTS = ("frames", "throughput", "start", "sizes", "energy")
METRICS = {
    metric.name: metric
    for metric in (
        Metric("p50_ms", FRAMES, "frame in, decision out, p50", quantile=0.5),
        Metric("p90_ms", FRAMES, "p90", quantile=0.9),
        Metric("p95_ms", FRAMES, "p95", quantile=0.95),
        Metric("p99_ms", FRAMES, "p99", quantile=0.99),
        Metric("p99_9_ms", FRAMES, "p99.9", quantile=0.999),
        Metric("worst_ms", FRAMES, "worst"),
        Metric("jitter_ms", FRAMES, "jitter, p99 - p50", quantile=0.99),
        Metric("jitter", FRAMES, "jitter as a share of p50", quantile=0.99),
        Metric("kernels_share", FRAMES, "share of cutting and scoring in a frame"),
        Metric("speedup", FRAMES, "times as fast as the baseline, p50", at_least=True),
        Metric("throughput", THROUGHPUT, "frames per second, one after the other", at_least=True),
        Metric("throughput_patches", THROUGHPUT, "patches per second", at_least=True),
        Metric("cold_start_ms", START, "open bundle to first decision, median"),
        Metric("memory_mb", START, "peak of the resident memory"),
        Metric("engine_mb", SIZES, "engine file"),
        Metric("library_mb", SIZES, "libgrd_edge.so"),
        Metric("install_mb", SIZES, "package and its runtime dependencies"),
        Metric("frame_joules", ENERGY, "energy of a frame"),
    )
}


@dataclass(frozen=True)
class Gate:
    """A metric held to a limit."""

    metric: Metric
    limit: float

    @property
    def bound(self) -> str:
        return "at least" if self.metric.at_least else "at most"


@dataclass(frozen=True)
class Verdict:
    """How a gate went.

    Attributes:
        value: None: not measured, for the reason `why`.
    """

    gate: str
    bound: str
    limit: float
    value: float | None
    passed: bool
    why: str = ""

    def __str__(self) -> str:
        found = f"not measured: {self.why}" if self.value is None else f"{self.value:.5g}"
        return f"{self.gate} {found} ({self.bound} {self.limit:g})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gates_from_texts(texts: Iterable[str]) -> list[Gate]:
    """Gates such as `p99_ms=20`; `<=` and `>=` are taken where they say what the metric's gate is anyway.

    Raises:
        InputError: no such metric, no number, the wrong direction, or a metric that is gated twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        found = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=|>=|=)\s*(\S+)\s*", text)
        if not found:
            raise InputError(f"the gate {text!r} is no metric with a limit; write it as p99_ms=20")
        name, sign, number = found.groups()
        metric = metric_named(name)
        if sign == ("<=" if metric.at_least else ">="):
            raise InputError(
                f"the gate {text!r} has it the wrong way round; write {metric.name}={number}, {_kind(metric)}"
            )
        try:
            limit = float(number)
        except ValueError as error:
            raise InputError(f"the gate {text!r} has no number as its limit; write it as p99_ms=20") from error
        if metric.name in limits:
            raise InputError(f"{metric.name} is gated twice; give one limit")
        limits[metric.name] = limit
    return gates_from_limits(limits)


def gates_from_limits(limits: Mapping[str, float]) -> list[Gate]:
    """Gates from metric -> limit.

    Raises:
        InputError: no such metric, or a limit that is no positive number.
    """
    gates = []
    for name, limit in limits.items():
        metric = metric_named(name)
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not (math.isfinite(limit) and limit > 0):
            raise InputError(f"{metric.name} is held to {limit!r}; give a number above 0")
        gates.append(Gate(metric, float(limit)))
    return gates


def metric_named(name: str) -> Metric:
    """A metric by its name; `p99.9_ms` is `p99_9_ms`.

    Raises:
        InputError: names the nearest one, and all.
    """
    found = METRICS.get(name.replace(".", "_"))
    if found:
        return found
    close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.6)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    accuracy = " (accuracy is measured by: grd-edge eval)" if name == "accuracy" else ""
    raise InputError(f"there is no metric {name!r} to gate{meant} choose {', '.join(METRICS)}{accuracy}")


def verdicts(gates: Iterable[Gate], figures: Mapping[str, float | None], why: Mapping[str, str]) -> list[Verdict]:
    """How each gate went.

    Args:
        figures: metric -> value; None or NaN: not measured.
        why: metric -> why it was not measured.
    """
    found = []
    for gate in gates:
        name, value = gate.metric.name, figures.get(gate.metric.name)
        if value is None or math.isnan(value):
            reason = why.get(name, "it was left out")
            found.append(Verdict(name, gate.bound, gate.limit, None, False, reason))
        else:
            passed = value >= gate.limit if gate.metric.at_least else value <= gate.limit
            found.append(Verdict(name, gate.bound, gate.limit, float(value), passed))
    return found


def failure(found: Iterable[Verdict]) -> str | None:
    """One sentence about the gates that did not hold; None: all did."""
    found = list(found)
    missed = [verdict for verdict in found if not verdict.passed]
    if not missed:
        return None
    return f"{len(missed)} of {len(found)} gates did not hold: {'; '.join(map(str, missed))}"


def _kind(metric: Metric) -> str:
    return "a lower limit" if metric.at_least else "an upper limit"
