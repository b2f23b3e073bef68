"""The exported model is the reconstructor, all of it and nothing else."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from grd_edge import export
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.errors import CheckFailedError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.generator import Reconstructor, folded


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return onnx.load_from_string(onnx_from_checkpoint(tiny_checkpoint))


def test_batchnorm_is_folded_and_training_parts_are_gone(model, tiny_checkpoint):
    kinds = Counter(node.op_type for node in model.graph.node)
    net = tiny_checkpoint.reconstructor()
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
    assert kinds["BatchNormalization"] == 0
    assert (kinds["Conv"], kinds["ConvTranspose"], kinds["Gemm"]) == (convolutions, 2, 2)


def test_the_batch_is_dynamic_and_names_are_stable(model):
    (x,), (x_hat,) = model.graph.input, model.graph.output
    assert (x.name, x_hat.name) == ("x", "x_hat")
    dims = [x.type.tensor_type.shape.dim, x_hat.type.tensor_type.shape.dim]
    assert dims[0][0].dim_param
    assert [[d.dim_value for d in shape[1:]] for shape in dims] == [[1, 32, 32]] * 2


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 17])
def test_onnxruntime_agrees_with_torch(model, tiny_checkpoint, batch):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(batch).random((batch, 1, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = tiny_checkpoint.reconstructor()(torch.from_numpy(x)).numpy()
    assert np.abs(session.run(["x_hat"], {"x": x})[0] - expected).max() <= 2e-5


def test_export_repeats_byte_for_byte_and_keeps_no_local_paths(tiny_checkpoint):
    first, second = onnx_from_checkpoint(tiny_checkpoint), onnx_from_checkpoint(tiny_checkpoint)
    assert first == second
    assert b"site-packages" not in first
    assert b"generator.py" not in first


def test_an_export_that_does_not_reproduce_torch_is_refused(tiny_checkpoint, monkeypatch):
    def altered(net):
        wrong = folded(net)
        with torch.no_grad():
            wrong.decoder.out.bias.add_(1e-3)
        return wrong

    monkeypatch.setattr(export, "folded", altered)
    with pytest.raises(CheckFailedError, match="at batch 1"):
        onnx_from_checkpoint(tiny_checkpoint)


class Cancelling(torch.nn.Module):
    """The identity, by a way on which float32 loses four digits and float64 none that count."""

    def forward(self, x):
        return (x + 3000) - 3000


def test_a_form_may_differ_by_what_float32_itself_loses():
    x = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
    expected = Cancelling()(torch.from_numpy(x)).numpy()
    found = ((x + np.float32(1000)) + np.float32(2000)) - np.float32(3000)
    assert np.abs(found - expected).max() > export.TOLERANCE
    export.check_reconstruction(found, expected, x, Cancelling(), "another order of sums")
    with pytest.raises(CheckFailedError, match="another order of sums differs"):
        export.check_reconstruction(found + 1e-3, expected, x, Cancelling(), "another order of sums")
    with pytest.raises(CheckFailedError):
        export.check_reconstruction(np.full_like(x, np.nan), expected, x, Cancelling(), "NaN")


class Stepped(torch.nn.Module):
    """Rounds to tenths, as nearest codes do."""

    stepped = True

    def forward(self, x):
        return (10 * x).round() / 10


def test_a_network_with_steps_may_take_another_one_where_two_are_as_near():
    net, x = Stepped(), np.full((1, 1, 4, 4), 0.35, np.float32)
    expected = net(torch.from_numpy(x)).numpy()
    export.check_reconstruction(expected + np.float32(0.1), expected, x, net, "the other step")
    with pytest.raises(CheckFailedError, match="two steps differs"):
        export.check_reconstruction(expected + np.float32(0.3), expected, x, net, "two steps")
    far = np.full_like(x, 0.32)  # where no rounding leads to another step
    expected = net(torch.from_numpy(far)).numpy()
    with pytest.raises(CheckFailedError, match="a step too many differs"):
        export.check_reconstruction(expected + np.float32(0.1), expected, far, net, "a step too many")
    net.stepped = False
    with pytest.raises(CheckFailedError):
        export.check_reconstruction(expected + np.float32(0.1), expected, x, net, "no steps")


@pytest.mark.parametrize("settings", [("model.upsampling=pixel_shuffle", "model.bottleneck=conv", "model.channels=3")])
def test_other_shapes_of_the_network_export_too(settings):
    config = load_config(overrides=["model.base=4", "model.patch_h=32", "model.patch_w=48", *settings])
    checkpoint = Checkpoint(config, Reconstructor(config.model).state_dict(), {})
    assert onnx.load_from_string(onnx_from_checkpoint(checkpoint)).graph.input[0].name == "x"
