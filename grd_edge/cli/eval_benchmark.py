"""`grd-edge eval --benchmark-root`: every engine on every category; files as categories are done, tables at the end."""

from __future__ import annotations

import datetime
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from grd_edge import scored
from grd_edge.bundle import read_bundle
from grd_edge.cli.common import (
    ImageBar,
    err,
    folders_of_categories,
    out,
    over_categories,
    print_json,
    progress,
)
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.errors import GrdError, failure_of
from grd_edge.eval_benchmark import (
    COLUMNS,
    FIGURES,
    PYTORCH,
    Category,
    bundle_of_category,
    categories_of_root,
    evaluated_category,
    mean_of_categories,
    rows_of_document,
)
from grd_edge.evaluate import training_seed
from grd_edge.files import write_atomically, writing_to
from grd_edge.machine import fingerprint
from grd_edge.report.parity import METRICS
from grd_edge.results import csv_lines, json_document, path_text


def eval_root(
    bundles: Path, root: Path, *, against: Any, output: Path | None, seed: int | None, json_: bool, **options: Any
) -> None:
    """Evaluates every category, and ends with tables.

    Args:
        bundles, against: folders of the categories' bundles and checkpoints; `against` may be a backend, too.
        options: `precision` and `untrained` of `evaluated_category`.

    Raises:
        InputError: no categories, none that could be evaluated, or a result cannot be written.
    """
    folders, others = categories_of_root(root)
    given = {"bundle": bundles, "against": against}
    homes = folders_of_categories(root, folders, given, {"bundle": ".grdb", "against": ".safetensors"}, {}, {})
    if output:  # told before hours of work
        with writing_to(output):
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
    about = {
        "command": path_text(shlex.join(["grd-edge", *sys.argv[1:]])),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": fingerprint(),
    }
    found: dict[str, Category] = {}
    failed: dict[str, GrdError] = {}

    def run(folder: Path, row: dict[str, Any]) -> None:
        name = folder.name
        checkpoints = homes["against"][0] if "against" in homes else None
        reference = checkpoints / f"{name}.safetensors" if checkpoints else against or PYTORCH
        found[name] = _evaluated(bundle_of_category(bundles, name), folder, against=reference, seed=seed, **options)
        row |= found[name].result

    for name, row, error in over_categories(folders, run):
        if error:
            failed[name] = error
            err.print(f"{name}: {error}")
        else:
            if output:
                _write_category(output / name, found[name], {"category": name, **about, **row})
            found[name].scored.clear()  # of many images, and not needed for means
    if not found:
        raise failure_of(f"none of {len(folders)} categories could be evaluated", failed)
    document = {
        "benchmark_root": path_text(root),
        "bundles": path_text(bundles),
        **about,
        "passed_over": others,
        "categories": {name: each.result for name, each in found.items()},
        "failed": {name: str(error) for name, error in failed.items()},
        "mean": mean_of_categories(found),
    }
    rows = list(rows_of_document(document))
    try:
        if output:
            write_atomically(output / "benchmark.csv", csv_lines(COLUMNS, rows))
            write_atomically(output / "benchmark.json", json_document(document))
    finally:  # a full disk does not take the tables
        if json_:
            print_json(document)
        else:
            _print(document, rows)


def _evaluated(bundle: Path, folder: Path, *, seed: int | None, **options: Any) -> Category:
    chosen = training_seed(read_bundle(bundle)) if seed is None else seed
    dataset = dataset_from_folder(folder, seed=chosen, need_train=False)
    with progress() as bar:
        found = evaluated_category(
            bundle,
            dataset.test,
            calibration=dataset.calibration,
            bar=lambda name: ImageBar(
                bar, name, len(dataset.calibration if name.endswith("calibration") else dataset.test)
            ),
            **options,
        )
    found.result["data"] = {"path": path_text(folder), "manifest_sha256": dataset.manifest_sha256()}
    return found


def _write_category(folder: Path, found: Category, document: dict[str, Any]) -> None:
    """Writes what is said of one category: a row per image and engine, and the figures last."""
    rows = [{"engine": name, **row} for name, said in found.scored.items() for row in scored.rows_from_scored(said)]
    write_atomically(folder / "scores.csv", csv_lines(("engine", *scored.COLUMNS), rows))
    write_atomically(folder / "category.json", json_document(document))


# ------------------------------------------------------------------------------------------------------ tables

# title of a table -> what its columns add to the figures' names, form of the numbers
_TABLES = {
    "{bundles} on {benchmark_root}, 95 % intervals; * ships": ("", ".4f"),
    "engine less reference, in pairs": ("_delta", "+.4f"),
    "less the untrained network, in pairs": ("_gain", "+.4f"),
}
_SHOWN_FLIPS = {"decision_flips": "products flipped", "decision_flips_refit": "flipped after refitting"}


def _print(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    measured = [row for row in rows if not row["note"]]
    total = len(document["categories"])
    for title, (end, form) in _TABLES.items():
        columns = {
            METRICS[short]: [_value(row, f"{name}{end}", form, total) for row in measured]
            for name, short in FIGURES.items()
        }
        if end == "_delta":
            for key, name in _SHOWN_FLIPS.items():
                columns[name] = ["" if row[key] is None else f"{row[key]} of {row[f'{key}_of']}" for row in measured]
        _table(title.format(**document), measured, columns)
    for row in rows:
        if row["note"]:
            out.print(f"{' '.join(filter(None, (row['category'], row['engine'])))}: {row['note']}", soft_wrap=True)
    for name, result in document["categories"].items():
        for note in result["notes"]:
            out.print(f"{name}: {note}", soft_wrap=True)
    if document["passed_over"]:
        out.print(f"folders that are no category: {', '.join(document['passed_over'])}", soft_wrap=True)


def _table(title: str, rows: Sequence[dict[str, Any]], columns: dict[str, list[str]]) -> None:
    """A row per category and engine, without columns and rows that are empty."""
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if not columns:
        return
    table = Table(title=title, title_justify="left")
    for name in ("category", "engine", *columns):
        table.add_column(name, overflow="fold")
    last = None
    for row, *cells in zip(rows, *columns.values(), strict=True):
        if any(cells):
            begins = row["category"] != last
            if begins and last:
                table.add_section()
            last = row["category"]
            table.add_row(last if begins else "", row["engine"] + " *" * bool(row["shipped"]), *cells)
    out.print(table)


def _value(row: dict[str, Any], key: str, form: str, total: int) -> str:
    """A figure and its interval; a mean over fewer than `total` categories says over how many."""
    if row[key] is None:
        return ""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    words = f"{row[key]:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")
    over = row[f"{key}_categories"]
    return words if over in (None, total) else f"{words} of {over}"
