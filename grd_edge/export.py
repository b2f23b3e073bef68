"""Checkpoint -> ONNX: what runs at inference only, BatchNorm folded, dynamic batch.

Source: docs/method.md, section 2 (what runs at inference).
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import ModelConfig
from grd_edge.errors import CheckFailedError
from grd_edge.heads import RECONSTRUCTION, SCORE_MAP
from grd_edge.models.generator import folded

OPSET = 18
INPUT = "x"
OUTPUTS = {RECONSTRUCTION: "x_hat", SCORE_MAP: "scores"}
CHECKED_BATCHES = (1, 3, 8)
# Largest |difference| between ONNX Runtime and torch that passes, relative where values are above 1: FP32 rounding of
# about forty layers; measured 1e-6 on trained base 16 and base 32 networks (Intel Xeon, 2026-11-22).
TOLERANCE = 2e-5
# What networks with steps are nudged by, and how often: a 400th of a grey level.
NUDGE, NUDGES = 1e-5, 8


def onnx_from_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Serialized single-file ONNX model: x (batch, C, patch_h, patch_w) float32 -> what the checkpoint's head says.

    The model is run by ONNX Runtime at batch 1, 3 and 8 and compared with torch before it is returned.

    Raises:
        CheckFailedError: the exported model does not reproduce torch; names the batch and the difference.
    """
    net = checkpoint.network()
    exported = plain_export(folded(net), checkpoint.config.model, OUTPUTS[checkpoint.head])
    model = onnx.load_from_string(exported)
    _strip_debug(model)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    _check_against_torch(data, net)
    return data


def plain_export(net: torch.nn.Module, config: ModelConfig, output: str = OUTPUTS[RECONSTRUCTION]) -> bytes:
    """A network as PyTorch's exporter writes it, with a dynamic batch: unchecked, with its notes about source lines."""
    example = torch.zeros(2, config.channels, config.patch_h, config.patch_w)
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def _strip_debug(model: onnx.ModelProto) -> None:
    """Drops what the exporter notes about its own source lines; it differs by machine and helps nobody on the line."""
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]


def _check_against_torch(data: bytes, net: torch.nn.Module) -> None:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    rng = np.random.default_rng(0)
    for batch in CHECKED_BATCHES:
        x = rng.random((batch, *shape), dtype=np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        found = session.run(None, {INPUT: x})[0]
        check_reconstruction(found, expected, x, net, f"the exported model at batch {batch}")


def check_reconstruction(
    found: np.ndarray,
    expected: np.ndarray,
    x: np.ndarray,
    net: torch.nn.Module,
    what: str,
    *,
    of: Callable[[np.ndarray], np.ndarray] = lambda y: y,
) -> None:
    """Raises CheckFailedError when a network's output differs from torch's by more than FP32 rounding explains.

    Allowed is TOLERANCE, times the largest value where that is above 1, or, for networks that amplify rounding, twice
    torch's own distance to the same network in float64 (docs/method.md asks as much of every reduced form). Where the
    network has steps (`Method.stepped`), rounding may take another one: twice as far as nudges of the patches move it.

    Args:
        found, expected: output of the form under test and of torch in float32, of one shape.
        x, net: the patches that both saw, and the network in evaluation mode.
        of: what `found` and `expected` are of a network's output, where they are not all of it.
    """
    worst = float(np.abs(found - expected).max())
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if worst <= tolerance:
        return
    with torch.no_grad():
        exact = of(copy.deepcopy(net).double()(torch.from_numpy(x).double()).numpy())
    allowed = max(tolerance, 2 * float(np.abs(expected - exact).max()))
    error = float(np.abs(found - exact).max())
    if not error <= allowed and getattr(net, "stepped", False):
        allowed = max(allowed, 2 * _largest_step(net, x, expected, of))
    if not error <= allowed:
        raise CheckFailedError(
            f"{what} differs from torch by {worst:.2e} and from float64 by {error:.2e} (allowed "
            f"{allowed:.0e}); it is refused, please report the profile and the machine"
        )


@torch.no_grad()
def _largest_step(
    net: torch.nn.Module, x: np.ndarray, expected: np.ndarray, of: Callable[[np.ndarray], np.ndarray]
) -> float:
    """How far nudges of patches move a network's output, of `expected`."""
    random, patches = torch.Generator().manual_seed(0), torch.from_numpy(x)
    nudged = (net(patches + NUDGE * (2 * torch.rand(x.shape, generator=random) - 1)) for _ in range(NUDGES))
    return max(float(np.abs(of(y.numpy()) - expected).max()) for y in nudged)


class _quiet:
    """Raises the level of named loggers for a block: exporters talk about every pass."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
