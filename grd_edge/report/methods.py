"""Sections on a comparison of methods: the table, the Pareto front, decisions, worst errors, how it was measured."""

from __future__ import annotations

from typing import Any

from grd_edge.errors import InputError
from grd_edge.pareto import NAMES
from grd_edge.report.blocks import (
    Block,
    Chart,
    Note,
    Row,
    Section,
    Table,
    cell,
    cell_of,
    count,
    facts,
    item,
    leaves,
    metric,
    number,
    plain_number,
    signed,
    text,
)
from grd_edge.report.charts import Point, scatter
from grd_edge.report.quality import worst_of
from grd_edge.report.runs import Run, details_of
from grd_edge.results import path_text

_MARKS = {
    "chosen": "chosen",
    "front": "on the front",
    "alternative": "not told apart from the best, and faster",
    "outside": "outside the budget",
}


def methods_of(run: Run) -> list[Section]:
    """All sections of one comparison.

    Raises:
        InputError: compare.json is not whole. MissingExtraError: see `picture`.
    """
    document = run.methods
    try:
        return [_table(document), _decisions(document), _worst(run), _failed(document), _measured(document)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the comparison in {path_text(run.home)} is not whole ({error!r}); make it again with: grd-edge compare"
        ) from error


def _ran(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in document["methods"] if "failed" not in each]


def _called(each: dict[str, Any]) -> str:
    return each["name"] + "°" * bool(each["substitutes"])


def _table(document: dict[str, Any]) -> Section:
    rows = []
    for each in _ran(document):
        found = each["figures"]
        cells = [
            cell(metric(found["image_auroc"], found["image_auroc_ci95"])),
            cell(signed(each["difference"], each["difference_ci95"])),
            cell(metric(found["pixel_auroc"], found["pixel_auroc_ci95"])),
            cell(metric(found["aupro"], found["aupro_ci95"])),
            *(cell_of(each, plain_number, key) for key in ("p50_ms", "p99_ms", "engine_mb", "memory_mb")),
            str(each["precision"]),
            cell_of(each, count, "train_seconds"),
            _marks(each),
        ]
        rows.append(Row(path_text(_called(each)), cells, differs=each["chosen"]))
    columns = ["method", "image AUROC", f"{NAMES[document['by']]} less the best", "pixel AUROC", "AUPRO"]
    columns += ["p50, ms", "p99, ms", "engine, MB", "memory, MB", "precision", "trained, s", ""]
    reported = document["holdout"]["reported"] if document["holdout"] else document["data"]["test"]
    caption = (
        f"On {reported['good']} good and {reported['defective']} defective test images; intervals are 95 %, "
        "differences on the same resampled images that choose; °: not as published"
    )
    blocks: list[Block] = [Note(path_text(f"{_capital(document['why'])}.")), Table(caption, columns, rows)]
    blocks += [Note(path_text(f"{_capital(note)}.")) for note in document["notes"]]
    if svg := _chart(document):
        told = "Accuracy and time of a frame; the line joins the Pareto front, rings are outside the budget."
        blocks.append(Chart(svg, told))
    return Section("methods", "Methods", blocks)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _marks(each: dict[str, Any]) -> str:
    held = {**each, "outside": not each["inside"]}
    return ", ".join(told for key, told in _MARKS.items() if held[key])


def _chart(document: dict[str, Any]) -> str:
    by, points = document["by"], {}
    for each in _ran(document):
        found = each["choosing"] or each["figures"]
        if number(found, by) is None:
            continue
        low, high = found[f"{by}_ci95"] or (None, None)
        style = 1 if each["chosen"] else 0
        point = Point(path_text(_called(each)), each["p50_ms"], found[by], low, high, style, not each["inside"])
        points[each["name"]] = point
    front = sorted((points[e["name"]] for e in _ran(document) if e["front"] and e["name"] in points), key=lambda p: p.x)
    budget = document["budget_ms"]
    return scatter(
        "Accuracy against the time of a frame",
        list(points.values()),
        x_label="ms, frame in, decision out, p50",
        y_label=NAMES[by],
        joined=front,
        mark=(budget, f"budget, {document['budget_at']} {budget:g} ms") if budget else None,
    )


def _decisions(document: dict[str, Any]) -> Section:
    keys = ("good_passed", "good_rejected", "defective_rejected", "defective_passed")
    columns = ["method", "good, passed", "good, rejected (overkill)"]
    columns += ["defective, rejected", "defective, passed (escapes)"]
    rows = [Row(path_text(each["name"]), [f"{each['confusion'][key]:,}" for key in keys]) for each in _ran(document)]
    kinds = list(dict.fromkeys(kind for each in _ran(document) for kind in each["figures"]["kinds"]))
    of_kinds = []
    for each in _ran(document):
        found = each["figures"]["kinds"]
        cells = [f"{found[kind]['escapes']} of {found[kind]['products']}" if kind in found else "-" for kind in kinds]
        of_kinds.append(Row(path_text(each["name"]), cells))
    blocks: list[Block] = [Table("Products at the threshold that was fitted on the calibration images", columns, rows)]
    if len(kinds) > 1:
        blocks.append(Table("Escapes by kind of defect", ["method", *map(path_text, kinds)], of_kinds))
    return Section("decisions", "Decisions", blocks)


def _worst(run: Run) -> Section:
    shown = []
    for each in _ran(run.methods):
        found = Run(home=run.home / _plain(each["name"]))
        found.details = details_of(found.home)
        shown.append((path_text(each["name"]), worst_of(found)))
    shown = [(name, blocks) for name, blocks in shown if blocks]
    none = [] if shown else [Note("No method decided wrongly, or no picture was drawn.")]
    return Section("worst", "Worst false rejects and escapes", none, shown)


def _plain(name: Any) -> str:
    """The name of a method's folder. It must lie in the comparison's: the file is from elsewhere, perhaps."""
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of a method")
    return name


def _failed(document: dict[str, Any]) -> Section:
    failed = [each for each in document["methods"] if "failed" in each]
    rows = [Row(path_text(each["name"]), [path_text(each["failed"])]) for each in failed]
    blocks = [Table("Methods that could not be compared", ["method", "why"], rows)] if rows else []
    return Section("failed", "Failed", blocks or [Note("All methods that were asked for were compared.")])


def _measured(document: dict[str, Any]) -> Section:
    data = document["data"]
    told = {
        "command": document["command"],
        "date": document["date"],
        "images": data["path"],
        "hash of their list": data["manifest_sha256"],
        "good images for training, for thresholds": f"{data['train']}, {data['calibration']}",
        "frames timed of each method": ", ".join(f"{each['name']} {each['rounds']}" for each in _ran(document)),
        "seconds for training, building, measuring": ", ".join(
            "{} {train:.0f} + {build:.0f} + {measure:.0f}".format(each["name"], **each["seconds"])
            for each in _ran(document)
        ),
        "changed for the images": "; ".join(f"{e['name']}: {note}" for e in document["methods"] for note in e["notes"]),
        "one by one": "grd-edge train --profile PROFILE, build bundle, eval, bench; timed in turn, in one process",
    }
    blocks = facts("Measured", ["value"], [(name, [text(value)]) for name, value in told.items()])
    machine = item(document, "machine")
    found = leaves(machine) if isinstance(machine, dict) else {}
    blocks += facts("Machine", ["value"], [(name, [value]) for name, value in found.items()])
    return Section("measured", "How it was measured", blocks)
