"""The training loop on a method that scores patches itself: a small one that uses every step of the contract."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from grd_edge.bundle import read_bundle
from grd_edge.checkpoint import Checkpoint, read_checkpoint
from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.engine.torch import TorchInspector
from grd_edge.errors import CheckpointError, ConfigError, StoppedError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.heads import output_shape, scores_from_maps
from grd_edge.models import method as methods
from grd_edge.models.method import Method, method_from_config
from grd_edge.train import Watcher, checkpoint_from_dataset, train_run
from tests.conftest import TINY, run_cli

NAME = "deepsvdd"  # whose place the small method takes


class Toy(Method):
    """Distance to the mean of a feature, scaled by the largest of good patches."""

    def __init__(self, config):
        super().__init__(config)
        layers = nn.Conv2d(config.model.channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.body = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1))
        self.only_for_training = nn.Linear(8, 1)
        self.register_buffer("center", torch.zeros(8))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("bank", torch.zeros(0, 8))

    def load_pretrained(self):
        self.provenance = {"backbone": {"name": "toy"}}

    def begin(self, patches):
        with torch.no_grad():
            self.center.copy_(torch.cat([self.body(x).mean((2, 3)) for x in patches.every()]).mean(0))

    def groups(self):
        return [{"params": list(self.body.parameters()), "share": 1.0}, {"params": self.only_for_training.parameters()}]

    def loss(self, x, random, step, steps):
        noisy = x + 0.1 * torch.randn(x.shape, generator=random)
        features = self.body(noisy).mean((2, 3))
        return {
            "pull": (features - self.center).square().mean(),
            "head": 0.1 * (self.only_for_training(features) - step / steps).square().mean(),
        }

    def finish(self, patches):
        self.bank = torch.cat([self.body(x).mean((2, 3)) for x in patches.every()])
        self.scale.copy_(torch.cat([self(x)[0] for x in patches.every()]).max())

    def fit_shapes(self, weights):
        self.bank = torch.zeros_like(weights["bank"])

    def prune(self):
        self.only_for_training = None

    def forward(self, x):
        maps = (self.body(x) - self.center[:, None, None]).square().sum(1, keepdim=True)
        return maps.flatten(1).max(1).values, maps


class Bank(Toy):
    """The same without anything to train."""

    def groups(self):
        return []


@pytest.fixture(params=[Toy, Bank])
def toy(request, monkeypatch):
    monkeypatch.setitem(methods.METHODS, NAME, f"{__name__}:{request.param.__name__}")
    return request.param


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts, need_test=False)


def config_of(*overrides):
    return load_config(overrides=(*TINY, f"method.name={NAME}", "train.steps=6", *overrides))


def test_a_method_trains_and_comes_back(toy, dataset, tmp_path):
    checkpoint = train_run(dataset, config_of(), tmp_path / "toy.safetensors")
    again = read_checkpoint(tmp_path / "toy.safetensors")
    assert again.weights.keys() == checkpoint.weights.keys() and "only_for_training.weight" not in again.weights
    assert again.provenance["method"] == NAME and again.provenance["backbone"] == {"name": "toy"}
    assert again.provenance["steps"] == (6 if toy is Toy else 0)
    assert again.weights["center"].abs().sum() > 0 and again.weights["scale"] > 0
    assert len(again.weights["bank"]) == sum(
        len(grid_from_config(config_of()).cut(read_frame(sample, config_of()))) for sample in dataset.train
    )
    assert again.head == "score_map"
    x = torch.rand(3, 1, 32, 32)
    found = again.network()(x).detach().numpy()
    assert found.shape == (3, *output_shape("score_map", 1, 32, 32))
    scores = scores_from_maps(found)
    assert np.array_equal(scores.phi, scores.phi_local) and np.array_equal(scores.heatmap.max((1, 2, 3)), scores.phi)
    with pytest.raises(CheckpointError, match="of method deepsvdd, and this needs a generator's"):
        again.reconstructor()
    lacking = {key: value for key, value in again.weights.items() if key != "center"}
    with pytest.raises(CheckpointError, match="lacks weights: center"):
        Checkpoint(again.config, lacking, {}).network()


def test_its_run_resumes_bit_for_bit(toy, dataset, tmp_path):
    whole = train_run(dataset, config_of("train.save_seconds=0"), tmp_path / "whole.safetensors")

    def stop(progress):
        if progress.step == 3:
            raise StoppedError("stopped")

    path = tmp_path / "part.safetensors"
    if toy is Toy:
        with pytest.raises(StoppedError, match=r"go on with --resume"):
            train_run(dataset, config_of("train.save_seconds=0"), path, watch=Watcher(training=stop))
        assert not path.exists()
    part = train_run(dataset, config_of("train.save_seconds=0"), path, resume=toy is Toy)
    finished = train_run(dataset, config_of("train.save_seconds=0"), path, resume=True)
    for other in (part, finished):
        assert other.provenance["backbone"] == {"name": "toy"}
        assert all(torch.equal(value, other.weights[key]) for key, value in whole.weights.items())


def test_the_export_is_the_network(toy, dataset):
    checkpoint = checkpoint_from_dataset(dataset, config_of())
    model = onnx_from_checkpoint(checkpoint)
    session = onnxruntime.InferenceSession(model)
    assert [each.name for each in session.get_outputs()] == ["scores"]
    frame = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    seen = TorchInspector(checkpoint, threshold=1e-6).inspect(frame, heatmap=True, x_hat=True)
    assert seen.decision == "defective" and np.array_equal(seen.phi, seen.phi_local)
    x = grid_from_config(checkpoint.config).cut(frame[None].astype(np.float32) / np.float32(255))
    assert np.abs(session.run(None, {"x": x})[0] - seen.x_hat).max() <= 2e-5 * max(1, seen.phi.max())
    frame, mask = frame[:32, :32], np.zeros((32, 32), bool)
    mask[3:9, 5:11] = True
    inside = TorchInspector(checkpoint).inspect(frame, roi=mask, heatmap=True)
    assert inside.phi == inside.heatmap[mask].max() and not inside.heatmap[~mask].any()
    whole = TorchInspector(checkpoint).inspect(frame, roi=np.ones((32, 32), bool))
    assert whole.phi == TorchInspector(checkpoint).inspect(frame).phi > inside.phi


def test_what_a_method_does_not_do_is_refused(toy):
    for setting, named in (("train.ema_decay=0.9", "ema_decay"), ("train.validation=true", "validation")):
        with pytest.raises(ConfigError, match=rf"train.{named} is for the generator; method {NAME}"):
            config_of(setting)
    with pytest.raises(ConfigError, match="in one process"):
        config_of("train.devices=2")
    with pytest.raises(ConfigError, match="there is no method 'patchcor'; did you mean 'patchcore'"):
        config_of("method.name=patchcor")
    with pytest.raises(ConfigError, match=r"unknown setting method\.nam; did you mean 'name'"):
        config_of("method.nam=1")
    with pytest.raises(ConfigError, match="'generator' is a generator"):
        method_from_config(load_config(overrides=TINY))


def test_scores_under_a_mask_are_those_inside():
    y = np.arange(2 * 5 * 4, dtype=np.float32).reshape(2, 1, 5, 4)
    y[:, :, 0] = 99
    plain = scores_from_maps(y)
    assert plain.phi.tolist() == [99, 99] and plain.phi_local.tolist() == [19, 39]
    assert np.array_equal(plain.heatmap, y[:, :, 1:])
    roi = np.zeros((2, 1, 4, 4), np.uint8)
    roi[0, 0, 1, 2], roi[1] = 7, 1
    masked = scores_from_maps(y, roi)
    assert masked.phi.tolist() == masked.phi_local.tolist() == [10, 39]
    assert masked.heatmap[0].sum() == 10 and np.array_equal(masked.heatmap[1], y[1, :, 1:])
    y[0, 0, 2, 2] = np.nan
    assert np.isnan(scores_from_maps(y, roi).phi).tolist() == [True, False]
    assert np.isnan(scores_from_maps(y).phi_local).tolist() == [True, False]


def test_the_whole_road(toy, parts, tmp_path, capsys):
    """Trained, built with an INT8 engine and thresholds, and decided as PyTorch decides."""
    checkpoint, bundle = tmp_path / "toy.safetensors", tmp_path / "toy.grdb"
    words = [word for setting in (*TINY, f"method.name={NAME}") for word in ("--set", setting)]
    assert run_cli("train", "--data", parts, "-o", checkpoint, *words) == 0
    assert run_cli("build", "bundle", checkpoint, "-o", bundle, "--data", parts, "--precision", "int8") == 0
    opened = read_bundle(bundle)
    assert opened.manifest["head"] == "score_map" and opened.decision["fit"]["method"] == "good_only"
    capsys.readouterr()
    out = tmp_path / "eval"
    asked = ("--data", parts, "--precision", "fp32", "--against", checkpoint, "-o", out, "--json")
    assert run_cli("eval", bundle, *asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["decision_flips"] == said["patch_decision_flips"] == 0 and said["phi_max_abs_diff"] < 1e-4
    assert "x_hat_max_abs_diff" not in said and "image_auroc_untrained" not in said
    assert (out / "patches.png").stat().st_size > 10_000
    assert run_cli("eval", bundle, "--data", parts, "--against", "torch") == 1
    assert "give the checkpoint that it was built from" in capsys.readouterr().err
