"""Structured pruning: what is cut out is what was not used, and what is left is an ordinary network."""

import pytest
import torch
from torch import nn

from grd_edge.config import load_config, overlaid_config
from grd_edge.errors import ConfigError
from grd_edge.models.cost import multiply_adds_of_config
from grd_edge.models.generator import Reconstructor
from grd_edge.prune import can_be_cut, channel_sets, cut, importance, pruned_weights, widths_within

SMALL = ("model.base=6", "model.stages=[2, 3]", "model.patch_h=16", "model.patch_w=24", "model.latent=5")


def model(*settings):
    return load_config(overrides=[*SMALL, *settings]).model


def network(config):
    """Random weights and statistics, float64, in evaluation mode."""
    torch.manual_seed(0)
    net = Reconstructor(config).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if config.bottleneck == "dense":
        nn.init.uniform_(net.latent_down[1].center)
    return net.eval()


FORMS = pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.resample=last",),
        ("model.bottleneck=conv", "model.decoder_resample=last"),
        ("model.upsampling=pixel_shuffle", "model.channels=3"),
        ("model.upsampling=resize_conv", "model.stages=[1, 1]"),
    ],
)


@FORMS
def test_cutting_channels_that_nothing_reads_changes_nothing(settings):
    config = model(*settings)
    net = network(config)
    sets = channel_sets(net, len(config.stages))
    kept, random = [], torch.Generator().manual_seed(1)
    weights = net.state_dict()
    for each in sets:
        width, left = config.stage_widths[each.stage], (3, 7)[each.stage]
        order = torch.randperm(width, generator=random)
        kept.append(order[:left].sort().values)
        for name, dim, times in each.read:
            dead = (order[left:, None] * times + torch.arange(times)).flatten()
            weights[name].index_fill_(dim, dead, 0)
    x = torch.rand(2, config.channels, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        small = Reconstructor(model(*settings, "model.widths=[3, 7]")).double().eval()
        small.load_state_dict(cut(weights, sets, kept))
        assert (small(x) - expected).abs().max() <= 1e-12


@FORMS
def test_every_weight_belongs_to_the_sets_along_each_axis(settings):
    """Each axis of channels is cut exactly once; only those of the image and of the latent are not."""
    config = model(*settings)
    net = network(config)
    axes = [(name, dim) for each in channel_sets(net, 2) for name, dim, _ in (*each.written, *each.read)]
    assert len(axes) == len(set(axes))
    narrow = Reconstructor(config.model_copy(update={"widths": (4, 9)})).state_dict()
    differing = {
        (name, dim)
        for name, value in net.state_dict().items()
        for dim, (a, b) in enumerate(zip(value.shape, narrow[name].shape, strict=True))
        if a != b
    }
    assert differing == set(axes)


def test_stages_of_equal_width_keep_their_projection():
    config = model("model.widths=[6, 6]", "model.resample=last")
    assert Reconstructor(config).state_dict().keys() == Reconstructor(model("model.resample=last")).state_dict().keys()
    wide = network(model("model.resample=last"))
    Reconstructor(config).load_state_dict(pruned_weights(wide, (6, 6)))


@pytest.mark.parametrize("settings", [(), ("model.bottleneck=conv", "model.upsampling=pixel_shuffle")])
def test_channels_that_are_scaled_more_weigh_more(settings):
    """Those of the residual sum by all BatchNorms that end in it; those behind the latent by their weights."""
    net = network(model(*settings))
    sets = channel_sets(net, 2)
    by_writer = {axis[0]: index for index, each in enumerate(sets) for axis in each.written}
    with torch.no_grad():
        net.encoder.blocks[1].bn2.weight[2] = -9
        grid = net.latent_up[0].weight.shape[0] // 12  # 12 channels in the inner stage
        net.latent_up[0].weight[3 * grid : 4 * grid] *= 9
        net.encoder.stem[1].weight[4] = 9
        net.encoder.stem[0].weight[1] *= 99  # its BatchNorm undoes it
    found = importance(net.state_dict(), sets)
    assert [len(each) for each in found] == [(6, 12)[each.stage] for each in sets]
    for name, channel in (("encoder.blocks.1.bn2", 2), ("latent_up.0", 3), ("encoder.stem.1", 4)):
        assert found[by_writer[f"{name}.weight"]].argmax() == channel


def test_widths_follow_a_share_of_the_multiply_adds():
    config = load_config().model
    whole = multiply_adds_of_config(config)
    for share, widths in ((0.25, (8, 16, 32, 56)), (0.6, (16, 24, 40, 80)), (0.999, (16, 32, 64, 120))):
        found = widths_within(config, share)
        assert found == widths
        narrow = config.model_copy(update={"widths": found})
        assert multiply_adds_of_config(narrow) <= share * whole
        assert can_be_cut(config, narrow)
    with pytest.raises(ConfigError, match=r"cannot be pruned to 2.0% .* with 8 channels in every stage it has \d"):
        widths_within(config, 0.02)
    assert widths_within(config.model_copy(update={"widths": (5, 20, 40, 40)}), 0.4) == (5, 8, 16, 16)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ("model.base=3", True),
        ("model.widths=[6, 5]", True),
        ("model.widths=[7, 5]", False),
        ("model.latent=4", False),
        ("model.stages=[2, 2]", False),
        ("model.discriminator_base=2", True),
    ],
)
def test_what_can_be_cut_is_the_same_network_with_fewer_channels(settings, fits):
    assert can_be_cut(model(), model(settings)) is fits


def test_widths_are_one_for_each_stage():
    with pytest.raises(ConfigError, match="widths names 3 stages and stages 2; give one width for each stage"):
        model("model.widths=[8, 8, 8]")
    default = overlaid_config(load_config(), overrides=["model.base=4"]).model
    assert default.widths is None and default.stage_widths == default.discriminator_widths == (4, 8, 16, 32)
    assert default.model_copy(update={"discriminator_base": 2}).discriminator_widths == (2, 4, 8, 16)
