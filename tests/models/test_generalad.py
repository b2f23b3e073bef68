"""GeneralAD: what its distortions do, what its discriminator learns, and the score."""

import pytest
import torch

from grd_edge.errors import ConfigError
from grd_edge.models.generalad import SAMPLED_BATCHES, ClassAttention, distorted
from grd_edge.models.method import method_from_config
from tests.models.scoring import assert_engines_agree, begun, fitted, good_batch, losses_of, tiny_config

EVERY_KIND = ("noise", "shuffle", "attended_noise", "attended_shuffle", "attended_copy")


def config_of(*overrides):
    return tiny_config("generalad", "method.backbone.weights=random", "method.hidden=16", *overrides)


def distortion(kind, seed=0, n=64):
    random = torch.Generator().manual_seed(seed)
    features, attended = torch.randn(n, 5, 3, 4, generator=random), torch.rand(n, 2, 12, generator=random)
    return features, attended, *distorted(features, attended, kind, 0.25, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_distortion_changes_its_positions_only(kind):
    features, attended, fake, mask = distortion(kind)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    count = mask.sum(1)
    assert count.min() >= 1 and count.max() == 12 and len(count.unique()) > 6
    moved = (fake != features).any(1).flatten(1)
    assert not moved[mask == 0].any() and moved[mask == 1].float().mean() > 0.7
    if kind.startswith("attended"):
        # The positions of one of the heads that have the largest attention.
        least = attended.masked_fill(mask[:, None] == 0, torch.inf).amin(2)
        largest = attended.masked_fill(mask[:, None] == 1, -torch.inf).amax(2)
        assert (least > largest).any(1).all()
    again = distortion(kind)
    assert torch.equal(fake, again[2]) and torch.equal(mask, again[3])
    assert not torch.equal(fake, distortion(kind, seed=1)[2])


@pytest.mark.parametrize("kind", ["shuffle", "attended_shuffle", "attended_copy"])
def test_moved_features_are_those_of_other_positions(kind):
    features, _, fake, mask = distortion(kind)
    before, after = features.flatten(2), fake.flatten(2)
    equal = (after[:, :, :, None] == before[:, :, None, :]).all(1)  # (N, to, from)
    assert (equal.sum(2) == 1).all()
    if kind.endswith("shuffle"):
        assert (equal.sum(1) == 1).all()  # a permutation
        moves = equal & ~torch.eye(12, dtype=torch.bool)
        assert not moves.any(1)[mask == 0].any()  # among the distorted positions


def test_noise_has_its_deviation():
    features, _, fake, mask = distortion("noise", n=2000)
    change = (fake - features).flatten(2)[mask[:, None].expand(-1, 5, -1) == 1]
    assert change.std() == pytest.approx(0.25, rel=0.02) and change.mean() == pytest.approx(0, abs=0.01)


def test_every_parameter_of_the_discriminator_learns_and_the_backbone_does_not():
    kinds = f"method.distortions=[{', '.join(EVERY_KIND)}]"
    method = begun(config_of(kinds, "method.blocks=2"))
    terms = losses_of(method, 0, 3)
    assert list(terms) == ["good", "noise_everywhere", *EVERY_KIND]
    assert all(0 < value.item() < 20 for value in terms.values())
    for name, parameter in method.discriminator.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in method.features.parameters())
    assert {id(p) for group in method.groups() for p in group["params"]} == {
        id(p) for p in method.discriminator.parameters()
    }
    about = method.provenance["backbone"]
    assert "in place of DINOv2" in about["substitute"] and about["source"] == "random"
    assert method.provenance["attention"]["substitute"]


def test_features_are_standardized_on_good_patches():
    method = begun(config_of())
    with torch.no_grad():
        found = torch.cat([method.standardized(good_batch(method.config, step)) for step in range(SAMPLED_BATCHES)])
    varies = method.deviation.flatten() > 0.01 * method.deviation.mean()
    assert varies.float().mean() > 0.9
    assert found.mean((0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(found[:, varies].std((0, 2, 3)), torch.tensor(1.0), atol=0.01)


def test_the_attention_of_a_class_token_is_taken_from_the_last_block():
    config = tiny_config(
        "generalad",
        "method.backbone.name=vit_small_patch14_dinov2",
        "method.backbone.layers=[block1]",
        "method.backbone.weights=random",
        "method.distortions=[attended_shuffle]",
        "model.patch_w=48",
    )
    method = begun(config)
    assert method.features.grid(32, 48) == (2, 3) and method.features.channels == 384
    x = good_batch(config, 0)
    with torch.no_grad(), ClassAttention(method.features.backbone) as attention:
        method.features(x)
    assert attention.weights.shape == (4, 6, 6)
    assert attention.weights.min() >= 0 and (attention.weights.sum(2) < 1).all()  # the rest is the class token's own
    assert not method.features.backbone.stages["block1"].attn.qkv._forward_hooks
    assert "substitute" not in method.provenance["backbone"] and "attention" not in method.provenance
    assert all(value.isfinite() for value in losses_of(method, 0, 2).values())
    with torch.no_grad():
        assert method.eval()(x)[1].shape == (4, 1, 32, 48)


def test_the_score_is_the_mean_of_the_largest_logits():
    method = fitted(config_of("method.top_k=3"))
    x = good_batch(method.config, 1)
    with torch.no_grad():
        scores, maps = method(x)
        logits = method.discriminator(method.standardized(x)).flatten(1)
    assert torch.allclose(scores, logits.sort(1, descending=True).values[:, :3].mean(1))
    assert maps.shape == (4, 1, 32, 32) and maps.amax() <= logits.amax() and maps.amin() >= logits.amin()
    assert method_from_config(config_of("method.top_k=99")).top_k == 16


def test_steps_are_functions_of_the_seed_with_their_dropout():
    one, two, other = (fitted(config_of(f"train.seed={seed}", "method.dropout=0.3")) for seed in (3, 3, 4))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert not torch.equal(one.discriminator.out.weight, other.discriminator.out.weight)


def test_heads_that_do_not_share_the_channels_are_refused():
    with pytest.raises(ConfigError, match=r"5 heads do not share the 152 channels of stage3, stage5 evenly"):
        method_from_config(config_of("method.heads=5"))


def test_engines_yield_what_torch_does():
    assert_engines_agree(fitted(config_of("model.channels=3", "model.patch_h=48", "method.blocks=2")))
