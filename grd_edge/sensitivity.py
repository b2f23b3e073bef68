"""What quantizing a single layer does to scores and decisions, and which layers to keep in higher precision for it.

Source: docs/design/precision.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from grd_edge.checkpoint import Checkpoint
from grd_edge.data.dataset import Sample
from grd_edge.precision import Accuracy, Bench, Candidate
from grd_edge.quantize import Layer, Style, quantized, quantized_layers
from grd_edge.ranges import RangeTable
from grd_edge.selection import selection_from_samples

INT8 = "int8"
# An add multiplies nothing; what it moves costs about as much as this many multiply-adds per element in INT8.
ADD_COST = 8


@dataclass(frozen=True)
class Effect:
    """A layer that alone is quantized.

    Attributes:
        layer: its name.
        share: of the model's multiply-adds.
        accuracy: against fp32.
    """

    layer: str
    share: float
    accuracy: Accuracy

    def to_json(self) -> dict[str, Any]:
        return {"layer": self.layer, "share": self.share, **asdict(self.accuracy)}


def layer_costs(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, int]:
    """Multiply-adds of each layer for one patch."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    costs = {}
    for layer in layers:
        node = model.graph.node[layer.node]
        pixels = _elements(shapes[node.output[0]][2:])
        if layer.op == "Add":
            costs[layer.name] = ADD_COST * _elements(shapes[node.output[0]][1:])
        elif layer.op == "ConvTranspose":
            costs[layer.name] = _elements(sizes[node.input[1]]) * _elements(shapes[node.input[0]][2:])
        else:
            costs[layer.name] = _elements(sizes[node.input[1]]) * pixels
    return costs


def _elements(extents: Sequence[int]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total


def layer_effects(
    bench: Bench,
    model: onnx.ModelProto,
    table: RangeTable,
    *,
    style: Style = "openvino",
    part: int = 24,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Effect]:
    """Every layer that the style quantizes, alone, in the order of the graph.

    Args:
        part: good and defective patches that each is measured on.
        on_progress: called with the layers done and their number.
    """
    layers = quantized_layers(model, style, tuple(table.keep))
    names = [layer.name for layer in layers]
    costs = layer_costs(model, layers)
    total = sum(costs.values())
    effects = []
    for done, name in enumerate(names, start=1):
        alone = quantized(model, table, style=style, keep=[other for other in names if other != name])
        accuracy = bench.accuracy(Candidate(INT8, alone.SerializeToString(), "models/measured.onnx"), part=part)
        effects.append(Effect(name, costs[name] / total, accuracy))
        on_progress(done, len(names))
    return effects


def effects_of_checkpoint(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    model: bytes,
    table: RangeTable,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Effect]:
    """`layer_effects` of an exported checkpoint on patches of good images of its training.

    Args:
        model: the exported checkpoint, serialized, that `table` belongs to.
    """
    selection = selection_from_samples(samples, checkpoint.config)
    bench = Bench(Candidate("fp32", model, "models/measured.onnx"), selection, checkpoint.config)
    return layer_effects(bench, onnx.load_from_string(model), table, on_progress=on_progress)


def keep_order(effects: Sequence[Effect]) -> list[str]:
    """Layers, those first whose stay in higher precision buys the most accuracy for its time.

    Rounding errors of layers are nearly independent, so their variances add up.
    """
    return [each.layer for each in sorted(effects, key=lambda e: -(e.accuracy.phi_diff_std**2) / max(e.share, 1e-6))]
