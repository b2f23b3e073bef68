"""What the verbs share: consoles, progress bars, options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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


def load_dataset(data: str, *, seed: int = 0, need_test: bool = True, need_validation: bool = False):
    """The dataset that `--data` names."""
    from grd_edge.data.dataset import dataset_from_elpv, dataset_from_folder

    if data == "elpv":
        return dataset_from_elpv(seed=seed, need_validation=need_validation)
    return dataset_from_folder(Path(data), seed=seed, need_test=need_test, need_validation=need_validation)


def is_first_process() -> bool:
    """Whether this process speaks to the user; known before anything is launched."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    if rank is not None:
        return rank == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=1))


def print_rows(title: str, rows: dict[str, Any]) -> None:
    """A two-column table on stdout."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table)


@contextmanager
def progress(visible: bool = True) -> Iterator[Progress]:
    """Progress bar on stderr; the task's `note` field is shown at its end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, disable=not visible) as bar:
        yield bar


class TrainingBar:
    """Feeds `Progress` of grd_edge.train into a progress bar."""

    def __init__(self, bar: Progress, description: str = "train") -> None:
        self.bar = bar
        self.task = bar.add_task(description, total=None, note="timing the first steps")

    def __call__(self, state) -> None:
        losses = state.losses
        note = f"loss {losses['total']:.2f}  contextual {losses['contextual']:.3f}"
        self.bar.update(self.task, completed=state.step, total=state.steps, note=note)


class ImageBar:
    """A bar that counts images of one pass."""

    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self.bar, self.task = bar, bar.add_task(description, total=total, note="")

    def __call__(self, done: int, *_: object) -> None:
        self.bar.update(self.task, completed=done)
