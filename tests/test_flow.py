"""The whole way in a minute: images, training, bundle, thresholds, engine, decisions, proof."""

import json

import pytest
from grd_edge.bench.adding import add

from grd_edge.bundle import read_bundle
from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.data.synthetic import write_synthetic_parts
from grd_edge.demo import Watcher, run_demo
from grd_edge.qat import student_of
from tests.conftest import TINY

PROMISED = {
    "image_auroc",
    "image_auroc_untrained",
    "auroc_gain_ci95",
    "auroc_reference",
    "phi_max_abs_diff",
    "decision_flips",
    "precision",
    "images",
    "p50_ms",
    "p50_ms_reference",
    "speedup",
    "score_speedup",
    "versions",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("out")
    write_synthetic_parts(folder, train=40, good=20, defect=20)
    settings = (
        *TINY,
        "model.base=8",
        "train.steps=150",
        "train.batch=8",
        "optimizer.lr=3e-3",
        "score.decides=phi_local",
    )
    stages = []
    config = load_config(overrides=settings)
    # FP32, which has to decide exactly as PyTorch does; tests/test_precision.py has the others.
    watch = Watcher(stage=stages.append)
    summary = run_demo(dataset_from_folder(folder), config, out, watch, precision="fp32")
    return folder, out, summary, stages


def test_the_summary_keeps_its_promises(run):
    _, out, summary, stages = run
    assert summary.keys() >= PROMISED
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["images"] == 40
    assert len(stages) >= 7


def test_the_summary_becomes_a_record(run, tmp_path):
    _, out, summary, _ = run
    figures = json.loads(add(out / "summary.json", "demo", root=tmp_path).read_text())["figures"]
    assert (figures["auroc"], figures["steps"]) == (summary["image_auroc"], 150)
    assert (figures["precision"], figures["precision_speedup"], figures["layers_kept"]) == ("fp32", 1.0, 0)


def test_engine_and_reference_decide_alike(run):
    summary = run[2]
    assert summary["decision_flips"] == summary["patch_decision_flips"] == 0
    assert summary["phi_max_abs_diff"] <= 1e-4
    assert abs(summary["image_auroc"] - summary["auroc_reference"]) <= 1e-3


def test_spots_are_found_and_training_helped(run):
    summary = run[2]
    assert summary["image_auroc"] >= 0.9
    assert summary["balanced_accuracy"] > 0.5


def test_the_threshold_says_that_ten_images_certify_nothing(run):
    _, out, summary, _ = run
    fit = summary["threshold_fit"]
    assert not fit["certified"]
    assert fit["n"] == 8 and fit["n_needed"] == 99
    bundle = read_bundle(next(out.glob("*.grdb")))
    assert bundle.threshold == summary["threshold"]
    assert bundle.decision["fit"]["engine"]["target"] == "cpu"


def test_the_contact_sheet_is_a_picture(run):
    cv2 = pytest.importorskip("cv2")
    sheet = cv2.imread(str(run[1] / "contact_sheet.png"))
    assert sheet.shape[0] > 400 and sheet.shape[1] > 800
    assert len({tuple(pixel) for pixel in sheet.reshape(-1, 3)[::97]}) > 50  # more than an empty page


def test_a_fine_tuned_demo_ships_the_int8_of_its_student(tmp_path):
    write_synthetic_parts(tmp_path / "parts", train=20, good=4, defect=4)
    config = load_config(overrides=(*TINY, "train.steps=2", "train.batch=4"))
    summary = run_demo(dataset_from_folder(tmp_path / "parts"), config, tmp_path, precision="int8", qat_seconds=1)
    student = student_of(tmp_path / "checkpoint.safetensors", tmp_path / "fine-tuned.safetensors")
    assert student.provenance["qat"]["steps"] >= 1
    assert summary["precision"]["chosen"]["cpu"].startswith("int8")
    assert summary["precision"]["tried"][0]["from"] == "fine-tuned"
