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
