"""`train --qat` on the command line."""

import json
import shutil

import pytest

from grd_edge.checkpoint import read_checkpoint
from grd_edge.errors import ConfigError, InputError
from tests.cli.training import ran


def test_a_checkpoint_becomes_one_for_int8(trained, parts, tmp_path):
    output = tmp_path / "int8.safetensors"
    done = ran("--data", parts, "--qat", trained, "-o", output, "--steps", 2, "--json")
    assert json.loads(done.stdout)["steps"] == 2
    assert read_checkpoint(output).provenance["qat"]["ranges"]
    assert ran("--data", parts, "--qat", trained, "-o", output, "--steps", 2, "--overwrite").exit_code == 0
    with pytest.raises(InputError, match="--overwrite"):
        ran("--data", parts, "--qat", trained, "-o", output)


def test_what_contradicts_the_checkpoint_is_refused(trained, parts, tmp_path):
    command = ("--data", parts, "--qat", trained, "-o", tmp_path / "int8.safetensors")
    with pytest.raises(ConfigError, match="contradicts the checkpoint"):
        ran(*command, "--set", "model.latent=4")
    for option in (("--resume",), ("--profile", "grdnet_2023"), ("--devices", 2)):
        done = ran(*command, *option)
        assert done.exit_code == 2 and "does not go with --qat" in " ".join(done.output.replace("│", " ").split())
    done = ran("--data", parts, "-o", tmp_path / "x.safetensors", "--ranges", tmp_path / "ranges.json")
    assert done.exit_code == 2
    small = shutil.copytree(parts, tmp_path / "small")
    cut_images(small)
    with pytest.raises(InputError, match="smaller than"):
        ran("--data", small, "--qat", trained, "-o", tmp_path / "int8.safetensors")


def cut_images(folder):
    """Every image becomes smaller than a patch."""
    import cv2

    for path in folder.rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:16, :16] + len(path.name) % 2)
