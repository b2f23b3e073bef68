"""The cloner learns the source's features of good patches; score and map are the loss; the export is the same."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch.nn import functional as F

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.errors import ConfigError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.kdad import Kdad, _terms
from grd_edge.models.method import GoodPatches, PackedScores, method_from_config
from grd_edge.quantize import layers_of

SMALL = [
    "method.backbone.weights=random",
    "method.backbone.layers=[stride4, stride8]",
    "method.width=8",
    "model.patch_h=32",
    "model.patch_w=64",
    "model.channels=1",
]


def good_patches() -> GoodPatches:
    random = torch.Generator().manual_seed(1)
    every = [0.5 + 0.1 * torch.rand(3, 1, 32, 64, generator=random) for _ in range(3)]
    return GoodPatches(lambda: iter(every), lambda step: every[step % 3])


def started(*settings: str) -> Kdad:
    torch.manual_seed(0)
    method = method_from_config(load_config(profile="kdad", overrides=[*SMALL, *settings]))
    method.load_pretrained()
    method.train()
    method.begin(good_patches())
    return method


def test_the_terms_are_the_published_ones():
    source = [torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 7, 2, 2, dtype=torch.float64)]
    clone = [torch.randn_like(each) for each in source]
    values, directions = _terms(list(zip(source, clone, strict=True)))
    for n in range(2):
        pairs = [(s[n].flatten(), c[n].flatten()) for s, c in zip(source, clone, strict=True)]
        assert float(values[n]) == pytest.approx(float(sum(F.mse_loss(s, c) for s, c in pairs)))
        assert float(directions[n]) == pytest.approx(float(sum(1 - F.cosine_similarity(s, c, dim=0) for s, c in pairs)))
    same, none = _terms(list(zip(source, source, strict=True)))
    assert torch.equal(same, torch.zeros_like(same)) and float(none.abs().max()) < 1e-12


def test_it_begins_with_normalized_features_and_terms_of_one_size():
    method, patches = started(), good_patches()
    for source in method._sources(torch.cat(list(patches.every()))):
        assert float(source.mean((0, 2, 3)).abs().max()) < 0.05
        assert float((source.std((0, 2, 3)) - 1).abs().max()) < 0.1
    with torch.no_grad():
        terms = method.loss(patches.drawn(0), torch.Generator(), 0, 10)
    assert float(terms["directions"]) == pytest.approx(float(terms["values"]), rel=0.05)
    assert float(started("method.direction=0.25").direction) == 0.25


def test_steps_lower_the_loss_and_leave_the_source_alone():
    method, patches = started(), good_patches()
    before = {key: value.clone() for key, value in method.source.state_dict().items()}
    (group,) = method.groups()
    adam = torch.optim.Adam(group["params"], lr=3e-3)
    losses = []
    for step in range(40):
        total = sum(method.loss(patches.drawn(step), torch.Generator(), step, 40).values())
        adam.zero_grad()
        total.backward()
        adam.step()
        losses.append(float(total.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    torch.testing.assert_close(method.source.state_dict(), before, rtol=0, atol=0)
    method.eval()
    with torch.no_grad():
        good, _ = method(patches.drawn(0))
        broken = patches.drawn(0).clone()
        broken[:, :, 8:20, 20:40] = 0
        bad, maps = method(broken)
    assert float(bad.min()) > float(good.max())
    assert torch.equal(bad, maps.amax((1, 2, 3)))
    inside = maps[:, :, 8:20, 20:40].mean()
    assert float(inside) > 1.5 * float(maps[:, :, :, 56:].mean())


def test_the_published_score_is_the_loss_of_the_patch():
    method = started("method.score=total").eval()
    x = good_patches().drawn(0)
    with torch.no_grad():
        score, _ = method(x)
        values, directions = _terms(list(zip(method._sources(x), method.cloner(x), strict=True)))
    torch.testing.assert_close(score, values + method.direction * directions)


@pytest.mark.parametrize("score", ["max", "total"])
def test_a_checkpoint_of_it_is_exported_as_it_is(score):
    method = started(f"method.score={score}").eval()
    model = onnx_from_checkpoint(Checkpoint(method.config, method.state_dict(), {}))
    assert any(layer.name.startswith("method.cloner.outputs.1") for layer in layers_of(onnx.load_from_string(model)))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        x = torch.rand(batch, 1, 32, 64)
        with torch.no_grad():
            expected = PackedScores(method)(x).numpy()
        for found in (session.run(None, {"x": x.numpy()})[0], compiled(x.numpy())[0]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


def test_networks_and_sizes_that_cannot_be_cloned_are_refused():
    def refused(*settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            method_from_config(load_config(profile="kdad", overrides=[*SMALL, *settings]))
        return str(error.value)

    assert "has none; choose another backbone" in refused("method.backbone.name=vit_small_patch14_dinov2")
    assert "have strides 8, 4" in refused("method.backbone.layers=[stride8, stride4]")
    assert "is not a multiple of 8 px, the stride of stage3" in refused("model.patch_h=36", "model.stages=[1, 1]")
