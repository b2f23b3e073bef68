"""The engine of the native library on single patches: how a model is measured before it is in a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grd_edge import bundle as bundles
from grd_edge.config import Config
from grd_edge.runtime import Inspector

MODEL = "models/model.onnx"


class PatchScores(NamedTuple):
    """phi and phi_local, (N,) float32 each, and the one that decides."""

    phi: np.ndarray
    phi_local: np.ndarray
    deciding: np.ndarray


class NativeEngine:
    """A model as the line runs it: same backend, kernels and options. A context manager.

    Args:
        model: serialized single-file ONNX model x -> x_hat.
        precision: what the backend is asked for: `fp32`, `bf16`, `int8` or `int8-bf16`.
        config: shape of the patches and what their score is.
        threads: of the engine; 0: all cores.

    Raises:
        EngineError: the backend refuses the model or the precision.
    """

    BATCH = 8

    def __init__(self, model: bytes, precision: str, config: Config, *, threads: int = 0) -> None:
        self._decides = config.score.decides
        shape = config.model
        manifest = {
            "name": precision,
            "head": config.method.head,
            # Patches stand side by side in a frame, and nothing is scaled.
            "geometry": {
                "scale_px": None,
                "patch_h": shape.patch_h,
                "patch_w": shape.patch_w,
                "stride_y": shape.patch_h,
                "stride_x": shape.patch_w,
                "channels": shape.channels,
                "padding": "error",
            },
            "score": config.score.model_dump(mode="json"),
            "precision": {"chosen": {"cpu": precision}, "tried": [], "why": "it is measured"},
            "engines": [engine_entry("cpu", precision, MODEL)],
            "provenance": {},
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "measured.grdb"
            bundles.write_bundle(path, manifest, {MODEL: model})
            self.inspector = Inspector(path, threads=threads, batch_limit=self.BATCH)

    def __enter__(self) -> NativeEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.inspector.close()

    @property
    def version(self) -> str:
        return self.inspector.engine_version

    def scores(self, patches: np.ndarray) -> PatchScores:
        """Scores of patches (N, patch_h, patch_w, C) uint8."""
        found = []
        for start in range(0, len(patches), self.BATCH):
            found.append(self.inspector.inspect(frame_of(patches[start : start + self.BATCH])))
        phi, phi_local = (np.concatenate([getattr(each, name) for each in found]) for name in ("phi", "phi_local"))
        return PatchScores(phi, phi_local, phi if self._decides == "phi" else phi_local)

    def run_of(self, patches: np.ndarray) -> Callable[[], object]:
        """One run on patches: cut, inferred and scored as on the line."""
        frame = frame_of(patches)
        return lambda: self.inspector.inspect(frame)


def frame_of(patches: np.ndarray) -> np.ndarray:
    """Patches (N, h, w, C) side by side: a frame (h, N w) or (h, N w, 3)."""
    return np.concatenate(list(patches), axis=1).squeeze(-1) if patches.shape[-1] == 1 else np.concatenate(patches, 1)


def engine_entry(target: str, precision: str, file: str, fingerprint: dict[str, str] | None = None) -> dict:
    """An entry of `engines` of a bundle whose backend is OpenVINO."""
    return {
        "target": target,
        "precision": precision,
        "backend": "openvino",
        "file": file,
        "format": "onnx",
        "fingerprint": fingerprint or {},
    }
