"""The native engine through the C API: same answers as the definitions and as PyTorch."""

import subprocess
import sys

import numpy as np
import pytest

from grd_edge.engine.torch import TorchInspector
from grd_edge.errors import BundleError, EngineError, InputError
from grd_edge.runtime import Inspector


def test_the_engine_agrees_with_torch(tiny_bundle, tiny_checkpoint):
    reference = TorchInspector(tiny_checkpoint, threshold=float(np.float32(0.4)))
    rng = np.random.default_rng(4)
    with Inspector(tiny_bundle, batch_limit=4) as engine:
        for shape in [(32, 32), (40, 47), (90, 75, 3), (32, 200)]:
            frame = rng.integers(0, 256, shape, np.uint8)
            ours, theirs = (i.inspect(frame, heatmap=True, x_hat=True) for i in (engine, reference))
            assert np.array_equal(ours.positions, theirs.positions)
            assert np.abs(ours.x_hat - theirs.x_hat).max() <= 2e-5
            assert np.abs(ours.phi - theirs.phi).max() <= 1e-4
            assert np.abs(ours.phi_local - theirs.phi_local).max() <= 1e-4
            assert np.abs(ours.heatmap - theirs.heatmap).max() <= 2e-5
            assert np.array_equal(ours.defective, theirs.defective)
            assert ours.decision == theirs.decision
            assert ours.times_ms["total"] >= ours.times_ms["infer"] > 0


def test_decisions_follow_the_threshold(tiny_bundle):
    from grd_edge.bundle import write_decision

    frame = np.random.default_rng(5).integers(0, 256, (60, 60), np.uint8)
    with Inspector(tiny_bundle) as engine:
        phi = engine.inspect(frame).phi
    ordered = np.sort(phi)[::-1]
    for k in (1, 3):
        for threshold, expected in (
            (float(ordered[k - 1]), "defective"),  # score < threshold is good, equality is not
            (float(np.nextafter(ordered[k - 1], np.float32(9))), "good"),
        ):
            regions = [{"name": "frame", "threshold": threshold}]
            write_decision(tiny_bundle, {"regions": regions, "k": k, "run_agreement": 0.7, "fit": {}})
            with Inspector(tiny_bundle) as engine:
                result = engine.inspect(frame)
            assert result.decision == expected
            assert result.score == ordered[k - 1]
            assert result.defective.sum() == (phi >= np.float32(threshold)).sum()


def test_answers_do_not_depend_on_the_batch_limit_or_on_earlier_frames(tiny_bundle):
    frames = [np.random.default_rng(s).integers(0, 256, (50 + 9 * s, 70), np.uint8) for s in range(3)]
    with Inspector(tiny_bundle, batch_limit=1) as one, Inspector(tiny_bundle, batch_limit=16, threads=1) as many:
        for frame in (*frames, *reversed(frames)):
            a, b = one.inspect(frame), many.inspect(frame)
            assert np.abs(a.phi - b.phi).max() <= 1e-5


def test_bad_frames_are_one_sentence_and_the_inspector_goes_on(tiny_bundle):
    with Inspector(tiny_bundle) as engine:
        for frame in (
            np.zeros((31, 64), np.uint8),
            np.zeros((64, 64, 2), np.uint8),
            np.zeros((64, 64, 4), np.uint8),
            np.zeros((64, 64), np.float64),
            np.zeros((64,), np.uint8),
        ):
            with pytest.raises(InputError) as caught:
                engine.inspect(frame)
            assert "\n" not in str(caught.value)
        assert engine.inspect(np.zeros((40, 40), np.uint8)).decision in ("good", "defective")
    with pytest.raises(InputError, match="closed"):
        engine.inspect(np.zeros((40, 40), np.uint8))
    engine.close()


def test_missing_engines_and_backends_are_named(tiny_bundle, tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="int8"):
        Inspector(tiny_bundle, precision="int8")
    with pytest.raises(BundleError, match="rtx"):
        Inspector(tiny_bundle, target="rtx")
    with pytest.raises(EngineError, match="libgrd_backend_openvino"):
        Inspector(tiny_bundle, backend_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("grd_edge._native.openvino_dir", lambda: str(tmp_path / "empty"))
    with pytest.raises(EngineError, match="libopenvino_c"):
        Inspector(tiny_bundle)


def test_the_runtime_leaves_the_training_stack_unloaded():
    heavy = ("torch", "onnx", "cv2", "openvino", "pydantic")
    line = ("runtime", "kernels", "bundle", "decide", "patches", "_native")
    code = f"import sys, {', '.join('grd_edge.' + name for name in line)}\n"
    code += f"print(sorted(set({heavy}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
