"""Distillation: a narrower generator follows its teacher, in the loop that every training has."""

import csv

import pytest
import torch

from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.config import load_config, overlaid_config
from grd_edge.data.dataset import content_ids, dataset_from_folder
from grd_edge.data.images import read_image
from grd_edge.distill import CUT_LR, Teacher, read_teacher, student_config
from grd_edge.errors import CheckpointError, ConfigError, StoppedError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.cost import multiply_adds_of_config
from grd_edge.prune import pruned_weights
from grd_edge.train import Watcher, checkpoint_from_dataset, train_run, untrained_checkpoint
from tests.conftest import TINY

WIDE = (*TINY, "model.base=16", "augmentation.rotation_deg=0", "optimizer.lr=5e-3")


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts)


@pytest.fixture(scope="module")
def teacher(dataset):
    config = load_config(overrides=[*WIDE, "train.steps=60"])
    return Teacher(checkpoint_from_dataset(dataset, config), "ab" * 32)


@pytest.fixture(scope="module")
def short(teacher):
    return student_config(teacher.config, share=0.4, overrides=["train.steps=4", "train.seed=5"])


@pytest.fixture(scope="module")
def student(teacher, dataset, short):
    return checkpoint_from_dataset(dataset, short, teacher=teacher)


def distance(student, teacher, dataset):
    """Mean difference of the reconstructions of patches that neither was trained on."""
    images = [read_image(sample.path) for sample in dataset.calibration]
    x = torch.stack([torch.from_numpy(image[:32, :32]) for image in images]).float()[:, None] / 255
    with torch.no_grad():
        return float((student.reconstructor()(x) - teacher.checkpoint.reconstructor()(x)).abs().mean())


def test_a_student_comes_nearer_to_its_teacher(teacher, dataset):
    # After 30 steps the running statistics of BatchNorm are still those of the way there.
    settings = ["train.steps=120", "distill.reconstruction=0"]
    config = student_config(teacher.config, shape=["base=8"], overrides=settings)
    weights = pruned_weights(teacher.checkpoint.reconstructor(), (8, 16))
    assert config.optimizer.lr == CUT_LR
    losses = []
    found = checkpoint_from_dataset(
        dataset, config, teacher=teacher, on_progress=lambda progress: losses.append(progress.losses["distillation"])
    )
    assert sum(losses[-5:]) * 2 < sum(losses[:5])
    assert distance(found, teacher, dataset) < distance(Checkpoint(config, weights, {}), teacher, dataset)


def test_the_result_is_an_ordinary_checkpoint_that_says_how_it_was_made(teacher, dataset, student, short, tmp_path):
    write_checkpoint(tmp_path / "student.safetensors", student)
    found = read_checkpoint(tmp_path / "student.safetensors")
    assert found.config.model.widths == (8, 16)
    onnx_from_checkpoint(found)  # which compares it with the network
    assert found.config.train.seed == teacher.config.train.seed != short.train.seed  # of the split
    distilled = found.provenance["distilled"]
    costs = [multiply_adds_of_config(each.model) for each in (found.config, teacher.config)]
    assert [distilled["multiply_adds"], distilled["teacher_multiply_adds"]] == costs and costs[0] <= 0.4 * costs[1]
    assert (distilled["teacher_sha256"], distilled["start"], distilled["seed"]) == ("ab" * 32, "cut", 5)
    assert found.provenance["seen"] == sorted({*teacher.checkpoint.provenance["seen"], *content_ids(dataset.train)})
    assert found.provenance["losses"].keys() == {"total", "distillation", "reconstruction"}


def test_the_teacher_stays_as_it_is(teacher, dataset, short):
    before = {key: value.clone() for key, value in teacher.checkpoint.weights.items()}
    checkpoint_from_dataset(dataset, short, teacher=teacher)
    assert all(torch.equal(before[key], value) for key, value in teacher.checkpoint.weights.items())


def test_a_stopped_run_goes_on_bit_for_bit(teacher, dataset, short, student, tmp_path):
    output = tmp_path / "student.safetensors"

    def stop(progress):
        if progress.step == 2:
            raise StoppedError("here")

    saving = overlaid_config(short, overrides=["train.save_steps=1"])
    with pytest.raises(StoppedError):
        train_run(dataset, saving, output, watch=Watcher(stop), teacher=teacher)
    for other in (None, Teacher(teacher.checkpoint, "cd" * 32)):
        with pytest.raises(CheckpointError, match="cannot be resumed: its teacher is another checkpoint"):
            train_run(dataset, saving, output, resume=True, teacher=other)
    found = train_run(dataset, saving, output, resume=True, teacher=teacher)
    assert all(torch.equal(found.weights[key], value) for key, value in student.weights.items())
    with open(output.with_suffix(".run") / "log.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["distillation"]) > 0 and float(row["reconstruction"]) > 0 for row in rows)


def test_other_shapes_start_from_random_weights(teacher, dataset):
    settings = ["train.steps=2", "train.ema_decay=0.5"]
    config = student_config(teacher.config, shape=["base=8", "latent=4"], overrides=settings)
    assert config.optimizer.lr == teacher.config.optimizer.lr
    found = checkpoint_from_dataset(dataset, config, teacher=teacher)
    assert found.provenance["distilled"]["start"] == "random"
    asked = student_config(teacher.config, shape=["base=8"], overrides=["distill.start=random"])
    assert asked.optimizer.lr == teacher.config.optimizer.lr


def test_images_that_the_teacher_never_saw_are_told(teacher, dataset, short, tmp_path):
    new = Checkpoint(teacher.config, teacher.checkpoint.weights, {"seen": content_ids(dataset.train[:-2])})
    told = []
    train_run(
        dataset,
        overlaid_config(short, overrides=["train.steps=1"]),
        tmp_path / "student.safetensors",
        watch=Watcher(note=told.append),
        teacher=Teacher(new),
    )
    assert any(text.startswith(f"2 of {len(dataset.train)} training images are none") for text in told)
    assert not list(teacher.notes(dataset))


def test_a_time_budget_becomes_a_step_count(teacher, dataset):
    settings = ["train.steps=null", "train.seconds=2", "train.batch=2"]
    config = student_config(teacher.config, share=0.4, overrides=settings)
    assert checkpoint_from_dataset(dataset, config, teacher=teacher).provenance["steps"] >= 1


@pytest.mark.parametrize(
    ("shape", "overrides", "words"),
    [
        (["base=16"], [], "the student costs .* GMAC per patch and its teacher .*; give a student that costs less"),
        (["base=8", "patch_h=64"], [], r"model.patch_h=64 is not the teacher's, which sees patches with 32"),
        (["base=8", "channels=3"], [], r"model.channels=3 is not the teacher's"),
        (["base=8"], ["geometry.scale_px=64"], r"geometry.scale_px=64 is not the teacher's, .* with None"),
        (["base=8"], ["method.segmentor=true"], "setting method.segmentor=true does not go with a teacher"),
        (["bass=8"], [], "unknown setting model.bass; did you mean 'base'"),
        (["widths=[8]"], [], "give one width for each stage"),
    ],
)
def test_students_that_cannot_be_are_one_sentence(teacher, shape, overrides, words):
    with pytest.raises(ConfigError, match=words) as told:
        student_config(teacher.config, shape=shape, overrides=overrides)
    assert "\n" not in str(told.value)


def test_a_base_replaces_the_widths_of_a_teacher_that_was_pruned_itself(student):
    assert student.config.model.widths
    config = student_config(student.config, shape=["base=4"])
    assert config.model.widths is None and config.model.stage_widths == (4, 8)


def test_what_cannot_teach_is_refused(teacher, tmp_path):
    path = tmp_path / "teacher.safetensors"
    write_checkpoint(path, Checkpoint(teacher.config, teacher.checkpoint.weights, {"qat": {}}))
    with pytest.raises(CheckpointError, match="was fine-tuned for INT8, and its FP32 form is no reference; give the"):
        read_teacher(path)
    other = load_config(overrides=[*TINY, "method.name=deepsvdd"])
    write_checkpoint(path, Checkpoint(other, {}, {}))
    with pytest.raises(CheckpointError, match="is of method deepsvdd, and only a generator can teach"):
        read_teacher(path)
    write_checkpoint(path, Checkpoint(load_config(profile="grdnet_2023"), {}, {}))
    with pytest.raises(CheckpointError, match="scores by its segmentor, and a student follows"):
        read_teacher(path)
    write_checkpoint(path, untrained_checkpoint(teacher.config))
    assert len(read_teacher(path).sha256) == 64
