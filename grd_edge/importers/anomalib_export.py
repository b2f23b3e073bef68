"""ONNX exports of anomalib 2.x, read: what they take and yield, and what their graph says of thresholds.

Source: docs/anomalib.md, which says where each convention of anomalib is from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from grd_edge.calibrate import session_of, watching
from grd_edge.errors import InputError, one_line
from grd_edge.export import OPSET, OUTPUTS
from grd_edge.heads import SCORE_MAP
from grd_edge.ranges import IMAGE

SCORE, LABEL, MAP, MASK = "pred_score", "pred_label", "anomaly_map", "pred_mask"
NAMES = (SCORE, LABEL, MAP, MASK)
SENSITIVITIES = ("image_sensitivity", "pixel_sensitivity")  # scalars in [0, 1], inputs of later exports
SENSITIVITY = 0.5  # anomalib's own where nothing says another
NORMALIZED = 0.5  # where anomalib's normalization puts the threshold

EXPORT_WAY = "export it with anomalib 2.x: Engine.export(model, ExportType.ONNX)"
_CONTROL = ("If", "Loop", "Scan")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
# Operators between a value and what it is known by, and those of a pre-processor before its normalization.
_RESHAPES = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_RESIZES = ("Identity", "Cast", "Resize", "Slice", "Pad")
_ARITHMETIC = ("Sub", "Add", "Mul", "Div")


@dataclass(frozen=True)
class Export:
    """An export as it was read.

    Attributes:
        model: with a fixed patch, sensitivities as constants, and its own outputs; names of ours are free.
        outputs: those of NAMES that it has.
        left_out: further outputs of it.
        patch: (height, width) of the input, px.
        sensitivities: those that are inputs of the file -> the value that they are fixed to.
        threshold: anomalib's of pred_score (anomalous above it); None where scores are not normalized in the graph.
        clipped: outputs that the post-processor normalized, and clips to [0, 1].
        normalizes: whether the input's mean is subtracted in the graph.
        opset: of the file.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    left_out: tuple[str, ...]
    patch: tuple[int, int]
    sensitivities: dict[str, float]
    threshold: float | None
    clipped: tuple[str, ...]
    normalizes: bool
    opset: int


def read_export(
    data: bytes,
    path: Path,
    *,
    patch: tuple[int, int] | None = None,
    sensitivities: Mapping[str, float] | None = None,
) -> Export:
    """Reads a file's bytes.

    Args:
        path: for messages.
        patch: (height, width) in px, where the file leaves them open.
        sensitivities: values of SENSITIVITIES; default: the file's own, else SENSITIVITY.

    Raises:
        InputError: no ONNX model, or none that follows the conventions of docs/anomalib.md.
    """
    model = _parsed(data, path)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    image, fixed = _inputs(model, path, sensitivities or {})
    outputs = [value.name for value in model.graph.output]
    if not {SCORE, MAP}.intersection(outputs):
        older = "; anomalib 1.x normalizes outside of the graph" if "output" in outputs else ""
        raise InputError(
            f"{path} yields {', '.join(map(repr, outputs))}, expected {SCORE!r}, {MAP!r} or both{older}; {EXPORT_WAY}"
        )
    patch = _fix_patch(image, path, patch)
    _without_branches(model, path, patch)
    # Inferred anew: they hold the sizes that were open.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for name in (IMAGE, OUTPUTS[SCORE_MAP]):
        if name != image.name:
            _rename(model, name, f"{name}/anomalib")
    _rename(model, image.name, IMAGE)
    _refuse_crop(model, path, patch)
    return Export(
        _raised(model, opset, path),
        tuple(name for name in NAMES if name in outputs),
        tuple(name for name in outputs if name not in NAMES),
        patch,
        fixed,
        _threshold(model, outputs),
        tuple(name for name in (SCORE, MAP) if name in outputs and _normalizes_score(model, _behind(model, name))),
        _normalizes(model),
        opset,
    )


def _parsed(data: bytes, path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's errors derive from Exception alone
        raise InputError(f"{path} is no ONNX model ({one_line(error)}); {EXPORT_WAY}") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} is no ONNX model, or an empty one; {EXPORT_WAY}")
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            kept = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise InputError(
                f"{path} keeps its weights in {kept!r}, and a bundle's model is one file; make it one with "
                f"onnx.save(onnx.load({path.name!r}), 'single.onnx') and import that"
            )
    if model.functions:
        model = inliner.inline_local_functions(model)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InputError(
                f"{path} has the operator {node.op_type!r} of {node.domain!r}, which engines do not know; export it "
                "with standard operators only"
            )
        if node.op_type in _QUANTIZED:
            raise InputError(
                f"{path} is quantized already ({node.op_type} {node.name!r}); import the FP32 export, of which "
                "grd-edge makes INT8 itself"
            )
    return model


def _inputs(
    model: onnx.ModelProto, path: Path, sensitivities: Mapping[str, float]
) -> tuple[onnx.ValueInfoProto, dict[str, float]]:
    """The image, which is the one input that stays, and what sensitivities were fixed to."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = {}
    for name in SENSITIVITIES:
        if any(value.name == name for value in graph.input):
            default = numpy_helper.to_array(stored[name]).item() if name in stored else SENSITIVITY
            fixed[name] = float(sensitivities.get(name, default))
    images = [value for value in graph.input if value.name not in stored and value.name not in fixed]
    if len(images) != 1:
        names = ", ".join(repr(value.name) for value in images) or "none"
        raise InputError(f"{path} takes the inputs {names}; expected one, a batch of images; {EXPORT_WAY}")
    image = onnx.ValueInfoProto()
    image.CopyFrom(images[0])
    for name, value in fixed.items():
        if name in stored:
            graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    del graph.input[:]
    graph.input.append(image)
    image = graph.input[0]
    kind, dims = image.type.tensor_type.elem_type, image.type.tensor_type.shape.dim
    if kind != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind).lower()
        raise InputError(f"{path} takes images of {found}; expected float32 RGB in [0, 1]; {EXPORT_WAY}")
    if len(dims) != 4 or dims[1].dim_value != 3:
        shape = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
        raise InputError(f"{path} takes images ({shape}); expected (batch, 3, height, width), RGB; {EXPORT_WAY}")
    if dims[0].dim_value > 1:
        raise InputError(f"{path} takes batches of {dims[0].dim_value}; export it with a free batch, or one of 1")
    return image, fixed


def _fix_patch(image: onnx.ValueInfoProto, path: Path, patch: tuple[int, int] | None) -> tuple[int, int]:
    """Frees the batch, and fixes height and width."""
    dims = image.type.tensor_type.shape.dim
    found = tuple(dim.dim_value for dim in dims[2:])
    if patch is None and not all(found):
        raise InputError(
            f"{path} leaves the size of its images open; give the one it was trained with: --patch 256x256"
        )
    if patch and any(have not in (0, wanted) for have, wanted in zip(found, patch, strict=True)):
        raise InputError(f"{path} takes images of {found[0]}x{found[1]} px, and --patch says {patch[0]}x{patch[1]}")
    dims[0].ClearField("dim_value")
    dims[0].dim_param = "batch"
    for dim, px in zip(dims[2:], patch or found, strict=True):
        dim.dim_value = px
    return tuple(patch or found)


def _without_branches(model: onnx.ModelProto, path: Path, patch: tuple[int, int]) -> None:
    """Replaces each If that asks for shapes only by the branch that is taken; PyTorch's exporter writes them where it
    does not know whether an axis has one element."""
    graph = model.graph
    while node := next((node for node in graph.node if node.op_type in _CONTROL), None):
        taken = _branch(model, node, patch) if node.op_type == "If" else None
        if taken is None:
            raise InputError(
                f"{path} has control flow ({node.op_type} {node.name!r}) that does not only ask for shapes, and graphs "
                "of TensorRT have none here; export it with a fixed input_size"
            )
        ends = [
            helper.make_node("Identity", [inner.name], [outer])
            for inner, outer in zip(taken.output, node.output, strict=True)
        ]
        index = list(graph.node).index(node)
        nodes = [*graph.node[:index], *taken.node, *ends, *graph.node[index + 1 :]]
        graph.initializer.extend(taken.initializer)
        del graph.node[:]
        graph.node.extend(nodes)


def _branch(model: onnx.ModelProto, node: onnx.NodeProto, patch: tuple[int, int]) -> onnx.GraphProto | None:
    """The branch that an If takes for every batch of patches; None where that depends on anything but shapes."""
    asked = watching(model, [node.input[0]])
    makers = {name: each for each in asked.graph.node for name in each.output}
    image, open_ = asked.graph.input[0].name, [node.input[0]]
    while open_:
        tensor = open_.pop()
        if tensor == image:
            return None
        maker = makers.get(tensor)
        open_ += maker.input if maker is not None and maker.op_type != "Shape" else ()
    patches = [np.full((batch, 3, *patch), 0.5, np.float32) for batch in (1, 2, 3)]
    try:
        session = session_of(asked)
        conditions = {bool(session.run(None, {image: x})[0]) for x in patches}
    except Exception:  # ONNX Runtime's errors derive from Exception alone; one takes batches of 1 only
        return None
    branches = {attribute.name: attribute.g for attribute in node.attribute}
    return branches["then_branch" if conditions.pop() else "else_branch"] if len(conditions) == 1 else None


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Gives a tensor another name, which must be free."""
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                if name == old:
                    names[slot] = new
    for value in (*graph.input, *graph.output, *graph.initializer):
        if value.name == old:
            value.name = new


def _raised(model: onnx.ModelProto, opset: int, path: Path) -> onnx.ModelProto:
    if opset >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # its errors derive from Exception alone
        raise InputError(
            f"{path} has opset {opset}, which cannot be raised to {OPSET} ({one_line(error)}); export it with "
            f"model.to_onnx(…, opset_version={OPSET})"
        ) from error


# ---------------------------------------------------------------- what the graph says of itself


def _constant(model: onnx.ModelProto, tensor: str) -> np.ndarray | None:
    """The value of a tensor that does not depend on the image; None of one that does."""
    graph, needed = model.graph, {tensor}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    if needed.intersection(value.name for value in graph.input) - {stored.name for stored in graph.initializer}:
        return None
    part = watching(model, [tensor])
    if not part.graph.node:
        return numpy_helper.to_array(part.graph.initializer[0]) if part.graph.initializer else None
    del part.graph.input[:]
    return np.asarray(ReferenceEvaluator(part).run(None, {})[0])


def _behind(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """The node that makes a tensor, less operators that only change its shape or type."""
    makers = {name: node for node in model.graph.node for name in node.output}
    while (node := makers.get(tensor)) is not None and node.op_type in _RESHAPES:
        tensor = node.input[0]
    return node


def _is(model: onnx.ModelProto, tensor: str, value: float) -> bool:
    found = _constant(model, tensor) if tensor else None
    return found is not None and found.size == 1 and abs(found.item() - value) < 1e-6


def _normalizes_score(model: onnx.ModelProto, clip: onnx.NodeProto | None) -> bool:
    """Whether a node ends the post-processor's normalization, clip(… + 0.5, 0, 1)."""
    if clip is None or clip.op_type != "Clip" or len(clip.input) < 3:
        return False
    shift = _behind(model, clip.input[0])
    if not (_is(model, clip.input[1], 0) and _is(model, clip.input[2], 1)) or shift is None or shift.op_type != "Add":
        return False
    return any(_is(model, tensor, NORMALIZED) for tensor in shift.input)


def unclipped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose normalized scores and maps are not clipped to [0, 1], where many of them are equal."""
    copy = inliner.inline_local_functions(model)
    for node in copy.graph.node:
        if _normalizes_score(model, node):
            node.op_type = "Identity"
            del node.input[1:]
    return copy


def _threshold(model: onnx.ModelProto, outputs: list[str]) -> float | None:
    """Threshold of pred_score: what pred_label compares with, or where the normalization puts it.

    Both count only where the post-processor normalized pred_score.
    """
    if SCORE not in outputs or not _normalizes_score(model, _behind(model, SCORE)):
        return None
    compare = _behind(model, LABEL) if LABEL in outputs else None
    if compare is None or compare.op_type != "Greater":
        return NORMALIZED
    found = _constant(model, compare.input[1])
    return found.item() if found is not None and found.size == 1 and np.isfinite(found).all() else None


def _front(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes that a pre-processor can consist of: the image, resized, cropped, and combined with constants."""
    tensors = {IMAGE}
    for node in model.graph.node:
        if not tensors.intersection(node.input[:1]):
            continue
        arithmetic = node.op_type in _ARITHMETIC and _constant(model, node.input[1]) is not None
        if arithmetic or node.op_type in _RESIZES:
            tensors.add(node.output[0])
            yield node


def _normalizes(model: onnx.ModelProto) -> bool:
    """Whether the image is combined with a value per channel before anything but resizing."""
    return any(node.op_type in _ARITHMETIC and _constant(model, node.input[1]).size == 3 for node in _front(model))


def _refuse_crop(model: onnx.ModelProto, path: Path, patch: tuple[int, int]) -> None:
    """Raises InputError where the map would be of a part of the image."""
    for node in _front(model):
        if node.op_type != "Slice":
            continue
        image = np.zeros((1, 3, *patch), np.float32)
        before, after = (
            image if name == IMAGE else session_of(watching(model, [name])).run(None, {IMAGE: image})[0]
            for name in (node.input[0], node.output[0])
        )
        if any(less < more for less, more in zip(after.shape[2:], before.shape[2:], strict=True)):
            raise InputError(
                f"{path} crops its input ({node.name!r}: {before.shape[2]}x{before.shape[3]} to "
                f"{after.shape[2]}x{after.shape[3]} px), so its map is of the middle only; train and export it with a "
                "pre-processor that resizes without CenterCrop"
            )
