"""EfficientAD-S: published shapes, a teacher of a file or distilled here, maps on one scale, an export of three
networks."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.data.patterns import synthetic_textures
from grd_edge.errors import ConfigError, StoppedError
from grd_edge.export import onnx_from_checkpoint, plain_export
from grd_edge.models import efficientad
from grd_edge.models.cost import multiply_adds
from grd_edge.models.efficientad import (
    NORMALIZING_BATCHES,
    SEQUENTIAL,
    Distillation,
    EfficientAd,
    color_jittered,
    hardest_mean,
    map_quantiles,
)
from grd_edge.models.generator import folded
from grd_edge.models.method import PackedScores, method_from_config
from grd_edge.models.pdn import Autoencoder, PatchDescription, described_size
from grd_edge.quantize import layers_of
from grd_edge.train import Watcher, checkpoint_from_dataset, train_run
from tests.models.scoring import assert_engines_agree, begun, fitted, good_batch, good_patches, losses_of

SETTINGS = (
    "method.name=efficientad",
    "method.width=0.04",
    "method.distill_steps=2",
    "method.backbone.weights=random",
    "model.channels=3",
    "model.patch_h=64",
    "model.patch_w=96",
    "train.batch=3",
    "train.seconds=null",
    "train.steps=4",
)


def config_of(*overrides):
    return load_config(overrides=(*SETTINGS, *overrides))


def test_the_networks_are_the_published_ones():
    with torch.device("meta"):
        teacher = PatchDescription(384, 1.0, False)
        # 128, 256, 256 and 384 kernels of 4, 4, 3 and 4 px, with biases
        assert sum(each.numel() for each in teacher.parameters()) == 2_694_144
        net = Autoencoder(384, 1.0, False, (256, 256))
        assert net.sizes == [(side, side) for side in (3, 8, 15, 32, 63, 127, 56)]
        assert net(torch.empty(1, 3, 256, 256)).shape == (1, 384, 56, 56)
        assert net.encoder(torch.empty(1, 3, 256, 256)).shape == (1, 64, 1, 1)
        assert Autoencoder(384, 1.0, True, (256, 256)).sizes[-1] == (64, 64)


@pytest.mark.parametrize(
    ("width", "side", "gmac"), [(1, 256, 38), (0.25, 256, 2.5), (0.25, 128, 0.54), (0.125, 128, 0.15)]
)
def test_it_costs_what_the_page_says(width, side, gmac):
    settings = (f"method.width={width}", f"model.patch_h={side}", f"model.patch_w={side}")
    with torch.device("meta"):
        method = method_from_config(load_config(profile="efficientad", overrides=settings))
    assert multiply_adds(method, (3, side, side)) / 1e9 == pytest.approx(gmac, rel=0.03)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("patch", [(64, 64), (96, 160), (128, 32)])
def test_both_networks_yield_the_same_grid(padding, patch):
    size = tuple(described_size(extent, padding) for extent in patch)
    if min(size) < 1:
        return
    with torch.device("meta"):
        x = torch.empty(2, 3, *patch)
        assert PatchDescription(8, 0.1, padding)(x).shape == (2, 8, *size)
        assert Autoencoder(8, 0.1, padding, patch)(x).shape == (2, 8, *size)


def test_a_vector_describes_33_px():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 96, 96, requires_grad=True)
    PatchDescription(8, 0.1, False)(x)[0, :, 4, 4].sum().backward()
    seen = x.grad[0].abs().sum(0)
    rows, columns = seen.sum(1).nonzero().flatten(), seen.sum(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == 33
    assert rows[0] == 4 * 4  # of cell 4, and of cell 0 therefore 0: the border is seen, too


def test_the_hardest_distances_count():
    distances = torch.arange(2000.0).view(2, 10, 10, 10)[:, torch.randperm(10)]
    assert hardest_mean(distances, 0.999) == 1998.5
    assert hardest_mean(distances, 0.0) == distances.mean()
    assert hardest_mean(distances[:1, :1], 0.999) == distances[0, 0].max()


def test_quantiles_thin_out_evenly(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand((5, 2, 30, 30), generator=generator) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)] * 8
    exact = map_quantiles(iter(maps))
    assert torch.allclose(exact, torch.tensor([[0.9, 2.7], [0.995, 2.985]]), atol=0.02)
    assert exact.dtype == torch.float32
    monkeypatch.setattr("grd_edge.models.efficientad.KEPT_CELLS", 5000)
    assert torch.allclose(map_quantiles(iter(maps)), exact, atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_textures_and_jitter_are_functions_of_the_generator(channels):
    made = [synthetic_textures(9, channels, 33, 20, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*made) and made[0].shape == (9, channels, 33, 20)
    assert made[0].min() >= 0 and made[0].max() <= 1
    assert (made[0].flatten(2).std(2) > 0.01).all() and (made[0][0] != made[0][1]).any()
    x = 0.25 + made[0] / 2
    jittered = [color_jittered(x, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*jittered) and 0 < (jittered[0] - x).abs().max() <= 0.2 * 0.75 + 1e-6


def test_every_trained_parameter_gets_a_gradient_and_the_teacher_none():
    method = begun(config_of())
    terms = losses_of(method, 0, 10)
    assert terms.keys() == {"student", "penalty", "autoencoder", "student_autoencoder"}
    named = dict(method.named_parameters())
    trained_ones = {id(each) for group in method.groups() for each in group["params"]}
    for name, parameter in named.items():
        if name.startswith("teacher."):
            assert parameter.grad is None and id(parameter) not in trained_ones, name
        else:
            assert id(parameter) in trained_ones and parameter.grad.abs().sum() > 0, name


def test_the_teacher_is_distilled_and_normalized():
    config = config_of()
    method = begun(config)
    about = method.provenance
    assert "distilled from efficientnet_lite0" in about["teacher"]["substitute"]
    assert about["images"] == {"substitute": "synthetic textures, in place of ImageNet"}
    assert 0 < about["teacher"]["loss"] < 3  # 1 is that of a teacher that says nothing
    with torch.no_grad():
        said = torch.cat([method.teacher(method._normalized(x)) for x in good_patches(config).every()])
    assert said.mean((0, 2, 3)).abs().max() < 1e-3
    assert (said.std((0, 2, 3)) - 1).abs().max() < 1e-2
    other = begun(config)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


def test_a_time_budget_bounds_the_distillation(monkeypatch):
    """What it was timed with leaves no trace: the teacher is that of a run of as many steps."""
    asked = []

    def timed(seconds, advance, period):
        asked.append(seconds)
        advance(0), advance(1)
        return 1

    monkeypatch.setattr(efficientad, "steps_within", timed)
    bounded = begun(config_of("method.distill_steps=50", "train.steps=null", "train.seconds=100"))
    assert len(asked) == 1 and 0 < asked[0] < 40
    about, plain = bounded.provenance["teacher"], begun(config_of("method.distill_steps=1"))
    assert about["steps"] == 1 and about["substitute"].endswith(", in 1 steps")
    assert all(
        torch.equal(value, plain.teacher.state_dict()[key]) for key, value in bounded.teacher.state_dict().items()
    )
    assert len(asked) == 1  # steps that are given are not timed


def test_what_a_teacher_is_taught_is_normalized():
    config = config_of("method.distill_steps=1")
    method = method_from_config(config)
    method.load_pretrained()
    lesson = Distillation(method, method._aids["backbone"], good_patches(config))
    assert torch.allclose(lesson.projection @ lesson.projection.T, torch.eye(method.described), atol=1e-5)
    images = [lesson._images(step) for step in range(NORMALIZING_BATCHES)]
    assert all(len(each) == config.train.batch for each in images)
    targets = torch.cat([lesson._target(x) for x in images])
    assert targets.shape[1:] == method.teacher(method._normalized(images[0])).shape[1:]
    assert targets.mean((0, 2, 3)).abs().max() < 1e-3 and (targets.std((0, 2, 3)) - 1).abs().max() < 1e-2
    lesson.start()  # which is why no teacher begins with a loss of 1
    with torch.no_grad():
        said = torch.cat([method.teacher(method._normalized(x)) for x in images])
    assert (said - targets).square().mean() < 0.9


@pytest.mark.parametrize("sequential", [False, True])
def test_a_published_teacher_comes_from_a_file(tmp_path, sequential):
    path = tmp_path / "teacher.safetensors"
    given = method_from_config(config_of()).teacher.state_dict()
    positions = {name: position for position, name in SEQUENTIAL.items()}
    save_file({positions[k.split(".")[0]] + k[5:] if sequential else k: v for k, v in given.items()}, path)
    method = method_from_config(config_of(f"method.teacher={path}"))
    method.load_pretrained()
    assert all(torch.equal(value, method.teacher.state_dict()[key]) for key, value in given.items())
    assert method.provenance["teacher"]["file"] == path.name and "substitute" not in method.provenance["teacher"]
    wide = method_from_config(config_of(f"method.teacher={path}", "method.width=0.5"))
    with pytest.raises(ConfigError, match=r"no teacher of this network: conv1\.bias has shape \[8\], expected \[64\]"):
        wide.load_pretrained()


def test_images_of_a_folder_take_the_place_of_textures(parts):
    folder = parts / "train" / "good"
    method = method_from_config(config_of(f"method.images={folder}", "model.channels=1"))
    method.load_pretrained()
    assert method.provenance["images"]["images"] == len(list(folder.iterdir()))
    drawn = [method.others(4, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert drawn[0].shape == (4, 1, 64, 96) and torch.equal(*drawn)
    missing = method_from_config(config_of("method.images=/nowhere"))
    with pytest.raises(ConfigError.__base__, match="/nowhere"):
        missing.load_pretrained()


@pytest.mark.parametrize("patch", ["model.patch_h=48", "model.patch_h=32"])
def test_a_patch_that_does_not_fit_is_refused(patch):
    with pytest.raises(ConfigError, match="does not fit method efficientad; choose multiples of 32 px of at least 64"):
        method_from_config(config_of(patch))


@pytest.mark.parametrize("overrides", [(), ("method.padding=true", "model.channels=1", "model.patch_h=32")])
def test_the_export_is_the_network(overrides):
    method = fitted(config_of(*overrides))
    low, high = map_quantiles(
        method._maps(x) * method.scale + method.offset for x in good_patches(method.config).every()
    )
    assert torch.allclose(low, torch.zeros(2), atol=1e-4) and torch.allclose(high, torch.full((2,), 0.1), atol=1e-4)
    with torch.no_grad():
        score, maps = method(good_batch(method.config, 7))
    assert maps.shape == (3, 1, method.config.model.patch_h, 96) and torch.equal(score, maps.amax((1, 2, 3)))
    assert_engines_agree(method)
    model = onnx.load_from_string(plain_export(folded(PackedScores(method)), method.config.model))
    layers_of(model)  # what INT8 needs: every weight is stored
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Conv"] == 4 + 4 + 6 + 8
    assert not any(name.startswith(("Random", "Dropout", "Loop", "If", "NonZero")) for name in operators)


def test_it_goes_the_whole_road_and_resumes(parts, tmp_path):
    dataset = dataset_from_folder(parts, need_test=False)
    config = config_of("train.save_seconds=0", "geometry.padding=reflect", "model.channels=1")
    whole = checkpoint_from_dataset(dataset, config)
    assert isinstance(whole.network().method, EfficientAd)
    assert onnx_from_checkpoint(whole)

    def stop(progress):
        if progress.step == 2:
            raise StoppedError("stopped")

    path = tmp_path / "part.safetensors"
    with pytest.raises(StoppedError):
        train_run(dataset, config, path, watch=Watcher(training=stop))
    part = train_run(dataset, config, path, resume=True)
    assert part.provenance["teacher"] == whole.provenance["teacher"]
    assert all(np.array_equal(value, part.weights[key]) for key, value in whole.weights.items())
