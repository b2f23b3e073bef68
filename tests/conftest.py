"""Shared fixtures: a tiny network, its bundle, and synthetic parts."""

from __future__ import annotations

import sys

import numpy as np
import pytest

TINY = (
    "model.base=4",
    "model.stages=[1, 1]",
    "model.patch_h=32",
    "model.patch_w=32",
    "model.latent=8",
    "train.batch=4",
    "train.seconds=null",
    "train.steps=3",
    "augmentation.rotation_deg=5",
)


def run_cli(*arguments) -> int:
    """Exit code of the command line, run in this process."""
    from grd_edge.cli import main

    try:
        sys.argv = ["grd-edge", *map(str, arguments)]
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.fixture(scope="session")
def tiny_config():
    from grd_edge.config import load_config

    return load_config(overrides=TINY)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config):
    """A random network whose BatchNorm statistics are not trivial."""
    import torch

    from grd_edge.checkpoint import Checkpoint
    from grd_edge.models.generator import Reconstructor

    torch.manual_seed(0)
    net = Reconstructor(tiny_config.model).train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(8, 1, 32, 32))
    return Checkpoint(tiny_config, net.state_dict(), {"dataset": "random"})


@pytest.fixture(scope="session")
def tiny_bundle_files(tiny_checkpoint, tmp_path_factory):
    """A complete bundle with thresholds; session-wide, so copy it before changing it."""
    from grd_edge.build import bundle_from_checkpoint
    from grd_edge.bundle import write_decision

    path = tmp_path_factory.mktemp("bundle") / "tiny.grdb"
    bundle_from_checkpoint(tiny_checkpoint, path)
    regions = [{"name": "frame", "threshold": float(np.float32(0.4))}]
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"method": "test"}})
    return path


@pytest.fixture
def tiny_bundle(tiny_bundle_files, tmp_path):
    """A private copy of the bundle."""
    import shutil

    return shutil.copytree(tiny_bundle_files, tmp_path / "tiny.grdb")


def score_map_model(channels: int = 1, *, nan: bool = False, seed: int = 7) -> bytes:
    """A serialized model of head `score_map`, 32x32 px: the map is |a random 3x3 convolution|, the score half its mean.

    Args:
        nan: the map is NaN where a patch is brighter than 0.99.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(0, 0.3, (1, channels, 3, 3)).astype(np.float32)
    held = {"w": weights, "row": np.full((1, 1, 1, 32), 0.5, np.float32), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["moved"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Abs", ["moved"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "row"], ["score"]),
        helper.make_node("Concat", ["score", "map"], ["y"], axis=2),
    ]
    if nan:
        held |= {"white": np.float32(0.99), "zero": np.float32(0)}
        nodes[-1:] = [
            helper.make_node("Sub", ["white", "x"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["map", "nothing"], ["spoiled"]),
            helper.make_node("Concat", ["score", "spoiled"], ["y"], axis=2),
        ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", (channels, 32, 32)), ("y", (1, 33, 32)))
    )
    graph = helper.make_graph(nodes, "score_map", [x], [y], [numpy_helper.from_array(v, k) for k, v in held.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_score_map_bundle(path, *, model: bytes | None = None, head: str = "score_map", decides: str = "phi"):
    """A bundle whose graph scores patches itself, with a threshold of 0.08, at `path`."""
    from grd_edge.bundle import MODEL, write_bundle, write_decision

    engine = {"target": "cpu", "precision": "fp32", "backend": "openvino", "file": MODEL, "format": "onnx"}
    geometry = {"scale_px": None, "patch_h": 32, "patch_w": 32, "stride_y": 12, "stride_x": 12}
    manifest = {
        "name": "tiny-score-map",
        "head": head,
        "geometry": {**geometry, "channels": 1, "padding": "error"},
        "score": {"decides": decides, "window": "gaussian", "local_window_px": 21},
        "precision": {"chosen": {"cpu": "fp32"}, "tried": [], "why": "the only one"},
        "engines": [{**engine, "fingerprint": {}}],
        "provenance": {},
    }
    write_bundle(path, manifest, {MODEL: score_map_model() if model is None else model})
    regions = [{"name": "frame", "threshold": float(np.float32(0.08))}]
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"method": "test"}})
    return path


@pytest.fixture
def tiny_score_map_bundle(tmp_path):
    return write_score_map_bundle(tmp_path / "tiny-score-map.grdb")


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folder of synthetic parts in the MVTec layout."""
    from grd_edge.data.synthetic import write_synthetic_parts

    folder = tmp_path_factory.mktemp("parts")
    write_synthetic_parts(folder)
    return folder


@pytest.fixture(scope="session")
def masked(parts, tmp_path_factory):
    """Synthetic parts whose spots have masks, but for the last two."""
    import shutil

    import cv2

    folder = shutil.copytree(parts, tmp_path_factory.mktemp("masked") / "parts")
    truth = folder / "ground_truth" / "spot"
    truth.mkdir(parents=True)
    for path in sorted((folder / "test" / "spot").iterdir())[:-2]:
        mask = np.uint8(255) * (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) < 30)
        assert mask.any()
        cv2.imwrite(str(truth / f"{path.stem}_mask.png"), mask)
    return folder
