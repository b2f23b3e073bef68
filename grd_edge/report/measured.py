"""Sections on speed and the machine it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grd_edge.report.blocks import (
    BENCH,
    Block,
    Chart,
    Note,
    Row,
    Section,
    Table,
    Value,
    cell_of,
    count,
    facts,
    item,
    leaves,
    missing,
    ms,
    number,
    plain_number,
    rate,
    text,
    times,
)
from grd_edge.report.charts import Series, lines
from grd_edge.report.columns import each, facts_of, labels
from grd_edge.report.runs import TIMED_IN_EVAL, Run
from grd_edge.results import path_text

_TIMES = {
    "p50_ms": "p50",
    "p90_ms": "p90",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "p99_9_ms": "p99.9",
    "worst_ms": "worst",
    "jitter_ms": "jitter, p99 - p50",
}
_COSTS: dict[str, tuple[str, Callable[[float | None], Value | None]]] = {
    "kernels_share": ("share of cutting and scoring in a frame", rate),
    "throughput": ("frames per second, one after the other", plain_number),
    "throughput_patches": ("patches per second", plain_number),
    "cold_start_ms": ("open bundle to first decision, median", ms),
    "memory_mb": ("peak of the resident memory, MB", plain_number),
    "engine_mb": ("engine file, MB", plain_number),
    "library_mb": ("libgrd_edge.so, MB", plain_number),
    "install_mb": ("package and its runtime dependencies, MB", plain_number),
    "frame_joules": ("energy of a frame, J", plain_number),
}


def latency(runs: Sequence[Run]) -> Section:
    def baseline(run: Run, key: str) -> Value | None:
        return ms(number(run.bench, "baseline", "figures", key) or number(run.summary, f"{key}_reference"))

    rows = [(label, lambda r, key=key: ms(number(r.latency, key))) for key, label in _TIMES.items()]
    rows += [(f"{_TIMES[key]}, baseline", lambda r, key=key: baseline(r, key)) for key in ("p50_ms", "p99_ms")]
    rows += [
        ("times as fast as the baseline", lambda r: times(number(r.latency, "speedup"))),
        ("baseline", lambda r: text(item(r.bench, "baseline", "version") or (r.summary and "PyTorch"))),
        ("frames timed", lambda r: count(number(r.bench, "rounds"))),
        ("precision timed", lambda r: text(item(r.bench, "bundle", "precision"))),
        ("measured", lambda r: text(item(r.bench, "date"))),
    ]
    shown: list[Block] = facts_of("Frame in, decision out", runs, rows)
    costs = [
        (label, lambda r, k=key, f=form: f(number(r.bench, "figures", k))) for key, (label, form) in _COSTS.items()
    ]
    shown += facts_of("Costs", runs, costs)

    def chart(run: Run) -> list[Block]:
        name = item(run.bench, "baseline", "name")
        measured = {str(name) if name and key == "baseline" else key: values for key, values in run.times_ms.items()}
        if not measured:
            return [missing("times of single frames", BENCH), *_benched(run)]
        series = [
            Series(f"{name} ({len(values)})", sorted(values), np.arange(1, len(values) + 1) / len(values), index % 4)
            for index, (name, values) in enumerate(measured.items())
        ]
        high = max(float(np.percentile(values, 99.5)) for values in measured.values())
        svg = lines(
            "Times of frames",
            series,
            x_label="ms, frame in, decision out",
            y_label="share of the frames",
            x_range=(0.0, high),
            y_range=(0.0, 1.0),
        )
        told = "Share of the frames that were decided within a time."
        if TIMED_IN_EVAL in measured:
            told += " An evaluation is no benchmark."
            return [Chart(svg, told), missing("times of a benchmark", BENCH), *_benched(run)]
        return [Chart(svg, told), *_benched(run)]

    return Section("latency", "Latency", shown, each(runs, chart))


def _benched(run: Run) -> list[Block]:
    """What a benchmark told besides: batches, gates, what it could not measure."""
    found: list[Block] = []
    batches = [
        Row(
            cell_of(row, plain_number, "batch"),
            [cell_of(row, plain_number, key) for key in ("frames_per_s", "patches_per_s")],
        )
        for row in _listed(run, "throughput")
    ]
    if batches:
        found.append(Table("Throughput", ["patches per engine call", "frames per s", "patches per s"], batches))
    gates = [
        Row(
            str(item(gate, "gate")),
            [
                f"{item(gate, 'bound')} {cell_of(gate, plain_number, 'limit')}",
                cell_of(gate, plain_number, "value"),
                "holds" if item(gate, "passed") is True else "fails",
            ],
        )
        for gate in _listed(run, "gates")
    ]
    if gates:
        found.append(Table("Gates", ["metric", "limit", "found", "verdict"], gates))
    unmeasured = item(run.bench, "not_measured")
    told = unmeasured.items() if isinstance(unmeasured, dict) else ()
    return found + [Note(path_text(f"{name} is not measured: {why}.")) for name, why in told]


def _listed(run: Run, key: str) -> list[Any]:
    found = item(run.bench, key)
    return found if isinstance(found, list) else []


def device(runs: Sequence[Run]) -> Section:
    found = [_fingerprint(run) for run in runs]
    names = list(dict.fromkeys(name for each in found for name in each))
    shown = facts("Device and versions", labels(runs), [(name, [each.get(name) for each in found]) for name in names])

    def engines(run: Run) -> list[Block]:
        blocks: list[Block] = [] if _fingerprint(run) else [missing("the device's fingerprint", BENCH)]
        listed = run.bundle.manifest["engines"] if run.bundle else []
        rows = [
            Row(
                f"{engine['target']} {engine['precision']}",
                [", ".join(f"{k} {v}" for k, v in engine["fingerprint"].items()) or "any device of the target"],
            )
            for engine in listed
        ]
        return blocks + ([Table("Engines and what they were made on", ["engine", "fingerprint"], rows)] if rows else [])

    return Section("device", "Device", shown, each(runs, engines))


def _fingerprint(run: Run) -> dict[str, Value]:
    told = {key: run.details[key] for key in ("cpu", "engine") if key in run.details}
    stated = item(run.bench, "machine") or item(run.summary, "versions") or told
    return leaves(stated) if isinstance(stated, dict) else {}
