"""The best alternative that we know how to assemble: OpenVINO INT8 through NNCF, cut and scored by OpenCV."""

from __future__ import annotations

import logging
from typing import NamedTuple

import cv2
import numpy as np
import openvino
from grd_edge.bench.baselines import opencv_separable
from grd_edge.bench.cuts import opencv_patches

from grd_edge.bundle import Bundle
from grd_edge.decide import frame_decision
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.patches import working_size

WITHOUT_NNCF = "NNCF is not installed, so its INT8 network is not raced; install it with: pip install nncf"


class Scored(NamedTuple):
    """A decision, and what it was made of: patches, their reconstructions and scores."""

    decision: str
    x: np.ndarray
    x_hat: np.ndarray
    phi: np.ndarray
    phi_local: np.ndarray


def nncf_engine(fp32: bytes, patches: np.ndarray) -> OpenVinoEngine | str:
    """The network in INT8 by NNCF, all defaults; or why there is none.

    Args:
        fp32: serialized ONNX.
        patches: to calibrate with, (N, C, patch_h, patch_w) float32.
    """
    try:
        import nncf
    except ImportError:
        return WITHOUT_NNCF
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino.Core().read_model(fp32)
    samples = nncf.Dataset([each[None] for each in patches])
    return OpenVinoEngine(nncf.quantize(model, samples, subset_size=len(patches)), "int8")


class AssembledInspector:
    """Frame in, decision out, as `grd_edge.runtime.Inspector`: uint8 frames, the whole of them, one threshold at most.

    Args:
        bundle: whose geometry, threshold and k it goes by.
        engine: what reconstructs.
    """

    def __init__(self, bundle: Bundle, engine: OpenVinoEngine) -> None:
        geometry = bundle.manifest["geometry"]
        self._engine, self._grid, self._channels = engine, bundle.grid, geometry["channels"]
        self._scale_px, self._decides = geometry["scale_px"], bundle.manifest["score"]["decides"]
        self._thresholds, self._k = bundle.thresholds or None, bundle.decision["k"] if bundle.decision else 1

    def patches(self, frame: np.ndarray) -> np.ndarray:
        """(N, C, patch_h, patch_w) float32; scaled frames are rounded to uint8, as OpenCV does it."""
        h, w = working_size(*frame.shape[:2], self._scale_px)
        if frame.shape[:2] != (h, w):
            frame = cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA)
        return opencv_patches(frame, self._grid.positions(h, w), self._grid, self._channels)

    def inspect(self, frame: np.ndarray) -> Scored:
        x = self.patches(frame)
        x_hat = self._engine.reconstruct(x)
        phi, phi_local, _ = opencv_separable(x, x_hat)
        deciding = phi if self._decides == "phi" else phi_local
        decided = frame_decision(deciding, self._thresholds, np.zeros(len(x), np.int32), self._k)
        return Scored(decided.decision, x, x_hat, phi, phi_local)
