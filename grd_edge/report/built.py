"""Sections on what was built: bundle, thresholds, precision, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grd_edge.report.blocks import (
    BUILD,
    RECALIBRATE,
    Block,
    Chart,
    Note,
    Row,
    Section,
    Table,
    Value,
    cell,
    count,
    facts,
    item,
    megabytes,
    missing,
    ms,
    number,
    numbers,
    picture,
    plain_number,
    signed,
    text,
    times,
    yes,
)
from grd_edge.report.charts import Series, lines
from grd_edge.report.columns import each, facts_of, labels
from grd_edge.report.runs import Run
from grd_edge.results import path_text
from grd_edge.shipped import fit_of, training_of

_SHOWN_POINTS = 100  # of a curve
_CURVES = {"contextual": "contextual loss", "noise": "noise loss", "total": "total loss"}


def built(runs: Sequence[Run]) -> Section:
    def of(*keys: str) -> Callable[[Run], Any]:
        return lambda run: item(run.bundle and run.bundle.manifest, *keys)

    def configured(*keys: str) -> Callable[[Run], Value | None]:
        return lambda run: text(of("provenance", "config", *keys)(run))

    def trained(key: str) -> Callable[[Run], Any]:
        return lambda run: training_of(run.bundle).get(key) if run.bundle else item(run.summary, "training", key)

    rows = [
        ("bundle", lambda r: text(r.bundle and r.bundle.manifest["name"])),
        ("seal", lambda r: text(r.bundle and r.bundle.seal)),
        ("seal of the thresholds", lambda r: text(item(r.bundle and r.bundle.decision, "seal"))),
        ("profile", configured("profile")),
        ("base width", configured("model", "base")),
        ("latent", configured("model", "latent")),
        ("frames", lambda r: text(r.bundle and _frames(r.bundle.manifest["geometry"]))),
        ("patches", lambda r: text(r.bundle and _patches(r.bundle.manifest["geometry"]))),
        ("score", lambda r: text(r.bundle and _score(r.bundle.manifest["score"]))),
        ("mask of interest", lambda r: text(r.bundle and _mask(r.bundle.roi))),
        ("engines", lambda r: text(r.bundle and _engines(r.bundle.manifest))),
        ("size", lambda r: megabytes(r.bundle and sum(f["bytes"] for f in r.bundle.manifest["files"].values()))),
        ("data set", lambda r: text(trained("dataset")(r))),
        ("hash of its list of images", lambda r: text(trained("manifest_sha256")(r))),
        ("training images", lambda r: count(number({"": trained("train_images")(r)}, ""))),
        ("training steps", lambda r: count(number({"": trained("steps")(r)}, ""))),
        ("training time", lambda r: count(number({"": trained("seconds")(r)}, ""), "s")),
        ("seed", configured("train", "seed")),
        ("PyTorch", lambda r: text(trained("torch")(r))),
        ("imported from", lambda r: text(item({"imported": trained("imported")(r)}, "imported", "file"))),
        ("fine-tuned for INT8", lambda r: text("yes" if trained("qat")(r) else None)),
        ("grd-edge", lambda r: text(_version(r))),
        ("commit", lambda r: text(_commit(r) or (None if any(map(_commit, runs)) else "not recorded"))),
    ]
    if not any(run.bundle or run.summary for run in runs):
        return Section("built", "What was built", [missing("the bundle", BUILD)])
    return Section("built", "What was built", facts_of("The bundle and where it comes from", runs, rows))


def _frames(geometry: dict[str, Any]) -> str:
    scale = f"shorter side {geometry['scale_px']} px" if geometry["scale_px"] else "native resolution"
    return f"{scale}, {geometry['channels']} channel(s), padding {geometry['padding']}"


def _patches(geometry: dict[str, Any]) -> str:
    return "{patch_h}x{patch_w} px, stride {stride_y}x{stride_x} px".format_map(geometry)


def _score(score: dict[str, Any]) -> str:
    return f"{score['decides']} decides, {score['window']} window, local window {score['local_window_px']} px"


def _mask(roi: np.ndarray | None) -> str:
    if roi is None:
        return "none: the whole frame"
    return f"{100 * (roi != 0).mean():.2f} % of {roi.shape[0]}x{roi.shape[1]} px"


def _engines(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{engine['target']} {engine['precision']}" for engine in manifest["engines"])


def _version(run: Run) -> Any:
    fitted = fit_of(run.bundle).get("grd_edge") if run.bundle else None
    measured = item(run.bench, "machine", "versions", "grd-edge")
    return measured or item(run.summary, "versions", "grd-edge") or fitted


def _commit(run: Run) -> Any:
    return item(run.bench, "machine", "commit")


def thresholds(runs: Sequence[Run]) -> Section:
    def fit(key: str) -> Callable[[Run], Any]:
        return lambda run: fit_of(run.bundle).get(key) if run.bundle else item(run.summary, "threshold_fit", key)

    rows = [
        ("method", lambda r: text(fit("method")(r))),
        ("alpha", lambda r: plain_number(number({"": fit("alpha")(r)}, ""))),
        ("certified for alpha", lambda r: yes(fit("certified")(r))),
        ("products fitted on", lambda r: count(number({"": fit("n")(r)}, ""))),
        ("needed for the certificate", lambda r: count(number({"": fit("n_needed")(r)}, ""))),
        ("patches that make a product defective (k)", lambda r: count(number(r.bundle and r.bundle.decision, "k"))),
        (
            "share of runs that must agree",
            lambda r: plain_number(number(r.bundle and r.bundle.decision, "run_agreement")),
        ),
        ("fitted with the engine", lambda r: text(item({"e": fit("engine")(r)}, "e", "precision"))),
        ("fitted", lambda r: text(fit("fitted")(r))),
    ]

    def regions(run: Run) -> list[Block]:
        if run.bundle is None:
            threshold = number(run.summary, "threshold")
            return [Note(f"threshold {threshold:.4f}")] if threshold is not None else [missing("the bundle", BUILD)]
        if not run.bundle.decision:
            return [missing("thresholds", RECALIBRATE)]
        found = [
            Row(path_text(region.name), [f"{threshold:.4f}", _areas(region)])
            for region, threshold in zip(run.bundle.regions.regions, run.bundle.thresholds, strict=True)
        ]
        return [Table("Regions", ["region", "threshold", "areas"], found)]

    return Section(
        "thresholds", "Thresholds and regions", facts_of("How they came about", runs, rows), each(runs, regions)
    )


def _areas(region) -> str:
    return "; ".join(f"y {y}, x {x}, {h}x{w} px" for y, x, h, w in region.areas or ()) or "the whole frame"


def precision(runs: Sequence[Run]) -> Section:
    targets = list(dict.fromkeys(target for run in runs for target in run.chosen))
    rows = [(target, [text(run.chosen.get(target)) for run in runs]) for target in targets]
    rows.append(("why", [text(item(run.precision, "why")) for run in runs]))

    def tried(run: Run) -> list[Block]:
        entries = item(run.precision, "tried")
        if not isinstance(entries, list) or not entries:
            return [missing("a table of the precisions that were tried", f"{BUILD} --precision auto")]
        names = ["precision", "target", "AUROC change", "flips", "p50", "against fp32", "why it lost"]
        return [Table("Precisions that were tried", names, [_tried(entry) for entry in entries])]

    return Section("precision", "Precision", facts("What ships", labels(runs), rows), each(runs, tried))


def _tried(entry: Any) -> Row:
    drop, flips, patches = (number(entry, "accuracy", key) for key in ("auroc_drop", "flips", "patches"))
    speed = item(entry, "speed")
    base = item(speed, "base") or "fp32"
    against = times(number(speed, "speedup"))
    cells = (
        text(item(entry, "target")),
        signed(
            None if drop is None else -drop, [-end for end in numbers(item(entry, "accuracy", "auroc_drop_ci95"))[::-1]]
        ),
        None if flips is None or patches is None else Value(f"{flips:,} of {patches:,}"),
        ms(number(speed, "p50_ms")),
        against and Value(against.text if base == "fp32" else f"{against.text} {base}"),
        text(item(entry, "lost")) or (Value("ships") if item(entry, "lost") == "" else None),
    )
    label = " ".join(str(word) for word in (item(entry, "precision"), _made_from(entry)) if word)
    return Row(label, [cell(value) for value in cells])


def _made_from(entry: Any) -> str:
    words = [str(item(entry, key)) for key in ("from", "ranges") if item(entry, key)]
    return f"({', '.join(words)})" if words else ""


def training(runs: Sequence[Run]) -> Section:
    charts: list[Block] = []
    for column, name in (*_CURVES.items(), ("validation_auroc", "validation AUROC")):
        series = [
            Series(labels(runs)[index], *_smooth(*run.training.curves[column]), index)
            for index, run in enumerate(runs)
            if run.training and column in run.training.curves
        ]
        log = column in _CURVES
        svg = lines(name, series, x_label="step", y_label=name, log_y=log) if series else ""
        if svg:
            charts.append(Chart(svg, f"{name[0].upper()}{name[1:]} over the steps of the training, smoothed."))
    rows = [
        ("steps", lambda r: count(_last_step(r))),
        ("data set", lambda r: text(item(r.training and r.training.about, "dataset"))),
        ("hash of its list of images", lambda r: text(item(r.training and r.training.about, "manifest_sha256"))),
        ("images listed", lambda r: count(number(r.training and r.training.about, "images"))),
    ]

    def preview(run: Run) -> list[Block]:
        if not run.training:
            return [
                missing("the run's folder (beside the checkpoint)", "grd-edge train --data DIR -o part.safetensors")
            ]
        if not run.training.preview:
            return []
        alt = f"Patches and their reconstructions at step {run.training.preview.stem.lstrip('0')}"
        return [picture(run.training.preview, alt, f"{alt}.")]

    return Section("training", "Training", [*facts_of("The run", runs, rows), *charts], each(runs, preview))


def _smooth(steps: list[float], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over runs of neighbors, at most _SHOWN_POINTS of them: a line per step would be a band."""
    runs = min(_SHOWN_POINTS, len(steps))
    return tuple(np.array([part.mean() for part in np.array_split(np.array(each), runs)]) for each in (steps, values))


def _last_step(run: Run) -> float | None:
    steps = [curve[0][-1] for curve in run.training.curves.values()] if run.training else []
    return max(steps, default=None)
