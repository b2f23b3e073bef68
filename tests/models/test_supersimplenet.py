"""SuperSimpleNet: noise in blobs for training only, heads as published, an export of backbone, adaptor and heads."""

from collections import Counter

import onnx
import pytest
import torch

from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.export import onnx_from_checkpoint, plain_export
from grd_edge.models.cost import multiply_adds
from grd_edge.models.generator import folded
from grd_edge.models.method import PackedScores, method_from_config
from grd_edge.models.supersimplenet import blobs, gaussian_window, truncated_l1
from grd_edge.quantize import layers_of
from grd_edge.train import checkpoint_from_dataset
from tests.models.scoring import assert_engines_agree, begun, fitted, good_batch, good_patches

SETTINGS = (
    "method.name=supersimplenet",
    "method.hidden=8",
    "method.classifier=4",
    "method.backbone.weights=random",
    "model.channels=3",
    "model.patch_h=32",
    "model.patch_w=64",
    "train.batch=4",
    "train.seconds=null",
    "train.steps=3",
)


def losses(method, step):
    return method.loss(good_batch(method.config, step), torch.Generator().manual_seed(step), step, 10)


def config_of(*overrides):
    return load_config(overrides=(*SETTINGS, *overrides))


def test_it_costs_what_the_page_says():
    with torch.device("meta"):
        method = method_from_config(load_config(profile="supersimplenet"))
    assert multiply_adds(method.eval(), (3, 128, 128)) / 1e9 == pytest.approx(0.21, rel=0.03)


def test_blobs_leave_half_of_the_patches_alone():
    mask = blobs(400, 16, 8, torch.Generator().manual_seed(0))
    assert mask.shape == (400, 1, 16, 8) and set(mask.unique().tolist()) == {0.0, 1.0}
    touched = mask.amax((1, 2, 3))
    assert 0.4 < touched.mean() < 0.6
    assert 0.1 < mask[touched > 0].mean() < 0.5
    assert torch.equal(mask, blobs(400, 16, 8, torch.Generator().manual_seed(0)))


def test_the_truncated_loss_wants_a_margin():
    logits = torch.tensor([[-0.6, -0.5, 0.1], [0.6, 0.5, 0.1]])
    mask = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert truncated_l1(logits, mask) == pytest.approx(0.2 + 0.4 / 3)
    assert truncated_l1(logits[:1], mask[:1]) == pytest.approx(0.2)
    assert truncated_l1(logits[1:], mask[1:]) == pytest.approx(0.4 / 3)


def test_the_window_is_a_gaussian():
    window = gaussian_window(4.0).flatten()
    assert len(window) == 25 and window.sum() == pytest.approx(1)
    assert float(window[12] / window[8]) == pytest.approx(1.6487, abs=1e-3)  # exp(1/2), one sigma away


def test_the_adaptor_starts_on_normalized_features():
    config = config_of()
    method = begun(config)
    torch.manual_seed(config.train.seed)
    plain = method_from_config(config)
    with torch.no_grad():
        features = torch.cat([method._features(x) for x in good_patches(config).every()])
        mean, std = features.mean((0, 2, 3)), features.std((0, 2, 3), correction=0)
        expected = plain.adaptor.weight[:, :, 0, 0] @ (
            (features - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        ).flatten(2)
        found = method.adaptor(features).flatten(2)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_every_trained_parameter_gets_a_gradient_and_the_backbone_none():
    method = begun(config_of())
    state = {key: value.clone() for key, value in method.backbone.state_dict().items()}
    terms = losses(method, 3)
    assert terms.keys() == {"truncated_l1", "focal", "classification"}
    terms["classification"].backward(retain_graph=True)
    assert all(each.grad is None for each in method.segmentation.parameters())
    sum(terms.values()).backward()
    ours = {id(each) for group in method.groups() for each in group["params"]}
    for name, parameter in method.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None and id(parameter) not in ours, name
        else:
            assert id(parameter) in ours and parameter.grad.abs().sum() > 0, name
    assert all(torch.equal(value, method.backbone.state_dict()[key]) for key, value in state.items())


def test_the_loss_is_a_function_of_the_generator():
    method = begun(config_of())
    first, again, other = (losses(method, step) for step in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_export_is_the_network(channels):
    method = fitted(config_of(f"model.channels={channels}"))
    with torch.no_grad():
        score, maps = method(good_batch(method.config, 7))
    assert score.shape == (4,) and maps.shape == (4, 1, 32, 64)
    assert min(score.min(), maps.min()) > 0 and max(score.max(), maps.max()) < 1
    assert_engines_agree(method)
    model = onnx.load_from_string(plain_export(folded(PackedScores(method)), method.config.model))
    layers_of(model)  # what INT8 needs: every weight is stored
    operators = Counter(node.op_type for node in model.graph.node)
    convolutions = sum(isinstance(each, torch.nn.Conv2d) for each in method.modules())
    assert operators["Conv"] == convolutions + 2  # the smoothing, along each axis
    assert operators["Gemm"] == 1 and operators["BatchNormalization"] == 0
    assert not any(name.startswith(("Random", "Loop", "If", "NonZero")) for name in operators)


def test_it_goes_the_whole_road(parts):
    dataset = dataset_from_folder(parts, need_test=False)
    checkpoint = checkpoint_from_dataset(dataset, config_of("geometry.padding=reflect", "model.channels=1"))
    assert checkpoint.provenance["backbone"]["source"] == "random"
    assert onnx_from_checkpoint(checkpoint)
