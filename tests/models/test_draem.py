"""DRAEM: its anomalies, its losses reach every weight, and its graph is the network."""

import cv2
import numpy as np
import pytest
import torch

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.data.textures import TextureImages
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import ConfigError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.cost import multiply_adds
from grd_edge.models.draem import Draem

TINY = ("method.base=4", "method.depth=2", "model.patch_h=32", "model.patch_w=48")


def config_of(*overrides, channels=3):
    return load_config(profile="draem", overrides=(*TINY, f"model.channels={channels}", *overrides))


def random_of(step):
    return torch.Generator().manual_seed(step)


def patches(n=4, channels=3):
    return torch.rand(n, channels, 32, 48, generator=random_of(7))


@pytest.fixture
def folder(tmp_path):
    """Textures in two folders: a colored one of constant 200, a grey one of 40."""
    for name, image in (("a", np.full((50, 20, 3), 200, np.uint8)), ("b", np.full((9, 70), 40, np.uint8))):
        (tmp_path / "textures" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "textures" / name / "0.png"), image)
    return tmp_path / "textures"


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    method = Draem(config_of(channels=1))
    adam = torch.optim.Adam(method.parameters(), lr=1e-3)
    for step in range(3):
        adam.zero_grad()
        sum(method.loss(patches(channels=1), random_of(step), step, 3).values()).backward()
        adam.step()
    return method.eval()


def test_the_published_one_has_the_published_size():
    with torch.device("meta"):
        method = Draem(load_config(profile="draem", overrides=["method.base=128"]))
    # 69.0 M and 28.4 M; the authors' convolutions have biases besides.
    assert sum(p.numel() for p in method.reconstructive.parameters()) / 1e6 == pytest.approx(69.03, abs=0.02)
    assert sum(p.numel() for p in method.discriminative.parameters()) / 1e6 == pytest.approx(28.37, abs=0.02)


def test_the_profile_costs_what_the_docs_say():
    with torch.device("meta"):
        method = Draem(load_config(profile="draem"))
    assert multiply_adds(method, (3, 128, 128)) / 1e9 == pytest.approx(0.79, abs=0.01)


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    method = Draem(config_of("perturbation.probability=1"))
    trained = {id(p) for group in method.groups() for p in group["params"]}
    assert trained == {id(p) for p in method.parameters()}
    terms = method.loss(patches(), random_of(0), 0, 10)
    assert set(terms) == {"l2", "ssim", "focal"}
    sum(terms.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_a_step_is_a_function_of_its_random_numbers():
    torch.manual_seed(0)
    method = Draem(config_of()).eval()
    first, again, other = (method.loss(patches(), random_of(seed), 0, 10) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["focal"] != other["focal"]


@pytest.mark.parametrize("of_folder", [False, True])
def test_anomalies_change_nothing_outside_their_mask(folder, of_folder):
    settings = [f"method.textures={folder}"] if of_folder else []
    x = patches(12)
    noisy, mask, _, beta = Draem(config_of(*settings)).perturbed(x, random_of(3))
    outside = ~mask.bool().expand_as(x)
    assert torch.equal(noisy[outside], x[outside])
    assert 0 < mask.mean() < 1 and (mask.sum((1, 2, 3)) == 0).any()
    assert 0.1 <= beta.min() < 0.5  # the published opacity, not that of the generator


def test_textures_of_a_folder_are_what_anomalies_are_made_of(folder):
    method = Draem(config_of(f"method.textures={folder}", "perturbation.probability=1"))
    method.load_pretrained()
    assert method.provenance["textures"] == {"folder": "textures", "images": 2, "found": 2}
    _, mask, texture, _ = method.perturbed(patches(16), random_of(0))
    # Constant images stay constant under flips, inversion and gamma.
    assert all(len(t[m.bool().expand_as(t)].unique()) == 1 for t, m in zip(texture, mask, strict=True))
    method = Draem(config_of())
    method.load_pretrained()
    assert method.provenance["textures"] == {"substitute": "image, flat, perlin, rgb, in place of DTD"}


def test_textures_stay_within_their_limit(folder, monkeypatch):
    for i in range(6):
        cv2.imwrite(str(folder / "b" / f"{i}.png"), np.full((1000, 1000), 40 * i, np.uint8))
    config = config_of("model.patch_h=512", "model.patch_w=1024", channels=1).model
    textures = TextureImages(folder, config, limit_mb=2)
    assert (textures.kept, textures.found) == (4, 7)
    drawn = textures.draw(40, random_of(0))
    assert drawn.shape == (40, 1, 512, 1024)
    # Four of 200, 0, 40, 80, 120, 160, 200.
    assert {round(255 * float(value)) for value in drawn.unique()} == {200, 0, 80, 160}


def test_a_folder_that_cannot_be_used_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("missing", "there is no folder"), ("empty", "holds no image")):
        method = Draem(config_of(f"method.textures={tmp_path / name}"))
        with pytest.raises(InputError, match=message):
            method.load_pretrained()
    (tmp_path / "empty" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        Draem(config_of(f"method.textures={tmp_path / 'empty'}")).load_pretrained()


def test_patches_that_cannot_be_halved_are_refused():
    with pytest.raises(
        ConfigError, match=r"patch 32x48 is not a multiple of 64 px, which method\.depth 5 of draem needs"
    ):
        Draem(config_of("method.depth=5"))
    with pytest.raises(ConfigError, match="a window of 20 px has no center; give 19 or 21"):
        config_of("method.smoothing_px=20")


def test_the_map_is_the_smoothed_softmax_and_the_score_its_largest_value(trained):
    x = patches(channels=1)
    with torch.no_grad():
        score, maps = trained(x)
        logits = trained.discriminative(torch.cat([trained.reconstructive(x), x], dim=1))
    plain = torch.nn.functional.avg_pool2d(logits.softmax(1)[:, 1:], 21, stride=1, padding=10)
    torch.testing.assert_close(maps, plain)
    assert torch.equal(score, maps.flatten(1).max(1).values)


def test_engines_agree_with_torch(trained):
    checkpoint = Checkpoint(trained.config, trained.state_dict(), {})
    model = onnx_from_checkpoint(checkpoint)
    engines = (OnnxRuntimeEngine(model, threads=1), OpenVinoEngine(model, threads=1))
    for n in (1, 3):
        x = patches(n, channels=1)
        with torch.no_grad():
            expected = checkpoint.network()(x).numpy()
        for engine in engines:
            np.testing.assert_allclose(engine.reconstruct(x.numpy()), expected, atol=2e-6)
