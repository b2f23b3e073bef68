"""Verbs on a benchmark root: a loop over the categories, a table at the end, failures that do not stop the others."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from grd_edge.cli import app
from grd_edge.data.synthetic import write_synthetic_parts
from grd_edge.errors import CheckFailedError, InputError, StoppedError
from tests.conftest import TINY

SETTINGS = [word for setting in TINY for word in ("--set", setting)]


def invoke(*arguments):
    """In this process, so that PyTorch is imported once."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two categories, and a folder that is none."""
    root = tmp_path_factory.mktemp("benchmark")
    for seed, name in enumerate(("bolt", "nut")):
        write_synthetic_parts(root / name, train=10, good=4, defect=3, seed=seed)
    (root / "notes").mkdir()
    return root


@pytest.fixture(scope="module")
def models(root, tmp_path_factory):
    """Checkpoints and bundles of both categories, made by `train` and `build bundle` on the root."""
    out = tmp_path_factory.mktemp("models")
    trained = json.loads(invoke("train", "--data", root, "-o", out, *SETTINGS, "--steps", 2, "--json"))
    assert list(trained["categories"]) == ["bolt", "nut"] and trained["failed"] == {}
    assert trained["categories"]["nut"]["checkpoint"] == str(out / "nut.safetensors")
    text = invoke("build", "bundle", out, "-o", out, "--data", root, "--precision", "fp32")
    assert "bolt.grdb" in text.replace("\n", "") or "bolt" in text
    assert {path.name for path in out.iterdir()} >= {"bolt.safetensors", "nut.safetensors", "bolt.grdb", "nut.grdb"}
    return out


def test_eval_ends_with_a_table_and_the_mean(root, models, tmp_path):
    result = json.loads(invoke("eval", models, "--data", root, "--no-untrained", "-o", tmp_path / "out", "--json"))
    assert list(result["categories"]) == ["bolt", "nut"]
    aurocs = [row["image_auroc"] for row in result["categories"].values()]
    assert result["mean"]["image_auroc"] == pytest.approx(sum(aurocs) / 2)
    for name in ("bolt", "nut"):
        assert (tmp_path / "out" / name / "images.csv").read_text().count("\n") == 1 + 7
        stored = json.loads((tmp_path / "out" / name / "eval.json").read_text())
        assert stored == result["categories"][name]
    text = invoke("eval", models, "--data", root, "--no-untrained")
    assert "mean" in text and "bolt" in text and "nut" in text


def test_every_category_is_compared_with_a_reference(root, models, tmp_path):
    """A backend is the same for all, checkpoints lie in a folder."""
    words = ("eval", models, "--data", root, "--no-untrained", "--json")
    native = json.loads(invoke(*words, "--against", "native", "-o", tmp_path / "out"))
    torch = json.loads(invoke(*words, "--against", models))
    for name in ("bolt", "nut"):
        assert native["categories"][name]["decision_flips_refit"] == native["categories"][name]["phi_max_abs_diff"] == 0
        assert 0 < torch["categories"][name]["phi_max_abs_diff"] < 1e-4
        assert json.loads((tmp_path / "out" / name / "parity.json").read_text())["bundle"] == name
    assert native["mean"]["auroc_delta"] == 0


def test_calibrate(root, models, tmp_path):
    invoke("calibrate", models, "--data", root, "-o", tmp_path / "ranges")
    assert json.loads((tmp_path / "ranges" / "bolt.json").read_text())["ranges"]


def test_infer_inspects_the_test_images_of_each(root, models, tmp_path):
    out = tmp_path / "out"
    lines = [json.loads(line) for line in invoke("infer", models, root, "-o", out, "--json").splitlines()]
    assert len(lines) == 14 + 1
    assert lines[-1]["categories"]["bolt"]["images"] == 7 and lines[-1]["failed"] == {}
    assert (out / "nut" / "results.csv").read_text().count("\n") == 1 + 7


def test_a_failed_category_does_not_stop_the_others(root, models, tmp_path):
    bundles = tmp_path / "bundles"
    shutil.copytree(models / "nut.grdb", bundles / "nut.grdb")
    with pytest.raises(InputError, match=r"^1 of 2 categories failed: bolt: .*bolt\.grdb") as failure:
        invoke("eval", bundles, "--data", root, "--no-untrained", "-o", tmp_path / "out")
    assert failure.value.exit_code == 1
    assert (tmp_path / "out" / "nut" / "eval.json").is_file()
    assert not (tmp_path / "out" / "bolt").exists()


def test_broken_images_fail_their_category_and_keep_its_row(root, models, tmp_path):
    mixed = shutil.copytree(root, tmp_path / "mixed")
    (mixed / "bolt" / "test" / "spot" / "000.png").write_text("no image")
    with pytest.raises(InputError, match=r"1 of 2 categories failed: bolt: 1 of 7 images could not be inspected"):
        invoke("infer", models, mixed, "-o", tmp_path / "out")
    rows = (tmp_path / "out" / "bolt" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 7 and sum(",error," in row for row in rows[1:]) == 1
    assert len((tmp_path / "out" / "nut" / "results.csv").read_text().splitlines()) == 1 + 7


def test_asking_to_stop_ends_the_loop(root, tmp_path, monkeypatch):
    import grd_edge.train

    begun = []

    def stopped(dataset, *_, **__):
        begun.append(dataset.name)
        raise StoppedError("stopped after step 3 of 9")

    monkeypatch.setattr(grd_edge.train, "train_run", stopped)
    with pytest.raises(StoppedError, match=r"^stopped after step 3 of 9$"):
        invoke("train", "--data", root, "-o", tmp_path, *SETTINGS)
    assert begun == ["bolt"]


def test_a_failed_check_keeps_its_exit_code(root, models, tmp_path, monkeypatch):
    import grd_edge.build

    def failing(checkpoint, path, **_):
        raise CheckFailedError("off by 1") if path.stem == "bolt" else InputError("no room")

    monkeypatch.setattr(grd_edge.build, "bundle_from_checkpoint", failing)
    with pytest.raises(InputError, match=r"^2 of 2 categories failed: bolt: off by 1; nut: no room$") as failure:
        invoke("build", "bundle", models, "-o", tmp_path, "--data", root, "--precision", "fp32")
    assert failure.value.exit_code == 3


def test_files_where_folders_are_needed_are_refused(root, models, tmp_path):
    for arguments in (
        ("train", "--data", root, "-o", tmp_path / "one.safetensors"),
        ("eval", models / "bolt.grdb", "--data", root),
        ("infer", models / "bolt.grdb", root),
        ("build", "bundle", models / "bolt.safetensors", "-o", tmp_path / "b", "--data", root),
        ("build", "bundle", models, "-o", tmp_path / "b.grdb", "--data", root),
        ("calibrate", tmp_path / "missing", "--data", root),
    ):
        with pytest.raises(InputError, match="holds the categories bolt, nut, so a folder"):
            invoke(*arguments)
    assert list(tmp_path.iterdir()) == []
