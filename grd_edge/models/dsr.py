"""DSR: two decoders of one quantized latent space, one of which knows good parts only; anomalies are made of codes.

Source: Zavrtanik et al., "DSR - A dual subspace re-projection network for surface anomaly detection", ECCV 2022,
arXiv 2208.01521; shapes, draws and weights of the losses are those of the authors' code
(github.com/VitjanZ/DSR_anomaly_detection). BatchNorm stands for their InstanceNorm: it costs nothing at inference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.data.perlin import perlin_mask, perlin_noise, uniform
from grd_edge.data.perturb import perturb
from grd_edge.files import sha256_hex
from grd_edge.losses import focal_loss
from grd_edge.method_config import DsrConfig
from grd_edge.models.backbones import tensors_of
from grd_edge.models.method import GoodPatches, Method
from grd_edge.models.quantized import DiscreteLatents, ImageDecoder, Latents, VectorQuantizer, keep_scale
from grd_edge.models.unet import Hourglass, UNet, anomaly_logits, box_mean, check_halvings, conv_pair, stage_widths

HALVINGS = 5  # H / 8 of the low latents, halved twice more by their restriction
TOO_NEAR = 0.05  # share of the codes nearest to a feature that are no anomaly
START_BATCHES = 2  # whose statistics the networks start from
UNQUANTIZED = 0.4  # share of the steps of the latent space before there are codes
IMAGE_WEIGHT = 10.0  # of the squared error of the object-specific image


class ObjectDecoder(nn.Module):
    """Object-specific decoder: quantized features (N, in_channels, H / 4, W / 4) -> image (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        between = max(1, hidden // 2)
        wide = 4 * in_channels
        self.down = nn.Sequential(
            conv_pair(in_channels, in_channels, 2 * in_channels),
            nn.MaxPool2d(2),
            conv_pair(2 * in_channels, 2 * in_channels, wide),
            nn.MaxPool2d(2),
            nn.Conv2d(wide, between, 1),
        )
        self.up_1 = nn.ConvTranspose2d(between, between, 4, stride=2, padding=1)
        self.up_2 = nn.ConvTranspose2d(between, between, 4, stride=2, padding=1)
        self.image = ImageDecoder(between, out_channels, hidden, between)
        keep_scale(self)

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return self.image(F.relu(self.up_2(F.relu(self.up_1(self.down(q))))))


def anomalous_codes(
    z: torch.Tensor,
    q: torch.Tensor,
    mask: torch.Tensor,
    quantizer: VectorQuantizer,
    strength: torch.Tensor,
    random: torch.Generator,
) -> torch.Tensor:
    """q with other codes inside the mask: drawn from those nearest to z, less the very nearest, a share per image.

    Args:
        z, q: features before and after quantization, (N, dim, h, w).
        mask: (N, 1, H, W), 0 or 1, H and W multiples of h and w; a position is inside where any of its pixels is.
        strength: (N,) in (0, 1], share of the codes that are near enough.

    Source: arXiv 2208.01521, section 3.3.
    """
    n, _, h, w = z.shape
    inside = _at_positions(mask, h, w)[:, 0] > 0
    codes = len(quantizer.codebook)
    first = int(TOO_NEAR * codes)
    near = (strength * codes).long().add(1).clamp(first + 1, max(first + 1, codes - 1))
    # A draw for every position, so that later draws do not depend on the masks.
    share = torch.rand((n, h, w), generator=random, device=z.device)
    rank = first + (share * (near - first)[:, None, None]).long().clamp(max=codes - 1 - first)
    order = quantizer.by_distance(z.movedim(1, -1)[inside])
    changed = q.movedim(1, -1).clone()
    changed[inside] = quantizer.codebook[order.gather(1, rank[inside][:, None])[:, 0]]
    return changed.movedim(-1, 1)


def _at_positions(mask: torch.Tensor, h: int, w: int) -> torch.Tensor:
    return F.max_pool2d(mask, (mask.shape[2] // h, mask.shape[3] // w))


class Dsr(Method):
    """The map compares what the general and the object-specific decoder make of the patch's codes, smoothed.

    Training has up to three parts: codebooks with encoder and general decoder (where no weights are given), then
    restriction, object-specific decoder and detection on anomalies made of codes, then the upsampling network.
    """

    stepped = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings: DsrConfig = config.method
        settings, channels = self.settings, config.model.channels
        check_halvings(config.model, HALVINGS, "dsr")
        dim = settings.code_dim
        self.discrete = DiscreteLatents(channels, settings.hidden, settings.codes, dim)
        widths = stage_widths(dim, 2)
        self.restrict_lo = Hourglass(dim, dim, widths, ahead=False)
        self.restrict_hi = Hourglass(dim, dim, widths, ahead=False)
        self.specific = ObjectDecoder(2 * dim, channels, settings.hidden)
        self.detection = UNet(2 * channels, 2, settings.base, 3, most=4, ahead=False)
        self.upsampling = None
        if settings.upsampling:
            self.upsampling = UNet(2 * channels + 2, 2, settings.base, 3, most=4, ahead=False)

    # -------------------------------------------------------------- inference

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, logits = self._detected(x)
        if self.upsampling is not None:
            logits = self._refined(images, logits)
        maps = box_mean(torch.sigmoid(anomaly_logits(logits)), self.settings.smoothing_px)
        return maps.amax((1, 2, 3)), maps

    def _detected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both images of a patch (N, 2 C, H, W), the object-specific one first, and logits (N, 2, H, W)."""
        discrete = self.discrete
        _, latents = discrete.encode(x)
        general = discrete.decoder_b(discrete.joined(latents.q_lo, latents.q_hi))
        q_lo = discrete.vq_vae_top(self.restrict_lo(latents.q_lo))
        q_hi = discrete.vq_vae_bot(self.restrict_hi(latents.q_hi))
        images = torch.cat([self.specific(discrete.joined(q_lo, q_hi)), general], dim=1)
        return images, self.detection(images)

    def _refined(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return self.upsampling(torch.cat([images, logits.softmax(1)], dim=1))

    # --------------------------------------------------------------- training

    def load_pretrained(self) -> None:
        """Raises ConfigError as `tensors_of` and `DiscreteLatents.take`."""
        settings = self.settings
        if settings.weights is None:
            self.provenance["codebooks"] = {"substitute": "these images and textures on them, in place of ImageNet"}
            return
        path = Path(settings.weights)
        self.discrete.take(tensors_of(path), str(path))
        self.provenance["codebooks"] = {"source": path.name, "sha256": sha256_hex(path.read_bytes())}

    @torch.no_grad()
    def begin(self, patches: GoodPatches) -> None:
        x = torch.cat([patches.drawn(step) for step in range(START_BATCHES)])
        if self.settings.weights is None:
            self.discrete.start(x)
        self.specific.image.start(x)

    def groups(self) -> list[dict[str, Any]]:
        parts = self.children() if self.settings.weights is None else self._taught()
        return [{"params": [each for part in parts for each in part.parameters()], "share": 1.0}]

    def _taught(self) -> list[nn.Module]:
        """What is trained on anomalies: all but the latent space."""
        return [part for part in self.children() if part is not self.discrete]

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        settings = self.settings
        latent = settings.weights is None and step < settings.codebook_share * steps
        # Gradients pass through the latent space to what is below it, and it stays as it is.
        self.discrete.requires_grad_(latent)
        if latent:
            return self._latent_loss(x, step >= UNQUANTIZED * settings.codebook_share * steps, random)
        if self.upsampling is not None and step >= (1 - settings.upsampling_share) * steps:
            return self._upsampling_loss(x, random)
        return self._detection_loss(x, random)

    def _latent_loss(self, x: torch.Tensor, quantized: bool, random: torch.Generator) -> dict[str, torch.Tensor]:
        """Images with textures on them: good ones alone leave no codes for anything else, which ImageNet gives."""
        with torch.no_grad():
            x = perturb(x, self.config.perturbation.model_copy(update={"probability": 1.0}), random).x_noisy
        return self.discrete.loss(x, quantized, self.settings.codebook_decay, random)

    def _detection_loss(self, x: torch.Tensor, random: torch.Generator) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            good, q_lo, q_hi, target = self.anomalous(x, random)
            general = self.discrete.decoder_b(self.discrete.joined(q_lo, q_hi))
        restored_lo, restored_hi = self.restrict_lo(q_lo), self.restrict_hi(q_hi)
        specific = self.specific(
            self.discrete.joined(
                self.discrete.vq_vae_top.straight_through(restored_lo),
                self.discrete.vq_vae_bot.straight_through(restored_hi),
            )
        )
        logits = self.detection(torch.cat([specific.detach(), general], dim=1))
        return {
            "restriction_lo": F.mse_loss(restored_lo, good.q_lo),
            "restriction_hi": F.mse_loss(restored_hi, good.q_hi),
            "specific_l2": IMAGE_WEIGHT * F.mse_loss(specific, x),
            "focal": focal_loss(anomaly_logits(logits.float()), target),
        }

    def _upsampling_loss(self, x: torch.Tensor, random: torch.Generator) -> dict[str, torch.Tensor]:
        """The upsampling network alone learns, on spots of one color in the image itself."""
        flat = self.config.perturbation.model_copy(update={"textures": ("flat",)})
        learnt = [part for part in self._taught() if part is not self.upsampling]
        with torch.no_grad():
            x_noisy, mask, *_ = perturb(x, flat, random)
            for part in learnt:
                part.eval()
            images, logits = self._detected(x_noisy)
            for part in learnt:
                part.train()
        return {"upsampling_focal": focal_loss(anomaly_logits(self._refined(images, logits).float()), mask)}

    @torch.no_grad()
    def anomalous(
        self, x: torch.Tensor, random: torch.Generator
    ) -> tuple[Latents, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents of good patches, q of both resolutions with anomalies, and the target (N, 1, H, W), 0 or 1.

        Half of the anomalies are in both resolutions, a quarter in either; those of the low one change what the encoder
        makes of the high one. Targets are as coarse as the positions of the lowest changed one.
        """
        (n, _, h, w), device = x.shape, x.device
        config = self.config.perturbation
        mask = perlin_mask(perlin_noise(n, h, w, random), config.min_area_px)
        mask = mask * (torch.rand((n, 1, 1, 1), generator=random, device=device) < config.probability)
        strength = uniform((2, n), self.settings.similarity, 1, random)
        both, lo_only = torch.randint(0, 2, (2, n, 1, 1, 1), generator=random, device=device).bool()
        lo = both | lo_only

        features, good = self.discrete.encode(x)
        top, bottom = self.discrete.vq_vae_top, self.discrete.vq_vae_bot
        changed = anomalous_codes(good.z_lo, good.q_lo, mask, top, strength[0], random)
        q_lo = torch.where(lo, changed, good.q_lo)
        z_hi = torch.where(both, self.discrete.high(features, changed), good.z_hi)
        changed = anomalous_codes(z_hi, bottom(z_hi), mask, bottom, strength[1], random)
        q_hi = torch.where(lo_only & ~both, good.q_hi, changed)

        coarse, fine = (
            F.interpolate(_at_positions(mask, *q.shape[2:]), size=(h, w), mode="nearest") for q in (q_lo, q_hi)
        )
        return good, q_lo, q_hi, torch.where(lo, coarse, fine)

    def prune(self) -> None:
        self.discrete.prune()
