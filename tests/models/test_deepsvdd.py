"""Deep SVDD: the conditions of its paper, its objectives, and what is left for inference."""

import pytest
import torch
from torch import nn

from grd_edge.models.deepsvdd import LEAST_CENTER
from grd_edge.models.method import method_from_config
from tests.models.scoring import assert_engines_agree, begun, fitted, good_batch, losses_of, tiny_config

RANDOM_BACKBONE = ("method.backbone.weights=random", "model.channels=3")


def config_of(*overrides):
    return tiny_config("deepsvdd", "method.features=6", *overrides)


@pytest.mark.parametrize("backbone", [(), RANDOM_BACKBONE])
def test_what_is_trained_cannot_shift_and_is_unbounded(backbone):
    method = method_from_config(config_of("method.pretrained_share=0", *backbone))
    trained = nn.ModuleList([method.encoder[1], method.embedding] if backbone else [method.encoder, method.embedding])
    assert {name.rpartition(".")[2] for name, _ in trained.named_parameters()} == {"weight"}
    assert all(module.weight is None for module in trained.modules() if isinstance(module, nn.BatchNorm2d))
    leaves = {type(module) for module in trained.modules() if not list(module.children())}
    assert leaves <= {nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.Identity}
    if not backbone:
        assert {id(p) for p in trained.parameters()} == {id(p) for p in method.parameters()}


def test_the_center_is_the_mean_embedding_with_no_component_near_zero():
    method = begun(config_of("method.pretrained_share=0", "method.features=40"))
    with torch.no_grad():
        mean = torch.stack([method.embed(good_batch(method.config, step)).mean((0, 2, 3)) for step in range(16)]).mean(
            0
        )
    assert method.center.abs().min() >= LEAST_CENTER
    far = mean.abs() > 2 * LEAST_CENTER
    assert far.any() and (~far).any()
    assert torch.allclose(method.center[far], mean[far], atol=0.05)
    assert (method.center.sign() == mean.sign())[mean.abs() > 0.03].all()


def test_an_autoencoder_first_then_the_one_class_objective():
    method = begun(config_of("method.pretrained_share=0.5"))
    first = method.center.clone()
    names = [list(losses_of(method, step, 4)) for step in range(4)]
    assert names == [["autoencoder"]] * 2 + [["one_class"]] * 2
    assert not torch.equal(first, method.center) and method.center.abs().min() >= LEAST_CENTER
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())
    x = good_batch(method.config, 3)
    distances = (method.embed(x) - method.center[:, None, None]).square().sum(1)
    with torch.no_grad():
        found = method.loss(x, torch.Generator(), 3, 4)["one_class"]
    assert found == pytest.approx(distances.mean().item(), rel=1e-5)


def test_the_soft_boundary_is_a_quantile_after_its_first_steps():
    config = config_of("method.objective=soft-boundary", "method.nu=0.2", "method.pretrained_share=0")
    method = begun(config)
    with torch.no_grad():
        for step in range(12):
            before = method.radius.clone()
            distances = method.distances(method.embed(good_batch(config, step)))
            found = method.loss(good_batch(config, step), torch.Generator(), step, 20)
            expected = before + (distances - before).clamp_min(0).mean() / 0.2
            assert found["soft_boundary"] == pytest.approx(expected.item(), rel=1e-5)
            if step < 2:
                assert method.radius == 0
            else:
                assert (distances > method.radius).float().mean() == pytest.approx(0.2, abs=0.01)


def test_steps_are_functions_of_the_seed():
    one, two, other = (fitted(config_of(f"train.seed={seed}")) for seed in (3, 3, 4))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert not torch.equal(one.center, other.center)


@pytest.mark.parametrize("score", ["max", "mean"])
def test_the_score_is_that_of_the_map_and_good_patches_have_one(score):
    method = fitted(config_of(f"method.score={score}"))
    x = good_batch(method.config, 5)
    with torch.no_grad():
        scores, maps = method(x)
        distances = method.distances(method.embed(x))
    assert maps.shape == (4, 1, 32, 32) and maps.min() >= 0
    expected = maps.amax((1, 2, 3)) if score == "max" else distances.mean((1, 2, 3))
    assert torch.equal(scores, expected)
    assert 0.2 < distances.mean() < 5
    assert set(method.state_dict()) == {
        key
        for key in method_from_config(method.config).state_dict()
        if not key.startswith(("decoder", "widening", "radius"))
    }
    with torch.no_grad():
        painted = x.clone()
        painted[:, :, 8:20, 12:24] = 0
        assert (method(painted)[0] > scores).all()


def test_a_backbone_stays_as_it_is_and_its_layer_learns():
    method = begun(config_of(*RANDOM_BACKBONE))
    losses_of(method, 0, 2)
    frozen = list(method.encoder[0].parameters())
    trained = [parameter for group in method.groups() for parameter in group["params"]]
    assert all(parameter.grad is None for parameter in frozen)
    assert len(trained) == 2 and all(parameter.grad.abs().sum() > 0 for parameter in trained)
    assert method.provenance["backbone"]["source"] == "random"
    assert method.decoder is None  # there is nothing to pretrain


def test_engines_yield_what_torch_does():
    assert_engines_agree(fitted(config_of("method.score=mean", "model.patch_w=48")))
