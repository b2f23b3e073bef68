"""What the verbs left on the disk, read for a report: bundles, evaluations, demos, training runs, benchmarks.

Nothing here imports torch. docs/report.md lists what is read.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from grd_edge.bundle import Bundle, read_bundle
from grd_edge.bundle_schema import MANIFEST
from grd_edge.errors import InputError, one_line
from grd_edge.report.blocks import item, numbers
from grd_edge.report.details import DETAILS
from grd_edge.results import path_text

SLOTS = ("bundle", "summary", "evaluation", "training", "bench", "benchmark", "methods")
MAX_RUNS = 2
TIMED_IN_EVAL = "engine, while eval ran"
_MAX_BYTES = 256 << 20  # of a table or a JSON file
_BENCHMARK, _METHODS = "benchmark.json", "compare.json"
_KNOWN = (
    "a bundle, a folder of `eval -o`, a demo's folder, a training run's folder, a folder of `compare`, or a JSON file "
    "of `grd-edge bench -o` or of a benchmark root"
)


class ImageRow(NamedTuple):
    """One line of images.csv. `score` is infinite where it was NaN, `threshold` None without one."""

    image: str
    kind: str
    defective: bool
    decision: str
    score: float
    threshold: float | None


@dataclass
class Training:
    """Curves of a training run: column -> (steps, values), and the newest preview."""

    curves: dict[str, tuple[list[float], list[float]]]
    about: dict[str, Any]
    preview: Path | None


@dataclass
class Run:
    """One thing that was built, from one or several places; None and empty: not given.

    Attributes:
        summary: of a demo. `evaluation`: eval.json. `parity`: parity.json. `details`: details.json.
        bench: what `grd-edge bench -o` wrote. `benchmark`: benchmark.json of `grd-edge eval --benchmark-root -o`.
        methods: compare.json of `grd-edge compare`.
        pictures: name -> file, those that exist.
        home: folder of details.json or compare.json, which its paths are relative to.
        places: what the user named.
    """

    bundle: Bundle | None = None
    summary: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    training: Training | None = None
    bench: dict[str, Any] | None = None
    benchmark: dict[str, Any] | None = None
    methods: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    images: list[ImageRow] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    home: Path | None = None
    places: list[Path] = field(default_factory=list)

    @property
    def seals(self) -> set[str]:
        """Seals of the bundles that its parts say they are of."""
        found = (self.bundle and self.bundle.seal, self.details.get("seal"), item(self.bench, "bundle", "seal"))
        return {seal for seal in found if isinstance(seal, str)}

    @property
    def name(self) -> str:
        if self.bundle:
            return self.bundle.manifest["name"]
        stated = (
            self.details.get("bundle"),
            item(self.parity, "bundle"),
            item(self.bench, "bundle", "name"),
            item(self.methods, "title"),
        )
        return path_text(next((name for name in stated if isinstance(name, str)), self.places[0].name))

    @property
    def figures(self) -> dict[str, Any]:
        """Metrics: of the evaluation, else of the demo."""
        return self.evaluation or self.summary or {}

    @property
    def comparison(self) -> dict[str, Any]:
        """Figures against a reference; empty where there are none."""
        return next((f for f in (self.parity, self.evaluation, self.summary) if f and "auroc_delta" in f), {})

    @property
    def precision(self) -> Any:
        """`precision` of bundle.json."""
        return self.bundle.manifest["precision"] if self.bundle else item(self.summary, "precision")

    @property
    def chosen(self) -> dict[str, Any]:
        """Target -> precision that ships."""
        found = item(self.precision, "chosen")
        return found if isinstance(found, dict) else {}

    @property
    def times_ms(self) -> dict[str, list[float]]:
        """Name of a contender -> times of single frames: of a benchmark, else of a demo, else of an evaluation."""
        for source in (self.bench, self.summary, {"times_ms": {TIMED_IN_EVAL: self.details.get("times_ms")}}):
            named = item(source, "times_ms")
            found = (
                {str(key): times for key in named if (times := numbers(named[key]))} if isinstance(named, dict) else {}
            )
            if found:
                return found
        return {}

    @property
    def latency(self) -> dict[str, Any]:
        """Figures of frame in, decision out: of a benchmark, else of a demo."""
        return item(self.bench, "figures") or self.summary or {}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that `paths` belong to: a path joins the run whose bundle has the same seal, else the run before it as
    long as that has no such part and no other seal; otherwise it begins a new run.

    Raises:
        InputError: a path that no verb left, a damaged file, or more than two runs.
        BundleError: a bundle that breaks a rule.
    """
    runs: list[Run] = []
    for path in paths:
        part = _part(Path(path))
        same = [run for run in runs if run.seals & part.seals and _fits(run, part)]
        joined = same or [run for run in runs[-1:] if _fits(run, part) and not (run.seals and part.seals)]
        if joined:
            _join(joined[0], part)
        else:
            runs.append(part)
    if len(runs) > MAX_RUNS:
        listed = "; ".join(" + ".join(map(path_text, run.places)) for run in runs)
        raise InputError(
            f"the paths are of {len(runs)} runs ({listed}), and a report shows one, or two side by side; "
            "give fewer, each bundle before what belongs to it"
        )
    return runs


def _fits(run: Run, part: Run) -> bool:
    return not any(_has(run, slot) and _has(part, slot) for slot in SLOTS)


def _has(run: Run, slot: str) -> bool:
    return getattr(run, slot) is not None


def _join(run: Run, part: Run) -> None:
    for slot in (*SLOTS, "parity", "home"):
        if _has(part, slot):
            setattr(run, slot, getattr(part, slot))
    run.details = run.details | part.details
    if part.images and (part.evaluation or not run.images):  # an evaluation's are newer than a demo's
        run.images = part.images
    run.pictures |= part.pictures
    run.places += part.places


def _part(path: Path) -> Run:
    """One place."""
    run = Run(places=[path])
    if path.is_file() and path.suffix.lower() == ".json":
        value = _json(path)
        if "categories" in value:
            run.benchmark = value
        elif value.get("kind") == "compare":
            run.methods, run.home = value, path.parent
        else:
            run.bench = _bench(path, value)
    elif (path / MANIFEST).is_file() or path.suffix == ".grdb":
        run.bundle = read_bundle(path)
    elif path.is_dir():
        _read_folder(path, run)
    else:
        found = "a file that is none of these" if path.exists() else "nothing"
        raise InputError(f"{path_text(path)} cannot be shown: expected {_KNOWN}, found {found}; check the path")
    return run


def _read_folder(path: Path, run: Run) -> None:
    if (path / _BENCHMARK).is_file():
        run.benchmark = _json(path / _BENCHMARK)
    if (path / _METHODS).is_file():
        run.methods, run.home = _json(path / _METHODS), path
    if (path / "eval.json").is_file():
        run.evaluation = _json(path / "eval.json")
    if (path / "summary.json").is_file():
        run.summary = _json(path / "summary.json")
        bundles = sorted(path.glob("*.grdb"))
        if len(bundles) == 1:
            run.bundle = read_bundle(bundles[0])
    if (path / "log.csv").is_file() and (path / "manifest.json").is_file():
        run.training = _training(path)
    if not any(_has(run, slot) for slot in SLOTS):
        raise InputError(
            f"{path_text(path)} cannot be shown: expected {_KNOWN}, found a folder with "
            f"{_some_of(path)}; give one of these"
        )
    if (path / "parity.json").is_file():
        run.parity = _json(path / "parity.json")
    if found := details_of(path):
        run.details, run.home = found, path
    if (path / "images.csv").is_file():
        run.images = _image_rows(path / "images.csv")
    names = ("contact_sheet.png", "scores.png", "patches.png")
    run.pictures = {name: path / name for name in names if (path / name).is_file()}


def details_of(folder: Path) -> dict[str, Any]:
    """details.json of a folder; empty where there is none."""
    return _json(folder / DETAILS) if (folder / DETAILS).is_file() else {}


def _some_of(path: Path) -> str:
    names = sorted(path_text(each.name) for each in path.iterdir())
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing in it"


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(
            f"{path_text(path)} has {path.stat().st_size:,} bytes, more than any verb writes; check the path"
        )
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(
            f"{path_text(path)} is no text ({one_line(error)}); run the verb that wrote it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path_text(path)} is no JSON ({one_line(error)}); run the verb that wrote it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path_text(path)} holds a JSON {type(value).__name__}, expected an object; "
            "run the verb that wrote it again"
        )
    return value


def _bench(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("figures"), dict):
        raise InputError(
            f"{path_text(path)} has no `figures`, so it is no result of a benchmark; "
            "make one with: grd-edge bench BUNDLE -o FILE"
        )
    return value


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Whole rows of a table."""
    try:
        reader = csv.DictReader(_text(path).splitlines())
        rows = [row for row in reader if None not in row.values() and None not in row]
    except csv.Error as error:
        raise InputError(f"{path_text(path)} is no CSV ({error}); run the verb that wrote it again") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{path_text(path)} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            "run the verb that wrote it again"
        )
    return rows


def _number(path: Path, text: str, empty: float | None) -> float | None:
    if text == "":
        return empty
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"{path_text(path)} holds {text[:40]!r} where a number belongs; run the verb that wrote it again"
        ) from None
    return empty if math.isnan(value) else value


def _image_rows(path: Path) -> list[ImageRow]:
    return [
        ImageRow(
            row["image"],
            row["kind"],
            row["kind"] != "good",
            row["decision"],
            _number(path, row["score"], math.inf),
            _number(path, row["threshold"], None),
        )
        for row in _rows(path, ("image", "kind", "decision", "score", "threshold"))
    ]


def _training(path: Path) -> Training:
    log, about = path / "log.csv", _json(path / "manifest.json")
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in _rows(log, ("step", "seconds")):
        step = _number(log, row["step"], None)
        for column, text in row.items():
            value = _number(log, text, None)
            if column != "step" and None not in (step, value):
                steps, values = curves.setdefault(column, ([], []))
                steps.append(step)
                values.append(value)
    previews = sorted((path / "previews").glob("*.png"))
    images = about.get("images")
    shown = {key: about[key] for key in ("dataset", "manifest_sha256") if key in about}
    shown["images"] = len(images) if isinstance(images, list) else None
    return Training(curves, shown, previews[-1] if previews else None)
