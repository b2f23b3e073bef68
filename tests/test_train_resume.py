"""Training survives: killed at any moment it goes on bit for bit, and nothing broken is ever to be seen."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from grd_edge.checkpoint import read_checkpoint, read_training_state
from grd_edge.run_folder import RunFolder
from tests.conftest import TINY

KILLS = 20
STEPS = 60

# Importing torch takes seconds: one process imports it and forks a child for each command line it is told.
SERVER = """
import os, sys, json
import torch, grd_edge.train, grd_edge.cli, cv2, torch.utils.tensorboard
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        sys.argv = json.loads(line)
        out = os.open(os.environ["CHILD_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        try:
            grd_edge.cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Trainer:
    """Runs `grd-edge train` in children that start at once."""

    def __init__(self, folder):
        self.log = folder / "child.log"
        environment = {**os.environ, "CHILD_LOG": str(self.log), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, stderr=sys.stderr, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *arguments):
        self.log.write_text("")
        self.process.stdin.write(json.dumps(["grd-edge", "train", *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def run(self, *arguments, code=0):
        self.start(*arguments)
        found = self.wait()
        assert found == code, self.log.read_text()
        return self.log.read_text()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("trainer"))
    yield trainer
    trainer.process.stdin.close()
    trainer.process.wait(30)


@pytest.fixture(scope="module")
def arguments(parts):
    extra = (
        "train.save_seconds=0",  # after every step, so that many kills meet a save
        "train.validation=true",
        "train.validate_every=7",
        "train.patience=null",
        "train.ema_decay=0.9",
        "train.auxiliary_every=3",
    )
    settings = [word for setting in (*TINY, *extra) for word in ("--set", setting)]
    return ["--data", parts, *settings, "--steps", STEPS]


def opened(folder, output):
    """Opens everything that is visible; the step of the newest state."""
    step = 0
    for path in (folder / "best.safetensors", output):
        if path.exists():
            read_checkpoint(path).reconstructor()
    if (folder / "last.safetensors").exists():
        tensors, about = read_training_state(folder / "last.safetensors")
        assert all(value.isfinite().all() for value in tensors.values())
        step = about["course"]["step"]
    if (folder / "log.csv").exists():
        with open(folder / "log.csv", newline="") as stream:
            rows = list(csv.reader(stream))
        assert all(len(row) == len(rows[0]) for row in rows)
        assert [int(row[0]) for row in rows[1:]] == list(range(1, len(rows)))
        assert len(rows) - 1 >= step
    for path in (folder / "previews").glob("*.png"):
        assert path.read_bytes()[-8:-4] == b"IEND"
    return step


def equal(a, b):
    a, b = read_checkpoint(a), read_checkpoint(b)
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    assert {**a.provenance, "seconds": 0} == {**b.provenance, "seconds": 0}
    assert a.config == b.config
    return True


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(trainer, arguments, tmp_path):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    began = time.perf_counter()
    trainer.run(*arguments, "-o", whole)
    seconds = time.perf_counter() - began
    assert opened(tmp_path / "whole.run", whole) == STEPS

    rng = random.Random(20261125)
    folder, kills, steps = tmp_path / "broken.run", 0, []
    while kills < KILLS:
        pid = trainer.start(*arguments, "-o", broken, "--resume")
        # Each life gets about two steps beyond its start, so that twenty of them fit into one run.
        reached = time.perf_counter() + 30
        target = min(STEPS - 2, (steps[-1] if steps else 0) + rng.randrange(1, 4))
        while time.perf_counter() < reached and _rows(folder) < target:
            time.sleep(0.001)
        time.sleep(rng.random() * 2 * seconds / STEPS)
        os.kill(pid, signal.SIGKILL)
        if trainer.wait() == -signal.SIGKILL:
            kills += 1
        steps.append(opened(folder, broken))
    assert not broken.exists() or steps[-1] == STEPS
    assert steps == sorted(steps) and steps[-1] > STEPS / 3, steps
    trainer.run(*arguments, "-o", broken, "--resume")
    assert opened(folder, broken) == STEPS
    assert equal(whole, broken)
    assert equal(tmp_path / "whole.run" / "best.safetensors", folder / "best.safetensors")
    tensors = [read_training_state(tmp_path / run / "last.safetensors")[0] for run in ("whole.run", "broken.run")]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    left = {path.name for path in folder.iterdir()}
    known = {
        "last.safetensors",
        "best.safetensors",
        "config.yaml",
        "manifest.json",
        "log.csv",
        "previews",
        "tensorboard",
        "lock",
    }
    assert left == known
    assert len(list((folder / "previews").iterdir())) == 8


def _rows(folder):
    try:
        return (folder / "log.csv").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def finished(trainer, arguments, tmp_path_factory):
    """A short complete run; the path of its checkpoint."""
    output = tmp_path_factory.mktemp("finished") / "part.safetensors"
    trainer.run(*arguments, "--steps", 5, "-o", output)
    return output


def test_a_finished_run_does_nothing_and_gives_its_checkpoint_back(trainer, arguments, finished):
    before = finished.read_bytes()
    assert "complete" in trainer.run(*arguments, "--steps", 5, "-o", finished, "--resume")
    assert finished.read_bytes() == before
    finished.unlink()  # as if it had been killed between its last step and its checkpoint
    trainer.run(*arguments, "--steps", 5, "-o", finished, "--resume")
    assert finished.read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--steps", 6), "its train.steps is 5, now 6"),
        (("--set", "train.seed=1"), "its train.seed is 0, now 1"),
        (("--set", "loss.noise=2"), "its loss.noise is 3.0, now 2.0"),
        (("--precision", "bf16-mixed"), "its train.precision is"),
    ],
)
def test_another_configuration_is_not_resumed(trainer, arguments, finished, extra, words):
    before = (finished.parent / "part.run" / "last.safetensors").read_bytes()
    said = _sentence(trainer.run(*arguments, "--steps", 5, *extra, "-o", finished, "--resume", code=1))
    assert words in said and "cannot be resumed" in said
    assert (finished.parent / "part.run" / "last.safetensors").read_bytes() == before


def test_other_images_are_not_resumed(trainer, arguments, finished, tmp_path):
    from grd_edge.data.synthetic import write_synthetic_parts

    write_synthetic_parts(tmp_path / "others", seed=5)
    changed = ["--data", tmp_path / "others", *arguments[2:], "--steps", 5, "-o", finished]
    assert "its images are others" in _sentence(trainer.run(*changed, "--resume", code=1))


def test_settings_that_change_no_bit_may_change(trainer, arguments, finished):
    extra = ("--set", "train.save_seconds=9", "--set", "data.workers=0", "--set", "train.save_steps=2")
    assert "complete" in trainer.run(*arguments, "--steps", 5, *extra, "-o", finished, "--resume")


def test_a_run_is_not_overwritten_by_accident(trainer, arguments, finished, tmp_path):
    said = _sentence(trainer.run(*arguments, "--steps", 5, "-o", finished, code=1))
    assert "--resume" in said and "--overwrite" in said
    output = tmp_path / "again.safetensors"
    trainer.run(*arguments, "--steps", 2, "-o", output)
    trainer.run(*arguments, "--steps", 3, "-o", output, "--overwrite")
    assert read_checkpoint(output).provenance["steps"] == 3
    assert opened(tmp_path / "again.run", output) == 3
    assert _rows(tmp_path / "again.run") == 3


def test_a_checkpoint_without_a_run_is_not_replaced_by_accident(trainer, arguments, finished, tmp_path):
    output = tmp_path / "imported.safetensors"
    shutil.copy(finished, output)
    for extra in ((), ("--resume",)):
        said = _sentence(trainer.run(*arguments, "--steps", 2, "-o", output, *extra, code=1))
        assert "imported.safetensors is there already" in said and "--overwrite" in said
        assert ("holds nothing to resume" in said) == bool(extra)
        assert output.read_bytes() == finished.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["imported.safetensors"]
    trainer.run(*arguments, "--steps", 2, "-o", output, "--overwrite")
    assert read_checkpoint(output).provenance["steps"] == 2


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(trainer, arguments, tmp_path):
    (tmp_path / "folder").mkdir()
    nothing = ["--data", tmp_path / "no", *arguments[2:]]
    said = _sentence(trainer.run(*nothing, "-o", tmp_path / "folder", code=1))
    assert "folder is a folder" in said and "folder/part.safetensors" in said
    said = _sentence(trainer.run(*nothing, "-o", tmp_path / "x.run", "--overwrite", code=1))
    assert "x.run is the name of a run folder" in said and "x.safetensors" in said
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_run_that_is_removed_in_part_is_not_said_to_be_unchanged(tmp_path, monkeypatch):
    from grd_edge.errors import InputError
    from grd_edge.run_folder import RunFolder

    def refusing(self, missing_ok=False):
        if self.name == "log.csv":
            raise PermissionError(13, "Permission denied", str(self))
        os.unlink(self)

    with RunFolder(tmp_path / "part.run") as folder:
        for name in ("last.safetensors", "best.safetensors", "log.csv"):
            (folder.path / name).write_text("x")
        monkeypatch.setattr(Path, "unlink", refusing)
        with pytest.raises(InputError, match=r"removed in part only \(Permission denied\) and cannot be resumed"):
            folder.clear()
        assert not folder.last.exists()


def test_resume_without_a_run_starts_and_says_so(trainer, arguments, tmp_path):
    said = trainer.run(*arguments, "--steps", 2, "-o", tmp_path / "new.safetensors", "--resume")
    assert "starts from its first step" in said
    assert (tmp_path / "new.safetensors").exists()


def test_two_trainings_do_not_share_a_run_folder(trainer, arguments, tmp_path):
    from grd_edge.errors import InputError
    from grd_edge.run_folder import RunFolder

    with RunFolder(tmp_path / "part.run"):
        said = _sentence(trainer.run(*arguments, "-o", tmp_path / "part.safetensors", "--resume", code=1))
        assert "another training is writing" in said
        with pytest.raises(InputError, match="another training"):
            RunFolder(tmp_path / "part.run")
    with RunFolder(tmp_path / "part.run"):  # free again
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_and_says_how_to_go_on(trainer, arguments, tmp_path, number):
    output, rare = tmp_path / "part.safetensors", ("--set", "train.save_seconds=1000")
    pid = trainer.start(*arguments, "--steps", 2000, *rare, "-o", output)
    limit = time.perf_counter() + 30
    while _rows(tmp_path / "part.run") < 3 and time.perf_counter() < limit:
        time.sleep(0.005)
    os.kill(pid, number)
    assert trainer.wait() == 1
    said = _sentence(trainer.log.read_text())
    assert "stopped after step" in said and "--resume" in said
    assert opened(tmp_path / "part.run", output) == _rows(tmp_path / "part.run") >= 3
    assert not output.exists()


def test_a_time_budget_keeps_its_number_of_steps(trainer, arguments, tmp_path):
    output = tmp_path / "part.safetensors"
    timed = [*arguments[:-2], "--train-seconds", 2, "-o", output]
    pid = trainer.start(*timed)
    limit = time.perf_counter() + 30
    while _rows(tmp_path / "part.run") < 2 and time.perf_counter() < limit:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    trainer.wait()
    planned = read_training_state(tmp_path / "part.run" / "last.safetensors")[1]["course"]["steps"]
    trainer.run(*timed, "--resume")
    assert read_checkpoint(output).provenance["planned_steps"] == planned


def test_a_state_is_streamed_as_safetensors_that_others_read(trainer, finished):
    last = finished.parent / "part.run" / "last.safetensors"
    with safe_open(last, framework="np") as stream:
        names = set(stream.keys())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"generator", "discriminator", "generator_adam", "discriminator_adam", "ema"}


def _sentence(text):
    lines = " ".join(text.split())
    assert "Traceback" not in lines
    assert lines.count("grd-edge: ") == 1, lines
    return lines


def test_no_torch_tensorboard_is_said_and_nothing_else(tmp_path, parts, tiny_config, monkeypatch):
    from grd_edge.data.dataset import dataset_from_folder
    from grd_edge.train import Watcher, train_run

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notes = []
    train_run(dataset_from_folder(parts), tiny_config, tmp_path / "p.safetensors", watch=Watcher(note=notes.append))
    assert len(notes) == 1 and "tensorboard" in notes[0]
    assert not Path(tmp_path / "p.run" / "tensorboard").exists()


def test_what_a_killed_run_left_half_written_goes_with_the_next(tmp_path):
    folder = tmp_path / "part.run"
    (folder / "previews").mkdir(parents=True)
    for name in (".last.safetensors.ab12cd34", ".log.csv.ab12cd34", "previews/.0000115.png.ab12cd34", "previews/1.png"):
        (folder / name).write_bytes(b"half")
    with RunFolder(folder):
        assert {path.name for path in folder.rglob("*")} == {"lock", "previews", "1.png"}
