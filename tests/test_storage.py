"""No space left at every writing step of every verb, and Ctrl-C: one sentence, nothing lost, nothing left behind.

A verb runs again and again while its first, second, third ... writing call fails; then for real, on a small tmpfs that
is filled up to a few pages.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grd_edge.bundle import DECISION, read_bundle
from grd_edge.checkpoint import read_checkpoint, write_checkpoint
from grd_edge.cli import main
from tests.conftest import TINY

GRD_EDGE = str(Path(sys.executable).parent / "grd-edge")
SETTINGS = [word for setting in TINY for word in ("--set", setting)]


@pytest.fixture(scope="module")
def stock(parts, tiny_bundle_files, tiny_checkpoint, tmp_path_factory):
    """What verbs read; on a disk of its own."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(parts, folder / "parts")
    shutil.copytree(tiny_bundle_files, folder / "part.grdb")
    write_checkpoint(folder / "part.safetensors", tiny_checkpoint)
    return folder


def commands(stock: Path, out: Path) -> dict[str, list]:
    data, checkpoint, images = stock / "parts", stock / "part.safetensors", stock / "parts" / "test" / "good"
    infer = ["infer", stock / "part.grdb", images / "000.png", images / "001.png", "-o", out / "infer"]
    return {
        "train": ["train", "--data", data, "-o", out / "new.safetensors", *SETTINGS],
        "train over a run": ["train", "--data", data, "-o", out / "old.safetensors", *SETTINGS, "--overwrite"],
        "build onnx": ["build", "onnx", checkpoint, "-o", out / "old.onnx"],
        "build bundle": ["build", "bundle", checkpoint, "-o", out / "old.grdb"],
        "build bundle with thresholds": [
            *("build", "bundle", checkpoint, "-o", out / "new.grdb", "--data", data, "--precision", "fp32")
        ],
        "recalibrate": ["recalibrate", out / "old.grdb", "--good", images],
        "calibrate": ["calibrate", checkpoint, "--data", data, "-o", out / "old.json"],
        "infer": [*infer, "--format", "csv", "--format", "jsonl"],
        "infer with pictures": [*infer, "--heatmaps"],
        "eval": ["eval", stock / "part.grdb", "--data", data, "-o", out / "eval", "--no-untrained"],
    }


VERBS = tuple(commands(Path(), Path()))


def prepare(stock: Path, out: Path) -> None:
    """What an earlier, successful use of the verbs left in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(exist_ok=True)
    shutil.copytree(stock / "part.grdb", out / "old.grdb")
    shutil.copy(stock / "part.safetensors", out / "old.safetensors")
    for name in ("old.onnx", "old.json", "infer/heatmaps/mine.png", "eval/notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"earlier " + name.encode())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_is_lost(verb: str, before: dict[str, bytes], out: Path) -> None:
    """Earlier files are as they were, new ones are whole, and there are no temporary ones."""
    after = contents(out)
    for name, data in before.items():
        if name.startswith("infer/results"):
            assert after[name].startswith(data)
        else:
            assert after[name] == data, (verb, name)
    assert not [name for name in after if any(part.startswith(".") for part in Path(name).parts)], sorted(after)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    read_bundle(out / "old.grdb")
    for name in after.keys() - before.keys():
        if name.endswith("results.csv") or name.endswith("images.csv") or name.endswith(".jsonl"):
            assert after[name] == b"" or after[name].endswith(b"\n"), name
        elif name.endswith(".safetensors") and "last" not in name:
            read_checkpoint(out / name)
        elif name.endswith(("bundle.json", "decision.json")):
            read_bundle((out / name).parent)
        else:
            assert after[name] or not name.endswith((".json", ".onnx", ".png")), name


def run_main(monkeypatch, capfd, argv) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["grd-edge", *map(str, argv)])
    code = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code or 0
    return code, capfd.readouterr().err


def check_sentence(stderr: str, *words: str) -> None:
    assert "Traceback" not in stderr, stderr[-3000:]
    lines = [line for line in stderr.splitlines() if line.startswith("grd-edge: ")]
    assert lines and all(any(word in line for line in lines) for word in words), stderr[-3000:]


class FullDisk:
    """Lets the n-th writing call below a folder fail with ENOSPC, and every later one that needs space."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.left, self.count = os.path.realpath(folder), -1, 0
        for name in ("write", "fsync", "mkdir", "rename", "replace", "open"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name), name))

    def start(self, n: int) -> None:
        self.left, self.count = n, 0

    def stop(self) -> None:
        self.left = -1

    def _failing(self, call, name: str):
        def maybe(first, *more, **keywords):
            if self.left >= 0 and self._writes(name, first, more, keywords):
                self.count += 1
                if self.count > self.left:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), None if isinstance(first, int) else first)
            return call(first, *more, **keywords)

        return maybe

    def _writes(self, name: str, first, more, keywords) -> bool:
        if name == "open" and not (more and more[0] & os.O_CREAT):
            return False
        if isinstance(first, int):
            try:
                first = os.readlink(f"/proc/self/fd/{first}")
            except OSError:
                return False
        elif "dir_fd" in keywords and keywords["dir_fd"] is not None:
            return True
        return os.path.realpath(os.fsdecode(first)).startswith(self.folder)


@pytest.fixture
def quick_export(stock, monkeypatch):
    """The model that is exported comes from an earlier export: only the writing is looked at."""
    import grd_edge.build
    import grd_edge.export
    from grd_edge.bundle import MODEL

    model = (stock / "part.grdb" / MODEL).read_bytes()
    for module in (grd_edge.build, grd_edge.export):
        monkeypatch.setattr(module, "onnx_from_checkpoint", lambda *_, **__: model)


@pytest.mark.parametrize("verb", VERBS)
def test_no_space_left_at_every_writing_call(verb, stock, tmp_path, monkeypatch, capfd, quick_export):
    out = tmp_path / "out"
    disk = FullDisk(out, monkeypatch)
    argv = commands(stock, out)[verb]
    step = 3 if verb.startswith("train") else 1  # a training takes a second
    for n in range(0, 300, step):
        prepare(stock, out)
        before = contents(out)
        disk.start(n)
        code, stderr = run_main(monkeypatch, capfd, argv)
        disk.stop()
        if code == 0:
            break
        assert code == 1, stderr[-3000:]
        check_sentence(stderr, "No space left on device")
        check_nothing_is_lost(verb, before, out)
    assert code == 0 and n > 0, "the verb never got through, or never wrote"


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (not root, or not allowed)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, free_pages: int) -> None:
    """Takes all space of the disk but for some pages of 4 KiB."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with open(filler, "wb") as stream:
        stream.write(b"x" * max(0, (room.f_bavail - free_pages) * room.f_frsize))


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_is_full_for_real(verb, stock, small_disk, monkeypatch, capfd, quick_export):
    out = small_disk / "out"
    argv = commands(stock, out)[verb]
    failed = 0
    for free_pages in (0, 1, 2, 4, 8, 16, 40, 100, 3000):
        (small_disk / "filler").unlink(missing_ok=True)
        prepare(stock, out)
        before = contents(out)
        fill(small_disk, free_pages)
        code, stderr = run_main(monkeypatch, capfd, argv)
        if code == 0:
            break
        failed += 1
        assert code == 1, stderr[-3000:]
        check_sentence(stderr, "No space left on device")
        check_nothing_is_lost(verb, before, out)
    assert code == 0 and failed > 0


INTERRUPTED = ("build bundle", "recalibrate", "infer", "eval")
RESULTS = {"build bundle": "old.grdb/", "recalibrate": "old.grdb/decision.json"}


def result_of(files: dict[str, bytes], ours: str) -> dict[str, Any]:
    """The files below `ours`, but for when thresholds were fitted, and the seal over it."""
    found: dict[str, Any] = {name: data for name, data in files.items() if name.startswith(ours)}
    for name in [name for name in found if name.endswith(DECISION)]:
        decision = json.loads(found[name])
        found[name] = {**decision, "seal": "", "fit": {**decision["fit"], "fitted": ""}}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("verb", INTERRUPTED)
def test_ctrl_c_is_one_sentence_and_nothing_is_lost(verb, stock, tmp_path):
    """Training: see test_train_resume.py."""
    out = tmp_path / "out"
    argv = list(map(str, [GRD_EDGE, *commands(stock, out)[verb]]))
    started = time.perf_counter()
    prepare(stock, out)
    subprocess.run(argv, check=True, capture_output=True)
    whole, done = time.perf_counter() - started, contents(out)
    stopped = 0
    for share in (0.5, 0.75, 0.95):
        prepare(stock, out)
        before = contents(out)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(share * whole)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
        if process.returncode in (0, -signal.SIGINT):
            continue  # it was quicker, and done or about to end
        stopped += 1
        assert process.returncode == 1, (share, process.returncode, stderr[-3000:])
        check_sentence(stderr, "stopped by Ctrl-C")
        # Its result had perhaps taken its place already: then it is all that an undisturbed run leaves.
        ours, found = RESULTS.get(verb, "-"), contents(out)
        if result_of(found, ours) != result_of(before, ours):
            assert result_of(found, ours) == result_of(done, ours)
            before = {name: found[name] if name.startswith(ours) else data for name, data in before.items()}
        check_nothing_is_lost(verb, before, out)
    assert stopped > 0
