"""One table, every style: the same grids, the structure that each engine asks for, and the arithmetic of both."""

import platform
from collections import Counter
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import EngineError, InputError
from grd_edge.files import sha256_hex
from grd_edge.quantize import STYLES, layers_of, qdq_from_onnx, quantized, quantized_layers, weight_codes
from grd_edge.ranges import RangeTable
from tests.conftest import TINY

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
INTEGER = [style for style, rules in STYLES.items() if not rules.float8]
PATCH = (1, 32, 32)


def run_plain(model, outputs, x):
    """Values of tensors, by name, without any fusion."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), {"x": x}), strict=True))


def table_of(data, x):
    """Ranges of what layers take, from patches `x`."""
    model = onnx.load_from_string(data)
    tensors = list(dict.fromkeys(layer.tensor for layer in layers_of(model)))
    values = run_plain(model, [tensor for tensor in tensors if tensor != "x"], x)
    ranges = {name: (float(value.min()), float(value.max())) for name, value in values.items()}
    return RangeTable("minmax", sha256_hex(data), "0" * 64, 1, len(x), ranges)


@pytest.fixture(scope="module")
def fp32():
    """A random network with every kind of layer: residual blocks with and without a convolution on the skip branch."""
    from grd_edge.checkpoint import Checkpoint
    from grd_edge.config import load_config
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.models.generator import Reconstructor

    config = load_config(overrides=(*TINY, "model.base=8", "model.stages=[2, 2]"))
    torch.manual_seed(1)
    net = Reconstructor(config.model).train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(8, *PATCH))
    return onnx_from_checkpoint(Checkpoint(config, net.state_dict(), {"dataset": "random"}))


@pytest.fixture(scope="module")
def graph(fp32):
    return onnx.load_from_string(fp32)


@pytest.fixture(scope="module")
def table(fp32):
    return table_of(fp32, np.random.default_rng(0).random((16, *PATCH), np.float32))


@pytest.fixture(scope="module")
def models(fp32, table):
    return {style: onnx.load_from_string(qdq_from_onnx(fp32, table, style=style)) for style in INTEGER}


@pytest.fixture
def x():
    return np.random.default_rng(7).random((3, *PATCH), np.float32)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def activations(model):
    """Tensor -> scale and zero point, of all that is quantized while the model runs."""
    stored = constants(model)
    return {
        node.input[0]: (stored[node.input[1]], stored[node.input[2]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


# ------------------------------------------------------------------------------------------------ the same grids


def test_every_kind_of_layer_is_named_as_documented(graph):
    names = [layer.name for layer in layers_of(graph)]
    block = ["encoder.blocks.1.conv1", "encoder.blocks.1.conv2", "encoder.blocks.1.add"]
    assert names[0] == "encoder.stem.0"
    assert [name for name in names if name.startswith("encoder.blocks.1.")] == block
    assert {"encoder.blocks.0.skip.0", "latent_down.1", "latent_up.0", "decoder.blocks.0.0", "decoder.out"} <= set(
        names
    )
    assert len(set(names)) == len(names)
    skips = {layer.name: layer.tensor for layer in layers_of(graph) if layer.op == "Add"}
    makers = {name: node for node in graph.graph.node for name in node.output}
    assert makers[skips["encoder.blocks.0.add"]].input[1] == "encoder.blocks.0.skip.0.weight"
    assert makers[skips["encoder.blocks.1.add"]].op_type == "LeakyRelu"


@pytest.mark.parametrize("other", ["onnxruntime", "tensorrt"])
def test_tensors_quantized_in_two_styles_have_one_scale(models, other):
    first, second = activations(models["openvino"]), activations(models[other])
    common = first.keys() & second.keys()
    assert len(common) >= 12
    for tensor in common:
        assert first[tensor][0].tobytes() == second[tensor][0].tobytes()
        if tensor == "x":  # unsigned bytes from 0 on in every style
            assert first[tensor][1] == second[tensor][1] == 0
            assert first[tensor][1].dtype == second[tensor][1].dtype == np.uint8
        else:
            assert int(second[tensor][1]) - int(first[tensor][1]) == (128 if STYLES[other].unsigned else 0)


def test_codes_of_two_styles_agree_on_the_same_values(graph, models, x):
    """What both styles round is taken from the FP32 model, since behind the first layers their own values differ."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    for style, model in models.items():
        for node in model.graph.node:
            # Some of what ONNX Runtime rounds has another name there, but none of that is in another style.
            if node.op_type == "QuantizeLinear":
                names = [f"{style}/{name}" for name in (*node.input[1:], node.output[0])]
                watched.graph.node.add(op_type=node.op_type, input=[node.input[0], *names[:2]], output=names[2:])
        watched.graph.initializer.extend(
            numpy_helper.from_array(value, f"{style}/{name}") for name, value in constants(model).items()
        )
    outputs = [node.output[0] for node in watched.graph.node if node.op_type == "QuantizeLinear"]
    codes = run_plain(watched, outputs, x)
    compared = Counter()
    for name, signed in codes.items():
        style, _, tensor = name.partition("/")
        if style != "openvino" or tensor == "x/quantized":
            continue
        assert len(np.unique(signed)) > 15
        for other in ("onnxruntime", "tensorrt"):
            if f"{other}/{tensor}" in codes:
                found = codes[f"{other}/{tensor}"].astype(int) - (128 if STYLES[other].unsigned else 0)
                assert np.array_equal(found, signed.astype(int))
                compared[other] += 1
    assert min(compared.values()) >= 12
    assert np.array_equal(codes["openvino/x/quantized"], codes["onnxruntime/x/quantized"])


@pytest.fixture(scope="module")
def quantizers():
    """QuantizeLinear of ONNX Runtime, to signed and to unsigned bytes, with the scale as an input."""
    sessions = []
    for zero in (np.int8(0), np.uint8(128)):
        node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
        graph = helper.make_graph(
            [node],
            "q",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
                helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            ],
            [helper.make_tensor_value_info("q", helper.np_dtype_to_tensor_dtype(zero.dtype), ["n"])],
            [numpy_helper.from_array(np.array(zero), "zero")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        sessions.append(onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]))
    return sessions


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-(2**20), 0, width=32),
    high=st.floats(2**-10, 2**20, width=32),
    values=hnp.arrays(np.float32, st.integers(1, 33), elements=st.floats(-2, 2, width=32)),
)
def test_a_grid_is_the_same_signed_and_unsigned(quantizers, low, high, values):
    grid = RangeTable("minmax", "", "", 1, 1, {"t": (low, high)}).grid("t")
    top = max(-low, high)
    scaled = np.concatenate([values * np.float32(top), np.float32([low, 0, high])]).astype(np.float32)
    feed = {"x": scaled, "scale": np.array(grid.scale, np.float32)}
    signed, unsigned = (session.run(None, feed)[0].astype(int) for session in quantizers)
    assert np.array_equal(signed, unsigned - 128)
    inside = np.abs(scaled) <= top
    assert np.abs(signed * grid.scale - scaled.astype(np.float64))[inside].max() <= grid.scale * (0.5 + 1e-4)
    assert signed[-2] == 0


def test_the_image_lies_on_the_grid_of_8_bit_frames(models):
    frame = (np.arange(256, dtype=np.float32) / 255).astype(np.float32)
    patch = np.resize(frame, (1, *PATCH))
    codes = run_plain(models["openvino"], ["x/quantized"], patch)["x/quantized"]
    assert np.array_equal(codes, np.resize(np.arange(256, dtype=np.uint8), codes.shape))


# --------------------------------------------------------------------------------------------------- weights


def test_weights_are_within_half_a_step_and_the_same_in_all_styles(graph, models):
    source = constants(graph)
    seen = {}
    for model in models.values():
        stored = constants(model)
        for node in model.graph.node:
            if node.op_type != "DequantizeLinear" or not node.input[0].endswith(".weight/quantized"):
                continue
            codes, scales, zeros = (stored[name] for name in node.input)
            assert codes.dtype == np.int8
            assert np.abs(codes.astype(int)).max() == 127
            assert not zeros.any()
            (axis,) = (attribute.i for attribute in node.attribute)
            scales = scales.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
            weight = source[node.input[0].removesuffix("/quantized")]
            assert np.abs(codes * scales.astype(np.float64) - weight).max() <= 0.5001 * scales.max()
            assert (np.abs(codes * scales.astype(np.float64) - weight) <= 0.5001 * scales).all()
            first = seen.setdefault(node.input[0], (codes, scales))
            assert np.array_equal(first[0], codes)
            assert np.array_equal(first[1], scales)
    assert len(seen) == sum(layer.op in WEIGHTED for layer in layers_of(graph))


@settings(max_examples=60, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.floats(-(2**13), 2**13, width=32, allow_subnormal=False),
    ),
    axis=st.integers(0, 2),
)
def test_weight_codes(weight, axis):
    codes, scales = weight_codes(weight, axis)
    steps = scales.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float64)
    assert scales.shape == (weight.shape[axis],)
    assert (scales > 0).all()
    assert np.abs(codes.astype(int)).max() <= 127
    assert (np.abs(codes * steps - weight) <= 0.5001 * steps).all()
    mirrored, same = weight_codes(-weight, axis)
    assert np.array_equal(mirrored, -codes)
    assert np.array_equal(same, scales)


@pytest.mark.parametrize("style", INTEGER)
def test_a_kept_layer_is_left_alone(fp32, graph, table, style):
    kept = "decoder.blocks.1.conv1"
    by_call = onnx.load_from_string(qdq_from_onnx(fp32, table, style=style, keep=[kept]))
    by_table = onnx.load_from_string(qdq_from_onnx(fp32, replace(table, keep={kept: "why"}), style=style))
    assert by_call.graph == by_table.graph
    (node,) = (node for node in by_call.graph.node if f"{kept}.weight" in node.input)
    (original,) = (node for node in graph.graph.node if f"{kept}.weight" in node.input)
    assert node.input[1:] == original.input[1:]
    before, after = constants(graph), constants(by_call)
    for name in node.input[1:]:
        assert after[name].tobytes() == before[name].tobytes()
    assert f"{kept}.weight/quantized" not in after
    everything = onnx.load_from_string(qdq_from_onnx(fp32, table, style=style, keep=["*"]))
    assert everything.graph == graph.graph


# ------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("style", INTEGER)
def test_structure(graph, models, style):
    model, rules = models[style], STYLES[style]
    chosen = quantized_layers(graph, style)
    producer = {name: node for node in model.graph.node for name in node.output}
    at = {node.output[0]: node for node in model.graph.node}
    for layer in chosen:
        node = at[graph.graph.node[layer.node].output[0]]
        kinds = [producer[name].op_type if name in producer else "" for name in node.input]
        if layer.op == "Add":
            main = kinds[1 - list(graph.graph.node[layer.node].input).index(layer.tensor)]
            assert "DequantizeLinear" in kinds
            assert main == ("DequantizeLinear" if rules.results else "Conv")
        else:
            bias = "DequantizeLinear" if rules.results else ""
            assert kinds == ["DequantizeLinear", "DequantizeLinear", bias]
            assert producer[producer[node.input[0]].input[0]].op_type == "QuantizeLinear"
            assert producer[node.input[1]].input[0] not in producer  # weights are stored as integers
    floats = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in constants(model)]
    assert len(floats) == sum(layer.op in WEIGHTED for layer in layers_of(graph)) - sum(
        layer.op in WEIGHTED for layer in chosen
    )
    assert ("x" in activations(model)) == rules.first
    assert {str(zero.dtype) for tensor, (_, zero) in activations(model).items() if tensor != "x"} == {
        "uint8" if rules.unsigned else "int8"
    }
    assert [value.name for value in model.graph.input] == ["x"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["style"] == style
    assert len(about["model_sha256"]) == len(about["ranges_sha256"]) == 64


def test_fp8_has_the_layers_and_ranges_of_int8(fp32, table, models):
    """E4M3 codes of the same ranges, 448 where a signed byte has 127; ONNX knows them from opset 19 on."""
    written = onnx.load_from_string(qdq_from_onnx(fp32, table, style="tensorrt-fp8"))
    assert written.opset_import[0].version == 19
    operators = [[node.op_type for node in model.graph.node] for model in (written, models["tensorrt"])]
    assert operators[0] == operators[1]
    expected = activations(models["tensorrt"])
    found = activations(written)
    assert found.keys() == expected.keys()
    for tensor, (scale, zero) in found.items():
        assert zero.dtype == ml_dtypes.float8_e4m3fn
        assert scale * 448 == pytest.approx(expected[tensor][0] * 127, rel=1e-6)
    originals, stored = constants(onnx.load_from_string(fp32)), constants(written)
    codes = [name for name, value in stored.items() if value.dtype == ml_dtypes.float8_e4m3fn and value.ndim > 1]
    assert codes
    for name in codes:
        weight, scale = originals[name.removesuffix("/quantized")], stored[name.replace("/quantized", "/scale")]
        values = stored[name].astype(np.float32)
        others = tuple(range(1, weight.ndim))
        assert (np.abs(values).max(others) == 448).all()
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        # Three bits of mantissa; below 2^-6 a fixed step of 2^-9.
        assert (np.abs(values * steps - weight) <= np.maximum(np.abs(weight) / 16, steps * 2.0**-10) * 1.0001).all()
    x = np.random.default_rng(3).random((2, *PATCH), np.float32)
    found, expected = (OnnxRuntimeEngine(data).reconstruct(x) for data in (written.SerializeToString(), fp32))
    assert 1e-4 < np.abs(found - expected).max() <= 2 * BOUND["tensorrt"]


def test_what_styles_leave_out(graph):
    names = {style: {layer.name for layer in quantized_layers(graph, style)} for style in INTEGER}
    assert names["openvino"] == {layer.name for layer in layers_of(graph)}
    transposed = {layer.name for layer in layers_of(graph) if layer.op == "ConvTranspose"}
    assert names["openvino"] - names["onnxruntime"] == transposed | {"decoder.out"}
    assert names["onnxruntime"] - names["tensorrt"] == {"encoder.stem.0"}


@pytest.mark.parametrize("style", INTEGER)
def test_the_same_arguments_give_the_same_bytes(fp32, table, style):
    assert qdq_from_onnx(fp32, table, style=style) == qdq_from_onnx(fp32, table, style=style)


# ------------------------------------------------------------------------------------------------ arithmetic


def fake_quantized(graph, table, keep, x):
    """The FP32 graph in torch, with the inputs of layers and their weights rounded as docs/design/precision.md says."""
    stored = {name: torch.from_numpy(value.copy()) for name, value in constants(graph).items()}
    layers = {layer.node: layer for layer in layers_of(graph) if layer.name not in keep}
    values = {"x": torch.from_numpy(x), **stored}

    def rounded(tensor, scale, low=-128, high=127):
        return (tensor / scale).round().clamp(low, high) * scale

    for index, node in enumerate(graph.graph.node):
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        taken = [values[name] for name in node.input]
        if layer := layers.get(index):
            slot = list(node.input).index(layer.tensor)
            if layer.tensor == "x":
                taken[slot] = rounded(taken[slot], 1 / 255, 0, 255)
            else:
                taken[slot] = rounded(taken[slot], max(map(abs, table.ranges[layer.tensor])) / 127)
            if layer.op != "Add":
                others = [i for i in range(taken[1].ndim) if i != (layer.op == "ConvTranspose")]
                taken[1] = rounded(taken[1], taken[1].abs().amax(others, keepdim=True) / 127)
        if node.op_type == "Conv":
            pads, strides = attributes["pads"][0], attributes["strides"][0]
            value = torch.nn.functional.conv2d(*taken, stride=strides, padding=pads)
        elif node.op_type == "ConvTranspose":
            pads, strides = attributes["pads"][0], attributes["strides"][0]
            value = torch.nn.functional.conv_transpose2d(*taken, stride=strides, padding=pads)
        elif node.op_type == "Gemm":
            value = torch.nn.functional.linear(*taken)
        elif node.op_type == "LeakyRelu":
            value = torch.nn.functional.leaky_relu(taken[0], attributes["alpha"])
        elif node.op_type == "Reshape":
            value = taken[0].reshape([len(x), *taken[1].tolist()[1:]])
        else:
            value = {"Add": torch.add, "Sigmoid": torch.sigmoid}[node.op_type](*taken)
        values[node.output[0]] = value
    return values["x_hat"].numpy()


@pytest.mark.parametrize("style", ["openvino", "tensorrt"])
def test_the_arithmetic_is_that_of_fake_quantization(graph, table, models, x, style):
    chosen = {layer.name for layer in quantized_layers(graph, style)}
    keep = {layer.name for layer in layers_of(graph)} - chosen
    expected = fake_quantized(graph, table, keep, x)
    found = run_plain(models[style], ["x_hat"], x)["x_hat"]
    # A value between two codes may fall to either, by the order of a sum; then one of many inputs is off by a step.
    assert np.abs(found - expected).max() <= 5e-3
    assert np.abs(found - expected).mean() <= 2e-4


# Random networks, whose x_hat moves by 0.1 to 0.2 from patch to patch: a mistake in any layer costs more.
BOUND = {"openvino": 0.05, "onnxruntime": 0.05, "tensorrt": 0.05}


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_every_style_is_near_fp32_at_any_batch(fp32, models, batch):
    x = np.random.default_rng(batch).random((batch, *PATCH), np.float32)
    expected = OnnxRuntimeEngine(fp32).reconstruct(x)
    for style, model in models.items():
        found = OnnxRuntimeEngine(model.SerializeToString()).reconstruct(x)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= BOUND[style]
        assert np.abs(found - expected).mean() <= BOUND[style] / 5
    engine = OpenVinoEngine(models["openvino"].SerializeToString(), "int8")
    assert np.abs(engine.reconstruct(x) - expected).max() <= BOUND["openvino"]


# ------------------------------------------------------------------------------------------ graphs made by hand


def chain(*steps, opset=18, extra_inputs=()):
    """Serialized model x -> y0 -> y1 ... -> x_hat; a step is an operator, its constants, and its attributes."""
    nodes, stored, taken = [], [], "x"
    for index, (op, arrays, attributes) in enumerate(steps):
        names = [f"l{index}.{kind}" for kind, _ in zip(("weight", "bias"), arrays, strict=False)]
        stored += [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)]
        given = "x_hat" if index == len(steps) - 1 else f"y{index}"
        nodes.append(helper.make_node(op, [taken, *names], [given], f"node{index}", **attributes))
        taken = given
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *PATCH])]
    inputs += [
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        for tensor in stored
        if tensor.name in extra_inputs
    ]
    outputs = [helper.make_tensor_value_info("x_hat", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def conv(outputs, inputs, *, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(outputs, inputs, 3, 3)).astype(np.float32)]
    if bias:
        arrays.append(rng.normal(size=outputs).astype(np.float32))
    return ("Conv", arrays, {"kernel_shape": [3, 3], "pads": [1] * 4})


LEAKY = ("LeakyRelu", [], {"alpha": 0.2})
FLATTEN = ("Flatten", [], {})


def wide_table(data, **ranges):
    return RangeTable("minmax", sha256_hex(data), "", 1, 1, ranges)


def test_a_bias_that_is_huge_beside_its_weights_fits(x):
    op, (weight, bias), attributes = conv(3, 1)
    weight[1] *= 1e-14
    weight[2] = 0
    bias[1:] = -2.5, 1.7
    data = chain((op, [weight, bias], attributes), LEAKY, conv(1, 3))
    built = onnx.load_from_string(qdq_from_onnx(data, wide_table(data, y1=(-8.0, 8.0)), style="onnxruntime"))
    assert "y0" in activations(built)
    found, expected = (
        run_plain(model, ["y0/dequantized" if model is built else "y0"], x)
        for model in (built, onnx.load_from_string(data))
    )
    step = float(activations(built)["y0"][0])
    assert step == pytest.approx(40 / 127)
    assert np.abs(found["y0/dequantized"] - expected["y0"])[:, 1:].max() <= 0.51 * step


@pytest.mark.parametrize("style", INTEGER)
@pytest.mark.parametrize("transposed", [0, 1])
def test_dense_layers_have_a_scale_per_output_however_they_are_stored(style, transposed, x):
    weight = np.random.default_rng(0).normal(size=(1024, 5)).astype(np.float32) * np.float32([1, 10, 0.1, 3, 0.01])
    first = ("Gemm", [weight.T.copy() if transposed else weight, np.ones(5, np.float32)], {"transB": transposed})
    second = ("Gemm", [np.ones((5, 2), np.float32), np.zeros(2, np.float32)], {})
    data = chain(FLATTEN, first, second)
    built = onnx.load_from_string(
        qdq_from_onnx(data, wide_table(data, y0=(0.0, 1.0), y1=(-900.0, 900.0)), style=style, keep=["l2"])
    )
    stored = constants(built)
    assert stored["l1.weight/scale"] == pytest.approx(np.abs(weight).max(0) / 127)
    expected = run_plain(onnx.load_from_string(data), ["y1"], x)["y1"]
    found = run_plain(built, ["y1"], x)["y1"]
    assert (np.abs(found - expected).max(0) <= 0.02 * np.abs(weight).max(0) * 32).all()


@pytest.mark.parametrize("style", INTEGER)
def test_two_layers_may_share_a_weight(style, x):
    data = chain(conv(4, 1), LEAKY, conv(4, 4, seed=1), LEAKY, conv(4, 4, seed=2), LEAKY, conv(1, 4))
    model = onnx.load_from_string(data)
    third = model.graph.node[4]
    third.input[1], third.input[2] = "l2.weight", "l2.bias"
    del third, model.graph.initializer[4:6]
    data = model.SerializeToString()
    table = table_of(data, x)
    assert [layer.name for layer in layers_of(model)] == ["l0", "l2", "l2", "l6"]
    built = onnx.load_from_string(qdq_from_onnx(data, table, style=style))
    found = run_plain(built, ["x_hat"], x)["x_hat"]
    expected = run_plain(model, ["x_hat"], x)["x_hat"]
    assert np.abs(found - expected).mean() <= 0.02 * np.abs(expected).max()
    kept = onnx.load_from_string(qdq_from_onnx(data, table, style=style, keep=["l2"]))
    assert constants(kept)["l2.weight"].tobytes() == constants(model)["l2.weight"].tobytes()


def test_constants_that_older_files_list_as_inputs_are_none_any_more(x):
    data = chain(conv(4, 1), LEAKY, conv(1, 4), extra_inputs=("l0.weight", "l2.bias"))
    built = qdq_from_onnx(data, table_of(data, x), style="openvino")
    assert [value.name for value in onnx.load_from_string(built).graph.input] == ["x"]
    assert np.isfinite(OnnxRuntimeEngine(built).reconstruct(x)).all()


def test_results_are_quantized_through_rewritten_upsampling(x):
    """As an upsampling looks that was rewritten to a convolution, depth-to-space and a crop."""
    crop = ("Slice", [np.int64([2, 2]), np.int64([-2, -2])], {})
    shuffle = ("DepthToSpace", [], {"blocksize": 2})
    data = chain(conv(4, 1), LEAKY, conv(16, 4), shuffle, crop, LEAKY, conv(1, 4))
    model = onnx.load_from_string(data)
    model.graph.node[4].input.append("axes")
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2, 3]), "axes"))
    data = model.SerializeToString()
    table = wide_table(data, y1=(-2.0, 9.0), y5=(-30.0, 160.0))
    built = onnx.load_from_string(qdq_from_onnx(data, table, style="onnxruntime"))
    scales = {tensor: float(scale) * 127 for tensor, (scale, _) in activations(built).items() if tensor != "x"}
    assert scales == pytest.approx({"y0": 10, "y1": 9, "y2": 160})  # -2 / 0.2 is farther from 0 than 9


def test_what_cannot_be_quantized_behind_a_layer_leaves_it_in_fp32(graph, fp32, table):
    """ONNX Runtime gains nothing from integers whose result is a float."""
    kept = "encoder.blocks.1.add"
    built = onnx.load_from_string(qdq_from_onnx(fp32, table, style="onnxruntime", keep=[kept]))
    stored = constants(built)
    assert "encoder.blocks.1.conv2.weight" in stored
    assert "encoder.blocks.1.conv2.weight/quantized" not in stored
    assert "encoder.blocks.1.conv1.weight/quantized" in stored


def other(op, *arrays, **attributes):
    return chain(conv(4, 1), LEAKY, (op, arrays, attributes))


def branching():
    """An If of two constants."""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([1])))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )
    model = onnx.load_from_string(chain(conv(1, 1), LEAKY))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], "choice", then_branch=branch, else_branch=branch))
    return model.SerializeToString()


def altered(change):
    model = onnx.load_from_string(chain(conv(4, 1), LEAKY, conv(1, 4)))
    change(model.graph)
    return model.SerializeToString()


def with_weight(array):
    return lambda graph: graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "l2.weight"))


def computed(graph):
    graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=graph.initializer[2]))
    graph.node[-1].input[1] = "w"


def test_a_bias_that_is_not_one_value_per_channel_is_refused_where_it_is_quantized():
    data = chain(
        conv(4, 1), LEAKY, FLATTEN, ("Gemm", [np.ones((4096, 2), np.float32), np.ones(1, np.float32)], {}), LEAKY
    )
    model = onnx.load_from_string(data)
    model.graph.node.append(helper.make_node("Gemm", ["x_hat", "square"], ["z"], "last"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "square"))
    model.graph.output[0].name = "z"
    data = model.SerializeToString()
    table = wide_table(data, y1=(-1.0, 1.0), y2=(-1.0, 1.0), x_hat=(-1.0, 1.0))
    with pytest.raises(InputError, match="bias that is not stored as one value per channel; keep l3"):
        qdq_from_onnx(data, table, style="onnxruntime")
    assert qdq_from_onnx(data, table, style="openvino")


GROUPED = ("ConvTranspose", [np.ones((4, 2, 2, 2), np.float32)], {"group": 2, "strides": [2, 2]})
UNSUPPORTED = {
    "opset 12, scales per channel need 13": lambda: chain(conv(1, 1), LEAKY, opset=12),
    "MatMul 'node2' has weights that cannot be quantized": lambda: other("MatMul", np.ones((32, 5), np.float32)),
    "BatchNormalization 'node2' is not folded": lambda: chain(
        conv(4, 1), LEAKY, ("BatchNormalization", [np.ones(4, np.float32)] * 2, {})
    ),
    "If 'choice' holds graphs of its own": branching,
    "is grouped": lambda: chain(conv(4, 1), LEAKY, GROUPED),
    "scales its terms; keep l3 in higher precision": lambda: chain(
        conv(4, 1), LEAKY, FLATTEN, ("Gemm", [np.ones((4096, 2), np.float32)], {"alpha": 0.5})
    ),
    "the sum Add 'node2' joins no convolution": lambda: altered(
        lambda graph: graph.node.append(helper.make_node("Add", ["y1", "y1"], ["z"], "node2"))
    ),
    "weights that are not finite; keep l2": lambda: altered(with_weight(np.full((1, 4, 3, 3), np.nan, np.float32))),
    "weights of type float64, expected float32": lambda: altered(with_weight(np.ones((1, 4, 3, 3)))),
    "the weight of Conv 'node2' is computed": lambda: altered(computed),
    "the range table has no tensor 'y1'": lambda: chain(conv(4, 1), LEAKY, conv(1, 4)),
}


@pytest.mark.parametrize("sentence", UNSUPPORTED)
def test_what_cannot_be_quantized_is_one_sentence(sentence):
    data = UNSUPPORTED[sentence]()
    ranges = {} if "no tensor" in sentence else {"y1": (-1.0, 1.0), "y2": (-1.0, 1.0)}
    with pytest.raises(InputError) as caught:
        qdq_from_onnx(data, wide_table(data, **ranges), style="openvino")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_tables_styles_layers_and_quantized_models_are_one_sentence(fp32, graph, table, models):
    quantized_already = models["openvino"].SerializeToString()
    for message, call in {
        "range table is stale": lambda: qdq_from_onnx(fp32 + b" ", table, style="openvino"),
        "is quantized already": lambda: qdq_from_onnx(
            quantized_already, replace(table, model_sha256=sha256_hex(quantized_already)), style="openvino"
        ),
        "no quantization style 'tflite'; choose openvino": lambda: quantized(graph, table, style="tflite"),
        "no layer 'decoder.blocks.9.*' to keep": lambda: quantized(
            graph, table, style="openvino", keep=["decoder.blocks.9.*"]
        ),
        "is 0 on all calibration images": lambda: quantized(
            graph, replace(table, ranges={name: (0.0, 0.0) for name in table.ranges}), style="openvino"
        ),
    }.items():
        with pytest.raises(InputError, match=message.replace("*", r"\*")):
            call()


# --------------------------------------------------------------------------------------------------- engines


def test_onnxruntime_computes_in_integers(graph, models, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    data = models["onnxruntime"].SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    chosen = Counter(layer.op for layer in quantized_layers(graph, "onnxruntime"))
    assert kinds["QLinearConv"] == chosen["Conv"]
    assert kinds["QLinearAdd"] == chosen["Add"]
    assert kinds["QGemm"] == chosen["Gemm"] == 2
    assert kinds["Conv"] + kinds["FusedConv"] == 1  # decoder.out
    assert kinds["Add"] == 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of OpenVINO's x86 kernels")
def test_openvino_computes_every_layer_in_integers_and_fuses_the_rest(graph, models):
    engine = OpenVinoEngine(models["openvino"].SerializeToString(), "int8")
    compiled = engine._requests[1].get_compiled_model()
    infos = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
    found = [(info["layerType"].value, info["primitiveType"].value) for info in infos]
    chosen = Counter(layer.op for layer in layers_of(graph))
    weighted = [(kind, primitive) for kind, primitive in found if "conv" in kind.lower() or "FullyConnected" in kind]
    assert len(weighted) == sum(chosen[op] for op in WEIGHTED)
    assert all("i8" in primitive.lower() for _, primitive in weighted)
    # Residual adds, activations and rounding are part of the convolutions, but for the image and the dense layers.
    kinds = Counter(kind for kind, _ in found)
    assert not kinds.keys() & {"Eltwise", "Subgraph", "Multiply", "Add", "LeakyRelu", "PRelu"}
    assert kinds["FakeQuantize"] <= 3


def test_an_openvino_that_refuses_the_property_runs_the_model_as_well(models, x, monkeypatch):
    class Refusing:
        def __init__(self, core):
            self.core, self.asked = core, []

        def read_model(self, *arguments):
            return self.core.read_model(*arguments)

        def compile_model(self, model, device, settings):
            self.asked.append("SNIPPETS_MODE" in settings)
            if "SNIPPETS_MODE" in settings:
                raise RuntimeError("unsupported property SNIPPETS_MODE")
            return self.core.compile_model(model, device, settings)

    import openvino

    data = models["openvino"].SerializeToString()
    expected = OpenVinoEngine(data, "int8").reconstruct(x)
    refusing = Refusing(openvino.Core())
    monkeypatch.setattr(openvino, "Core", lambda: refusing)
    assert np.abs(OpenVinoEngine(data, "int8").reconstruct(x) - expected).max() <= 0.02
    assert refusing.asked == [True, False, False]


def test_runners_agree_and_refuse_in_one_sentence(fp32, x):
    engines = [OnnxRuntimeEngine(fp32, threads=1), OpenVinoEngine(fp32, threads=1)]
    first, second = (engine.reconstruct(x) for engine in engines)
    assert first.dtype == second.dtype == np.float32
    assert np.abs(first - second).max() <= 2e-5
    assert engines[0].version.startswith("ONNX Runtime 1")
    assert engines[1].version.startswith("OpenVINO 20")
    for call in (
        lambda: engines[0].reconstruct(x[:, :, 1:]),
        lambda: engines[1].reconstruct(x[:, :, 1:]),
        lambda: engines[0].reconstruct(x.astype(np.float64)),
        lambda: engines[1].reconstruct(x.astype(np.float64)),
        lambda: OnnxRuntimeEngine(b"no model"),
        lambda: OpenVinoEngine(b"no model"),
        lambda: OpenVinoEngine(fp32, "fp16"),
    ):
        with pytest.raises(EngineError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert np.array_equal(engines[1].reconstruct(x), second)


def test_tensorrt_rtx_builds_the_network_without_a_gpu(models):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'grd-edge[gpu]'")

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.said = []

        def log(self, severity, message):
            if severity <= trt.ILogger.WARNING:
                self.said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(models["tensorrt"].SerializeToString()), parser.get_error(0).desc()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.QUANTIZE:
            assert layer.get_output(0).dtype == trt.DataType.INT8
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.set_compute_capability(trt.ComputeCapability.SM89, 1)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *((batch, *PATCH) for batch in (1, 8, 16)))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, logger.said
