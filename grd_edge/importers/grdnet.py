"""Checkpoints of the public code of the method's authors -> ours.

The facts of the format are in docs/design/official-checkpoints.md; the network is that of docs/method.md, section 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from grd_edge.checkpoint import Checkpoint, first_keys
from grd_edge.config import Config, load_config, read_yaml
from grd_edge.errors import CheckpointError, ConfigError, InputError
from grd_edge.importers.grdnet_weights import (
    GENERATOR,
    SECOND_ENCODER,
    SEGMENTOR,
    State,
    check_tensors,
    reconstructor_weights,
    segmentor_settings,
    segmentor_weights,
    wrong_shape,
)
from grd_edge.importers.torch_file import EXPECTED, read_torch_file

FORMAT = "GRD-Net epoch_XXXX.pt"
LEFT_OUT = ("models.discriminator", "optimizers", "schedulers")
DISCRIMINATOR_HEAD = "classifier.1.weight"
_OF_GENERATOR = {"encoder", "encoder_reconstructed", "latent_down", "latent_up", "latent_conv", "latent_inv", "decoder"}
_PROFILES = {"grdnet_2023_full": "grdnet_2023", "deepindustrial_sn_2026": "deepindustrial_sn"}

Position = Literal["first", "last"]


class _TheirProfile(BaseModel):
    mode: Literal["grdnet_2023_full", "deepindustrial_sn_2026"]


class _TheirData(BaseModel):
    image_size: int = Field(ge=1)
    channels: Literal[1, 3]
    patch_size: tuple[int, int]
    patch_stride: tuple[int, int]

    @field_validator("patch_size", "patch_stride", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value


class _TheirModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    base_features: int
    latent_dim: int
    stages: tuple[int, ...] = (2, 2, 2, 2)
    encoder_downsample_position: Position = "last"
    decoder_upsample_position: Position = "last"
    dense_bottleneck: bool = False
    segmentator_base_features: int | None = None


class _TheirConfig(BaseModel):
    """What of the authors' YAML schema says something about the network and its input."""

    profile: _TheirProfile
    data: _TheirData
    model: _TheirModel


def checkpoint_from_grdnet(
    path: Path,
    *,
    config_path: Path | None = None,
    patch: tuple[int, int] | None = None,
    overrides: Iterable[str] = (),
) -> Checkpoint:
    """The generator of an authors' checkpoint, and its segmentor, as a checkpoint of ours; reconstructions and the
    segmentor's logits are equal within 1e-5.

    Args:
        path: `epoch_XXXX.pt`.
        config_path: the YAML file it was trained with; checked against the weights, and the source of scale and grid.
        patch: (height, width) in px, where neither weights nor YAML tell.
        overrides: settings `section.key=value` over the result, `model.*` excepted; `method.segmentor=false` leaves
            the segmentor out.

    Raises:
        CheckpointError: not such a file, or with missing, unknown or wrongly shaped weights.
        ConfigError: a YAML file that cannot be used or contradicts the weights.
        InputError: a patch that contradicts the weights, or none where one is needed.
    """
    path = Path(path)
    theirs = _their_config(config_path) if config_path else None
    payload = read_torch_file(path)
    generator, segmentor = _parts(payload, path)
    shape, grid = _shape_from_weights(generator, _state(payload, "discriminator"), path)
    if theirs:
        shape = _undetermined_positions(theirs.model) | shape
        _check_agreement(shape, theirs, config_path, path)
        profile = _PROFILES[theirs.profile.mode]
    else:
        of_2023 = shape["bottleneck"] == "conv" or segmentor
        profile = "grdnet_2023" if of_2023 else "deepindustrial_sn"
    height, width = _patch(shape, grid, theirs.data.patch_size if theirs else None, patch)
    settings = {f"model.{key}": value for key, value in shape.items()}
    settings |= {"model.patch_h": height, "model.patch_w": width}
    geometry = _geometry(theirs.data if theirs else None, (height, width))
    settings |= {f"geometry.{key}": "null" if value is None else value for key, value in geometry.items()}
    settings |= segmentor_settings(segmentor if profile == "grdnet_2023" else {})
    config = _config(profile, settings, overrides)
    weights = reconstructor_weights(generator, config, path)
    if config.segmented:
        weights |= segmentor_weights(segmentor, config, path)
    left_out = _left_out(payload, generator, LEFT_OUT if config.segmented else (*LEFT_OUT, SEGMENTOR))
    epoch = payload.get("epoch")
    provenance = {
        "dataset": "unknown",
        "seen": [],
        "imported": {
            "format": FORMAT,
            "file": path.name,
            "sha256": _file_sha256(path),
            "epoch": epoch if isinstance(epoch, int) else None,
            "left_out": left_out,
            "config": {"sha256": _file_sha256(config_path), **theirs.model_dump(mode="json")} if theirs else None,
        },
    }
    return Checkpoint(config, weights, provenance)


# ---------------------------------------------------------------- the file


def _parts(payload: Any, path: Path) -> tuple[State, State]:
    """`models.generator` and `models.segmentator`; every other part has to be one that is known to be for training
    only."""
    models = payload.get("models") if isinstance(payload, dict) else None
    if not isinstance(models, dict) or not isinstance(models.get("generator"), dict):
        found = first_keys([str(key) for key in payload]) if isinstance(payload, dict) else type(payload).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of GRD-Net: it lacks {GENERATOR} and holds {found}; {EXPECTED} of its training"
        )
    known = {"epoch", "models", GENERATOR, SEGMENTOR, *LEFT_OUT}
    names = [*map(str, payload), *(f"models.{name}" for name in models)]
    unknown = sorted(name for name in names if name not in known)
    if unknown:
        raise CheckpointError(f"{path} has unknown parts: {first_keys(unknown)}; {EXPECTED} of the authors' code")
    generator, segmentor = models["generator"], _state(payload, "segmentator")
    for part, state in ((GENERATOR, generator), (SEGMENTOR, segmentor)):
        check_tensors(state, part, path)
    return generator, segmentor


def _state(payload: dict[str, Any], name: str) -> State:
    """`models.<name>`, empty where the file has none."""
    state = payload["models"].get(name)
    return state if isinstance(state, dict) else {}


def _left_out(payload: dict[str, Any], generator: State, names: Iterable[str]) -> dict[str, int]:
    """Entries of each part of the file that is not imported, by its name in the file."""
    second = sum(key.startswith(SECOND_ENCODER) for key in generator)
    parts = {f"{GENERATOR}.{SECOND_ENCODER.rstrip('.')}": second}
    for part in names:
        value: Any = payload
        for name in part.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        parts[part] = len(value) if isinstance(value, dict) else 0
    return {part: count for part, count in parts.items() if count}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------- shapes to configuration


def _shape_from_weights(generator: State, discriminator: State, path: Path) -> tuple[dict[str, Any], int | None]:
    """Settings of `ModelConfig` that the weights determine, and the area of the encoder's last grid if they do.

    `resample` and `decoder_resample` are left out where every stage has one block: first is last then.
    """

    def shape(key: str, dims: int) -> torch.Size:
        return _shape(generator, key, dims, path)

    base, channels, *_ = shape("encoder.stem.0.weight", 4)
    if channels not in (1, 3) or not base:
        raise wrong_shape(path, generator, "encoder.stem.0.weight", "1 or 3 input channels")
    widths = [shape(f"encoder.blocks.{i}.conv2.weight", 4)[0] for i in range(_count(generator, "encoder.blocks."))]
    stages = [widths.count(width) for width in dict.fromkeys(widths)]
    doubling = [base * 2**stage for stage, count in enumerate(stages) for _ in range(count)]
    if not widths or widths != doubling:
        raise CheckpointError(
            f"{path} has an encoder of widths {widths or 'without blocks'}; expected {base} doubled from stage to stage"
        )
    settings: dict[str, Any] = {"channels": channels, "base": base, "stages": stages}
    ends = [sum(stages[: stage + 1]) - 1 for stage in range(len(stages))]
    skips = {i for i in range(len(widths)) if f"encoder.blocks.{i}.proj.0.weight" in generator}
    settings |= _position("resample", stages, ends, skips)
    flipped = stages[::-1]
    ends = [sum(flipped[: stage + 1]) - 1 for stage in range(len(flipped))]
    ups = {i for i in range(sum(stages)) if f"decoder.blocks.{i}.0.weight" in generator}
    settings |= _position("decoder_resample", flipped, ends, ups)

    out = widths[-1]
    if "latent_conv.0.weight" in generator:
        settings |= {"bottleneck": "conv", "latent": shape("latent_conv.0.weight", 4)[0]}
        head = discriminator.get(DISCRIMINATOR_HEAD)
        flat = head.shape[1] if isinstance(head, torch.Tensor) and head.ndim == 2 else None
    else:
        latent, flat = shape("latent_down.1.weight", 2)
        settings |= {"bottleneck": "dense", "latent": latent}
        if flat % out:
            raise wrong_shape(path, generator, "latent_down.1.weight", f"a multiple of {out} inputs")
    return settings, flat // out if flat and flat % out == 0 else None


def _shape(generator: State, key: str, dims: int, path: Path) -> torch.Size:
    if key not in generator:
        foreign = sorted({name.partition(".")[0] for name in generator} - _OF_GENERATOR)
        holds = f"; it holds {first_keys(foreign)} and belongs to another network" if foreign else ""
        raise CheckpointError(f"{path} lacks weights: {GENERATOR}.{key}{holds}; {EXPECTED} of the authors' generator")
    if generator[key].ndim != dims:
        raise wrong_shape(path, generator, key, f"{dims} dimensions")
    return generator[key].shape


def _count(state: State, prefix: str) -> int:
    """Blocks of a list: one more than the largest index."""
    indices = [key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)]
    return 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 4), default=-1)


def _position(name: str, stages: list[int], ends: list[int], marked: set[int]) -> dict[str, Position]:
    """Which block of a stage changes the resolution: the marked one of the first stage that has several."""
    several = [end for end, count in zip(ends, stages, strict=True) if count > 1]
    return {name: "last" if several[0] in marked else "first"} if several else {}


def _undetermined_positions(model: _TheirModel) -> dict[str, Any]:
    """What the YAML says of the positions, for where the weights leave them open."""
    return {"resample": model.encoder_downsample_position, "decoder_resample": model.decoder_upsample_position}


def _patch(
    shape: dict[str, Any], grid: int | None, from_yaml: tuple[int, int] | None, asked: tuple[int, int] | None
) -> tuple[int, int]:
    """Patch (height, width): asked for, else the YAML's, else the square that the weights of a dense layer imply."""
    if asked and from_yaml and asked != from_yaml:
        raise InputError(
            f"--patch {asked[0]}x{asked[1]} contradicts patch_size {list(from_yaml)} of --config; drop one"
        )
    patch, step = asked or from_yaml, 2 ** len(shape["stages"])
    if patch is None:
        side = math.isqrt(grid or 0)
        if not side or side * side != grid:
            found = f"its dense layers are for {grid} positions, no square" if grid else "it has only convolutions"
            raise InputError(
                f"the checkpoint does not tell its patch size ({found}); "
                "give the authors' YAML with --config, or --patch HEIGHTxWIDTH"
            )
        return side * step, side * step
    if min(patch) < step or patch[0] % step or patch[1] % step:
        raise InputError(
            f"patch {patch[0]}x{patch[1]} is not a multiple of {step} px, which {len(shape['stages'])} stages need; "
            "give the size that the checkpoint was trained at"
        )
    area = (patch[0] // step) * (patch[1] // step)
    if grid is not None and area != grid:
        raise InputError(
            f"patch {patch[0]}x{patch[1]} contradicts the weights, whose dense layers are for {grid} positions of "
            f"{step} px and not for {area}; give the size that the checkpoint was trained at"
        )
    return patch


def _config(profile: str, settings: dict[str, Any], overrides: Iterable[str]) -> Config:
    overrides = list(overrides)
    model = next((setting for setting in overrides if setting.strip().startswith("model")), None)
    if model:
        raise ConfigError(f"setting {model!r} cannot be changed: the network is that of the imported weights")
    return load_config(profile=profile, overrides=[*(f"{key}={value}" for key, value in settings.items()), *overrides])


# ---------------------------------------------------------------- the authors' YAML


def _their_config(path: Path) -> _TheirConfig:
    mapping = read_yaml(path)
    try:
        return _TheirConfig.model_validate(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is not a configuration of GRD-Net: {where}: {first['msg'].lower()}; "
            "expected the YAML that the checkpoint was trained with"
        ) from error


def _geometry(data: _TheirData | None, patch: tuple[int, int]) -> dict[str, Any]:
    """Scale and grid of their images; without a YAML unknown, so native resolution and the default grid.

    Theirs are squeezed to a square, ours keep their proportions. A stride beyond the patch would skip pixels.
    """
    strides = data.patch_stride if data else patch
    known = [stride if data and stride <= side else None for stride, side in zip(strides, patch, strict=True)]
    return {"scale_px": data.image_size if data else None, "stride_y": known[0], "stride_x": known[1]}


def _check_agreement(shape: dict[str, Any], theirs: _TheirConfig, config_path: Path, path: Path) -> None:
    """Names everything that the YAML and the weights say differently."""
    model = theirs.model
    pairs = {
        "data.channels": (theirs.data.channels, shape["channels"]),
        "model.base_features": (model.base_features, shape["base"]),
        "model.stages": (list(model.stages), shape["stages"]),
        "model.latent_dim": (model.latent_dim, shape["latent"]),
        "model.dense_bottleneck": (model.dense_bottleneck, shape["bottleneck"] == "dense"),
        "model.encoder_downsample_position": (model.encoder_downsample_position, shape["resample"]),
        "model.decoder_upsample_position": (model.decoder_upsample_position, shape["decoder_resample"]),
    }
    wrong = [f"{name} is {said} and the weights say {found}" for name, (said, found) in pairs.items() if said != found]
    if wrong:
        raise ConfigError(
            f"{config_path} does not belong to {path}: {'; '.join(wrong)}; give the YAML of this training, or none"
        )
