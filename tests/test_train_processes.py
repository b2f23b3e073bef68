"""Two processes on the CPU, started by the command line as a user does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from grd_edge.checkpoint import read_checkpoint, read_training_state
from grd_edge.data.synthetic import write_synthetic_parts
from tests.conftest import TINY

GRD_EDGE = str(Path(sys.executable).parent / "grd-edge")

# One step of each of two processes, its gradients before the optimizer uses them.
TWO_STEPS = """
import sys, torch
from grd_edge.processes import fabric_from_config
from grd_edge.config import load_config
from grd_edge.training_state import TrainingState
from tests.test_train_processes import SETTINGS, whole_batch

config = load_config(overrides=[*SETTINGS, "train.devices=2"])
fabric = fabric_from_config(config)
state = TrainingState(config, fabric)
size = config.train.batch // 2
for step in range(2):
    part = whole_batch(config, step)[fabric.global_rank * size:][:size]
    state.wanted = fabric.global_rank == 1 and step == 1
    state.advance(part, step, 10)
    grads = {name: p.grad.clone() for net in (state.generator, state.discriminator)
             for name, p in net.named_parameters() if p.grad is not None}
    torch.save((grads, state.tensors(), state.stop), f"{sys.argv[1]}/{step}-{fabric.global_rank}.pt")
"""
SETTINGS = (*TINY, "train.auxiliary_every=1", "optimizer.grad_norm=1e9")


def whole_batch(config, step):
    return torch.rand((config.train.batch, 1, 32, 32), generator=torch.Generator().manual_seed(step))


def environment():
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


@pytest.mark.slow
def test_two_processes_make_the_mean_step_and_stay_the_same(tmp_path, monkeypatch, request):
    from lightning_fabric import Fabric

    from grd_edge.config import load_config
    from grd_edge.training_state import TrainingState

    threads = torch.get_num_threads()
    script = tmp_path / "two.py"
    script.write_text(TWO_STEPS)
    subprocess.run([sys.executable, script, tmp_path], check=True, env=environment(), timeout=300)
    for step in range(2):
        (grads, tensors, stop), (_, tensors_1, stop_1) = (
            torch.load(tmp_path / f"{step}-{rank}.pt", weights_only=True) for rank in range(2)
        )
        assert all(torch.equal(value, tensors_1[key]) for key, value in tensors.items())
        assert stop == stop_1 == (step == 1)  # one asked for it, both know
        if step:
            continue
        # In one process: the same step on each half, BatchNorm by itself, then the mean of the gradients. One thread,
        # as over there: sums are split by thread, and BatchNorm over a few samples magnifies their rounding.
        torch.set_num_threads(1)
        request.addfinalizer(lambda threads=threads: torch.set_num_threads(threads))
        config = load_config(overrides=SETTINGS)
        size, halves = config.train.batch // 2, []
        for rank in range(2):
            fabric = Fabric(accelerator="cpu", devices=1)
            state = TrainingState(config, fabric)
            monkeypatch.setattr(type(fabric), "global_rank", property(lambda self, rank=rank: rank))
            state.advance(whole_batch(config, 0)[rank * size :][:size], 0, 10)
            named = [*state.generator.named_parameters(), *state.discriminator.named_parameters()]
            halves.append({name: parameter.grad for name, parameter in named})
        assert grads.keys() == halves[0].keys()
        for name, found in grads.items():
            expected = (halves[0][name] + halves[1][name]) / 2
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7), name


# A state that differs between the processes, shared.
SHARED = """
import sys, torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from grd_edge.config import load_config
from grd_edge.training_state import TrainingState
from tests.test_train_processes import SETTINGS

scaler = torch.amp.GradScaler("cpu")
precision = MixedPrecision("16-mixed", "cpu", scaler)
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[precision])
fabric.launch()
state = TrainingState(load_config(overrides=SETTINGS), fabric)
if fabric.is_global_zero:
    scaler.load_state_dict({**scaler.state_dict(), "scale": 8.0, "_growth_tracker": 7})
    for value in state.tensors().values():
        value.fill_(3)
state.share()
same = all(bool((value == 3).all()) for value in state.tensors().values())
torch.save((state.scaler()["scale"], state.scaler()["_growth_tracker"], same), f"{sys.argv[1]}/{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_a_resumed_state_is_shared_with_its_gradient_scaler(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    subprocess.run([sys.executable, script, tmp_path], check=True, env=environment(), timeout=300)
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)] == [(8.0, 7, True)] * 2


@pytest.mark.slow
def test_a_category_that_fails_in_two_processes_lets_both_go_on(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("bolt", "nut"):
        write_synthetic_parts(root / name, train=10, good=2, defect=2)
    (out / "bolt.run").mkdir(parents=True)
    (out / "bolt.run" / "last.safetensors").write_text("an earlier run")
    settings = [word for setting in (*TINY, "train.steps=2") for word in ("--set", setting)]
    command = [GRD_EDGE, "train", "--data", root, "-o", out, *settings, "--devices", 2, "--json"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("grd-edge: 1 of 2 categories failed: bolt: ") == 1
    assert done.stderr.count("bolt (1 of 2)") == done.stderr.count("nut (2 of 2)") == 1
    assert json.loads(done.stdout)["categories"]["nut"]["world_size"] == 2
    assert read_checkpoint(out / "nut.safetensors").provenance["steps"] == 2


@pytest.mark.slow
def test_the_command_line_runs_two_processes_and_resumes_them(parts, tmp_path):
    settings = [word for setting in (*TINY, "train.save_seconds=0") for word in ("--set", setting)]
    common = [GRD_EDGE, "train", "--data", parts, *settings, "--devices", 2, "--precision", "bf16-mixed", "--json"]
    common = list(map(str, common))

    def run(*arguments, code=0):
        command = [*common, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
        assert done.returncode == code, done.stderr
        return done

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    report = json.loads(run("--steps", 12, "-o", whole).stdout)  # one process speaks
    assert report["world_size"] == 2 and report["precision"] == "bf16-mixed" and report["steps"] == 12

    started = subprocess.Popen(
        [*common, "--steps", "12", "-o", str(broken)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    limit = time.perf_counter() + 120
    log = tmp_path / "broken.run" / "log.csv"
    while time.perf_counter() < limit and not (log.exists() and log.read_bytes().count(b"\n") > 3):
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    started.communicate(timeout=120)  # the other process ends by itself
    assert 1 <= read_training_state(tmp_path / "broken.run" / "last.safetensors")[1]["course"]["step"] < 12

    refused = run("--steps", 12, "-o", broken, "--resume", "--devices", 1, code=1)
    assert "its train.devices is 2, now 1" in " ".join(refused.stderr.split())
    refused = run("--steps", 12, "-o", broken, code=1)
    assert refused.stderr.count("grd-edge: ") == 1 and "--resume" in refused.stderr
    assert "Traceback" not in refused.stderr
    run("--steps", 12, "-o", broken, "--resume")
    a, b = read_checkpoint(whole), read_checkpoint(broken)
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
