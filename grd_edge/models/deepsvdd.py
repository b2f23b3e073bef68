"""Deep SVDD: good patches are drawn to one point of an embedding, and the distance to it is the score.

Each position of a feature grid is embedded for itself, so that there is a map: the fully convolutional form of FCDD
(arXiv 2007.01760). The published network embeds a whole image.
Source: Ruff et al., "Deep One-Class Classification" (ICML 2018), sections 3.1 to 3.3 and 4.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.models.backbones import backbone_from_config
from grd_edge.models.blocks import Decoder, Encoder, activation, conv_bn
from grd_edge.models.maps import GaussianUpsampling, JoinedFeatures
from grd_edge.models.method import GoodPatches, Method

BACKBONE_LAYERS = ("stride8", "stride16")
LEAST_CENTER = 0.1  # of a component: one at 0 is met by weights that are 0. Source: section 4.2
SAMPLED_BATCHES = 16  # for the first center and the scale of the scores
CENTER_MOMENTUM = 0.1
RADIUS_FROM = 0.1  # share of the steps before the radius moves. Source: section 4.2, 10 epochs of 100 to 150


class DeepSvdd(Method):
    """Embedding phi and center c: the map is |phi - c|^2 at each position, the score its largest value or its mean.

    No layer has a bias and no BatchNorm a weight or a shift, and activations are unbounded: with either of them the
    embedding could be the center for every patch (section 3.3, propositions 2 and 3). On a backbone, whose layers have
    biases, nothing but the frozen weights prevents that.

    Attributes:
        center: c, (features,).
        radius: R^2 of the soft boundary; training only.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model, method = config.model, config.method
        size = model.patch_h, model.patch_w
        if method.backbone is None:
            stages = tuple(model.stages)
            self.encoder = _without_shift(Encoder(model.channels, model.stage_widths, stages, model.resample))
            width = self.encoder.out_channels
            # Convolutions of 3x3 and stride 2 look at every other pixel, from the first one on.
            self.upsampling = GaussianUpsampling(size, 2 ** len(stages), method.smoothing, offset_px=0)
        else:
            features = JoinedFeatures(backbone_from_config(method.backbone, BACKBONE_LAYERS))
            width = features.channels
            layer = nn.Sequential(*conv_bn(width, width, 1), activation())
            self.encoder = nn.Sequential(features, _without_shift(layer))
            self.upsampling = GaussianUpsampling(size, features.stride, method.smoothing)
        self.embedding = nn.Conv2d(width, method.features, 1, bias=False)
        self.register_buffer("center", torch.zeros(method.features))
        self.register_buffer("radius", torch.zeros(()))
        self.decoder = None
        if method.backbone is None and method.pretrained_share:
            # Mirror of the encoder; its input is the embedding.
            self.widening = nn.Conv2d(method.features, width, 1, bias=False)
            self.decoder = Decoder(model.channels, model.stage_widths, (1,) * len(stages), "first", "resize_conv")

    def load_pretrained(self) -> None:
        if self.config.method.backbone is not None:
            self.provenance["backbone"] = self.encoder[0].backbone.load(self.config.method.backbone)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, patch_h, patch_w) -> (N, features, h, w)."""
        return self.embedding(self.encoder(x))

    def distances(self, z: torch.Tensor) -> torch.Tensor:
        """Squared distances of embeddings (N, features, h, w) to the center: (N, 1, h, w)."""
        return (z - self.center.view(1, -1, 1, 1)).square().sum(1, keepdim=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distances = self.distances(self.embed(x))
        maps = self.upsampling(distances)
        return distances.mean((1, 2, 3)) if self.config.method.score == "mean" else maps.amax((1, 2, 3)), maps

    def begin(self, patches: GoodPatches) -> None:
        """The center: the mean of what the untrained network says of good patches."""
        with torch.no_grad():
            means = [self.embed(patches.drawn(step)).mean((0, 2, 3)) for step in range(SAMPLED_BATCHES)]
            self._set_center(torch.stack(means).mean(0))

    def groups(self) -> list[dict[str, Any]]:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "share": 1.0, "weight_decay": self.config.method.weight_decay}]

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        """The autoencoder's error in the first steps, then the objective.

        Source: section 4.2 for the pretraining and the rule of the radius; section 3.1, equations 3 and 4.
        """
        method = self.config.method
        pretrained = round(method.pretrained_share * steps) if self.decoder is not None else 0
        z = self.embed(x).float()
        if step < pretrained:
            with torch.no_grad():
                self.center.lerp_(z.mean((0, 2, 3)), CENTER_MOMENTUM)
            return {"autoencoder": F.mse_loss(self.decoder(self.widening(z)), x)}
        if step == pretrained:
            self._set_center(self.center.clone())
        distances = self.distances(z)
        if method.objective == "one-class":
            return {"one_class": distances.mean()}
        loss = self.radius + (distances - self.radius).clamp_min(0).mean() / method.nu
        if step - pretrained >= RADIUS_FROM * (steps - pretrained):
            self.radius.copy_(distances.detach().flatten().quantile(1 - method.nu))
        return {"soft_boundary": loss}

    def finish(self, patches: GoodPatches) -> None:
        """Scales the embedding so that good patches have a mean score of 1 per position, which half precision holds."""
        with torch.no_grad():
            found = [self.distances(self.embed(patches.drawn(step))).mean() for step in range(SAMPLED_BATCHES)]
            factor = torch.stack(found).mean().clamp_min(1e-12).rsqrt()
            self.embedding.weight.mul_(factor)
            self.center.mul_(factor)

    def prune(self) -> None:
        self.decoder = self.widening = None
        self._buffers.pop("radius", None)

    def _set_center(self, center: torch.Tensor) -> None:
        sign = torch.where(center < 0, -1.0, 1.0)
        self.center.copy_(torch.where(center.abs() < LEAST_CENTER, LEAST_CENTER * sign, center))


def _without_shift(module: nn.Module) -> nn.Module:
    """`module`, whose BatchNorms lose their weights and shifts."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
    return module
