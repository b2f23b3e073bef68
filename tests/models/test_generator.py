"""The networks have the published shapes and cost, and what runs at inference is only what has to."""

import copy

import pytest
import torch
from torch import nn

from grd_edge.config import load_config
from grd_edge.models.cost import multiply_adds
from grd_edge.models.discriminator import Discriminator
from grd_edge.models.generator import Generator, Reconstructor, folded


# docs/method.md, section 2: published (paper profile) and counted (edge) cost per 256x256 patch
@pytest.mark.parametrize(
    ("profile", "settings", "gmac", "million"),
    [
        ("deepindustrial_sn", (), 227.0, 181.2),
        ("deepindustrial_sn_edge", ("model.base=16",), 2.3, 5.8),
        ("deepindustrial_sn_edge", ("model.base=32",), 9.0, 14.6),
    ],
)
def test_cost_and_parameters_are_those_of_the_method(profile, settings, gmac, million):
    settings = (*settings, "model.patch_h=256", "model.patch_w=256")
    config = load_config(profile=profile, overrides=settings).model
    with torch.device("meta"):
        net = Reconstructor(config)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(million, abs=0.05)
    assert multiply_adds(net, (1, 256, 256)) / 1e9 == pytest.approx(gmac, abs=0.05)


def test_dropping_the_second_encoder_saves_what_the_method_says():
    config = load_config(profile="deepindustrial_sn").model
    with torch.device("meta"):
        inference, second_encoder = Reconstructor(config), Generator(config).encoder_hat
    needed, spared = (multiply_adds(net, (1, 256, 256)) for net in (inference, second_encoder))
    assert spared / (needed + spared) == pytest.approx(0.417, abs=0.001)


def test_the_discriminator_gives_features_and_one_logit():
    config = load_config(overrides=["model.base=4", "model.patch_h=32", "model.patch_w=32"]).model
    features, logits = Discriminator(config)(torch.rand(3, 1, 32, 32))
    assert features.shape == (3, 32, 2, 2)
    assert logits.shape == (3, 1)


def test_the_paper_profile_encodes_to_16x16x1024():
    config = load_config(profile="deepindustrial_sn").model
    with torch.device("meta"):
        features = Reconstructor(config).encoder(torch.empty(1, 1, 256, 256))
    assert features.shape == (1, 1024, 16, 16)


@pytest.mark.parametrize("bottleneck", ["dense", "conv"])
@pytest.mark.parametrize("resample", ["first", "last"])
@pytest.mark.parametrize("upsampling", ["transposed", "resize_conv", "pixel_shuffle"])
def test_folding_is_exact_in_float64(bottleneck, resample, upsampling):
    torch.manual_seed(0)
    config = load_config(
        overrides=[
            "model.base=3",
            "model.channels=3",
            "model.stages=[2, 3]",
            "model.patch_h=16",
            "model.patch_w=24",
            f"model.bottleneck={bottleneck}",
            f"model.resample={resample}",
            f"model.upsampling={upsampling}",
        ]
    ).model
    net = Reconstructor(config).double().train()
    x = torch.rand(4, 3, 16, 24, dtype=torch.float64)
    for _ in range(3):
        net(x)
    net.eval()
    for bn in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
    before = copy.deepcopy(net.state_dict())
    small = folded(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.modules())
    with torch.no_grad():
        expected = net(x)
        assert expected.shape == x.shape
        # torch's default eps of 1e-5 is part of the fold; only rounding may differ
        assert (small(x) - expected).abs().max() <= 1e-12
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_the_generator_returns_reconstruction_and_both_latents():
    config = load_config(overrides=["model.base=4", "model.patch_h=32", "model.patch_w=32", "model.latent=5"]).model
    net = Generator(config)
    out = net(torch.rand(2, 1, 32, 32))
    assert out.x_hat.shape == (2, 1, 32, 32)
    assert out.z.shape == out.z_hat.shape == (2, 5)
    assert 0 <= out.x_hat.min() <= out.x_hat.max() <= 1
    assert net(torch.rand(2, 1, 32, 32), second_encoder=False).z_hat is None
