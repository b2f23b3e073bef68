"""GeneralAD: features of good patches are distorted, and a discriminator that attends to all positions finds where.

Source: Straeter et al., arXiv 2407.12427 (ECCV 2024), section 3, and the settings of its public runs on MVTec AD.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.errors import ConfigError
from grd_edge.models.backbones import Backbone, backbone_from_config
from grd_edge.models.maps import GaussianUpsampling, JoinedFeatures
from grd_edge.models.method import GoodPatches, Method
from grd_edge.models.moments import channel_moments
from grd_edge.models.trunks import VitBlock

VIT_LAYERS, CNN_LAYERS = ("norm",), ("stride8", "stride16")
SAMPLED_BATCHES = 16  # for the mean and deviation of features


class GeneralAd(Method):
    """Logits per position of a feature grid: the map is their Gaussian upsampling, the score the mean of the top k.

    The published backbone is a ViT, whose last layer is normalized; the features of others are standardized per channel
    on good patches, so that the deviation of the noise means the same.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model, method = config.model, config.method
        vit = method.backbone.name.startswith("vit")
        backbone = backbone_from_config(method.backbone, VIT_LAYERS if vit else CNN_LAYERS)
        self.features = JoinedFeatures(backbone, pooled=not vit)
        channels = self.features.channels
        if channels % method.heads:
            raise ConfigError(
                f"{method.heads} heads do not share the {channels} channels of {', '.join(backbone.layers)} evenly; "
                "set method.heads to a divisor"
            )
        grid = self.features.grid(model.patch_h, model.patch_w)
        self.discriminator = Discriminator(channels, grid, method.blocks, method.heads, method.hidden or 2 * channels)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("deviation", torch.ones(1, channels, 1, 1))
        self.top_k = min(method.top_k, grid[0] * grid[1])
        self.upsampling = GaussianUpsampling((model.patch_h, model.patch_w), self.features.stride, method.smoothing)

    def load_pretrained(self) -> None:
        backbone, config = self.features.backbone, self.config.method.backbone
        self.provenance["backbone"] = about = backbone.load(config)
        if not config.name.startswith("vit"):
            about["substitute"] = f"{config.name}, standardized on good patches, in place of DINOv2"
            if any(kind.startswith("attended") for kind in self.config.method.distortions):
                self.provenance["attention"] = {"substitute": "distance to the mean features of the patch"}

    def begin(self, patches: GoodPatches) -> None:
        """Mean and deviation of each channel."""
        if self.config.method.backbone.name.startswith("vit"):
            return
        mean, deviation = channel_moments(self.features(patches.drawn(step)) for step in range(SAMPLED_BATCHES))
        self.mean.copy_(mean.view(1, -1, 1, 1))
        self.deviation.copy_(deviation.view(1, -1, 1, 1))

    def groups(self) -> list[dict[str, Any]]:
        parameters = list(self.discriminator.parameters())
        return [{"params": parameters, "share": 1.0, "weight_decay": self.config.method.weight_decay}]

    def standardized(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, patch_h, patch_w) -> features (N, channels, h, w)."""
        return (self.features(x) - self.mean) / self.deviation

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.discriminator(self.standardized(x))
        return logits.flatten(1).topk(self.top_k, dim=1).values.mean(1), self.upsampling(logits)

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        """Cross-entropy of good features, of noise everywhere, and of each configured distortion of some positions.

        Source: section 3.2 and equation 4; distorted and other positions weigh the same, as in its public runs.
        """
        method = self.config.method
        with torch.no_grad(), ClassAttention(self.features.backbone) as attention:
            features = self.standardized(x)
            attended = attention.weights if attention.weights is not None else _unusual(features)
            shown = [features, features + _noise(features, method.noise_sigma, random)]
            where = [features.new_zeros(len(x), attended.shape[2]), features.new_ones(len(x), attended.shape[2])]
            for kind in method.distortions:
                fake, mask = distorted(features, attended, kind, method.noise_sigma, random)
                shown.append(fake)
                where.append(mask)
        logits = self.discriminator(torch.cat(shown), random if self.training else None, method.dropout)
        names = ["good", "noise_everywhere", *method.distortions]
        return {
            name: _balanced_cross_entropy(found.flatten(1).float(), mask)
            for name, found, mask in zip(names, logits.chunk(len(names)), where, strict=True)
        }


class Discriminator(nn.Module):
    """Features (N, C, h, w) -> logits (N, 1, h, w): learned positions, attention blocks, a linear layer."""

    def __init__(self, channels: int, grid: tuple[int, int], blocks: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, channels, *grid))
        self.blocks = nn.ModuleList(AttentionBlock(channels, heads, hidden) for _ in range(blocks))
        self.out = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: torch.Tensor, random: torch.Generator | None = None, dropout: float = 0.0) -> torch.Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x, random, dropout)
        return self.out(x)


class AttentionBlock(nn.Module):
    """Attention, normalization, and an MLP whose sum is not normalized. Linear layers are 1x1 convolutions, which INT8
    quantizes; products and softmax are written out, so that every engine takes them."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.projection = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        # A bias would shift all logits of a position alike, which softmax does not see.
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.norm_bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.widen, self.narrow = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor, random: torch.Generator | None = None, dropout: float = 0.0) -> torch.Tensor:
        x = self._normalized(self._dropped(self.projection(self._attended(x)), random, dropout) + x)
        hidden = self._dropped(F.gelu(self.widen(x)), random, dropout)
        return self._dropped(self.narrow(hidden), random, dropout) + x

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, h, w = x.shape
        width = channels // self.heads
        q, k, v = (layer(x).reshape(-1, self.heads, width, h * w) for layer in (self.query, self.key, self.value))
        weights = torch.softmax((q * width**-0.5).transpose(2, 3) @ k, dim=3)
        return (v @ weights.transpose(2, 3)).reshape(-1, channels, h, w)

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        """Layer normalization over channels."""
        x = x - x.mean(1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * self.norm_weight + self.norm_bias

    @staticmethod
    def _dropped(x: torch.Tensor, random: torch.Generator | None, dropout: float) -> torch.Tensor:
        if random is None or not dropout:
            return x
        return x * (torch.rand(x.shape, generator=random, device=x.device) >= dropout) / (1 - dropout)


class ClassAttention:
    """What the class token of a ViT's last block attends to while the context is open.

    Attributes:
        weights: (N, heads, positions) of the last pass; None of a backbone without a class token.
    """

    def __init__(self, backbone: Backbone) -> None:
        blocks = [stage for stage in backbone.stages.values() if isinstance(stage, VitBlock)]
        self.attention = blocks[-1].attn if blocks else None
        self.weights: torch.Tensor | None = None

    def __enter__(self) -> ClassAttention:
        if self.attention is not None:
            self.hook = self.attention.qkv.register_forward_hook(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self.attention is not None:
            self.hook.remove()

    def _take(self, module: nn.Module, args: Any, qkv: torch.Tensor) -> None:
        q, k, _ = qkv.unflatten(2, (3, self.attention.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q[:, :, :1] @ k.transpose(2, 3)).squeeze(2) * q.shape[3] ** -0.5
        self.weights = logits.softmax(2)[:, :, 1:]


def _unusual(features: torch.Tensor) -> torch.Tensor:
    """Squared distance of each position's features to their mean over the patch, (N, 1, positions): of backbones
    without a class token, what an attention finds."""
    return (features - features.mean((2, 3), keepdim=True)).square().sum(1).flatten(1)[:, None]


def _noise(features: torch.Tensor, sigma: float, random: torch.Generator) -> torch.Tensor:
    return sigma * torch.randn(features.shape, generator=random, device=features.device)


def distorted(
    features: torch.Tensor, attended: torch.Tensor, kind: str, sigma: float, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of which some positions, from one to all of them, are distorted.

    Args:
        features: (N, C, h, w).
        attended: (N, heads, h * w), larger where more attention is.
        kind: of `method.distortions`. Positions are random ones, or with `attended_` those that a random head attends
            to most; `noise` adds Gaussian noise, `shuffle` permutes them, `copy` puts random ones of the patch there.

    Returns:
        Distorted features (N, C, h, w), and which positions are, (N, h * w) float 0 or 1.

    Source: arXiv 2407.12427, section 3.2.
    """
    n, _, h, w = features.shape
    positions, device = h * w, features.device

    def draw() -> torch.Tensor:
        return torch.rand((n, positions), generator=random, device=device)

    count = torch.randint(1, positions + 1, (n, 1), generator=random, device=device)
    head = torch.randint(0, attended.shape[1], (n, 1, 1), generator=random, device=device)
    rank = attended.gather(1, head.expand(-1, 1, positions)).squeeze(1) if kind.startswith("attended") else draw()
    chosen = rank.argsort(1, descending=True)  # the first `count` are distorted
    first = torch.arange(positions, device=device).expand(n, -1) < count
    mask = torch.zeros(n, positions, device=device).scatter(1, chosen, first.float())
    if kind.endswith("noise"):
        return features + _noise(features, sigma, random) * mask.view(n, 1, h, w), mask
    shuffled = (draw() + 2 * ~first).argsort(1)  # a permutation of the first ones, then the others
    source = chosen.gather(1, shuffled) if kind.endswith("shuffle") else draw().argsort(1)
    source = torch.empty_like(chosen).scatter(1, chosen, torch.where(first, source, chosen))
    flat = features.flatten(2)
    return flat.gather(2, source[:, None].expand_as(flat)).view_as(features), mask


def _balanced_cross_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the positions inside the mask plus that of the others; a part without positions is 0."""
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return sum((each * part).sum() / part.sum().clamp_min(1) for part in (mask, 1 - mask))
