"""FP32 ONNX model and range table -> INT8 model with explicit Q/DQ, in the style that an engine takes.

Quantized are the inputs of weighted layers, weights per output channel, and the skip branch of residual adds; where a
style asks for it, results and biases, too. The sigmoid and everything else stay as they are. A tensor lies on the same
grid in every style.
Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from grd_edge.errors import InputError
from grd_edge.files import sha256_hex
from grd_edge.graph import HALF_LEAST_SCALE, in_form, quantized_before_moves
from grd_edge.ranges import IMAGE, LEVELS, Grid, RangeTable, check_fresh

Style = Literal["openvino", "onnxruntime", "tensorrt", "tensorrt-fp8"]
# Axis of a weight's output channels; that of Gemm holds for transB.
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}
LEAST_OPSET = 13  # the first with scales per channel
BIAS_LEVELS = 1 << 30
TINY = float(np.finfo(np.float32).tiny)
FP8_OPSET = 19  # the first with FP8
FP8_LEVELS = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)  # 448
# Operators that hand values on as they are; Resize at most averages them.
_HANDS_ON = ("DepthToSpace", "Flatten", "Identity", "Reshape", "Resize", "Slice", "Transpose")


@dataclass(frozen=True)
class _Rules:
    """What sets a style apart.

    Attributes:
        unsigned: activations are stored as U8, zero point 128 higher than that of S8.
        transposed: transposed convolutions are quantized.
        first, last: the convolution that takes the image is quantized, the one that gives the reconstruction is.
        results: what convolutions and residual adds give is quantized, too, and biases are int32 on the grid of the
            products: for an engine that computes in integers only from Q/DQ to Q/DQ.
        float8: values are FP8 (E4M3) of the same ranges instead of signed bytes.
        least_scale: below which no scale goes, so that FP16 holds it; the channels and tensors that meet it have
            fewer codes. FP8 is as precise at a tenth of its range, so there it can be FP16's least normal number.
    """

    unsigned: bool
    transposed: bool
    first: bool
    last: bool
    results: bool
    float8: bool = False
    least_scale: float = 0.0

    @property
    def levels(self) -> float:
        """What the end of a range is, in codes."""
        return FP8_LEVELS if self.float8 else LEVELS

    @property
    def code(self) -> type:
        """Type of the signed codes."""
        return ml_dtypes.float8_e4m3fn if self.float8 else np.int8


STYLES: dict[str, _Rules] = {
    "openvino": _Rules(unsigned=False, transposed=True, first=True, last=True, results=False),
    "onnxruntime": _Rules(unsigned=True, transposed=False, first=True, last=False, results=True),
    "tensorrt": _Rules(
        unsigned=False, transposed=False, first=False, last=False, results=False, least_scale=HALF_LEAST_SCALE
    ),
    "tensorrt-fp8": _Rules(
        unsigned=False, transposed=False, first=False, last=False, results=False, float8=True, least_scale=2.0**-14
    ),
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

    Filters of a map of scores are none: ranges come from good images, and would cut off all scores above theirs.

    Raises:
        InputError: a model that cannot be quantized; names the operator.
    """
    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    _check_operators(model)
    producer = {name: node for node in model.graph.node for name in node.output}
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type in CHANNEL_AXIS:
            if node.input[1] not in constants:
                raise InputError(f"the weight of {_called(node)} is computed, not stored; export it folded")
            if _filters_one_map(constants[node.input[1]]):
                continue
            found.append(Layer(_layer_name(node), node.op_type, node.input[0], index))
        elif node.op_type == "Add" and not constants.keys() & set(node.input):
            main, skip = _branches(node, producer)
            block = _layer_name(producer[main]).rpartition(".")[0]
            found.append(Layer(f"{block}.add", "Add", skip, index))
    return found


def _filters_one_map(shape: Collection[int]) -> bool:
    """Whether a weight is one pass of a separable filter from one channel to one."""
    one_in, one_out, *kernel = shape
    return one_in == one_out == 1 and len(kernel) == 2 and min(kernel) == 1 < max(kernel)


def _layer_name(node: onnx.NodeProto) -> str:
    return node.input[1].removesuffix(".weight")


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _check_operators(model: onnx.ModelProto) -> None:
    """Raises InputError for a model that Q/DQ cannot be written into."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise InputError(
            f"the model has opset {opset}, scales per channel need {LEAST_OPSET}; export it again with: "
            "grd-edge build onnx"
        )
    for node in model.graph.node:
        if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
            raise InputError(f"the model is quantized already ({_called(node)}); give the FP32 model that it came from")
        if node.op_type == "BatchNormalization":
            raise InputError(f"{_called(node)} is not folded, which changes the weights; fold BatchNorm first")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(f"{_called(node)} holds graphs of its own, which cannot be quantized; deploy it in fp32")
    _check_weights(model)


def _check_weights(model: onnx.ModelProto) -> None:
    """Raises InputError for a model with weights in operators that cannot be quantized; names the first one."""
    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64 and sum(extent > 1 for extent in tensor.dims) > 1
    }
    for node in model.graph.node:
        if not matrices.intersection(node.input):
            continue
        if node.op_type in _HANDS_ON:
            matrices.update(node.output)
        # A table whose values go on as they are, or positions that are added: neither is multiplied.
        elif node.op_type not in (*CHANNEL_AXIS, "Gather", "Add"):
            raise InputError(
                f"{_called(node)} has weights that cannot be quantized, unlike those of {', '.join(CHANNEL_AXIS)}; "
                "export it with these (grd-edge build onnx), or deploy it in fp32"
            )


def _branches(add: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> tuple[str, str]:
    """Main and skip branch of a residual add: the main one ends in a convolution, of the wider kernel if both do."""

    def kernel(name: str) -> int:
        node = producer.get(name)
        return _attribute(node, "kernel_shape", [1])[0] if node is not None and node.op_type == "Conv" else 0

    first, second = add.input
    if kernel(first) == kernel(second) == 0:
        raise InputError(f"the sum {_called(add)} joins no convolution, which cannot be quantized here")
    return (first, second) if kernel(first) >= kernel(second) else (second, first)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def quantized_layers(model: onnx.ModelProto, style: Style, keep: Collection[str] = ()) -> list[Layer]:
    """Layers that are quantized in a style, less those that `keep` names (names or patterns such as `decoder.*`).

    Raises:
        InputError: a pattern of `keep` that fits no layer, or a model that cannot be quantized.
    """
    rules, layers = STYLES[style], layers_of(model)
    for pattern in keep:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:4])
            raise InputError(f"there is no layer {pattern!r} to keep in higher precision; layers are {names}, …")
    last = set() if rules.last else _last_nodes(model)
    return [
        layer
        for layer in layers
        if not any(fnmatchcase(layer.name, pattern) for pattern in keep)
        and (rules.transposed or layer.op != "ConvTranspose")
        and (rules.first or layer.tensor != IMAGE)
        and layer.node not in last
    ]


def _last_nodes(model: onnx.ModelProto) -> set[int]:
    """The nodes with weights that give the model's outputs, behind operators of one input."""
    producer = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    last = set()
    for output in model.graph.output:
        index = producer.get(output.name)
        while index is not None and model.graph.node[index].op_type not in (*CHANNEL_AXIS, "Add"):
            index = producer.get(model.graph.node[index].input[0])
        last |= {index} - {None}
    return last


def qdq_from_onnx(
    model: bytes, table: RangeTable, *, style: Style, keep: Collection[str] = (), form: str | None = None
) -> bytes:
    """Serialized single-file INT8 model of the same input and output; the same arguments give the same bytes.

    Args:
        model: serialized FP32 model, BatchNorm folded: the one that `table` was made from.
        keep: layers, or patterns of them, that stay in FP32, besides those of the table's recipe.
        form: of `graph.forms`, which the model takes before it is quantized; None: as it is.

    Raises:
        InputError: a stale table, an unknown style or layer, a tensor without a range, a model that cannot be
            quantized.
    """
    check_fresh(table, sha256_hex(model))
    parsed = onnx.load_from_string(model)
    written = quantized(in_form(parsed, form) if form else parsed, table, style=style, keep=keep)
    return (quantized_before_moves(written) if form else written).SerializeToString(deterministic=True)


def quantized(
    model: onnx.ModelProto, table: RangeTable, *, style: Style, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """As `qdq_from_onnx`, of a model that may have been rewritten since: its layers go by the names they had."""
    if style not in STYLES:
        raise InputError(f"there is no quantization style {style!r}; choose {', '.join(STYLES)}")
    rules = STYLES[style]
    chosen = {layer.node: layer for layer in quantized_layers(model, style, (*table.keep, *keep))}
    results = _result_grids(model, table, chosen) if rules.results else {}
    writer = _Writer(model, rules)
    for index, source in enumerate(model.graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(source)
        if layer := chosen.get(index):
            grid = table.grid(layer.tensor)
            node.input[list(node.input).index(layer.tensor)] = writer.activation(layer.tensor, grid)
            if layer.op != "Add":
                writer.weight(node, grid)
        for slot, name in enumerate(node.input):
            if name in results:
                node.input[slot] = writer.activation(name, results[name])
        writer.nodes.append(node)
    ranges_sha256 = sha256_hex(table.to_bytes())
    return writer.model({"model_sha256": table.model_sha256, "ranges_sha256": ranges_sha256, "style": style})


def _result_grids(model: onnx.ModelProto, table: RangeTable, chosen: dict[int, Layer]) -> dict[str, Grid]:
    """Grids of what the chosen convolutions and adds give. Those without one are chosen no longer: with a result in
    floating point they would be slower than in FP32.

    What a LeakyReLU takes has the range that makes it give the known one: on most tensors both then lie on one grid,
    so that positive values are rounded once. The main branch of a residual add lies on the grid of the sum.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    sums = {model.graph.node[index].output[0] for index, layer in chosen.items() if layer.op == "Add"}

    def known(tensor: str) -> tuple[float, float] | None:
        if tensor in table.ranges:
            return table.ranges[tensor]
        reader = next(iter(readers.get(tensor, [])), None)
        if reader is None or reader.op_type not in (*_HANDS_ON, "Add", "LeakyRelu"):
            return None
        found = known(reader.output[0])
        if found is None or reader.op_type != "LeakyRelu":
            return found
        slope = _attribute(reader, "alpha", 0.01)
        return (min(found[0], 0) / slope, found[1]) if slope > 0 else None

    ranges = {}
    # From the end: the branches of an add are quantized only where their sum is.
    for index, layer in sorted(chosen.items(), reverse=True):
        result = model.graph.node[index].output[0]
        whole = all(reader.op_type != "Add" or reader.output[0] in sums for reader in readers.get(result, []))
        if layer.op in ("Conv", "Add") and whole and (found := known(result)):
            ranges[result] = found
        elif layer.op != "Gemm":
            sums.discard(result)
            del chosen[index]
    derived = replace(table, ranges=ranges)
    return {tensor: derived.grid(tensor) for tensor in ranges}


class _Writer:
    """Nodes and constants of a quantized model while they are made."""

    def __init__(self, model: onnx.ModelProto, rules: _Rules) -> None:
        self.source, self.rules = model, rules
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def activation(self, tensor: str, grid: Grid) -> str:
        """Name of an activation on its grid; its Q and DQ are written when it is first asked for."""
        names = [tensor, f"{tensor}/scale", f"{tensor}/zero_point"]
        if names[1] not in self.constants:
            # A zero point other than 0 is that of the image, whose grid is the one of unsigned bytes.
            unsigned = self.rules.unsigned or grid.zero_point
            zero = np.array(grid.zero_point + 128, np.uint8) if unsigned else np.array(0, self.rules.code)
            scale = max(grid.scale * LEVELS / self.rules.levels, self.rules.least_scale)
            self._constant(names[1], np.array(scale, np.float32))
            self._constant(names[2], zero)
            self._node("QuantizeLinear", names, f"{tensor}/quantized", f"{tensor}/Q")
            self._node("DequantizeLinear", [f"{tensor}/quantized", *names[1:]], f"{tensor}/dequantized", f"{tensor}/DQ")
        return f"{tensor}/dequantized"

    def weight(self, node: onnx.NodeProto, grid: Grid) -> None:
        """Makes `node` take its weight, and its bias where that is quantized, from signed integers.

        Args:
            grid: of its activation.
        """
        axis = CHANNEL_AXIS[node.op_type]
        if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
            axis = 1
        weight = numpy_helper.to_array(self.stored[node.input[1]])
        bias = self._bias(node) if self.rules.results else None
        if (reason := _unsupported(node, weight, bias, axis)) is not None:
            raise InputError(f"{_called(node)} {reason}; keep {_layer_name(node)} in higher precision")
        least = self.rules.least_scale if bias is None else np.maximum(np.abs(bias) / BIAS_LEVELS, TINY) / grid.scale
        codes, scales = weight_codes(weight, axis, least, self.rules.levels, self.rules.code)
        self._stored_as(node, 1, codes, scales, axis)
        if bias is not None:
            products = (scales * np.float32(grid.scale)).astype(np.float32)
            self._stored_as(node, 2, np.rint(bias / products).astype(np.int32), products, 0)

    def _bias(self, node: onnx.NodeProto) -> np.ndarray | None:
        """The bias in float64; empty when it is computed, None when there is none."""
        name = node.input[2] if len(node.input) > 2 else ""
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name]).astype(np.float64)
        return np.empty(0) if name else None

    def _stored_as(self, node: onnx.NodeProto, slot: int, codes: np.ndarray, scales: np.ndarray, axis: int) -> None:
        name = node.input[slot]
        if f"{name}/quantized" in self.constants:  # of another layer, whose codes may differ
            name = f"{name}/{node.output[0]}"
        inputs = [f"{name}/quantized", f"{name}/scale"]
        self._constant(inputs[0], codes)
        self._constant(inputs[1], scales)
        if codes.dtype == self.rules.code:
            inputs.append(f"{name}/zero_point")
            self._constant(inputs[2], np.zeros(len(scales), codes.dtype))
        self._node("DequantizeLinear", inputs, f"{name}/dequantized", f"{name}/DQ", axis=axis)
        node.input[slot] = f"{name}/dequantized"

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.constants[name] = numpy_helper.from_array(value, name)

    def _node(self, op: str, inputs: list[str], output: str, name: str, **attributes: int) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))

    def model(self, about: dict[str, str]) -> onnx.ModelProto:
        """The quantized model, checked; `about` goes into its metadata."""
        result = onnx.ModelProto()
        result.CopyFrom(self.source)
        graph = result.graph
        used = {name for node in self.nodes for name in node.input}
        inputs = [value for value in graph.input if value.name not in self.stored]  # what older files list there, too
        for field, entries in (
            (graph.node, self.nodes),
            (graph.initializer, [t for t in (*self.stored.values(), *self.constants.values()) if t.name in used]),
            (graph.input, inputs),
        ):
            kept = list(entries)
            del field[:]
            field.extend(kept)
        for opset in result.opset_import if self.rules.float8 else ():
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, FP8_OPSET)
        for key, value in about.items():
            result.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(result)
        return result


def _unsupported(node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray | None, axis: int) -> str | None:
    """Why a weighted node cannot be quantized."""
    if weight.dtype != np.float32:
        return f"has weights of type {weight.dtype}, expected float32"
    if not np.isfinite(weight).all():
        return "has weights that are not finite"
    if node.op_type == "ConvTranspose" and _attribute(node, "group", 1) > 1:
        return "is grouped, so that one scale per channel does not fit its weights"
    if node.op_type == "Gemm" and (
        _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1 or _attribute(node, "beta", 1.0) != 1
    ):
        return "transposes its input or scales its terms"
    if bias is not None and bias.shape != (weight.shape[axis],):
        return "has a bias that is not stored as one value per channel"
    return None


def weight_codes(
    weight: np.ndarray, axis: int, least: np.ndarray | float = 0, levels: float = LEVELS, code: type = np.int8
) -> tuple[np.ndarray, np.ndarray]:
    """Signed codes of a weight and the scale of each output channel, symmetric.

    Args:
        weight: float32, output channels on `axis`.
        least: scale below which none may be, one number or (channels,): that with which the bias fits into an int32.
        levels, code: the largest code, and the type of the codes.

    Returns:
        Array of the same shape in [-levels, levels], and (channels,) float32 scales > 0.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(others) / levels, least).astype(np.float32)
    scales[scales < TINY] = 1  # a channel without weights is 0 on any grid
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    codes = (weight / scales.reshape(shape)).clip(-levels, levels)
    return (np.rint(codes) if code is np.int8 else codes).astype(code), scales
