"""What the verbs share: consoles, progress bars, options, and the loop over the categories of a benchmark root."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grd_edge.errors import GrdError, InputError, MissingExtraError, StoppedError, failure_of
from grd_edge.results import plain

# Names and paths of users are text, whatever brackets and colons they hold.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Data = Annotated[
    str, typer.Option("--data", metavar="DIR|elpv", help="Folder with train/good and test/, or the ELPV solar cells.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file over the profile.")]
Profile = Annotated[str | None, typer.Option("--profile", help="Profile to start from.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as train.seed=1; repeatable.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, name.grdb.", show_default=False)]
CheckpointPath = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint, name.safetensors.", show_default=False)
]


class FileFormat(StrEnum):
    csv = "csv"
    jsonl = "jsonl"


# of the verbs that inspect images
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder that results.csv or results.jsonl grows in.")
]
Formats = Annotated[list[FileFormat] | None, typer.Option("--format", help="Of the results; repeatable. Default: csv.")]
HeatmapTop = Annotated[
    float | None, typer.Option(min=1e-4, help="Heatmap value at which the pictures' color scale ends.")
]
ProductBy = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Searched in the path; its first group names the product.")
]
RunBy = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Searched in the path; its first group names the run.")
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Images of all subfolders, too.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0: all cores.")]
EnginePrecision = Annotated[str | None, typer.Option(help="Precision of the engine; default: the bundle's.")]


def format_names(formats: Sequence[FileFormat] | None) -> tuple[str, ...]:
    """Formats as the library names them, each once."""
    return tuple(dict.fromkeys(str(each) for each in formats or [FileFormat.csv]))


def tab_line(values: Iterable[Any]) -> str:
    """Values of one row for a terminal: six decimals, nothing for None."""
    return "\t".join(
        f"{value:.6f}" if isinstance(value, float) else str("" if value is None else value) for value in values
    )


def share(text: str | float) -> float:
    """A share such as `0.005` or `0.5%`."""
    text = str(text)
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no share; write it as 0.005 or 0.5%") from error


MaxAurocDrop = Annotated[
    float, typer.Option(parser=share, metavar="SHARE", help="What a lower precision may cost in AUROC.")
]
MaxFlips = Annotated[
    float, typer.Option(parser=share, metavar="SHARE", help="Share of patches that it may decide otherwise.")
]


def load_dataset(data: str, *, seed: int = 0, **needs: bool):
    """The dataset that `--data` names; `needs` (need_train, need_validation, need_test) as of `dataset_from_folder`."""
    from grd_edge.data.dataset import dataset_from_elpv, dataset_from_folder

    if data == "elpv":
        return dataset_from_elpv(seed=seed, need_validation=needs.get("need_validation", False))
    return dataset_from_folder(Path(data), seed=seed, **needs)


def is_first_process() -> bool:
    """Whether this process speaks to the user; known before anything is launched."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    if rank is not None:
        return rank == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    if not _collected(value):
        typer.echo(json.dumps(plain(value), indent=1, allow_nan=False))


def print_rows(title: str, rows: dict[str, Any]) -> None:
    """A two-column table on stdout."""
    if _collected(rows):
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with a head on stdout."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


# ------------------------------------------------------------------------------------------ benchmark roots

# while a verb runs for one category: where the result goes that it would print
_category: ContextVar[dict[str, Any] | None] = ContextVar("_category", default=None)


def in_category() -> bool:
    """Whether a verb runs for one category, so that what it prints goes into the table."""
    return _category.get() is not None


def _collected(result: Any) -> bool:
    """Keeps `result` for the table of the categories; False outside of that loop."""
    row = _category.get()
    if row is None or not isinstance(result, dict):
        return False
    row.update(result)
    return True


def each_category(
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    root: Callable[[dict[str, Any]], str | Path | None] = lambda arguments: arguments["data"],
    narrowed: Callable[[Path], dict[str, Any]] = lambda folder: {"data": str(folder)},
):
    """Lets a verb run over the categories of a benchmark root, and end with a table of what it would have printed.

    A category that fails does not stop the others; its sentence comes at the end, with the largest exit code. Asking to
    stop ends the loop.

    Args:
        inputs, outputs: parameter -> suffix. For a root they name a folder with a file <category><suffix> each.
        columns: keys of the result that the table shows.
        root: the folder that may be a benchmark root, from the verb's arguments.
        narrowed: arguments that make the verb run on one category.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        defaults = {name: parameter.default for name, parameter in inspect.signature(verb).parameters.items()}

        @functools.wraps(verb)
        def looped(**arguments: Any) -> None:
            place = root(arguments)
            folders = _categories(place)
            if not folders:
                return verb(**arguments)
            homes = folders_of_categories(place, folders, arguments, inputs or {}, outputs or {}, defaults)

            def run(folder: Path, row: dict[str, Any]) -> None:
                own = {parameter: home / f"{folder.name}{suffix}" for parameter, (home, suffix) in homes.items()}
                token = _category.set(row)
                try:
                    verb(**{**arguments, **narrowed(folder), **own})
                finally:
                    _category.reset(token)

            rows: dict[str, dict[str, Any]] = {}
            failed: dict[str, GrdError] = {}
            for name, row, error in over_categories(folders, run):
                if error:
                    failed[name] = error
                if row:
                    rows[name] = row
            if is_first_process():
                _print_categories(rows, failed, columns, json_=arguments["json_"])
            if failed:
                raise failure_of(f"{len(failed)} of {len(folders)} categories failed", failed)

        return looped

    return decorate


def over_categories(
    folders: Sequence[Path], run: Callable[[Path, dict[str, Any]], None]
) -> Iterator[tuple[str, dict[str, Any], GrdError | None]]:
    """Name, row and error of each category, as `run`, which fills the row, is done with it.

    Raises:
        MissingExtraError, StoppedError: these end the loop.
    """
    for index, folder in enumerate(folders, start=1):
        if is_first_process():
            err.print(f"{folder.name} ({index} of {len(folders)})")
        row: dict[str, Any] = {}
        failure = None
        try:
            run(folder, row)
        except (MissingExtraError, StoppedError):
            raise
        except GrdError as error:
            failure = error
        yield folder.name, row, failure


def _categories(place: str | Path | None) -> list[Path]:
    """Folders of the categories when `place` is a benchmark root, else none."""
    from grd_edge.data.dataset import categories

    return categories(Path(place)) if place is not None and Path(place).is_dir() else []


def folders_of_categories(place, folders, arguments, inputs, outputs, defaults) -> dict[str, tuple[Path, str]]:
    """parameter -> folder and suffix of the categories' files.

    Raises:
        InputError: a file was given where a folder is needed.
    """
    homes = {}
    for parameter, suffix in {**inputs, **outputs}.items():
        path = arguments[parameter]
        if not isinstance(path, Path):  # what names no file is the same for all
            continue
        if parameter in outputs and path == defaults[parameter]:
            path = path.parent
        if (suffix and path.suffix == suffix) or (parameter in inputs and not path.is_dir()):
            raise InputError(
                f"{place} holds the categories {', '.join(folder.name for folder in folders)}, so a folder with "
                f"{folders[0].name}{suffix} and so on is needed, found {path}; give that folder"
            )
        homes[parameter] = path, suffix
    return homes


def _print_categories(rows, failed, columns: Sequence[str], *, json_: bool) -> None:
    """The table of a benchmark root: a row per category, and the mean of what is measured."""
    numbers = {key: [row.get(key) for row in rows.values()] for row in rows.values() for key in row}
    mean = {
        key: sum(values) / len(values)
        for key, values in numbers.items()
        if values and all(isinstance(value, float) and math.isfinite(value) for value in values)
    }
    if json_:
        sentences = {name: str(error) for name, error in failed.items()}
        typer.echo(json.dumps(plain({"categories": rows, "mean": mean, "failed": sentences}), allow_nan=False))
        return
    columns = [column for column in columns if any(row.get(column) is not None for row in rows.values())]
    table = Table("category", *(column.replace("_", " ") for column in columns))
    for name, row in [*rows.items(), *([("mean", mean)] if mean else [])]:
        if name == "mean":
            table.add_section()
        table.add_row(name, *(cell(row.get(column)) for column in columns))
    for name in sorted(failed.keys() - rows.keys()):
        table.add_row(name, "failed")
    out.print(table)


def cell(value: Any) -> str:
    """A value as tables show it: four decimals, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return f"[{', '.join(map(cell, value))}]"
    return str(value)


@contextmanager
def progress(*, visible: bool = True, live: bool = True) -> Iterator[Progress]:
    """Progress bar on stderr; the task's `note` field is shown at its end.

    Args:
        live: a thread draws it; else it is drawn when `refresh` is called, and does not disturb what is timed.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=err, disable=not visible, auto_refresh=live) as bar:
        yield bar


class TrainingBar:
    """Feeds `Progress` of grd_edge.train into a progress bar."""

    def __init__(self, bar: Progress, description: str = "train") -> None:
        self.bar = bar
        self.task = bar.add_task(description, total=None, note="timing the first steps")

    def __call__(self, state) -> None:
        losses = state.losses
        name = next(name for name in losses if name != "total")
        note = f"loss {losses['total']:.2f}  {name} {losses[name]:.3f}"
        self.bar.update(self.task, completed=state.step, total=state.steps, note=note)


class ImageBar:
    """A bar that counts images of one pass."""

    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self.bar, self.task = bar, bar.add_task(description, total=total, note="")

    def __call__(self, done: int, *_: object) -> None:
        self.bar.update(self.task, completed=done)


class StageBar:
    """A bar of steps that each have parts of their own."""

    def __init__(self, bar: Progress, description: str) -> None:
        self.bar, self.task = bar, bar.add_task(description, total=None, note="")

    def begins(self, text: str) -> None:
        self.bar.update(self.task, completed=0, total=None, note=text)

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)


class PrecisionBar(StageBar):
    """A bar of the search for a precision."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(bar, "precision")

    @property
    def watcher(self):
        from grd_edge.watch import Watcher

        return Watcher(self.begins, self.progress)


def byte_size(text: str) -> int:
    """Bytes from a size such as `2GiB`, `512MB` or `4096`.

    Raises:
        InputError: no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)(i?)B?", text.strip())
    if not found or (found[3] and not found[2]):
        raise InputError(f"{text!r} is no size in bytes; write it as 2GiB, 512MiB or 4096")
    power = "kMG".index(found[2].replace("K", "k")) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


class StepBar:
    """A bar over steps whose number comes with the first of them."""

    def __init__(self, bar: Progress, description: str) -> None:
        self.bar, self.task = bar, bar.add_task(description, total=None, note="")

    def __call__(self, done: int, planned: int) -> None:
        self.bar.update(self.task, completed=done, total=planned)
