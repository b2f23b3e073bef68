"""Structured pruning of a trained generator: whole channels are cut, and what is left is an ordinary, narrower network.

Channels that meet at an addition are one set and are cut together; each set belongs to a stage and keeps as many
channels as that stage has in the narrower network. Source: docs/design/distillation.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from grd_edge.config import ModelConfig
from grd_edge.errors import ConfigError
from grd_edge.models.blocks import Decoder, Encoder, ResidualBlock
from grd_edge.models.cost import multiply_adds_of_config
from grd_edge.models.generator import Reconstructor

MULTIPLE = 8  # of channels that engines fill their vectors with


@dataclass
class ChannelSet:
    """Channels that can only be cut together.

    Attributes:
        stage: whose width it has.
        written, read: axes of weights along which the channels are made and used: name, dimension, and how many
            neighbors along it belong to one channel.
    """

    stage: int
    written: list[tuple[str, int, int]] = field(default_factory=list)
    read: list[tuple[str, int, int]] = field(default_factory=list)


def channel_sets(net: Reconstructor, stages: int) -> list[ChannelSet]:
    """All channels of the network but the image's and the latent's."""
    sets: list[ChannelSet] = []

    def new(stage: int) -> ChannelSet:
        sets.append(ChannelSet(stage))
        return sets[-1]

    def norm(name: str, channels: ChannelSet) -> None:
        channels.written += [(f"{name}.{key}", 0, 1) for key in ("weight", "bias", "running_mean", "running_var")]

    def block(name: str, module: ResidualBlock, before: ChannelSet, stage: int) -> ChannelSet:
        inner = new(stage)
        after = before if isinstance(module.skip, nn.Identity) else new(stage)
        before.read.append((f"{name}.conv1.weight", 1, 1))
        inner.written.append((f"{name}.conv1.weight", 0, 1))
        norm(f"{name}.bn1", inner)
        inner.read.append((f"{name}.conv2.weight", 1, 1))
        after.written.append((f"{name}.conv2.weight", 0, 1))
        norm(f"{name}.bn2", after)
        if after is not before:
            before.read.append((f"{name}.skip.0.weight", 1, 1))
            after.written.append((f"{name}.skip.0.weight", 0, 1))
            norm(f"{name}.skip.1", after)
        return after

    def upsampling(name: str, module: nn.Sequential, before: ChannelSet, stage: int) -> ChannelSet:
        after, times = new(stage), 1
        for index, layer in enumerate(module):
            at = f"{name}.{index}"
            if isinstance(layer, nn.ConvTranspose2d):
                before.read.append((f"{at}.weight", 0, 1))
                after.written.append((f"{at}.weight", 1, 1))
            elif isinstance(layer, nn.Conv2d):
                times = 4 if any(isinstance(each, nn.PixelShuffle) for each in module) else 1
                before.read.append((f"{at}.weight", 1, 1))
                after.written.append((f"{at}.weight", 0, times))
            elif isinstance(layer, nn.BatchNorm2d):
                norm(at, after)
        return after

    def blocks(name: str, module: Encoder | Decoder, channels: ChannelSet, order: Iterable[int]) -> ChannelSet:
        stage_of = [stage for stage, count in zip(order, module.counts, strict=True) for _ in range(count)]
        for index, (each, stage) in enumerate(zip(module.blocks, stage_of, strict=True)):
            part = block if isinstance(each, ResidualBlock) else upsampling
            channels = part(f"{name}.blocks.{index}", each, channels, stage)
        return channels

    grid = net.grid_h * net.grid_w if net.dense else 1
    down, up = ("latent_down.1", "latent_up.0") if net.dense else ("latent_down.0", "latent_up.0")
    channels = new(0)
    channels.written.append(("encoder.stem.0.weight", 0, 1))
    norm("encoder.stem.1", channels)
    channels = blocks("encoder", net.encoder, channels, range(stages))
    channels.read.append((f"{down}.weight", 1, grid))
    if net.dense:
        channels.read.append((f"{down}.center", 0, grid))
    channels = new(stages - 1)
    channels.written += [(f"{up}.weight", 0, grid), (f"{up}.bias", 0, grid)]
    channels = blocks("decoder", net.decoder, channels, reversed(range(stages)))
    channels.read.append(("decoder.out.weight", 1, 1))
    return sets


def can_be_cut(teacher: ModelConfig, student: ModelConfig) -> bool:
    """Whether the student's network is the teacher's with fewer channels."""
    free = {"base": 0, "widths": None, "discriminator_base": None}
    same = teacher.model_copy(update=free) == student.model_copy(update=free)
    return same and all(a >= b for a, b in zip(teacher.stage_widths, student.stage_widths, strict=True))


def widths_within(config: ModelConfig, share: float) -> tuple[int, ...]:
    """Widths of the stages of a network that costs at most `share` of the multiply-adds of `config`'s.

    They are multiples of 8 where they are not left as they are: as often as needed 8 channels are taken from the stage
    that then still has the largest part of its own, of several from the innermost.

    Raises:
        ConfigError: even the narrowest network costs more.
    """
    full = config.stage_widths
    widths, budget = list(full), share * (whole := multiply_adds_of_config(config))
    while (cost := multiply_adds_of_config(config.model_copy(update={"widths": tuple(widths)}))) > budget:
        wide = [stage for stage, width in enumerate(widths) if width > MULTIPLE]
        if not wide:
            raise ConfigError(
                f"the network cannot be pruned to {share:.1%} of its multiply-adds: with {MULTIPLE} channels in every "
                f"stage it has {cost / whole:.1%} of them; ask for more"
            )
        narrowed = {stage: (widths[stage] - 1) // MULTIPLE * MULTIPLE for stage in wide}
        stage = max(wide, key=lambda stage: (narrowed[stage] / full[stage], stage))
        widths[stage] = narrowed[stage]
    return tuple(widths)


def importance(weights: dict[str, torch.Tensor], sets: Sequence[ChannelSet]) -> list[torch.Tensor]:
    """What each channel of each set weighs, (channels,) for each set: the sum of |gamma| over the BatchNorms that scale
    it; of channels without one, as those behind the latent, the sum of |w| over the weights that make it.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, arXiv 1708.06519;
    docs/design/distillation.md compares criteria.
    """

    def along(name: str, dim: int, times: int) -> torch.Tensor:
        weight = weights[name].abs().movedim(dim, 0)
        return weight.reshape(len(weight) // times, -1).sum(1)

    found = []
    for each in sets:
        made = [axis for axis in each.written if axis[0].endswith(".weight")]
        scales = [axis for axis in made if weights[axis[0]].ndim == 1]
        found.append(sum(along(*axis) for axis in scales or made))
    return found


def cut(
    weights: dict[str, torch.Tensor], sets: Sequence[ChannelSet], kept: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Weights of the network that holds of each set the channels `kept` alone, in that order."""
    weights = dict(weights)
    for each, channels in zip(sets, kept, strict=True):
        for name, dim, times in (*each.written, *each.read):
            places = (channels[:, None] * times + torch.arange(times, device=channels.device)).flatten()
            weights[name] = weights[name].index_select(dim, places)
    return weights


def pruned_weights(net: Reconstructor, widths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Weights of a network with stages of these widths that holds the largest channels of `net`."""
    weights, sets = net.state_dict(), channel_sets(net, len(widths))
    sizes = importance(weights, sets)
    kept = [
        size.argsort(descending=True, stable=True)[: widths[each.stage]].sort().values
        for size, each in zip(sizes, sets, strict=True)
    ]
    return cut(weights, sets, kept)
