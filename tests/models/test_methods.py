"""Every method behind the contract, on the road of all: training loop, checkpoint, export, engines, scores.

What a method does in particular has a file of its own.
"""

from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from grd_edge.calibrate import ranges_from_images
from grd_edge.checkpoint import Checkpoint, read_checkpoint
from grd_edge.config import Config, load_config
from grd_edge.data.dataset import Dataset, dataset_from_folder
from grd_edge.data.frames import read_frame
from grd_edge.data.synthetic import write_synthetic_parts
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.export import check_reconstruction, onnx_from_checkpoint
from grd_edge.graph import forms
from grd_edge.heads import output_shape, scores_from_maps
from grd_edge.method_config import GENERATOR, method_names
from grd_edge.models.method import METHODS, GoodPatches, method_from_config
from grd_edge.quantize import qdq_from_onnx
from grd_edge.recipes import load_recipe
from grd_edge.train import checkpoint_from_dataset, train_run
from grd_edge.training_step import generator_of_step

SIDE_PX = 64
COMMON = (
    "model.channels=1",
    f"model.patch_h={SIDE_PX}",
    f"model.patch_w={SIDE_PX}",
    "geometry.scale_px=null",
    "train.batch=4",
    "train.seconds=null",
    "train.steps=4",
)
SMALL = {
    "draem": ("method.base=4", "method.depth=2"),
    "dsr": ("method.codes=32", "method.code_dim=4", "method.hidden=8", "method.base=2"),
    "supersimplenet": ("method.hidden=16", "method.classifier=8"),
    "generalad": ("method.hidden=32",),
    "patchcore": ("method.bank_mb=0.1",),
    "deepsvdd": ("method.features=8", "train.steps=40", "optimizer.lr=3e-3"),
    "kdad": (),
    "efficientad": ("method.width=0.05", "method.distill_steps=2"),
}
# Those that know good features from others without a training, or after these few steps of it.
KNOWS_SOON = {"patchcore", "deepsvdd", "kdad"}
LOOKED_UP = {"dsr": ("method.discrete.", "method.restrict_")}
TRAINS = set(SMALL) - {"patchcore"}


class Trained(NamedTuple):
    name: str
    config: Config
    dataset: Dataset
    checkpoint: Checkpoint
    stored: Checkpoint


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_synthetic_parts(folder, train=8, good=1, defect=1, h=SIDE_PX, w=SIDE_PX)
    return dataset_from_folder(folder, need_test=False)


@pytest.fixture(scope="module", params=list(METHODS))
def trained(request, dataset, tmp_path_factory):
    name = request.param
    config = load_config(profile=name, overrides=(*COMMON, *SMALL[name]))
    path = tmp_path_factory.mktemp(name) / "method.safetensors"
    checkpoint = train_run(dataset, config, path)
    return Trained(name, config, dataset, checkpoint, read_checkpoint(path))


@pytest.fixture(scope="module")
def patches(trained):
    """Good patches (N, 1, 64, 64) that the method was fitted on: each image is one."""
    return torch.from_numpy(np.stack([read_frame(sample, trained.config) for sample in trained.dataset.train]))


@pytest.fixture(scope="module")
def model(trained):
    return onnx_from_checkpoint(trained.checkpoint)


def scores_of(network, x):
    with torch.no_grad():
        return scores_from_maps(network(x).numpy())


def test_no_method_is_left_out():
    assert list(METHODS) == [name for name in method_names() if name != GENERATOR]
    assert SMALL.keys() == METHODS.keys()


def test_patches_for_statistics_are_spread_over_all():
    """As `every` where there are few; else every second, fourth, … one."""
    patches = GoodPatches(lambda: iter(torch.arange(25.0).view(25, 1, 1, 1).split(4)), lambda step: torch.empty(0))
    for most, numbers in (
        (25, range(25)),
        (24, range(0, 25, 2)),
        (12, range(0, 25, 4)),
        (7, range(0, 25, 4)),
        (1, [0]),
    ):
        found = list(patches.spread(most))
        assert torch.cat(found).flatten().tolist() == list(numbers)
        assert [len(batch) for batch in found[:-1]] == [4] * (len(found) - 1)


def test_a_checkpoint_comes_back_as_it_was(trained, patches):
    assert trained.stored.config == trained.config and trained.stored.config.method.name == trained.name
    assert trained.stored.provenance["method"] == trained.name
    assert trained.stored.provenance["steps"] == (trained.config.train.steps if trained.name in TRAINS else 0)
    assert trained.stored.weights.keys() == trained.checkpoint.weights.keys()
    one, two = (scores_of(each.network(), patches[:3]) for each in (trained.checkpoint, trained.stored))
    assert np.array_equal(one.phi, two.phi) and np.array_equal(one.heatmap, two.heatmap)


def test_scores_and_maps_are_finite_and_of_the_right_shape(trained, patches):
    found = scores_of(trained.stored.network(), patches[:3])
    assert found.phi.shape == (3,) and found.heatmap.shape == (3, 1, SIDE_PX, SIDE_PX)
    assert np.isfinite(found.phi).all() and np.isfinite(found.heatmap).all()
    assert all(np.ptp(each) > 0 for each in found.heatmap)  # no map of one value
    alone = scores_of(trained.stored.network(), patches[1:2])
    assert np.allclose(alone.phi, found.phi[1:2], rtol=1e-4, atol=1e-5)  # no patch sees the others of its batch


def test_engines_yield_what_torch_does(trained, model, patches):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    network = trained.stored.network()
    for x in (patches[:1], torch.rand(3, 1, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))):
        with torch.no_grad():
            expected = network(x).numpy()
        assert expected.shape == (len(x), *output_shape(trained.stored.head, 1, SIDE_PX, SIDE_PX))
        for found in (session.run(["scores"], {"x": x.numpy()})[0], compiled(x.numpy())[0]):
            check_reconstruction(found, expected, x.numpy(), network, trained.name)


def test_int8_is_calibrated_and_runs(trained, model, patches):
    """Codebooks that are looked up, positions that are added and filters of one map stay as they are."""
    x = torch.cat([patches, patches.flip(3)]).numpy()
    table = ranges_from_images(
        model, list(x[:, None]), recipe=load_recipe("default"), images_sha256="0" * 64, score=trained.config.score
    )
    lower = qdq_from_onnx(model, table, style="openvino", form=forms(onnx.load_from_string(model))[0])
    assert lower.count(b"QuantizeLinear") > 4
    found = OnnxRuntimeEngine(lower).reconstruct(x)
    assert found.shape == OnnxRuntimeEngine(model).reconstruct(x).shape and np.isfinite(found).all()


def test_a_defect_scores_higher(trained, patches):
    network, painted = trained.stored.network(), patches.clone()
    side = SIDE_PX // 4
    corner = slice(SIDE_PX // 2, SIDE_PX // 2 + side)
    checks = ((torch.arange(side)[:, None] // 4 + torch.arange(side)[None] // 4) % 2).float()
    painted[:, :, corner, corner] = checks
    good, bad = scores_of(network, patches), scores_of(network, painted)
    assert np.isfinite(bad.phi).all() and not np.array_equal(good.heatmap, bad.heatmap)
    if trained.name in KNOWS_SOON:
        assert bad.phi.mean() > good.phi.max()
        inside = np.zeros((SIDE_PX, SIDE_PX), bool)
        inside[corner, corner] = True
        change = (bad.heatmap - good.heatmap).mean((0, 1))
        assert change[inside].mean() > change[~inside].mean()  # features of 64 px see nearly all of a patch


def test_all_that_is_stored_reaches_the_scores(trained):
    """A checkpoint holds what inference needs: NaN in any of its tensors shows in the output.

    Not behind a lookup, whose index is of some code whatever is looked up.
    """
    network = trained.stored.network()
    x = torch.rand(1, 1, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    idle = []
    for key, value in network.state_dict().items():
        if key.startswith(LOOKED_UP.get(trained.name, "-")):
            continue
        if not value.is_floating_point() or not value.numel():
            continue
        kept = value.clone()
        with torch.no_grad():
            value.fill_(torch.nan)
            if network(x).isfinite().all():
                idle.append(key)
            value.copy_(kept)
    assert not idle


def test_a_run_is_a_function_of_its_seed(trained):
    again = checkpoint_from_dataset(trained.dataset, trained.config)
    assert all(torch.equal(value, again.weights[key]) for key, value in trained.checkpoint.weights.items())


def test_all_that_trains_has_gradients(trained, patches):
    """Over the steps of a run, as some parts have steps of their own; nothing else has any."""
    torch.manual_seed(0)
    method = method_from_config(trained.config).train()
    groups = method.groups()
    assert bool(groups) == (trained.name in TRAINS)
    if not groups:
        return
    method.load_pretrained()
    method.begin(GoodPatches(lambda: iter(patches.split(4)), lambda step: patches[step % 2 :: 2][:4]))
    steps = 10
    for step in range(steps):
        random = generator_of_step(trained.config, step, device="cpu")
        sum(method.loss(patches[step % 2 :: 2][:4], random, step, steps).values()).backward()
    learned = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in method.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert moved == (id(parameter) in learned), name
