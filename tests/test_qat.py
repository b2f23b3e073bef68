"""Fine-tuning with fake quantization: it helps, it repeats, and its ranges reach the build."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from grd_edge import search
from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import FINE_TUNED, MODEL, RANGES
from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.config import overlaid_config
from grd_edge.data.dataset import content_ids, dataset_from_folder
from grd_edge.data.frames import grid_from_config, read_frame
from grd_edge.data.images import file_sha256
from grd_edge.errors import CheckpointError, ConfigError, DivergedError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.precision import Accuracy, Bench, Budget, Speed
from grd_edge.qat import (
    checkpoint_from_qat,
    qat_config,
    qat_run,
    ranges_of_checkpoint,
    student_of,
    table_of_checkpoint,
)
from grd_edge.quantize import qdq_from_onnx
from grd_edge.ranges import RangeTable, table_from_json
from grd_edge.score import score_patches_f64
from grd_edge.search import choice_of_checkpoint
from grd_edge.sensitivity import Effect
from grd_edge.train import checkpoint_from_dataset


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts)


@pytest.fixture(scope="module")
def teacher(dataset, tiny_config):
    config = overlaid_config(tiny_config, overrides=["train.steps=60", "train.batch=8", "optimizer.lr=5e-3"])
    return checkpoint_from_dataset(dataset, config)


@pytest.fixture(scope="module")
def model(teacher):
    return onnx_from_checkpoint(teacher)


@pytest.fixture(scope="module")
def short(teacher):
    return qat_config(teacher.config, overrides=["train.steps=3", "train.batch=4"])


@pytest.fixture(scope="module")
def tuned(teacher, dataset, short):
    return checkpoint_from_qat(teacher, dataset, short, teacher_sha256="ab" * 32)


def phi(model, patches):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x_hat = session.run(["x_hat"], {"x": patches})[0]
    return np.array([score_patches_f64(x[None], y[None]).phi[0] for x, y in zip(patches, x_hat, strict=True)])


@pytest.mark.slow
def test_int8_comes_three_times_closer_to_fp32_on_images_it_never_saw(teacher, dataset, model, tuned):
    # Ranges that are 32 times the median of the patches' peaks leave each activation three to four bits.
    ranges = table_of_checkpoint(tuned, onnx_from_checkpoint(tuned)).ranges
    coarse = {name: (32 * low, 32 * high) for name, (low, high) in ranges.items()}
    table = RangeTable("minmax", sha256_hex(model), "", 1, 1, coarse)
    overrides = ["train.steps=120", "train.batch=8", "qat.lr=2e-3", "qat.range_lr=1e-2"]
    result = checkpoint_from_qat(teacher, dataset, qat_config(teacher.config, overrides=overrides), table=table)
    grid = grid_from_config(teacher.config)
    patches = np.concatenate([grid.cut(read_frame(sample, teacher.config)) for sample in dataset.test])[:128]
    expected = phi(model, patches)
    before = np.abs(phi(qdq_from_onnx(model, table, style="openvino"), patches) - expected)
    own = onnx_from_checkpoint(result)
    shipped = qdq_from_onnx(own, table_of_checkpoint(result, own), style="openvino")
    after = np.abs(phi(shipped, patches) - expected)
    assert after.mean() * 3 < before.mean()
    qat = result.provenance["qat"]
    assert qat["after"]["phi_mean"] * 3 < qat["before"]["phi_mean"]


def test_the_same_seed_and_steps_give_the_same_bits(teacher, dataset, short, tuned):
    again = checkpoint_from_qat(teacher, dataset, short)
    assert all(torch.equal(tuned.weights[key], again.weights[key]) for key in tuned.weights)
    assert ranges_of_checkpoint(again) == ranges_of_checkpoint(tuned)
    other = checkpoint_from_qat(teacher, dataset, qat_config(short, overrides=["train.seed=1", "train.steps=3"]))
    assert any(not torch.equal(tuned.weights[key], other.weights[key]) for key in tuned.weights)
    assert any(not torch.equal(tuned.weights[key], teacher.weights[key]) for key in tuned.weights)


def test_a_time_budget_becomes_a_step_count_and_leaves_no_trace(teacher, dataset):
    timed = qat_config(teacher.config, overrides=["train.steps=null", "train.seconds=1.5", "train.batch=4"])
    found = checkpoint_from_qat(teacher, dataset, timed)
    steps = found.provenance["qat"]["steps"]
    counted = qat_config(teacher.config, overrides=[f"train.steps={steps}", "train.batch=4"])
    again = checkpoint_from_qat(teacher, dataset, counted)
    assert all(torch.equal(found.weights[key], again.weights[key]) for key in found.weights)
    assert ranges_of_checkpoint(again) == ranges_of_checkpoint(found)


def test_the_result_is_a_checkpoint_that_says_how_it_was_made(teacher, dataset, tuned, tmp_path):
    write_checkpoint(tmp_path / "part.safetensors", tuned)
    found = read_checkpoint(tmp_path / "part.safetensors")
    found.reconstructor()
    assert found.config.model == teacher.config.model
    assert found.config.train == teacher.config.train  # whose seed splits the images
    qat = found.provenance["qat"]
    assert (qat["teacher_sha256"], qat["steps"], qat["train"]["batch"], qat["style"]) == ("ab" * 32, 3, 4, "openvino")
    assert qat["before"].keys() == qat["after"].keys() == {"phi_mean", "phi_p99"}
    assert found.provenance["seen"] == sorted({*teacher.provenance["seen"], *content_ids(dataset.train)})
    statistics = [key for key in found.weights if key.endswith(("running_mean", "running_var", "center"))]
    assert all(torch.equal(found.weights[key], teacher.weights[key]) for key in statistics)


def test_its_ranges_reach_the_build(tuned, teacher, dataset):
    own = onnx_from_checkpoint(tuned)
    table = table_of_checkpoint(tuned, own)
    assert table == table_from_json(json.loads(table.to_bytes()), "the table")
    assert (table.algorithm, table.model_sha256, table.images) == ("qat", sha256_hex(own), len(dataset.train))
    for style in ("openvino", "onnxruntime", "tensorrt"):
        qdq_from_onnx(own, table, style=style)
    learned = ranges_of_checkpoint(tuned)
    assert "encoder.stem.0" not in learned  # the image has its own grid
    assert all(low <= high for low, high in learned.values())
    # Where a table is there already, learned ranges win, and what only the table knows stays.
    calibrated = RangeTable("phi", sha256_hex(own), "", 9, 9, {**table.ranges, "elsewhere": (0.0, 1.0)}, {"a": "why"})
    calibrated.ranges[next(iter(table.ranges))] = (0.0, 99.0)
    joined = table_of_checkpoint(tuned, own, calibrated)
    assert joined.ranges == {**table.ranges, "elsewhere": (0.0, 1.0)}
    assert (joined.keep, joined.images) == ({"a": "why"}, 9)
    assert table_of_checkpoint(teacher, own) is None and ranges_of_checkpoint(teacher) is None
    with pytest.raises(InputError, match="stale"):
        table_of_checkpoint(tuned, own + b"\0", calibrated)
    spoiled = Checkpoint(tuned.config, tuned.weights, {"qat": {"ranges": {"decoder.out": [1]}}})
    with pytest.raises(CheckpointError, match="damaged"):
        ranges_of_checkpoint(spoiled)


def test_a_bundle_holds_the_teacher_in_fp32_and_the_student_in_int8(teacher, dataset, short, tmp_path):
    paths = tmp_path / "teacher.safetensors", tmp_path / "student.safetensors"
    write_checkpoint(paths[0], teacher)
    qat_run(paths[0], dataset, paths[1], short)
    student = student_of(*paths)

    def choose(model):
        return choice_of_checkpoint(
            teacher, dataset.train, model, MODEL, student=student, request="int8", budget=Budget(1, 1)
        )

    built = bundle_from_checkpoint(teacher, tmp_path / "b.grdb", choose=choose)
    assert built.files[MODEL] == onnx_from_checkpoint(teacher)
    assert built.manifest["precision"]["chosen"]["cpu"].startswith("int8")
    assert built.manifest["precision"]["tried"][0]["from"] == "fine-tuned"
    table = table_from_json(json.loads(built.files[RANGES]), "ranges")
    assert table.algorithm == "qat" and table.model_sha256 == sha256_hex(onnx_from_checkpoint(student))
    with pytest.raises(CheckpointError, match="its FP32 form is no reference; build from the checkpoint that it was"):
        bundle_from_checkpoint(student, tmp_path / "c.grdb")
    with pytest.raises(CheckpointError, match="was not fine-tuned; make such a checkpoint with"):
        student_of(paths[1], paths[0])
    write_checkpoint(paths[0], Checkpoint(teacher.config, teacher.weights, {"dataset": "another"}))
    with pytest.raises(CheckpointError, match="fine-tuned from another checkpoint"):
        student_of(*paths)


@pytest.mark.parametrize(
    ("good", "ships", "lost"),
    [
        (("fine-tuned", 0), ("fine-tuned", 0), ""),
        (("equalized", 0), ("equalized", 0), "outside the budget: 9 of 640 patches flip"),
        (("calibrated", 1), ("calibrated", 1), "outside the budget: 9 of 640 patches flip"),
        (None, None, "outside the budget: 9 of 640 patches flip"),
    ],
)
def test_a_fine_tuning_that_is_outside_the_budget_gives_way_to_calibration(
    teacher, tuned, dataset, model, monkeypatch, good, ships, lost
):
    """Kept layers bring it nearer to its own FP32 form alone, so they are kept in the checkpoint's model."""
    inside = Accuracy(640, 0.95, 0.0, (-0.001, 0.001), 0, 1e-4, 1e-3, 1e-4)
    outside = replace(inside, flips=9, phi_diff_std=1e-2)
    effects = [Effect(name, 0.5, outside) for name in ("encoder.stem.0", "decoder.out", "decoder.up.0")]
    searched = []

    def accuracy(_, candidate, **__):
        kept, source = candidate.details.get("keep", []), candidate.details.get("from")
        nearer = replace(outside, phi_diff_std=5e-3) if source == "calibrated" else outside
        return inside if good and source == good[0] and len(kept) >= good[1] else nearer

    def effects_of(bench, graph, table, **__):
        searched.append(table.algorithm)
        return effects

    monkeypatch.setattr(Bench, "accuracy", accuracy)
    monkeypatch.setattr(Bench, "race", lambda _, raced, base=None: [Speed(8, 10, 30, 3, (2.9, 3.1))] * len(raced))
    monkeypatch.setattr(search, "layer_effects", effects_of)
    choice = choice_of_checkpoint(teacher, dataset.train, model, MODEL, student=tuned)
    tried = choice.precision["tried"]
    won = [(each["from"], len(each["keep"])) for each in tried if not each["lost"]]
    assert won == ([ships] if ships else [])
    assert choice.precision["chosen"] == {"cpu": "int8" if ships else "fp32"}
    own = next(each for each in tried if each.get("from") == "fine-tuned")
    assert own["lost"].startswith(lost) and own["speed"]["speedup"] == 3 and not own["keep"]
    assert searched == ([] if ships and not ships[1] else ["peaks"])  # never in the fine-tuned one
    table = table_from_json(json.loads(choice.files[RANGES]), "ranges")
    fine_tuned = not ships or ships[0] == "fine-tuned"
    assert (table.algorithm == "qat") == fine_tuned == (FINE_TUNED in choice.files)
    assert table.model_sha256 == sha256_hex(choice.files[FINE_TUNED] if fine_tuned else choice.files[MODEL])


def test_fixed_ranges_and_kept_layers_stay(teacher, dataset, short, model):
    start = ranges_of_checkpoint(
        checkpoint_from_qat(teacher, dataset, qat_config(short, overrides=["qat.range_lr=0", "train.steps=1"]))
    )
    longer = qat_config(short, overrides=["qat.range_lr=0", "train.steps=2"])
    result = checkpoint_from_qat(teacher, dataset, longer, keep=["decoder.*"])
    assert ranges_of_checkpoint(result) == {k: v for k, v in start.items() if not k.startswith("decoder.")}
    assert table_of_checkpoint(result, model).keep == {"decoder.*": "kept by the fine-tuning"}


def test_what_cannot_be_used_is_one_sentence(teacher, dataset, short, model):
    with pytest.raises(InputError, match="nothing to fine-tune"):
        checkpoint_from_qat(teacher, dataset, short, keep=["*"])
    with pytest.raises(InputError, match="stale"):
        checkpoint_from_qat(teacher, dataset, short, table=RangeTable("minmax", "0" * 64, "", 1, 1, {}))
    with pytest.raises(InputError, match="has no tensor"):
        checkpoint_from_qat(teacher, dataset, short, table=RangeTable("minmax", sha256_hex(model), "", 1, 1, {}))
    leaking = Checkpoint(teacher.config, teacher.weights, {"seen": content_ids(dataset.calibration)})
    with pytest.raises(InputError, match="was used to make this model"):
        checkpoint_from_qat(leaking, dataset, short)
    with pytest.raises(DivergedError, match=r"^fine-tuning diverged at step \d of 3, .*lower qat.lr"):
        checkpoint_from_qat(teacher, dataset, qat_config(short, overrides=["qat.lr=1e25", "train.steps=3"]))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.base=8", "model.base=8 contradicts the checkpoint, which was trained with 4"),
        ("geometry.scale_px=64", "geometry.scale_px=64 contradicts"),
        ("train.devices=2", "train.devices=2 does not go with fine-tuning"),
        ("train.precision=bf16-mixed", "does not go with fine-tuning"),
        ("qat.lr=0", "qat.lr"),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_refused(tiny_config, setting, words):
    with pytest.raises(ConfigError, match=words) as told:
        qat_config(tiny_config, overrides=[setting])
    assert "\n" not in str(told.value)


def test_outputs_of_others_are_left_alone(teacher, dataset, short, tmp_path):
    source, output = tmp_path / "part.safetensors", tmp_path / "part-int8.safetensors"
    write_checkpoint(source, teacher)
    before = file_sha256(source)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is the checkpoint itself"):
            qat_run(source, dataset, source, short, overwrite=overwrite)
    output.write_bytes(b"old")
    with pytest.raises(InputError, match="--overwrite"):
        qat_run(source, dataset, output, short)
    diverging = qat_config(short, overrides=["qat.lr=1e25", "train.steps=3"])
    with pytest.raises(DivergedError):
        qat_run(source, dataset, output, diverging, overwrite=True)
    assert output.read_bytes() == b"old"
    run = tmp_path / "other.run"
    run.mkdir()
    (run / "last.safetensors").write_bytes(b"state")
    with pytest.raises(InputError, match="result of the training in"):
        qat_run(source, dataset, tmp_path / "other.safetensors", short, overwrite=True)
    assert qat_run(source, dataset, output, short, overwrite=True).provenance["qat"]["teacher_sha256"] == before
    assert file_sha256(source) == before
