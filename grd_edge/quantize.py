"""FP32 ONNX model and range table -> INT8 model with explicit Q/DQ, in the style that an engine takes.

Quantized are the inputs of weighted layers, weights per output channel, and the skip branch of residual adds; biases,
the sigmoid and everything else stay as they are. A tensor lies on the same grid in every style.
Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from grd_edge.errors import InputError
from grd_edge.files import sha256_hex
from grd_edge.ranges import IMAGE, LEVELS, Grid, RangeTable, check_fresh

Style = Literal["openvino", "onnxruntime", "tensorrt"]
# Axis of a weight's output channels.
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


@dataclass(frozen=True)
class _Rules:
    """What sets a style apart.

    Attributes:
        unsigned: activations are stored as U8, zero point 128 higher than that of S8.
        transposed: transposed convolutions are quantized.
        image: the first convolution is; its input is the image.
        bias: biases become int32 on the grid of the products, which the engine needs to fuse them.
    """

    unsigned: bool
    transposed: bool
    image: bool
    bias: bool


STYLES: dict[str, _Rules] = {
    "openvino": _Rules(unsigned=False, transposed=True, image=True, bias=False),
    "onnxruntime": _Rules(unsigned=True, transposed=False, image=True, bias=True),
    "tensorrt": _Rules(unsigned=False, transposed=False, image=False, bias=False),
}


@dataclass(frozen=True)
class Layer:
    """What can be quantized by itself.

    Attributes:
        name: of the weight, less `.weight`; a residual add is called as its block, with `.add`.
        op: ONNX operator: Conv, ConvTranspose, Gemm or Add.
        tensor: the activation that is quantized.
        node: index in the graph.
    """

    name: str
    op: str
    tensor: str
    node: int


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """Layers in the order of the graph: weighted ones and residual adds.

    Raises:
        InputError: a weighted layer whose weight is not stored in the model.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type in CHANNEL_AXIS:
            if node.input[1] not in constants:
                raise InputError(f"the weight of {node.name or node.op_type} is computed, not stored; export it folded")
            found.append(Layer(node.input[1].removesuffix(".weight"), node.op_type, node.input[0], index))
        elif node.op_type == "Add" and not constants.intersection(node.input):
            main, skip = _branches(node, producer)
            block = producer[main].input[1].removesuffix(".weight").rpartition(".")[0]
            found.append(Layer(f"{block}.add", "Add", skip, index))
    return found


def _branches(add: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> tuple[str, str]:
    """Main and skip branch of a residual add: the main one ends in a convolution, of the wider kernel if both do."""

    def kernel(name: str) -> int:
        node = producer.get(name)
        if node is None or node.op_type != "Conv":
            return 0
        return next((attribute.ints[0] for attribute in node.attribute if attribute.name == "kernel_shape"), 0)

    first, second = add.input
    if kernel(first) == kernel(second) == 0:
        raise InputError(f"the sum {add.name or add.output[0]} joins no convolution, which cannot be quantized here")
    return (first, second) if kernel(first) >= kernel(second) else (second, first)


def quantized_layers(model: onnx.ModelProto, style: Style, keep: Collection[str] = ()) -> list[Layer]:
    """Layers that are quantized in a style, less those that `keep` names (names or patterns such as `decoder.*`).

    Raises:
        InputError: a pattern of `keep` that fits no layer.
    """
    rules, layers = STYLES[style], layers_of(model)
    for pattern in keep:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:4])
            raise InputError(f"there is no layer {pattern!r} to keep in higher precision; layers are {names}, …")
    return [
        layer
        for layer in layers
        if not any(fnmatchcase(layer.name, pattern) for pattern in keep)
        and (rules.transposed or layer.op != "ConvTranspose")
        and (rules.image or layer.tensor != IMAGE)
    ]


def qdq_from_onnx(model: bytes, table: RangeTable, *, style: Style, keep: Collection[str] = ()) -> bytes:
    """Serialized single-file INT8 model of the same input and output.

    Args:
        model: serialized FP32 model, BatchNorm folded: the one that `table` was made from.
        keep: layers, or patterns of them, that stay in FP32, besides those of the table's recipe.

    Raises:
        InputError: a stale table, an unknown style or layer, a tensor without a range.
    """
    check_fresh(table, sha256_hex(model))
    return quantized(onnx.load_from_string(model), table, style=style, keep=keep).SerializeToString()


def quantized(
    model: onnx.ModelProto, table: RangeTable, *, style: Style, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """As `qdq_from_onnx`, of a model that may have been rewritten since: its layers go by the names they had."""
    if style not in STYLES:
        raise InputError(f"there is no quantization style {style!r}; choose {', '.join(STYLES)}")
    chosen = {layer.node: layer for layer in quantized_layers(model, style, (*table.keep, *keep))}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    written: dict[str, str] = {}
    for index, source in enumerate(model.graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(source)
        if index in chosen:
            layer = chosen[index]
            if layer.tensor not in written:
                graph.node.extend(_activation(graph, layer.tensor, table.grid(layer.tensor), STYLES[style].unsigned))
                written[layer.tensor] = f"{layer.tensor}/dequantized"
            slot = list(node.input).index(layer.tensor)
            node.input[slot] = written[layer.tensor]
            if layer.op != "Add":
                weight = numpy_helper.to_array(weights[node.input[1]])
                axis = CHANNEL_AXIS[layer.op]
                bias = weights[node.input[2]] if len(node.input) > 2 and STYLES[style].bias else None
                graph.node.extend(_weight(graph, node, weight, axis, table.grid(layer.tensor), bias))
        graph.node.append(node)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(result)
    return result


def _activation(graph: onnx.GraphProto, tensor: str, grid: Grid, unsigned: bool) -> Iterator[onnx.NodeProto]:
    """Q and DQ of an activation."""
    # A zero point other than 0 is that of the image, whose grid is the one of unsigned bytes.
    zero = np.uint8(grid.zero_point + 128) if unsigned or grid.zero_point else np.int8(grid.zero_point)
    names = [tensor, f"{tensor}/scale", f"{tensor}/zero_point"]
    graph.initializer.append(numpy_helper.from_array(np.float32(grid.scale), names[1]))
    graph.initializer.append(numpy_helper.from_array(np.array(zero), names[2]))
    yield helper.make_node("QuantizeLinear", names, [f"{tensor}/quantized"], f"{tensor}/Q")
    names[0] = f"{tensor}/quantized"
    yield helper.make_node("DequantizeLinear", names, [f"{tensor}/dequantized"], f"{tensor}/DQ")


def _weight(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    weight: np.ndarray,
    axis: int,
    grid: Grid,
    bias: onnx.TensorProto | None,
) -> Iterator[onnx.NodeProto]:
    """DQ of a stored weight, and of its bias where that is quantized; `node` then takes them."""
    codes, scales = weight_codes(weight, axis)
    name = node.input[1]
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}/quantized"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}/zero_point"))
    inputs = [f"{name}/quantized", f"{name}/scale", f"{name}/zero_point"]
    node.input[1] = f"{name}/dequantized"
    yield helper.make_node("DequantizeLinear", inputs, [node.input[1]], f"{name}/DQ", axis=axis)
    if bias is not None:
        products = (scales * np.float32(grid.scale)).astype(np.float32)
        rounded = np.rint(numpy_helper.to_array(bias).astype(np.float64) / products)
        graph.initializer.append(numpy_helper.from_array(rounded.astype(np.int32), f"{bias.name}/quantized"))
        graph.initializer.append(numpy_helper.from_array(products, f"{bias.name}/scale"))
        node.input[2] = f"{bias.name}/dequantized"
        inputs = [f"{bias.name}/quantized", f"{bias.name}/scale"]
        yield helper.make_node("DequantizeLinear", inputs, [node.input[2]], f"{bias.name}/DQ", axis=0)


def weight_codes(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed bytes of a weight and the scale of each output channel, symmetric.

    Args:
        weight: float32, output channels on `axis`.

    Returns:
        int8 array of the same shape in [-127, 127], and (channels,) float32 scales > 0.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = (np.abs(weight).max(others) / LEVELS).astype(np.float32)
    scales[scales == 0] = 1  # a channel without weights is 0 on any grid
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    codes = np.rint(weight / scales.reshape(shape)).clip(-LEVELS, LEVELS)
    return codes.astype(np.int8), scales
