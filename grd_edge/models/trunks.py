"""Networks trained on ImageNet, as trunks: their stages with widths, strides and the names of published weights.

A trunk is a list of `Stage`; `backbones.py` builds as many as are needed. Convolutions stand before their BatchNorm in
a Sequential, so that folding and INT8 find them. No code of torchvision or timm is needed; names are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from grd_edge.models.blocks import conv_bn


class Stage(NamedTuple):
    """Part of a trunk whose result can be asked for.

    Attributes:
        name: of the stage, no dots.
        channels, stride: of its map.
        build: makes the module, with random weights.
        published: name of a weight in the module -> its name in a published checkpoint.
    """

    name: str
    channels: int
    stride: int
    build: Callable[[], nn.Module]
    published: Callable[[str], str]


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's `SAME`: ceil(extent / stride) positions, the odd pixel of padding at the end.

    Source: the definition in TensorFlow's tf.nn.convolution.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for extent, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
            pads += [total // 2, total - total // 2]
        if pads[::2] == pads[1::2]:
            return F.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]), self.dilation, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


# EfficientNet-Lite0: no squeeze-excitation, ReLU6. Source: arXiv 1905.11946, table 1; the "lite" variants of
# tensorflow/tpu, models/official/efficientnet/lite (also eps; its input is (uint8 - 127) / 128).
LITE0_EPS = 1e-3
LITE0_STEM = 32
LITE0_STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _lite0_conv(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = SameConv2d(in_channels, out_channels, kernel_px, stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=LITE0_EPS))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation; a skip where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = nn.Identity() if expansion == 1 else _lite0_conv(in_channels, wide, 1).append(nn.ReLU6())
        self.depthwise = _lite0_conv(wide, wide, kernel_px, stride, groups=wide).append(nn.ReLU6())
        self.project = _lite0_conv(wide, out_channels, 1)
        self.skips = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.skips else y


def lite0_stages() -> list[Stage]:
    """`stem` and `stage1` to `stage7`; names as in the package efficientnet-lite-pytorch."""

    def stem() -> nn.Module:
        return _lite0_conv(3, LITE0_STEM, 3, 2).append(nn.ReLU6())

    def of_stem(key: str) -> str:
        return key.replace("0.", "_conv_stem.", 1) if key.startswith("0.") else key.replace("1.", "_bn0.", 1)

    stages = [Stage("stem", LITE0_STEM, 2, stem, of_stem)]
    before, stride, width = 0, 2, LITE0_STEM
    for index, (blocks, kernel, step, expansion, channels) in enumerate(LITE0_STAGES):

        def build(shape=(blocks, kernel, step, expansion, channels), width: int = width) -> nn.Module:
            count, kernel, step, expansion, out = shape
            first = InvertedResidual(width, out, kernel, step, expansion)
            return nn.Sequential(first, *(InvertedResidual(out, out, kernel, 1, expansion) for _ in range(count - 1)))

        def published(key: str, before: int = before) -> str:
            block, part, layer, leaf = key.split(".")
            norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
            return f"_blocks.{before + int(block)}.{norm if layer == '1' else f'_{part}_conv'}.{leaf}"

        before, stride, width = before + blocks, stride * step, channels
        stages.append(Stage(f"stage{index + 1}", channels, stride, build, published))
    return stages


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolution around a skip connection. Source: arXiv 1512.03385, figure 5."""

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(in_channels, width, 1), nn.ReLU())
        self.conv2 = nn.Sequential(*conv_bn(width, width, 3, stride), nn.ReLU())
        self.conv3 = nn.Sequential(*conv_bn(width, out_channels, 1))
        same = stride == 1 and in_channels == out_channels
        self.downsample = nn.Identity() if same else nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x))


def wide_resnet50_2_stages() -> list[Stage]:
    """`stem` and `layer1` to `layer4`; names as in torchvision and timm. Source: arXiv 1605.07146."""

    def stem() -> nn.Module:
        return nn.Sequential(*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))

    def of_stem(key: str) -> str:
        return key.replace("0.", "conv1.", 1) if key.startswith("0.") else key.replace("1.", "bn1.", 1)

    stages = [Stage("stem", 64, 4, stem, of_stem)]
    for index, blocks in enumerate((3, 4, 6, 3)):
        width, out = 128 << index, 256 << index
        before = 64 if index == 0 else out // 2

        def build(shape=(before, width, out, 1 if index == 0 else 2), blocks: int = blocks) -> nn.Module:
            before, width, out, stride = shape
            first = Bottleneck(before, width, out, stride)
            return nn.Sequential(first, *(Bottleneck(out, width, out, 1) for _ in range(blocks - 1)))

        def published(key: str, layer: int = index + 1) -> str:
            return f"layer{layer}." + re.sub(r"conv(\d)\.1\.", r"bn\1.", re.sub(r"conv(\d)\.0\.", r"conv\1.", key))

        stages.append(Stage(f"layer{index + 1}", out, 4 << index, build, published))
    return stages


def vgg16_stages() -> list[Stage]:
    """`relu1_1` to `relu5_3` and `pool1` to `pool5`; names as in torchvision and timm. Source: arXiv 1409.1556."""
    stages, width, number = [], 3, 0
    for group, (count, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        for index in range(count):

            def build(widths=(width, channels)) -> nn.Module:
                return nn.Sequential(nn.Conv2d(*widths, 3, padding=1), nn.ReLU())

            def published(key: str, number: int = number) -> str:
                return key.replace("0.", f"features.{number}.", 1)

            stages.append(Stage(f"relu{group + 1}_{index + 1}", channels, 1 << group, build, published))
            width, number = channels, number + 2
        stages.append(Stage(f"pool{group + 1}", channels, 2 << group, lambda: nn.MaxPool2d(2), str))
        number += 1
    return stages


# ViT of DINOv2: patches of 14 px, positions learned on 37 x 37 of them. Source: arXiv 2304.07193; its repository's
# hub definition (518 px, LayerScale, eps 1e-6).
VIT_PATCH, VIT_GRID, VIT_DEPTH, VIT_EPS = 14, 37, 12, 1e-6


def vit_grid(height: int, width: int) -> tuple[int, int]:
    """Patches along an image; it is resized to the nearest multiple of their extent, at least one."""
    return max(1, round(height / VIT_PATCH)), max(1, round(width / VIT_PATCH))


class VitEmbedding(nn.Module):
    """Image (N, 3, H, W) -> tokens (N, 1 + patches, C), the class token first; positions resized to the patch grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + VIT_GRID**2, channels))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, channels, VIT_PATCH, VIT_PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = vit_grid(*x.shape[2:])
        size = (grid[0] * VIT_PATCH, grid[1] * VIT_PATCH)
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self._positions(grid)
        first = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.expand(x.shape[0], -1, -1), patches], dim=1)

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        learned = self.pos_embed[:, 1:]
        if grid == (VIT_GRID, VIT_GRID):
            return learned
        square = learned.transpose(1, 2).unflatten(2, (VIT_GRID, VIT_GRID))
        return F.interpolate(square, grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5, dim=3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class _LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VitBlock(nn.Module):
    """Attention and MLP, each normalized before and scaled after. Source: arXiv 2010.11929; 2103.17239 (LayerScale)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=VIT_EPS) for _ in range(2))
        self.attn, self.mlp = _Attention(channels, heads), _Mlp(channels)
        self.ls1, self.ls2 = (_LayerScale(channels) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


def vit_stages(channels: int, heads: int) -> list[Stage]:
    """`embed`, `block0` to `block11`, and `norm`, the normalized last block; names as of DINOv2 and timm."""
    stages = [Stage("embed", channels, VIT_PATCH, lambda: VitEmbedding(channels), str)]
    for index in range(VIT_DEPTH):

        def published(key: str, index: int = index) -> str:
            return f"blocks.{index}.{key}"

        stages.append(Stage(f"block{index}", channels, VIT_PATCH, lambda: VitBlock(channels, heads), published))
    norm = Stage("norm", channels, VIT_PATCH, lambda: nn.LayerNorm(channels, eps=VIT_EPS), "norm.{}".format)
    return [*stages, norm]
