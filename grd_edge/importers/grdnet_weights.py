"""Weights of the authors' networks by our names. The facts are in docs/design/official-checkpoints.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from grd_edge.checkpoint import first_keys
from grd_edge.config import Config
from grd_edge.errors import CheckpointError
from grd_edge.importers.torch_file import EXPECTED
from grd_edge.models.generator import Reconstructor
from grd_edge.models.segmentor import PREFIX, segmentor_from_config

GENERATOR, SEGMENTOR, SECOND_ENCODER = "models.generator", "models.segmentator", "encoder_reconstructed."
SEGMENTOR_DEPTH = 3

State = Mapping[str, torch.Tensor]


def check_tensors(state: State, part: str, path: Path) -> None:
    """Raises CheckpointError when a part of the file holds anything but tensors by name, of a size that fits it."""
    size = path.stat().st_size
    for key, value in state.items():
        name = f"{part}.{key}"
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise CheckpointError(f"{path} holds a {type(value).__name__} as {name}; expected a dense tensor")
        if value.numel() * value.element_size() > size:
            raise CheckpointError(f"{path} names more numbers in {name} than it holds; copy it again from its source")


def segmentor_settings(segmentor: State) -> dict[str, Any]:
    """Settings of a generator with this segmentor; an empty one: without."""
    if not segmentor:
        return {"method.segmentor": False}
    stem = segmentor.get("enc1.block.0.weight")
    base = {"method.segmentor_base": stem.shape[0]} if stem is not None and stem.ndim else {}
    return {"method.segmentor": True, "method.segmentor_depth": SEGMENTOR_DEPTH, **base}


def _their_name(key: str, bottleneck: str) -> str:
    """Name in `models.generator` of one of our reconstructor's weights."""
    key = key.replace(".skip.", ".proj.")
    if key.startswith("decoder.out."):
        return key.replace("decoder.out.", "decoder.out.0.")
    if bottleneck == "conv":
        return key.replace("latent_down.", "latent_conv.").replace("latent_up.", "latent_inv.")
    return key


def reconstructor_weights(generator: State, config: Config, path: Path) -> dict[str, torch.Tensor]:
    """The reconstructor's state from theirs, float32. Raises as `_renamed`."""
    model = config.model
    with torch.device("meta"):
        expected = Reconstructor(model).state_dict()
    # Theirs has no running mean before the dense layer, which is the same as a mean of 0.
    centers = {key for key in expected if key.endswith(".center")}
    names = {key: _their_name(key, model.bottleneck) for key in expected if key not in centers}
    own = {key: value for key, value in generator.items() if not key.startswith(SECOND_ENCODER)}
    renamed = _renamed(own, names, expected, path, GENERATOR)
    return {key: torch.zeros(value.shape) if key in centers else renamed[key] for key, value in expected.items()}


def segmentor_weights(segmentor: State, config: Config, path: Path) -> dict[str, torch.Tensor]:
    """The segmentor's state from theirs, with the prefix it has in a checkpoint, float32. Raises as `_renamed`."""
    with torch.device("meta"):
        expected = segmentor_from_config(config).state_dict()
    depth = config.method.segmentor_depth
    pairs = [f"enc{level + 1}" for level in range(depth)] + ["mid"]
    names = {}
    for key in expected:
        part, _, rest = key.removeprefix("encoder.").partition(".")
        index, _, layer = rest.partition(".")
        if key.startswith("encoder."):
            names[key] = f"{pairs[int(index)]}.block.{layer}"
        elif part == "out":
            names[key] = f"out.0.{rest}"
        else:
            level = depth - int(index)
            names[key] = f"up{level}.{layer}" if part == "ups" else f"dec{level}.block.{layer}"
    try:
        return {PREFIX + key: value for key, value in _renamed(segmentor, names, expected, path, SEGMENTOR).items()}
    except CheckpointError as error:
        raise CheckpointError(f"{error}; leave the segmentor out with --set method.segmentor=false") from error


def _renamed(state: State, names: Mapping[str, str], expected: State, path: Path, part: str) -> dict[str, torch.Tensor]:
    """Theirs by our names, float32.

    Args:
        names: their name of each of ours.
        expected: tensors of the shapes and kinds that ours have.
        part: what they are of, as the file names it.

    Raises:
        CheckpointError: names what is missing, unknown, of another shape or kind, or not finite.
    """
    found, weights = set(state), {}
    for what, keys in (("lacks", set(names.values()) - found), ("has unknown", found - set(names.values()))):
        if keys:
            raise CheckpointError(
                f"{path} {what} weights: {first_keys([f'{part}.{key}' for key in sorted(keys)])}; "
                f"{EXPECTED} of the authors' {part.partition('.')[2]}"
            )
    for key, name in names.items():
        value, like = state[name], expected[key]
        if value.shape != like.shape:
            raise wrong_shape(path, state, name, _dims(like), part)
        if value.is_floating_point() != like.is_floating_point() or value.is_complex():
            raise CheckpointError(
                f"{path} holds {value.dtype} as {part}.{name}; expected {like.dtype} of the authors' code"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path} holds NaN or Inf in {part}.{name}: its training diverged; import an earlier epoch"
            )
        weights[key] = value.to(like.dtype).contiguous().clone()
    return weights


def wrong_shape(path: Path, state: State, key: str, expected: str, part: str = GENERATOR) -> CheckpointError:
    return CheckpointError(
        f"{path} has {part}.{key} of shape {_dims(state[key])}; "
        f"expected {expected}, as in the authors' {part.partition('.')[2]}"
    )


def _dims(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
