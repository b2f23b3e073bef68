"""GRD-Net 2023: the segmentor has the published cost, learns beside an unchanged generator, and ships with it."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import MODEL
from grd_edge.checkpoint import Checkpoint, read_checkpoint
from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.errors import CheckpointError, ConfigError, StoppedError
from grd_edge.models.cost import multiply_adds
from grd_edge.models.generator import Reconstructor, folded
from grd_edge.models.segmentor import SegmentedReconstructor, segmentor_from_config, smoothed
from grd_edge.qat import checkpoint_from_qat
from grd_edge.train import Watcher, checkpoint_from_dataset, train_run, untrained_checkpoint
from grd_edge.validation import Validator
from tests.conftest import TINY

SEGMENTED = ("method.segmentor=true", "method.segmentor_base=4", "method.segmentor_depth=2")


def config_of(*settings):
    return load_config(overrides=(*TINY, *SEGMENTED, *settings))


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts, need_test=False, need_validation=True)


@pytest.fixture(scope="module")
def trained(dataset):
    return checkpoint_from_dataset(dataset, config_of("train.steps=8", "train.auxiliary_every=3"))


class Fed(nn.Module):
    """The segmentor on a patch that is its own reconstruction."""

    def __init__(self, segmentor):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x):
        return self.segmentor(x, x)


def test_cost_and_parameters_are_those_of_the_method():
    for profile, of_generator, of_segmentor, million in (
        ("grdnet_2023", 8.2, 9.2, (24.34, 7.70)),
        ("grdnet_2023_edge", 0.574, 0.587, (1.54, 0.48)),
    ):
        config = load_config(profile=profile)
        assert (config.model.patch_h, config.geometry.stride_y, config.geometry.stride_x) == (128, 64, 64)
        with torch.device("meta"):
            nets = Reconstructor(config.model), Fed(segmentor_from_config(config))
        counted = [multiply_adds(net, (3, 128, 128)) / 1e9 for net in nets]
        assert counted == pytest.approx([of_generator, of_segmentor], rel=0.02)
        assert [sum(p.numel() for p in net.parameters()) / 1e6 for net in nets] == pytest.approx(million, rel=0.02)


@pytest.mark.parametrize("width_px", [1, 3, 21])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 65), (16, 33)])
def test_smoothing_is_the_mean_of_the_pixels_that_exist(width_px, h, w):
    maps = torch.rand(2, 1, h, w, dtype=torch.float64)
    found, reach = smoothed(maps, width_px), width_px // 2
    assert found.shape == maps.shape
    for y, x in {(0, 0), (h // 2, w // 2), (h - 1, w - 1), (0, w - 1)}:
        window = maps[:, 0, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        assert torch.allclose(found[:, 0, y, x], window.mean((1, 2)), atol=1e-12)
    assert torch.allclose(smoothed(torch.full_like(maps, 0.3), width_px), torch.tensor(0.3).double())


def test_the_segmentor_changes_nothing_of_the_generator(dataset, trained):
    plain = checkpoint_from_dataset(dataset, load_config(overrides=(*TINY, "train.steps=8", "train.auxiliary_every=3")))
    assert all(torch.equal(value, trained.weights[key]) for key, value in plain.weights.items())
    more = trained.weights.keys() - plain.weights.keys()
    assert more and all(key.startswith("segmentor.") for key in more)
    losses = trained.provenance["losses"]
    assert losses.keys() - plain.provenance["losses"].keys() == {"segmentor"}
    assert losses["total"] == pytest.approx(plain.provenance["losses"]["total"] + losses["segmentor"], rel=1e-5)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(trained.reconstructor()(x), plain.reconstructor()(x))
    with pytest.raises(CheckpointError, match=r"lacks weights: segmentor\."):
        Checkpoint(trained.config, plain.weights, {}).network()
    with pytest.raises(CheckpointError, match=r"has foreign weights: segmentor\."):
        Checkpoint(plain.config, trained.weights, {}).network()
    start = untrained_checkpoint(trained.config)
    assert start.weights.keys() == trained.weights.keys()
    assert not torch.equal(start.weights["segmentor.out.weight"], trained.weights["segmentor.out.weight"])


def test_a_run_resumes_bit_for_bit_and_keeps_the_best(dataset, tmp_path):
    config = config_of(
        "train.steps=6",
        "train.save_seconds=0",
        "train.validation=true",
        "train.validate_every=2",
        "train.ema_decay=0.9",
        "train.auxiliary_every=2",
    )
    whole = train_run(dataset, config, tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.run" / "previews" / "0000006.png").exists()

    def stop(progress):
        if progress.step == 3:
            raise StoppedError("stopped")

    path = tmp_path / "part.safetensors"
    with pytest.raises(StoppedError):
        train_run(dataset, config, path, watch=Watcher(training=stop))
    part = train_run(dataset, config, path, resume=True)
    assert all(torch.equal(value, part.weights[key]) for key, value in whole.weights.items())
    assert part.provenance["validation"] == whole.provenance["validation"]
    assert read_checkpoint(path).head == "score_map"


def test_masks_of_interest_reach_the_loss(dataset, tmp_path):
    import cv2

    path = tmp_path / "roi.png"
    first = dataset.train[0].path
    size = cv2.imread(str(first), cv2.IMREAD_UNCHANGED).shape[:2]
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 255
    losses = {}
    for name, values in (("none", None), ("half", mask), ("all", np.full_like(mask, 255))):
        samples = dataset.train
        if values is not None:
            cv2.imwrite(str(path), values)
            samples = tuple(replace(sample, roi=path) for sample in samples)
        run = replace(dataset, train=samples, validation=())
        losses[name] = checkpoint_from_dataset(run, config_of("train.steps=2")).provenance["losses"]
    assert losses["all"] == losses["none"]
    assert losses["half"]["segmentor"] != losses["none"]["segmentor"]


def test_validation_measures_the_score_that_ships(dataset):
    config = config_of("train.batch=16")
    net = SegmentedReconstructor(config).eval()
    torch.nn.init.zeros_(net.segmentor.out.weight)
    blind = Validator(dataset.validation, config)(net)
    assert blind.auroc == 0.5 and blind.contextual > 0  # every map is the same: nothing can be told apart


def test_one_graph_of_generator_and_segmentor_is_built(trained, tmp_path):
    from grd_edge.engine.openvino import OpenVinoEngine

    bundle = bundle_from_checkpoint(trained, tmp_path / "part.grdb")  # holds the native engine against torch
    assert bundle.manifest["head"] == "score_map"
    model, net = bundle.files[MODEL], trained.network()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded(net).modules())
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    engine = OpenVinoEngine(model)
    for batch in (1, 3):
        x = torch.rand(batch, 1, 32, 32)
        with torch.no_grad():
            expected = net(x).numpy()
            score, maps = net.method(x)
        assert expected.shape == (batch, 1, 33, 32)
        assert np.array_equal(expected[:, 0, 0, 0], score.numpy()) and torch.equal(score, maps.amax((1, 2, 3)))
        assert 0 < maps.min() <= maps.max() < 1
        for found in (session.run(None, {"x": x.numpy()})[0], engine.reconstruct(x.numpy())):
            assert np.abs(found - expected).max() <= 1e-5


def test_what_does_not_fit_is_one_sentence(dataset, trained):
    with pytest.raises(ConfigError, match=r"smoothing_px 20 is even, .*; give 19 or 21"):
        config_of("method.smoothing_px=20")
    with pytest.raises(ConfigError, match=r"patch 32x32 is not a multiple of 64 px, which method\.segmentor_depth 6"):
        config_of("method.segmentor_depth=6")
    assert load_config(overrides=(*TINY, "method.segmentor_depth=6")).method.head == "reconstruction"
    with pytest.raises(CheckpointError, match="scores patches itself; build its INT8 form without it"):
        checkpoint_from_qat(trained, dataset, trained.config)
