"""Places of a model that TensorRT is known not to fuse or not to run fast, found before it is built.

Source: docs/design/tensorrt.md; TensorRT documentation, explicit quantization and layer fusions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from grd_edge.engine.layer_report import code_type, layer_name

LEAST_CHANNELS = 16  # below it INT8 tensor cores compute padding
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_REQUANTIZE = "build INT8 from the bundle's FP32 model, which quantizes where TensorRT fuses"


@dataclass(frozen=True)
class Finding:
    """One place.

    Attributes:
        layer: name of the layer.
        problem: what TensorRT does with it.
        fix: what to do about it; "" where `explained`.
        explained: why it is meant to be so; "" for a finding that asks for its fix.
    """

    layer: str
    problem: str
    fix: str = ""
    explained: str = ""

    @property
    def open(self) -> bool:
        return not self.explained

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.layer}: {self.problem}; {self.explained or self.fix}"


def findings_of(model: onnx.ModelProto, kept: tuple[str, ...] = ()) -> list[Finding]:
    """All such places of a typed model, in the order of the graph.

    Args:
        kept: layers that stay in a higher precision because somebody asked.
    """
    return _Check(model, kept).findings()


class _Check:
    def __init__(self, model: onnx.ModelProto, kept: tuple[str, ...]) -> None:
        self.graph, self.kept = model.graph, kept
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.quantized = any(node.op_type == "QuantizeLinear" for node in self.graph.node)

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        for node in self.graph.node:
            name = layer_name(node, self.producer)
            if node.op_type in _WEIGHTED:
                found += self._layer(node, name)
            elif node.op_type == "Add":
                found += self._add(node, name)
            elif node.op_type == "Sigmoid" and (self._codes(node.input[0]) or self._quantizes(node.output[0])):
                problem = "a quantized sigmoid loses the small differences that are scored"
                found.append(Finding(name, problem, _REQUANTIZE))
            elif node.op_type == "BatchNormalization":
                found.append(Finding(name, "batch normalization is not folded", "export it with grd-edge build onnx"))
            elif node.op_type == "QuantizeLinear" and self._asymmetric(node):
                found.append(Finding(node.input[0], "TensorRT takes signed codes with zero point 0 only", _REQUANTIZE))
        return found

    def _codes(self, tensor: str) -> str | None:
        return code_type(tensor, self.producer, self.stored)

    def _is_cast(self, tensor: str) -> bool:
        """Whether codes come through a Cast."""
        node = self.producer.get(tensor)
        return node is not None and node.op_type == "Cast" and self._codes(node.input[0]) is not None

    def _quantizes(self, tensor: str) -> bool:
        return any(node.op_type == "QuantizeLinear" for node in self.readers.get(tensor, []))

    def _layer(self, node: onnx.NodeProto, name: str) -> list[Finding]:
        found = []
        data, weight = self._codes(node.input[0]), self._codes(node.input[1])
        if len(node.input) > 2 and self._codes(node.input[2]):
            found.append(Finding(name, "its bias is quantized, which TensorRT refuses or runs unfused", _REQUANTIZE))
        if bool(data) != bool(weight) and self._is_cast(node.input[0 if weight else 1]):
            found.append(
                Finding(
                    name,
                    "its scales are too small for FP16, so that a cast stands before it and it may run unquantized",
                    f"keep it in FP16 (--keep {name})",
                )
            )
        elif bool(data) != bool(weight):
            one, other = ("data", "weight") if data else ("weight", "data")
            found.append(
                Finding(name, f"its {one} is quantized and its {other} is not, so it runs unquantized", _REQUANTIZE)
            )
        elif data and node.op_type == "ConvTranspose":
            found.append(
                Finding(
                    name,
                    f"a transposed convolution in {data}, which TensorRT runs slowly or not at all",
                    f"keep it in FP16 (--keep {name}), or compute it as a convolution (--form conv2x2)",
                )
            )
        elif data:
            found += self._channels(node, name, data)
        elif self.quantized:
            found.append(Finding(name, "it stays in FP16", explained=self._why_kept(node, name)))
        return found

    def _channels(self, node: onnx.NodeProto, name: str, data: str) -> list[Finding]:
        source = self.producer[node.input[1]]
        tensor = self.stored.get(source.input[0])
        fewest = min(tensor.dims[:2]) if tensor is not None and len(tensor.dims) > 1 else LEAST_CHANNELS
        if fewest >= LEAST_CHANNELS:
            return []
        return [
            Finding(
                name,
                f"it has {fewest} channels, and {data} tensor cores compute {LEAST_CHANNELS} at least",
                f"keep it in FP16 (--keep {name})",
            )
        ]

    def _why_kept(self, node: onnx.NodeProto, name: str) -> str:
        if any(name == each for each in self.kept):
            return "its recipe, the search for the CPU's precision or --keep asks for it"
        if node.op_type == "ConvTranspose":
            return (
                "TensorRT runs transposed convolutions slowly or not at all in INT8 (--form conv2x2 is the other way)"
            )
        tensor = self.stored.get(node.input[1])
        if tensor is not None and len(tensor.dims) > 1 and min(tensor.dims[:2]) < LEAST_CHANNELS:
            return "with that few channels it would not fill a tensor core, and it holds what is scored"
        return "the first and the last layer hold what is scored"

    def _add(self, node: onnx.NodeProto, name: str) -> list[Finding]:
        for tensor in node.input:
            dequantize = self.producer.get(tensor)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = self.producer.get(dequantize.input[0])
            before = self.producer.get(quantize.input[0]) if quantize is not None else None
            if before is not None and before.op_type == "Conv" and _is_main(node, tensor, self.producer):
                return [Finding(name, "Q/DQ between the convolution and the sum keep them from fusing", _REQUANTIZE)]
        return []

    def _asymmetric(self, node: onnx.NodeProto) -> bool:
        zero = self.stored.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            return True  # unsigned by default
        if zero.data_type == TensorProto.FLOAT8E4M3FN:
            return False
        return zero.data_type != TensorProto.INT8 or bool(numpy_helper.to_array(zero).any())


def _is_main(add: onnx.NodeProto, tensor: str, producer: dict[str, onnx.NodeProto]) -> bool:
    """Whether the other branch is no plain convolution, which would be the one that fuses."""
    other = next((name for name in add.input if name != tensor), tensor)
    node = producer.get(other)
    return node is None or node.op_type != "Conv"
