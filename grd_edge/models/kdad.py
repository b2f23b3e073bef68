"""KDAD: a small cloner learns a frozen network's features of good patches; where it fails to, the patch is anomalous.

Source: Salehi et al., "Multiresolution knowledge distillation for anomaly detection", arXiv 2011.11108, section 3.
Departures: localization there is a gradient of the loss in the image, which no inference graph holds; the map here is
the same loss position by position, summed over the layers. The default source is EfficientNet-Lite0 in place of VGG16,
its cloner plain strided convolutions; the source's channels are normalized by good patches, so that all weigh alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.errors import ConfigError
from grd_edge.models.backbones import Backbone, backbone_from_config
from grd_edge.models.blocks import conv_bn
from grd_edge.models.maps import GaussianUpsampling
from grd_edge.models.method import GoodPatches, Method
from grd_edge.models.moments import channel_moments

LAYERS = ("stride4", "stride8", "stride16", "stride32")
SAMPLED_BATCHES = 8  # for the moments of the source's channels
EPS = 1e-6  # of a product of norms, so that equal zeros have a cosine


class Kdad(Method):
    """Source and cloner; both terms of the loss compare their critical layers."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        method, model = config.method, config.model
        self.source = backbone_from_config(method.backbone, LAYERS)
        _check_strides(self.source, model.patch_h, model.patch_w)
        self.cloner = Cloner(model.channels, method.width, self.source)
        for index, channels in enumerate(self.source.channels):
            self.register_buffer(f"mean{index}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"deviation{index}", torch.ones(1, channels, 1, 1))
        self.register_buffer("direction", torch.tensor([1.0 if method.direction is None else method.direction]))
        self.upsampling = GaussianUpsampling((model.patch_h, model.patch_w), self.source.strides[0], method.smoothing)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = list(zip(self._sources(x), self.cloner(x), strict=True))
        finest = pairs[0][0].shape[2:]
        found = []
        for source, clone in pairs:
            # Written as a difference: INT8 takes a sum for that of a residual block.
            position = (source - clone).square().mean(1, keepdim=True) - self.direction * (_cosine(source, clone) - 1)
            found.append(F.interpolate(position, finest, mode="bilinear") if position.shape[2:] != finest else position)
        maps = self.upsampling(torch.cat(found, 1).sum(1, keepdim=True))
        if self.config.method.score == "max":
            return maps.amax((1, 2, 3)), maps
        values, directions = _terms(pairs)
        return values - self.direction * -directions, maps

    def _sources(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = enumerate(self.source(x))
        return [(each - getattr(self, f"mean{i}")) / getattr(self, f"deviation{i}") for i, each in maps]

    # --------------------------------------------------------------- training

    def load_pretrained(self) -> None:
        self.provenance["backbone"] = self.source.load(self.config.method.backbone)

    @torch.no_grad()
    def begin(self, patches: GoodPatches) -> None:
        """Moments of the source's channels, and the weight of directions: both terms of the first batch are equal.

        Source: section 3.1, where lambda is set by the initial amount of error of each term.
        """
        batches = [patches.drawn(step) for step in range(SAMPLED_BATCHES)]
        for index, maps in enumerate(zip(*(self.source(x) for x in batches), strict=True)):
            mean, deviation = channel_moments(maps)
            getattr(self, f"mean{index}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"deviation{index}").copy_(deviation.view(1, -1, 1, 1))
        if self.config.method.direction is None:
            values, directions = _terms(list(zip(self._sources(batches[0]), self.cloner(batches[0]), strict=True)))
            self.direction.copy_(values.mean() / directions.mean())

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.cloner.parameters()), "share": 1.0}]

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            sources = self._sources(x)
        values, directions = _terms(list(zip(sources, self.cloner(x), strict=True)))
        return {"values": values.mean(), "directions": (self.direction * directions).mean()}


class Cloner(nn.Module):
    """Image (N, channels, H, W) in [0, 1] -> a map of the extents and channels of each layer of the source.

    Per halving of the size a strided 3x3 convolution of `width` channels, before each output one more; the output is a
    1x1 convolution and not passed on.
    """

    def __init__(self, channels: int, width: int, source: Backbone) -> None:
        super().__init__()
        self.stages, self.outputs = nn.ModuleList(), nn.ModuleList()
        stride = 1
        for wanted, out_channels in zip(source.strides, source.channels, strict=True):
            stage = nn.Sequential()
            while stride < wanted:
                stage.extend([*conv_bn(channels, width, 3, 2), nn.ReLU()])
                channels, stride = width, 2 * stride
            self.stages.append(stage.extend([*conv_bn(channels, width, 3), nn.ReLU()]))
            self.outputs.append(nn.Conv2d(width, out_channels, 1))
            channels = width

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stage, output in zip(self.stages, self.outputs, strict=True):
            x = stage(x)
            found.append(output(x))
        return found


def _check_strides(source: Backbone, patch_h: int, patch_w: int) -> None:
    strides = source.strides
    if source.name.startswith("vit"):
        raise ConfigError(f"kdad clones a network of convolutions, and {source.name} has none; choose another backbone")
    if list(strides) != sorted(set(strides)) or strides[0] < 2:
        raise ConfigError(
            f"the layers {', '.join(source.layers)} have strides {', '.join(map(str, strides))}; kdad needs layers of "
            "increasing strides from 2 on, such as stride4, stride8, stride16"
        )
    if patch_h % strides[-1] or patch_w % strides[-1]:
        raise ConfigError(
            f"patch {patch_h}x{patch_w} is not a multiple of {strides[-1]} px, the stride of {source.layers[-1]}; "
            "choose a multiple, or other layers in method.backbone.layers"
        )


def _cosine(source: torch.Tensor, clone: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) twice -> cosines (N, 1, h, w) of the vectors of a position."""
    norms = source.square().sum(1, keepdim=True) * clone.square().sum(1, keepdim=True)
    return (source * clone).sum(1, keepdim=True) / norms.sqrt().clamp_min(EPS)


def _terms(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """L_val and L_dir of each patch, (N,): squared differences and 1 - cosine of whole layers, summed over layers.

    Source: equations 1 and 2.
    """
    values = torch.stack([(source - clone).square().mean((1, 2, 3)) for source, clone in pairs], 1).sum(1)
    flat = [(source.flatten(1)[:, :, None, None], clone.flatten(1)[:, :, None, None]) for source, clone in pairs]
    directions = torch.cat([1 - _cosine(*pair).flatten(1) for pair in flat], 1).sum(1)
    return values, directions
