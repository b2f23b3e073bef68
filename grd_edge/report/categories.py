"""Section on a benchmark root: every category and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grd_edge.errors import InputError
from grd_edge.eval_benchmark import FIGURES, rows_of_document
from grd_edge.report.blocks import Block, Note, Row, Section, Table, Value, cell, facts, item, metric, signed, text
from grd_edge.report.columns import each
from grd_edge.report.parity import METRICS
from grd_edge.report.runs import Run
from grd_edge.results import path_text

_TABLES: dict[str, tuple[str, Callable[..., Value | None]]] = {
    "": ("By category and engine; * ships. Intervals are 95 %, a mean's of the images of these categories", metric),
    "_delta": ("Engine less reference, in pairs", signed),
    "_gain": ("Engine less the untrained network, in pairs", signed),
}


def categories(runs: Sequence[Run]) -> Section:
    def blocks(run: Run) -> list[Block]:
        if not run.benchmark:
            return []
        try:
            rows = list(rows_of_document(run.benchmark))
            return [*_measured(run.benchmark), *_blocks(rows, len(run.benchmark["categories"]))]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the benchmark in {path_text(run.places[-1])} is not whole ({error!r}); make it again with: "
                "grd-edge eval BUNDLES --benchmark-root DIR -o OUT"
            ) from error

    return Section("categories", "Accuracy by category", (), each(runs, blocks))


def _measured(document: dict[str, Any]) -> list[Block]:
    """How, when and where it was measured."""
    told = {
        "bundles": item(document, "bundles"),
        "images": item(document, "benchmark_root"),
        "command": item(document, "command"),
        "date": item(document, "date"),
        "processor": item(document, "machine", "cpu"),
        "commit of grd-edge": item(document, "machine", "commit"),
    }
    return facts("Measured", ["value"], [(name, [text(value)]) for name, value in told.items()])


def _blocks(rows: Sequence[dict[str, Any]], total: int) -> list[Block]:
    found: list[Block] = []
    places = [" ".join(filter(None, (row["category"], row["engine"], "*" * bool(row["shipped"])))) for row in rows]
    for end, (caption, shown) in _TABLES.items():
        columns = ["category, engine", *(METRICS[short] for short in FIGURES.values())]
        columns += ["products flipped"] if end == "_delta" else []
        lines = []
        for place, row in zip(places, rows, strict=True):
            cells = [_figure(row, f"{name}{end}", shown, total) for name in FIGURES]
            if end == "_delta":
                flips, of = row["decision_flips"], row["decision_flips_of"]
                cells.append(cell(None) if flips is None else f"{flips:,} of {of:,}")
            if set(cells) != {cell(None)}:
                lines.append(Row(path_text(place), cells))
        if lines:
            found.append(Table(caption, columns, lines))
    return found + [
        Note(path_text(f"{place}: {row['note']}")) for place, row in zip(places, rows, strict=True) if row["note"]
    ]


def _figure(row: dict[str, Any], key: str, shown: Callable[..., Value | None], total: int) -> str:
    """A figure and its interval; a mean over fewer than `total` categories says over how many."""
    words, over = cell(shown(row[key], [row[f"{key}_low"], row[f"{key}_high"]])), row[f"{key}_categories"]
    return words if over in (None, total) else f"{words} of {over}"
