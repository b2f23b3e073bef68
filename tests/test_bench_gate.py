"""The gate on the benchmarks: what it measures, what it refuses, and that what it cannot measure fails."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from grd_edge.bench.budgets import budgets_from_file, minima_of_parts, sub_races, verdicts
from grd_edge.bench.gate import ROOT, Run, failure, judged, main, run_benchmarks, table

from grd_edge.errors import ConfigError

MACHINE = {"cpu": "Sample CPU", "cores": 2, "flags": ["avx2", "fma"], "commit": None}
RACE = {"fast": [2e-3, 1e-3, 1.5e-3] * 8, "slow": [4e-3, 5e-3, 4e-3] * 8}
FILE = """
everywhere:
  score:
    fast: {faster_than: {slow: 3}, faster_than_p50: {slow: 2}}
devices:
  here:
    cpu: Sample CPU
    cores: 2
    flags: [fma, avx2]
    budgets:
      score:
        fast: {at_most: {min_ms: 1.1, p90_ms: 2.1, memory_mb: 9}, at_least: {limit_share: 0.5}}
  there:
    cpu: Another CPU
    cores: 2
    flags: [fma, avx2]
    budgets:
      score:
        fast: {at_most: {min_ms: 0.1}}
"""


@pytest.fixture
def read(tmp_path):
    def budgets(text):
        path = tmp_path / "budgets.yaml"
        path.write_text(text, encoding="utf-8")
        return budgets_from_file(path)

    return budgets


def result_of(race=RACE, **extra_info):
    rows = [
        {"group": "score", "param": row, "fullname": f"bench/b.py::test_b[{row}]", "stats": {"data": times}}
        for row, times in race.items()
    ]
    return {
        "machine_info": {"machine": MACHINE},
        "benchmarks": [row | {"extra_info": {"memory_mb": 8, "limit_share": 0.5} | extra_info} for row in rows],
    }


def test_budgets_are_held_to_what_was_measured(read):
    found = verdicts(read(FILE), result_of())
    assert [(str(v.budget), v.budget.limit_text, v.value, v.outcome) for v in found] == [
        ("score / fast: faster_than slow", ">= 3", 4, "holds"),
        ("score / fast: faster_than_p50 slow", ">= 2", pytest.approx(8 / 3), "holds"),
        ("score / fast: min_ms", "<= 1.1", 1, "holds"),
        ("score / fast: p90_ms", "<= 2.1", 2, "holds"),
        ("score / fast: memory_mb", "<= 9", 8, "holds"),
        ("score / fast: limit_share", ">= 0.5", 0.5, "holds"),
        ("score / fast: min_ms", "<= 0.1", None, "not this device"),
    ]
    assert failure([[verdict] for verdict in found], []) is None
    slower = verdicts(read(FILE), result_of(RACE | {"fast": [1.5e-3] * 24}, limit_share=0.49))
    assert [v.outcome for v in slower].count("missed") == 3
    sentence = failure([[verdict] for verdict in slower], [])
    assert sentence.startswith("3 of 7 budgets did not hold: score / fast: faster_than slow 2.667 (>= 3); ")
    assert "\n" not in sentence


@pytest.mark.parametrize("change", [{"cores": 4}, {"cpu": "Sample CPU 2"}, {"flags": ["avx2"]}, {"flags": []}])
def test_a_device_is_known_by_its_whole_fingerprint(read, change):
    result = result_of()
    result["machine_info"]["machine"] = MACHINE | change
    outcomes = [verdict.outcome for verdict in verdicts(read(FILE), result)]
    assert outcomes == ["holds"] * 2 + ["not this device"] * 5


def test_a_row_of_other_instructions_is_left_out_but_something_must_be_gated(read):
    text = "everywhere: {score: {fast: {needs: [avx2, 'amx_tile|%s'], faster_than: {slow: 3}}}}"
    assert verdicts(read(text % "fma"), result_of())[0].outcome == "holds"
    budgets = read(text.replace("|%s", ""))
    found = verdicts(budgets, result_of())
    assert [(v.outcome, v.why) for v in found] == [("not this device", "the CPU has no amx_tile")]
    assert failure([found], []) == "no budget is of this machine, so nothing was gated"


def unmeasured(*, row=None, times=None, drop=None, twice=False, stats=0):
    result = copy.deepcopy(result_of())
    rows = result["benchmarks"]
    if times is not None:
        rows[0]["stats"]["data"] = times
    if row:
        rows[0]["param"] = row
    if drop:
        result["benchmarks"] = [each for each in rows if each["param"] not in drop]
    if twice:
        rows.append(rows[0])
    if stats is None:
        rows[0]["stats"] = None
    return result


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({}, "no benchmark wrote anything"),
        (unmeasured(drop=["fast", "slow"]), "no benchmark wrote the group 'score'"),
        (unmeasured(drop=["fast"]), "no benchmark wrote the row fast (but slow)"),
        (unmeasured(drop=["slow"]), "no benchmark wrote the row slow (but fast)"),
        (unmeasured(row="renamed"), "no benchmark wrote the row fast (but renamed, slow)"),
        (unmeasured(stats=None), "the row fast has no times: benchmarks were disabled"),
        (unmeasured(times=[]), "the row fast has no times"),
        (unmeasured(times=[1e-3] * 19), "fast was timed in 19 rounds, too few to tell; 20 are needed"),
        (unmeasured(times=[1e-3] * 25), "slow has 24 rounds and fast 25: no race"),
        (unmeasured(times=[1e-3] * 23 + [float("nan")]), "a time of fast is no positive number"),
        (unmeasured(times=[1e-3] * 23 + [0.0]), "a time of fast is no positive number"),
        (unmeasured(twice=True), "2 benchmarks wrote the row fast"),
    ],
)
def test_what_cannot_be_measured_fails(read, result, words):
    found = verdicts(read(FILE)[:1], result)
    assert found[0].outcome == "not measured" and words in found[0].why
    assert words in failure([found], [])


@pytest.mark.parametrize(
    ("metric", "told", "words"),
    [
        ("memory_mb", None, "tells no number memory_mb"),
        ("memory_mb", "8", "tells no number"),
        ("memory_mb", float("nan"), "it is nan"),
        ("memory_gb", 8, "tells no number memory_gb"),
        ("p99_ms", 0, "p99_ms needs 100 rounds, and there were 24"),
    ],
)
def test_a_figure_that_the_row_does_not_tell_fails(read, metric, told, words):
    budgets = read(FILE.replace("memory_mb: 9", f"{metric}: 9"))
    found = [v for v in verdicts(budgets, result_of(memory_mb=told)) if v.budget.metric == metric]
    assert [v.outcome for v in found] == ["not measured"] and words in found[0].why


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "they hold no row to any limit"),
        ("everywhere: {}", "they hold no row to any limit"),
        ("- a", "expected sections with keys"),
        ("everywhere: [", "is not YAML"),
        (FILE + "\neverywhere: {}", "the key 'everywhere' is given twice"),
        ("everywher: {}", "unknown setting everywher; did you mean 'everywhere'?"),
        ("everywhere: {score: [fast]}", "everywhere.score"),
        ("everywhere: {score: {fast: }}", "score / fast: "),
        ("everywhere: {score: {fast: {}}}", "score / fast: it is held to nothing"),
        ("everywhere: {score: {fast: {faster: {slow: 3}}}}", "score / fast: unknown setting faster; did you mean"),
        ("everywhere: {score: {fast: {faster_than: {slow: -3}}}}", "greater than 0 (found -3)"),
        ("everywhere: {score: {fast: {faster_than: {slow: '3'}}}}", "valid number (found '3')"),
        ("everywhere: {score: {fast: {faster_than: {slow: .nan}}}}", "score / fast: "),
        ("everywhere: {score: {fast: {rounds: 2, faster_than: {slow: 3}}}}", "rounds"),
        ("everywhere: {score: {fast: {at_most: {min_ms: 3}}}}", "cannot hold on every machine"),
        ("devices: {x: {cpu: A, core: 2, flags: [], budgets: {}}}", "device x: "),
        (FILE.replace("cores", "kores"), "device here: "),
        (FILE.replace("limit_share: 0.5", "limit_share: none"), "score / fast: "),
    ],
)
def test_budgets_that_cannot_be_used_are_refused_in_one_sentence(read, tmp_path, capsys, text, words):
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert main(["--budgets", str(tmp_path / "budgets.yaml")]) == 1
    assert words in capsys.readouterr().err


def test_the_projects_budgets_are_of_rows_and_of_machines():
    budgets = budgets_from_file()
    assert any(budget.row_budgets.short for budget in budgets) and any(budget.device for budget in budgets)


def test_a_ratio_is_the_median_over_parts_of_the_race():
    own, other = np.full(40, 2.0), np.full(40, 6.0)
    assert sub_races(own, other) == 3
    own[:8], other[20] = 9.0, 0.1  # one part disturbed, one lucky round in another
    assert sub_races(own, other) == 3
    assert sub_races(own[:3], other[:3]) == pytest.approx(6 / 9)
    assert minima_of_parts(np.arange(20.0) + 1).tolist() == [1, 5, 9, 13, 17]


def test_a_miss_is_measured_again_twice_and_only_its_group(read):
    budgets = read(FILE)[:1]
    slow = result_of(RACE | {"fast": [1.5e-3] * 24})
    for last, attempts, sentence in (
        (result_of(), [2.667, 2.667, 4], None),
        (slow, [2.667] * 3, "2.667, 2.667, 2.667"),
    ):
        runs, asked = [Run(slow, 0), Run(slow, 0), Run(last, 0)], []
        found, wrong = judged(
            budgets, lambda tests, runs=runs, asked=asked: asked.append(list(tests)) or runs.pop(0), ["bench"]
        )
        assert asked == [["bench"], ["bench/b.py::test_b"], ["bench/b.py::test_b"]] and not wrong
        assert [round(verdict.value, 3) for verdict in found[0]] == attempts
        assert (failure(found, wrong) is None) is (sentence is None) and (sentence or "4") in table(found)
    found, wrong = judged(budgets, lambda tests: Run({}, 0), ["bench"])
    assert len(found[0]) == 1 and failure(found, wrong)  # what is not there is not measured again


def test_a_benchmark_that_fails_fails_the_gate_whatever_the_others_measured(read):
    found, wrong = judged(read(FILE), lambda tests: Run(result_of(), 1), ["bench"])
    assert failure(found, wrong) == "a benchmark failed (pytest's exit code is 1; it says why above)"


@pytest.mark.parametrize(
    ("options", "env"),
    [((), {}), (("--benchmark-disable",), {}), (("--benchmark-skip",), {}), ((), {"PYTEST_XDIST_WORKER": "gw0"})],
)
def test_benchmarks_that_do_not_measure_are_seen(read, tmp_path, monkeypatch, options, env):
    """pytest-benchmark writes no JSON then, and its own tests pass."""
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(options))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "conftest.py").write_text(
        f"def pytest_benchmark_update_machine_info(machine_info):\n    machine_info['machine'] = {MACHINE}\n"
    )
    (tmp_path / "bench_b.py").write_text(
        "import pytest\n\n\n@pytest.mark.benchmark(group='score')\n@pytest.mark.parametrize('row', ['fast', 'slow'])\n"
        "def test_b(benchmark, row):\n"
        "    benchmark.pedantic(lambda: sum(range(100 if row == 'fast' else 9999)), rounds=30)\n"
    )
    run = run_benchmarks([str(tmp_path / "bench_b.py")], root=tmp_path)
    found = verdicts(read(FILE)[:1], run.result)
    if options or env:
        assert run == Run({}, 0) and found[0].outcome == "not measured"
    else:
        assert run.exit_code == 0 and found[0].outcome == "holds", found


def test_the_projects_benchmarks_fail_when_they_are_disabled(monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--benchmark-disable")
    assert main(["--only", "float32 limit", "bench/bench_score_limit.py"]) == 1
    printed = capsys.readouterr()
    assert "not measured" in printed.out and "a benchmark failed" in printed.err


@pytest.mark.slow
def test_the_ratios_hold():
    """`make bench-gate` in its short form, without the groups of the network, which tests/test_speed.py races."""
    tests = ("bench/bench_score.py", "bench/bench_patchify.py", "bench/bench_frame.py::test_frame_stages")
    done = subprocess.run(
        [sys.executable, "-m", "grd_edge.bench.gate", "--short", *tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "holds" in done.stdout and Path(ROOT, "bench", "budgets.yaml").exists()
