"""FP32 ONNX model -> the model that a strongly typed TensorRT builder is given: its types are the precision.

Source: docs/design/tensorrt.md.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from grd_edge.errors import InputError
from grd_edge.files import sha256_hex
from grd_edge.graph import folded_batch_norms, forms, half_precision, in_form, quantized_before_moves
from grd_edge.heads import output_shape
from grd_edge.quantize import quantized
from grd_edge.ranges import RangeTable, check_fresh

FORM = "transposed"
_STYLES = {"int8": "tensorrt", "fp8": "tensorrt-fp8"}


def typed_from_onnx(
    model: bytes,
    precision: str,
    *,
    table: RangeTable | None = None,
    keep: Collection[str] = (),
    form: str = FORM,
    half: bool = True,
) -> bytes:
    """Serialized model of the same input and output, both FP32; the sigmoid is computed in FP32, what is not quantized
    in FP16.

    Args:
        model: serialized FP32 model; for `int8` and `fp8` the one that `table` was made from.
        precision: `fp16`, `int8` or `fp8`.
        keep: layers, or patterns of them, of a higher precision: FP16 where the rest is quantized, else FP32. For the
            quantized precisions they join those of the table.
        form: of `graph.forms`: how transposed convolutions and the output are computed.
        half: False leaves in FP32 what is not quantized: for ONNX Runtime, whose FP8 (1.32) is wrong in FP16.

    Raises:
        InputError: no table, a stale one, an unknown layer or form, a model that cannot be cast or quantized.
    """
    if precision in _STYLES and table is None:
        raise InputError(f"{precision} needs the ranges of the activations and there are none; give --ranges")
    if table is not None and precision in _STYLES:
        check_fresh(table, sha256_hex(model))  # before a file that may be no model is parsed
    parsed = folded_batch_norms(parsed_model(model))
    if form not in (known := forms(parsed)):
        raise InputError(f"the model has no form {form!r}; choose {', '.join(known)}")
    written = in_form(parsed, form)
    if precision not in _STYLES:
        typed = half_precision(written, keep=keep, keep_output_fp32=True)
    else:
        codes = quantized(written, table, style=_STYLES[precision], keep=keep)
        if precision != "fp8":  # which ONNX's depth-to-space does not take
            codes = quantized_before_moves(codes)
        typed = half_precision(codes, keep_output_fp32=True) if half else codes
    return typed.SerializeToString(deterministic=True)


def check_graph(model: onnx.ModelProto, patch_shape: tuple[int, int, int], head: str) -> None:
    """Raises InputError for a model that does not take patches (N, C, patch_h, patch_w) and yield what `head` says, N
    free, both FP32."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for values in ([each for each in model.graph.input if each.name not in stored], model.graph.output):
        kinds = [each.type.tensor_type for each in values]
        found.append([(kind.elem_type, [dim.dim_value for dim in kind.shape.dim]) for kind in kinds])
    shapes = list(patch_shape), list(output_shape(head, *patch_shape))
    if found != [[(onnx.TensorProto.FLOAT, [0, *shape])] for shape in shapes]:  # 0: not fixed
        told = " and ".join("; ".join(str(shape) for _, shape in side) or "nothing" for side in found)
        raise InputError(
            f"the model is not that of this bundle: it takes and gives {told}, where any number of float32 {shapes[0]} "
            f"and as many {shapes[1]} are needed; build the bundle again"
        )


def parsed_model(data: bytes) -> onnx.ModelProto:
    """A serialized ONNX model of a whole file, checked.

    Raises:
        InputError: the bytes are no ONNX model, or it keeps its weights in other files.
    """
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the model is no valid ONNX ({reason}); export it again with: grd-edge build onnx") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise InputError("the model keeps its weights in other files; export it again with: grd-edge build onnx")
    return model
