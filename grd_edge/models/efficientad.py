"""EfficientAD-S: a student imitates a teacher and an autoencoder on good patches; where it fails is anomalous.

The published teacher is PDN-S distilled from a WideResNet-101 on ImageNet, and the penalty sees ImageNet, too. Neither
can be had everywhere: `method.teacher` and `method.images` take them from paths. Without them the teacher is distilled
here, from the backbone at hand and the good patches, and textures stand for ImageNet; `provenance` says so.

Source: arXiv 2303.14535, section 3 and appendix A.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.config import Config
from grd_edge.data.images import file_sha256
from grd_edge.data.patterns import synthetic_textures
from grd_edge.data.perturb import perturb
from grd_edge.data.textures import TextureImages
from grd_edge.errors import ConfigError
from grd_edge.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, backbone_from_config, tensors_of
from grd_edge.models.method import GoodPatches, Method
from grd_edge.models.moments import channel_moments
from grd_edge.models.pdn import DESCRIPTORS, Autoencoder, PatchDescription, described_size, scaled_width
from grd_edge.pace import steps_within

LAYERS = ("stride8", "stride16")  # of the backbone
QUANTILES = (0.9, 0.995)
# Weights of the published `nn.Sequential`, by position.
SEQUENTIAL = {"0": "conv1", "3": "conv2", "6": "conv3", "8": "conv4"}
JITTER = 0.2
TEACHER_STREAM = 0x7EAC  # sets the random numbers of the distillation apart from those of the steps
KEPT_CELLS = 1 << 22  # of the maps of good patches, for their quantiles
DISTILL_LR = 2e-4  # published: 1e-4
DISTILL_SHARE = 0.4  # of train.seconds, at most
TIMED_STEPS = 2  # each costs about as much as any other, and several of the student's
RIDGE = 1e-2  # of the mean of the Gram matrix' diagonal
NORMALIZING_BATCHES = 8


class EfficientAd(Method):
    """Teacher, student and autoencoder; see the module.

    Raises:
        ConfigError: a patch that is no multiple of 32 px, or too small for networks without padding.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        method, model = config.method, config.model
        patch = (model.patch_h, model.patch_w)
        least = 32 if method.padding else 64
        if any(extent % 32 or extent < least for extent in patch):
            raise ConfigError(
                f"patch {model.patch_h}x{model.patch_w} does not fit method efficientad; choose multiples of 32 px of "
                f"at least {least}"
            )
        self.described = scaled_width(DESCRIPTORS, method.width)
        self.teacher = PatchDescription(self.described, method.width, method.padding).requires_grad_(False)
        self.student = PatchDescription(2 * self.described, method.width, method.padding)
        self.autoencoder = Autoencoder(self.described, method.width, method.padding, patch)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        # What makes the two maps comparable: map * scale + offset.
        self.register_buffer("scale", torch.ones(1, 2, 1, 1))
        self.register_buffer("offset", torch.zeros(1, 2, 1, 1))
        self._aids: dict[str, Any] = {}  # for training only: no part of the state

    # -------------------------------------------------------------- inference

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = (self._maps(x) * self.scale + self.offset).mean(1, keepdim=True)
        if not self.config.method.padding:
            # The cells that are left out at the border get their neighbors' values, not 0, which would be a value.
            maps = F.pad(maps, (4, 4, 4, 4), mode="replicate")
        maps = F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=False)
        return maps.amax((1, 2, 3)), maps

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized as ImageNet's; grey becomes three channels."""
        return (x - self.mean) / self.std

    def _maps(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 2, H', W'): mean squares of teacher less student, and of autoencoder less student."""
        x = self._normalized(x)
        of_teacher, of_autoencoder = self.student(x).split(self.described, 1)
        pairs = ((self.teacher(x), of_teacher), (self.autoencoder(x), of_autoencoder))
        return torch.cat([(a - b).square().mean(1, keepdim=True) for a, b in pairs], 1)

    # --------------------------------------------------------------- training

    def load_pretrained(self) -> None:
        """Reads the teacher and the images that are none of the part, or what stands for them.

        Raises:
            ConfigError: as `Backbone.load` and `_load_teacher`.
            InputError: as `TextureImages`.
        """
        method = self.config.method
        if images := self._folder():
            counts = {"images": images.kept, "found": images.found}
            self.provenance["images"] = {"folder": Path(method.images).name, **counts}
        else:
            self.provenance["images"] = {"substitute": "synthetic textures, in place of ImageNet"}
        if method.teacher:
            self.provenance["teacher"] = _load_teacher(self.teacher, Path(method.teacher))
        else:
            self._aids["backbone"] = backbone = backbone_from_config(method.backbone, LAYERS).to(self.mean.device)
            self.provenance["backbone"] = about = backbone.load(method.backbone)
            self.provenance["teacher"] = {
                "substitute": f"distilled from {about['name']} on good patches and other images, in place of "
                "WideResNet-101 on ImageNet"
            }

    def _folder(self) -> TextureImages | None:
        """The images of `method.images`, read when they are first needed: a run that is resumed loads nothing else."""
        method = self.config.method
        if method.images and "images" not in self._aids:
            self._aids["images"] = TextureImages(Path(method.images), self.config.model, method.images_mb)
        return self._aids.get("images")

    def others(self, n: int, random: torch.Generator) -> torch.Tensor:
        """(n, C, patch_h, patch_w) in [0, 1] of images that are none of the part."""
        if images := self._folder():
            return images.draw(n, random)
        model = self.config.model
        return synthetic_textures(n, model.channels, model.patch_h, model.patch_w, random)

    def begin(self, patches: GoodPatches) -> None:
        if backbone := self._aids.pop("backbone", None):
            train, began = self.config.train, time.perf_counter()
            lesson = Distillation(self, backbone, patches)
            lesson.start()
            # Where time bounds the run and not steps, the student needs its part of it, too.
            spent = time.perf_counter() - began
            lesson.run(None if train.steps else train.seconds * DISTILL_SHARE - spent)
        self._normalize_teacher(patches)

    @torch.no_grad()
    def _normalize_teacher(self, patches: GoodPatches) -> None:
        """Folds into the teacher's last layer what gives each channel mean 0 and variance 1 on good patches."""
        mean, std = channel_moments(self.teacher(self._normalized(x.to(self.mean))) for x in patches.spread())
        self.teacher.conv4.weight /= std.view(-1, 1, 1, 1)
        self.teacher.conv4.bias.sub_(mean).div_(std)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self.student.parameters(), *self.autoencoder.parameters()], "share": 1.0}]

    def loss(self, x: torch.Tensor, random: torch.Generator, step: int, steps: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            other = self.others(len(x), random)
            good, jittered, other = (self._normalized(each) for each in (x, color_jittered(x, random), other))
            taught = self.teacher(torch.cat([good, jittered]))
        taught, taught_jittered = taught.chunk(2)
        found = self.student(torch.cat([good, other, jittered]))
        of_good, of_other = found[: 2 * len(x), : self.described].chunk(2)
        described = self.autoencoder(jittered, random)
        return {
            "student": hardest_mean((taught - of_good).square(), self.config.method.p_hard),
            "penalty": of_other.square().mean(),
            "autoencoder": F.mse_loss(described, taught_jittered),
            "student_autoencoder": F.mse_loss(found[2 * len(x) :, self.described :], described),
        }

    @torch.no_grad()
    def finish(self, patches: GoodPatches) -> None:
        """Scales both maps so that the quantiles 0.9 and 0.995 of good patches become 0 and 0.1."""
        low, high = map_quantiles(self._maps(x.to(self.mean)) for x in patches.spread())
        scale = 0.1 / (high - low).clamp_min(1e-12)
        self.scale.copy_(scale.view(1, 2, 1, 1))
        self.offset.copy_((-low * scale).view(1, 2, 1, 1))

    def prune(self) -> None:
        self._aids.clear()


class Distillation:
    """A teacher that predicts what a backbone says of patches twice as large: as published, from what is at hand.

    Features of the backbone's layers, brought to the grid of the PDN and normalized per channel, are projected by a
    fixed random orthonormal matrix to as many channels as the teacher has, and normalized again.
    Half of the images are good patches, every second one with perturbations, so that the teacher knows more than the
    student will see; the other half are textures or the images of `method.images`.

    Args:
        net: whose teacher is trained.
    """

    def __init__(self, net: EfficientAd, backbone: Backbone, patches: GoodPatches) -> None:
        self.net, self.backbone, self.patches, self.config = net, backbone, patches, net.config
        model = self.config.model
        self.size = tuple(described_size(extent, True) for extent in (model.patch_h, model.patch_w))
        self.border = 0 if self.config.method.padding else 4
        draw = self._generator(0)
        square = torch.randn((max(sum(backbone.channels), net.described),) * 2, generator=draw, device=draw.device)
        self.projection = torch.linalg.qr(square)[0][: net.described, : sum(backbone.channels)]
        batches = [self._features(self._images(step)) for step in range(NORMALIZING_BATCHES)]
        self.moments = _per_channel(channel_moments(batches))
        self.projected_moments = _per_channel(channel_moments(self._projected(batch) for batch in batches))

    @torch.no_grad()
    def start(self) -> None:
        """Random convolutions that keep the scale, and the last one solved by ridge regression on a few batches: from
        the usual start a run of minutes teaches nothing.

        Source: the scale is that of arXiv 1502.01852.
        """
        teacher, draw = self.net.teacher, self._generator(0)
        for conv in (teacher.conv1, teacher.conv2, teacher.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=draw)
            nn.init.zeros_(conv.bias)
        gram, products = 0, 0
        for step in range(NORMALIZING_BATCHES):
            x = self._images(step)
            seen = F.unfold(teacher.hidden(self.net._normalized(x)), 4).transpose(0, 1).flatten(1)
            seen = torch.cat([seen, torch.ones_like(seen[:1])])
            gram, products = gram + seen @ seen.T, products + seen @ self._target(x).transpose(0, 1).flatten(1).T
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        solved = torch.linalg.solve(gram.double(), products.double()).float()
        teacher.conv4.weight.copy_(solved[:-1].T.reshape(teacher.conv4.weight.shape))
        teacher.conv4.bias.copy_(solved[-1])

    def run(self, seconds: float | None) -> None:
        """After `start`: `method.distill_steps` steps, or as many of them as fit into `seconds`."""
        teacher, steps = self.net.teacher.requires_grad_(True), self.config.method.distill_steps
        if seconds is not None:
            steps = min(steps, self._steps_within(seconds))
        adam = self._adam()
        for step in range(steps):
            loss = self._step(adam, step, steps)
        adam.zero_grad()
        teacher.requires_grad_(False)
        about = self.net.provenance["teacher"]
        about |= {
            "substitute": f"{about['substitute']}, in {steps} steps",
            "steps": steps,
            "loss": round(loss.item(), 4),
        }

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.net.teacher.parameters(), lr=DISTILL_LR)

    def _step(self, adam: torch.optim.Adam, step: int, steps: int) -> torch.Tensor:
        for group in adam.param_groups:
            group["lr"] = DISTILL_LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        x = self._images(NORMALIZING_BATCHES + step)
        loss = F.mse_loss(self.net.teacher(self.net._normalized(x)), self._target(x))
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    def _steps_within(self, seconds: float) -> int:
        """Steps that fit, from timing a few that are then undone."""
        before = {key: value.clone() for key, value in self.net.teacher.state_dict().items()}
        adam, planned = self._adam(), self.config.method.distill_steps
        steps = steps_within(seconds, lambda step: self._step(adam, step, planned), period=TIMED_STEPS)
        self.net.teacher.load_state_dict(before)
        return steps

    def _generator(self, step: int) -> torch.Generator:
        entropy = (self.config.train.seed, TEACHER_STREAM, step)
        draw = torch.Generator(device=self.net.mean.device)
        return draw.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    @torch.no_grad()
    def _images(self, step: int) -> torch.Tensor:
        """Batch of a step; a function of the seed and the step."""
        draw = self._generator(1 + step)
        x = self.patches.drawn(step)
        good = x[: -(-len(x) // 2)]
        damaged = perturb(good, self.config.perturbation, draw).x_noisy
        other = self.net.others(len(x) - len(good), draw)
        return torch.cat([good[::2], damaged[1::2], other])

    @torch.no_grad()
    def _features(self, x: torch.Tensor) -> torch.Tensor:
        layers = self.backbone(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        layers = [F.interpolate(each, self.size, mode="bilinear", align_corners=False) for each in layers]
        b = self.border
        return torch.cat(layers, 1)[:, :, b : self.size[0] - b, b : self.size[1] - b]

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        mean, std = self.moments
        return torch.einsum("oc,nchw->nohw", self.projection, (features - mean) / std)

    def _target(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self.projected_moments
        return (self._projected(self._features(x)) - mean) / std


def _per_channel(moments: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation as they act on maps (N, C, H, W)."""
    mean, std = (each.view(1, -1, 1, 1) for each in moments)
    return mean, std


def _load_teacher(teacher: PatchDescription, path: Path) -> dict[str, Any]:
    """Reads a teacher's weights, by the names of anomalib's network or the positions in the common `nn.Sequential`.

    Raises:
        ConfigError: a file that cannot be read, or one of another network or width.
    """
    given = tensors_of(path)
    for position, name in SEQUENTIAL.items():
        for kind in ("weight", "bias"):
            if f"{position}.{kind}" in given:
                given[f"{name}.{kind}"] = given.pop(f"{position}.{kind}")
    expected = {key: list(value.shape) for key, value in teacher.state_dict().items()}
    found = {key: list(value.shape) for key, value in given.items()}
    if expected != found:
        key = min(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ConfigError(
            f"{path} is no teacher of this network: {key} has shape {found.get(key)}, expected {expected.get(key)}; "
            "give a PDN-S of the width method.width, 1.0 for the published one"
        )
    teacher.load_state_dict(given)
    return {"file": path.name, "sha256": file_sha256(path)}


def color_jittered(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Brightness, contrast or saturation of each image times U(0.8, 1.2); of grey ones brightness or contrast."""
    n, channels = x.shape[:2]
    kind, factor = torch.rand((2, n, 1, 1, 1), generator=random, device=x.device)
    factor = 1 + JITTER * (2 * factor - 1)
    kind = (kind * (3 if channels == 3 else 2)).long()
    grey = x.mean(1, keepdim=True)
    center = torch.where(kind == 0, 0, torch.where(kind == 1, grey.mean((2, 3), keepdim=True), grey))
    return torch.lerp(center, x, factor).clamp(0, 1)


def hardest_mean(distances: torch.Tensor, p_hard: float) -> torch.Tensor:
    """L_hard: mean of the largest share 1 - p_hard of all distances."""
    flat = distances.flatten()
    return flat.topk(max(1, round((1 - p_hard) * len(flat)))).values.mean()


@torch.no_grad()
def map_quantiles(maps: Iterator[torch.Tensor]) -> torch.Tensor:
    """Quantiles 0.9 and 0.995 of each channel of maps (N, C, H, W): (2, C). Of many cells every second one counts, as
    often as needed."""
    kept: list[torch.Tensor] = []
    every = 1
    for batch in maps:
        kept.append(batch.transpose(0, 1).flatten(1)[:, ::every].cpu())
        if sum(each.shape[1] for each in kept) > KEPT_CELLS:
            kept, every = [each[:, ::2] for each in kept], 2 * every
    cells = torch.cat(kept, 1).numpy()
    return torch.from_numpy(np.quantile(cells, QUANTILES, axis=1).astype(np.float32))
