"""Losses of the generator and the discriminator, one function per equation.

Images are (N, C, H, W) float in [0, 1]; every loss is a scalar tensor. Source: docs/method.md, section 4.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from grd_edge.config import ImitationConfig, LossConfig
from grd_edge.data.perturb import Perturbed
from grd_edge.models.generator import GeneratorOutput
from grd_edge.score import ssim_distance_map


def adversarial_loss(features: torch.Tensor, features_hat: torch.Tensor) -> torch.Tensor:
    """L_adv: mean squared difference of F_C(X) and F_C(X^); the target F_C(X) gets no gradient."""
    return F.mse_loss(features_hat, features.detach())


def contextual_loss(x: torch.Tensor, x_hat: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """L_con = wa * Huber(X, X^; delta 1) (L1 for 2023) + wb * (1 - SSIM(X, X^))."""
    pixel = F.huber_loss(x_hat, x, delta=1.0) if config.pixel == "huber" else F.l1_loss(x_hat, x)
    return config.pixel_weight * pixel + config.ssim_weight * ssim_distance_map(x, x_hat).mean()


def encoder_loss(z: torch.Tensor, z_hat: torch.Tensor) -> torch.Tensor:
    """L_enc: mean absolute difference of the two latents."""
    return F.l1_loss(z_hat, z)


def noise_loss(
    x_noisy: torch.Tensor, x_hat: torch.Tensor, mask: torch.Tensor, texture: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """L_nse: mean over the masked pixels of (|(1 - beta) M X^ - M X_n| - beta M N)^2; 0 where the mask is empty.

    Args:
        mask: (N, 1, H, W), 1 inside the perturbation.
        texture: N of the method, (N, C, H, W).
        beta: opacity, (N, 1, 1, 1).
    """
    difference = (1 - beta) * mask * x_hat - mask * x_noisy
    squared = (difference.abs() - beta * mask * texture).square() * mask
    return squared.sum() / (mask.sum() * x_hat.shape[1]).clamp_min(1)


def discriminator_loss(logits: torch.Tensor, logits_hat: torch.Tensor) -> torch.Tensor:
    """L_disc = 1/2 [BCEWithLogits(C(X), 1) + BCEWithLogits(C(X^), 0)]."""
    real = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    fake = F.binary_cross_entropy_with_logits(logits_hat, torch.zeros_like(logits_hat))
    return 0.5 * (real + fake)


def focal_loss(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, alpha: float | None = None
) -> torch.Tensor:
    """L_seg: mean over all elements of -alpha_t (1 - p_t)^gamma log p_t, with p_t the probability of the true class.

    Of two classes with a logit each, as under a softmax, `logits` is that of the positive class less the other.

    Args:
        logits, target: of one shape; the target is 0 or 1.
        gamma: at least 1, so that gradients stay finite; 0 would be the cross-entropy.
        alpha: weight of the positive class in [0, 1], the other has 1 - alpha; None: 1 for both.

    Source: Lin et al., arXiv 1708.02002, section 3.
    """
    signed = torch.where(target > 0, logits, -logits)
    loss = torch.sigmoid(-signed) ** gamma * F.softplus(-signed)
    if alpha is not None:
        loss = loss * torch.where(target > 0, alpha, 1 - alpha)
    return loss.mean()


def segmentation_loss(logits: torch.Tensor, mask: torch.Tensor, roi: torch.Tensor | None) -> torch.Tensor:
    """FL(Delta(X_n, X^) ROI, M ROI): mean of the focal loss with gamma 2 and alpha 0.25.

    Outside the region of interest probability and truth are 0: the loss is 0 there, and so is its gradient.

    Args:
        logits: of Delta, (N, 1, H, W).
        mask: M, (N, 1, H, W), 0 or 1.
        roi: (N, 1, H, W), 0 or 1; None: everything is of interest.
    """
    if roi is not None:
        logits, mask = logits.masked_fill(roi == 0, -torch.inf), mask * roi
    return focal_loss(logits, mask, alpha=0.25)


def reconstruction_terms(
    x: torch.Tensor, perturbed: Perturbed, x_hat: torch.Tensor, config: LossConfig
) -> dict[str, torch.Tensor]:
    """The terms of L_gen that need the reconstruction alone, by name and unweighted."""
    x_noisy, mask, texture, beta = perturbed
    return {
        "contextual": contextual_loss(x, x_hat, config),
        "noise": noise_loss(x_noisy, x_hat, mask, texture, beta),
    }


def imitation_terms(
    x: torch.Tensor,
    perturbed: Perturbed,
    x_hat: torch.Tensor,
    target: torch.Tensor,
    weights: ImitationConfig,
    config: LossConfig,
) -> dict[str, torch.Tensor]:
    """The terms by which x_hat follows `target`, the teacher's reconstruction of X_n, by name and unweighted; but for
    the distillation itself those of weight 0 are left out."""
    terms = {"distillation": contextual_loss(target, x_hat, config)}
    if weights.score:
        noisy = perturbed.x_noisy
        of_target, of_student = (ssim_distance_map(noisy, each).mean((1, 2, 3)) for each in (target, x_hat))
        terms["score"] = (of_student - of_target).abs().mean()
    if weights.reconstruction:
        terms["reconstruction"] = weighted_sum(reconstruction_terms(x, perturbed, x_hat, config), config)
    return terms


def auxiliary_terms(
    out: GeneratorOutput, features: torch.Tensor, features_hat: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The terms of L_gen that need the second encoder and the discriminator, by name and unweighted."""
    return {"adversarial": adversarial_loss(features, features_hat), "encoder": encoder_loss(out.z, out.z_hat)}


def weighted_sum(
    terms: dict[str, torch.Tensor], config: LossConfig | ImitationConfig, scale: float = 1.0
) -> torch.Tensor:
    """Sum of terms by their weights, such as w1 to w4, times `scale`."""
    return scale * sum(getattr(config, name) * value for name, value in terms.items())
