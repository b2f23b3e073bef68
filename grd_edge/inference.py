"""Images through a bundle's engine to rows of results, files and pictures. Needs no training stack.

Source: docs/method.md, section 7.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.data.images import read_image, read_mask
from grd_edge.errors import EngineError, InputError
from grd_edge.files import sha256_hex
from grd_edge.grouping import Groups
from grd_edge.products import ProductRule
from grd_edge.results import Format, ResultFile, path_text
from grd_edge.runtime import Inspection, Inspector
from grd_edge.shipped import PER_IMAGE, fit_of, opened_bundle

COLUMNS = (
    "level",  # image, product or run
    "name",  # path of the image, name of the product or run
    "decision",
    "score",
    "threshold",
    "patches",
    "defective_patches",
    "region",  # of the highest patch, where there are several
    "total_ms",
    "product",
    "run",
    "heatmap",  # picture of the image, beside this file
    "time",
    "error",
    "seal",  # 12 digits of the seal of the thresholds, else of the bundle: what decided
)
HEATMAPS = "heatmaps"


@dataclass(frozen=True)
class InferOptions:
    """What `infer` does besides deciding.

    Attributes:
        output: folder for results and pictures; None: none are written.
        formats: of the results file.
        heatmaps: draw a picture per image, named after it and the hash of its path.
        heatmap_top: value at which the color scale of all pictures ends; None: as `overlay.scale_of_bundle`.
        roi: mask of interest of every image, in place of the bundle's.
        product_by, run_by: searched in the path; the first group names the product and the run.
        threads, precision: of the engine.
    """

    output: Path | None = None
    formats: tuple[Format, ...] = ("csv",)
    heatmaps: bool = False
    heatmap_top: float | None = None
    roi: Path | None = None
    product_by: str | None = None
    run_by: str | None = None
    threads: int = 0
    precision: str | None = None


NO_THRESHOLDS = "this bundle has no thresholds yet, so nothing is decided; run: grd-edge recalibrate"


def few_patches(name: str | Path, patches: int, rule: ProductRule) -> str:
    """What a user is told of an image that can decide nothing by itself."""
    return (
        f"{name} has {patches} patches, fewer than the k of {rule.k}, so it is undecided; "
        "name the images of a product with --product-by, or recalibrate with a smaller k"
    )


def check_masks(bundle: Bundle, or_else: str = "") -> None:
    """Raises InputError when thresholds were fitted under masks of interest that the bundle does not hold."""
    if fit_of(bundle).get("roi") == PER_IMAGE:
        raise InputError(
            f"the thresholds of {bundle.path} were fitted under a mask of interest per image, which the bundle does "
            f"not hold; {or_else}fit new thresholds with: grd-edge recalibrate"
        )


def inspected_images(
    path: Path, files: Sequence[Path], options: InferOptions, *, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Any]]:
    """Inspects images one by one, and yields a row of `COLUMNS` for each, then for each product and run it completes.

    An image that cannot be inspected gets the decision `error` and its sentence; so does its product, unless the others
    already make it defective. A row is in the results file before it is yielded.

    Args:
        on_note: told, as a sentence, what a user should know.

    Raises:
        BundleError, EngineError, MissingExtraError: nothing can be inspected.
        InputError: thresholds that were fitted under masks that neither bundle nor options have, a pattern that does
            not fit the paths, or files that cannot be written; rows written before stay.
    """
    with ExitStack() as stack:
        inspector, bundle = opened_bundle(path, threads=options.threads, precision=options.precision)
        stack.enter_context(inspector)
        if options.roi is None:
            check_masks(bundle, "give the mask of these images with --roi, or ")
        rule, style = ProductRule.of_bundle(bundle), picture_style(bundle, options.heatmap_top)
        seal = (bundle.decision or bundle.manifest)["seal"][:12]
        groups = _Completing(files, options, rule)
        masks: dict[tuple[int, int], np.ndarray] = {}
        outputs = result_files(options.output, options.formats, COLUMNS, stack, on_note)
        told = False
        if not bundle.decision:
            on_note(NO_THRESHOLDS)
        for index, file in enumerate(files):
            row = {**dict.fromkeys(COLUMNS), "level": "image", "name": path_text(file), **groups.names(index)}
            inspection = None
            try:
                frame = read_image(file)
                inspection = _inspect(inspector, frame, options, masks)
            except (InputError, EngineError) as error:
                row["error"] = str(error) if str(file) in str(error) else f"{file}: {error}"
                row |= {"decision": "error", "patches": 0, "defective_patches": 0}
            if inspection is not None:
                row |= _described(inspection, rule)
                if bundle.decision and inspection.decision == "undecided" and not (options.product_by or told):
                    told = True
                    on_note(few_patches(file, len(inspection.phi), rule))
                if options.heatmaps:
                    row["heatmap"] = picture(options.output, frame, inspection, file, rule, style)
            for each in (row, *groups.completed(index, inspection)):
                each["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                each["seal"] = seal
                for output in outputs:
                    output.append(each)
                yield each


def result_files(
    folder: Path | None,
    formats: Sequence[Format],
    columns: Sequence[str],
    stack: ExitStack,
    on_note: Callable[[str], None],
) -> list[ResultFile]:
    """The files of results in a folder, which `stack` closes; none without a folder.

    Raises:
        InputError: one cannot be written, or holds other columns.
    """
    outputs = []
    for kind in formats if folder else ():
        output = stack.enter_context(ResultFile(folder / f"results.{kind}", columns, kind))
        if output.removed:
            on_note(
                f"the last line of {output.path} had been cut short by an earlier stop and was removed: "
                f"{path_text(output.removed[:120])}"
            )
        outputs.append(output)
    return outputs


def _inspect(
    inspector: Inspector, frame: np.ndarray, options: InferOptions, masks: dict[tuple[int, int], np.ndarray]
) -> Inspection:
    if options.roi is None:
        return inspector.inspect(frame, heatmap=options.heatmaps)
    shape = frame.shape[:2]
    if shape not in masks:
        masks[shape] = read_mask(options.roi, shape)
    return inspector.inspect(frame, roi=masks[shape], heatmap=options.heatmaps)


def _described(inspection: Inspection, rule: ProductRule) -> dict[str, Any]:
    return {
        "decision": inspection.decision,
        "score": inspection.score,
        "threshold": inspection.threshold,
        "patches": len(inspection.phi),
        "defective_patches": int(inspection.defective.sum()),
        "region": highest_region(inspection, rule),
        "total_ms": round(inspection.times_ms["total"], 3),
    }


def highest_region(inspection: Inspection, rule: ProductRule) -> str | None:
    """Region of the highest patch, where there are several."""
    if len(inspection.region_names) == 1:
        return None
    highest = int(np.argmax(np.nan_to_num(rule.deciding(inspection), nan=np.inf)))
    return inspection.region_names[inspection.regions[highest]]


def picture_style(bundle: Bundle, top: float | None = None) -> dict[str, Any]:
    """What all pictures of a bundle share, for `picture`; `top` as `InferOptions.heatmap_top`."""
    from grd_edge.report.overlay import scale_of_bundle

    scale = scale_of_bundle(bundle) | ({} if top is None else {"top": top})
    return {"patch_px": (bundle.grid.patch_h, bundle.grid.patch_w), **scale}


def picture(
    output: Path, frame: np.ndarray, inspection: Inspection, file: Path, rule: ProductRule, style: dict[str, Any]
) -> str:
    """Name of the picture, written below the output folder. Images of the same name in other folders have others."""
    from grd_edge.report.overlay import write_overlay

    digits = sha256_hex(os.fsencode(os.path.abspath(file)))[:8]
    name = f"{HEATMAPS}/{file.stem[:80]}-{digits}.png"
    write_overlay(
        output / name,
        frame,
        inspection,
        name=path_text(file),
        deciding=rule.deciding(inspection),
        **style,
    )
    return name


class _Completing(Groups):
    """Products and runs, decided when their last image was inspected."""

    def __init__(self, files: Sequence[Path], options: InferOptions, rule: ProductRule) -> None:
        super().__init__(files, options.product_by, options.run_by)
        self.rule = rule
        self.left, self.left_in_run = self.frames.copy(), self.products.copy()
        self.seen: dict[str, list[Inspection | None]] = {}
        self.decided: dict[str, list[str]] = {}

    def completed(self, index: int, inspection: Inspection | None) -> Iterator[dict[str, Any]]:
        """Rows of the product, and of the run, whose last image this is."""
        product = self.product_of[index]
        self.seen.setdefault(product, []).append(inspection)
        self.left[product] -= 1
        if self.left[product]:
            return
        result = self.rule.product(self.seen.pop(product))
        run = self.run_of.get(product)
        row = dict.fromkeys(COLUMNS)
        if self.by_product:
            yield {
                **row,
                "level": "product",
                "name": product,
                "decision": result.decision,
                "score": result.score,
                "threshold": result.threshold,
                "patches": result.patches,
                "defective_patches": result.defective_patches,
                "product": product,
                "run": run,
            }
        if run is None:
            return
        self.decided.setdefault(run, []).append(result.decision)
        self.left_in_run[run] -= 1
        if not self.left_in_run[run]:
            yield {**row, "level": "run", "name": run, "decision": self.rule.run(self.decided.pop(run)), "run": run}
