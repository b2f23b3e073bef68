"""The accuracy benchmark: every engine of a bundle per category, beside PyTorch and beside an untrained generator.

A difference is engine less reference, a gain is engine less untrained; both are resampled in pairs.

Source: docs/method.md, section 8; docs/eval.md for what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle, read_bundle
from grd_edge.data.dataset import Sample, categories
from grd_edge.data.images import listing
from grd_edge.engine.against import Backend, check_precision, reference_inspector
from grd_edge.errors import BundleError, EngineError, InputError, MissingExtraError, one_line
from grd_edge.evaluate import mask_notes, metrics_from_scored, refit_images, refuse_used, untrained_inspector
from grd_edge.metrics import auroc, average_precision, balanced_accuracy, bootstrap_values, interval_of
from grd_edge.parity import exact_interval, parity_of, refitted, thresholds_of
from grd_edge.pixel_metrics import pixel_bootstrap_values
from grd_edge.products import ProductRule
from grd_edge.results import path_text
from grd_edge.scored import FrameInspector, OnImages, Scored, scored_from_samples
from grd_edge.shipped import unknown_images
from grd_edge.targets import CPU

# figure -> what `parity_of` calls it
FIGURES = {
    "image_auroc": "auroc",
    "image_ap": "ap",
    "pixel_auroc": "pixel_auroc",
    "aupro": "aupro",
    "balanced_accuracy": "balanced_accuracy",
}
FLIPS = ("decision_flips", "decision_flips_refit", "patch_decision_flips", "patch_decision_flips_refit")
PYTORCH = Backend("torch")
UNTRAINED, SHIPPED = "untrained", "shipped"

# what has an interval and a mean: figures, less the reference's, less those of the untrained generator
MEASURED = tuple(f"{name}{less}" for less in ("", "_delta", "_gain") for name in FIGURES)
# columns of benchmark.csv, one row per category and engine; `_categories`: how many a mean is over
COLUMNS = (
    *("category", "engine", "role", "shipped", "images", "defective", "false_reject_rate", "escape_rate"),
    *(f"{key}{end}" for key in MEASURED for end in ("", "_low", "_high", "_categories")),
    *(f"{key}{end}" for key in FLIPS for end in ("", "_of")),
    "note",
)


@dataclass
class Category:
    """What is measured of one category.

    Attributes:
        result: JSON-ready; keys in docs/eval.md.
        scored: engine -> what it said of the test images; may be cleared.
        drawn: engine -> key of `MEASURED` -> values on resampled images, of all engines on the same ones.
    """

    result: dict[str, Any]
    scored: dict[str, Scored] = field(default_factory=dict)
    drawn: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------- folders


def categories_of_root(root: Path) -> tuple[list[Path], list[str]]:
    """Folders of the categories, and names of the folders that are none.

    Raises:
        InputError: no such folder, one without categories, a single category, or categories that cannot be told apart.
    """
    folders = categories(root, need_train=False)
    others = [each.name for each in listing(root)[1] if each not in folders]
    if not folders:
        if (root / "test").is_dir() or (root / "train").is_dir():
            raise InputError(f"{root} is one category and no benchmark root; evaluate it with --data {root}")
        found = f"folders {', '.join(others[:5])}" if others else "no folder"
        raise InputError(
            f"{root} holds no category, found {found}; give the folder of folders that hold test/good and test/<defect>"
        )
    seen: dict[object, Path] = {}
    for folder in folders:
        # Results of names that differ in case are one folder on some disks; links would count a category twice.
        for key in (folder.name.casefold(), folder.resolve()):
            other = seen.setdefault(key, folder)
            if other != folder:
                raise InputError(
                    f"the categories {other.name} and {folder.name} of {root} are one by name or by folder; "
                    "rename or remove one of them"
                )
    return folders, others


def bundle_of_category(home: Path, category: str) -> Path:
    """`<home>/<category>.grdb`, else the one bundle in the folder `<home>/<category>`.

    Raises:
        InputError: there is none, or several.
    """
    path = home / f"{category}.grdb"
    found = [path] if path.exists() else sorted((home / category).glob("*.grdb"))
    if len(found) != 1:
        several = ", ".join(each.name for each in found)
        raise InputError(
            f"{home / category} holds the bundles {several}; leave one of them there"
            if found
            else f"there is no bundle {path}, nor one in {home / category}; build it with: grd-edge build bundle"
        )
    return found[0]


# ------------------------------------------------------------------------------------------------ one category


def evaluated_category(
    path: Path,
    samples: Sequence[Sample],
    *,
    calibration: Sequence[Sample] = (),
    against: Backend | Path = PYTORCH,
    precision: str | None = None,
    untrained: bool = True,
    bar: Callable[[str], OnImages] = lambda name: lambda done: None,
) -> Category:
    """The reference, every engine of a bundle that runs here, ONNX Runtime and an untrained generator on test images.

    Args:
        samples: test images, none of them used to make the model or to fit its thresholds.
        calibration: good images that thresholds are fitted on again: of the untrained generator, and of engine and
            reference to compare these decisions, too.
        against: the reference.
        precision: the only engine for the CPU that is measured; None: all that is in the bundle, and ONNX Runtime.
        untrained: measure the same network with fresh weights, too.
        bar: gives the progress callback of the pass with this name.

    Raises:
        InputError: images that model or thresholds were made from, or that do not fit.
        BundleError: the bundle breaks a rule, or lacks the precision.
        CheckpointError: see `reference_inspector`.
        EngineError: none of the engines runs here; says why.
    """
    bundle = read_bundle(path)
    if precision:
        check_precision(bundle, precision)
    refuse_used(bundle, samples)
    passes = _Passes(bundle, samples, calibration, bar)
    reference = str(against) if isinstance(against, Backend) else "checkpoint"
    passes.run(reference, lambda: reference_inspector(bundle, against))
    for name, backend in _engines(bundle, precision):
        if name != reference:
            passes.run(name, lambda backend=backend: reference_inspector(bundle, backend), reference=reference)
    engines = passes.scored.keys() - {reference}
    if not engines:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in passes.not_run.items())
        raise EngineError(f"no engine of {path} runs here ({reasons}); build one for this machine")
    if untrained:
        passes.run_untrained()
    chosen = bundle.manifest["precision"]["chosen"].get(CPU)
    any_scored = next(iter(passes.scored.values()))
    result = {
        "bundle": {
            "name": bundle.manifest["name"],
            "path": path_text(path),
            "seal": bundle.seal,
            "decision_seal": bundle.decision and bundle.decision["seal"],
        },
        "images": len(any_scored.samples),
        "defective": int(any_scored.image_labels.sum()),
        "products": len(any_scored.products),
        "reference": reference if reference in passes.scored else None,
        "shipped": chosen and f"{CPU}-{chosen}",
        "engines": passes.measured,
        "not_run": passes.not_run,
        "notes": list(dict.fromkeys([*passes.notes, *mask_notes(bundle, any_scored), *unknown_images(bundle)])),
    }
    return Category(result, passes.scored, passes.drawn)


def _engines(bundle: Bundle, precision: str | None) -> Iterator[tuple[str, Backend]]:
    """Names and kinds of the engines to measure."""
    for entry in bundle.manifest["engines"]:
        name = f"{entry['target']}-{entry['precision']}"
        if entry["target"] == CPU and precision in (None, entry["precision"]):
            yield name, Backend("native", entry["precision"])
        elif precision is None:
            yield name, Backend("tensorrt", engine=name)
    if precision is None:
        yield "onnxruntime", Backend("onnxruntime")


class _Passes:
    """The passes over the images of one category, an engine each, and what they gave."""

    def __init__(
        self, bundle: Bundle, samples: Sequence[Sample], calibration: Sequence[Sample], bar: Callable[[str], OnImages]
    ) -> None:
        self.bundle, self.samples, self.bar = bundle, samples, bar
        self.rule = ProductRule.of_bundle(bundle)
        self.scored: dict[str, Scored] = {}
        self.drawn: dict[str, dict[str, np.ndarray]] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.not_run: dict[str, str] = {}
        self.notes: list[str] = []
        self._calibrated: dict[str, Scored] = {}
        try:
            self.calibration, self.alpha = refit_images(bundle, calibration)
        except InputError as error:
            self.calibration = []
            self._not_refitted(error)

    def run(
        self, name: str, opened: Callable[[], AbstractContextManager[FrameInspector]], *, reference: str = ""
    ) -> None:
        """Measures an engine, beside the reference where that ran; why it does not run here is kept."""
        inspector = self._opened(name, opened)
        if not inspector:
            return
        with inspector:
            try:
                if self.calibration:
                    self._calibrated[name] = self._scored(f"{name}, calibration", inspector, self.calibration)
                scored = self._scored(name, inspector, self.samples, pixels=True)
            except EngineError as error:
                self._calibrated.pop(name, None)
                self.not_run[name] = str(error)
                return
            self.notes += self._keep(name, scored, inspector.engine_version, "engine" if reference else "reference")
        if reference in self.scored:
            self.measured[name]["against_reference"] = self._compared(name, reference)
            self._pair(name, reference, "delta")

    def run_untrained(self) -> None:
        """Measures the network before its training, with thresholds fitted as the bundle's own were, on its scores."""
        inspector = self._opened(UNTRAINED, lambda: untrained_inspector(self.bundle))
        if not inspector:
            return
        rule = replace(self.rule, thresholds=())
        with inspector:
            if self.calibration and self.rule.thresholds:
                name = f"{UNTRAINED}, calibration"
                try:
                    found = self._scored(name, inspector, self.calibration, rule=rule)
                    rule = replace(rule, thresholds=thresholds_of(found, self.rule, alpha=self.alpha).thresholds)
                    inspector.threshold = rule.thresholds
                except InputError as error:
                    self.notes.append(f"the untrained generator has no thresholds: {error}")
            scored = self._scored(UNTRAINED, inspector, self.samples, rule=rule, pixels=True)
        # Its notes on images were said before, and those on decisions may be true of it alone.
        self._keep(UNTRAINED, scored, inspector.engine_version, UNTRAINED)
        for name in self.measured.keys() - {UNTRAINED}:
            self._pair(name, UNTRAINED, "gain")
            ours, theirs = self.measured[name], self.measured[UNTRAINED]
            for figure in FIGURES:
                both, drawn = None not in (ours[figure], theirs[figure]), self.drawn[name].get(f"{figure}_gain")
                ours[f"{figure}_gain"] = ours[figure] - theirs[figure] if both else None
                ours[f"{figure}_gain_ci95"] = None if drawn is None else list(interval_of(drawn))

    def _opened(self, name: str, opened: Callable[[], Any]) -> Any:
        try:
            return opened()
        except (BundleError, EngineError, MissingExtraError, ImportError) as error:
            self.not_run[name] = one_line(error)
            return None

    def _scored(self, name: str, inspector: FrameInspector, samples: Sequence[Sample], **options: Any) -> Scored:
        given = {"rule": self.rule, "roi": self.bundle.roi, **options}
        return scored_from_samples(inspector, samples, on_progress=self.bar(name), **given)

    def _keep(self, name: str, scored: Scored, version: str, role: str) -> list[str]:
        """Keeps what was measured of an engine; the notes on it."""
        figures = metrics_from_scored(scored)
        notes = figures.pop("notes")
        self.scored[name], self.drawn[name] = scored, drawn_from_scored(scored)
        self.measured[name] = {"role": role, "version": version, **figures}
        return notes

    def _pair(self, name: str, other: str, what: str) -> None:
        ours, theirs = self.drawn[name], self.drawn[other]
        ours |= {
            f"{figure}_{what}": ours[figure] - theirs[figure] for figure in FIGURES if figure in ours.keys() & theirs
        }

    def _compared(self, name: str, reference: str) -> dict[str, Any]:
        """What `parity_of` says of an engine and the reference."""
        refit = None
        if name in self._calibrated and reference in self._calibrated:
            try:
                refit = refitted(self._calibrated[name], self._calibrated[reference], self.rule, alpha=self.alpha)
            except InputError as error:
                self._not_refitted(error)
        return parity_of(self.scored[name], self.scored[reference], rule=self.rule, refit=refit)

    def _not_refitted(self, error: InputError) -> None:
        self.notes.append(f"decisions are not compared after refitting: {error}")


def drawn_from_scored(scored: Scored) -> dict[str, np.ndarray]:
    """figure -> its values on the resampled images behind the intervals of `metrics_from_scored`."""
    drawn = pixel_bootstrap_values(scored.pixel_counts) if scored.quality and scored.pixel_counts else {}
    labels = scored.image_labels
    if labels.any() and not labels.all():
        drawn["image_auroc"] = bootstrap_values(auroc, scored.image_scores, labels)
        drawn["image_ap"] = bootstrap_values(average_precision, scored.image_scores, labels)
        if scored.decided:
            drawn["balanced_accuracy"] = bootstrap_values(balanced_accuracy, scored.rejected, scored.labels)
    return drawn


# ------------------------------------------------------------------------------------------- over the categories


def mean_of_categories(found: Mapping[str, Category]) -> dict[str, dict[str, Any]]:
    """engine -> mean of each figure, difference and gain over the categories that have it, and the flips of all.

    `shipped` is the engine that each bundle chose. An interval tells how the mean moves with the images of these
    categories, each resampled by itself; it says nothing of other categories. `<figure>_categories` counts those that a
    mean is over.
    """
    named = {name: None for each in found.values() for name in each.result["engines"]}
    order = [name for name in named if name != UNTRAINED] + [name for name in named if name == UNTRAINED]
    means = {name: _mean([(each, name) for each in found.values()]) for name in order}
    if chosen := _mean([(each, each.result["shipped"]) for each in found.values()]):
        means[SHIPPED] = chosen
    return means


def _mean(places: Sequence[tuple[Category, str | None]]) -> dict[str, Any]:
    """Means over (category, engine), of those that ran."""
    ran = [(_flat(each.result["engines"][name]), each.drawn[name]) for each, name in places if name in each.drawn]
    result: dict[str, Any] = {}
    for key in MEASURED:
        rows = [(measured[key], drawn.get(key)) for measured, drawn in ran if measured.get(key) is not None]
        if rows:
            values, draws = zip(*rows, strict=True)
            whole = all(each is not None for each in draws)
            result |= {key: sum(values) / len(values), f"{key}_ci95": _mean_interval(draws) if whole else None}
            result[f"{key}_categories"] = len(values)
    for key in FLIPS:
        counted = [(measured[key], measured[f"{key}_of"]) for measured, _ in ran if measured[key] is not None]
        if counted:
            flips, n = map(sum, zip(*counted, strict=True))
            result |= {key: flips, f"{key}_of": n, f"{key}_rate_ci95": list(exact_interval(flips, n))}
    return result


def _mean_interval(drawn: Sequence[np.ndarray]) -> list[float]:
    """95 % interval of the mean of independent resamples."""
    rng, n = np.random.default_rng(0), min(map(len, drawn))
    # All categories were drawn with one seed; in another order the draws of one tell nothing of the others'.
    return list(interval_of(np.mean([rng.permutation(each)[:n] for each in drawn], axis=0)))


def _flat(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured of an engine, with its differences and flips by the names of `COLUMNS`."""
    parity = measured.get("against_reference", {})
    flat = dict(measured)
    for figure, short in FIGURES.items():
        flat |= {f"{figure}_delta{end}": parity.get(f"{short}_delta{end}") for end in ("", "_ci95")}
    for key in FLIPS:
        found = parity.get("flips", {}).get("refit" if key.endswith("_refit") else "shipped")
        counted = found and found["patch" if key.startswith("patch") else "product"]
        flat |= {key: counted and counted["flips"], f"{key}_of": counted and counted["n"]}
    return flat


def rows_of_document(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `COLUMNS` from benchmark.json: engines, those that did not run, categories that failed, means."""
    for category, result in document["categories"].items():
        about = {"category": category, "images": result["images"], "defective": result["defective"]}
        for name, measured in result["engines"].items():
            yield _row({**about, **_flat(measured), "engine": name, "shipped": int(name == result["shipped"])})
        for name, reason in result["not_run"].items():
            yield _row({**about, "engine": name, "note": f"not run: {reason}"})
    for category, sentence in document["failed"].items():
        yield _row({"category": category, "note": sentence})
    for name, measured in document["mean"].items():
        yield _row({"category": "mean", "engine": name, **measured})


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    row = {column: values.get(column) for column in COLUMNS}
    for key in MEASURED:
        row[f"{key}_low"], row[f"{key}_high"] = values.get(f"{key}_ci95") or (None, None)
    return row
