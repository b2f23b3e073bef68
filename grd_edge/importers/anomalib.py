"""ONNX exports of anomalib 2.x -> bundles, checked against the export itself.

Source: docs/anomalib.md.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from torch.nn import functional

from grd_edge import bundle as bundles
from grd_edge.build import geometry_of, roi_of_dataset, write_chosen
from grd_edge.bundle import Bundle
from grd_edge.bundle_schema import decision_regions
from grd_edge.calibrate import session_of
from grd_edge.config import Config, DecisionConfig, ScoreConfig, load_config
from grd_edge.data.check import check_dataset
from grd_edge.data.dataset import Dataset
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.errors import CheckFailedError, InputError
from grd_edge.files import check_parent, sha256_hex
from grd_edge.heads import SCORE_MAP, scores_from_maps
from grd_edge.importers.anomalib_export import MAP, SCORE, SENSITIVITIES, SENSITIVITY, Export, read_export, unclipped
from grd_edge.importers.anomalib_graph import NORMALIZATIONS, SMOOTHED_PX, TOLERANCE, packed
from grd_edge.patches import PatchGrid, default_stride, prepare_frame
from grd_edge.precision import DEFAULT_BUDGET, Budget, Request, only_fp32
from grd_edge.recalibrate import recalibrated_bundle
from grd_edge.recipes import DEFAULT_RECIPE
from grd_edge.regions import WHOLE_FRAME
from grd_edge.runtime import Inspector
from grd_edge.search import calibrated_sources, choice_from_samples
from grd_edge.selection import spread
from grd_edge.watch import SILENT, Watcher

FORMAT = "anomalib 2.x ONNX"
METADATA = "metadata.json"
_CHECKED = 3  # patches
_RECALIBRATE = "fit thresholds of known false-reject rate with: grd-edge recalibrate"


class Imported(NamedTuple):
    """A bundle, and what the user should know of it, a sentence each."""

    bundle: Bundle
    notes: tuple[str, ...]


def bundle_from_anomalib(
    source: Path,
    path: Path,
    *,
    name: str | None = None,
    metadata: Path | None = None,
    patch: tuple[int, int] | None = None,
    normalize: str | None = None,
    grey: bool = False,
    scale_px: int | Literal["native"] | None = None,
    padding: Literal["error", "reflect"] = "error",
    dataset: Dataset | None = None,
    alpha: float | None = None,
    request: Request = "auto",
    budget: Budget = DEFAULT_BUDGET,
    recipe: str | Path = DEFAULT_RECIPE,
    watch: Watcher = SILENT,
    on_calibrated: Callable[[int], None] | None = None,
) -> Imported:
    """Writes a `cpu` bundle of an ONNX export; its fp32 engine is checked against the export in ONNX Runtime.

    Args:
        source: the export.
        path: bundle to write.
        metadata: the export's metadata.json; None: the one beside it, if any.
        patch: (height, width) in px, where the export leaves them open.
        normalize: of NORMALIZATIONS, put in front of a graph that has no normalization of its own.
        grey: frames of one channel, as anomalib takes grey images: repeated in the graph. False: RGB.
        scale_px: shorter side of frames at working scale; None: that of the patch; `native`: frames stay as they are.
        dataset: good images that the model was not trained on: its training split decides the precision, its
            calibration split the thresholds. None: fp32, and anomalib's threshold where it is in the graph.
        alpha, request, budget, recipe, watch, on_calibrated: as in `bundle_from_dataset`.

    Raises:
        InputError: no export that follows the conventions of docs/anomalib.md, or arguments that contradict it.
        CheckFailedError: graph or native engine do not reproduce the export; an older bundle at `path` stays as it was.
        BundleError, EngineError: see `write_bundle`, `choice_from_samples` and `Inspector`.
    """
    source, path = Path(source), Path(path)
    if path.suffix != ".grdb":  # before the minutes that a large model takes
        raise InputError(f"a bundle's name ends in .grdb, found {path.name!r}; call it {path.name}.grdb")
    if normalize not in (None, *NORMALIZATIONS):
        raise InputError(f"there is no normalization {normalize!r}; choose {', '.join(NORMALIZATIONS)}")
    check_parent(path)
    described = _metadata(source, metadata)
    data = _read(source)
    export = read_export(data, source, patch=patch, sensitivities=described["postprocess"] if described else {})
    if export.normalizes and normalize:
        raise InputError(f"{source} normalizes its input itself, and --normalize would do it twice; leave it out")
    model = packed(export, normalize=normalize, grey=grey)
    grid = PatchGrid(*export.patch, *map(default_stride, export.patch), padding)
    scale = min(export.patch) if scale_px is None else None if scale_px == "native" else scale_px
    _check_frames(grid, scale)
    channels = 1 if grey else 3
    if dataset:
        config = _config(grid, scale, channels)
        check_dataset(dataset, config)
    original = onnx.load_from_string(data)
    imported = {
        "format": FORMAT,
        "file": source.name,
        "sha256": sha256_hex(data),
        "producer": f"{original.producer_name} {original.producer_version}".strip(),
        "opset": export.opset,
        "outputs": list(export.outputs),
        "left_out": list(export.left_out),
        "normalize": normalize,
        "grey": grey,
        "sensitivities": export.sensitivities,
        "threshold": export.threshold,
        "metadata": described,
    }
    manifest = {
        "name": name or path.stem,
        "head": SCORE_MAP,
        "geometry": geometry_of(grid, scale, channels),
        "score": ScoreConfig().model_dump(mode="json"),
        "provenance": {"training": {"dataset": "unknown", "seen": [], "imported": imported}},
    }
    reference = _Reference(unclipped(original), export, normalize)
    reference.check(model)
    roi = roi_of_dataset(dataset) if dataset else None
    choice = only_fp32(bundles.MODEL, "fp32 is the only precision that was built")
    if dataset:
        choice = choice_from_samples(
            model,
            bundles.MODEL,
            dataset.train,
            config,
            request=request,
            budget=budget,
            sources_of=calibrated_sources(model, dataset.train, score=config.score, recipe=recipe, watch=watch),
            watch=watch,
        )

    def check(folder: Path) -> None:
        reference.check_engine(folder)
        if dataset:
            recalibrated_bundle(
                folder,
                dataset.calibration,
                alpha=DecisionConfig().alpha if alpha is None else alpha,
                regions=dataset.regions,
                on_progress=on_calibrated,
            )
        elif export.threshold is not None:
            bundles.write_decision(folder, _decision(export.threshold))

    bundle = write_chosen(path, manifest, model, choice, roi=roi, check=check)
    return Imported(bundle, tuple(_notes(export, source, bundle, normalize, dataset)))


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}); give a file that anomalib exported") from error


def _metadata(source: Path, path: Path | None) -> dict[str, Any] | None:
    """What metadata.json says; later exports can have one beside the model."""
    if path is None and not (source.parent / METADATA).exists():
        return None
    path = path or source.parent / METADATA
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as metadata of an export ({error}); name another with --metadata, or remove it"
        ) from error
    post = found.get("postprocess", {}) if isinstance(found, dict) else None
    if not isinstance(post, dict):
        raise InputError(f"{path} is no metadata of an export of anomalib; name another with --metadata, or remove it")
    if "image_threshold" in found:
        raise InputError(
            f"{path} is of anomalib 1.x, which normalizes scores outside of the graph; export the model with 2.x"
        )
    for key in SENSITIVITIES:
        value = post.get(key, SENSITIVITY)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise InputError(f"{path} has postprocess.{key} {value!r}; expected a number from 0 to 1")
    kept = {key: str(found[key]) for key in ("schema_version", "anomalib_version", "model") if key in found}
    return {**kept, "postprocess": {key: post[key] for key in SENSITIVITIES if key in post}}


def _check_frames(grid: PatchGrid, scale: int | None) -> None:
    if scale is not None and scale < min(grid.patch_h, grid.patch_w) and grid.padding == "error":
        raise InputError(
            f"frames whose shorter side is {scale} px are smaller than a patch of {grid.patch_h}x{grid.patch_w} px; "
            "give a larger --scale-px, or --padding reflect"
        )


def _config(grid: PatchGrid, scale: int | None, channels: int) -> Config:
    """Settings that data are checked and precisions are measured with; nothing is trained."""
    if grid.patch_h % 2 or grid.patch_w % 2:
        raise InputError(
            f"a model of patches of {grid.patch_h}x{grid.patch_w} px, an odd size, cannot be imported with --data; "
            "import it without, then run grd-edge recalibrate"
        )
    settings = {"model.patch_h": grid.patch_h, "model.patch_w": grid.patch_w, "model.stages": [1]}
    settings["model.channels"] = channels
    settings |= {"geometry.scale_px": "null" if scale is None else scale, "geometry.padding": grid.padding}
    return load_config(profile="patchcore", overrides=[f"{key}={value}" for key, value in settings.items()])


def _decision(threshold: float) -> dict[str, Any]:
    """anomalib's own: anomalous above the threshold, so that the next float32 is the first defective score."""
    kept = DecisionConfig()
    above = float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
    fit = {
        "method": "imported",
        "from": FORMAT,
        "threshold": threshold,
        "certified": False,
        "regions": list(WHOLE_FRAME.names),
        "roi": "none",
        "grd_edge": packages.version("grd-edge"),
        "fitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {
        **decision_regions(WHOLE_FRAME, (above,)),
        "k": kept.k,
        "run_agreement": kept.run_agreement,
        "fit": fit,
    }


def _notes(export: Export, source: Path, bundle: Bundle, normalize: str | None, dataset: Dataset | None) -> list[str]:
    h, w = export.patch
    scale = bundle.manifest["geometry"]["scale_px"]
    kept = "frames keep their resolution" if scale is None else f"frames are scaled to a shorter side of {scale} px"
    notes = [
        f"anomalib squeezes whole images to {h}x{w} px; here {kept}, their proportions kept, and cut into patches of "
        f"{h}x{w} px, so scores of images that are not of that shape are others"
    ]
    if not (export.normalizes or normalize):
        notes.append(
            f"{source.name} does not normalize its input; if it was trained on normalized images, import it again with "
            "--normalize imagenet"
        )
    if SCORE not in export.outputs:
        window = min(SMOOTHED_PX, h, w)
        notes.append(f"{source.name} has no {SCORE}: the score is the largest {window}x{window} mean of the map")
    if MAP not in export.outputs:
        notes.append(f"{source.name} has no {MAP}: the heatmap is the score, everywhere")
    if export.clipped:
        notes.append(
            f"scores are anomalib's before it clips them to [0, 1]: {', '.join(export.clipped)} beyond still differ"
        )
    if export.left_out:
        notes.append(f"outputs that were left out: {', '.join(export.left_out)}")
    if dataset:
        notes.append("thresholds hold if the model was not trained on the images of --data")
    elif bundle.decision:
        notes.append(
            f"the threshold is anomalib's, {export.threshold:g} of {SCORE}, fitted on whole images; {_RECALIBRATE}"
        )
    else:
        notes.append(f"no threshold was found in the graph, so nothing is decided; {_RECALIBRATE}")
    return notes


# ---------------------------------------------------------------- the export itself, in ONNX Runtime


class _Reference:
    """The export in ONNX Runtime, one image at a time, its scores not clipped."""

    def __init__(self, model: onnx.ModelProto, export: Export, normalize: str | None) -> None:
        self._session = session_of(model)
        self._export, self._normalize = export, normalize
        stored = {tensor.name for tensor in model.graph.initializer}
        self._image = next(
            value.name for value in model.graph.input if value.name not in {*stored, *export.sensitivities}
        )

    def output(self, x: np.ndarray) -> np.ndarray:
        """What a bundle's graph should yield (N, 1, 1 + patch_h, patch_w) for patches x (N, C, patch_h, patch_w)."""
        x = np.broadcast_to(x, (len(x), 3, *x.shape[2:]))
        if self._normalize:
            mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in NORMALIZATIONS[self._normalize])
            x = (x - mean) / std
        constants = {key: np.array(value, np.float32) for key, value in self._export.sensitivities.items()}
        kept = [name for name in (SCORE, MAP) if name in self._export.outputs]
        runs = [self._session.run(kept, {self._image: each[None], **constants}) for each in x]
        found = {name: np.stack([run[i] for run in runs]).astype(np.float32) for i, name in enumerate(kept)}
        h, w = patch = self._export.patch
        found = {name: torch.from_numpy(values) for name, values in found.items()}
        if MAP in found:
            maps = found[MAP].reshape(len(x), 1, *found[MAP].shape[-2:])
            if tuple(maps.shape[2:]) != patch:
                maps = functional.interpolate(maps, size=patch, mode="bilinear", align_corners=False)
            if SCORE not in found:
                found[SCORE] = functional.avg_pool2d(maps, min(SMOOTHED_PX, *patch), stride=1).amax((1, 2, 3))
        score = found[SCORE].reshape(-1, 1, 1, 1)
        return torch.cat([score.expand(-1, 1, 1, w), maps if MAP in found else score.expand(-1, 1, h, w)], 2).numpy()

    def check(self, model: bytes) -> None:
        """Raises CheckFailedError where ONNX Runtime finds other scores or maps in the bundle's graph."""
        engine = OnnxRuntimeEngine(model)
        x = _patches(*engine.patch_shape)
        _compare("the imported graph", engine.reconstruct(x), self.output(x))

    def check_engine(self, folder: Path) -> None:
        """Raises CheckFailedError where the native fp32 engine finds other scores in a frame's patches.

        With a mask of interest, all is of interest here but what padding adds.
        """
        bundle = bundles.read_bundle(folder)
        grid, geometry = bundle.grid, bundle.manifest["geometry"]
        scale, channels, masked = geometry["scale_px"], geometry["channels"], bundle.roi is not None
        side = scale or max(grid.patch_h, grid.patch_w)
        extent = max(side, grid.patch_h), max(side, grid.patch_w) + 7
        frame = np.random.default_rng(0).integers(96, 160, (*extent, channels), np.uint8)
        with Inspector(folder, precision="fp32") as inspector:
            found = inspector.inspect(frame, roi=np.ones(extent, bool) if masked else None)
        image = prepare_frame(frame, scale_px=scale, channels=channels)
        _, h, w = image.shape
        inside = np.ones((1, h, w), bool)
        inside = np.pad(inside, [(0, 0), (0, max(0, grid.patch_h - h)), (0, max(0, grid.patch_w - w))])
        x, inside = grid.cut(image), grid.cut(inside)[:, 0]
        some = spread(len(x), _CHECKED)
        y = self.output(x[some])
        expected = scores_from_maps(y, inside[some] if masked and not inside.all() else None)
        for scores in ("phi", "phi_local"):
            _compare("the native engine", getattr(found, scores)[some], getattr(expected, scores))


def _patches(channels: int, h: int, w: int) -> np.ndarray:
    """Patches (N, channels, h, w) of noise of different contrast."""
    contrast = np.linspace(0.02, 0.5, _CHECKED, dtype=np.float32).reshape(-1, 1, 1, 1)
    return np.float32(0.5) + contrast * (np.random.default_rng(0).random((_CHECKED, channels, h, w), np.float32) - 0.5)


def _compare(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    worst = float(np.abs(found - expected).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not worst <= allowed:
        raise CheckFailedError(
            f"{what} differs from the export in ONNX Runtime by {worst:.2e} (allowed {allowed:.0e}); it is refused, "
            "please report model and anomalib version"
        )
