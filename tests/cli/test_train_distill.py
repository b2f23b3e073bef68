"""`train --teacher` on the command line."""

import json

import pytest

from grd_edge.checkpoint import read_checkpoint
from grd_edge.errors import ConfigError
from tests.cli.training import ran


def test_a_student_is_trained_and_its_cost_told(trained, parts, tmp_path):
    output = tmp_path / "student.safetensors"
    command = ("--data", parts, "--teacher", trained, "-o", output, "--steps", 1)
    done = ran(*command, "--student", "widths=[2, 5],latent=8", "--json")
    distilled = json.loads(done.stdout)["distilled"]
    assert 0 < distilled["multiply_adds"] < distilled["teacher_multiply_adds"]
    assert read_checkpoint(output).config.model.stage_widths == (2, 5)
    done = ran(*command, "--student", "base=2", "--student", "discriminator_base=1", "--overwrite")
    assert "GMAC per patch of the teacher's" in " ".join(done.stdout.replace("│", " ").split())
    assert read_checkpoint(output).config.model.base == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--student", "base=2"), "--student goes with --teacher"),
        (("--prune-to", "25%"), "--prune-to goes with --teacher"),
        (("--teacher", "T"), "give one of --student and --prune-to"),
        (("--teacher", "T", "--student", "base=2", "--prune-to", "25%"), "give one of --student and --prune-to"),
        (("--teacher", "T", "--prune-to", "25"), "--prune-to 25 is no share between 0 and 1"),
        (("--teacher", "T", "--prune-to", "much"), "is no share"),
        (("--teacher", "T", "--student", "base=2", "--profile", "grdnet_2023"), "--profile does not go with --teacher"),
        (("--qat", "T", "--teacher", "T", "--student", "base=2"), "--teacher does not go with --qat"),
    ],
)
def test_options_that_do_not_go_together_are_refused(trained, parts, tmp_path, options, words):
    options = [trained if each == "T" else each for each in options]
    done = ran("--data", parts, "-o", tmp_path / "student.safetensors", *options)
    assert done.exit_code == 2 and words in " ".join(done.output.replace("│", " ").split())


def test_a_tiny_teacher_cannot_be_pruned(trained, parts, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be pruned to 25\.0%"):
        ran("--data", parts, "-o", tmp_path / "student.safetensors", "--teacher", trained, "--prune-to", 0.25)
