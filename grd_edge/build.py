"""Checkpoint to bundle, and thresholds into a bundle: the steps that make a model ready for the line.

Source: docs/bundle.md for the format, docs/method.md, section 8 for the thresholds.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge import bundle as bundles
from grd_edge.bundle import Bundle
from grd_edge.checkpoint import Checkpoint
from grd_edge.data.dataset import Sample
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.errors import CheckFailedError
from grd_edge.evaluate import scored_from_samples
from grd_edge.export import TOLERANCE, onnx_from_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.runtime import Inspector
from grd_edge.thresholds import fit_good_only

TARGETS = ("cpu",)


def bundle_from_checkpoint(checkpoint: Checkpoint, path: Path, *, name: str | None = None) -> Bundle:
    """Exports the model and writes a `cpu` bundle without thresholds; the engine is checked against torch.

    Raises:
        CheckFailedError: the native engine does not reproduce torch; an older bundle at `path` stays as it was.
        InputError, BundleError, EngineError: see `write_bundle` and `Inspector`.
    """
    path, config = Path(path), checkpoint.config
    grid = grid_from_config(config)
    manifest = {
        "name": name or path.stem,
        "head": "reconstruction",
        "geometry": {
            "scale_px": config.geometry.scale_px,
            "patch_h": grid.patch_h,
            "patch_w": grid.patch_w,
            "stride_y": grid.stride_y,
            "stride_x": grid.stride_x,
            "channels": config.model.channels,
            "padding": grid.padding,
        },
        "score": config.score.model_dump(mode="json"),
        "precision": {"chosen": {"cpu": "fp32"}, "tried": [], "why": "fp32 is the only precision that was built"},
        "engines": [
            {
                "target": "cpu",
                "precision": "fp32",
                "backend": "openvino",
                "file": bundles.MODEL,
                "format": "onnx",
                "fingerprint": {},
            }
        ],
        "provenance": {"config": config.to_json(), "training": checkpoint.provenance},
    }
    model = onnx_from_checkpoint(checkpoint)
    return bundles.write_bundle(
        path, manifest, {bundles.MODEL: model}, check=lambda folder: _check_engine(folder, checkpoint)
    )


def _check_engine(folder: Path, checkpoint: Checkpoint) -> None:
    """One random frame through the native engine and through torch."""
    from grd_edge.engine.torch import TorchInspector  # here, since only the check needs the reference

    config = checkpoint.config
    side = config.geometry.scale_px or max(config.model.patch_h, config.model.patch_w)
    shape = (max(side, config.model.patch_h), max(side, config.model.patch_w) + 7, config.model.channels)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Inspector(folder) as inspector:
        found = inspector.inspect(frame, x_hat=True)
    expected = TorchInspector(checkpoint).inspect(frame, x_hat=True)
    worst = float(np.abs(found.x_hat - expected.x_hat).max())
    if not worst <= TOLERANCE:
        raise CheckFailedError(
            f"the native engine differs from torch by {worst:.2e} in x_hat (allowed {TOLERANCE:.0e}); the bundle is "
            "not written, please report the profile and the machine"
        )


def recalibrated_bundle(
    path: Path,
    samples: Sequence[Sample],
    *,
    alpha: float = 0.01,
    k: int = 1,
    run_agreement: float = 0.7,
    on_progress: Callable[[int], None] | None = None,
) -> Bundle:
    """Fits thresholds on good images with the engine that ships, and puts them into the bundle.

    Args:
        samples: good images that were used neither for training nor for testing.
        alpha: false-reject rate per product that is asked for.

    Raises:
        InputError: no images, or scores that cannot be used.
    """
    bundle = bundles.read_bundle(path)
    decides = bundle.manifest["score"]["decides"]
    with Inspector(path) as inspector:
        scored = scored_from_samples(inspector, samples, on_progress=on_progress)
        version = inspector.engine_version
    patch_scores = scored.patch_scores[0 if decides == "phi" else 1]
    fit = fit_good_only(patch_scores, alpha=alpha, k=k)
    details: dict[str, Any] = {
        **fit.to_json(),
        "engine": {"target": "cpu", "precision": bundle.manifest["precision"]["chosen"]["cpu"], "version": version},
        "images_sha256": sha256_hex("\n".join(sorted(sample.sha256 for sample in samples)).encode()),
        "machine": platform.machine(),
        "fitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    decision = {
        "regions": [{"name": "frame", "threshold": fit.thresholds[0]}],
        "k": k,
        "run_agreement": run_agreement,
        "fit": details,
    }
    return bundles.write_decision(path, decision)


def calibration_patches(checkpoint: Checkpoint, samples: Sequence[Sample]):
    """Patches (N, C, patch_h, patch_w) of each sample, as the network sees them."""
    grid = grid_from_config(checkpoint.config)
    return (grid.cut(read_frame(sample, checkpoint.config)) for sample in samples)
