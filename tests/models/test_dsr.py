"""DSR: codes and their search, anomalies made of codes, the parts of its training, published weights, its graph."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from grd_edge import train
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import ConfigError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.cost import multiply_adds
from grd_edge.models.dsr import Dsr, anomalous_codes
from grd_edge.models.method import GoodPatches
from grd_edge.models.quantized import VectorQuantizer
from grd_edge.quantize import layers_of

TINY = (
    "method.codes=32",
    "method.code_dim=4",
    "method.hidden=8",
    "method.base=2",
    "method.upsampling=true",
    "model.patch_h=32",
    "model.patch_w=64",
    "perturbation.probability=1",
)
STEPS = 10
LATENT, QUANTIZED, DETECTION, UPSAMPLING = 0, 2, 5, 9  # a step of each part


def config_of(*overrides):
    return load_config(profile="dsr", overrides=(*TINY, *overrides))


def random_of(step):
    return torch.Generator().manual_seed(step)


def patches(n=4):
    return torch.rand(n, 3, 32, 64, generator=random_of(7))


def begun(*overrides):
    torch.manual_seed(0)
    method = Dsr(config_of(*overrides))
    method.load_pretrained()
    method.begin(GoodPatches(lambda: iter([patches()]), lambda step: patches()))
    return method.train()


def gradients(method, step):
    """Losses of a step, and the names of the parts whose weights all get a gradient, and of those that get none."""
    method.zero_grad(set_to_none=True)
    terms = method.loss(patches(), random_of(step), step, STEPS)
    sum(terms.values()).backward()
    reached = {
        name: [p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters()]
        for name, part in method.named_children()
    }
    assert all(all(each) or not any(each) for each in reached.values())
    return set(terms), {name for name, each in reached.items() if all(each)}


@pytest.fixture(scope="module")
def trained():
    method = begun()
    adam = torch.optim.Adam([p for group in method.groups() for p in group["params"]], lr=1e-3)
    for step in range(STEPS):
        adam.zero_grad()
        sum(method.loss(patches(), random_of(step), step, STEPS).values()).backward()
        adam.step()
    method.eval()
    method.prune()
    return method


# ------------------------------------------------------------------------------------------------------------- codes


def test_the_search_finds_the_nearest_code():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(50, 5)
    z = torch.randn(2, 5, 3, 7)
    distances = (z.movedim(1, -1)[..., None, :] - quantizer.codebook).square().sum(-1)
    expected = quantizer.codebook[distances.argmin(-1)].movedim(-1, 1)
    assert torch.equal(quantizer(z), expected)
    order = quantizer.by_distance(z.movedim(1, -1).reshape(-1, 5))
    assert torch.equal(order, distances.reshape(-1, 50).argsort(1))


def test_gradients_pass_the_search():
    z = torch.randn(1, 4, 2, 2, requires_grad=True)
    quantizer = VectorQuantizer(8, 4)
    out = quantizer.straight_through(z)
    torch.testing.assert_close(out, quantizer(z))
    out.square().sum().backward()
    torch.testing.assert_close(z.grad, 2 * out)


def test_codes_become_the_means_of_their_features_and_idle_ones_start_anew():
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    quantizer = VectorQuantizer(6, 2)
    for step in range(60):
        z = centers[torch.randint(3, (1, 8, 8))] + 0.1 * torch.randn(1, 8, 8, 2)
        quantizer.adapt(z.movedim(-1, 1), 0.8, random_of(step))
    # Every code is of one of the clusters, and every cluster has a code near its mean.
    distances = torch.cdist(quantizer.codebook, centers)
    assert distances.min(1).values.max() < 0.5
    assert distances.min(0).values.max() < 0.2
    torch.testing.assert_close(quantizer.bias, -0.5 * quantizer.codebook.square().sum(1))


def test_codes_repeat_with_their_random_numbers():
    books = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(6, 2)
        quantizer.adapt(torch.randn(2, 2, 4, 4), 0.9, random_of(seed))
        books.append(quantizer.codebook.clone())
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


# --------------------------------------------------------------------------------------------------------- anomalies


@pytest.mark.parametrize("strength", [0.1, 0.2, 1.0])
def test_anomalies_are_codes_of_the_wanted_distance_inside_the_mask_only(strength):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(100, 6)
    z = torch.randn(3, 6, 4, 8)
    mask = torch.zeros(3, 1, 16, 32)
    mask[0, 0, 5, 9] = mask[1, 0, :, 16:] = 1
    q = quantizer(z)
    changed = anomalous_codes(z, q, mask, quantizer, torch.full((3,), strength), random_of(0))
    inside = torch.zeros(3, 4, 8, dtype=torch.bool)
    inside[0, 1, 2] = inside[1, :, 4:] = True
    assert torch.equal(changed.movedim(1, -1)[~inside], q.movedim(1, -1)[~inside])
    ranks = quantizer.by_distance(z.movedim(1, -1)[inside])
    for order, code in zip(ranks, changed.movedim(1, -1)[inside], strict=True):
        rank = (quantizer.codebook[order] == code).all(1).nonzero().item()
        assert 5 <= rank <= min(98, 100 * strength)  # less the 5 % nearest


def test_half_of_the_anomalies_are_in_both_resolutions():
    method = begun()
    kinds = Counter()
    x = patches(1).expand(64, -1, -1, -1)
    for seed in range(4):
        good, q_lo, q_hi, target = method.anomalous(x, random_of(seed))
        assert set(target.unique().tolist()) == {0.0, 1.0}
        low, high = ((a != b).flatten(1).any(1) for a, b in ((good.q_lo, q_lo), (good.q_hi, q_hi)))
        kinds.update(zip(low.tolist(), high.tolist(), strict=True))
        # Targets are as coarse as what changed: 8 px, or 4 px where only the high resolution did.
        for only_high in (False, True):
            of_kind = target[low != only_high]
            step = 4 if only_high else 8
            coarse = torch.nn.functional.max_pool2d(of_kind, step)
            assert torch.equal(torch.nn.functional.interpolate(coarse, scale_factor=step), of_kind)
    assert kinds[False, False] == 0
    assert 0.35 < kinds[True, True] / 256 < 0.65


def test_without_anomalies_nothing_changes():
    good, q_lo, q_hi, target = begun("perturbation.probability=0").anomalous(patches(), random_of(0))
    assert torch.equal(q_lo, good.q_lo) and torch.equal(q_hi, good.q_hi) and target.sum() == 0


# ---------------------------------------------------------------------------------------------------------- training


def test_each_part_of_the_training_reaches_its_networks_and_no_others():
    method = begun()
    assert {id(p) for group in method.groups() for p in group["params"]} == {id(p) for p in method.parameters()}
    for step, codes_move in ((LATENT, False), (QUANTIZED, True)):
        before = method.discrete.vq_vae_bot.codebook.clone()
        terms, reached = gradients(method, step)
        assert terms == {"general_l2", "commitment"} and reached == {"discrete"}
        assert torch.equal(before, method.discrete.vq_vae_bot.codebook) != codes_move
    terms, reached = gradients(method, DETECTION)
    assert terms == {"restriction_lo", "restriction_hi", "specific_l2", "focal"}
    assert reached == {"restrict_lo", "restrict_hi", "specific", "detection"}
    before = {key: value.clone() for key, value in method.state_dict().items() if not key.startswith("upsampling")}
    terms, reached = gradients(method, UPSAMPLING)
    assert terms == {"upsampling_focal"} and reached == {"upsampling"}
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items() if key in before)
    assert all(part.training for _, part in method.named_children())


@pytest.mark.parametrize("step", [LATENT, QUANTIZED, DETECTION, UPSAMPLING])
def test_a_step_is_a_function_of_its_random_numbers(step):
    first, again, other = (begun().loss(patches(), random_of(seed), step, STEPS) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_part_trains_in_bfloat16():
    method = begun()
    for step in (LATENT, QUANTIZED, DETECTION, UPSAMPLING):
        with torch.autocast("cpu", torch.bfloat16):
            terms = method.loss(patches(), random_of(step), step, STEPS)
        sum(terms.values()).backward()
        assert all(value.isfinite() for value in terms.values())
    assert method.discrete.vq_vae_top.running_sum.dtype == torch.float32


def test_a_time_budget_is_counted_from_steps_of_every_part(parts, monkeypatch):
    timed = []

    def noted(self, x, random, step, steps):
        timed.append((step / steps, steps))
        return {"l2": sum(p.square().sum() for p in self.parameters())}

    def asked(seconds, advance, period):
        for number in range(2 * period):
            advance(number)
        return 1

    monkeypatch.setattr(Dsr, "loss", noted)
    monkeypatch.setattr(train, "steps_within", asked)
    settings = (
        "model.channels=1",
        "model.patch_w=32",
        "train.steps=null",
        "train.seconds=0.1",
        "geometry.scale_px=null",
    )
    train.checkpoint_from_dataset(dataset_from_folder(parts, need_test=False), config_of(*settings))
    shares = [share for share, steps in timed if steps == train.FAR]
    assert shares == 2 * [i / train.TIMED_STEPS for i in range(train.TIMED_STEPS)]


def test_shares_that_leave_nothing_to_learn_what_is_good_are_refused():
    with pytest.raises(ConfigError, match="leave no steps to learn what is good"):
        config_of("method.codebook_share=0.8", "method.upsampling_share=0.2")
    with pytest.raises(ConfigError, match=r"patch 48x64 is not a multiple of 32 px, which dsr needs"):
        Dsr(config_of("model.stages=[1]", "model.patch_h=48"))


# ----------------------------------------------------------------------------------------------------------- weights


def published(codes=32, dim=4, hidden=8):
    """State of the authors' network, named as in their checkpoint."""
    torch.manual_seed(1)
    between = hidden // 2
    shapes = {
        "_encoder_b._conv_1": (hidden // 2, 3, 4, 4),
        "_encoder_b._conv_2": (hidden, hidden // 2, 4, 4),
        "_encoder_b._conv_3": (hidden, hidden, 3, 3),
        "_encoder_t._conv_1": (hidden, hidden, 4, 4),
        "_encoder_t._conv_2": (hidden, hidden, 3, 3),
        "_pre_vq_conv_top": (dim, hidden, 1, 1),
        "_pre_vq_conv_bot": (dim, hidden + dim, 1, 1),
        "_decoder_b._conv_1": (hidden, 2 * dim, 3, 3),
    }
    transposed = {
        "upsample_t": (dim, dim, 4, 4),
        "_decoder_b._conv_trans_1": (hidden, hidden // 2, 4, 4),
        "_decoder_b._conv_trans_2": (hidden // 2, 3, 4, 4),
    }
    state = {f"{name}.weight": torch.randn(shape) for name, shape in (shapes | transposed).items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[1]) for name, shape in transposed.items()}
    for network in ("_encoder_b", "_encoder_t", "_decoder_b"):
        for block in (0, 1):
            where = f"{network}._residual_stack._layers.{block}._block"
            state[f"{where}.1.weight"] = torch.randn(between, hidden, 3, 3)
            state[f"{where}.3.weight"] = torch.randn(hidden, between, 1, 1)
    for quantizer in ("_vq_vae_top", "_vq_vae_bot"):
        state[f"{quantizer}._embedding.weight"] = torch.randn(codes, dim)
        state[f"{quantizer}._ema_w"] = torch.randn(codes, dim)
        state[f"{quantizer}._ema_cluster_size"] = torch.rand(codes)
    return state


def test_published_weights_are_taken_and_stay(tmp_path):
    state = published()
    save_file(state, tmp_path / "vq.safetensors")
    method = begun(f"method.weights={tmp_path / 'vq.safetensors'}")
    assert method.provenance["codebooks"]["source"] == "vq.safetensors"
    assert len(method.provenance["codebooks"]["sha256"]) == 64
    discrete = method.discrete
    assert torch.equal(discrete.vq_vae_bot.codebook, state["_vq_vae_bot._embedding.weight"])
    block = state["_decoder_b._residual_stack._layers.1._block.3.weight"]
    assert torch.equal(discrete.decoder_b.residuals[1].conv2.weight, block)
    assert torch.equal(discrete.encoder_t.conv_2.bias, state["_encoder_t._conv_2.bias"])
    terms, reached = gradients(method, LATENT)  # there is no part that trains codebooks
    assert "focal" in terms and reached == {"restrict_lo", "restrict_hi", "specific", "detection"}
    assert not {id(p) for g in method.groups() for p in g["params"]} & {id(p) for p in discrete.parameters()}


def test_the_published_size_is_that_of_the_published_weights():
    settings = ("method.codes=4096", "method.code_dim=128", "method.hidden=128")
    with torch.device("meta"):
        method = Dsr(load_config(profile="dsr", overrides=settings))
        expected = published(4096, 128, 128)
        method.discrete.vq_vae_top.prune()
    named = {
        "_" + name if not name.startswith("upsample") else name for name in method.discrete.published_names().values()
    }
    assert len(named) == len([key for key in expected if "_ema_" not in key])
    assert sum(p.numel() for p in method.discrete.parameters()) == sum(
        value.numel() for key, value in expected.items() if "_vq_vae_" not in key
    )


def test_other_weights_are_refused(tmp_path):
    def refused(state):
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(ConfigError) as caught:
            begun(f"method.weights={tmp_path / 'other.safetensors'}")
        return str(caught.value)

    whole = published()
    assert "lacks weights: pre_vq_conv_top.bias (1)" in refused(
        {k: v for k, v in whole.items() if "conv_top.b" not in k}
    )
    assert "has foreign weights: head (1)" in refused({**whole, "head": torch.zeros(1)})
    assert "which does not fit these settings" in refused(published(codes=16))
    assert "not finite" in refused({**whole, "_vq_vae_top._embedding.weight": torch.full((32, 4), torch.nan)})
    (tmp_path / "vq_model.pckl").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"is a pickle, which can run code .* convert it where you trust it"):
        begun(f"method.weights={tmp_path / 'vq_model.pckl'}")


# ------------------------------------------------------------------------------------------------------------- graph


def test_the_profile_costs_what_the_docs_say():
    with torch.device("meta"):
        method = Dsr(load_config(profile="dsr"))
    assert multiply_adds(method, (3, 128, 128)) / 1e9 == pytest.approx(1.51, abs=0.01)


def test_the_graph_is_the_network_and_holds_nothing_of_the_training(trained):
    assert not [key for key in trained.state_dict() if "running_s" in key]
    checkpoint = Checkpoint(trained.config, trained.state_dict(), {})
    data = onnx_from_checkpoint(checkpoint)
    kinds = Counter(node.op_type for node in onnx.load_from_string(data).graph.node)
    assert kinds["ArgMax"] == kinds["Gather"] == 4 and kinds["BatchNormalization"] == 0
    assert not {"Loop", "If", "NonZero", "TopK", "RandomUniform", "ScatterND", "GatherND"} & set(kinds)
    names = {layer.name for layer in layers_of(onnx.load_from_string(data))}
    assert {
        "method.discrete.vq_vae_top",
        "method.discrete.vq_vae_bot",
        "method.specific.image.residuals.0.add",
    } <= names
    engines = (OnnxRuntimeEngine(data, threads=1), OpenVinoEngine(data, threads=1))
    for n in (1, 3):
        x = patches(n)
        with torch.no_grad():
            score, maps = trained(x)
        for engine in engines:
            y = engine.reconstruct(x.numpy())
            np.testing.assert_allclose(y[:, :, 1:], maps.numpy(), atol=2e-6)
            np.testing.assert_allclose(y[:, 0, 0, 0], score.numpy(), atol=2e-6)
