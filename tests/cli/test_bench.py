"""`grd-edge bench`: tables, JSON, gates and exit codes, with and without the training stack."""

import json

import numpy as np
import pytest

from grd_edge.gates import METRICS
from tests.cli import test_cli
from tests.cli.test_cli import TRAINING_STACK, refused, run
from tests.conftest import run_cli

without = test_cli.without  # the fixture

QUICK = ("--rounds", 3, "--cold-starts", 0, "--patches", 2, "--against", "none")


def test_tables_show_what_was_measured(tiny_bundle_files, capsys):
    assert run_cli("bench", tiny_bundle_files, "--rounds", 20, "--cold-starts", 1, "--gate", "p90_ms=1e5") == 0
    shown = capsys.readouterr().out
    for words in ("p95_ms", "needs 1000 frames", "torch", "patches / s", "open bundle to first decision", "holds"):
        assert words in shown, shown
    for words in ("peak", "libgrd_edge.so", "energy", "float64", "speedup"):
        assert words in shown, shown


def test_missed_gates_and_unmeasured_ones_exit_with_3_and_the_results_stay(tiny_bundle_files, tmp_path, capsys):
    gates = ("--gate", "p50_ms=1e-6", "--gate", "speedup=3", "--gate", "worst_ms=1e6")
    assert run_cli("bench", tiny_bundle_files, *QUICK, *gates, "--json", "-o", tmp_path / "new" / "bench.json") == 3
    said = capsys.readouterr()
    assert "2 of 3 gates did not hold: p50_ms" in said.err and "speedup not measured: the baseline was left" in said.err
    result = json.loads(said.out)
    assert json.loads((tmp_path / "new" / "bench.json").read_text(encoding="utf-8")) == result
    assert [gate["passed"] for gate in result["gates"]] == [False, False, True]
    assert set(result["figures"]) == set(METRICS) and result["kind"] == "latency"
    assert result["machine"]["cores"] >= 1


def test_an_unknown_metric_is_told_before_anything_is_opened(tmp_path, capsys):
    assert run_cli("bench", tmp_path / "no.grdb", "--gate", "accuracy=0.9") == 1
    said = capsys.readouterr().err
    assert ", ".join(METRICS) in said and "no.grdb" not in said


def test_frames_are_made_or_given(tiny_bundle_files, tmp_path, capsys):
    np.save(tmp_path / "f.npy", np.zeros((40, 50), np.uint8))
    assert run_cli("bench", tiny_bundle_files, "--images", tmp_path, "--patches", 4) == 1
    assert "leave one of them out" in capsys.readouterr().err
    options = ("--images", tmp_path / "f.npy", "--rounds", 3, "--cold-starts", 0, "--against", "none", "--json")
    assert run_cli("bench", tiny_bundle_files, *options) == 0
    assert json.loads(capsys.readouterr().out)["frame"]["shapes"] == [[40, 50]]


@pytest.mark.slow
def test_the_line_needs_no_training_stack(tiny_bundle_files, without):
    without(TRAINING_STACK | {"scipy", "cv2"})
    result = json.loads(run("bench", tiny_bundle_files, "--rounds", 20, "--cold-starts", 1, "--json").stdout)
    assert result["baseline"] is None and result["machine"]["versions"]["numpy"]
    assert result["checked"]["reference"].startswith("OpenVINO")
    assert "torch is needed to time" in result["not_measured"]["speedup"]
    assert result["figures"]["cold_start_ms"] > 0
    assert "grd-edge[train]" in refused("bench", tiny_bundle_files, "--against", "torch")
    assert "grd-edge[build]" in refused("bench", tiny_bundle_files, "--against", "onnxruntime")
