"""Writers of one bundle that are killed, or meet: the bundle is whole at every moment, and nothing is left behind."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from grd_edge import staging as module
from grd_edge.bundle import read_bundle, write_bundle, write_decision
from grd_edge.errors import BundleError, InputError
from grd_edge.runtime import Inspector
from grd_edge.staging import put_in_place, staging

DECISION = {"k": 1, "run_agreement": 0.7, "fit": {}}

# One process that forks a writer per moment, so that numpy is imported once. The writer alternates between two
# models and their thresholds until it is killed.
WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from grd_edge.bundle import read_bundle, write_bundle, write_decision

path, moments, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
bundle, rng = read_bundle(path), random.Random(seed)
manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}

def write(generation):
    mine = {**manifest, "name": f"generation {generation % 2}"}
    write_bundle(path, mine, bundle.files)
    regions = [{"name": f"of {generation % 2}", "threshold": 0.5}]
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})

start = time.perf_counter()
write(0)
once = time.perf_counter() - start
for moment in range(moments):
    child = os.fork()
    if child == 0:
        for generation in range(1000):
            write(generation)
        os._exit(0)
    time.sleep(rng.uniform(0, 2 * once))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    whole = read_bundle(path)
    generation = whole.manifest["name"][-1]
    assert whole.decision is None or whole.decision["regions"][0]["name"] == f"of {generation}", whole.decision
    print(generation, whole.decision is not None, len(os.listdir(path.parent)), flush=True)
"""


def test_a_writer_killed_at_random_moments_leaves_a_whole_bundle(tiny_bundle):
    command = [sys.executable, "-c", WRITER, str(tiny_bundle), "20", "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [line.split() for line in done.stdout.splitlines()]
    assert len(seen) == 20
    assert {line[0] for line in seen} == {"0", "1"}  # the moments fell on both sides of an exchange
    # What a killed writer left is gone after the next write, and the same input gives the same bundle.
    before = read_bundle(tiny_bundle)
    manifest = {key: before.manifest[key] for key in before.manifest if key not in ("schema", "files", "seal")}
    again = write_bundle(tiny_bundle, manifest, before.files)
    assert again.seal == before.seal
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]
    with Inspector(tiny_bundle) as inspector:
        assert len(inspector.inspect(np.zeros((32, 32), np.uint8)).phi) == 1


def test_two_writers_and_two_readers_never_see_a_mix(tiny_bundle):
    """Each writer puts its model and then its thresholds; a refused decision is the only loss there may be."""
    bundle = read_bundle(tiny_bundle)
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
    problems, replaced, seen, stop = [], [], set(), threading.Event()

    def write(me):
        for _ in range(12):
            try:
                mine = write_bundle(tiny_bundle, {**manifest, "name": me}, bundle.files)
                write_decision(tiny_bundle, {"regions": [{"name": "r", "threshold": 0.5}], **DECISION}, of=mine)
            except InputError as error:
                replaced.append(str(error))
            except BaseException as error:
                problems.append(error)

    def read(open_it):
        while not stop.is_set():
            try:
                seen.add(open_it())
            except BaseException as error:
                problems.append(error)

    def native():
        with Inspector(tiny_bundle) as inspector:
            return bool(inspector.info.has_decision)

    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    readers = [threading.Thread(target=read, args=(lambda: read_bundle(tiny_bundle).manifest["name"],))]
    readers.append(threading.Thread(target=read, args=(native,)))
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not problems, problems[:3]
    assert all("replaced by another process" in sentence for sentence in replaced)
    assert seen >= {"a", "b"}
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_thresholds_never_reach_another_model(tiny_bundle):
    fitted_on = read_bundle(tiny_bundle)
    manifest = {key: fitted_on.manifest[key] for key in fitted_on.manifest if key not in ("schema", "files", "seal")}
    write_bundle(tiny_bundle, {**manifest, "name": "another"}, fitted_on.files)
    with pytest.raises(InputError, match="replaced by another process"):
        write_decision(tiny_bundle, {"regions": [{"name": "r", "threshold": 0.5}], **DECISION}, of=fitted_on)
    assert read_bundle(tiny_bundle).decision is None


@pytest.fixture
def without_exchange(monkeypatch):
    """A file system that cannot exchange two names."""
    monkeypatch.setattr(module, "_exchange", lambda a, b: False)


def test_in_two_steps_where_names_cannot_be_exchanged(tiny_bundle, without_exchange):
    bundle = read_bundle(tiny_bundle)
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
    assert write_bundle(tiny_bundle, {**manifest, "name": "new"}, bundle.files).manifest["name"] == "new"
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_what_was_set_aside_by_a_killed_writer_is_put_back(tiny_bundle, without_exchange, monkeypatch):
    """Killed between the two steps: the next writer finds the old bundle, even if it then fails itself."""
    bundle = read_bundle(tiny_bundle)
    child = os.fork()
    if child == 0:
        rename, calls = os.rename, []

        def killed_at_the_second(*names, **options):
            calls.append(names)
            if len(calls) == 2:
                os.kill(os.getpid(), 9)
            rename(*names, **options)

        os.rename = killed_at_the_second
        manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
        write_bundle(tiny_bundle, {**manifest, "name": "new"}, bundle.files)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert not tiny_bundle.exists()
    with pytest.raises(BundleError):
        write_bundle(tiny_bundle, {"name": "broken"}, bundle.files)
    assert read_bundle(tiny_bundle) == bundle
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_only_leftovers_that_are_ours_and_dead_are_removed(tmp_path):
    target = tmp_path / "part.grdb"
    strangers = [".part.grdb.short.tmp", ".part.grdb.abcdefgh.tmp.bak", ".other.grdb.abcdefgh.tmp", "part.grdb.tmp"]
    for name in strangers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_text("x")
    unlocked = tmp_path / ".part.grdb.holidays.tmp"  # the right name, but no lock in it
    unlocked.mkdir()
    (unlocked / "photo.jpg").write_text("x")
    dead = tmp_path / ".part.grdb.deadbeef.tmp"
    (dead / "part.grdb").mkdir(parents=True)
    (dead / "lock").touch()
    link = tmp_path / ".part.grdb.aaaaaaaa.tmp"
    link.symlink_to(strangers[0])
    (tmp_path / ".part.grdb.bbbbbbbb.tmp").mkdir()  # killed before it had a lock
    with staging(target) as alive:
        (alive / "x").write_text("x")
        with staging(target) as other:
            assert alive.is_dir() and other.is_dir() and alive != other
            assert (alive / "x").exists()
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {*strangers, unlocked.name, link.name}


def test_a_folder_that_vanishes_between_is_tried_again(tmp_path, monkeypatch):
    target, calls = tmp_path / "t", []
    target.mkdir()
    (target / "old").touch()
    exchange = module._exchange

    def gone_first(a, b):
        if not calls:
            calls.append(1)
            shutil.rmtree(target)
        return exchange(a, b)

    monkeypatch.setattr(module, "_exchange", gone_first)
    with staging(target) as folder:
        (folder / "new").mkdir()
        (folder / "new" / "file").touch()
        put_in_place(folder / "new", target, folder)
    assert [entry.name for entry in target.iterdir()] == ["file"]


def test_no_space_and_no_permission_are_told_of_the_bundle(tiny_bundle, monkeypatch):
    bundle = read_bundle(tiny_bundle)
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
    before = (tiny_bundle / "decision.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: write_bundle(tiny_bundle, manifest, bundle.files),
        lambda: write_decision(tiny_bundle, {"regions": [{"name": "r", "threshold": 0.5}], **DECISION}),
    ):
        with pytest.raises(InputError, match="No space left") as caught:
            write()
        assert str(caught.value).startswith(f"{tiny_bundle} cannot be written")
    assert (tiny_bundle / "decision.json").read_bytes() == before
    assert read_bundle(tiny_bundle) == bundle
    assert [entry.name for entry in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_a_lock_outlives_slow_writers(tmp_path):
    """A writer that takes long is never taken for a dead one."""
    target = tmp_path / "t.grdb"
    entered, leave = threading.Event(), threading.Event()

    def slow():
        with staging(target) as folder:
            (folder / "x").touch()
            entered.set()
            leave.wait(10)
            assert (folder / "x").exists()

    thread = threading.Thread(target=slow)
    thread.start()
    entered.wait(10)
    for _ in range(3):
        with staging(target):
            time.sleep(0.01)
    assert len(list(tmp_path.iterdir())) == 1
    leave.set()
    thread.join()
    assert not list(tmp_path.iterdir())
