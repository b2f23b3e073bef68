"""The U-Net of DRAEM and GRD-Net: published size, any shape it allows, exact folding, a graph for every batch."""

import numpy as np
import onnxruntime
import pytest
import torch

from grd_edge.config import load_config
from grd_edge.export import plain_export
from grd_edge.models.generator import folded
from grd_edge.models.unet import UNet, stage_widths


def test_widths_double_up_to_eight_times_the_base():
    assert stage_widths(64, 5) == [64, 128, 256, 512, 512, 512]


def test_the_published_one_has_the_published_size():
    with torch.device("meta"):
        net = UNet(6, 2, base=64, depth=5)
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(28.37, abs=0.01)


@pytest.mark.parametrize(("depth", "h", "w"), [(1, 2, 6), (2, 12, 20), (3, 16, 40), (5, 32, 64)])
def test_logits_have_the_size_of_the_image(depth, h, w):
    assert UNet(3, 2, base=2, depth=depth)(torch.rand(3, 3, h, w)).shape == (3, 2, h, w)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = UNet(1, 1, base=4, depth=3)
    net(torch.rand(4, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())


def test_folding_and_export_change_nothing():
    torch.manual_seed(0)
    net = UNet(1, 2, base=4, depth=2)
    net(torch.rand(8, 1, 24, 40))  # statistics that are not trivial
    net.eval()
    config = load_config(overrides=["model.patch_h=32", "model.patch_w=48"]).model
    session = onnxruntime.InferenceSession(plain_export(folded(net), config))
    for n in (1, 3):
        x = torch.rand(n, 1, 32, 48)
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], net(x).numpy(), atol=2e-5)
