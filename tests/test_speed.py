"""Ratios that hold on every machine, measured interleaved in one process (bench/timer.py)."""

import functools
from pathlib import Path

import numpy as np
import pytest
from grd_edge.bench.baselines import race_scores
from grd_edge.bench.cuts import race_cuts
from grd_edge.bench.timer import interleaved, speedup

from grd_edge.errors import CheckFailedError
from grd_edge.kernels import variants


def measured_again(race):
    """A ratio that is missed is measured up to twice more, as by the gate: shared machines have bad minutes."""

    @functools.wraps(race)
    def attempts(*args, **kwargs):
        for _ in range(2):
            try:
                return race(*args, **kwargs)
            except AssertionError as missed:
                print(f"measured again: {missed}")
        return race(*args, **kwargs)

    return attempts


def test_the_timer_alternates_checks_first_and_counts():
    calls = []
    contenders = {"a": lambda i: calls.append(("a", i)), "b": lambda i: calls.append(("b", i))}
    timings = interleaved(contenders, rounds=4, warmup=0, inputs=(0, 1))
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert all(len(timing.times_ms) == 4 for timing in timings.values())
    assert all(timing.min_ms <= timing.p50_ms <= timing.p99_ms for timing in timings.values())

    def disagree(outputs):
        raise CheckFailedError(f"{outputs}")

    calls.clear()
    with pytest.raises(CheckFailedError, match="'a': None"):
        interleaved(contenders, rounds=4, check=disagree)
    assert len(calls) == 2  # nothing was timed
    with pytest.raises(CheckFailedError, match="measure nothing"):
        interleaved(contenders, rounds=2)


@pytest.mark.parametrize("variant", [n for n, supported in variants().items() if supported and n != "scalar"])
@measured_again
def test_the_scoring_kernel_beats_pytorch_and_opencv(variant):
    """Measured on machine B of docs/results.md: avx2 38 and 4.6, avx512 47 and 5.3; other CPUs have other ratios."""
    pytest.importorskip("cv2")
    race = race_scores(rounds=60, variant=variant)
    assert race["torch_separable_min_ms"] >= 25 * race["native_min_ms"], race
    assert race["opencv_min_ms"] >= 3 * race["native_min_ms"], race
    assert race["torch_reference_min_ms"] > race["native_min_ms"], race


@pytest.mark.parametrize(("colors", "channels"), [(1, 1), (3, 3), (3, 1)])
@measured_again
def test_cutting_writes_patches_nearly_as_fast_as_a_copy(colors, channels):
    """Grey of three colors reads 3/4 of what it writes and is held to OpenCV alone."""
    pytest.importorskip("cv2")
    if not any(supported for name, supported in variants().items() if name != "scalar"):
        pytest.skip("this CPU has no vector variant; the scalar one is the definition and is not raced")
    race = race_cuts(colors=colors, channels=channels)
    assert race["opencv_min_ms"] > race["native_min_ms"], race
    if colors == channels:
        assert race["memcpy_min_ms"] >= 0.7 * race["native_min_ms"], race


@measured_again
def test_the_engine_beats_the_pytorch_path_frame_in_decision_out(tmp_path):
    """Base 16 at 128 px with random weights: speed does not depend on what they are.

    Twice as fast as PyTorch; or, where PyTorch itself comes so near to the FP32 rate of the machine that twice as fast
    is out of reach (1.8 to 2.3 on Zen 4, 2026-11-25), at 75 % of that rate, taken from a matrix product beside it.
    """
    import torch

    from grd_edge.build import bundle_from_checkpoint
    from grd_edge.config import load_config
    from grd_edge.engine.torch import TorchInspector
    from grd_edge.runtime import Inspector
    from grd_edge.train import untrained_checkpoint

    checkpoint = untrained_checkpoint(load_config(overrides=["geometry.scale_px=128"]))
    bundle_from_checkpoint(checkpoint, tmp_path / "b.grdb")
    frames = [np.random.default_rng(seed).integers(0, 256, (300, 300), np.uint8) for seed in range(4)]
    reference = TorchInspector(checkpoint)

    def agree(outputs):
        difference = np.abs(outputs["engine"].phi - outputs["reference"].phi).max()
        assert difference <= 1e-4

    side, macs = 1024, 2.3e9 / 4  # of one 128 px patch; Source: docs/method.md, section 2
    square = torch.rand(side, side)
    with Inspector(tmp_path / "b.grdb") as engine:
        contenders = {
            "engine": engine.inspect,
            "reference": reference.inspect,
            "product": lambda _: torch.mm(square, square),
        }
        timings = interleaved(contenders, rounds=40, inputs=frames, settle_ms=20, check=agree)
    share_of_limit = macs / side**3 * speedup(timings["product"], timings["engine"], "min_ms")
    assert speedup(timings["reference"], timings["engine"]) >= 2 or share_of_limit >= 0.75, (share_of_limit, timings)


@measured_again
def test_int8_is_worth_its_trouble():
    """The network alone, base 16 at 128 px, 8 patches, all layers; 3.2 and 6.0 on machine B of docs/results.md."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "vnni" not in flags:
        pytest.skip("this CPU has no VNNI, so INT8 products are not faster")
    from grd_edge.bench.precisions import race_precisions

    race = race_precisions(rounds=20)
    assert race["fp32_min_ms"] >= 2.7 * race["int8_min_ms"], race
    assert race["torch_min_ms"] >= 4 * race["int8_min_ms"], race
    if "bf16_min_ms" in race:
        assert race["bf16_min_ms"] > race["int8_min_ms"], race


@measured_again
def test_cutting_and_scoring_take_little_of_a_frame():
    """16 patches, base 16 at 128 px, INT8 engine: the smallest network, where the kernels weigh most."""
    from grd_edge.bench.frame_stages import frame_stages

    found = frame_stages()
    assert found["patches"] == 16
    assert found["kernels_share"] < 0.05, found


@pytest.mark.slow
@measured_again
def test_the_training_step_beats_the_straightforward_one():
    """Base 32, 128 px, batch 16, every term in every step on both sides."""
    from grd_edge.bench.train_baseline import race_training_steps

    race = race_training_steps(rounds=3)
    assert race["straightforward_min_ms"] >= 1.3 * race["own_min_ms"], race
    assert race["perturbation_min_ms"] <= 0.05 * race["own_bare_min_ms"], race
