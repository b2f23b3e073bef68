"""Sections on how good a run is: accuracy, curves, scores, errors, parity with a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.errors import InputError
from grd_edge.report.blocks import (
    AGAINST,
    EVAL,
    RECALIBRATE,
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
    metric,
    missing,
    ms,
    number,
    numbers,
    picture,
    rate,
    signed,
    text,
)
from grd_edge.report.charts import Series, histogram, lines
from grd_edge.report.columns import each, facts_of, labels
from grd_edge.report.parity import shown_figures
from grd_edge.report.runs import Run
from grd_edge.results import path_text

_AUPRO_LIMIT = 0.3
_ERRORS = {"false-reject": "false reject", "escape": "escape"}
_SHOWN_THRESHOLDS = 4


def summary(runs: Sequence[Run]) -> Section:
    rows = [
        ("image AUROC", lambda r: metric(number(r.figures, "image_auroc"), r.figures.get("image_auroc_ci95"))),
        ("untrained baseline, image AUROC", lambda r: metric(number(r.figures, "image_auroc_untrained"))),
        ("PyTorch or other reference, image AUROC", lambda r: metric(parity_number(r, "auroc_reference"))),
        ("good products rejected", lambda r: rate_of(r, "false_reject_rate")),
        ("defective products passed", lambda r: rate_of(r, "escape_rate")),
        ("frame in, decision out, p50", lambda r: ms(number(r.latency, "p50_ms"))),
        ("precision on the CPU", lambda r: text(r.chosen.get("cpu"))),
        ("images evaluated", lambda r: count(number(r.figures, "images"))),
    ]
    return Section("summary", "Summary", facts_of("Key figures; intervals are 95 %", runs, rows))


def rate_of(run: Run, key: str) -> Value | None:
    return rate(number(run.figures, key), run.figures.get(f"{key}_ci95"))


def accuracy(runs: Sequence[Run]) -> Section:
    def figure(key: str, shown: Callable[..., Value | None] = metric) -> Callable[[Run], Value | None]:
        return lambda run: shown(number(run.figures, key), run.figures.get(f"{key}_ci95"))

    rows = [
        ("images", lambda r: count(number(r.figures, "images"))),
        ("of these defective", lambda r: count(number(r.figures, "defective"))),
        ("products", lambda r: count(number(r.figures, "products"))),
        ("image AUROC", figure("image_auroc")),
        ("image AUROC, untrained baseline", figure("image_auroc_untrained")),
        ("gain over the untrained baseline", figure("auroc_gain", signed)),
        ("image AUROC, reference", lambda r: metric(parity_number(r, "auroc_reference"))),
        ("image AUROC, engine less reference", lambda r: parity_delta(r, "auroc")),
        ("image average precision", figure("image_ap")),
        ("average precision, engine less reference", lambda r: parity_delta(r, "ap")),
        ("product AUROC", figure("product_auroc")),
        ("balanced accuracy at the threshold", figure("balanced_accuracy")),
        ("good products rejected", figure("false_reject_rate", rate)),
        ("defective products passed", figure("escape_rate", rate)),
        ("pixel AUROC", figure("pixel_auroc")),
        ("pixel AUROC, untrained baseline", figure("pixel_auroc_untrained")),
        ("AUPRO (false positive rate up to 0.3)", figure("aupro")),
        ("AUPRO, untrained baseline", figure("aupro_untrained")),
        ("AUPRO, engine less reference", lambda r: parity_delta(r, "aupro")),
    ]

    def rest(run: Run) -> list[Block]:
        if not run.figures:
            return [missing("an evaluation", EVAL)]
        kinds = item(run.figures, "kinds") or {}
        found: list[Block] = []
        lines_ = [
            Row(path_text(kind), [cell_of(f, count, "images"), cell_of(f, metric, "image_auroc"), _escapes(f)])
            for kind, f in (kinds.items() if isinstance(kinds, dict) else ())
        ]
        if lines_:
            found.append(Table("Kinds of defects", ["kind", "images", "AUROC", "passed as good"], lines_))
        if number(run.figures, "image_auroc_untrained") is None:
            found.append(missing("the untrained baseline", f"{EVAL} --untrained"))
        notes = run.figures.get("notes")
        return found + [Note(path_text(note)) for note in (notes if isinstance(notes, list) else ())]

    caption = "On the test images; intervals are 95 %"
    return Section("accuracy", "Accuracy", facts_of(caption, runs, rows), each(runs, rest))


def _escapes(found: Any) -> str:
    passed, products = number(found, "escapes"), number(found, "products")
    return "-" if passed is None or products is None else f"{passed:,} of {products:,}"


def curves(runs: Sequence[Run]) -> Section:
    roc, pixel, pro = [], [], []
    for index, run in enumerate(runs):
        name = labels(runs)[index]
        if (points := _roc(run)) is not None:
            roc.append(Series(name, points[:, 0], points[:, 1], index))
        for key, found in (("pixel_roc", pixel), ("pixel_pro", pro)):
            points = run.details.get(key)
            good = isinstance(points, list) and all(len(numbers(point)) == 2 for point in points)
            if good and points:
                found.append(Series(name, [x for x, _ in points], [y for _, y in points], index))
    unit = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.0)}
    rates = {"x_label": "false positive rate", "y_label": "true positive rate"}
    shown: list[Block] = []
    if roc:
        svg = lines("ROC of the images", roc, **rates, **unit, diagonal=True)
        shown.append(Chart(svg, "ROC of the images: defective ones found over good ones rejected, for all thresholds."))
    if pixel:
        svg = lines("ROC of the pixels", pixel, **rates, **unit, diagonal=True)
        shown.append(Chart(svg, "ROC of the pixels of the heatmaps."))
    if pro:
        options = {"x_range": (0.0, _AUPRO_LIMIT), "y_range": (0.0, 1.0)}
        svg = lines("PRO curve", pro, x_label="false positive rate", y_label="mean overlap of the regions", **options)
        shown.append(Chart(svg, "PRO: mean share of a defect's region that is found; AUPRO is its mean up to 0.3."))

    def absent(run: Run) -> list[Block]:
        if not run.images:
            return [missing("scores of single images", EVAL)]
        found: list[Block] = []
        if _roc(run) is None:
            found.append(Note("No ROC of the images: the test images are all good or all defective."))
        if not run.details:
            found.append(missing("curves of the pixels", EVAL))
        elif not run.details.get("pixel_roc"):
            found.append(Note("No curves of the pixels: they need masks of the defects beside the test images."))
        return found

    return Section("curves", "ROC and PRO curves", shown, each(runs, absent))


def _roc(run: Run) -> np.ndarray | None:
    """(points, 2) false and true positive rate of the images; None without both classes."""
    scores = np.array([row.score for row in run.images])
    defective = np.array([row.defective for row in run.images], bool)
    if not defective.any() or defective.all():
        return None
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(order) - 1)  # of each run of ties
    good = np.cumsum(~defective[order])[last] / (~defective).sum()
    found = np.cumsum(defective[order])[last] / defective.sum()
    return np.stack([np.append(0.0, good), np.append(0.0, found)], axis=1)


def scores(runs: Sequence[Run]) -> Section:
    def blocks(run: Run) -> list[Block]:
        if not run.images:
            return [missing("scores of single images", EVAL)]
        groups = {
            name: [r.score for r in run.images if r.defective == d] for name, d in (("good", 0), ("defective", 1))
        }
        thresholds = sorted({row.threshold for row in run.images if row.threshold is not None})
        marks = [(value, f"threshold {value:.4f}") for value in thresholds[:_SHOWN_THRESHOLDS]]
        svg = histogram("Scores of the images", groups, x_label="score", marks=marks)
        if not svg:
            return [Note("No image has a finite score.")]
        shown: list[Block] = [Chart(svg, "Scores of the images; what lies right of the threshold is rejected.")]
        return shown if marks else [*shown, missing("a threshold", RECALIBRATE)]

    return Section("scores", "Scores and threshold", (), each(runs, blocks))


def errors(runs: Sequence[Run]) -> Section:
    def blocks(run: Run) -> list[Block]:
        sheet = run.pictures.get("contact_sheet.png")
        alt = "Contact sheet: images, reconstructions, differences and decisions"
        sheets: list[Block] = [picture(sheet, alt, f"{alt}; wrong ones have red titles.", wide=True)] if sheet else []
        if "worst" not in run.details:
            return [missing("pictures of false rejects and escapes", EVAL), *sheets]
        if run.images and all(row.threshold is None for row in run.images):
            return [missing("thresholds, so that nothing was decided", RECALIBRATE), *sheets]
        found: list[Block] = []
        for key in _ERRORS:
            wrong = [row for row in run.images if row.defective == (key == "escape") and _wrong(row)]
            sides = sum(row.defective == (key == "escape") for row in run.images)
            what = "defective images were passed as good" if key == "escape" else "good images were rejected"
            if run.images:
                found.append(Note(f"{len(wrong):,} of {sides:,} {what}."))
            found += worst_of(run, key)
        return found + sheets

    return Section("errors", "Worst false rejects and escapes", (), each(runs, blocks))


def worst_of(run: Run, *keys: str) -> list[Block]:
    """Pictures of the worst errors of a run, of some kinds of `_ERRORS` or of all."""
    entries = run.details.get("worst")
    wanted = {key: _ERRORS[key] for key in keys or _ERRORS}
    named = [(wanted.get(item(entry, "error")), entry) for entry in (entries if isinstance(entries, list) else ())]
    return [_error(run, entry, name) for name, entry in named if name]


def _wrong(row) -> bool:
    return row.decision == ("good" if row.defective else "defective")


def _error(run: Run, entry: dict[str, Any], name: str) -> Block:
    """One picture. Its path must lie in the run's folder: the file is from elsewhere, perhaps."""
    stored = item(entry, "picture")
    if not isinstance(stored, str) or Path(stored).is_absolute() or ".." in Path(stored).parts:
        raise InputError(f"{run.home}/details.json names no picture ({stored!r}); evaluate again with: {EVAL}")
    score, threshold = (cell_of(entry, metric, key) for key in ("score", "threshold"))
    image = Path(str(item(entry, "image"))).name
    caption = f"{image} ({item(entry, 'kind')}): {name}, score {score}, threshold {threshold}"
    return picture(run.home / stored, f"{name}: {image} with its heatmap", caption)


def parity_number(run: Run, key: str) -> float | None:
    return number(run.comparison, key)


def parity_delta(run: Run, key: str) -> Value | None:
    figures = run.comparison
    return signed(number(figures, f"{key}_delta"), figures.get(f"{key}_delta_ci95"))


def parity(runs: Sequence[Run]) -> Section:
    shown = []
    for run in runs:
        figures = run.comparison
        try:
            rows = shown_figures(figures) if figures else {}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the comparison in {path_text(run.home or run.places[0])} is not whole ({error!r}); make it again "
                f"with: {AGAINST}"
            ) from error
        names = {"engine": item(run.parity, "engine"), "reference": item(run.parity, "reference")}
        shown.append({**({k: str(v) for k, v in names.items() if v}), **rows})
    keys = list(dict.fromkeys(key for rows in shown for key in rows))
    table = facts(
        "Engine less reference; a flip is another decision than the reference's",
        labels(runs),
        [(key, [text(rows.get(key)) for rows in shown]) for key in keys],
    )

    def pictures(run: Run) -> list[Block]:
        if not run.comparison:
            return [missing("a comparison with a reference", AGAINST)]
        found: list[Block] = []
        for name, alt in (
            ("scores.png", "Scores of engine and reference: scatter, differences, histogram"),
            ("patches.png", "Patches whose scores differ most, with both reconstructions"),
        ):
            if name in run.pictures:
                found.append(picture(run.pictures[name], alt, f"{alt}.", wide=True))
        return found or [missing("pictures of the comparison", AGAINST)]

    return Section("parity", "Parity with the reference", table, each(runs, pictures))
