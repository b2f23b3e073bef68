"""What the tests of methods that score patches themselves share: tiny patches and a few steps without a data set."""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
import torch

from grd_edge.config import Config, load_config
from grd_edge.export import plain_export
from grd_edge.models.generator import folded
from grd_edge.models.method import GoodPatches, Method, PackedScores, method_from_config
from grd_edge.training_step import generator_of_step
from tests.conftest import TINY


def tiny_config(name: str, *overrides: str) -> Config:
    """Configuration of a method on patches of 32x32 px."""
    return load_config(overrides=(*TINY, f"method.name={name}", *overrides))


def good_batch(config: Config, step: int) -> torch.Tensor:
    """Patches that resemble one another: a ramp with a level and noise of their own."""
    model, random = config.model, generator_of_step(config, step, device="cpu")
    shape = (config.train.batch, model.channels, model.patch_h, model.patch_w)
    ramp = torch.linspace(0.3, 0.6, model.patch_w) + 0.1 * torch.rand((shape[0], 1, 1, 1), generator=random)
    return ramp + 0.02 * torch.randn(shape, generator=random)


def good_patches(config: Config) -> GoodPatches:
    return GoodPatches(
        lambda: (good_batch(config, 1000 + step) for step in range(2)), lambda step: good_batch(config, step)
    )


def begun(config: Config) -> Method:
    """A method before its first step."""
    torch.manual_seed(config.train.seed)
    method = method_from_config(config).train()
    method.load_pretrained()
    method.begin(good_patches(config))
    return method


def losses_of(method: Method, step: int, steps: int) -> dict[str, torch.Tensor]:
    """Losses of a step; their gradients are added to the parameters'."""
    terms = method.loss(
        good_batch(method.config, step), generator_of_step(method.config, step, device="cpu"), step, steps
    )
    sum(terms.values()).backward()
    return terms


def fitted(config: Config, steps: int = 3) -> Method:
    """A method after a few steps, as its checkpoint holds it."""
    method = begun(config)
    adam = torch.optim.Adam(method.groups(), lr=1e-3)
    for step in range(steps):
        adam.zero_grad()
        losses_of(method, step, steps)
        adam.step()
    method.eval()
    with torch.no_grad():
        method.finish(good_patches(config))
    method.prune()
    return method


def assert_engines_agree(method: Method) -> None:
    """ONNX Runtime and OpenVINO yield what torch does, at batch 1 and 3."""
    model = plain_export(folded(PackedScores(method)), method.config.model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shape = method.config.model.channels, method.config.model.patch_h, method.config.model.patch_w
    for n in (1, 3):
        x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            expected = PackedScores(method)(x).numpy()
        assert expected.shape == (n, 1, 1 + shape[1], shape[2]) and np.isfinite(expected).all()
        for found in (session.run(None, {"x": x.numpy()})[0], compiled(x.numpy())[0]):
            assert np.abs(found - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max())
