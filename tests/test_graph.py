"""Rewrites of the ONNX graph: equal in float64, the same names, the same grids; and the cast to FP16."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from grd_edge.bench.upsampling import race_forms, random_checkpoint, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from grd_edge import export, graph, quantize
from grd_edge.calibrate import ranges_from_images
from grd_edge.config import load_config
from grd_edge.errors import CheckFailedError, InputError
from grd_edge.graph import (
    UPSAMPLING_FORMS,
    blocked_output,
    folded_batch_norms,
    forms,
    half_precision,
    in_form,
    quantized_before_moves,
    upsampling_as,
)
from grd_edge.recipes import Minmax

RELATIVE = 1e-10  # bar of the rewrites in float64
CHANNELS, SIZES = (1, 2, 3, 7, 16), (2, 3, 7, 8, 15, 16)
KINDS = ("transposed", "resize_conv", "pixel_shuffle")
awkward = settings(max_examples=30, deadline=None, derandomize=True)


def model_of(nodes, constants, shape, out_shape=None, opset=18, dtype=np.float64):
    """Model x -> y of float64 or float32 nodes."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    described = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, out_shape or [f"y{axis}" for axis in range(len(shape))])],
        stored,
    )
    return helper.make_model(described, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def in_float64(model):
    """The same model, all of whose floats are float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del wide.graph.value_info[:]
    for node in wide.graph.node:  # the scales of Resize are float32 by definition
        if node.op_type == "Resize":
            scales = next(tensor for tensor in wide.graph.initializer if tensor.name == node.input[2])
            scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales).astype(np.float32), scales.name))
    return wide


def run(model, x):
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return y


def run_float32(model, x):
    """By ONNX Runtime, node by node: fusions round elsewhere."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (y,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    return y


def assert_equal(model, rewritten, x):
    expected, found = run(model, x), run(rewritten, x)
    assert expected.dtype == found.dtype == np.float64
    assert expected.shape == found.shape
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def refuses(rewrite, *arguments, match, **options):
    with pytest.raises(InputError, match=match) as found:
        rewrite(*arguments, **options)
    assert "\n" not in str(found.value)


# Upsampling


@st.composite
def upsamplings(draw):
    """A transposed convolution k4 s2 p1 with or without bias and activation, torch's result, and an input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    c_in, c_out, h, w = (draw(st.sampled_from(values)) for values in (CHANNELS, CHANNELS, (1, *SIZES), SIZES))
    weight, bias = rng.standard_normal((c_in, c_out, 4, 4)), rng.standard_normal(c_out)
    with_bias, activation = draw(st.booleans()), draw(st.sampled_from(["LeakyRelu", "Relu", "Sigmoid", ""]))
    names = ["x", "up.weight", "up.bias"][: 3 if with_bias else 2]
    last = "y" if not activation else "raw"
    nodes = [helper.make_node("ConvTranspose", names, [last], strides=[2, 2], pads=[1] * 4, kernel_shape=[4, 4])]
    if activation:
        nodes.append(helper.make_node(activation, ["raw"], ["y"], **({"alpha": 0.2} if activation[0] == "L" else {})))
    constants = {"up.weight": weight, "up.bias": bias}
    x = rng.standard_normal((draw(st.integers(1, 2)), c_in, h, w))
    expected = F.conv_transpose2d(*map(torch.from_numpy, (x, weight)), torch.from_numpy(bias * with_bias), 2, 1)
    acts = {"LeakyRelu": lambda t: F.leaky_relu(t, float(np.float32(0.2))), "Relu": F.relu, "Sigmoid": torch.sigmoid}
    model = model_of(nodes, constants, ["n", c_in, h, w], ["n", c_out, 2 * h, 2 * w])
    return model, acts.get(activation, lambda t: t)(expected).numpy(), x, activation


@awkward
@given(case=upsamplings(), form=st.sampled_from(UPSAMPLING_FORMS))
def test_every_upsampling_form_is_the_transposed_convolution(case, form):
    model, expected, x, activation = case
    rewritten = upsampling_as(model, form)
    assert np.abs(run(rewritten, x) - expected).max() <= RELATIVE * np.abs(expected).max()
    assert_equal(model, rewritten, x)
    if form != "transposed":
        ops = [node.op_type for node in rewritten.graph.node]
        before = [activation] if activation in ("LeakyRelu", "Relu") else []
        after = [activation] if activation == "Sigmoid" else []
        moves = ["DepthToSpace"] + ["Slice"] * (form == "conv2x2")
        assert ops == ["Conv", *before, *moves, *after]
        assert rewritten.graph.node[0].input[:2] == ["x", "up.weight"]


def test_the_2x2_form_has_the_multiply_adds_of_the_transposed_convolution_and_the_3x3_form_more():
    weight = np.ones((5, 3, 4, 4))
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4)
    model = model_of([node], {"w": weight}, ["n", 5, 8, 8])
    sizes = {
        form: numpy_helper.to_array(upsampling_as(model, form).graph.initializer[0]).size for form in UPSAMPLING_FORMS
    }
    assert (sizes["conv2x2"], sizes["conv3x3"]) == (sizes["transposed"], 2.25 * sizes["transposed"])


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": [1, 1]},
        {"pads": [0, 0, 0, 0]},
        {"pads": [1, 1, 0, 0]},
        {"output_padding": [1, 1]},
        {"dilations": [2, 2]},
        {"group": 2},
        {"auto_pad": "SAME_UPPER"},
        {"kernel_px": 3},
        {"computed": True},
    ],
)
def test_other_transposed_convolutions_are_refused_by_name(changed):
    kernel_px, computed = changed.pop("kernel_px", 4), changed.pop("computed", False)
    geometry = {"strides": [2, 2], "pads": [1] * 4, **changed}
    if "auto_pad" in changed:
        del geometry["pads"]
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", **geometry)]
    constants = {"w": np.ones((4, 2, kernel_px, kernel_px))}
    if computed:
        nodes.insert(0, helper.make_node("Abs", ["v"], ["w"]))
        constants = {"v": constants["w"]}
    model = model_of(nodes, constants, ["n", 4, 8, 8])
    refuses(upsampling_as, model, "conv2x2", match="ConvTranspose 'up' has no stored weights of kernel 4, stride 2")
    assert upsampling_as(model, "transposed").graph.node == model.graph.node
    assert forms(model) == ["transposed"]


def test_an_unknown_form_is_refused():
    refuses(upsampling_as, model_of([], {}, [1]), "conv4x4", match="no upsampling form 'conv4x4'; choose transposed")


def test_a_tensor_that_others_take_keeps_its_values_and_shared_weights_their_own():
    """Two transposed convolutions of one weight, and an activation beside another reader of what it takes."""
    rng = np.random.default_rng(0)
    up = {"strides": [2, 2], "pads": [1] * 4}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["a"], **up),
        helper.make_node("LeakyRelu", ["a"], ["r"], alpha=0.2),
        helper.make_node("Add", ["a", "r"], ["s"]),
        helper.make_node("ConvTranspose", ["s", "w", "b"], ["y"], **up),
    ]
    constants = {"w": rng.standard_normal((3, 3, 4, 4)), "b": rng.standard_normal(3)}
    model = model_of(nodes, constants, ["n", 3, 2, 3], ["n", 3, 8, 12])
    before = model.SerializeToString()
    for form in ("conv3x3", "conv2x2"):
        assert_equal(model, upsampling_as(model, form), rng.standard_normal((2, 3, 2, 3)))
    assert model.SerializeToString() == before


# BatchNorm


def norm_of(channels, rng, prefix="bn"):
    """Node and constants of a BatchNormalization of tensor "a"."""
    names = [f"{prefix}.{name}" for name in ("scale", "offset", "mean", "variance")]
    values = [*rng.standard_normal((3, channels)), rng.random(channels) + 0.1]
    return helper.make_node("BatchNormalization", ["a", *names], ["y"], epsilon=1e-3), dict(
        zip(names, values, strict=True)
    )


def layer_in_torch(op, shuffle, groups, x, weight, bias):
    layer = F.conv2d if op == "Conv" else F.conv_transpose2d
    y = layer(x, weight, bias, padding=1, groups=groups)
    if shuffle == "DCR":
        y = y.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(y, 2) if shuffle else y


@awkward
@given(
    data=st.data(),
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.sampled_from([1, 3]),
    with_bias=st.booleans(),
    shuffle=st.sampled_from(["", "CRD", "DCR"]),
)
def test_batch_norm_is_folded_into_convolutions(data, op, groups, with_bias, shuffle):
    """The folded layer in torch, as the reference evaluator of ONNX knows no groups of transposed convolutions."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    c_in, c_out = (groups * data.draw(st.sampled_from(CHANNELS)) for _ in range(2))
    h, w = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(SIZES))
    wide = c_out * (4 if shuffle else 1)
    shape = (wide, c_in // groups) if op == "Conv" else (c_in, wide // groups)
    constants = {"l.weight": rng.standard_normal((*shape, 3, 3)), "l.bias": rng.standard_normal(wide) * with_bias}
    inputs = ["x", "l.weight", "l.bias"][: 3 if with_bias else 2]
    nodes = [helper.make_node(op, inputs, ["c" if shuffle else "a"], pads=[1] * 4, group=groups)]
    if shuffle:
        nodes.append(helper.make_node("DepthToSpace", ["c"], ["a"], blocksize=2, mode=shuffle))
    norm, statistics = norm_of(c_out, rng)
    folded = folded_batch_norms(model_of([*nodes, norm], constants | statistics, ["n", c_in, h, w]))
    assert [node.op_type for node in folded.graph.node] == [op] + ["DepthToSpace"] * bool(shuffle)
    assert folded.graph.node[-1].output == ["y"]
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in folded.graph.initializer}
    assert set(stored) == {"l.weight", "l.bias"}

    x = torch.from_numpy(rng.standard_normal((2, c_in, h, w)))
    plain = layer_in_torch(op, shuffle, groups, x, *map(torch.from_numpy, constants.values()))
    scale, offset, mean, variance = map(torch.from_numpy, statistics.values())
    expected = F.batch_norm(plain, mean, variance, scale, offset, eps=norm.attribute[0].f)
    found = layer_in_torch(op, shuffle, groups, x, stored["l.weight"], stored["l.bias"])
    assert (found - expected).abs().max() <= RELATIVE * expected.abs().max()
    if groups == 1:
        assert np.abs(run(folded, x.numpy()) - expected.numpy()).max() <= RELATIVE * expected.abs().max()


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias_shape", [None, (), (1,), (7,), (1, 7)])
def test_batch_norm_is_folded_into_dense_layers(trans_b, bias_shape):
    rng = np.random.default_rng(0)
    constants = {"l.weight": rng.standard_normal((7, 3) if trans_b else (3, 7))}
    if bias_shape is not None:
        constants["l.bias"] = rng.standard_normal(bias_shape)
    gemm = helper.make_node("Gemm", ["x", *constants], ["a"], transB=trans_b, alpha=0.5, beta=0.25)
    norm, statistics = norm_of(7, rng)
    model = model_of([gemm, norm], constants | statistics, ["n", 3])
    folded = folded_batch_norms(model)
    assert_equal(model, folded, rng.standard_normal((5, 3)))
    assert operators(folded) == {"Gemm": 1}


def test_batch_norm_agrees_with_torch_in_float32_and_constants_may_be_nodes():
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.BatchNorm2d(3)
    norm(conv(torch.rand(4, 2, 8, 8)))
    norm.eval()
    values = {"w": conv.weight, "bn.scale": norm.weight, "bn.offset": norm.bias}
    values |= {"b": conv.bias, "bn.mean": norm.running_mean, "bn.variance": norm.running_var}
    held = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.detach().numpy()))
        for name, value in values.items()
    ]
    node, _ = norm_of(3, np.random.default_rng(0))
    node.attribute[0].f = norm.eps
    conv_node = helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1] * 4)
    folded = folded_batch_norms(model_of([*held, conv_node, node], {}, ["n", 2, 8, 8], dtype=np.float32))
    x = torch.rand(3, 2, 8, 8)
    assert operators(folded) == {"Conv": 1}
    assert np.abs(run(folded, x.numpy()) - norm(conv(x)).detach().numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    "why", ["two readers", "computed weight", "computed statistics", "training", "row bias", "relu"]
)
def test_a_batch_norm_that_cannot_be_folded_stays(why):
    rng = np.random.default_rng(0)
    norm, constants = norm_of(2, rng)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"])]
    constants |= {"w": rng.standard_normal((3, 2)), "rows": rng.standard_normal((4, 1))}
    if why == "two readers":
        norm.output[0] = "z"
        nodes += [norm, helper.make_node("Add", ["a", "z"], ["y"])]
    elif why == "computed weight":
        nodes = [helper.make_node("Neg", ["w"], ["v"]), helper.make_node("Gemm", ["x", "v"], ["a"]), norm]
    elif why == "computed statistics":
        norm.input[3] = "m"
        nodes += [helper.make_node("Neg", ["bn.mean"], ["m"]), norm]
    elif why == "training":
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        norm.output.extend(["m", "v"])
        nodes.append(norm)
    elif why == "row bias":
        nodes[0].input.append("rows")
        nodes.append(norm)
    else:
        norm.input[0] = "r"
        nodes += [helper.make_node("Relu", ["a"], ["r"]), norm]
    model = model_of(nodes, constants, [4, 3], [4, 2])
    kept = folded_batch_norms(model)
    assert kept.graph.node == model.graph.node
    x = rng.standard_normal((4, 3))
    assert np.array_equal(
        ReferenceEvaluator(kept).run(["y"], {"x": x})[0], ReferenceEvaluator(model).run(["y"], {"x": x})[0]
    )


# Output blocks


@awkward
@given(
    data=st.data(),
    case=st.sampled_from([(1, 2), (2, 2), (3, 2), (4, 2), (1, 3), (1, 4)]),
    with_bias=st.booleans(),
    sigmoid=st.booleans(),
)
def test_a_blocked_output_is_the_same_convolution(data, case, with_bias, sigmoid):
    channels, block = case
    c_in = data.draw(st.sampled_from(CHANNELS))
    h, w = (block * data.draw(st.integers(1, 8)) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    constants = {"out.weight": rng.standard_normal((channels, c_in, 3, 3)), "out.bias": rng.standard_normal(channels)}
    inputs = ["x", "out.weight", "out.bias"][: 3 if with_bias else 2]
    nodes = [helper.make_node("Conv", inputs, ["raw" if sigmoid else "y"], "out", pads=[1] * 4)]
    nodes += [helper.make_node("Sigmoid", ["raw"], ["y"])] * sigmoid
    model = model_of(nodes, constants, ["n", c_in, h, w], ["n", channels, h, w])
    blocked = blocked_output(model, block)
    assert_equal(model, blocked, rng.standard_normal((2, c_in, h, w)))
    assert [node.op_type for node in blocked.graph.node] == ["Conv", "DepthToSpace"] + ["Sigmoid"] * sigmoid
    assert blocked.graph.node[0].input == inputs


@pytest.mark.parametrize(
    ("shape", "conv", "match"),
    [
        ((1, 8, 15), {}, "an output of 1 channels and 8 x 15 px cannot be blocked by 2 px"),
        ((1, "h", 16), {}, "1 channels and 0 x 16 px cannot"),
        ((7, 8, 8), {}, "an output of 7 channels .* at most 16 values"),
        ((1, 8, 8), {"pads": [0, 0, 2, 2]}, "does not end in a 3x3 convolution of stride 1"),
        ((1, 8, 8), {"pads": [2] * 4, "dilations": [2, 2]}, "does not end in a 3x3 convolution"),
        ((1, 8, 8), {"op": "Relu"}, "does not end in a 3x3 convolution"),
    ],
)
def test_an_output_that_cannot_be_blocked_is_refused(shape, conv, match):
    channels, *size = shape
    geometry = {"pads": [1] * 4, **conv}
    last = geometry.pop("op", "Sigmoid")
    nodes = [helper.make_node("Conv", ["x", "w"], ["raw"], **geometry), helper.make_node(last, ["raw"], ["y"])]
    model = model_of(nodes, {"w": np.ones((channels, 2, 3, 3))}, ["n", 2, *size], ["n", channels, *size])
    refuses(blocked_output, model, match=match)
    assert forms(model) == ["transposed"]


# Whole networks


@pytest.fixture(scope="module")
def networks():
    """Kind of upsampling -> exported tiny network, its checkpoint."""
    made = {}
    for kind in KINDS:
        sizes = ["model.base=4", "model.stages=[2,2]", "model.patch_h=16", "model.patch_w=24", "model.latent=8"]
        config = load_config(overrides=[*sizes, f"model.upsampling={kind}"])
        checkpoint = random_checkpoint(config)
        made[kind] = onnx.load_from_string(export.onnx_from_checkpoint(checkpoint)), checkpoint
    return made


def inputs_of(model):
    return {layer.name: layer.tensor for layer in quantize.layers_of(model)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_network_is_the_same_in_every_form(networks, kind):
    model, checkpoint = networks[kind]
    before, wide = model.SerializeToString(), in_float64(model)
    x = np.random.default_rng(0).random((2, 1, 16, 24))
    offered = forms(model)
    assert len(offered) == (6 if kind == "transposed" else 2)
    for form in offered:
        rewritten = in_form(wide, form)
        assert_equal(wide, rewritten, x)
        assert inputs_of(rewritten) == inputs_of(wide)  # ranges of the original fit
        assert all(node.op_type != "ConvTranspose" or "transposed" in form for node in rewritten.graph.node)
    assert model.SerializeToString() == before
    with torch.no_grad():
        net = copy.deepcopy(checkpoint.reconstructor()).double()
        assert np.abs(run(in_float64(model), x) - net(torch.from_numpy(x)).numpy()).max() <= 1e-6


def test_the_batch_norms_that_the_exporter_leaves_are_folded(networks, monkeypatch):
    """It folds those beside a convolution itself, but not those behind a depth-to-space."""
    monkeypatch.setattr(export, "folded", lambda net: copy.deepcopy(net).eval())
    model = in_float64(onnx.load_from_string(export.onnx_from_checkpoint(networks["pixel_shuffle"][1])))
    folded = folded_batch_norms(model)
    assert operators(model)["BatchNormalization"] == 2
    assert operators(folded)["BatchNormalization"] == 0
    assert_equal(model, folded, np.random.default_rng(0).random((2, 1, 16, 24)))


def table_for(model):
    x = np.random.default_rng(1).random((8, 1, 16, 24), np.float32)
    return ranges_from_images(model.SerializeToString(), [x], recipe=Minmax(algorithm="minmax"), images_sha256="")


@pytest.mark.parametrize("form", ["conv3x3", "conv2x2+blocked"])
@pytest.mark.parametrize("style", ["openvino", "onnxruntime", "tensorrt"])
def test_quantizing_before_the_data_is_moved_changes_no_bit(networks, form, style):
    """In the rewritten forms the Q of an upsampling's output stands between its activation and the depth-to-space."""
    model = networks["transposed"][0]
    quantized = quantize.quantized(in_form(model, form), table_for(model), style=style)
    moved = quantized_before_moves(quantized)
    assert operators(moved) == operators(quantized)
    producer = {name: node for node in moved.graph.node for name in node.output}
    shuffled = []
    for node in moved.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] != "x":
            assert producer[node.input[0]].op_type not in ("DepthToSpace", "Slice")
        if node.op_type == "DepthToSpace" and "blocks" not in node.input[0]:
            shuffled.append(producer[node.input[0]].op_type)
    assert shuffled == ["QuantizeLinear"] * 2  # both are taken by residual blocks, which every style quantizes
    x = np.random.default_rng(2).random((2, 1, 16, 24), np.float32)
    assert np.array_equal(run_float32(moved, x), run_float32(quantized, x))
    assert run_float32(moved, x).std() > 1e-4


def test_a_tensor_that_is_also_used_unquantized_is_moved_in_floats(networks):
    """With the first convolution of a residual block in FP32 and its skip branch quantized."""
    model = networks["transposed"][0]
    kept = quantize.quantized(
        in_form(model, "conv2x2"), table_for(model), style="openvino", keep=["decoder.blocks.1.conv1"]
    )
    moved = quantized_before_moves(kept)
    producer = {name: node for node in moved.graph.node for name in node.output}
    shuffles = [node for node in moved.graph.node if node.op_type == "DepthToSpace"]
    assert [producer[node.input[0]].op_type for node in shuffles] == ["LeakyRelu", "QuantizeLinear"]
    x = np.random.default_rng(2).random((2, 1, 16, 24), np.float32)
    assert np.array_equal(run_float32(moved, x), run_float32(kept, x))


# FP16


def half_error(net, found, x):
    """Largest difference from float64, of `found` and of torch's own FP16."""
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(torch.from_numpy(x).double()).numpy()
        plain = copy.deepcopy(net).half()(torch.from_numpy(x).half()).double().numpy()
    return np.abs(found - exact).max(), np.abs(plain - exact).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_output_fp32", [False, True])
def test_fp16_is_as_accurate_as_a_plain_fp16_network(networks, kind, keep_output_fp32):
    model, checkpoint = networks[kind]
    half = half_precision(model, keep_output_fp32=keep_output_fp32)
    x = np.random.default_rng(0).random((4, 1, 16, 24), np.float32)
    y = run_float32(half, x)
    error, plain = half_error(checkpoint.reconstructor(), y, x)
    assert y.dtype == np.float32
    assert error <= 2 * plain + 2**-12
    types = Counter(tensor.data_type for tensor in half.graph.initializer)
    assert types[TensorProto.FLOAT] == (1 if kind == "resize_conv" else 0)  # the scales of Resize
    # One Cast at either end.
    assert operators(half)["Cast"] == 2
    last = [node.op_type for node in half.graph.node][-2:]
    assert last == (["Cast", "Sigmoid"] if keep_output_fp32 else ["Sigmoid", "Cast"])


def test_layers_that_are_kept_stay_fp32(networks):
    model = networks["transposed"][0]
    half = half_precision(model, keep=["encoder.stem.*", "latent_down.1"])
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    kept = {name for name, kind in types.items() if kind == TensorProto.FLOAT and "val" not in name}
    assert {name.rpartition(".")[0] for name in kept} == {"encoder.stem.0", "latent_down.1"}
    assert set(types) == {tensor.name for tensor in model.graph.initializer}
    refuses(
        half_precision, model, keep=["encoder.stam.*"], match="no layer 'encoder.stam.\\*' to keep in FP32; layers are"
    )


def test_a_constant_of_an_fp16_and_an_fp32_layer_is_stored_in_both():
    rng = np.random.default_rng(0)
    constants = {"a.weight": rng.standard_normal((2, 2, 1, 1)), "b.weight": rng.standard_normal((2, 2, 1, 1))}
    constants = {name: value.astype(np.float32) for name, value in constants.items()} | {"bias": np.float32([1, 2])}
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "bias"], ["a"]),
        helper.make_node("Conv", ["a", "b.weight", "bias"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = model_of(nodes, constants, ["n", 2, 3, 3], dtype=np.float32)
    half = half_precision(model, keep=["b"])
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    single = TensorProto.FLOAT
    assert types == {"a.weight": 10, "bias/half": 10, "b.weight": single, "bias": single}
    x = rng.standard_normal((2, 2, 3, 3)).astype(np.float32)
    assert np.abs(run(half, x) - run(model, x)).max() <= 2e-2


def test_a_weight_that_fp16_cannot_hold_is_refused_by_layer(networks):
    model = onnx.ModelProto()
    model.CopyFrom(networks["transposed"][0])
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "decoder.out.weight")
    for value in (7e4, np.nan):
        weight = numpy_helper.to_array(stored).copy()
        weight.flat[5] = value
        stored.CopyFrom(numpy_helper.from_array(weight, stored.name))
        refuses(half_precision, model, match=r"layer 'decoder.out' holds (70000|nan) .* FP16 ends at 65504; keep")
        half_precision(model, keep=["decoder.out"])


@pytest.mark.parametrize("form", UPSAMPLING_FORMS)
def test_a_quantized_model_is_cast_with_its_scales(networks, form):
    model = networks["transposed"][0]
    quantized = quantize.quantized(in_form(model, form), table_for(model), style="tensorrt")
    half = half_precision(quantized_before_moves(quantized), keep_output_fp32=True)
    assert half.opset_import[0].version == 19
    assert quantized.opset_import[0].version == 18
    types = Counter(tensor.data_type for tensor in half.graph.initializer)
    assert types[TensorProto.FLOAT] == 0
    assert types[TensorProto.INT8] > 10
    assert operators(half)["Cast"] == 2
    x = np.random.default_rng(3).random((2, 1, 16, 24), np.float32)
    exact = run_float32(model, x)
    off, plain = (np.abs(run_float32(form, x) - exact).mean() for form in (half, quantized))
    assert 0 < off <= 1.5 * plain


def test_a_scale_that_fp16_would_coarsen_stays_fp32(networks):
    model = networks["transposed"][0]
    quantized = quantize.quantized(model, table_for(model), style="tensorrt")
    layer = next(layer.name for layer in quantize.quantized_layers(model, "tensorrt") if layer.op == "Conv")
    scale = next(tensor for tensor in quantized.graph.initializer if tensor.name == f"{layer}.weight/scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1e-3), scale.name))
    half = half_precision(quantized)
    kept = [tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert kept == [scale.name]
    assert operators(half)["Cast"] == 3


# What is not rewritten


def test_control_flow_and_old_opsets_are_refused():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 11, [1])]
    )
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    model = model_of([node], {"c": np.array(True)}, [1])
    old = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, [1], opset=12)
    for rewrite in (folded_batch_norms, blocked_output, half_precision, quantized_before_moves):
        refuses(rewrite, model, match="If 'choice' holds a graph of its own, which is not rewritten")
        refuses(rewrite, old, match="the model has opset 12; export it again with opset 13 or later")


def test_qdq_of_an_old_opset_does_not_become_fp16(networks):
    model = networks["transposed"][0]
    quantized = quantize.quantized(model, table_for(model), style="tensorrt")
    quantized.opset_import[0].version = 17
    refuses(half_precision, quantized, match="Q/DQ in FP16 need opset 19, this model has 17")


# Strongly typed builders


def engine_bytes(model):
    """Size of the TensorRT-RTX engine that is built ahead of time for Ada (SM 89): no GPU is needed."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra gpu)")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(8, *network.get_input(0).shape[1:])] * 3)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return engine.nbytes


@pytest.mark.parametrize("form", ["transposed", "conv3x3", "conv2x2+blocked"])
def test_tensorrt_builds_fp16_and_int8_with_fp16(networks, form):
    model = networks["transposed"][0]
    assert engine_bytes(half_precision(in_form(model, form), keep_output_fp32=True)) > 0
    quantized = quantized_before_moves(quantize.quantized(in_form(model, form), table_for(model), style="tensorrt"))
    assert engine_bytes(half_precision(quantized, keep=["encoder.stem.0"], keep_output_fp32=True)) > 0


# The race


def test_the_race_of_the_forms_checks_its_outputs_and_gives_a_line_each(networks, monkeypatch):
    model = networks["transposed"][0]
    lines = table_of(race_forms(model, batch=2, rounds=3, settle_ms=0)).splitlines()[2:]
    names = [form + suffix for form in UPSAMPLING_FORMS for suffix in ("", "+blocked")]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == names
    monkeypatch.setitem(graph._TAPS, "conv2x2", graph._TAPS["conv2x2"][::-1])
    with pytest.raises(CheckFailedError, match=r"fp32 conv2x2 is off by .* a wrong result is not timed"):
        race_forms(model, batch=2, rounds=3)
