"""docs/method.md, section 3: what a perturbation may and may not do."""

import pytest
import torch

from grd_edge.config import AugmentationConfig, PerturbationConfig
from grd_edge.data.perlin import perlin_mask, perlin_noise
from grd_edge.data.perturb import augment, augment_masked, perturb

SIZES = [(11, 11), (16, 33), (32, 32), (63, 65), (128, 128)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_perlin_noise_is_finite_varied_and_about_unit(h, w):
    noise = perlin_noise(16, h, w, generator())
    assert noise.shape == (16, h, w)
    assert noise.isfinite().all()
    assert noise.abs().max() <= 1.5
    assert len({tuple(image.flatten().tolist()) for image in noise}) == 16
    assert (noise.flatten(1).std(dim=1) > 0.02).all()  # no lattice so fine that every pixel is a zero of the noise


def test_perlin_noise_is_zero_at_its_lattice_and_smooth_between():
    noise = perlin_noise(32, 64, 64, generator())
    assert noise[:, 0, 0].abs().max() == 0  # gradient noise vanishes at lattice points
    # Lattice cells are at least 2 px here; neighbors cannot jump over the whole range.
    assert noise.diff(dim=1).abs().max() < 1.5


@pytest.mark.parametrize("threshold", [0.5, 0.9, 5.0])
def test_masks_have_at_least_the_minimum_area(threshold):
    mask = perlin_mask(perlin_noise(64, 32, 32, generator()), 25, threshold)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.sum((1, 2, 3)).min() >= 25


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_outside_the_mask_nothing_changes(h, w, channels):
    x = torch.rand(12, channels, h, w, generator=generator())
    config = PerturbationConfig(textures=("image", "flat", "perlin", "rgb"))
    p = perturb(x, config, generator(1))
    outside = ~p.mask.bool().expand_as(x)
    assert torch.equal(p.x_noisy[outside], x[outside])
    assert (p.texture[outside] == 0).all()
    assert 0 <= p.x_noisy.min() <= p.x_noisy.max() <= 1
    assert 0.5 <= p.beta.min() <= p.beta.max() <= 1
    expected = (1 - p.mask) * x + (1 - p.beta) * p.mask * x + p.beta * p.mask * p.texture
    assert torch.allclose(p.x_noisy, expected, atol=1e-6)


def test_the_share_of_perturbed_patches_is_the_probability():
    x = torch.rand(400, 1, 16, 16)
    for probability in (0.0, 0.75, 1.0):
        p = perturb(x, PerturbationConfig(probability=probability), generator())
        share = (p.mask.sum((1, 2, 3)) > 0).float().mean().item()
        assert abs(share - probability) <= 0.08


@pytest.mark.parametrize("texture", ["image", "flat", "perlin", "rgb"])
def test_each_texture_varies_and_stays_in_range(texture):
    x = torch.rand(8, 1, 32, 32)
    p = perturb(x, PerturbationConfig(probability=1, textures=(texture,)), generator())
    values = p.texture[p.mask.bool().expand_as(x)]
    assert 0 <= values.min() < values.max() <= 1


def test_a_generator_of_the_same_seed_repeats_bit_for_bit():
    x = torch.rand(8, 1, 32, 32)
    config = PerturbationConfig()
    a, b, c = (perturb(x, config, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(left, right) for left, right in zip(a, b, strict=True))
    assert not torch.equal(a.x_noisy, c.x_noisy)


def test_rotation_reflects_and_never_leaves_black_corners():
    x = torch.full((16, 1, 40, 24), 0.7)
    turned = augment(x, AugmentationConfig(rotation_deg=90, noise_sigma=0), generator())
    assert torch.allclose(turned, x, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(33, 33), (40, 65)])
@pytest.mark.parametrize(("rotation_deg", "flip_x", "flip_y"), [(0, True, True), (30, False, True), (90, True, False)])
def test_a_mask_of_interest_stays_over_what_it_covers(h, w, rotation_deg, flip_x, flip_y):
    square = torch.zeros(16, 1, h, w)
    square[:, :, 5:19, 3:14] = 1
    config = AugmentationConfig(rotation_deg=rotation_deg, flip_x=flip_x, flip_y=flip_y, noise_sigma=0)
    x, roi = augment_masked(square, square, config, generator())
    assert torch.equal(x, augment(square, config, generator()))
    assert set(roi.unique().tolist()) == {0.0, 1.0}
    # The nearest pixel is one of those that x is interpolated from.
    assert (roi[x >= 1 - 1e-5] == 1).all() and (roi[x <= 1e-5] == 0).all()
    assert len({tuple(each.flatten().tolist()) for each in roi}) > 1
    assert augment_masked(square, None, config, generator())[1] is None
    noisy = AugmentationConfig(rotation_deg=rotation_deg, flip_x=flip_x, flip_y=flip_y, noise_sigma=0.03)
    assert torch.equal(augment_masked(square, square, noisy, generator())[1], roi)


def test_rotation_turns_pixels_not_normalized_coordinates():
    # A disk stays a disk on a patch that is not square.
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(32.0), indexing="ij")
    disk = ((y - 31.5) ** 2 + (x - 15.5) ** 2 < 100).float()[None, None].repeat(8, 1, 1, 1)
    turned = augment(disk, AugmentationConfig(rotation_deg=90, flip_y=False, noise_sigma=0), generator())
    near = (turned - disk)[:, :, 17:47].abs()  # farther away its reflections appear, as they should
    assert near.mean() < 0.02


def test_flips_happen_to_about_half_of_the_patches():
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(200, 1, 1, 1) / 16
    config = AugmentationConfig(rotation_deg=0, flip_x=True, flip_y=False, noise_sigma=0)
    out = augment(x, config, generator())
    flipped = [torch.equal(o, i.flip(2)) for o, i in zip(out, x, strict=True)]
    kept = [torch.equal(o, i) for o, i in zip(out, x, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 60 <= sum(flipped) <= 140


def test_sensor_noise_is_bounded_and_clamped():
    x = torch.full((64, 1, 16, 16), 0.5)
    noisy = augment(x, AugmentationConfig(rotation_deg=0, noise_sigma=0.03), generator())
    assert 0 < (noisy - x).std() < 0.03
    assert 0 <= augment(torch.ones(4, 1, 16, 16), AugmentationConfig(), generator()).max() <= 1
