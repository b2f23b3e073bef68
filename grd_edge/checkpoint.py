"""Checkpoints and training states: one safetensors file each, with what describes it. Never pickle."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from grd_edge.config import Config, config_from_mapping
from grd_edge.errors import CheckpointError, ConfigError
from grd_edge.files import atomic_stream
from grd_edge.method_config import GENERATOR
from grd_edge.models.generator import Reconstructor
from grd_edge.models.method import PackedScores, method_from_config
from grd_edge.models.segmentor import PREFIX, SegmentedReconstructor

N = TypeVar("N", bound=nn.Module)

SCHEMA = 1
DTYPES = {  # as safetensors names them
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def first_keys(keys: list[str]) -> str:
    """The first three of `keys` and their count, for a message."""
    return f"{', '.join(keys[:3])}{' …' if len(keys) > 3 else ''} ({len(keys)})"


@dataclass(frozen=True)
class Checkpoint:
    """What a run leaves behind. `weights` holds the state of what runs at inference; networks that only train are not
    kept."""

    config: Config
    weights: dict[str, torch.Tensor]
    provenance: dict[str, Any]

    @property
    def head(self) -> str:
        """What the exported network yields, of `grd_edge.heads`."""
        return self.config.method.head

    def network(self) -> nn.Module:
        """What is exported, in evaluation mode: patches (N, C, H, W) to what `head` says, as `heads.output_shape`.

        Raises:
            CheckpointError: names the keys that are missing or foreign.
        """
        if self.config.segmented:
            return PackedScores(self._loaded(SegmentedReconstructor(self.config), self.weights)).eval()
        if self.config.method.name == GENERATOR:
            return self.reconstructor()
        method = method_from_config(self.config)
        method.prune()
        method.fit_shapes(self.weights)
        return PackedScores(self._loaded(method, self.weights)).eval()

    def reconstructor(self) -> Reconstructor:
        """The generator's network in evaluation mode with these weights, without the segmentor where there is one.

        Raises:
            CheckpointError: it is of another method; names the keys that are missing or foreign.
        """
        if self.config.method.name != GENERATOR:
            raise CheckpointError(
                f"the checkpoint is of method {self.config.method.name}, and this needs a generator's; "
                "give one that was trained with method.name=generator"
            )
        own = self.weights.items()
        weights = {key: value for key, value in own if not (self.config.segmented and key.startswith(PREFIX))}
        return self._loaded(Reconstructor(self.config.model), weights).eval()

    def _loaded(self, net: N, weights: dict[str, torch.Tensor]) -> N:
        expected = net.state_dict()
        missing = sorted(expected.keys() - weights.keys())
        foreign = sorted(weights.keys() - expected.keys())
        wrong = sorted(k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape)
        for what, keys in (("lacks", missing), ("has foreign", foreign), ("has wrongly shaped", wrong)):
            if keys:
                raise CheckpointError(
                    f"the checkpoint {what} weights: {first_keys(keys)}; "
                    f"it belongs to another profile than {self.config.profile!r}"
                )
        net.load_state_dict(weights)
        return net


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path` atomically."""
    metadata = {"config": json.dumps(checkpoint.config.to_json()), "provenance": json.dumps(checkpoint.provenance)}
    _write(path, checkpoint.weights, metadata)


def write_training_state(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Writes `path` atomically; `about` is plain data that comes back as it is."""
    _write(path, tensors, {"training_state": json.dumps(about)})


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Streams the tensors one by one: `safetensors.torch.save` holds all of them twice more, 8 GB of a large state."""
    header: dict[str, Any] = {"__metadata__": {"grd_edge_schema": str(SCHEMA), **metadata}}
    tensors = dict(sorted(tensors.items()))  # the same content gives the same bytes
    end = 0
    for key, value in tensors.items():
        start, end = end, end + value.numel() * value.element_size()
        header[key] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_stream(path) as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        for value in tensors.values():
            stream.write(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of ours.

    Raises:
        CheckpointError: missing, not safetensors, not ours, newer, or with a configuration that does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; train one with: grd-edge train")
    metadata, weights = _read(path)
    if "training_state" in metadata:
        raise CheckpointError(
            f"{path} is the state of a training run, not its result; "
            "finish the run with --resume, or give best.safetensors beside it"
        )
    try:
        config = config_from_mapping(json.loads(metadata["config"]))
        return Checkpoint(config, weights, json.loads(metadata["provenance"]))
    except (ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}); train again") from error


def read_training_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `about` of `write_training_state`.

    Raises:
        CheckpointError: not safetensors, or not a training state of ours.
    """
    metadata, tensors = _read(Path(path))
    try:
        return tensors, json.loads(metadata["training_state"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not the state of a training run ({error}); start again") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors checkpoint ({error}); pickled files are refused, "
            "train again, or for a checkpoint of the method's authors: grd-edge import grdnet"
        ) from error
    if "grd_edge_schema" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file of another program; expected one of grd-edge train")
    try:
        schema = int(metadata["grd_edge_schema"])
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}); train again") from error
    if schema > SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, newer than {SCHEMA}; update grd-edge")
    return metadata, weights
