"""The PyTorch reference: the same frames to the same decisions, in eager FP32.

Source: docs/method.md, sections 5 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from grd_edge.bundle import Bundle
from grd_edge.checkpoint import Checkpoint, first_keys
from grd_edge.config import ModelConfig
from grd_edge.data.frames import grid_from_config
from grd_edge.engine.inspector import ReferenceInspector, decision_of_bundle
from grd_edge.errors import BundleError
from grd_edge.models.generator import Reconstructor, folded
from grd_edge.regions import WHOLE_FRAME, Regions


class TorchEngine:
    """What a network in evaluation mode yields."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net

    @property
    def version(self) -> str:
        return f"PyTorch {torch.__version__}"

    @torch.inference_mode()
    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """The network's output for patches (N, C, patch_h, patch_w) float32."""
        return self.net(torch.from_numpy(x)).numpy()


class TorchInspector(ReferenceInspector):
    """Same interface as `grd_edge.runtime.Inspector`, on the network of a checkpoint.

    Args:
        checkpoint: trained weights and the configuration they belong to.
        threshold, k, regions, roi: as in `ReferenceInspector`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threshold: float | Sequence[float] | None = None,
        k: int = 1,
        regions: Regions = WHOLE_FRAME,
        roi: np.ndarray | None = None,
    ) -> None:
        config = self.config = checkpoint.config
        self.net = checkpoint.network()
        engine = TorchEngine(self.net)
        super().__init__(
            engine.reconstruct,
            engine.version,
            grid=grid_from_config(config),
            scale_px=config.geometry.scale_px,
            channels=config.model.channels,
            **config.score.model_dump(),
            head=checkpoint.head,
            threshold=threshold,
            k=k,
            regions=regions,
            roi=roi,
        )

    @classmethod
    def of_bundle(cls, checkpoint: Checkpoint, bundle: Bundle) -> TorchInspector:
        """One that decides as a bundle does, with its thresholds, regions and mask of interest."""
        return cls(checkpoint, **decision_of_bundle(bundle))


def network_from_onnx(model: bytes, config: ModelConfig) -> Reconstructor:
    """The network that was exported, BatchNorm folded, in evaluation mode.

    Args:
        model: serialized ONNX of `onnx_from_checkpoint`: its weights go by the names of the folded modules. Biases that
            are not stored are 0.
        config: shape of the network.

    Raises:
        BundleError: weights that are missing, foreign or of another shape.
    """
    net = folded(Reconstructor(config))
    state = net.state_dict()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}
    weights = {name: torch.zeros_like(value) for name, value in state.items() if name.endswith(".bias")}
    weights |= {name: torch.from_numpy(stored[name].copy()) for name in state.keys() & stored.keys()}
    missing = sorted(state.keys() - weights.keys())
    # Shapes and axes are integers; they belong to operators, not to layers.
    foreign = sorted(name for name, value in stored.items() if value.dtype.kind == "f" and name not in state)
    wrong = sorted(name for name, value in weights.items() if value.shape != state[name].shape)
    for what, keys in (("lacks", missing), ("has foreign", foreign), ("has wrongly shaped", wrong)):
        if keys:
            raise BundleError(f"the exported model {what} weights: {first_keys(keys)}")
    net.load_state_dict(weights)
    return net
