"""The gate on the benchmarks sees 15 % in the scoring kernel: a library that does 15 % of the rows twice."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml
from grd_edge.bench.gate import ROOT

from grd_edge.kernels import variants

SCORED = "    Result result = {NAN, NAN, NAN, NAN};\n"
TWICE = """    if (patch.positions > 0) {
        Job part = call.job;
        part.map_h = (call.job.map_h * 15 + 50) / 100;
        part.h -= call.job.map_h - part.map_h;
        if (part.local > part.map_h) part.local = part.map_h;
        kVariants[call.variant]->run(part, patch, scratch + count_bytes(call.job));
    }
"""
GROUP, RACED = "score 256x256 float32 limit", "bench/bench_score_limit.py"


@pytest.fixture(scope="module")
def planted(native_build, tmp_path_factory):
    """Folder of the library with its dispatch compiled and linked anew, by the commands of the build."""
    folder = tmp_path_factory.mktemp("planted")
    source = (ROOT / "kernels" / "score" / "score.cpp").read_text(encoding="utf-8")
    assert source.count(SCORED) == 1, "score.cpp scores its patches in another way; plant the slowdown there"
    (folder / "score.cpp").write_text(source.replace(SCORED, TWICE + SCORED), encoding="utf-8")
    listed = ["ninja", "-t", "commands", "libgrd_edge.so"]
    commands = subprocess.run(listed, cwd=native_build, check=True, capture_output=True, text=True).stdout.splitlines()
    (compiled,) = (line for line in commands if line.endswith("/kernels/score/score.cpp"))
    (linked,) = (line for line in commands if " -shared " in line and "-o libgrd_edge.so." in line)
    made, library = folder / "score.o", folder / "libgrd_edge.so"
    words = shlex.split(compiled)
    words[words.index("-o") + 1], words[-1] = str(made), str(folder / "score.cpp")
    del words[words.index("-MD") : words.index("-MF") + 2]
    subprocess.run(words, cwd=native_build, check=True)
    words = shlex.split(linked.partition("&&")[2].partition("&&")[0])
    words[words.index("-o") + 1] = str(library)
    words = [str(made) if word.endswith("/score/score.cpp.o") else word for word in words]
    subprocess.run(words, cwd=native_build, check=True)
    return folder


def measured(library, limits, folder, monkeypatch):
    """What the gate says of a library whose rows are held to limits, and the values of its three attempts by row."""
    held = {row: {"rounds": 1000, "faster_than": {"fma": limit}} for row, limit in limits.items()}
    budgets = folder / "budgets.yaml"
    budgets.write_text(yaml.safe_dump({"everywhere": {GROUP: held}}), encoding="utf-8")
    monkeypatch.setenv("GRD_LIBRARY_DIR", str(library))
    command = [sys.executable, "-m", "grd_edge.bench.gate", "--budgets", str(budgets), RACED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("missed") == len(limits), done.stdout + done.stderr
    return {
        row: [
            float(value)
            for value in re.findall(rf"^missed +([0-9., ]+?) +>=.* {row}:", done.stdout, re.M)[0].split(",")
        ]
        for row in limits
    }


@pytest.mark.slow
def test_fifteen_percent_in_the_scoring_kernel_are_caught(native_build, planted, tmp_path, monkeypatch):
    """On any machine: first measured, held to what no kernel reaches, then to 7 % less than that, as on a device."""
    rows = [f"native-{name}" for name, supported in variants().items() if supported and name != "scalar"]
    if not rows:
        pytest.skip("this CPU has no vector variant; the scalar one is the definition and is not raced")
    unchanged = measured(native_build, dict.fromkeys(rows, 1e3), tmp_path, monkeypatch)
    slower = measured(planted, {row: 0.93 * max(unchanged[row]) for row in rows}, tmp_path, monkeypatch)
    for row in rows:
        assert len(unchanged[row]) == len(slower[row]) == 3
        assert 0.8 < max(slower[row]) / max(unchanged[row]) < 0.93, (unchanged, slower)
