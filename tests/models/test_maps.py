"""Grids of scores become maps that keep their scale and place."""

import pytest
import torch

from grd_edge.method_config import BackboneConfig
from grd_edge.models.backbones import backbone_from_config
from grd_edge.models.maps import GaussianUpsampling, JoinedFeatures


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 7), (11, 3), (16, 16)])
@pytest.mark.parametrize(("stride", "sigma"), [(1, 1.0), (4, 0.3), (8, 1.5), (14, 1.2)])
def test_a_constant_stays_a_constant(h, w, stride, sigma):
    maps = GaussianUpsampling((h * stride, w * stride), stride, sigma)(torch.full((2, 1, h, w), 3.0))
    assert maps.shape == (2, 1, h * stride, w * stride)
    assert torch.allclose(maps, torch.tensor(3.0), atol=1e-5)


@pytest.mark.parametrize(("stride", "offset"), [(8, None), (8, 0), (7, 2.5)])
def test_a_position_spreads_as_a_gaussian_about_its_pixel(stride, offset):
    grid = torch.zeros(1, 1, 21, 21)
    grid[0, 0, 9, 11] = 1
    maps = GaussianUpsampling((21 * stride, 21 * stride), stride, 1.5, offset)(grid)[0, 0].double()
    middle = (stride - 1) / 2 if offset is None else offset
    at = torch.arange(21 * stride, dtype=torch.float64)
    for line, position in ((maps.sum(1), 9), (maps.sum(0), 11)):
        mean = (line * at).sum() / line.sum()
        assert mean == pytest.approx(position * stride + middle, abs=0.02 * stride)
        assert ((line * (at - mean) ** 2).sum() / line.sum()).sqrt() == pytest.approx(1.5 * stride, rel=0.05)
    assert maps.sum() == pytest.approx(stride**2, rel=0.01)
    assert torch.allclose(maps, maps.sum(1)[:, None] * maps.sum(0)[None] / maps.sum(), atol=1e-6)


def test_a_patch_that_is_no_multiple_of_the_stride_gets_a_map_of_its_size():
    assert GaussianUpsampling((33, 47), 14, 1.2)(torch.rand(2, 1, 2, 3)).shape == (2, 1, 33, 47)


def test_features_are_joined_at_the_finest_grid():
    backbone = backbone_from_config(BackboneConfig(weights="random"), ("stride16", "stride8"))
    joined = JoinedFeatures(backbone)
    x = torch.rand(2, 1, 32, 48)
    found = joined(x)
    assert found.shape == (2, joined.channels, *joined.grid(32, 48)) == (2, 152, 4, 6)
    coarse, fine = backbone(x)
    plain = JoinedFeatures(backbone, pooled=False)(x)
    assert torch.equal(plain[:, 112:], fine) and plain[:, :112].amax() <= coarse.amax()
    middle = fine[:, :, 0:3, 2:5].mean((2, 3))
    assert torch.allclose(found[:, 112:, 1, 3], middle, rtol=1e-4, atol=1e-6 * float(fine.abs().max()))
