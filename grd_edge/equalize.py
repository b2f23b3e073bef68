"""Rewrite of the FP32 ONNX graph that brings the channels of each activation to like peaks, for one grid to serve all.

Quantization gives an activation one scale, which the channel of the largest peak sets. A channel is scaled down by a
factor in the layers that make it and up in those that take it; LeakyReLU is positively homogeneous, so the function
stays. Factors are powers of two: weights and activations keep their mantissas, and FP32 and BF16 results keep every bit
where the engine adds up in the same order.
Source: cross-layer equalization, arXiv 1906.04721, section 4.1; its trade between weights and activations, arXiv
2211.10438, equation 4; docs/design/lower-precision-tried.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from grd_edge.calibrate import session_of, watching
from grd_edge.errors import InputError
from grd_edge.quantize import CHANNEL_AXIS, layers_of
from grd_edge.ranges import IMAGE

ALPHA = 0.75  # share of the spread of peaks that moves from activations into weights
# Of the patches, those whose peaks count: a few with extreme values, such as saturated corners, do not set factors.
COUNTED = 0.8
LARGEST_EXPONENT = 4  # of a factor, which is a power of two
_UNARY = ("LeakyRelu", "Relu", "Reshape", "Flatten")


def channel_peaks(model: onnx.ModelProto, patches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Largest |value| of every channel of the activations that layers take, which COUNTED of the patches stay below.

    Args:
        patches: arrays (N, C, patch_h, patch_w) float32 in [0, 1].

    Returns:
        Name of the tensor -> (channels,) float32 peaks >= 0; features of a dense layer are channels.

    Raises:
        InputError: no patches.
    """
    tensors = sorted({layer.tensor for layer in layers_of(model)} - {IMAGE})
    session = session_of(watching(model, tensors))
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for group in patches:
        for patch in group:
            for tensor, values in zip(tensors, session.run(tensors, {IMAGE: patch[None]}), strict=True):
                found[tensor].append(np.abs(values[0]).reshape(values.shape[1], -1).max(1))
    if not found:
        raise InputError("there are no patches to find the peaks of activations on; give good images")
    return {tensor: np.quantile(peaks, COUNTED, axis=0).astype(np.float32) for tensor, peaks in found.items()}


def equalized(model: onnx.ModelProto, peaks: Mapping[str, np.ndarray], *, alpha: float = ALPHA) -> onnx.ModelProto:
    """The same function and names with other weights; ranges have to be found anew.

    Args:
        model: FP32, BatchNorm folded, before rewrites of `graph.py`.
        peaks: of `channel_peaks`.
        alpha: 1 brings all peaks of an activation to one value, 0 all weights of a layer's inputs.

    Raises:
        InputError: `alpha` outside [0, 1], or peaks that lack an activation.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha:g}; expected a share from 0 to 1, such as {ALPHA:g}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    family = _families(model)
    makers, takers = defaultdict(list), defaultdict(list)
    weighted = {layer.node for layer in layers_of(model) if layer.op != "Add"}
    for index in sorted(weighted):
        node = model.graph.node[index]
        makers[family[node.output[0]]].append(node)
        takers[family[node.input[0]]].append(node)
    fixed = _fixed(model, family, weighted)
    for name in makers.keys() & takers.keys() - fixed:
        made = (stored[node.input[1]].dims[CHANNEL_AXIS[node.op_type]] for node in makers[name])
        factors = _factors(stored, takers[name], min(made), peaks, alpha)
        for node in makers[name]:
            axis = CHANNEL_AXIS[node.op_type]
            _scale(stored[node.input[1]], 1 / factors, axis)
            if len(node.input) > 2:
                _scale(stored[node.input[2]], 1 / factors, 0)
        for node in takers[name]:
            _scale(stored[node.input[1]], factors, 1 - CHANNEL_AXIS[node.op_type])
    onnx.checker.check_model(result)
    return result


def _families(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> name of those that share its factors: activations and residual adds pass them on."""
    parent: dict[str, str] = {}

    def root(tensor: str) -> str:
        while parent.setdefault(tensor, tensor) != tensor:
            tensor = parent[tensor]
        return tensor

    for node in model.graph.node:
        joined = node.input[:1] if node.op_type in _UNARY else node.input if node.op_type == "Add" else ()
        for tensor in joined:
            parent[root(tensor)] = root(node.output[0])
        for tensor in (*node.input, *node.output):
            root(tensor)
    return {tensor: root(tensor) for tensor in (*parent, *(value.name for value in model.graph.input))}


def _fixed(model: onnx.ModelProto, family: Mapping[str, str], weighted: Collection[int]) -> set[str]:
    """Families whose scale others rely on: the model's ends, constants, operators that are not known to pass factors,
    grouped convolutions, and layers that share a weight.

    Args:
        weighted: nodes that are layers with a weight.
    """
    ends = (*model.graph.input, *model.graph.output, *model.graph.initializer)
    fixed = {family[value.name] for value in ends if value.name in family}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for index, node in enumerate(model.graph.node):
        layer = index in weighted
        plain = layer and not any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
        if plain and all(uses[name] == 1 for name in node.input[1:]):
            continue
        if layer or node.op_type not in (*_UNARY, "Add"):
            data = node.input[:1] if layer else node.input
            fixed.update(family[tensor] for tensor in (*data, *node.output))
    return fixed


def _factors(
    stored: Mapping[str, onnx.TensorProto],
    takers: list[onnx.NodeProto],
    channels: int,
    peaks: Mapping[str, np.ndarray],
    alpha: float,
) -> np.ndarray:
    """(channels,) powers of two that the channels of a family are divided by; at most `channels`, fewer where the
    layers that made them count features."""
    found, weights = [], []
    for node in takers:
        if node.input[0] not in peaks:
            raise InputError(f"there are no peaks of activation {node.input[0]!r}; find them on the same model")
        found.append(peaks[node.input[0]].astype(np.float64))
        weight = np.abs(numpy_helper.to_array(stored[node.input[1]]).astype(np.float64))
        weight = weight.reshape(*weight.shape[:2], -1).max(2)
        weight = weight if CHANNEL_AXIS[node.op_type] else weight.T  # (inputs, outputs)
        largest = weight.max(0)  # of an output channel, whose scale it sets
        weights.append((weight / np.where(largest > 0, largest, 1)).max(1))
    channels = min(channels, *map(len, weights))
    peak, weight = (
        np.maximum.reduce([each.reshape(channels, -1).max(1) for each in some]) for some in (found, weights)
    )
    exponents, known = np.zeros(channels), (peak > 0) & (weight > 0)
    if known.any():
        exponents[known] = alpha * np.log2(peak[known]) - (1 - alpha) * np.log2(weight[known])
        exponents[known] -= np.median(exponents[known])
    return np.exp2(np.rint(exponents.clip(-LARGEST_EXPONENT, LARGEST_EXPONENT)))


def _scale(tensor: onnx.TensorProto, factors: np.ndarray, axis: int) -> None:
    """Multiplies a weight in place; one channel may be several features in a row of a flat one."""
    values = numpy_helper.to_array(tensor)
    spread = np.repeat(factors, values.shape[axis] // len(factors)).astype(values.dtype)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(values * spread.reshape(shape), tensor.name))
