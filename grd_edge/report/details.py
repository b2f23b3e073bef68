"""What an evaluation leaves for the HTML report beside its figures: curves, times, and pictures of the worst errors.

`details.json` is for `grd-edge report`; docs/report.md has its keys.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.data.images import read_image, read_mask
from grd_edge.errors import MissingExtraError
from grd_edge.files import write_atomically
from grd_edge.machine import cpu_name
from grd_edge.products import ProductRule
from grd_edge.report.overlay import scale_of_bundle, write_overlay
from grd_edge.results import json_document, path_text
from grd_edge.scored import Scored
from grd_edge.shipped import opened_bundle

DETAILS = "details.json"
WORST = "worst"  # folder of the pictures
SHOWN_PER_ERROR = 4


def worst_errors(scored: Scored, count: int = SHOWN_PER_ERROR) -> dict[str, list[int]]:
    """Indices of the good images rejected furthest above their threshold, and of the defective ones furthest below.

    Undecided images are neither. A NaN score is the highest of all.
    """
    decisions = np.array([inspection.decision for inspection in scored.inspections])
    margins = np.array([inspection.score - inspection.threshold for inspection in scored.inspections], np.float64)
    margins = np.nan_to_num(margins, nan=np.inf)
    chosen = {
        "false-reject": (~scored.image_labels & (decisions == "defective"), -margins),
        "escape": (scored.image_labels & (decisions == "good"), margins),
    }
    return {
        name: [int(index) for index in np.argsort(key, kind="stable") if wrong[index]][:count]
        for name, (wrong, key) in chosen.items()
    }


def write_details(folder: Path, bundle: Path, scored: Scored, *, precision: str | None, data: str) -> None:
    """Writes `worst/*.png` and, when they are complete, `details.json`.

    Args:
        bundle: that `scored` comes from; its engine inspects the worst images again for their heatmaps.
        precision: of the engine, as in `Inspector`.
        data: where the images come from, as the user said it.

    Raises:
        MissingExtraError: OpenCV is not installed; details.json is there without pictures.
        BundleError, EngineError: see `opened_bundle`. InputError: a file cannot be read or written.
    """
    inspector, opened = opened_bundle(bundle, precision=precision)
    quality = scored.quality
    document: dict[str, Any] = {
        "bundle": opened.manifest["name"],
        "seal": opened.seal,
        "decision_seal": opened.decision and opened.decision["seal"],
        "data": data,
        "engine": inspector.engine_version,
        "cpu": cpu_name(),
        "times_ms": [inspection.times_ms["total"] for inspection in scored.inspections],
        "pixel_roc": quality and quality.roc.tolist(),
        "pixel_pro": quality and quality.pro.tolist(),
        "worst": [],
    }
    undrawn = None
    with inspector:
        try:
            document["worst"] = _pictures(folder, inspector, opened, scored)
        except MissingExtraError as error:
            undrawn = error
    write_atomically(folder / DETAILS, json_document(document))
    kept = {entry["picture"] for entry in document["worst"]}
    for left in (folder / WORST).glob("*.png"):  # of an earlier evaluation that was wrong more often
        if f"{WORST}/{left.name}" not in kept and left.name.startswith(("false-reject-", "escape-")):
            with contextlib.suppress(OSError):
                left.unlink()
    if undrawn:
        raise undrawn


def _pictures(folder: Path, inspector, bundle, scored: Scored) -> list[dict[str, Any]]:
    """Draws the worst errors; their entries in details.json."""
    rule, grid, entries = ProductRule.of_bundle(bundle), bundle.grid, []
    for name, indices in worst_errors(scored).items():
        for rank, index in enumerate(indices, start=1):
            sample = scored.samples[index]
            frame = read_image(sample.path)
            masked = {"roi": read_mask(sample.roi, frame.shape[:2])} if sample.roi else {}
            inspection = inspector.inspect(frame, heatmap=True, **masked)
            entry = {
                "error": name,
                "image": path_text(sample.path),
                "kind": sample.kind,
                "score": inspection.score,
                "threshold": inspection.threshold,
                "picture": f"{WORST}/{name}-{rank}.png",
            }
            write_overlay(
                folder / entry["picture"],
                frame,
                inspection,
                name=entry["image"],
                patch_px=(grid.patch_h, grid.patch_w),
                deciding=rule.deciding(inspection),
                **scale_of_bundle(bundle),
            )
            entries.append(entry)
    return entries
