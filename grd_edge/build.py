"""Checkpoint to bundle, and FP32 model to INT8: the steps that make a model ready for the line.

Source: docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from grd_edge import bundle as bundles
from grd_edge.bundle import Bundle
from grd_edge.checkpoint import Checkpoint
from grd_edge.data.dataset import (
    Dataset,
)
from grd_edge.data.frames import grid_from_config
from grd_edge.data.images import file_sha256, read_image, read_mask
from grd_edge.engine.onnxruntime import reconstruction_difference
from grd_edge.errors import CheckpointError
from grd_edge.export import check_reconstruction, onnx_from_checkpoint
from grd_edge.files import check_parent, sha256_hex
from grd_edge.graph import forms
from grd_edge.heads import RECONSTRUCTION, scores_from_maps
from grd_edge.patches import PatchGrid, prepare_frame
from grd_edge.precision import DEFAULT_BUDGET, Budget, Choice, Request, only_fp32
from grd_edge.quantize import Style, qdq_from_onnx
from grd_edge.ranges import RangeTable, check_fresh
from grd_edge.recalibrate import recalibrated_bundle
from grd_edge.recipes import DEFAULT_RECIPE
from grd_edge.regions import pgm_from_mask
from grd_edge.runtime import Inspector
from grd_edge.search import choice_of_checkpoint
from grd_edge.watch import SILENT, Watcher

TARGETS = ("cpu",)
STYLE_FORMS = {"openvino": "transposed+blocked", "onnxruntime": "conv2x2"}


def bundle_from_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    *,
    name: str | None = None,
    roi: np.ndarray | None = None,
    choose: Callable[[bytes], Choice] | None = None,
    finish: Callable[[Path], object] = lambda folder: None,
) -> Bundle:
    """Exports the model and writes a `cpu` bundle; the fp32 engine is checked against torch.

    Args:
        roi: (H, W) mask of interest of every frame, nonzero = of interest; it is sealed with the model.
        choose: serialized FP32 model -> the precision that ships, such as of `search.choice_from_samples`; None: fp32.
        finish: called with the checked bundle before it takes its place, such as to fit its thresholds; where it
            raises, an older bundle at `path` stays as it was.

    Raises:
        CheckpointError: a fine-tuned checkpoint, whose FP32 form is not what was trained.
        CheckFailedError: the native engine does not reproduce torch; an older bundle at `path` stays as it was.
        InputError, BundleError, EngineError: see `write_bundle` and `Inspector`.
    """
    path, config = Path(path), checkpoint.config
    if "qat" in checkpoint.provenance:
        raise CheckpointError(
            "the checkpoint was fine-tuned for INT8 and its FP32 form is no reference; build from the checkpoint that "
            "it was made from, with --qat and this one"
        )
    check_parent(path)
    grid = grid_from_config(config)
    model = onnx_from_checkpoint(checkpoint)
    choice = choose(model) if choose else only_fp32(bundles.MODEL, "fp32 is the only precision that was built")
    manifest = {
        "name": name or path.stem,
        "head": checkpoint.head,
        "geometry": geometry_of(grid, config.geometry.scale_px, config.model.channels),
        "score": config.score.model_dump(mode="json"),
        "provenance": {"config": config.to_json(), "training": checkpoint.provenance},
    }

    def check(folder: Path) -> None:
        _check_engine(folder, checkpoint)
        finish(folder)

    return write_chosen(path, manifest, model, choice, roi=roi, check=check)


def geometry_of(grid: PatchGrid, scale_px: int | None, channels: int) -> dict[str, Any]:
    """`geometry` of bundle.json."""
    return {
        "scale_px": scale_px,
        "patch_h": grid.patch_h,
        "patch_w": grid.patch_w,
        "stride_y": grid.stride_y,
        "stride_x": grid.stride_x,
        "channels": channels,
        "padding": grid.padding,
    }


def write_chosen(
    path: Path,
    manifest: dict[str, Any],
    model: bytes,
    choice: Choice,
    *,
    roi: np.ndarray | None,
    check: Callable[[Path], None],
) -> Bundle:
    """Writes a bundle of a model, what was chosen for it, and its mask of interest.

    Args:
        manifest: as of `write_bundle`, less `precision`, `engines` and `roi`.
        model: serialized, FP32.

    Raises:
        As `write_bundle`.
    """
    manifest = {**manifest, "precision": choice.precision, "engines": choice.engines}
    files = {bundles.MODEL: model, **choice.files}
    if roi is not None:
        manifest["roi"] = bundles.ROI
        files[bundles.ROI] = pgm_from_mask(roi)
    return bundles.write_bundle(path, manifest, files, check=check)


def bundle_from_dataset(
    checkpoint: Checkpoint,
    path: Path,
    dataset: Dataset,
    *,
    name: str | None = None,
    alpha: float | None = None,
    student: Checkpoint | None = None,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    recipe: str | Path = DEFAULT_RECIPE,
    watch: Watcher = SILENT,
    on_calibrated: Callable[[int], None] | None = None,
) -> Bundle:
    """As `bundle_from_checkpoint`, with what the data decide that the model was trained on: the precision that ships,
    the mask of interest, regions and thresholds.

    Args:
        alpha: false-reject rate per product; None: the checkpoint's.
        student, request, budget, recipe: as in `choice_of_checkpoint`.
        watch: is told of the search for the precision.
        on_calibrated: called with how many calibration images were scored.

    Raises:
        As `bundle_from_checkpoint`, `choice_of_checkpoint` and `recalibrated_bundle`.
    """
    decision = checkpoint.config.decision
    return bundle_from_checkpoint(
        checkpoint,
        path,
        name=name,
        roi=roi_of_dataset(dataset),
        choose=lambda model: choice_of_checkpoint(
            checkpoint,
            dataset.train,
            model,
            bundles.MODEL,
            student=student,
            request=request,
            budget=budget,
            recipe=recipe,
            watch=watch,
        ),
        finish=lambda folder: recalibrated_bundle(
            folder,
            dataset.calibration,
            alpha=decision.alpha if alpha is None else alpha,
            k=decision.k,
            run_agreement=decision.run_agreement,
            regions=dataset.regions,
            on_progress=on_calibrated,
        ),
    )


class Int8Model(NamedTuple):
    """A serialized INT8 model, and the largest and mean difference of its x_hat to FP32 on random patches."""

    model: bytes
    max_difference: float
    mean_difference: float


def int8_from_onnx(model: bytes, table: RangeTable, *, style: Style, keep: Collection[str] = ()) -> Int8Model:
    """As `qdq_from_onnx`, in the form that its engine runs fastest (docs/design/precision.md), and run by ONNX Runtime
    beside the FP32 model before it is returned.

    The patches are seeded noise: the differences tell that the model computes, not how well it decides.

    Raises:
        InputError: see `qdq_from_onnx`.
        EngineError: ONNX Runtime refuses the model.
        CheckFailedError: a reconstruction is not finite.
    """
    check_fresh(table, sha256_hex(model))  # before a file that may be no model is parsed
    form = STYLE_FORMS.get(style)
    if form not in forms(onnx.load_from_string(model)):
        form = None
    data = qdq_from_onnx(model, table, style=style, keep=keep, form=form)
    return Int8Model(data, *reconstruction_difference(data, model, f"the INT8 model in style {style!r}"))


def roi_of_dataset(dataset: Dataset) -> np.ndarray | None:
    """The mask of interest that all calibration images of a dataset share, (H, W) bool; None: no mask, or several.

    The thresholds hold for it; what training and test images have does not matter.

    Raises:
        InputError: the mask cannot be read, or is of another size than the images.
    """
    masks = {sample.roi for sample in dataset.calibration}
    if not masks or None in masks or len({file_sha256(mask) for mask in masks}) > 1:
        return None
    return read_mask(dataset.calibration[0].roi, read_image(dataset.calibration[0].path).shape[:2])


def _check_engine(folder: Path, checkpoint: Checkpoint) -> None:
    """One random frame through the native fp32 engine and through torch."""
    from grd_edge.engine.torch import TorchInspector  # here, since only the check needs the reference

    config = checkpoint.config
    side = config.geometry.scale_px or max(config.model.patch_h, config.model.patch_w)
    shape = (max(side, config.model.patch_h), max(side, config.model.patch_w) + 7, config.model.channels)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rebuilds = checkpoint.head == RECONSTRUCTION
    with Inspector(folder, precision="fp32") as inspector:
        found = inspector.inspect(frame, roi=np.ones(frame.shape[:2], bool), x_hat=rebuilds)  # in place of the bundle's
    reference = TorchInspector(checkpoint)
    expected = reference.inspect(frame, x_hat=rebuilds)
    image = prepare_frame(frame, scale_px=config.geometry.scale_px, channels=config.model.channels)
    check = partial(check_reconstruction, x=reference.grid.cut(image), net=reference.net, what="the native engine")
    if rebuilds:
        check(found.x_hat, expected.x_hat)
    else:
        check(*(np.stack([each.phi, each.phi_local]) for each in (found, expected)), of=_scores_of_maps)


def _scores_of_maps(y: np.ndarray) -> np.ndarray:
    """phi and phi_local, (2, N), of the output of a network that scores patches itself."""
    return np.stack(scores_from_maps(y)[:2])
