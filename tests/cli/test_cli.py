"""The command line as a user meets it: results on stdout, one sentence on stderr, exit codes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from grd_edge.checkpoint import write_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.ranges import check_fresh, read_table

VERBS = (
    "demo",
    "validate-config",
    "train",
    "calibrate",
    "recalibrate",
    "build",
    "eval",
    "infer",
    "stream",
    "bench",
    "compare",
    "inspect",
    "package",
    "doctor",
)
GRD_EDGE = str(Path(sys.executable).parent / "grd-edge")


def run(*arguments, code=0, cwd=None):
    done = subprocess.run([GRD_EDGE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done


def refused(*arguments, code=1):
    """Runs, expects failure, and returns the one sentence."""
    done = run(*arguments, code=code)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("grd-edge: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_help_lists_every_verb():
    text = run("--help").stdout
    for verb in VERBS:
        assert verb in text
        assert run(verb, "--help").stdout
    help_of_build = run("build", "--help").stdout
    assert "onnx" in help_of_build and "int8" in help_of_build


def test_usage_errors_exit_with_2():
    run("infer", code=2)
    run("nonsense", code=2)
    run("train", "--data", "x", "--steps", "0", code=2)


def test_doctor_finds_everything_here():
    report = json.loads(run("doctor", "--json").stdout)
    assert "openvino" in report["backends"]
    assert report["verdict"] == "cpu inference can run"
    assert "scalar" in report["kernel variants"]


def test_validate_config(tmp_path):
    assert json.loads(run("validate-config", "--json").stdout)["model"]["base"] == 16
    path = tmp_path / "c.yaml"
    path.write_text("train: {bacth: 2}\n", encoding="utf-8")
    assert "did you mean 'batch'" in refused("validate-config", path)


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """Checkpoint and bundle made through the command line alone."""
    from tests.conftest import TINY

    out = tmp_path_factory.mktemp("cli")
    settings = [word for setting in TINY for word in ("--set", setting)]
    result = run("train", "--data", parts, "-o", out / "c.safetensors", *settings, "--steps", 5, "--json")
    assert json.loads(result.stdout)["steps"] == 5
    built = run(
        *("build", "bundle", out / "c.safetensors", "-o", out / "p.grdb", "--data", parts),
        *("--precision", "fp32", "--json"),
    )
    assert json.loads(built.stdout)["threshold"] > 0
    return out


def test_build_onnx_and_calibrate(trained, parts):
    run("build", "onnx", trained / "c.safetensors", "-o", trained / "m.onnx")
    assert (trained / "m.onnx").stat().st_size > 1000
    run("calibrate", trained / "c.safetensors", "--data", parts, "-o", trained / "ranges.json")
    table = read_table(trained / "ranges.json")
    check_fresh(table, sha256_hex((trained / "m.onnx").read_bytes()))
    assert table.recipe == "default" and all(low < high for low, high in table.ranges.values())
    assert table.patches == 5 * 9  # five images of 48 px, patches of 32 px at stride 12: 3 x 3 each
    (trained / "mine.yaml").write_text("algorithm: phi\npatches: 2\nkeep: {decoder.out: a test}")
    command = (
        "calibrate",
        trained / "c.safetensors",
        "--data",
        parts,
        "--recipe",
        trained / "mine.yaml",
        "--images",
        3,
    )
    found = json.loads(run(*command, "-o", trained / "phi.json", "--json").stdout)
    assert (found["algorithm"], found["images"], found["patches"]) == ("phi", 3, 27)
    assert read_table(trained / "phi.json").keep == {"decoder.out": "a test"}


def test_a_bundle_in_int8(trained, parts, tmp_path):
    words = ("build", "bundle", trained / "c.safetensors", "-o", tmp_path / "p.grdb")
    budget = ("--max-flips", "50%", "--max-auroc-drop", 0.5)
    built = json.loads(run(*words, "--data", parts, "--precision", "int8", *budget, "--json").stdout)
    assert built["precision"] == "int8" and built["engines"] == ["cpu-fp32", "cpu-int8"]
    assert "int8 was asked for" in built["why"] and "inside the budget" in built["why"]
    assert "cpu-int8" in run("inspect", tmp_path / "p.grdb").stdout
    evaluated = run("eval", tmp_path / "p.grdb", "--data", parts, "--against", "torch", "--no-untrained", "--json")
    assert json.loads(evaluated.stdout)["precision"] == "int8"
    assert "there is no precision 'int4'; choose auto" in refused(*words, "--data", parts, "--precision", "int4")
    assert "measured on images before it ships" in refused(*words, "--precision", "int8")
    assert "max_flips is 1.5" in refused(*words, "--data", parts, "--max-flips", "150%")
    assert "was not fine-tuned" in refused(*words, "--data", parts, "--qat", trained / "c.safetensors")


def test_the_layers_alone(trained, parts, tmp_path):
    command = ("calibrate", trained / "c.safetensors", "--data", parts, "-o", tmp_path / "r.json")
    shown = run(*command, "--sensitivity", tmp_path / "s.json").stdout
    effects = json.loads((tmp_path / "s.json").read_text())
    assert {"encoder.stem.0", "decoder.out", "latent_down.1"} <= {effect["layer"] for effect in effects}
    assert all(effect["phi_mean_abs_diff"] >= 0 and effect["patches"] > 0 for effect in effects)
    assert "alone" in shown


def test_build_int8(trained, tmp_path):
    from grd_edge.files import sha256_hex
    from grd_edge.quantize import layers_of
    from grd_edge.ranges import RangeTable

    model, ranges, output = tmp_path / "m.onnx", tmp_path / "ranges.json", tmp_path / "int8.onnx"
    run("build", "onnx", trained / "c.safetensors", "-o", model)
    names = {layer.tensor for layer in layers_of(onnx.load(model))} - {"x"}
    table = RangeTable("minmax", sha256_hex(model.read_bytes()), "0" * 64, 1, 1, dict.fromkeys(names, (-4.0, 4.0)))
    ranges.write_bytes(table.to_bytes())
    command = ("--ranges", ranges, "--style", "onnxruntime", "-o", output)
    built = json.loads(
        run("build", "int8", trained / "c.safetensors", *command, "--keep", "decoder.*", "--json").stdout
    )
    assert 0 < built["mean_difference"] <= built["max_difference"] < 1
    assert built["bytes"] == output.stat().st_size
    before = output.read_bytes()
    assert "no layer 'nothing' to keep" in refused("build", "int8", model, *command, "--keep", "nothing")
    ranges.write_bytes(replace(table, model_sha256="0" * 64).to_bytes())
    assert "range table is stale" in refused("build", "int8", model, *command)
    assert output.read_bytes() == before


def test_infer_prints_a_line_per_image(trained, parts, tmp_path):
    folder = parts / "test" / "good"
    lines = run("infer", trained / "p.grdb", folder, folder / "000.png").stdout.splitlines()
    assert len(lines) == 1 + 12 + 1
    rows = [json.loads(line) for line in run("infer", trained / "p.grdb", folder, "--json").stdout.splitlines()]
    assert len(rows) == 12
    assert all(row["decision"] in ("good", "defective") for row in rows)
    assert rows[0]["image"].endswith("000.png")
    frame = tmp_path / "f.npy"
    np.save(frame, np.zeros((48, 48), np.uint8))
    assert json.loads(run("infer", trained / "p.grdb", frame, "--json").stdout)["patches"] == 9


def test_eval_against_torch(trained, parts):
    command = ("eval", trained / "p.grdb", "--data", parts, "--against", trained / "c.safetensors", "--json")
    result = json.loads(run(*command).stdout)
    assert result["decision_flips"] == 0
    assert result["phi_max_abs_diff"] <= 1e-4
    assert result["images"] == 24


def test_recalibrate_changes_thresholds_and_nothing_else(trained, parts, tmp_path):
    bundle = shutil.copytree(trained / "p.grdb", tmp_path / "p.grdb")
    before = (bundle / "bundle.json").read_bytes()
    done = run("recalibrate", bundle, "--good", parts / "test" / "good", "--alpha", 0.2, "--k", 2, "--json")
    fit = json.loads(done.stdout)
    assert fit["certified"] and fit["n"] == 12 and fit["k"] == 2
    assert (bundle / "bundle.json").read_bytes() == before
    done = run("recalibrate", bundle, "--good", parts / "test" / "good", "--alpha", 0.01)
    assert "not certified" in done.stderr and "99" in done.stderr
    shutil.copytree(parts / "test" / "good", tmp_path / "twice")
    shutil.copy(parts / "test" / "good" / "003.png", tmp_path / "twice" / "copy.png")
    done = run("recalibrate", bundle, "--good", tmp_path / "twice", "--json")
    fit = json.loads(done.stdout)
    assert (fit["n"], fit["duplicates"]) == (12, 1) and "seen" not in fit
    assert "1 product has the contents of another" in done.stderr
    refused("eval", bundle, "--data", parts, "--no-untrained")


@pytest.mark.slow
def test_recalibrate_takes_labels_and_regions(trained, parts, tmp_path):
    bundle = shutil.copytree(trained / "p.grdb", tmp_path / "p.grdb")
    fit = json.loads(run("recalibrate", bundle, "--labelled", parts / "test", "--json").stdout)
    assert fit["method"] == "labelled" and fit["good"] == 12 and fit["defective"] == 12
    assert fit["thresholds"] == {"frame": fit["threshold"]}
    regions = tmp_path / "regions.yaml"
    regions.write_text(
        "frame_px: [48, 48]\n"
        "regions:\n"
        "- {name: top, areas: [[0, 0, 24, 48]]}\n"
        "- {name: bottom, areas: [[24, 0, 20, 48], [44, 0, 4, 48]]}\n",
        encoding="utf-8",
    )
    good = ("recalibrate", bundle, "--good", parts / "test" / "good")
    fit = json.loads(run(*good, "--regions", regions, "--alpha", 0.2, "--run-agreement", 0.8, "--json").stdout)
    assert list(fit["thresholds"]) == ["top", "bottom"] and fit["threshold"] is None and fit["run_agreement"] == 0.8
    shown = run("inspect", bundle).stdout
    assert "top: 0." in shown and "y=44 x=0 4x48 px" in shown and "agree at 0.8" in shown and "good_only" in shown
    before = (bundle / "decision.json").read_bytes()
    assert "one region" in refused("recalibrate", bundle, "--labelled", parts / "test")
    regions.write_text("regions: [{nome: top}]\n", encoding="utf-8")
    assert "region 0" in refused(*good, "--regions", regions)
    assert "needs good/" in refused("recalibrate", bundle, "--labelled", parts / "train")
    run("recalibrate", bundle, code=2)
    run(*good, "--labelled", parts / "test", code=2)
    assert (bundle / "decision.json").read_bytes() == before


@pytest.mark.slow
def test_build_seals_the_mask_and_takes_the_regions_of_a_dataset(trained, parts, tmp_path):
    from grd_edge.regions import pgm_from_mask

    data = shutil.copytree(parts, tmp_path / "parts")
    mask = np.zeros((48, 48), np.uint8)
    mask[:, :36] = 255
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(data / "roi.png"), mask)
    (data / "regions.yaml").write_text(
        "frame_px: [48, 48]\nregions: [{name: left, areas: [[0, 0, 48, 24]]}, {name: rest}]\n", encoding="utf-8"
    )
    built = run(
        *("build", "bundle", trained / "c.safetensors", "-o", tmp_path / "r.grdb", "--data", data),
        *("--precision", "fp32", "--json"),
    )
    assert list(json.loads(built.stdout)["thresholds"]) == ["left", "rest"]
    assert (tmp_path / "r.grdb" / "roi.pgm").read_bytes() == pgm_from_mask(mask)
    shown = run("inspect", tmp_path / "r.grdb").stdout
    assert "75.0% of 48x48 px" in shown and "rest: " in shown


def test_inspect_describes_and_verifies(trained, tmp_path):
    assert "cpu-fp32" in run("inspect", trained / "p.grdb").stdout
    bundle = shutil.copytree(trained / "p.grdb", tmp_path / "p.grdb")
    (bundle / "x").write_text("x")
    assert "not listed" in refused("inspect", bundle)


def test_bad_input_is_one_sentence(trained, parts, tmp_path, tiny_checkpoint):
    bundle, checkpoint = trained / "p.grdb", trained / "c.safetensors"
    (tmp_path / "text.png").write_text("x")
    (tmp_path / "empty").mkdir()
    small = tmp_path / "small.npy"
    np.save(small, np.zeros((20, 20), np.uint8))
    assert "there is no bundle at" in refused("infer", tmp_path / "no.grdb", tmp_path)
    assert "text.png" in refused("infer", bundle, tmp_path / "text.png")
    assert "holds no image" in refused("infer", bundle, tmp_path / "empty")
    assert "small.npy" in refused("infer", bundle, small)
    assert "int8" in refused("infer", bundle, parts / "test" / "good", "--precision", "int8")
    assert "there is no folder" in refused("train", "--data", tmp_path / "no")
    assert "no checkpoint" in refused("build", "onnx", tmp_path / "no.safetensors")
    assert ".grdb" in refused("build", "bundle", checkpoint, "-o", tmp_path / "name")
    assert "not a bundle" in refused("build", "bundle", checkpoint, "-o", _photos(tmp_path))
    assert "alpha" in refused("recalibrate", bundle, "--good", parts / "test" / "good", "--alpha", 2)
    assert "no profile" in refused("train", "--data", parts, "--profile", "big")
    other = tmp_path / "other.safetensors"
    write_checkpoint(other, tiny_checkpoint)
    assert "there is no folder" in refused("eval", bundle, "--data", tmp_path / "no", "--against", other)


def _photos(tmp_path):
    folder = tmp_path / "photos.grdb"
    folder.mkdir()
    (folder / "holiday.jpg").write_text("x")
    return folder


TRAINING_STACK = {"torch", "onnx", "onnxruntime", "onnxscript", "lightning_fabric", "safetensors", "yaml"}


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Hides packages from child processes, as if their extra were not installed."""

    def hide(names):
        text = (
            "import sys\n"
            "class Hidden:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.split('.')[0] in {sorted(names)!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Hidden())\n"
        )
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(text, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return hide


def test_the_line_needs_no_training_stack(trained, parts, without):
    without(TRAINING_STACK | {"matplotlib", "elpv_dataset"})
    rows = run("infer", trained / "p.grdb", parts / "test" / "good", "--json").stdout.splitlines()
    assert len(rows) == 12
    assert "cpu-fp32" in run("inspect", trained / "p.grdb").stdout
    assert json.loads(run("doctor", "--json").stdout)["verdict"] == "cpu inference can run"
    assert "train" in run("--help").stdout


def test_a_missing_extra_says_what_to_install(trained, parts, without, tmp_path):
    without(TRAINING_STACK)
    assert "grd-edge[train]" in refused("train", "--data", parts)
    assert "grd-edge[train]" in refused("build", "onnx", trained / "c.safetensors")
    without({"cv2"})
    assert "grd-edge[images]" in refused("infer", trained / "p.grdb", parts / "test" / "good")
    np.save(tmp_path / "f.npy", np.zeros((48, 48), np.uint8))
    run("infer", trained / "p.grdb", tmp_path / "f.npy")
    without({"elpv_dataset"})
    assert "grd-edge[demo]" in refused("train", "--data", "elpv")
