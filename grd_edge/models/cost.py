"""What a network costs: multiply-adds of its convolutions and dense layers."""

from __future__ import annotations

import torch
from torch import nn

from grd_edge.config import ModelConfig
from grd_edge.models.generator import Reconstructor


def multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and dense layers for a patch (C, H, W); `net` moves to the meta device."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            # Every input pixel meets every weight once, up to the border.
            total += inputs[0].shape[2] * inputs[0].shape[3] * module.weight.numel()
        elif isinstance(module, nn.Conv2d):
            total += output.shape[2] * output.shape[3] * module.weight.numel()
        else:
            total += module.weight.numel()

    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, layers)]
    net.to("meta")(torch.empty(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def multiply_adds_of_config(config: ModelConfig) -> int:
    """Multiply-adds of a patch at inference."""
    with torch.device("meta"):
        net = Reconstructor(config)
    return multiply_adds(net, (config.channels, config.patch_h, config.patch_w))
