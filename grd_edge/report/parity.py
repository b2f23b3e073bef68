"""The parity report: tables for people and programs, and pictures of where two engines differ.

Source of the figures: grd_edge.parity; docs/design/precision.md, section "Parity report".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grd_edge.files import write_atomically
from grd_edge.parity import Comparison, decided_patches, differences
from grd_edge.patches import PatchGrid, prepare_frame
from grd_edge.products import ProductRule
from grd_edge.report.contact_sheet import Panel, write_contact_sheet
from grd_edge.report.figures import pyplot, write_figure
from grd_edge.results import csv_lines, json_document, path_text
from grd_edge.runtime import Inspection

# columns of the table of patches; `_ref` is the reference's, decisions are 1 = defective and empty where there are none
COLUMNS = (
    "image",
    "kind",
    "product",
    "y",
    "x",
    "region",
    "phi",
    "phi_ref",
    "phi_local",
    "phi_local_ref",
    "x_hat_max_abs_diff",
    "x_hat_mean_abs_diff",
    "defective",
    "defective_ref",
    "defective_refit",
    "defective_refit_ref",
)
SHOWN_PATCHES = 8
SHEET_ROWS = {
    "input": None,
    "engine": None,
    "reference": None,
    "|input - engine|": "heatmap",
    "|input - reference|": "heatmap",
    "|engine - reference|": "difference of both",
}
MAP_ROWS = {"input": None, "engine": "map", "reference": "map", "|engine - reference|": "difference of both"}
_DIFFERENCES = {"x_hat": "reconstruction", "phi": "phi", "phi_local": "phi_local"}
METRICS = {
    "auroc": "image AUROC",
    "ap": "image AP",
    "product_auroc": "product AUROC",
    "balanced_accuracy": "balanced accuracy",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
_THRESHOLDS = {"shipped": "shipped threshold", "refit": "refitted thresholds"}


def parity_document(comparison: Comparison, **about: Any) -> dict[str, Any]:
    """Content of parity.json: what was compared, the figures, the notes."""
    names = {"engine": comparison.engine_name, "reference": comparison.reference_name}
    images = comparison.engine.image_labels
    counts = {"images": len(images), "defective": int(images.sum()), "products": len(comparison.engine.products)}
    return {**about, **names, **counts, **comparison.figures, "notes": list(comparison.notes)}


def shown_figures(figures: dict[str, Any]) -> dict[str, str]:
    """The figures of `parity_of` as lines of a two-column table."""
    rows = {}
    for key, name in _DIFFERENCES.items():
        if f"{key}_max_abs_diff" in figures:
            most, p99, mean = _extent(figures, key)
            rows[f"{name} difference"] = f"max {most}, p99 {p99}, mean {mean}"
    for name in ("patch", "image"):
        spearman, kendall = _correlation(figures, name)
        rows[f"{name} rank correlation"] = f"Spearman {spearman}, Kendall {kendall}"
    for key, name in METRICS.items():
        if figures.get(f"{key}_delta") is not None:
            rows[f"{name} delta"] = f"{figures[f'{key}_delta']:+.4f}  95 % {_interval(figures[f'{key}_delta_ci95'])}"
    for name, found in _flips(figures):
        rows[f"flips, {name}"] = (
            f"{found['flips']} of {found['n']}, {_percent(found['rate'])}, 95 % {_percents(found['rate_ci95'])}; "
            f"{found['good_to_defective']['flips']} to defective, {found['defective_to_good']['flips']} to good"
        )
    return rows


def parity_markdown(document: dict[str, Any]) -> bytes:
    """`parity_document` as tables that a pull request shows."""
    lines = [
        f"## Parity: {document['engine']} against {document['reference']}",
        "",
        f"{document['images']} images, {document['defective']} defective; {document['products']} products, "
        f"{document['patches']} patches. Intervals are 95 %.",
    ]
    compared = [key for key in _DIFFERENCES if f"{key}_max_abs_diff" in document]
    lines += _table(
        ("absolute difference", "max", "p99", "mean"),
        [(_DIFFERENCES[key], *_extent(document, key)) for key in compared],
    )
    lines += _table(
        ("rank correlation", "Spearman", "Kendall"),
        [(plural, *_correlation(document, name)) for name, plural in (("patch", "patches"), ("image", "images"))],
    )
    lines += _table(
        ("metric", "engine", "reference", "delta", "interval"),
        [
            (
                name,
                f"{document[f'{key}_reference'] + document[f'{key}_delta']:.4f}",
                f"{document[f'{key}_reference']:.4f}",
                f"{document[f'{key}_delta']:+.4f}",
                _interval(document[f"{key}_delta_ci95"]),
            )
            for key, name in METRICS.items()
            if document.get(f"{key}_delta") is not None
        ],
    )
    lines += _table(
        ("decisions flipped", "of", "flips", "rate", "interval", "good to defective", "defective to good"),
        [
            (
                name,
                str(found["n"]),
                str(found["flips"]),
                _percent(found["rate"]),
                _percents(found["rate_ci95"]),
                *(_direction(found[way]) for way in ("good_to_defective", "defective_to_good")),
            )
            for name, found in _flips(document)
        ],
    )
    refit = document["refit"]
    if refit:
        both = " and ".join(
            ", ".join(f"{value:.5g}" for value in refit[key]) for key in ("thresholds", "thresholds_reference")
        )
        lines += [
            "",
            f"Refitted on {refit['products']} good products, alpha {refit['alpha']:g}"
            f"{'' if refit['certified'] else ' (not certified by so few)'}, k {refit['k']}: thresholds {both}.",
        ]
    for note in document["notes"]:
        lines += ["", f"Note: {note}."]
    return ("\n".join(lines) + "\n").encode()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))]


def _flips(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, threshold in _THRESHOLDS.items():
        for what, plural in (("patch", "patches"), ("product", "products")):
            if figures["flips"][key]:
                yield f"{plural}, {threshold}", figures["flips"][key][what]


def _extent(figures: dict[str, Any], name: str) -> list[str]:
    return [f"{figures[f'{name}_{part}_abs_diff']:.2g}" for part in ("max", "p99", "mean")]


def _correlation(figures: dict[str, Any], name: str) -> list[str]:
    values = [figures[f"{name}_{kind}"] for kind in ("spearman", "kendall")]
    return ["none (all equal)" if value is None else f"{value:.6f}" for value in values]


def _direction(found: dict[str, Any]) -> str:
    return f"{found['flips']}, {_percents(found['rate_ci95'])}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _percents(interval: Sequence[float]) -> str:
    return f"[{100 * interval[0]:.2g}, {100 * interval[1]:.2g}] %"


def _interval(interval: Sequence[float] | None) -> str:
    return "none" if interval is None else f"[{interval[0]:+.4f}, {interval[1]:+.4f}]"


def patch_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row of `COLUMNS` per patch."""
    rule, engine, reference, refit = comparison.rule, comparison.engine, comparison.reference, comparison.refit
    fits = (refit.engine.thresholds, refit.reference.thresholds) if refit else (None, None)
    decided = [
        [each.defective for each in scored.inspections] if rule.thresholds else None for scored in (engine, reference)
    ] + [
        decided_patches(scored, rule, thresholds) if thresholds else None
        for scored, thresholds in zip((engine, reference), fits, strict=True)
    ]
    errors = comparison.reconstructions
    for index, (sample, ours, theirs) in enumerate(
        zip(engine.samples, engine.inspections, reference.inspections, strict=True)
    ):
        image = path_text(sample.path)
        for patch, (y, x) in enumerate(ours.positions.tolist()):
            values = (
                *(image, sample.kind, sample.product or "", y, x, ours.region_names[ours.regions[patch]]),
                *(ours.phi[patch], theirs.phi[patch], ours.phi_local[patch], theirs.phi_local[patch]),
                *((errors.patch_max[index][patch], errors.patch_mean[index][patch]) if errors else (None, None)),
                *(None if each is None else int(each[index][patch]) for each in decided),
            )
            yield dict(zip(COLUMNS, values, strict=True))


# ------------------------------------------------------------------------------------------------- pictures


class _Patch(NamedTuple):
    """A patch as the heap of `LargestDifferences` orders it; `order` breaks ties."""

    difference: float
    order: int
    image: int
    scores: tuple[float, float]
    pictures: tuple[
        np.ndarray, ...
    ]  # x, what both networks make of it: x_hat (C, H, W) or its part of the heatmap (H, W)


class LargestDifferences:
    """Keeps the patches whose deciding scores differ most, with their pictures; its `add` is an `OnFrame`."""

    def __init__(self, rule: ProductRule, grid: PatchGrid, scale_px: int | None, channels: int) -> None:
        self.rule, self.grid, self.scale_px, self.channels = rule, grid, scale_px, channels
        self.patches: list[_Patch] = []  # a heap
        self._seen = 0

    def add(self, index: int, frame: np.ndarray, inspections: Sequence[Inspection]) -> None:
        """Looks at an image that engine and reference inspected."""
        ours, theirs = inspections
        scores = np.stack([self.rule.deciding(each) for each in inspections], axis=1)
        difference = np.abs(differences(scores[:, 0], scores[:, 1]))
        places = np.argsort(-difference, kind="stable")[:SHOWN_PATCHES]
        if len(self.patches) == SHOWN_PATCHES:
            places = [place for place in places if difference[place] > self.patches[0].difference]
        image = prepare_frame(frame, scale_px=self.scale_px, channels=self.channels) if len(places) else None
        for place in places:
            y, x = ours.positions[place]
            # Cut where the patch lies; a frame smaller than a patch has but one.
            cut = image[:, y : y + self.grid.patch_h, x : x + self.grid.patch_w]
            self._seen += 1
            if ours.x_hat is None:
                maps = (each.heatmap[y : y + self.grid.patch_h, x : x + self.grid.patch_w] for each in inspections)
                pictures = (cut.copy(), *(part.copy() for part in maps))
            else:
                source = cut if cut.shape[1:] == ours.x_hat.shape[2:] else self.grid.cut(image)[0]
                pictures = (source.copy(), ours.x_hat[place].copy(), theirs.x_hat[place].copy())
            found = _Patch(float(difference[place]), -self._seen, index, tuple(scores[place].tolist()), pictures)
            heapq.heappush(self.patches, found)
            if len(self.patches) > SHOWN_PATCHES:
                heapq.heappop(self.patches)


def write_sheet(path: Path, comparison: Comparison, largest: LargestDifferences) -> None:
    """Draws the patches whose scores differ most: input, both reconstructions, heatmaps; without these both maps.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels, rebuilt = [], comparison.reconstructions is not None
    for patch in sorted(largest.patches, reverse=True):
        x, ours, theirs = patch.pictures
        if rebuilt:
            maps = [np.abs(a - b).mean(axis=0) for a, b in ((x, ours), (x, theirs), (ours, theirs))]
        else:
            maps = [ours, theirs, np.abs(ours - theirs)]
        grey = [picture.transpose(1, 2, 0).squeeze() for picture in (patch.pictures if rebuilt else (x,))]
        kind = comparison.engine.samples[patch.image].kind
        title = f"{kind}, {patch.difference:.2g}\n{patch.scores[0]:.5g} / {patch.scores[1]:.5g}"
        panels.append(Panel(title, (*grey, *maps), correct=True))
    title = (
        f"largest differences of {comparison.rule.decides}, engine / reference\n"
        f"engine: {comparison.engine_name}    reference: {comparison.reference_name}"
    )
    rows = SHEET_ROWS if rebuilt else MAP_ROWS
    write_contact_sheet(path, panels, title=title, rows=rows, columns=max(4, min(8, len(panels))))


def write_score_plots(path: Path, comparison: Comparison) -> None:
    """Draws the deciding score of every patch: engine against reference, difference against mean, and its histogram.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plots = pyplot("to draw the scores")
    rule, engine, refit = comparison.rule, comparison.engine, comparison.refit
    ours, theirs = (
        np.concatenate([rule.deciding(each) for each in scored.inspections]).astype(np.float64)
        for scored in (engine, comparison.reference)
    )
    defective = np.repeat(engine.image_labels, [len(each.phi) for each in engine.inspections])
    finite = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs, defective = ours[finite], theirs[finite], defective[finite]
    difference, middle = ours - theirs, (ours + theirs) / 2
    figure, (left, center, right) = plots.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for kind, chosen, color in (("good", ~defective, "tab:blue"), ("defective", defective, "tab:red")):
        if chosen.any():
            style = {"s": 5, "alpha": 0.5, "color": color, "linewidths": 0, "label": f"patches of {kind} images"}
            left.scatter(theirs[chosen], ours[chosen], **style)
            center.scatter(middle[chosen], difference[chosen], **style)
    for index, threshold in enumerate(rule.thresholds):
        label = "shipped threshold" if index == 0 else None
        left.axvline(threshold, color="black", linewidth=0.8, label=label)
        left.axhline(threshold, color="black", linewidth=0.8)
        center.axvline(threshold, color="black", linewidth=0.8)
    for index in range(len(refit.engine.thresholds) if refit else 0):
        label = "refitted thresholds" if index == 0 else None
        style = {"color": "tab:green", "linewidth": 1.0, "linestyle": "--"}
        left.axvline(refit.reference.thresholds[index], **style, label=label)
        left.axhline(refit.engine.thresholds[index], **style)
    if len(ours) and middle.max() > 10 * min(ours.min(), theirs.min()) > 0:
        left.set(xscale="log", yscale="log")
        center.set(xscale="log")
    left.set(xlabel=f"{rule.decides}, reference", ylabel=f"{rule.decides}, engine")
    left.legend(fontsize=8)
    mean, spread = (float(difference.mean()), float(difference.std())) if len(difference) else (0.0, 0.0)
    for value, text in ((mean, "mean"), (mean - 1.96 * spread, "mean ± 1.96 std"), (mean + 1.96 * spread, None)):
        center.axhline(value, color="grey", linewidth=0.8, linestyle="-" if text == "mean" else ":", label=text)
    center.set(xlabel="mean of both", ylabel="engine - reference")
    center.legend(fontsize=8)
    right.hist(difference, bins=max(10, min(80, int(len(difference) ** 0.5))), color="tab:grey")
    right.set(xlabel="engine - reference", ylabel="patches", yscale="log" if len(difference) > 1000 else "linear")
    figure.suptitle(f"{comparison.engine_name} against {comparison.reference_name}", fontsize=10)
    write_figure(path, figure)


def write_report(folder: Path, comparison: Comparison, largest: LargestDifferences | None = None, **about: Any) -> None:
    """Writes parity.json, parity.md, patches.csv, and last the pictures scores.png and patches.png.

    Args:
        largest: what patches.png shows; None: it is not drawn.
        about: told in parity.json besides.

    Raises:
        MissingExtraError: matplotlib is not installed; the tables are there.
        InputError: a file cannot be written.
    """
    document = parity_document(comparison, **about)
    write_atomically(folder / "parity.json", json_document(document))
    write_atomically(folder / "parity.md", parity_markdown(document))
    write_atomically(folder / "patches.csv", csv_lines(COLUMNS, patch_rows(comparison)))
    write_score_plots(folder / "scores.png", comparison)
    if largest:
        write_sheet(folder / "patches.png", comparison, largest)
