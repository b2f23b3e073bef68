"""PatchCore: the distance of locally averaged features to the nearest ones of good patches, a bank of which is kept.

Source: Roth et al., "Towards total recall in industrial anomaly detection", arXiv 2106.08265, section 3.
Departures: the default backbone is EfficientNet-Lite0; features are centered and scaled, all channels by one number,
which changes distances by a factor only and leaves less to cancel; upsampling and smoothing are one Gaussian; the score
is the largest value of the map unless `method.score` asks for the published one.
"""

from __future__ import annotations

import torch
from torch import nn

from grd_edge.config import Config
from grd_edge.models.backbones import backbone_from_config
from grd_edge.models.coreset import greedy_coreset, sampled_rows
from grd_edge.models.maps import GaussianUpsampling, JoinedFeatures
from grd_edge.models.method import GoodPatches, Method

LAYERS = ("stride8", "stride16")


class PatchCore(Method):
    """The bank is a 1x1 convolution: engines and INT8 take its products as those of any other layer.

    With centered features f and rows b of the bank, |f - b|^2 = |f|^2 - (2 f b - |b|^2), and the term in parentheses is
    what the convolution gives; its largest value over the bank belongs to the nearest row.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        method, model = config.method, config.model
        self.features = JoinedFeatures(backbone_from_config(method.backbone, LAYERS), zeros=True)
        channels = self.features.channels
        self.register_buffer("center", torch.zeros(1, channels, 1, 1))
        self.register_buffer("scale", torch.ones(1))
        self.reduction = None
        if method.features is not None and method.features < channels:
            self.reduction = nn.Conv2d(channels, method.features, 1, bias=False)
        neighbors = torch.zeros(1, method.neighbors, dtype=torch.int64) if method.score == "reweighted" else None
        self.register_buffer("neighbors", neighbors)
        self._resize_bank(1)
        self.upsampling = GaussianUpsampling((model.patch_h, model.patch_w), self.features.stride, method.smoothing)
        self.requires_grad_(False)

    def _resize_bank(self, rows: int) -> None:
        channels = self.features.channels if self.reduction is None else self.reduction.out_channels
        self.bank = nn.Conv2d(channels, rows, 1).to(self.center.device).requires_grad_(False)
        if self.neighbors is not None:
            self.neighbors = self.neighbors.new_zeros(rows, self.neighbors.shape[1])

    # -------------------------------------------------------------- inference

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self._embedded(x)
        norms = embedded.square().sum(1, keepdim=True)
        products = self.bank(embedded)
        distances = (norms - products.amax(1, keepdim=True)).clamp_min(0).sqrt()
        maps = self.upsampling(distances)
        if self.neighbors is None:
            return maps.amax((1, 2, 3)), maps
        return self._reweighted(distances.flatten(1), norms.flatten(1), products.flatten(2)), maps

    def _embedded(self, x: torch.Tensor) -> torch.Tensor:
        embedded = (self.features(x) - self.center) * self.scale
        return embedded if self.reduction is None else self.reduction(embedded)

    def _reweighted(self, distances: torch.Tensor, norms: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Score (N,) of the most distant position, less where the neighbors of its nearest row are as distant.

        Source: equation 7: s = (1 - exp(d*) / sum over b neighbors of exp(d)) d*.
        """
        at = distances.argmax(1, keepdim=True)
        there = products.gather(2, at[:, None].expand(-1, products.shape[1], -1)).squeeze(2)
        near = self.neighbors[there.argmax(1)]
        to_near = (norms.gather(1, at) - there.gather(1, near)).clamp_min(0).sqrt()
        return (1 - to_near.softmax(1)[:, 0]) * to_near[:, 0]

    # --------------------------------------------------------------- training

    def load_pretrained(self) -> None:
        self.provenance["backbone"] = self.features.backbone.load(self.config.method.backbone)

    def finish(self, patches: GoodPatches) -> None:
        """The bank: a coreset of the positions of all good patches."""
        method, random = self.config.method, torch.Generator().manual_seed(self.config.train.seed)
        found = (self.features(x.to(self.center.device)).permute(0, 2, 3, 1).flatten(0, 2) for x in patches.every())
        rows, total = sampled_rows((each.cpu() for each in found), method.candidates, random)
        center = rows.mean(0)
        rows = rows - center
        scale = 1 / rows.square().mean().sqrt().clamp_min(1e-12)
        rows *= scale
        self.center.copy_(center.view(1, -1, 1, 1))
        self.scale.copy_(scale)
        if self.reduction is not None:
            axes = torch.linalg.eigh(rows.double().T @ rows.double()).eigenvectors[:, -self.reduction.out_channels :]
            self.reduction.weight.copy_(axes.T.float()[:, :, None, None])
            rows = rows @ axes.float()
        held = int(method.bank_mb * 2**20 / (4 * (rows.shape[1] + 1)))
        count = max(1, min(held, round(method.coreset_share * total)))
        bank = rows[greedy_coreset(rows, count, random)]
        self._resize_bank(len(bank))
        self.bank.weight.copy_(2 * bank[:, :, None, None])
        self.bank.bias.copy_(-bank.square().sum(1))
        if self.neighbors is not None:
            order = torch.cdist(bank, bank).argsort(1)
            # Where the bank has fewer rows than neighbors are asked for, the farthest one stands for the others.
            places = torch.arange(self.neighbors.shape[1]).clamp_max(len(bank) - 1)
            self.neighbors.copy_(order[:, places])
        self.provenance["bank"] = {"positions": total, "candidates": len(rows), "rows": len(bank)}
        patches.note(f"the bank holds {len(bank)} of {total} positions, {4e-6 * bank.numel():.2g} MB")

    def fit_shapes(self, weights: dict[str, torch.Tensor]) -> None:
        if "bank.bias" in weights:
            self._resize_bank(len(weights["bank.bias"]))
