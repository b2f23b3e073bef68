"""The fake-quantized network is the Q/DQ model: same weights, same grids, same output."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.export import onnx_from_checkpoint
from grd_edge.fake_quant import ActivationGrid, FoldedLayer, fake_quantized, grids_of_layers
from grd_edge.files import sha256_hex
from grd_edge.models.blocks import CenteredLinear
from grd_edge.models.generator import Reconstructor, folded
from grd_edge.quantize import qdq_from_onnx, quantized_layers, weight_codes
from grd_edge.ranges import RangeTable

SHAPES = {  # every upsampling with both bottlenecks and both positions of the resampling block
    "transposed-dense-first": (),
    "transposed-conv-last": (),
    "resize_conv-dense-last": ("model.channels=3",),
    "resize_conv-conv-first": (),
    "pixel_shuffle-dense-first": (),
    "pixel_shuffle-conv-last": (),
}
SMALL = ("model.base=4", "model.stages=[1, 2]", "model.patch_h=32", "model.patch_w=48", "model.latent=8")


def checkpoint_of(*settings):
    """A random network whose BatchNorm statistics are not trivial."""
    config = load_config(overrides=settings)
    model = config.model
    torch.manual_seed(0)
    net = Reconstructor(model).train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(4, model.channels, model.patch_h, model.patch_w))
    return Checkpoint(config, net.state_dict(), {})


def output_of(model, x, names=("x_hat",)):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(list(names), {"x": x})


class Case:
    """A network, patches, and a table that clips a part of every activation."""

    def __init__(self, *settings, patches=6):
        self.checkpoint = checkpoint_of(*settings)
        self.model = onnx_from_checkpoint(self.checkpoint)
        self.graph = onnx.load_from_string(self.model)
        shape = [dim.dim_value for dim in self.graph.graph.input[0].type.tensor_type.shape.dim[1:]]
        self.x = np.random.default_rng(1).random((patches, *shape), np.float32)
        self.net = self.checkpoint.reconstructor()
        layers = quantized_layers(self.graph, "openvino")
        names = sorted({layer.tensor for layer in layers} - {"x"})
        watched = onnx.ModelProto()
        watched.CopyFrom(self.graph)
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        values = zip(names, output_of(watched.SerializeToString(), self.x, names), strict=True)
        clipped = {name: (0.75 * float(value.min()), 0.75 * float(value.max())) for name, value in values}
        self.ranges = {layer.name: clipped[layer.tensor] for layer in layers if layer.tensor != "x"}
        self.table = RangeTable("minmax", sha256_hex(self.model), "", 1, patches, clipped)

    def torch_and_onnx(self, style, keep=()):
        layers = quantized_layers(self.graph, style, keep)
        student = fake_quantized(self.net, grids_of_layers(layers, self.ranges))
        with torch.no_grad():
            found = student(torch.from_numpy(self.x)).numpy()
        return found, output_of(qdq_from_onnx(self.model, self.table, style=style, keep=keep), self.x)[0]


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    upsampling, bottleneck, resample = request.param.split("-")
    chosen = (f"model.upsampling={upsampling}", f"model.bottleneck={bottleneck}", f"model.resample={resample}")
    return Case(*SMALL, *chosen, *SHAPES[request.param])


@pytest.fixture(scope="module")
def plain():
    return Case(*SMALL)


@pytest.mark.parametrize("style", ["openvino", "tensorrt"])
def test_torch_computes_what_the_qdq_model_does(case, style):
    found, expected = case.torch_and_onnx(style)
    effect = np.abs(expected - output_of(case.model, case.x)[0])
    difference = np.abs(found - expected)
    assert effect.mean() > 1e-5  # there is something to compare
    # FP32 rounding, but where a value lies within it of the border of two codes and takes the other one.
    assert np.median(difference) <= 1e-7
    assert difference.mean() <= 0.01 * effect.mean()
    assert difference.max() <= 0.25 * effect.max()


@pytest.mark.slow
def test_so_it_does_on_the_edge_profile():
    case = Case("model.base=16", patches=2)
    found, expected = case.torch_and_onnx("openvino")
    effect = np.abs(expected - output_of(case.model, case.x)[0])
    # Forty layers deep, a code that falls to the other side changes others after it.
    assert effect.mean() > 1e-4
    assert np.abs(found - expected).mean() <= 0.1 * effect.mean()


def test_weights_are_those_of_the_exported_model_and_their_codes_too(case):
    exact = dict(folded(case.net).named_modules())
    student = fake_quantized(case.net, grids_of_layers(quantized_layers(case.graph, "openvino"), case.ranges))
    layers = [(name.replace("skip.0.", "skip."), m) for name, m in student.named_modules() if type(m) is FoldedLayer]
    weighted = [layer for layer in quantized_layers(case.graph, "openvino") if layer.op != "Add"]
    assert {name for name, _ in layers} == {layer.name for layer in weighted}
    for name, layer in layers:
        for found, expected in zip(layer.folded(), (exact[name].weight, exact[name].bias), strict=True):
            assert torch.equal(found, expected), name
        codes, scales = weight_codes(exact[name].weight.detach().numpy(), layer.axis)
        shape = [-1 if axis == layer.axis else 1 for axis in range(codes.ndim)]
        assert np.array_equal(layer.rounded()[0].detach().numpy(), codes * scales.reshape(shape)), name


def test_without_grids_it_is_the_network(case):
    x = torch.from_numpy(case.x)
    with torch.no_grad():
        assert (fake_quantized(case.net, {})(x) - case.net(x)).abs().max() <= 2e-6


def test_kept_layers_stay_as_they_are(plain):
    keep = ["decoder.*", "encoder.blocks.0.add", "encoder.stem.0"]
    found, expected = plain.torch_and_onnx("openvino", keep)
    all_found, _ = plain.torch_and_onnx("openvino")
    assert np.median(np.abs(found - expected)) <= 1e-7
    assert np.abs(found - all_found).mean() > 1e-5


def test_gradients_of_a_range_are_those_of_a_learned_step_size():
    grid = ActivationGrid(-1.27, 1.27)
    x = torch.tensor([0.013, -0.4, 1.0, 3.0, -2.0], requires_grad=True)
    y = grid(x)
    y.sum().backward()
    step = 0.01
    assert y.tolist() == pytest.approx([0.01, -0.4, 1.0, 1.27, -1.28], abs=1e-6)
    assert x.grad.tolist() == pytest.approx([1, 1, 1, 0, 0], abs=1e-6)  # straight through, but where it is clipped
    # d y / d step is code - x / step inside and the last code outside; growth is relative to the step.
    per_step = [1 - 1.3, 0, 0, 127, -128]
    assert grid.growth.grad.item() == pytest.approx(step * sum(per_step), abs=1e-4)


def test_weights_are_trained_in_place(plain):
    net = plain.checkpoint.reconstructor()
    layers = quantized_layers(plain.graph, "openvino")
    student = fake_quantized(net, grids_of_layers(layers, plain.ranges))
    student(torch.from_numpy(plain.x)).sum().backward()
    # BatchNorm is frozen: its statistics stay, its gain and bias are weights.
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(m.training for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d | CenteredLinear))
    with torch.no_grad():
        net.decoder.out.bias.add_(100)
    assert student(torch.from_numpy(plain.x)).min() > 0.99
