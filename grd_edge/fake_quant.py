"""The reconstructor as an INT8 engine computes it, in float32 and differentiable: fake quantization.

A rounded value passes its gradient on as it is where it was not clipped; weights are never clipped. Source: the grids
are those of grd_edge.ranges and grd_edge.quantize; straight-through estimators, arXiv 1308.3432; the gradient of a
range, arXiv 1902.08153, section 2.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.models.blocks import CenteredLinear, Decoder, ResidualBlock
from grd_edge.models.generator import Reconstructor
from grd_edge.quantize import Layer
from grd_edge.ranges import IMAGE, IMAGE_GRID, LEVELS

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _rounded(x: torch.Tensor, scale: torch.Tensor | float, lowest: int, highest: int) -> torch.Tensor:
    """`x` on the grid scale * q, q from lowest to highest; divided, as QuantizeLinear does, not times 1 / scale.

    The gradient reaches `scale`, too: q - x / scale inside, q where it is clipped.
    """
    return torch.fake_quantize_per_tensor_affine(x / scale, 1.0, 0, lowest, highest) * scale


class ImageGrid(nn.Module):
    """Rounds the image to the grid of 8-bit images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _rounded(x, IMAGE_GRID.scale, 0, 255)


class ActivationGrid(nn.Module):
    """Rounds an activation to the symmetric grid of its range, which can be learned.

    Args:
        low, high: the range, float32 values.

    Attributes:
        growth: logarithm of what the range has grown by; so that it stays positive, and a step is relative.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("start", torch.tensor(max(abs(low), abs(high)), dtype=torch.float32))
        self.growth = nn.Parameter(torch.zeros(()))

    @property
    def top(self) -> torch.Tensor:
        return self.start * self.growth.exp()

    def range(self) -> tuple[float, float]:
        """(low, high), as it was where it has not been learned."""
        top = self.top.item()
        return (self.low, self.high) if top == self.start.item() else (-top, top)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Engines saturate at -128, though no range asks for it.
        return _rounded(x, self.top / LEVELS, -LEVELS - 1, LEVELS)


class FoldedLayer(nn.Module):
    """A weighted layer with its BatchNorm or centering folded in at every pass, and rounded where it has a grid.

    Args:
        layer: convolution, transposed convolution or dense layer.
        norm: frozen BatchNorm behind it, or behind the depth-to-space after it; None: none.
        grid: of its input; None: the layer is not quantized.
    """

    def __init__(self, layer: nn.Module, norm: nn.BatchNorm2d | None, grid: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.norm, self.grid = layer, norm, grid
        self.axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias that the exported model has; the arithmetic is that of `grd_edge.models.generator.folded`."""
        layer, norm = self.layer, self.norm
        if isinstance(layer, CenteredLinear):
            shift = layer.weight.double() @ layer.center.double()
            return layer.weight, (layer.bias.double() - shift).float()
        if norm is None:
            return layer.weight, layer.bias
        values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        times = layer.weight.shape[self.axis] // norm.num_features  # 4 where a depth-to-space stands between them
        gain, bias, mean, var = (value.repeat_interleave(times) for value in values)
        inverse = torch.rsqrt(var + norm.eps)
        shape = [-1 if axis == self.axis else 1 for axis in range(layer.weight.ndim)]
        return layer.weight * (gain * inverse).reshape(shape), (0.0 - mean) * inverse * gain + bias

    def rounded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `folded`, with the weight on its grid of one scale per output channel; see `weight_codes`."""
        weight, bias = self.folded()
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        scales = weight.detach().abs().amax(others, keepdim=True) / LEVELS
        scales = torch.where(scales < torch.finfo(scales.dtype).tiny, 1.0, scales)
        return _rounded(weight, scales, -LEVELS, LEVELS), bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        weight, bias = self.folded() if self.grid is None else self.rounded()
        x = x if self.grid is None else self.grid(x)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        if isinstance(layer, nn.ConvTranspose2d):
            return F.conv_transpose2d(x, weight, bias, layer.stride, layer.padding)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)


def grids_of_layers(layers: Iterable[Layer], ranges: Mapping[str, tuple[float, float]]) -> dict[str, nn.Module]:
    """A grid for each layer; layers that take the same tensor share one.

    Args:
        layers: those to quantize, of `quantized_layers`.
        ranges: layer -> (low, high); that of the first layer of a tensor counts.
    """
    of_tensor: dict[str, nn.Module] = {IMAGE: ImageGrid()}
    grids = {}
    for layer in layers:
        if layer.tensor not in of_tensor:
            of_tensor[layer.tensor] = ActivationGrid(*ranges[layer.name])
        grids[layer.name] = of_tensor[layer.tensor]
    return grids


def fake_quantized(net: Reconstructor, grids: Mapping[str, nn.Module]) -> Reconstructor:
    """`net` in evaluation mode as the Q/DQ model of these grids computes it; the weights are those of `net` itself.

    Args:
        grids: of `grids_of_layers`; layers without one stay in float32.
    """
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    result = copy.deepcopy(net, shared).eval()
    for name, module in list(result.named_modules()):
        if isinstance(module, ResidualBlock):
            for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
                layer = FoldedLayer(getattr(module, conv), getattr(module, norm), grids.get(f"{name}.{conv}"))
                setattr(module, conv, layer)
                setattr(module, norm, nn.Identity())
            if f"{name}.add" in grids:
                module.skip = nn.Sequential(module.skip, grids[f"{name}.add"])
        elif isinstance(module, nn.Sequential):
            for index, layer in enumerate(module):
                if isinstance(layer, WEIGHTED):
                    norms = [i for i in range(index, len(module)) if isinstance(module[i], nn.BatchNorm2d)]
                    norm = module[norms[0]] if norms else None
                    module[index] = FoldedLayer(layer, norm, grids.get(f"{name}.{index}"))
                    if norms:
                        module[norms[0]] = nn.Identity()
        elif isinstance(module, Decoder):
            module.out = FoldedLayer(module.out, None, grids.get(f"{name}.out"))
    return result
