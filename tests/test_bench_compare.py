"""Two commits compared: the rule, the order of the runs, and that nothing of it is left behind."""

import subprocess

import numpy as np
import pytest
from grd_edge.bench import compare
from grd_edge.bench.compare import Comparison, comparisons, main, measured, table
from grd_edge.bench.gate import Run

from grd_edge.errors import InputError

BASE = np.array([1.00, 1.02, 1.01, 1.03, 1.00, 1.02, 1.01])


@pytest.mark.parametrize(
    ("head", "slower"),
    [
        (BASE, False),
        (BASE * 0.8, False),
        (BASE[::-1] * 1.02, False),  # worse, within the margin, and the ranges overlap
        (BASE + 0.031, True),  # ranges apart: even the best is above the worst before
        (BASE + 0.03, False),
        (np.r_[BASE[:6] * 1.06, 0.9], True),  # six of seven
        (np.r_[BASE[:5] * 1.06, 0.9, 0.9], False),  # five
        (np.r_[BASE[:6] * 1.049, 0.9], False),
        (np.r_[1.5, BASE[1:]], False),  # a disturbed run
    ],
)
def test_a_row_got_slower_when_its_ranges_part_or_six_of_seven_pairs_are_worse(head, slower):
    assert Comparison(BASE, head).slower is slower


def test_the_table_tells_what_was_found():
    pairs = [({("g", "a"): 1.0, ("g", "b"): 2.0}, {("g", "a"): 1.2, ("g", "b"): 2.0, ("g", "new"): 1.0})] * 7
    found = comparisons(pairs)
    assert list(found) == [("g", "a"), ("g", "b")]
    lines = table(found).splitlines()
    assert " ".join(lines[1].split()) == "slower: ranges apart 1.200 1 to 1 1.2 to 1.2 7 of 7 g / a"
    assert lines[2].startswith("holds")


def test_a_row_that_is_not_measured_any_more_is_refused():
    with pytest.raises(InputError, match="no row of a product in common"):
        comparisons([({("g", "a"): 1.0}, {("g", "b"): 1.0})] * 7)
    lost_once = [
        ({("g", "a"): 1.0, ("g", "b"): 1.0}, {("g", "a"): 1.0} | ({("g", "b"): 1.0} if i else {})) for i in range(7)
    ]
    with pytest.raises(InputError, match="the row g / b was measured before and is not any more"):
        comparisons(lost_once)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A source tree with a build that takes no time, and three commits: without benchmarks, with, and not building."""
    root = tmp_path / "project"

    def git(*words):
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", root, *names, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(name):
        git("add", "-A")
        git("commit", "-qm", name)
        git("tag", name)

    (root / "grd_edge").mkdir(parents=True)
    (root / "grd_edge" / "__init__.py").write_text("")
    (root / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.25)\nproject(sample LANGUAGES NONE)\n")
    git("init", "-q")
    commit("bare")
    (root / "bench").mkdir()
    (root / "bench" / "bench_b.py").write_text("")
    commit("good")
    (root / "CMakeLists.txt").write_text("message(FATAL_ERROR broken)\n")
    commit("broken")
    git("checkout", "-q", "good")
    monkeypatch.setattr(compare, "ROOT", root)
    yield root
    assert git("worktree", "list").count("\n") == 0  # nothing is left


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("nothing", "there is no commit 'nothing'"),
        ("bare", "'bare' has no benchmarks"),
        ("broken", "does not build"),
    ],
)
def test_commits_that_cannot_be_compared_are_refused_in_one_sentence(project, capsys, base, words):
    assert main([base, "good"]) == 1
    assert words in capsys.readouterr().err


def test_a_tree_with_changes_is_refused(project, capsys):
    (project / "bench" / "bench_b.py").write_text("changed")
    assert main(["good"]) == 1
    assert "bench/bench_b.py has changes that no commit holds" in capsys.readouterr().err


def test_runs_alternate_and_the_work_trees_go_away(project, monkeypatch, capsys):
    sides = []

    def runs(tree, commit, select, options):
        assert (tree / "grd_edge" / "bench" / "bench_b.py").is_file() and (tree / "build").is_dir()
        sides.append(tree.name)
        return {("g", "a"): 1.2 if tree.name == "head" else 1.0}

    monkeypatch.setattr(compare, "measured", runs)
    assert main(["good", "good"]) == 1
    assert sides == ["base", "head", "head", "base"] * 3 + ["base", "head"]
    assert "1 of 1 rows got slower: g / a" in capsys.readouterr().err
    monkeypatch.setattr(compare, "measured", lambda *_: {("g", "a"): 1.0})
    assert main(["good"]) == 0


def test_ctrl_c_leaves_nothing(project, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measured", stopped)
    assert main(["good"]) == 130
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (Run({}, 5), "none matches -k 'x'"),
        (Run({}, 0), "exit code is 0"),
        (Run({"benchmarks": [{}], "machine_info": {"machine": {"commit": "b" * 40}}}, 1), "exit code is 1"),
        (Run({"benchmarks": [{}], "machine_info": {"machine": {"commit": "b" * 40}}}, 0), "ran the code of bbb"),
    ],
)
def test_a_run_that_tells_nothing_of_its_commit_is_refused(tmp_path, monkeypatch, run, words):
    monkeypatch.setattr(compare, "run_benchmarks", lambda *_, **__: run)
    with pytest.raises(InputError, match=words):
        measured(tmp_path, "a" * 40, "x", ())
