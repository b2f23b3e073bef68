"""Each equation of docs/method.md, section 4, against its plain definition."""

import pytest
import torch

from grd_edge.config import LossConfig, PerturbationConfig
from grd_edge.data.perturb import Perturbed, perturb
from grd_edge.losses import (
    adversarial_loss,
    auxiliary_terms,
    contextual_loss,
    discriminator_loss,
    encoder_loss,
    focal_loss,
    noise_loss,
    reconstruction_terms,
    segmentation_loss,
    weighted_sum,
)
from grd_edge.models.generator import GeneratorOutput


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.rand(6, 1, 32, 32)


def perturbed(x, probability):
    return perturb(x, PerturbationConfig(probability=probability), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_noise_loss_of_a_perfect_reconstruction_is_zero(x, probability):
    p = perturbed(x, probability)
    assert noise_loss(p.x_noisy, x, p.mask, p.texture, p.beta) <= 1e-7


def test_noise_loss_is_zero_where_the_mask_is_empty_whatever_the_reconstruction(x):
    p = perturbed(x, 0.0)
    assert p.mask.sum() == 0
    assert noise_loss(p.x_noisy, torch.rand_like(x), p.mask, p.texture, p.beta) == 0


def test_noise_loss_is_the_mean_inside_the_mask(x):
    p = perturbed(x, 1.0)
    x_hat = torch.rand_like(x)
    inside = p.mask.bool().expand_as(x)
    beta = p.beta.expand_as(x)[inside]
    left = ((1 - beta) * x_hat[inside] - p.x_noisy[inside]).abs()
    expected = (left - beta * p.texture[inside]).square().mean()
    assert torch.isclose(noise_loss(p.x_noisy, x_hat, p.mask, p.texture, p.beta), expected, rtol=1e-5)


def test_adversarial_loss_gives_no_gradient_to_its_target():
    a, b = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    adversarial_loss(a, b).backward()
    assert a.grad is None
    assert b.grad is not None


def test_contextual_loss_weighs_huber_and_ssim(x):
    config = LossConfig()
    assert contextual_loss(x, x, config) == 0
    only_pixels = LossConfig(ssim_weight=0)
    # |difference| < 1: Huber is half the square
    assert torch.isclose(contextual_loss(x, x * 0.5, only_pixels), 2 * 0.5 * (0.5 * x).square().mean(), rtol=1e-5)
    l1 = LossConfig(pixel="l1", pixel_weight=1, ssim_weight=0)
    assert torch.isclose(contextual_loss(x, x * 0.5, l1), (0.5 * x).mean(), rtol=1e-5)
    assert contextual_loss(x, 1 - x, config) > contextual_loss(x, x * 0.9, config)


def test_discriminator_loss_at_zero_logits_is_log_two():
    zeros = torch.zeros(4, 1)
    assert torch.isclose(discriminator_loss(zeros, zeros), torch.tensor(2.0).log())
    assert discriminator_loss(zeros + 20, zeros - 20) < 1e-6


def test_the_sum_has_the_published_weights(x):
    config = LossConfig()
    p = Perturbed(x, torch.zeros_like(x), torch.zeros_like(x), torch.ones(6, 1, 1, 1))
    out = GeneratorOutput(x * 0.5, torch.ones(6, 3), torch.zeros(6, 3))
    terms = reconstruction_terms(x, p, out.x_hat, config) | auxiliary_terms(out, torch.ones(2, 2), torch.zeros(2, 2))
    assert terms["encoder"] == encoder_loss(out.z, out.z_hat) == 1
    expected = 1 * 1 + 50 * terms["contextual"] + 1 * 1 + 3 * terms["noise"]
    assert torch.isclose(weighted_sum(terms, config), expected)
    assert torch.isclose(weighted_sum({"encoder": torch.tensor(2.0)}, config, scale=4), torch.tensor(8.0))


def test_segmentation_loss_is_of_probabilities_times_the_region():
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 1, 7, 9, dtype=torch.float64)).requires_grad_()
    mask, roi = (torch.randint(0, 2, (3, 1, 7, 9)).double() for _ in range(2))
    loss = segmentation_loss(logits, mask, roi)
    p, truth = torch.sigmoid(logits) * roi, mask * roi
    p_true = torch.where(truth > 0, p, 1 - p)
    expected = (-torch.where(truth > 0, 0.25, 0.75) * (1 - p_true) ** 2 * p_true.log()).mean()
    assert torch.isclose(loss, expected, rtol=1e-12)
    (of_region,) = torch.autograd.grad(loss, logits)
    assert (of_region[roi == 0] == 0).all() and (of_region[roi == 1] != 0).all()
    whole = segmentation_loss(logits, mask, None)
    assert torch.equal(whole, segmentation_loss(logits, mask, torch.ones_like(roi)))
    (everywhere,) = torch.autograd.grad(whole, logits)
    assert (everywhere != 0).all() and torch.equal(everywhere[roi == 1], of_region[roi == 1])
    assert segmentation_loss(logits, mask, torch.zeros_like(roi)) == 0


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_loss_is_its_definition(alpha):
    torch.manual_seed(0)
    logits, target = 3 * torch.randn(5, 1, 7, 9, dtype=torch.float64), torch.randint(0, 2, (5, 1, 7, 9)).double()
    p = torch.sigmoid(logits)
    p_true = torch.where(target > 0, p, 1 - p)
    weight = 1 if alpha is None else torch.where(target > 0, alpha, 1 - alpha)
    expected = (-weight * (1 - p_true) ** 2 * p_true.log()).mean()
    assert torch.isclose(focal_loss(logits, target, alpha=alpha), expected, rtol=1e-12)


def test_focal_loss_of_two_classes_is_that_of_the_difference_of_their_logits():
    logits = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    target = torch.randint(0, 2, (4, 5, 5))
    p_true = logits.softmax(1).gather(1, target[:, None])
    expected = (-((1 - p_true) ** 2) * p_true.log()).mean()
    assert torch.isclose(focal_loss(logits[:, 1] - logits[:, 0], target), expected, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_focal_loss_and_its_gradient_stay_finite_at_any_logit(gamma):
    logits = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], requires_grad=True)
    for target in (torch.zeros(5), torch.ones(5)):
        loss = focal_loss(logits, target, gamma)
        loss.backward()
        assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert focal_loss(torch.tensor([1e4]), torch.ones(1)) == 0
    assert focal_loss(torch.tensor([-1e4]), torch.ones(1)) == 1e4
