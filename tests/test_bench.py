"""The benchmarks of bench/: recorded times become rows exactly, and what is not measured is told."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from grd_edge.bench.limits import copy_limit, fma_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, ReplayClock, Setting

from grd_edge.errors import CheckFailedError

KEYS = {"role", "ratios", "ratios_p50", "bytes", "gflop", "limit", "limit_share"}
ROLES = {"mine": PRODUCT, "theirs": BASELINE, "gone": BASELINE, "copy": LIMIT, "fma": LIMIT}


def race_of(times, *, check=lambda outputs: None, contenders=None):
    """A race whose contenders tell their own times, ms per round; two runs before are for the check and to warm up."""
    told = {row: iter((1e3, 1e3, *each)) for row, each in times.items()}
    work = {"mine": {"bytes": 10, "gflop": 3.0}, "theirs": {"bytes": 10}, "copy": {"bytes": 5}, "fma": {"gflop": 1.0}}
    rows = {
        row: Contender(lambda _, row=row: next(told[row]), own_ms=lambda ms: ms, **work.get(row, {})) for row in times
    }
    return lambda setting, stack: Race(rows | (contenders or {"gone": "it is not installed"}), check)


def setting_at(folder):
    return Setting(short=False, given=None, folder=folder)


def test_the_replay_clock_shows_recorded_times_exactly():
    clock, times_s = ReplayClock(), [0.1, 1e-9, 0.3, 1e6, 0.1 + 0.2]
    clock.load(iter(times_s))
    spent = []
    for _ in times_s:
        start = clock()
        clock.next()
        spent.append(clock() - start)
    assert spent == times_s
    with pytest.raises(StopIteration):
        clock.next()


def test_rows_hold_ratios_and_the_share_of_the_slowest_limit(tmp_path):
    times = {"mine": [4.0, 2.0, 8.0], "theirs": [8.0, 12.0, 8.0], "copy": [0.5, 0.25, 0.5], "fma": [0.6, 0.5, 0.7]}
    group = Group("g", ROLES, race_of(times), rounds=3, warmup=1)
    found = setting_at(tmp_path).raced(group)
    assert found["gone"] == "it is not installed"
    mine = found["mine"]
    assert mine.times_ms.tolist() == times["mine"] and set(mine.extra_info) == KEYS
    assert mine.extra_info["ratios"] == {"theirs": 8 / 2}
    assert mine.extra_info["ratios_p50"] == {"theirs": np.median([8 / 4, 12 / 2, 8 / 8])}
    # 10 bytes take 2 * 0.25 ms and 3 GFLOP 3 * 0.5 ms, of 2 ms.
    assert (mine.extra_info["limit"], mine.extra_info["limit_share"]) == ("fma", 0.75)
    theirs = found["theirs"].extra_info
    assert (theirs["ratios"], theirs["limit"], theirs["limit_share"]) == ({}, "copy", 0.5 / 8)
    assert found["fma"].extra_info == {
        **{"role": "limit", "ratios": {}, "ratios_p50": {}, "bytes": None, "gflop": 1.0},
        **{"limit": None, "limit_share": None},
    }


def test_a_wrong_result_is_raced_once_and_fails_every_row(tmp_path):
    calls = []

    def check(outputs):
        calls.append(sorted(outputs))
        raise CheckFailedError("theirs is wrong")

    times = {row: [1.0] * 3 for row in ("mine", "theirs", "copy", "fma")}
    setting, group = setting_at(tmp_path), Group("g", ROLES, race_of(times, check=check), rounds=3)
    for _ in range(2):
        with pytest.raises(CheckFailedError, match="theirs is wrong"):
            setting.raced(group)
    assert calls == [["mine", "theirs"]]


def test_a_row_cannot_vanish(tmp_path):
    times = {row: [1.0] * 3 for row in ("mine", "theirs", "copy", "fma")}
    group = Group("g", ROLES, race_of(times, contenders={"other": "x"}), rounds=3)
    with pytest.raises(KeyError, match="gone"):
        setting_at(tmp_path).raced(group)


def test_limits_do_the_work_that_they_say():
    copied = copy_limit(1 << 20)
    assert copied.bytes == 1 << 20
    copied.run(None)
    with ExitStack() as stack:
        one, two = (fma_limit(stack, threads=threads) for threads in (1, 2))
        if isinstance(one, str):
            pytest.skip(one)
        one.run(None)
        two.run(None)
        assert two.gflop > 2 * one.gflop  # longer, on each of two threads


def run_bench(tmp_path, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--short", *arguments]
    done = subprocess.run(
        [*command, f"--benchmark-json={tmp_path / 'out.json'}"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, tmp_path / "out.json"


def test_a_short_run_writes_rows_that_gates_can_read(tmp_path):
    done, path = run_bench(tmp_path, "bench/bench_patchify.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout  # the groups of the full run
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["machine_info"]["machine"]["cpu"]
    rows = {row["param"]: row for row in result["benchmarks"]}
    assert {row["group"] for row in rows.values()} == {"patchify 128 uint8"}
    assert rows.keys() >= {"opencv", "torch-eager", "numpy", "memcpy"}
    for name, row in rows.items():
        info = row["extra_info"]
        assert set(info) == KEYS and row["stats"]["rounds"] == 30 and min(row["stats"]["data"]) > 0
        if info["role"] == PRODUCT:
            ratio = rows["opencv"]["stats"]["min"] / row["stats"]["min"]
            assert info["ratios"]["opencv"] == pytest.approx(ratio) and info["limit"] == "memcpy", name


def test_a_run_that_measures_nothing_fails(tmp_path):
    done, path = run_bench(tmp_path, "--benchmark-disable", "bench/bench_patchify.py", "-k", "memcpy")
    assert done.returncode == 1 and "benchmarks are disabled" in done.stdout
    assert not path.exists() or not json.loads(path.read_text(encoding="utf-8") or "{}").get("benchmarks")
