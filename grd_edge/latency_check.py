"""What is checked before anything is timed, and the baselines that an engine is timed beside.

Source: docs/bench.md, section "What is checked".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from grd_edge.bundle import MODEL, Bundle
from grd_edge.decide import frame_decision
from grd_edge.errors import CheckFailedError, GrdError, InputError, require
from grd_edge.heads import SCORE_MAP, scores_from_maps
from grd_edge.patches import prepare_frame
from grd_edge.regions import Selection, selected_patches
from grd_edge.runtime import Inspection
from grd_edge.score import LOCAL_WINDOW_PX, WINDOW_PX, PatchScores, score_patches_f64
from grd_edge.scored import FrameInspector

CHECKED_FRAMES = 4
SCORE_TOLERANCE = 1e-5  # the contract's 1e-6, and patches that differ by rounding
FP32_TOLERANCE = 1e-3  # of x_hat, and of a graph's own scores over the largest of them; networks amplify rounding
# Mean |x_hat - FP32|, three times what an INT8 engine showed: 0.0013, 0.012 and 0.017 on flat, random and textured
# frames (the demo's bundle, EPYC Zen 4, 2026-11-26). It tells another network, not what INT8 costs: `eval` does.
REDUCED_TOLERANCE = 0.05


@dataclass(frozen=True)
class Baseline:
    """What an engine is timed beside.

    Attributes:
        name: `torch` or `onnxruntime`.
        scoring: how it scores, for people.
    """

    name: str
    scoring: str
    inspector: FrameInspector


def baseline_of(bundle: Bundle, name: str, *, threads: int = 0) -> Baseline | None:
    """The baseline of that name, to be closed, on the bundle's FP32 model; None for `none`.

    `torch` is eager PyTorch with the fastest scoring that was found in it; `onnxruntime` is ONNX Runtime with OpenCV's
    separable filters, as one would put them together without grd-edge; a graph that scores patches itself runs alone.

    Raises:
        MissingExtraError: it is not installed.
        InputError: no such baseline, or the bundle scores in a way that it does not know.
    """
    if name == "none":
        return None
    if name not in ("torch", "onnxruntime"):
        raise InputError(f"there is no baseline {name!r}; choose torch, onnxruntime or none")
    way_out = f"to time the bundle beside {name}, which --against none leaves out,"
    if name == "torch":
        for package in ("torch", "onnx", "onnxruntime", "pydantic", "yaml"):
            require(package, extra="train", purpose=way_out)
        from grd_edge.engine.inspector import scores_in_torch

        scoring = "banded matrix products in PyTorch, FP32"
        how = {"score": partial(scores_in_torch, filters="float32")}
    elif bundle.head == SCORE_MAP:
        require("onnxruntime", extra="build", purpose=way_out)
        scoring, how = "in the graph", {}
    else:
        for package in ("onnxruntime", "cv2"):
            require(package, extra="build", purpose=way_out)
        geometry, score = bundle.manifest["geometry"], bundle.manifest["score"]
        known = {"window": "gaussian", "local_window_px": LOCAL_WINDOW_PX}
        least = LOCAL_WINDOW_PX + WINDOW_PX - 1
        sides = min(geometry["patch_h"], geometry["patch_w"])
        if bundle.roi is not None or geometry["channels"] != 1 or sides < least or known.items() - score.items():
            raise InputError(
                f"the baseline onnxruntime scores grey patches of {least} px and more, with the default windows and "
                f"without a mask of interest, which {bundle.path} does not; choose --against torch or none"
            )
        scoring, how = "OpenCV's separable filters", {"score": _scores_in_opencv}
    from grd_edge.engine.against import Backend, reference_inspector

    return Baseline(name, scoring, reference_inspector(bundle, Backend(name), threads=threads, **how))


def check_frames(
    engine: FrameInspector, bundle: Bundle, frames: Sequence[np.ndarray], precision: str, baseline: Baseline | None
) -> dict[str, Any]:
    """Holds what is timed against the definitions, on some of the frames.

    Both score what they reconstruct as `score_patches_f64` does, decide as the definition does, and the engine
    reconstructs as the FP32 model does: in the baseline, else in OpenVINO. Of a graph that scores patches itself, the
    engine's scores and map are those of that model.

    Returns:
        `frames` checked, `reference` that ran the FP32 model (null: there was none), and the largest differences, of
        `scores` and of what the network yields.

    Raises:
        CheckFailedError: something differs; nothing is timed then.
    """
    version, reconstruct = (baseline.inspector.engine_version, None) if baseline else _reconstruction(bundle)
    names = {"engine": engine} | ({baseline.name: baseline.inspector} if baseline else {})
    worst = {"scores": 0.0, "x_hat_max": 0.0, "x_hat_mean": 0.0}
    chosen = np.linspace(0, len(frames) - 1, min(CHECKED_FRAMES, len(frames))).astype(int)
    for frame in (frames[index] for index in chosen):
        if bundle.head == SCORE_MAP:
            for key, value in _checked_maps(engine, bundle, frame, precision, version, reconstruct, baseline).items():
                worst[key] = max(worst[key], value)
            continue
        found = {name: inspector.inspect(frame, x_hat=True) for name, inspector in names.items()}
        for name, inspection in found.items():
            x, difference = _checked_scores(name, inspection, bundle, frame)
            worst["scores"] = max(worst["scores"], difference)
        expected = found[baseline.name].x_hat if baseline else reconstruct and reconstruct(x)
        if expected is not None:
            off = np.abs(found["engine"].x_hat - expected)
            worst["x_hat_max"] = max(worst["x_hat_max"], float(off.max()))
            worst["x_hat_mean"] = max(worst["x_hat_mean"], float(off.mean()))
            exact = precision == "fp32"
            value, allowed = (off.max(), FP32_TOLERANCE) if exact else (off.mean(), REDUCED_TOLERANCE)
            if not value <= allowed:
                raise CheckFailedError(
                    f"the reconstructions of the {precision} engine differ from {version} by {value:.2g} "
                    f"{'at most' if exact else 'on average'} (allowed {allowed:g}); a wrong result is not timed, "
                    "build the bundle again"
                )
    return {"frames": len(chosen), "reference": version, **worst}


def _reconstruction(bundle: Bundle) -> tuple[str | None, Callable[[np.ndarray], np.ndarray] | None]:
    """What reconstructs in FP32, and its version; None where there is nothing: no model, or no OpenVINO in Python."""
    if MODEL not in bundle.files:
        return None, None
    try:
        from grd_edge.engine.openvino import OpenVinoEngine

        engine = OpenVinoEngine(bundle.files[MODEL], "fp32")
    except (ImportError, GrdError):
        return None, None
    return f"{engine.version}, fp32", engine.reconstruct


@dataclass(frozen=True)
class _Cut:
    """A frame as it is inspected by definition: the scaled image, its inspected patches x and where they lie."""

    image: np.ndarray
    chosen: Selection
    x: np.ndarray
    positions: np.ndarray


def _cut(bundle: Bundle, frame: np.ndarray) -> _Cut:
    geometry = bundle.manifest["geometry"]
    image = prepare_frame(frame, scale_px=geometry["scale_px"], channels=geometry["channels"])
    chosen = selected_patches(bundle.grid, frame.shape[:2], geometry["scale_px"], bundle.regions, bundle.roi)
    positions = bundle.grid.positions(*image.shape[1:])[chosen.index]
    return _Cut(image, chosen, bundle.grid.cut(image)[chosen.index], positions)


def _checked_maps(
    engine: FrameInspector,
    bundle: Bundle,
    frame: np.ndarray,
    precision: str,
    version: str | None,
    network: Callable[[np.ndarray], np.ndarray] | None,
    baseline: Baseline | None,
) -> dict[str, float]:
    """How far scores and map are from those that the FP32 model yields in `baseline`, else in `network`."""
    cut = _cut(bundle, frame)
    found = {"engine": engine.inspect(frame, heatmap=True)}
    if baseline:
        found[baseline.name] = baseline.inspector.inspect(frame, x_hat=True)
    for name, inspection in found.items():
        _check_patches(name, inspection, cut)
        _check_decision(name, inspection, bundle, cut)
    yielded = found[baseline.name].x_hat if baseline else network and network(cut.x)
    if yielded is None:
        return {}
    found = found["engine"]
    expected = scores_from_maps(yielded, cut.chosen.masks)
    heat = bundle.grid.stitch(expected.heatmap, *cut.image.shape[1:], positions=cut.positions)[0]
    scores = np.abs([found.phi - expected.phi, found.phi_local - expected.phi_local])
    maps = np.abs(found.heatmap - heat)
    exact, largest = precision == "fp32", max(1.0, float(np.abs(expected.phi_local).max()))
    # A lower precision is chosen by the score that decides; the other one may be coarser.
    deciding = scores[int(bundle.manifest["score"]["decides"] != "phi")]
    off = [scores.max(), maps.max()] if exact else [deciding.mean(), maps.mean()]
    allowed = (
        FP32_TOLERANCE * largest if exact else max(REDUCED_TOLERANCE * largest, _known_difference(bundle, precision))
    )
    if not np.max(off) <= allowed:
        raise CheckFailedError(
            f"the {precision} engine's scores differ from {version} by {off[0]:.2g} and its map by {off[1]:.2g} "
            f"{'at most' if exact else 'on average'} (allowed {allowed:.2g}); a wrong result is not timed, "
            "build the bundle again"
        )
    return {"scores": float(scores.max()), "x_hat_max": float(maps.max()), "x_hat_mean": float(maps.mean())}


def _known_difference(bundle: Bundle, precision: str) -> float:
    """The largest change of the deciding score that was measured when a precision was chosen; 0: none was."""
    for each in bundle.manifest["precision"]["tried"]:
        if each["precision"] == precision and not each["lost"] and "accuracy" in each:
            return each["accuracy"]["phi_max_abs_diff"]
    return 0.0


def _checked_scores(name: str, found: Inspection, bundle: Bundle, frame: np.ndarray) -> tuple[np.ndarray, float]:
    """The patches of a frame, and how far scores are from float64 on the reconstructions they were made of."""
    how, cut = bundle.manifest["score"], _cut(bundle, frame)
    _check_patches(name, found, cut)
    windows = {key: how[key] for key in ("window", "local_window_px")}
    exact = score_patches_f64(cut.x, found.x_hat, roi=cut.chosen.masks, **windows)
    off = np.abs([found.phi - exact.phi, found.phi_local - exact.phi_local]).max()
    if not off <= SCORE_TOLERANCE:
        raise CheckFailedError(
            f"{name} scores {off:.2g} off the float64 definition (allowed {SCORE_TOLERANCE:g}); a wrong "
            "result is not timed, please report the machine"
        )
    _check_decision(name, found, bundle, cut)
    return cut.x, float(off)


def _check_patches(name: str, found: Inspection, cut: _Cut) -> None:
    if not np.array_equal(found.positions, cut.positions):
        raise CheckFailedError(f"{name} inspects other patches than the definition; a wrong result is not timed")


def _check_decision(name: str, found: Inspection, bundle: Bundle, cut: _Cut) -> None:
    deciding = found.phi if bundle.manifest["score"]["decides"] == "phi" else found.phi_local
    k = bundle.decision["k"] if bundle.decision else 1
    decided = frame_decision(deciding, bundle.thresholds or None, cut.chosen.regions, k)
    if decided.decision != found.decision:
        raise CheckFailedError(
            f"{name} decides {found.decision} where its scores make it {decided.decision}; a wrong result is not timed"
        )


def _scores_in_opencv(x: np.ndarray, x_hat: np.ndarray, **how: Any) -> PatchScores:
    from grd_edge.bench.baselines import opencv_separable

    return PatchScores(*opencv_separable(x, x_hat))
