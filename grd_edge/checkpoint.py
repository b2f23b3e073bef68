"""Checkpoints: one safetensors file with weights, configuration and provenance. Never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from grd_edge.config import Config, config_from_mapping
from grd_edge.errors import CheckpointError, ConfigError
from grd_edge.files import write_atomically
from grd_edge.models.generator import Reconstructor

SCHEMA = 1


def first_keys(keys: list[str]) -> str:
    """The first three of `keys` and their count, for a message."""
    return f"{', '.join(keys[:3])}{' …' if len(keys) > 3 else ''} ({len(keys)})"


@dataclass(frozen=True)
class Checkpoint:
    """What a run leaves behind. `weights` holds the reconstructor's state; training-only networks are not kept."""

    config: Config
    weights: dict[str, torch.Tensor]
    provenance: dict[str, Any]

    def reconstructor(self) -> Reconstructor:
        """The network in evaluation mode with these weights.

        Raises:
            CheckpointError: names the keys that are missing or foreign.
        """
        net = Reconstructor(self.config.model)
        expected = net.state_dict()
        missing = sorted(expected.keys() - self.weights.keys())
        foreign = sorted(self.weights.keys() - expected.keys())
        wrong = sorted(k for k in expected.keys() & self.weights.keys() if expected[k].shape != self.weights[k].shape)
        for what, keys in (("lacks", missing), ("has foreign", foreign), ("has wrongly shaped", wrong)):
            if keys:
                raise CheckpointError(
                    f"the checkpoint {what} weights: {first_keys(keys)}; "
                    f"it belongs to another profile than {self.config.profile!r}"
                )
        net.load_state_dict(self.weights)
        return net.eval()


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path` atomically."""
    metadata = {
        "grd_edge_schema": str(SCHEMA),
        "config": json.dumps(checkpoint.config.to_json()),
        "provenance": json.dumps(checkpoint.provenance),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.weights.items()}
    write_atomically(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of ours.

    Raises:
        CheckpointError: missing, not safetensors, not ours, newer, or with a configuration that does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; train one with: grd-edge train")
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
        if schema > SCHEMA:
            raise CheckpointError(f"{path} has schema {schema}, newer than {SCHEMA}; update grd-edge")
        config = config_from_mapping(json.loads(metadata["config"]))
        return Checkpoint(config, weights, json.loads(metadata["provenance"]))
    except (ValueError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}); train again") from error
