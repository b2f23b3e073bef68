"""What each layer of an engine computes in: from the engine's inspector where a GPU can open it, else from the model
that the builder was given. One format for both.

Source: docs/design/tensorrt.md; the inspector's JSON as TensorRT 10 and 11 write it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from grd_edge.errors import EngineError

GRAPH, ENGINE = "graph", "engine"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_TYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
_ENGINE_TYPES = {"float": "fp32", "half": "fp16", "int8": "int8", "fp8": "fp8", "bfloat16": "bf16", "int32": "int32"}


@dataclass(frozen=True)
class LayerRow:
    """A layer.

    Attributes:
        layer: name of the weight, less `.weight`; of a layer without weights that of its node; of a fused one all names
            that the engine gives.
        op: ONNX operator, or the engine's layer type.
        precision: that it computes in.
        output: type and extents of what it gives, such as `fp16 n x 16 x 128 x 128`.
        mmac: million multiply-adds per patch; None where they cannot be told.
        weight_bytes: None where they cannot be told.
        kernel: name of the engine's implementation; "" from a graph, which does not know it.
    """

    layer: str
    op: str
    precision: str
    output: str
    mmac: float | None = None
    weight_bytes: int | None = None
    kernel: str = ""


@dataclass(frozen=True)
class LayerReport:
    """Rows in the order of execution; `source` is `graph` (planned) or `engine` (as built)."""

    source: str
    rows: tuple[LayerRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "rows": [asdict(row) for row in self.rows]}

    def precisions(self) -> dict[str, int]:
        """How many layers compute in which precision."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.precision] = found.get(row.precision, 0) + 1
        return found


def report_from_graph(model: onnx.ModelProto) -> LayerReport:
    """The plan: weighted layers, residual adds, activations that end the model, and casts inside it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    rows = []
    for node in graph.node:
        if node.op_type in (*_WEIGHTED, "Add", "Sigmoid", "DepthToSpace", "Resize"):
            code = code_type(node.input[0], producer, stored) if node.op_type in _WEIGHTED else None
            weight, weight_type = _weight(node, producer, stored)
            kind = values.get(node.output[0])
            both = code is not None and weight_type == code
            precision = code if both else _TYPES.get(kind.elem_type, "?") if kind is not None else "?"
            rows.append(
                LayerRow(
                    layer_name(node, producer),
                    node.op_type,
                    precision,
                    _described(kind),
                    _mmac(node, weight, kind),
                    None if weight is None else _bytes(weight),
                )
            )
    return LayerReport(GRAPH, tuple(rows))


def code_type(tensor: str, producer: dict[str, onnx.NodeProto], stored: dict[str, onnx.TensorProto]) -> str | None:
    """Type of the codes behind a tensor that a DequantizeLinear gives; None for others."""
    node = producer.get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    zero = stored.get(node.input[2]) if len(node.input) > 2 else None
    codes = stored.get(node.input[0])
    found = codes if codes is not None else zero
    return _TYPES.get(found.data_type, "?") if found is not None else "uint8"  # the operator's default


def layer_name(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto]) -> str:
    """Name of the weight, less `.weight`; of a node without one its own, or that of its output."""
    if node.op_type in _WEIGHTED:
        name = _stored_behind(node.input[1], producer)
        return name.removesuffix("/quantized").removesuffix("/half").removesuffix(".weight")
    return node.name or node.output[0]


def _stored_behind(tensor: str, producer: dict[str, onnx.NodeProto]) -> str:
    """The constant that a tensor is made of by DequantizeLinear and Cast alone."""
    while (node := producer.get(tensor)) is not None and node.op_type in ("DequantizeLinear", "Cast"):
        tensor = node.input[0]
    return tensor


def _weight(node, producer, stored) -> tuple[onnx.TensorProto | None, str | None]:
    """The stored weight of a layer and its type."""
    if node.op_type not in _WEIGHTED:
        return None, None
    name = _stored_behind(node.input[1], producer)
    tensor = stored.get(name)
    return tensor, None if tensor is None else _TYPES.get(tensor.data_type, "?")


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _extents(kind) -> list[int | str]:
    dims = kind.shape.dim if kind is not None else ()
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _described(kind) -> str:
    if kind is None:
        return "?"
    extents = ["n" if index == 0 and not isinstance(each, int) else each for index, each in enumerate(_extents(kind))]
    return f"{_TYPES.get(kind.elem_type, '?')} {' x '.join(map(str, extents))}"


def _mmac(node, weight, kind) -> float | None:
    if weight is None or kind is None:
        return None
    extents = _extents(kind)[2:]
    if node.op_type == "Gemm":
        return int(np.prod(weight.dims)) / 1e6
    if not all(isinstance(each, int) and each > 0 for each in extents):
        return None
    # A transposed convolution applies each weight once per pixel of its input.
    stride = next((tuple(each.ints) for each in node.attribute if each.name == "strides"), (1, 1))
    pixels = int(np.prod(extents)) / (int(np.prod(stride)) if node.op_type == "ConvTranspose" else 1)
    return int(np.prod(weight.dims)) * pixels / 1e6


def report_from_inspector(text: str) -> LayerReport:
    """What the engine's inspector tells (`get_engine_information(JSON)` of an engine built with detailed verbosity).

    Raises:
        EngineError: not such a text, or one without details.
    """
    again = "build the engine again with this version of grd-edge"
    try:
        layers = json.loads(text)["Layers"]
        rows = tuple(_row_of_engine(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine's inspector tells no layers ({type(error).__name__}: {error}); {again}"
        ) from error
    return LayerReport(ENGINE, rows)


def _row_of_engine(layer: dict[str, Any] | str) -> LayerRow:
    if isinstance(layer, str):  # names alone: the engine was built without details
        raise TypeError("it has names only")
    outputs = layer.get("Outputs") or []
    kinds = [_engine_type(each) for each in (*(layer.get("Inputs") or []), *outputs)]
    # What a layer reads decides: an INT8 convolution may give FP16.
    low = [each for each in ("int8", "fp8", "fp16", "bf16") if each in kinds]
    precision = low[0] if low and layer.get("LayerType") not in ("Reformat", "NoOp") else (kinds[-1] if kinds else "?")
    weights = layer.get("Weights")
    size = weights.get("Count") if isinstance(weights, dict) else None
    extents = " x ".join(map(str, outputs[0].get("Dimensions", []))) if outputs else ""
    return LayerRow(
        str(layer.get("Name", "?")),
        str(layer.get("ParameterType") or layer.get("LayerType") or "?"),
        precision,
        f"{kinds[-1] if kinds else '?'} {extents}".strip(),
        None,
        size,
        str(layer.get("TacticName") or ""),
    )


def _engine_type(tensor: dict[str, Any]) -> str:
    """Of `Format/Datatype` (TensorRT 10: a phrase that ends in the format) or `Datatype` (11)."""
    text = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "?").lower()
    for word, name in (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16")):
        if word in text:
            return name
    return _ENGINE_TYPES.get(text, text.split()[0] if text.split() else "?")


COLUMNS = ("layer", "operator", "precision", "gives", "million MAC", "weights KiB", "kernel")


def cells(report: LayerReport) -> list[tuple[str, ...]]:
    """Rows of a table under `COLUMNS`."""
    return [
        (
            row.layer,
            row.op,
            row.precision,
            row.output,
            "" if row.mmac is None else f"{row.mmac:.1f}",
            "" if row.weight_bytes is None else f"{row.weight_bytes / 1024:.1f}",
            row.kernel,
        )
        for row in report.rows
    ]
