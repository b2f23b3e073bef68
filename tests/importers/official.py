"""The authors' checkpoint format, from the facts in docs/design/official-checkpoints.md: files and a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

# Large enough that images differ in their reconstructions, small enough that rounding stays below 1e-6.
GAIN = 1.4


@dataclass(frozen=True)
class Shape:
    """A generator in the terms of the authors' YAML."""

    channels: int = 1
    base: int = 8
    stages: tuple[int, ...] = (2, 2)
    dense: bool = True
    latent: int = 8
    patch: tuple[int, int] = (16, 16)
    down: str = "last"
    up: str = "last"
    segmentor: int = 8

    @property
    def top(self) -> int:
        return self.base * 2 ** (len(self.stages) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        return self.patch[0] >> len(self.stages), self.patch[1] >> len(self.stages)

    def encoder_blocks(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, stride) of each block."""
        blocks, inputs = [], self.base
        for stage, count in enumerate(self.stages):
            for index in range(count):
                halves = index == (0 if self.down == "first" else count - 1)
                blocks.append((inputs, self.base << stage, 2 if halves else 1))
                inputs = self.base << stage
        return blocks

    def decoder_blocks(self) -> list[tuple[int, int, bool]]:
        """(inputs, outputs, doubles the size) of each block."""
        blocks, inputs = [], self.top
        for stage in reversed(range(len(self.stages))):
            count = self.stages[stage]
            for index in range(count):
                blocks.append((inputs, self.base << stage, index == (0 if self.up == "first" else count - 1)))
                inputs = self.base << stage
        return blocks


class _Weights(dict):
    """Random weights by name; statistics of BatchNorm are far from trivial."""

    def draw(self, name: str, *size: int, fan: int = 0) -> None:
        self[name] = GAIN * torch.randn(size) / fan**0.5 if fan else 0.3 * torch.randn(size)

    def conv(self, name: str, inputs: int, outputs: int, px: int) -> None:
        self.draw(f"{name}.weight", outputs, inputs, px, px, fan=inputs * px * px)

    def bn(self, name: str, features: int) -> None:
        self[f"{name}.weight"] = 0.4 + 0.8 * torch.rand(features)
        self.draw(f"{name}.bias", features)
        self.draw(f"{name}.running_mean", features)
        self[f"{name}.running_var"] = 0.5 + 2 * torch.rand(features)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def residual(self, name: str, inputs: int, outputs: int, stride: int) -> None:
        self.conv(f"{name}.conv1", inputs, outputs, 3)
        self.bn(f"{name}.bn1", outputs)
        self.conv(f"{name}.conv2", outputs, outputs, 3)
        self.bn(f"{name}.bn2", outputs)
        if stride != 1 or inputs != outputs:
            self.conv(f"{name}.proj.0", inputs, outputs, 1)
            self.bn(f"{name}.proj.1", outputs)

    def encoder(self, name: str, shape: Shape) -> None:
        self.conv(f"{name}.stem.0", shape.channels, shape.base, 3)
        self.bn(f"{name}.stem.1", shape.base)
        for i, (inputs, outputs, stride) in enumerate(shape.encoder_blocks()):
            self.residual(f"{name}.blocks.{i}", inputs, outputs, stride)


def generator_state(shape: Shape) -> dict[str, torch.Tensor]:
    """State dictionary of the authors' generator with random weights."""
    w = _Weights()
    w.encoder("encoder", shape)
    w.encoder("encoder_reconstructed", shape)
    positions = shape.grid[0] * shape.grid[1] if shape.dense else 1
    down, up, tail = ("latent_down.1", "latent_up.0", ()) if shape.dense else ("latent_conv.0", "latent_inv.0", (1, 1))
    flat = shape.top * positions
    w.draw(f"{down}.weight", shape.latent, flat, *tail, fan=flat)
    w.draw(f"{down}.bias", shape.latent)
    w.draw(f"{up}.weight", flat, shape.latent, *tail, fan=shape.latent)
    w.draw(f"{up}.bias", flat)
    for i, (inputs, outputs, doubles) in enumerate(shape.decoder_blocks()):
        if doubles:
            w.draw(f"decoder.blocks.{i}.0.weight", inputs, outputs, 4, 4, fan=4 * inputs)
            w.bn(f"decoder.blocks.{i}.1", outputs)
        else:
            w.residual(f"decoder.blocks.{i}", inputs, outputs, 1)
    w.conv("decoder.out.0", shape.base, shape.channels, 3)
    w.draw("decoder.out.0.bias", shape.channels)
    return dict(w)


def reconstruction(w: dict[str, torch.Tensor], shape: Shape, x: torch.Tensor) -> torch.Tensor:
    """What the generator makes of x in evaluation mode."""

    def act(h):
        return torch.where(h >= 0, h, 0.2 * h)

    def bn(name, h):
        scale = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + 1e-5)
        shift = w[f"{name}.bias"] - scale * w[f"{name}.running_mean"]
        return h * scale[:, None, None] + shift[:, None, None]

    def conv(name, h, stride=1):
        weight = w[f"{name}.weight"]
        return F.conv2d(h, weight, w.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def residual(name, h, stride):
        skip = bn(f"{name}.proj.1", conv(f"{name}.proj.0", h, stride)) if f"{name}.proj.0.weight" in w else h
        inner = act(bn(f"{name}.bn1", conv(f"{name}.conv1", h, stride)))
        return act(bn(f"{name}.bn2", conv(f"{name}.conv2", inner)) + skip)

    h = act(bn("encoder.stem.1", conv("encoder.stem.0", x)))
    for i, (_, _, stride) in enumerate(shape.encoder_blocks()):
        h = residual(f"encoder.blocks.{i}", h, stride)
    if shape.dense:
        z = act(h.reshape(len(x), -1) @ w["latent_down.1.weight"].T + w["latent_down.1.bias"])
        h = act(z @ w["latent_up.0.weight"].T + w["latent_up.0.bias"]).reshape(len(x), shape.top, *shape.grid)
    else:
        h = act(conv("latent_inv.0", act(conv("latent_conv.0", h))))
    for i, (_, _, doubles) in enumerate(shape.decoder_blocks()):
        name = f"decoder.blocks.{i}"
        if doubles:
            h = F.conv_transpose2d(h, w[f"{name}.0.weight"], stride=2, padding=1)
            h = act(bn(f"{name}.1", h))
        else:
            h = residual(name, h, 1)
    return 1 / (1 + torch.exp(-conv("decoder.out.0", h)))


def segmentor_state(shape: Shape) -> dict[str, torch.Tensor]:
    """State dictionary of the authors' segmentor with random weights."""
    w = _Weights()

    def pair(name: str, inputs: int, outputs: int) -> None:
        for index, width in ((0, inputs), (3, outputs)):
            w.conv(f"{name}.block.{index}", width, outputs, 3)
            w.bn(f"{name}.block.{index + 1}", outputs)

    base, inputs = shape.segmentor, 2 * shape.channels
    for name, width in (("enc1", base), ("enc2", 2 * base), ("enc3", 4 * base), ("mid", 8 * base)):
        pair(name, inputs, width)
        inputs = width
    for level in (3, 2, 1):
        width = base * 2 ** (level - 1)
        w.draw(f"up{level}.weight", 2 * width, width, 2, 2, fan=2 * width)
        w.draw(f"up{level}.bias", width)
        pair(f"dec{level}", 2 * width, width)
    w.conv("out.0", base, 1, 1)
    w.draw("out.0.bias", 1)
    return dict(w)


def anomaly_map(w: dict[str, torch.Tensor], x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
    """What the segmentor makes of a patch and its reconstruction in evaluation mode."""

    def pair(name, h):
        for index in (0, 3):
            h = F.conv2d(h, w[f"{name}.block.{index}.weight"], padding=1)
            bn = f"{name}.block.{index + 1}"
            statistics = w[f"{bn}.running_mean"], w[f"{bn}.running_var"]
            h = F.batch_norm(h, *statistics, w[f"{bn}.weight"], w[f"{bn}.bias"], eps=1e-5).relu()
        return h

    h, skips = torch.cat([x, x_hat], dim=1), []
    for level in (1, 2, 3):
        skips.append(pair(f"enc{level}", h))
        h = F.max_pool2d(skips[-1], 2)
    h = pair("mid", h)
    for level in (3, 2, 1):
        up = F.conv_transpose2d(h, w[f"up{level}.weight"], w[f"up{level}.bias"], stride=2)
        h = pair(f"dec{level}", torch.cat([up, skips[level - 1]], dim=1))
    return torch.sigmoid(F.conv2d(h, w["out.0.weight"], w["out.0.bias"]))


def images(shape: Shape, count: int = 3) -> torch.Tensor:
    """Noise about levels far from each other: white noise alone averages out within a few layers."""
    levels = torch.linspace(0, 1, count)[:, None, None, None]
    return (levels + 0.5 * torch.rand(count, shape.channels, *shape.patch) - 0.25).clamp(0, 1)


def payload(shape: Shape, *, epoch: int = 12, segmentor: bool = False) -> dict:
    """The whole checkpoint as their training saves it; what serves training only is abridged."""
    flat = shape.top * shape.grid[0] * shape.grid[1]
    discriminator = {"classifier.1.weight": torch.zeros(1, flat), "classifier.1.bias": torch.zeros(1)}
    adam = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.5, 0.999)}]}
    cosine = {"base_lrs": [1e-4], "last_epoch": 3}
    parts = ("generator", "discriminator", "segmentator")
    models = (generator_state(shape), discriminator, segmentor_state(shape) if segmentor else None)
    return {
        "epoch": epoch,
        "models": dict(zip(parts, models, strict=True)),
        "optimizers": dict(zip(parts, (adam, adam, adam if segmentor else None), strict=True)),
        "schedulers": dict(zip(parts, (cosine, cosine, cosine if segmentor else None), strict=True)),
    }


def config(shape: Shape, mode: str = "deepindustrial_sn_2026") -> dict:
    """Their YAML for a generator, with a few of the sections that we do not read."""
    return {
        "profile": {"name": "test", "mode": mode, "use_segmentator": mode == "grdnet_2023_full"},
        "data": {
            "train_dir": "/somewhere",
            "image_size": 48,
            "channels": shape.channels,
            "patch_size": list(shape.patch),
            "patch_stride": 8,
        },
        "model": {
            "base_features": shape.base,
            "latent_dim": shape.latent,
            "stages": list(shape.stages),
            "encoder_downsample_position": shape.down,
            "decoder_upsample_position": shape.up,
            "dense_bottleneck": shape.dense,
            "segmentator_base_features": shape.segmentor,
        },
        "losses": {"w1": 1.0},
    }


TINY = Shape()
TINY_CONV = replace(TINY, dense=False, channels=3)
