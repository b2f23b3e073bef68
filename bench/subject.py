"""The bundle that the suites measure, the given one or one with random weights, and what it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from grd_edge.bench.baselines import compiled
from torch.utils.flop_counter import FlopCounterMode

from grd_edge.bundle import MODEL, Bundle, read_bundle
from grd_edge.config import Config
from grd_edge.engine.against import Backend, reference_inspector
from grd_edge.engine.inspector import ReferenceInspector, decision_of_bundle, geometry_of_bundle, scores_in_torch
from grd_edge.engine.torch import TorchEngine, network_from_onnx
from grd_edge.latency_check import Baseline, baseline_of, check_frames
from grd_edge.score import score_patches_f64
from grd_edge.scored import FrameInspector
from grd_edge.shipped import config_of
from grd_edge.targets import CPU

# PyTorch; ONNX Runtime, scored by OpenCV; OpenVINO, scored in plain numpy.
BASELINES = ("torch-eager", "onnxruntime", "openvino-numpy")
SETTLE_MS = 20  # as grd_edge.latency; bench/timer.py says why


@dataclass(frozen=True)
class Subject:
    """A bundle as the suites measure it."""

    path: Path

    @cached_property
    def bundle(self) -> Bundle:
        return read_bundle(self.path)

    @cached_property
    def config(self) -> Config:
        return config_of(self.bundle)

    @property
    def precision(self) -> str:
        """The one that ships on the CPU."""
        return self.bundle.manifest["precision"]["chosen"][CPU]

    @property
    def fp32(self) -> bytes:
        return self.bundle.files[MODEL]

    def model_of(self, precision: str) -> bytes:
        """The engine's file."""
        engines = self.bundle.manifest["engines"]
        (file,) = (each["file"] for each in engines if (each["target"], each["precision"]) == (CPU, precision))
        return self.bundle.files[file]

    @cached_property
    def network(self) -> torch.nn.Module:
        return network_from_onnx(self.fp32, self.config.model)

    @cached_property
    def gflop(self) -> float:
        """10^9 multiplications and additions of the network on one patch."""
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self.network(torch.zeros(self.shape(1)))
        return counter.get_total_flops() / 1e9

    def shape(self, patches: int) -> tuple[int, int, int, int]:
        """N, C, patch_h, patch_w."""
        model = self.config.model
        return patches, model.channels, model.patch_h, model.patch_w

    def compiled(self, patches: int) -> TorchEngine | str:
        """The network under `torch.compile` for so many patches at a time; or why it is not."""
        run = compiled(self.network, torch.zeros(self.shape(patches)))
        return run if isinstance(run, str) else TorchEngine(run)

    def reference(self, engine: TorchEngine) -> ReferenceInspector:
        """Frame in, decision out, in PyTorch, with the fastest scoring that was found in it."""
        known = geometry_of_bundle(self.bundle) | decision_of_bundle(self.bundle)
        score = partial(scores_in_torch, filters="float32")
        return ReferenceInspector(engine.reconstruct, engine.version, **known, score=score)

    def baseline(self, row: str) -> FrameInspector:
        """Frame in, decision out, in FP32, to be closed: one of `BASELINES`."""
        if row == "torch-eager":
            return self.reference(TorchEngine(self.network))
        if row == "onnxruntime":
            return baseline_of(self.bundle, row).inspector
        return reference_inspector(self.bundle, Backend("openvino"), score=score_patches_f64)

    def check(self, inspectors: dict[str, FrameInspector], frames: Sequence[np.ndarray], precision: str) -> None:
        """Holds inspectors against the definitions and eager PyTorch: those named `native…` in a precision, all others
        in FP32.

        Raises:
            CheckFailedError: see `check_frames`.
        """
        reference = Baseline("torch", "", self.reference(TorchEngine(self.network)))
        for row, inspector in inspectors.items():
            its = precision if row.startswith("native") else "fp32"
            check_frames(inspector, self.bundle, frames, its, reference)
