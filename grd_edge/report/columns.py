"""Runs beside each other: what they are called, tables of both, blocks of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grd_edge.report.blocks import LABELS, Block, Table, Value, facts
from grd_edge.report.runs import Run


def labels(runs: Sequence[Run]) -> list[str]:
    """What the runs are called on the page."""
    if len(runs) == 1:
        return [runs[0].name]
    return [f"{letter}: {run.name}" for letter, run in zip(LABELS, runs, strict=True)]


def facts_of(
    caption: str, runs: Sequence[Run], rows: Sequence[tuple[str, Callable[[Run], Value | None]]]
) -> list[Table]:
    return facts(caption, labels(runs), [(label, [value(run) for run in runs]) for label, value in rows])


def each(runs: Sequence[Run], blocks: Callable[[Run], list[Block]]) -> list[tuple[str, list[Block]]]:
    """`columns` of a section."""
    return [(label, blocks(run)) for label, run in zip(labels(runs), runs, strict=True)]
