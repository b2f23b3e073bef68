"""Rewrites of the FP32 ONNX graph that leave its function as it is, and its cast to FP16.

Functions take a model and return another one; what they are given stays as it was. A rewritten layer keeps the name of
its weight, its input tensor and its last output tensor, so that a range table of the original fits.
Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from grd_edge.errors import InputError

# Rows of a k4 s2 p1 kernel that the two sub-rows of a form's convolution apply to the rows under its own kernel; None
# is a zero. Row 2 i of the output is x[i] w[1] + x[i-1] w[3], row 2 i + 1 is x[i+1] w[0] + x[i] w[2].
_TAPS = {"conv3x3": ((3, 1, None), (None, 2, 0)), "conv2x2": ((2, 0), (3, 1))}
UPSAMPLING_FORMS = ("transposed", *_TAPS)
_MOVES = ("DepthToSpace", "Slice")
_CROP = {"starts": [1, 1], "ends": [-1, -1], "axes": [2, 3]}
BLOCKED = "+blocked"  # suffix of a form: the output convolution is blocked, too
LANES = 16  # output channels that fit one vector; blocks that need more gain nothing
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_ACTIVATIONS = ("LeakyRelu", "Relu")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
OPSET = 13  # the first whose operators are known to mean what is written here
QDQ_HALF_OPSET = 19  # the first whose Q/DQ take FP16
HALF_MAX = float(np.finfo(np.float16).max)
# Below it the rounding of a scale to FP16 moves the ends of its grid by more than a quarter of a step of 127.
HALF_LEAST_SCALE = 2.0**-16
# Operators whose floats have the type that an attribute names, and inputs (slots) that are FP32 by definition.
_TYPED_BY_ATTRIBUTE = ("Cast", "Constant", "ConstantOfShape")
_ALWAYS_FP32 = {"Resize": (2,)}


class _Rewrite:
    """Nodes and constants of a copy of a model while they change.

    Constants are the initializers, which older files list among the inputs, too, and what Constant nodes hold.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)
        if version < OPSET:
            raise InputError(f"the model has opset {version}; export it again with opset {OPSET} or later")
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.outputs = {value.name for value in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            held = _attributes(node)
            if any(isinstance(value, onnx.GraphProto) for value in held.values()):
                raise InputError(
                    f"{_called(node)} holds a graph of its own, which is not rewritten; export without control flow"
                )
            if node.op_type == "Constant" and "value" in held and node.output[0] not in self.outputs:
                held["value"].name = node.output[0]
                self.constants[node.output[0]] = held["value"]
            else:
                self.nodes.append(node)

    def constant(self, node: onnx.NodeProto, slot: int) -> np.ndarray | None:
        """What input `slot` of a node holds; None when it is left out or computed."""
        name = node.input[slot] if slot < len(node.input) else ""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def weights(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Weight and bias, if any, of a layer; None when one of them is computed."""
        weight, bias = self.constant(node, 1), self.constant(node, 2)
        computed = weight is None or (bias is None and any(node.input[2:]))
        return None if computed else (weight, bias)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def user(self, tensor: str) -> onnx.NodeProto | None:
        """The node that takes a tensor; None when several do or it is an output of the model."""
        users = [node for node in self.nodes if tensor in node.input]
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    def store(self, node: onnx.NodeProto, slot: int, array: np.ndarray, name: str = "") -> None:
        """Makes `array` input `slot` of a node, under the name that is there unless another node takes that, too."""
        node.input.extend([""] * (slot + 1 - len(node.input)))
        name = node.input[slot] or name
        if any(name in other.input for other in self.nodes if other is not node):
            name = f"{name}/{node.output[0]}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        node.input[slot] = name

    def replace(self, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
        index = next(i for i, other in enumerate(self.nodes) if other is node)
        self.nodes[index : index + 1] = others

    def result(self) -> onnx.ModelProto:
        """The rewritten model, checked, without constants that nothing takes any more."""
        used = {name for node in self.nodes for name in node.input} | self.outputs
        inputs = [value for value in self.model.graph.input if value.name not in self.constants]
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        graph = result.graph
        del graph.node[:], graph.initializer[:], graph.input[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        graph.input.extend(inputs)
        onnx.checker.check_model(result, full_check=True)
        return result


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; those that are left out have their defaults and are missing."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _called(node: onnx.NodeProto) -> str:
    """A node for messages."""
    return f"{node.op_type} {(node.name or node.output[0])!r}"


def _geometry(node: onnx.NodeProto, weight: np.ndarray) -> tuple[tuple[int, ...], int, int] | None:
    """(kernel h and w, stride, padding) of a plain 2-d convolution; None when dilated, grouped, padded unevenly, …"""
    held = _attributes(node)
    strides, pads = set(held.get("strides", [1, 1])), set(held.get("pads", [0] * 4))
    plain = (
        weight.ndim == 4
        and held.get("group", 1) == 1
        and held.get("auto_pad", b"NOTSET") == b"NOTSET"
        and {*held.get("dilations", [1])} == {1}
        and {*held.get("output_padding", [0])} == {0}
        and "output_shape" not in held
        and len(strides) == len(pads) == 1
    )
    return (weight.shape[2:], strides.pop(), pads.pop()) if plain else None


def _depth_to_space(source: str, target: str, block: int) -> onnx.NodeProto:
    """Channels (block, block, C) to C channels: the order in which sub-pixels lie side by side in NHWC."""
    name = f"{target}/depth_to_space"
    return helper.make_node("DepthToSpace", [source], [target], name, blocksize=block, mode="DCR")


def folded_batch_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """BatchNorm folded into the convolution or dense layer before it; a depth-to-space may stand between them.

    One stays where its statistics or the layer's weight are computed, where something else takes the tensor between
    them, or where it is in training mode.

    Raises:
        InputError: a model with control flow.
    """
    graph = _Rewrite(model)
    for node in list(graph.nodes):
        if node.op_type == "BatchNormalization":
            _fold(graph, node)
    return graph.result()


def _fold(graph: _Rewrite, norm: onnx.NodeProto) -> None:
    layer, shuffle = graph.producer(norm.input[0]), None
    if layer is not None and layer.op_type == "DepthToSpace" and graph.user(layer.output[0]) is norm:
        shuffle, layer = layer, graph.producer(layer.input[0])
    if layer is None or layer.op_type not in _WEIGHTED or graph.user(layer.output[0]) is not (shuffle or norm):
        return
    weights, statistics = graph.weights(layer), [graph.constant(norm, slot) for slot in range(1, 5)]
    held, norm_held = _attributes(layer), _attributes(norm)
    if weights is None or any(values is None for values in statistics):
        return
    if norm_held.get("training_mode", 0) or any(norm.output[1:]):
        return
    weight, bias = weights
    scale, offset, mean, variance = (values.astype(np.float64) for values in statistics)
    gain = scale / np.sqrt(variance + norm_held.get("epsilon", 1e-5))
    shift = offset - mean * gain
    if shuffle is not None:
        block = _attributes(shuffle)["blocksize"] ** 2
        spread = np.repeat if _attributes(shuffle).get("mode", b"DCR") == b"CRD" else np.tile
        gain, shift = spread(gain, block), spread(shift, block)
    offset = np.float64(0) if bias is None else bias.astype(np.float64)
    if layer.op_type == "Gemm":
        if offset.size not in (1, len(gain)):
            return  # a bias per row of the batch
        offset = offset.reshape(-1) * held.get("beta", 1.0)
        for attribute in layer.attribute:
            if attribute.name == "beta":
                attribute.f = 1.0
    if layer.op_type == "ConvTranspose":
        groups = held.get("group", 1)
        shape = (groups, -1, len(gain) // groups, *weight.shape[2:])
        factors = gain.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        folded = (weight.reshape(shape) * factors).reshape(weight.shape)
    else:
        rows = layer.op_type == "Conv" or held.get("transB", 0)
        folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1)) if rows else weight * gain
    graph.store(layer, 1, folded.astype(weight.dtype))
    name = f"{layer.input[1].removesuffix('.weight')}.bias"
    graph.store(layer, 2, (offset * gain + shift).astype(weight.dtype), name)
    (shuffle or layer).output[0] = norm.output[0]
    graph.replace(norm)


def upsampling_as(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """Transposed convolutions k4 s2 p1 as another form of the same function.

    `conv3x3` is a 3x3 convolution to four times the channels and a depth-to-space, with 2.25 times the multiply-adds;
    `conv2x2` has a 2x2 kernel with padding 1 and as many multiply-adds, and the outer pixels of its depth-to-space are
    cut off. An activation that follows comes before the depth-to-space, so that it stays beside the convolution.

    Raises:
        InputError: an unknown form, control flow, or a transposed convolution with another geometry, groups or a
            computed weight.
    """
    if form not in UPSAMPLING_FORMS:
        raise InputError(f"there is no upsampling form {form!r}; choose {', '.join(UPSAMPLING_FORMS)}")
    graph = _Rewrite(model)
    for node in list(graph.nodes):
        if form in _TAPS and node.op_type == "ConvTranspose":
            _upsample(graph, node, form)
    return graph.result()


def _upsample(graph: _Rewrite, node: onnx.NodeProto, form: str) -> None:
    weights = graph.weights(node)
    if weights is None or _geometry(node, weights[0]) != ((4, 4), 2, 1):
        raise InputError(
            f"{_called(node)} has no stored weights of kernel 4, stride 2, padding 1 in one group, and only such a "
            f"transposed convolution can take the form {form!r}; choose 'transposed'"
        )
    weight, bias = weights
    taps = _TAPS[form]
    kernel_px = len(taps[0])
    chosen = np.zeros((2, kernel_px, 4), weight.dtype)
    for sub_row, rows in enumerate(taps):
        for at, row in enumerate(rows):
            if row is not None:
                chosen[sub_row, at, row] = 1
    spread = np.einsum("ayk,bxl,iokl->aboiyx", chosen, chosen, weight, optimize=True)
    target, activation = node.output[0], graph.user(node.output[0])
    if activation is not None and activation.op_type in _ACTIVATIONS:
        target = activation.output[0]
    else:
        activation = None
    wide, shuffled = f"{target}/sub_pixels", f"{target}/uncropped" if kernel_px == 2 else target
    conv = helper.make_node("Conv", node.input, [wide], node.name, kernel_shape=[kernel_px] * 2, pads=[1] * 4)
    others = [conv]
    if activation is not None:
        graph.replace(activation)
        activation.input[0], activation.output[0] = wide, f"{target}/activated"
        others.append(activation)
    others.append(_depth_to_space(others[-1].output[0], shuffled, 2))
    if shuffled != target:
        crop = {f"{form}/{name}": np.array(values) for name, values in _CROP.items()}
        graph.constants.update({name: numpy_helper.from_array(values, name) for name, values in crop.items()})
        others.append(helper.make_node("Slice", [shuffled, *crop], [target], f"{target}/crop"))
    graph.replace(node, *others)
    graph.store(conv, 1, spread.reshape(-1, weight.shape[0], kernel_px, kernel_px))
    if bias is not None:
        graph.store(conv, 2, np.tile(bias, 4))


def blocked_output(model: onnx.ModelProto, block: int = 2) -> onnx.ModelProto:
    """The narrow 3x3 convolution that ends the model as one of kernel and stride `block` + 2 and `block`, whose output
    channels are the pixels of a block, and a depth-to-space.

    Engines compute all lanes of a vector, however few channels there are: with blocks of 2 px one channel takes 16
    multiply-adds for 4 px instead of 36 (in idle lanes, too).

    Raises:
        InputError: no such convolution at the end, blocks that need more than one vector of 16 lanes or do not divide
            the size, or control flow.
    """
    graph = _Rewrite(model)
    output = graph.model.graph.output[0]
    conv = graph.producer(output.name)
    if conv is not None and conv.op_type == "Sigmoid":
        conv = graph.producer(conv.input[0])
    weights = graph.weights(conv) if conv is not None and conv.op_type == "Conv" else None
    if weights is None or _geometry(conv, weights[0]) != ((3, 3), 1, 1):
        raise InputError(
            "the model does not end in a 3x3 convolution of stride 1, padding 1 and stored weights, which is the one "
            "that can be blocked; leave it as it is"
        )
    weight, bias = weights
    channels, size = len(weight), [dim.dim_value for dim in output.type.tensor_type.shape.dim[2:]]
    if block < 2 or channels * block**2 > LANES or any(not px or px % block for px in size):
        raise InputError(
            f"an output of {channels} channels and {' x '.join(map(str, size))} px cannot be blocked by {block} px: "
            f"blocks have at most {LANES} values and divide a fixed size; leave it as it is"
        )
    spread = np.zeros((block, block, *weight.shape[:2], block + 2, block + 2), weight.dtype)
    for y in range(block):
        for x in range(block):
            spread[y, x, :, :, y : y + 3, x : x + 3] = weight
    target, blocks, kernel = conv.output[0], f"{conv.output[0]}/blocks", [block + 2] * 2
    wide = helper.make_node(
        "Conv", conv.input, [blocks], conv.name, kernel_shape=kernel, strides=[block] * 2, pads=[1] * 4
    )
    graph.replace(conv, wide, _depth_to_space(blocks, target, block))
    graph.store(wide, 1, spread.reshape(-1, weight.shape[1], *kernel))
    if bias is not None:
        graph.store(wide, 2, np.tile(bias, block**2))
    return graph.result()


def quantized_before_moves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Q/DQ model whose depth-to-space and cropping move bytes: where a Q follows them it comes before them, on the same
    grid, so that it joins the convolution; its DQ stays.

    Raises:
        InputError: control flow.
    """
    graph = _Rewrite(model)
    for quantize in [node for node in graph.nodes if node.op_type == "QuantizeLinear"]:
        scale, tensor, first, moves = graph.constant(quantize, 1), quantize.input[0], quantize, []
        while (node := graph.producer(tensor)) is not None and node.op_type in _MOVES and graph.user(tensor) is first:
            moves.append(node)
            tensor, first = node.input[0], node
        if moves and scale is not None and scale.size == 1:
            moves[0].output[0] = quantize.output[0]
            quantize.input[0], quantize.output[0] = tensor, f"{tensor}/quantized"
            first.input[0] = quantize.output[0]
            graph.replace(quantize)
            graph.replace(first, quantize, first)
    return graph.result()


def forms(model: onnx.ModelProto) -> list[str]:
    """Names of the forms that `in_form` can bring a model into; the first one leaves it as it is."""
    upsampling = [UPSAMPLING_FORMS[0]]
    if any(node.op_type == "ConvTranspose" for node in model.graph.node):
        upsampling += [form for form in _TAPS if _applies(upsampling_as, model, form)]
    blocked = ["", BLOCKED] if _applies(blocked_output, model) else [""]
    return [form + suffix for form in upsampling for suffix in blocked]


def _applies(rewrite: Callable[..., onnx.ModelProto], *arguments: Any) -> bool:
    try:
        rewrite(*arguments)
    except InputError:
        return False
    return True


def in_form(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The same function in a form of `forms`: an upsampling form, with `+blocked` where the output is blocked, too.

    Raises:
        InputError: as `upsampling_as` and `blocked_output`.
    """
    rewritten = upsampling_as(model, form.removesuffix(BLOCKED))
    return blocked_output(rewritten) if form.endswith(BLOCKED) else rewritten


def half_precision(
    model: onnx.ModelProto, *, keep: Collection[str] = (), keep_output_fp32: bool = False
) -> onnx.ModelProto:
    """The model in FP16, as strongly typed builders take it: FP32 at its input and output, with a Cast at each.

    Of a Q/DQ model the scales become FP16, too, which changes most of them by less than 2^-11; those below 2^-16 stay
    FP32, as FP16 is too coarse there.

    Args:
        model: FP32 model, or one with Q/DQ as `grd_edge.quantize` writes them.
        keep: layers with weights, or patterns of them such as `decoder.*`, that are computed in FP32.
        keep_output_fp32: what makes the output (the sigmoid) is computed in FP32.

    Raises:
        InputError: a weight that FP16 cannot hold, a pattern that fits no layer, Q/DQ before opset 18, control flow.
    """
    graph = _Rewrite(model)
    layers = {id(node): _layer_name(graph, node) for node in graph.nodes if node.op_type in _WEIGHTED}
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in layers.values()):
            raise InputError(
                f"there is no layer {pattern!r} to keep in FP32; layers are {', '.join([*layers.values()][:4])}, …"
            )
    full = {
        id(node)
        for node in graph.nodes
        if node.op_type in _TYPED_BY_ATTRIBUTE
        or (keep_output_fp32 and graph.outputs.intersection(node.output))
        or any(fnmatchcase(layers.get(id(node), ""), pattern) for pattern in keep)
        or (node.op_type in _QDQ and _has_tiny_scale(graph, node))
    }
    _cast_nodes(graph, full, _float_tensors(graph.result()))
    if any(node.op_type in _QDQ for node in graph.nodes):
        _raise_opset(graph.model)
    return graph.result()


def _has_tiny_scale(graph: _Rewrite, node: onnx.NodeProto) -> bool:
    scale = graph.constant(node, 1)
    return scale is not None and bool((scale < HALF_LEAST_SCALE).any())


def _layer_name(graph: _Rewrite, node: onnx.NodeProto) -> str:
    """Name of the weight, less `.weight`, of a float or quantized layer."""
    source = graph.producer(node.input[1])
    stored = source.input[0] if source is not None and source.op_type == "DequantizeLinear" else node.input[1]
    return stored.removesuffix("/quantized").removesuffix(".weight")


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }


def _cast_nodes(graph: _Rewrite, full: set[int], floats: set[str]) -> None:
    """Makes FP16 of all float tensors but those of nodes in `full` (ids), with a Cast where the two meet."""

    def wants_half(node: onnx.NodeProto, slot: int) -> bool:
        return id(node) not in full and slot not in _ALWAYS_FP32.get(node.op_type, ())

    demanded: dict[str, set[bool]] = {}
    for node in graph.nodes:
        for slot, name in enumerate(node.input):
            demanded.setdefault(name, set()).add(wants_half(node, slot))
    half, made, nodes = set(), set(), []  # tensors that are FP16, those made by a cast, the nodes with their casts
    for name in floats.intersection(graph.constants).intersection(demanded):
        if True in demanded[name]:
            target = name if demanded[name] == {True} else f"{name}/half"
            values = _as_half(name, numpy_helper.to_array(graph.constants[name]))
            graph.constants[target] = numpy_helper.from_array(values, target)
            (half if target == name else made).add(target)
    for node in graph.nodes:
        for slot, name in enumerate(node.input):
            wanted = wants_half(node, slot)
            if name in floats and wanted != (name in half):
                node.input[slot] = f"{name}/{'half' if wanted else 'float'}"
                if node.input[slot] not in made:
                    made.add(node.input[slot])
                    nodes.append(_cast(name, node.input[slot], wanted))
        nodes.append(node)
        for slot, name in enumerate(node.output):
            if name not in floats or id(node) in full:
                continue
            half.add(name)
            if name in graph.outputs:
                node.output[slot] = f"{name}/half"
                half.remove(name)
                made.add(node.output[slot])
                nodes.append(_cast(node.output[slot], name, False))
    graph.nodes = nodes


def _cast(source: str, target: str, to_half: bool) -> onnx.NodeProto:
    to = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
    return helper.make_node("Cast", [source], [target], f"{target}/cast", to=to)


def _as_half(name: str, values: np.ndarray) -> np.ndarray:
    top = np.abs(values).max(initial=0)
    if not top <= HALF_MAX:
        layer = name.rpartition(".")[0] or name
        raise InputError(
            f"layer {layer!r} holds {top:g} in {name!r}, and FP16 ends at {HALF_MAX:g}; keep {layer!r} in FP32"
        )
    return values.astype(np.float16)


def _raise_opset(model: onnx.ModelProto) -> None:
    """To the first opset whose Q/DQ take FP16."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < QDQ_HALF_OPSET:
            if opset.version < QDQ_HALF_OPSET - 1:
                raise InputError(
                    f"Q/DQ in FP16 need opset {QDQ_HALF_OPSET}, this model has {opset.version}; export it again with "
                    f"opset {QDQ_HALF_OPSET - 1} or later"
                )
            opset.version = QDQ_HALF_OPSET
