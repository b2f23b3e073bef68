"""Equalized channels: the same function to the last bit, like peaks, and less error after quantization."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from grd_edge.calibrate import session_of, watching
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.equalize import LARGEST_EXPONENT, channel_peaks, equalized
from grd_edge.errors import InputError
from grd_edge.export import onnx_from_checkpoint, plain_export
from grd_edge.files import sha256_hex
from grd_edge.models.generator import Reconstructor
from grd_edge.quantize import layers_of, quantized
from grd_edge.ranges import RangeTable
from tests.conftest import TINY
from tests.test_graph import in_float64

RNG = np.random.default_rng(5)
PATCHES = RNG.random((9, 1, 32, 32), dtype=np.float32)


def exported(*overrides):
    """A random network whose channels differ in scale, as training makes them."""
    config = load_config(overrides=(*TINY, *overrides))
    torch.manual_seed(3)
    net = Reconstructor(config.model).eval()
    with torch.no_grad():
        for name, values in net.named_parameters():
            if values.ndim == 1 and name.endswith("weight"):  # of a BatchNorm
                values.copy_(torch.exp2(4 * torch.rand(len(values)) - 2))
    return onnx.load_from_string(onnx_from_checkpoint(Checkpoint(config, net.state_dict(), {})))


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_filters_of_a_map_keep_the_scale_of_their_scores():
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
    filters = nn.Conv2d(1, 1, (1, 5), padding=(0, 2)), nn.Conv2d(1, 1, (5, 1), padding=(2, 0))
    torch.manual_seed(0)
    net = nn.Sequential(*layers, *filters).eval()
    model = onnx.load_from_string(plain_export(net, load_config(overrides=TINY).model))
    other = equalized(model, channel_peaks(model, [PATCHES]))
    changed = {a.name for a, b in zip(model.graph.initializer, other.graph.initializer, strict=True) if a != b}
    assert changed and not {name for name in changed if name.startswith(("5.", "6."))}
    np.testing.assert_array_equal(run(model, PATCHES), run(other, PATCHES))


@pytest.fixture(scope="module")
def model():
    return exported("model.base=8", "model.stages=[2, 2]")


def test_the_function_stays_to_the_last_bit(model):
    other = equalized(model, channel_peaks(model, [PATCHES]))
    changed = [a.name for a, b in zip(model.graph.initializer, other.graph.initializer, strict=True) if a != b]
    assert len(changed) > len(layers_of(model)) / 2
    assert [node for node in model.graph.node] == [node for node in other.graph.node]
    np.testing.assert_array_equal(run(model, PATCHES), run(other, PATCHES))


@pytest.mark.parametrize(
    ("upsampling", "bottleneck", "stages"),
    [("transposed", "dense", "[2, 1]"), ("pixel_shuffle", "conv", "[1]"), ("resize_conv", "dense", "[1, 3]")],
)
def test_the_function_stays_in_float64(upsampling, bottleneck, stages):
    shape = (f"model.upsampling={upsampling}", f"model.bottleneck={bottleneck}", f"model.stages={stages}")
    model = exported("model.base=3", *shape)
    other = equalized(model, channel_peaks(model, [PATCHES]), alpha=0.6)
    assert other != model
    x = PATCHES[:2].astype(np.float64)
    expected, found = (ReferenceEvaluator(in_float64(each)).run(None, {"x": x})[0] for each in (model, other))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_peaks_come_together(model):
    before = channel_peaks(model, [PATCHES])
    after = channel_peaks(equalized(model, before, alpha=1.0), [PATCHES])
    for tensor in ("leaky_relu_1", "leaky_relu_3"):  # taken by one layer each
        spread, levelled = (each[tensor].max() / each[tensor].min() for each in (before, after))
        assert spread > 4
        assert levelled <= 2 + 1e-5  # a power of two at most from even


def test_few_extreme_patches_set_no_peak(model):
    mixed = np.concatenate([PATCHES[:8] / 100, PATCHES[8:]])
    usual = [channel_peaks(model, [patch[None]]) for patch in mixed[:8]]
    for tensor, peaks in channel_peaks(model, [mixed[:4], mixed[4:]]).items():
        assert np.all(peaks <= np.max([each[tensor] for each in usual], axis=0))


def test_quantization_errs_less(model):
    def error(some):
        tensors = [name for name in dict.fromkeys(layer.tensor for layer in layers_of(some)) if name != "x"]
        values = session_of(watching(some, tensors)).run(tensors, {"x": PATCHES})
        ranges = {name: (float(value.min()), float(value.max())) for name, value in zip(tensors, values, strict=True)}
        table = RangeTable("minmax", sha256_hex(some.SerializeToString()), "0" * 64, 1, len(PATCHES), ranges)
        return np.std(run(quantized(some, table, style="openvino"), PATCHES) - run(some, PATCHES))

    assert error(equalized(model, channel_peaks(model, [PATCHES]))) < 0.8 * error(model)


def test_a_dead_and_an_extreme_channel(model):
    """A channel that is 0 everywhere keeps its scale; one that is extreme gets the largest factor."""
    peaks = channel_peaks(model, [PATCHES])
    peaks["leaky_relu_1"][2] = 0
    np.testing.assert_array_equal(run(equalized(model, peaks), PATCHES), run(model, PATCHES))
    peaks["leaky_relu_1"][3] = 1e30
    other = equalized(model, peaks)
    np.testing.assert_array_equal(run(other, PATCHES), run(model, PATCHES))
    name = "encoder.blocks.0.conv2.weight"
    before, after = (
        numpy_helper.to_array(next(tensor for tensor in some.graph.initializer if tensor.name == name))
        for some in (model, other)
    )
    ratio = (after / before)[:, :, 0, 0]
    np.testing.assert_array_equal(ratio[:, 3], 2**LARGEST_EXPONENT * ratio[:, 2])


def test_bad_input(model):
    peaks = channel_peaks(model, [PATCHES])
    with pytest.raises(InputError, match=r"alpha is 1\.5; expected a share from 0 to 1"):
        equalized(model, peaks, alpha=1.5)
    with pytest.raises(InputError, match="no patches"):
        channel_peaks(model, [])
    with pytest.raises(InputError, match="no peaks of activation 'leaky_relu_1'"):
        equalized(model, {name: each for name, each in peaks.items() if name != "leaky_relu_1"})
