"""`grd-edge compare`: which method serves a part inside a latency budget?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from grd_edge.cli.common import (
    ConfigFile,
    Data,
    Json,
    MaxAurocDrop,
    MaxFlips,
    StageBar,
    Threads,
    TrainingBar,
    cell,
    each_category,
    err,
    in_category,
    load_dataset,
    out,
    print_json,
    print_table,
    progress,
)


class By(StrEnum):
    image_auroc = "image_auroc"
    pixel_auroc = "pixel_auroc"
    aupro = "aupro"
    balanced_accuracy = "balanced_accuracy"


class At(StrEnum):
    p50 = "p50"
    p99 = "p99"


@each_category(
    outputs={"output": ".grdb", "work": "", "html": ".html"},
    columns=(
        "method",
        "image_auroc",
        "image_auroc_ci95",
        "pixel_auroc",
        "aupro",
        "false_reject_rate",
        "escape_rate",
        "p50_ms",
        "p99_ms",
        "precision",
        "bundle",
    ),
)
def compare(
    data: Data,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="all|NAME,…",
            help="Methods or profiles with commas between them; own=NAME takes one under a name of your own.",
        ),
    ] = "all",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Bundle of the chosen method to write, name.grdb.")
    ] = Path("artifacts/best.grdb"),
    budget_ms: Annotated[
        float | None, typer.Option("--budget-ms", min=0, help="What a frame may take, in to decision out.")
    ] = None,
    budget_at: Annotated[At, typer.Option("--budget-at", help="Which of the frames' times the budget holds.")] = At.p99,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Planned for all methods together; default: 15.")
    ] = None,
    train_seconds: Annotated[
        float | None, typer.Option("--train-seconds", min=1, help="Of each training, in place of --minutes.")
    ] = None,
    by: Annotated[By, typer.Option("--by", help="Figure that methods are chosen by.")] = By.image_auroc,
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", min=0.01, max=0.99, help="Share of the test images that has no part in the choice."),
    ] = None,
    config_file: ConfigFile = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[NAME:]KEY=VALUE",
            help="A setting of all methods, or of one, such as patchcore:model.patch_h=256; repeatable.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", help="Folder of checkpoints, bundles and results; default: name.compare beside --output."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make anew what is complete in --work.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Page to write; default: compare.html in --work.")] = None,
    precision: Annotated[str, typer.Option(help="Of the bundles: auto, fp32, bf16 or int8.")] = "auto",
    max_auroc_drop: MaxAurocDrop = 0.002,
    max_flips: MaxFlips = 0.005,
    rounds: Annotated[int, typer.Option(min=3, help="Frames timed of each method; p99 needs 100.")] = 100,
    threads: Threads = 0,
    json_: Json = False,
) -> None:
    """Train, build and measure methods on the same images, and write the bundle of the best one inside the budget.

    The same command goes on where it was stopped. For a benchmark root one for each category, into the folder OUTPUT,
    --minutes each.
    """
    from grd_edge.compare import Watcher, compared_methods, work_folder_of
    from grd_edge.compare_result import Options
    from grd_edge.contenders import contenders_from_text
    from grd_edge.errors import InputError, MissingExtraError
    from grd_edge.precision import Budget
    from grd_edge.report.html import write_html_report

    if minutes is not None and train_seconds is not None:
        raise typer.BadParameter("--train-seconds takes the place of --minutes; give one of them")
    contenders = contenders_from_text(methods, path=config_file, settings=settings or ())
    training = [each.config.train for each in contenders]
    options = Options(
        **({} if minutes is None else {"minutes": minutes}),
        train_seconds=train_seconds,
        budget_ms=budget_ms,
        budget_at=str(budget_at),
        by=str(by),
        holdout=holdout,
        request=precision,
        budget=Budget(max_auroc_drop, max_flips),
        rounds=rounds,
        threads=threads,
    )
    dataset = load_dataset(data, seed=training[0].seed, need_validation=any(each.validation for each in training))
    with progress() as bar:
        bars = _Bars(bar)
        watch = Watcher(
            bars.method, bars.stage, bars.progress, bars.training, lambda text: err.print(text, soft_wrap=True)
        )
        document = compared_methods(dataset, contenders, output, options, work=work, overwrite=overwrite, watch=watch)
    work = work or work_folder_of(output)
    html = html or work / "compare.html"
    try:
        write_html_report(html, [work])
    except MissingExtraError as error:
        err.print(f"no page was written: {error}", soft_wrap=True)
        html = None
    if in_category():
        print_json(_row(document))
    elif json_:
        print_json(document)
    else:
        _print(document, html)
    if document["chosen"] is None:
        raise InputError(document["why"])


class _Bars:
    """A bar of the method at hand, and one of its training."""

    def __init__(self, bar) -> None:
        self.bar, self.stages, self.trained, self.name = bar, StageBar(bar, "compare"), None, ""

    def method(self, name: str, index: int, count: int) -> None:
        err.print(f"{name} ({index} of {count})")
        self.name, self.trained = name, None

    def stage(self, text: str) -> None:
        self.stages.begins(text)

    def progress(self, done: int, total: int) -> None:
        self.stages.progress(done, total)

    def training(self, state) -> None:
        self.trained = self.trained or TrainingBar(self.bar, self.name)
        self.trained(state)


def _row(document: dict[str, Any]) -> dict[str, Any]:
    """What the table of a benchmark root takes: the chosen method, if any, and the document."""
    chosen = next((each for each in document["methods"] if each["chosen"]), None)
    if chosen is None:
        return {"comparison": document}
    times = {key: chosen[key] for key in ("p50_ms", "p99_ms", "precision")}
    return {
        "method": chosen["name"],
        **chosen["figures"],
        **times,
        "bundle": document["bundle"],
        "comparison": document,
    }


def _print(document: dict[str, Any], html: Path | None) -> None:
    measured = [each for each in document["methods"] if "failed" not in each]
    rows, besides = [], []
    for each in measured:
        found, name = each["figures"], each["name"] + "°" * bool(each["substitutes"])
        rows.append(
            [
                name,
                _marks(each),
                f"{cell(found['image_auroc'])} {_short(found['image_auroc_ci95'])}",
                f"{each['confusion']['defective_passed']} of {_sum(each, 'defective')}",
                f"{each['confusion']['good_rejected']} of {_sum(each, 'good')}",
                _number(each["p50_ms"], 2),
                _number(each["p99_ms"], 2),
            ]
        )
        besides.append(
            [
                name,
                cell(found["pixel_auroc"]),
                cell(found["aupro"]),
                each["precision"],
                _number(each["engine_mb"], 1),
                _number(each["memory_mb"], 0),
                _number(each["train_seconds"], 0),
            ]
        )
    test = document["holdout"]["reported"] if document["holdout"] else document["data"]["test"]
    title = f"{document['data']['name']}: {test['good']} good and {test['defective']} defective test images"
    columns = ("method", "", "image AUROC, 95 %", "escapes", "overkill", "p50 ms", "p99 ms")
    print_table(title, columns, rows)
    columns = ("method", "pixel AUROC", "AUPRO", "precision", "engine MB", "memory MB", "trained s")
    print_table("besides", columns, besides)
    for line in (*LEGEND, *(f"{each['name']}: {each['failed']}" for each in document["methods"] if "failed" in each)):
        out.print(line, soft_wrap=True)
    for note in document["notes"]:
        out.print(f"note: {note}", soft_wrap=True)
    if document["chosen"]:
        out.print(f"{document['why']}: {document['bundle']}", soft_wrap=True)
    if html:
        out.print(str(html), soft_wrap=True)


LEGEND = (
    "> chosen   * Pareto front   ~ not told apart from the best, and faster   x outside the budget   "
    "° not as published, see the notes",
)


def _marks(each: dict[str, Any]) -> str:
    marks = (("chosen", ">"), ("front", "*"), ("alternative", "~"))
    return "".join(mark for key, mark in marks if each[key]) + "x" * (not each["inside"])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _short(interval: list[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _sum(each: dict[str, Any], label: str) -> int:
    return each["confusion"][f"{label}_passed"] + each["confusion"][f"{label}_rejected"]
