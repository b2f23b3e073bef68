"""Training is a function of data, configuration and seed, and it learns."""

import json
import math

import numpy as np
import pytest
import torch

from grd_edge.checkpoint import read_training_state
from grd_edge.config import DataConfig, OptimizerConfig, config_from_mapping
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.data.frames import Frame, FrameStore, batch_at, grid_from_config
from grd_edge.errors import DivergedError
from grd_edge.train import SEEN_IMAGES, checkpoint_from_dataset, train_run, untrained_checkpoint
from grd_edge.training_state import TrainingState
from grd_edge.training_step import learning_rate


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts)


def with_train(config, **values):
    mapping = config.to_json()
    mapping["train"] |= values
    return config_from_mapping(mapping)


def test_learning_rate_is_a_cosine_with_warm_restarts_after_a_warmup():
    config = OptimizerConfig(lr=1.0, warmup_steps=0, first_cycle=0.25, cycle_mult=2, lr_floor=0.0)
    assert learning_rate(0, 400, config) == 1
    assert learning_rate(50, 400, config) == pytest.approx(0.5)
    assert learning_rate(99, 400, config) < 0.01
    assert learning_rate(100, 400, config) == 1  # restart
    assert learning_rate(200, 400, config) == pytest.approx(0.5)  # a cycle twice as long
    assert learning_rate(300, 400, config) == 1
    one = OptimizerConfig(lr=2.0, warmup_steps=10, lr_floor=0.1)
    assert learning_rate(0, 100, one) == pytest.approx(0.2)
    assert learning_rate(9, 100, one) == pytest.approx(2.0)
    assert learning_rate(99, 100, one) == pytest.approx(0.2, abs=0.01)
    assert all(math.isfinite(learning_rate(step, 1, one)) for step in range(100))


def test_a_batch_is_a_function_of_seed_and_step(dataset, tiny_config):
    store, grid = FrameStore(dataset.train, tiny_config), grid_from_config(tiny_config)
    a, b = (batch_at(store, grid, seed=1, step=5, batch=6) for _ in range(2))
    assert a.shape == (6, 1, 32, 32)
    assert a.dtype == torch.float32
    assert torch.equal(a, b)
    assert not torch.equal(a, batch_at(store, grid, seed=1, step=6, batch=6))
    assert not torch.equal(a, batch_at(store, grid, seed=2, step=5, batch=6))


def test_an_epoch_visits_every_image_once(dataset, tiny_config, monkeypatch):
    store, grid = FrameStore(dataset.train, tiny_config), grid_from_config(tiny_config)
    seen = []
    monkeypatch.setattr(FrameStore, "frame", lambda self, i: seen.append(i) or Frame(np.zeros((40, 40), np.uint8)))
    for step in range(len(store)):
        batch_at(store, grid, seed=0, step=step, batch=2)
    n = len(store)
    assert sorted(seen[:n]) == sorted(seen[n:]) == list(range(n))
    assert seen[:n] != seen[n:]


def test_a_cache_that_is_too_small_only_costs_time(dataset, tiny_config):
    small = FrameStore(dataset.train, tiny_config.model_copy(update={"data": DataConfig(cache_mb=0)}))
    full = FrameStore(dataset.train, tiny_config)
    for index in (0, 3, 0):
        assert np.array_equal(small[index], full[index])
    assert full.frame(0) is full.frame(0)
    assert small.frame(0) is not small.frame(0)


def test_the_same_seed_and_steps_give_the_same_weights(dataset, tiny_config):
    a, b = (checkpoint_from_dataset(dataset, tiny_config) for _ in range(2))
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    c = checkpoint_from_dataset(dataset, with_train(tiny_config, seed=1))
    assert any(not torch.equal(a.weights[key], c.weights[key]) for key in a.weights)
    assert a.provenance["manifest_sha256"] == dataset.manifest_sha256()


def test_a_time_budget_becomes_a_step_count_and_leaves_no_trace(dataset, tiny_config):
    timed = checkpoint_from_dataset(dataset, with_train(tiny_config, steps=None, seconds=1.5))
    steps = timed.provenance["steps"]
    assert steps >= 1
    counted = checkpoint_from_dataset(dataset, with_train(tiny_config, steps=steps))
    assert all(torch.equal(timed.weights[key], counted.weights[key]) for key in timed.weights)


def test_training_learns_and_reports_every_loss(dataset, tiny_config):
    seen = []
    config = with_train(tiny_config, steps=80, auxiliary_every=4, batch=8)
    mapping = config.to_json()
    mapping["optimizer"]["lr"] = 5e-3
    checkpoint = checkpoint_from_dataset(dataset, config_from_mapping(mapping), on_progress=seen.append)
    assert [p.step for p in seen] == list(range(1, 81))
    assert all(p.steps == 80 for p in seen)
    assert {"adversarial", "encoder", "discriminator"} <= seen[0].losses.keys()
    assert "adversarial" not in seen[1].losses
    first, last = (np.mean([p.losses["contextual"] for p in part]) for part in (seen[:8], seen[-8:]))
    assert last < 0.7 * first
    assert all(np.isfinite(value) for value in checkpoint.provenance["losses"].values())
    # The checkpoint holds what runs at inference, nothing of the second encoder or the discriminator.
    assert {key.split(".")[0] for key in checkpoint.weights} == {"encoder", "decoder", "latent_down", "latent_up"}


def test_a_run_that_diverges_stops_in_a_sentence_and_keeps_its_last_good_state(dataset, tiny_config, tmp_path):
    mapping = with_train(tiny_config, steps=50, save_seconds=0, validation=True, validate_every=1).to_json()
    mapping["optimizer"] |= {"lr": 1e25, "warmup_steps": 0}
    with pytest.raises(
        DivergedError, match=r"^training diverged at step \d+ of 50, .*; lower optimizer\.lr and"
    ) as told:
        train_run(dataset, config_from_mapping(mapping), tmp_path / "part.safetensors")
    step = int(str(told.value).split()[4])
    assert not (tmp_path / "part.safetensors").exists()
    tensors, about = read_training_state(tmp_path / "part.run" / "last.safetensors")
    assert about["course"]["step"] == step - 1
    assert all(value.isfinite().all() for value in tensors.values())


def test_losses_that_are_not_finite_are_null_in_the_checkpoint(dataset, tiny_config, monkeypatch):
    advance = TrainingState.advance

    def with_a_nan(self, *arguments):
        return {**advance(self, *arguments), "noise": torch.tensor(torch.nan), "encoder": torch.tensor(torch.inf)}

    monkeypatch.setattr(TrainingState, "advance", with_a_nan)
    provenance = checkpoint_from_dataset(dataset, tiny_config).provenance
    assert provenance["losses"]["noise"] is None and provenance["losses"]["encoder"] is None
    json.dumps(provenance, allow_nan=False)


def test_the_images_of_a_large_set_fit_into_a_bundle(tiny_checkpoint, tmp_path):
    from grd_edge.build import bundle_from_checkpoint
    from grd_edge.bundle import MAX_JSON_BYTES
    from grd_edge.checkpoint import Checkpoint

    seen = [f"{index:012x}" for index in range(SEEN_IMAGES)]
    large = Checkpoint(tiny_checkpoint.config, tiny_checkpoint.weights, {"seen": seen})
    built = bundle_from_checkpoint(large, tmp_path / "large.grdb")
    assert built.manifest["provenance"]["training"]["seen"] == seen
    assert (tmp_path / "large.grdb" / "bundle.json").stat().st_size < MAX_JSON_BYTES - 100_000


def test_bf16_trains_and_keeps_float32_weights(dataset, tiny_config):
    checkpoint = checkpoint_from_dataset(dataset, with_train(tiny_config, precision="bf16-mixed"))
    assert all(w.dtype in (torch.float32, torch.int64) for w in checkpoint.weights.values())


def test_the_untrained_baseline_is_the_seeds_initialization(tiny_config):
    a, b = untrained_checkpoint(tiny_config), untrained_checkpoint(tiny_config)
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    assert a.provenance["steps"] == 0
