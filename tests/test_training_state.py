"""The training step: what saves time or memory changes no result."""

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from grd_edge.config import config_from_mapping, load_config
from grd_edge.training_state import TrainingState
from tests.conftest import TINY


def state_of(*settings):
    config = load_config(overrides=[*TINY, *settings])
    return TrainingState(config, Fabric(accelerator="cpu", devices=1, precision=config.train.precision))


def batch_of(state, seed=0):
    model = state.config.model
    shape = (state.config.train.batch, model.channels, model.patch_h, model.patch_w)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("resample", ["first", "last"])
@pytest.mark.parametrize("base", [4, 16])
def test_recomputation_changes_neither_gradients_nor_statistics(resample, base):
    settings = (f"model.resample={resample}", f"model.base={base}", "model.stages=[2, 3]", "train.auxiliary_every=1")
    plain, again = state_of(*settings), state_of(*settings, "train.recompute=true")
    calls = []
    block = again.generator.reconstructor.encoder.blocks[0]
    block.register_forward_hook(lambda *_: calls.append(1))
    for step in range(2):
        batch = batch_of(plain, step)
        a, b = (state.advance(batch, step, 10) for state in (plain, again))
        assert a.keys() == b.keys()
        for (name, p), (_, q) in zip(_parameters(plain), _parameters(again), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-7), name
        for (name, p), q in zip(plain.generator.named_buffers(), again.generator.buffers(), strict=True):
            assert torch.equal(p, q), name
        for (name, p), q in zip(plain.discriminator.named_buffers(), again.discriminator.buffers(), strict=True):
            assert torch.equal(p, q), name
    assert len(calls) == 4  # it did compute twice
    assert again.generator.reconstructor.encoder.stem[1].momentum == 0.1


def _parameters(state):
    return [*state.generator.named_parameters(), *state.discriminator.named_parameters()]


def test_recomputation_keeps_less():
    """Bytes that autograd holds between the passes, at equal results."""
    held = {}
    for recompute in (False, True):
        state = state_of("model.base=8", "model.stages=[3, 3]", f"train.recompute={str(recompute).lower()}")
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            state.generator(batch_of(state))
        parameters = {p.data_ptr() for p in state.generator.parameters()}
        held[recompute] = sum(size for at, size in sizes.items() if at not in parameters)
    assert held[True] < 0.3 * held[False], held


def test_averaged_weights_follow_the_weights():
    state = state_of("train.ema_decay=0.5", "train.precision=bf16-mixed")
    expected = {key: value.clone() for key, value in state.ema.items()}
    for step in range(4):
        state.advance(batch_of(state, step), step, 10)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in state.generator.reconstructor.state_dict().items():
            floating = value.is_floating_point()
            expected[key] = decay * expected[key] + (1 - decay) * value if floating else value.clone()
    assert all(torch.allclose(state.ema[key], expected[key], atol=1e-6) for key in expected)
    assert state.shipped() is state.ema
    net = state.reconstructor()
    assert not net.training
    assert torch.equal(net.state_dict()["encoder.stem.1.running_mean"], state.ema["encoder.stem.1.running_mean"])


def test_a_state_comes_back_whole_and_a_foreign_one_is_refused():
    from grd_edge.errors import CheckpointError

    a, b = state_of("train.ema_decay=0.9"), state_of("train.ema_decay=0.9", "train.seed=7")
    a.advance(batch_of(a), 0, 10)
    b.load(a.tensors(), a.scaler())
    for state in (a, b):
        state.config = a.config  # the seed is part of a step
        state.advance(batch_of(a, 1), 1, 10)
    assert all(torch.equal(value, b.tensors()[key]) for key, value in a.tensors().items())
    other = state_of("model.latent=9").tensors()
    with pytest.raises(CheckpointError, match=r"does not fit this configuration at .*ema"):
        b.load(other, {})


def test_a_loss_that_is_not_finite_is_a_divergence():
    state = state_of("train.precision=bf16-mixed")
    state.advance(batch_of(state), 0, 10)
    assert not state.diverged
    kept = {key: value.clone() for key, value in state.tensors().items()}
    state.advance(batch_of(state) * torch.inf, 1, 10)
    assert state.diverged
    state.load(kept, state.scaler())
    assert not state.diverged


def half_precision_state(scale):
    """As 16-mixed on a GPU, which this test does without."""
    state = state_of("train.auxiliary_every=1")
    mapping = state.config.to_json()
    mapping["train"]["precision"] = "16-mixed"
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    return TrainingState(config_from_mapping(mapping), fabric)


def test_float16_finds_its_scale_and_diverges_after_many_fruitless_steps():
    state, fruitless = half_precision_state(2.0**30), []
    for step in range(16):
        state.advance(batch_of(state, step), step, 100)
        fruitless.append(state.fruitless)
        assert not state.diverged
    assert max(fruitless) > 1 and fruitless[-1] == 0
    assert all(value.isfinite().all() for value in state.shipped().values())
    state.fruitless = 23
    state.fabric.strategy.precision.scaler.load_state_dict({**state.scaler(), "scale": 2.0**120})
    state.advance(batch_of(state), 20, 100)
    assert state.fruitless == 24 and state.diverged
    state = half_precision_state(1.0)
    state.advance(batch_of(state) * torch.inf, 0, 100)
    assert state.fruitless == 1 and state.diverged  # its running statistics are lost


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch):
    from grd_edge.errors import ConfigError, InputError
    from grd_edge.processes import fabric_from_config

    def refused(error, match, **train):
        mapping = load_config(overrides=TINY).to_json()
        mapping["train"] |= train
        with pytest.raises(error, match=match):
            fabric_from_config(config_from_mapping(mapping))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("MASTER_ADDR", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    refused(ConfigError, "16-mixed needs a GPU", precision="16-mixed")
    refused(InputError, "finds no GPU", accelerator="cuda")
    refused(ConfigError, "batch of 4 cannot be split over 3 processes; set train.batch to .* such as 6", devices=3)
    refused(InputError, "MASTER_ADDR, NODE_RANK is not set", devices=2, num_nodes=2)
