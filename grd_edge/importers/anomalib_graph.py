"""An ONNX export of anomalib 2.x -> a graph of head `score_map`, by exact rewrites.

Source: docs/anomalib.md.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from grd_edge.calibrate import session_of, watching
from grd_edge.errors import InputError, one_line
from grd_edge.export import OUTPUTS
from grd_edge.graph import folded_batch_norms
from grd_edge.heads import SCORE_MAP
from grd_edge.importers.anomalib_export import EXPORT_WAY, MAP, SCORE, Export, unclipped
from grd_edge.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from grd_edge.ranges import IMAGE

SMOOTHED_PX = 21  # docs/method.md, section 5
NORMALIZATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
# Largest |difference| to the export that passes, relative where values are above 1. Distances of features, which most
# of these models yield, amplify FP32 rounding; a graph that is not the export's is off by far more.
TOLERANCE = 1e-3


def packed(export: Export, *, normalize: str | None = None, grey: bool = False) -> bytes:
    """The export as a graph x (batch, C, patch_h, patch_w) -> scores (batch, 1, 1 + patch_h, patch_w), one file.

    Normalized scores are not clipped: where many are 1, thresholds and ranks mean nothing.

    Args:
        normalize: of NORMALIZATIONS, put in front.
        grey: C is 1, and the model's three channels are the same; else C is 3.

    Raises:
        InputError: outputs of other shapes or types, or operators that take batches of 1 only.
    """
    kept = [name for name in (SCORE, MAP) if name in export.outputs]
    whole = unclipped(export.model)
    found = _of_one_patch(whole, kept, export.patch)
    for loosened in (False, True):
        part = watching(whole, kept)
        if loosened:
            _loosen(part)
        _pack(part, found, export.patch)
        _put_in_front(part.graph, normalize, grey)
        if _takes_batches(part, export.patch):
            model = folded_batch_norms(part)
            _tell_sums_from_branches(model)
            return model.SerializeToString(deterministic=True)
    raise InputError(
        "the model takes batches of 1 only, and patches are inspected together; export it with a free batch, which is "
        "anomalib's default (dynamic_axes)"
    )


def _of_one_patch(model: onnx.ModelProto, kept: list[str], patch: tuple[int, int]) -> dict[str, np.ndarray]:
    """What the outputs yield for one patch, maps as (1, 1, height, width)."""
    part = watching(model, kept)
    batch = part.graph.input[0].type.tensor_type.shape.dim[0]
    batch.ClearField("dim_param")
    batch.dim_value = 1  # that of exports with a fixed one
    try:
        values = session_of(part).run(kept, {IMAGE: np.full((1, 3, *patch), 0.5, np.float32)})
    except Exception as error:  # ONNX Runtime's errors derive from Exception alone
        raise InputError(
            f"ONNX Runtime does not run the model on a patch of {patch[0]}x{patch[1]} px ({one_line(error)}); give the "
            f"size it was trained with, or {EXPORT_WAY}"
        ) from error
    found = dict(zip(kept, values, strict=True))
    for name, each in found.items():
        plain = each.ndim in (3, 4) and each.size == each.shape[-2] * each.shape[-1]
        if each.dtype.kind != "f" or (not plain if name == MAP else each.size != 1):
            expected = "(1, 1, height, width)" if name == MAP else "one number"
            raise InputError(
                f"the model's {name!r} is {each.dtype} {each.shape} for one image; expected {expected}, float32"
            )
    return {name: each.reshape(1, 1, *each.shape[-2:]) if name == MAP else each for name, each in found.items()}


def _pack(part: onnx.ModelProto, found: dict[str, np.ndarray], patch: tuple[int, int]) -> None:
    """Makes one output of two."""
    (h, w), graph = patch, part.graph
    add = _Tail(graph)
    tensors = {
        name: name if values.dtype == np.float32 else add("Cast", name, to=TensorProto.FLOAT)
        for name, values in found.items()
    }
    score, output = tensors.get(SCORE), OUTPUTS[SCORE_MAP]
    if MAP in tensors:
        extent = found[MAP].shape[2:]
        maps = add.resized(add("Reshape", tensors[MAP], add.const([-1, 1, *extent])), extent, patch)
        score = score or add.smoothed_maximum(maps, min(SMOOTHED_PX, h, w))
        row = add("Expand", add("Reshape", score, add.const([-1, 1, 1, 1])), add.const([1, 1, 1, w]))
        add("Concat", row, maps, axis=2, output=output)
    else:
        add("Expand", add("Reshape", score, add.const([-1, 1, 1, 1])), add.const([1, 1, 1 + h, w]), output=output)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 1, 1 + h, w]))


class _Tail:
    """Appends nodes to a graph; calls return the name of the output."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph, self.made = graph, 0

    def _name(self) -> str:
        self.made += 1
        return f"import/{self.made}"

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or self._name()
        self.graph.node.append(helper.make_node(op, inputs, [output], f"import/{op}_{self.made}", **attributes))
        return output

    def const(self, values: object, dtype: type = np.int64) -> str:
        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def resized(self, maps: str, extent: tuple[int, ...], patch: tuple[int, int]) -> str:
        """Bilinear, as anomalib brings maps to the size of its images."""
        if extent == patch:
            return maps
        scales = []
        for have, wanted in zip(extent, patch, strict=True):
            scale = np.float32(wanted / have)
            # The size is floor(have * scale), in float32 or not.
            while int(np.float32(have) * scale) < wanted or int(have * float(scale)) < wanted:
                scale = np.nextafter(scale, np.float32(np.inf))
            scales.append(scale)
        held = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self("Resize", maps, "", self.const([1, 1, *scales], np.float32), **held)

    def smoothed_maximum(self, maps: str, window: int) -> str:
        means = self("AveragePool", maps, kernel_shape=[window] * 2, strides=[1, 1])
        return self("ReduceMax", means, self.const([2, 3]), keepdims=1)


def _put_in_front(graph: onnx.GraphProto, normalize: str | None, grey: bool) -> None:
    """Puts (x - mean) / std, and a grey image as all three channels, between the image and what takes it."""
    if not (normalize or grey):
        return
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name == IMAGE:
                node.input[slot] = "import/image"
    nodes, tensor = [], IMAGE
    if grey:
        graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
        nodes.append(helper.make_node("Concat", [IMAGE] * 3, ["import/rgb"], "import/rgb", axis=1))
        tensor = "import/rgb"
    for op, values in zip(("Sub", "Div"), NORMALIZATIONS[normalize] if normalize else (), strict=False):
        constant = numpy_helper.from_array(np.array(values, np.float32).reshape(1, 3, 1, 1), f"import/{op}/constant")
        graph.initializer.append(constant)
        nodes.append(helper.make_node(op, [tensor, constant.name], [f"import/{op}"], f"import/{op}"))
        tensor = f"import/{op}"
    nodes[-1].output[0] = "import/image"
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _tell_sums_from_branches(model: onnx.ModelProto) -> None:
    """Writes each Add that joins no convolution another way, for INT8 takes an Add for a residual one: as Sum, which is
    for floats, or a - (-b)."""
    graph = model.graph
    convs = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    stored = {tensor.name for tensor in graph.initializer}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    nodes = []
    for node in graph.node:
        if node.op_type == "Add" and not (convs | stored).intersection(node.input):
            if types.get(node.output[0]) == TensorProto.FLOAT:
                node.op_type = "Sum"
            else:
                negative = f"{node.output[0]}/negative"
                nodes.append(helper.make_node("Neg", [node.input[1]], [negative], negative))
                node.op_type, node.input[1] = "Sub", negative
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _loosen(part: onnx.ModelProto) -> None:
    """Lets reshapes whose shape was stored with a batch of 1 take any."""
    stored = {tensor.name: tensor for tensor in part.graph.initializer}
    stored |= {node.output[0]: node.attribute[0].t for node in part.graph.node if _holds_tensor(node)}
    for index, node in enumerate(part.graph.node):
        shape = numpy_helper.to_array(stored[node.input[1]]) if node.input[1:2] and node.input[1] in stored else None
        if node.op_type != "Reshape" or shape is None or shape.size < 2 or shape[0] != 1:
            continue
        free = np.array([0 if -1 in shape else -1, *shape[1:]], np.int64)
        node.input[1] = f"import/free_{index}"
        part.graph.initializer.append(numpy_helper.from_array(free, node.input[1]))


def _holds_tensor(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def _takes_batches(model: onnx.ModelProto, patch: tuple[int, int]) -> bool:
    """Whether three patches at once give what each gives alone."""
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    x = np.random.default_rng(0).random((3, channels, *patch), dtype=np.float32)
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # that it may fail is what is asked
    try:
        session = session_of(model)
        alone = np.concatenate([session.run(None, {IMAGE: x[i : i + 1]}, quiet)[0] for i in range(3)])
        together = session.run(None, {IMAGE: x}, quiet)[0]
    except Exception:  # ONNX Runtime's errors derive from Exception alone
        return False
    return together.shape == alone.shape and np.allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE)
