"""The one schema of all settings. Profiles are YAML files that fill it; unknown keys name the nearest known one.

A configuration is a profile (`grd_edge/profiles/*.yaml`), overlaid by a user's YAML file, overlaid by single
settings `section.key=value`. Source of the defaults: docs/method.md, sections 2 to 8.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from grd_edge.config_base import Positive, Probability, Section
from grd_edge.errors import ConfigError, one_line
from grd_edge.method_config import GENERATOR, METHOD_CONFIGS, GeneratorConfig, MethodConfig, method_names

DEFAULT_PROFILE = "deepindustrial_sn_edge"

S = TypeVar("S", bound=Section)


class ModelConfig(Section):
    """Shape of the networks. Patch extents are multiples of 2**len(stages)."""

    channels: Literal[1, 3] = 1
    patch_h: Positive = 128
    patch_w: Positive = 128
    base: Positive = 16
    widths: tuple[Positive, ...] | None = None  # channels of each stage, outermost first; null: base doubled each time
    stages: tuple[Positive, ...] = (2, 2, 2, 2)
    resample: Literal["first", "last"] = "first"
    decoder_resample: Literal["first", "last"] | None = None  # null: as the encoder
    bottleneck: Literal["dense", "conv"] = "dense"
    latent: Positive = 64
    upsampling: Literal["transposed", "resize_conv", "pixel_shuffle"] = "transposed"
    discriminator_base: Positive | None = None  # null: widths as the generator's; training only

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of the generator's stages, outermost first."""
        return self.widths or self._doubled(self.base)

    @property
    def discriminator_widths(self) -> tuple[int, ...]:
        """Channels of the discriminator's stages."""
        return self._doubled(self.discriminator_base) if self.discriminator_base else self.stage_widths

    def _doubled(self, base: int) -> tuple[int, ...]:
        return tuple(base * 2**stage for stage in range(len(self.stages)))

    @model_validator(mode="after")
    def _patch_halves(self) -> ModelConfig:
        step = 2 ** len(self.stages)
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage, such as [2, 2, 2, 2]")
        if self.widths and len(self.widths) != len(self.stages):
            raise ValueError(
                f"widths names {len(self.widths)} stages and stages {len(self.stages)}; give one width for each stage"
            )
        if self.patch_h % step or self.patch_w % step:
            raise ValueError(
                f"patch {self.patch_h}x{self.patch_w} is not a multiple of {step} px, "
                f"which {len(self.stages)} stages need; choose a multiple"
            )
        return self


class GeometryConfig(Section):
    """Working scale and grid. scale_px null keeps native resolution; stride null is patch - 20 px."""

    scale_px: Positive | None = None
    stride_y: Positive | None = None
    stride_x: Positive | None = None
    padding: Literal["error", "reflect"] = "error"


class DataConfig(Section):
    """How images reach the training: decoded ones are kept up to `cache_mb`; threads prepare batches ahead."""

    cache_mb: Annotated[int, Field(ge=0)] = 1024
    workers: Annotated[int, Field(ge=0, le=256)] = 2  # threads; 0: batches are made where they are asked for
    prefetch: Positive = 4  # batches kept ready


class AugmentationConfig(Section):
    """Geometry and sensor noise, applied before the perturbation."""

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 22.5
    flip_x: bool = False
    flip_y: bool = True
    noise_sigma: Annotated[float, Field(ge=0, le=1)] = 0.03


class PerturbationConfig(Section):
    """Perlin-masked textures that the generator learns to remove."""

    probability: Probability = 0.75
    beta_min: Probability = 0.5
    beta_max: Probability = 1.0
    min_area_px: Positive = 25
    textures: tuple[Literal["image", "flat", "perlin", "rgb"], ...] = ("image", "flat", "perlin")

    @model_validator(mode="after")
    def _ordered(self) -> PerturbationConfig:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}; swap them")
        if not self.textures:
            raise ValueError("textures is empty; name at least one of image, flat, perlin, rgb")
        return self


class LossConfig(Section):
    """Weights of the losses; `contextual` is the pixel term of L_con."""

    adversarial: Annotated[float, Field(ge=0)] = 1.0
    contextual: Annotated[float, Field(ge=0)] = 50.0
    encoder: Annotated[float, Field(ge=0)] = 1.0
    noise: Annotated[float, Field(ge=0)] = 3.0
    pixel: Literal["huber", "l1"] = "huber"
    pixel_weight: Annotated[float, Field(ge=0)] = 2.0
    ssim_weight: Annotated[float, Field(ge=0)] = 1.0


class OptimizerConfig(Section):
    lr: Annotated[float, Field(gt=0)] = 1.5e-4
    betas: tuple[Probability, Probability] = (0.5, 0.999)
    grad_norm: Annotated[float, Field(gt=0)] = 1.0
    first_cycle: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the run's steps
    cycle_mult: Positive = 2
    lr_floor: Probability = 0.01  # of lr, at the end of a cycle
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    bottleneck_lr: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of lr for the projection to the latent


class TrainConfig(Section):
    """How long and how. Exactly one of `seconds` and `steps` bounds the run.

    `batch` is that of all processes together; `validate_every` and `patience` act where there is a validation split.
    """

    batch: Positive = 16
    seconds: Annotated[float, Field(gt=0)] | None = 240.0
    steps: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    auxiliary_every: Positive = 1  # L_adv, L_enc and L_disc every n-th step, n-fold
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive = 1  # processes on this machine
    num_nodes: Positive = 1  # machines
    recompute: bool = False  # activations once more in the backward pass: a third slower, a fifth of the memory
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the weights that ship; null: the last ones
    validation: bool = False  # split 10 % off the training images where there is no folder validation/good
    validate_every: Positive = 200  # steps
    patience: Positive | None = 10  # validations without a better one before the run stops; null: never
    save_seconds: Annotated[float, Field(ge=0)] = 60.0  # between two states for --resume
    save_steps: Positive | None = None  # besides, every n-th step

    @model_validator(mode="after")
    def _one_bound(self) -> TrainConfig:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("give exactly one of train.seconds and train.steps, and null for the other")
        return self


class ImitationConfig(Section):
    """Weights of the losses by which a student follows a teacher, on the same perturbed patches."""

    distillation: Annotated[float, Field(ge=0)] = 50.0  # of the contextual loss to the teacher's reconstruction
    score: Annotated[float, Field(ge=0)] = 0.0  # of the mean |phi - phi of the teacher|
    reconstruction: Annotated[float, Field(ge=0)] = 0.0  # of the method's own terms


class QatConfig(ImitationConfig):
    """Fine-tuning with fake quantization (`train --qat`), the FP32 network as teacher; how long and in which batches
    says `train`."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    range_lr: Annotated[float, Field(ge=0)] = 1e-3  # relative steps of the activation ranges; 0: they stay


class DistillConfig(ImitationConfig):
    """Training of a narrower generator after a teacher (`train --teacher`); all else as in any training."""

    reconstruction: Annotated[float, Field(ge=0)] = 1.0
    start: Literal["cut", "random"] = "cut"  # cut: from the teacher's most important channels, where shapes allow it


class ScoreConfig(Section):
    decides: Literal["phi", "phi_local"] = "phi"
    window: Literal["gaussian", "box"] = "gaussian"
    local_window_px: Positive = 21


class DecisionConfig(Section):
    """Thresholds are fitted on good images; k patches make a product defective."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    k: Positive = 1
    run_agreement: Annotated[float, Field(gt=0.5, le=1)] = 0.7


class Config(Section):
    """All settings of a run."""

    profile: str = DEFAULT_PROFILE
    method: MethodConfig = GeneratorConfig()
    model: ModelConfig = ModelConfig()
    geometry: GeometryConfig = GeometryConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    perturbation: PerturbationConfig = PerturbationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    qat: QatConfig = QatConfig()
    distill: DistillConfig = DistillConfig()
    score: ScoreConfig = ScoreConfig()
    decision: DecisionConfig = DecisionConfig()

    @model_validator(mode="before")
    @classmethod
    def _method_named(cls, values: Any) -> Any:
        """Settings of a method without its name are the generator's."""
        method = values.get("method") if isinstance(values, dict) else None
        return {**values, "method": {"name": GENERATOR, **method}} if isinstance(method, dict) else values

    @model_validator(mode="after")
    def _stride_covers(self) -> Config:
        for axis, patch in (("y", self.model.patch_h), ("x", self.model.patch_w)):
            stride = getattr(self.geometry, f"stride_{axis}")
            if stride is not None and stride > patch:
                raise ValueError(
                    f"geometry.stride_{axis} {stride} is beyond the patch, so pixels would never be inspected; "
                    f"give at most {patch}"
                )
        return self

    @model_validator(mode="after")
    def _method_allows(self) -> Config:
        if self.method.name == GENERATOR:
            step = 2**self.method.segmentor_depth
            if self.segmented and (self.model.patch_h % step or self.model.patch_w % step):
                raise ValueError(
                    f"patch {self.model.patch_h}x{self.model.patch_w} is not a multiple of {step} px, which "
                    f"method.segmentor_depth {self.method.segmentor_depth} needs; choose a multiple, or less depth"
                )
            return self
        train = self.train
        for name, value in (("validation", train.validation), ("ema_decay", train.ema_decay is not None)):
            if value:
                raise ValueError(f"train.{name} is for the generator; method {self.method.name} trains without it")
        if train.devices * train.num_nodes > 1:
            raise ValueError(f"method {self.method.name} trains in one process; set train.devices and num_nodes to 1")
        return self

    @property
    def segmented(self) -> bool:
        """Whether a segmentor scores what the generator reconstructs."""
        return self.method.name == GENERATOR and self.method.segmentor

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def profile_names() -> list[str]:
    folder = resources.files("grd_edge") / "profiles"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(*, profile: str | None = None, path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Configuration from a profile, a YAML file over it, and `section.key=value` settings over both.

    Args:
        profile: name of a profile; default: the file's `profile` key, else `deepindustrial_sn_edge`.
        path: YAML file of the user.
        overrides: settings such as `train.seconds=60`; values are YAML scalars or lists.

    Raises:
        ConfigError: unreadable file, unknown profile or key (the nearest is named), value out of range.
    """
    user = read_yaml(path) if path else {}
    name = profile or user.get("profile") or DEFAULT_PROFILE
    if not isinstance(name, str) or name not in profile_names():
        raise ConfigError(f"there is no profile {name!r}{nearest(str(name), profile_names())}")
    text = (resources.files("grd_edge") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    merged = _with_settings(_layered(yaml.safe_load(text) or {}, user), overrides)
    return config_from_mapping({**merged, "profile": name})


def overlaid_config(base: Config, *, path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """As `load_config`, over a configuration in place of a profile."""
    merged = _with_settings(_layered(base.to_json(), read_yaml(path) if path else {}), overrides)
    return config_from_mapping({**merged, "profile": base.profile})


def _with_settings(merged: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for setting in overrides:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"setting {setting!r} has no '='; write it as section.key=value")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"setting {setting!r} has a value that is not YAML: {one_line(error)}") from error
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        settings = _overlay(settings, parsed)
    return _layered(merged, settings)


def config_from_mapping(mapping: dict[str, Any]) -> Config:
    """Checked configuration from plain data (a YAML file, a checkpoint's metadata).

    Raises:
        ConfigError: names the key, the value found and what is expected.
    """
    return checked_section(Config, mapping)


def checked_section(schema: type[S], mapping: dict[str, Any]) -> S:
    """As `config_from_mapping`, of any section."""
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            known = _known_keys(schema, where[:-1])
            if where[0] == "method" and len(where) > 2:
                del where[1]  # the method's name, which is no key
            raise ConfigError(f"unknown setting {'.'.join(where)}{nearest(where[-1], known)}") from error
        if first["type"] == "union_tag_invalid":
            name = str(first["ctx"]["tag"])
            raise ConfigError(f"there is no method {name!r}{nearest(name, method_names())}") from error
        message = first["msg"].removeprefix("Value error, ")
        found = "" if isinstance(first["input"], dict) else f" (found {first['input']!r})"
        raise ConfigError(f"setting {'.'.join(where) or 'config'}: {message}{found}") from error


def _known_keys(model: Any, where: list[str]) -> list[str]:
    if where and where[0] == "method" and len(where) > 1:
        return sorted(METHOD_CONFIGS[where[1]].model_fields)
    for part in where:
        model = model.model_fields[part].annotation if part in model.model_fields else Section
    return sorted(model.model_fields)


def nearest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the closest known one, or all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, whose settings of a method mean nothing where `above` names another one."""
    names = [each["method"].get("name") if isinstance(each.get("method"), dict) else None for each in (below, above)]
    if names[1] not in (None, names[0] or GENERATOR):
        below = {key: value for key, value in below.items() if key != "method"}
    return _overlay(below, above)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds; empty for an empty file.

    Raises:
        ConfigError: unreadable, not YAML, a key given twice, or not a mapping.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {one_line(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration {path} is not YAML: {one_line(error)}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"the configuration {path} holds a {type(data).__name__}; expected sections with keys")
    return data


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML's loader keeps the last one and says nothing of the others."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
