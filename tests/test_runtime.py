"""The native engine through the C API: same answers as the definitions and as PyTorch."""

import subprocess
import sys

import numpy as np
import pytest

from grd_edge import runtime
from grd_edge.engine.torch import TorchInspector
from grd_edge.errors import BundleError, EngineError, InputError
from grd_edge.patches import PatchGrid, prepare_frame, working_size
from grd_edge.runtime import Inspector
from grd_edge.score import score_patches_f64

AWKWARD = [11, 12, 15, 16, 17, 31, 33, 63, 65]
VARIANTS = [name for name, supported in runtime.kernel_variants().items() if supported]


def families(h, w, c=1, seed=0):
    """Pairs of patches (1, c, h, w) of the kinds that docs/method.md, section 5, names."""
    rng = np.random.default_rng(seed)
    ramp = np.broadcast_to(np.linspace(0, 1, w, dtype=np.float32), (1, c, h, w))
    noise = rng.random((1, c, h, w), np.float32)
    flat = np.full((1, c, h, w), 0.9, np.float32)
    hot = np.zeros((1, c, h, w), np.float32)
    hot[..., h // 2, w // 2] = 1
    near = np.clip(noise + rng.normal(0, 0.02, noise.shape), 0, 1).astype(np.float32)
    return {
        "random": (noise, rng.random((1, c, h, w), np.float32)),
        "close": (noise, near),
        "flat": (flat, flat.astype(np.float16).astype(np.float32)),
        "flat apart": (flat, np.full_like(flat, 0.1)),
        "saturated": ((noise > 0.5).astype(np.float32), np.round(near)),
        "black and white": (np.zeros_like(flat), np.ones_like(flat)),
        "gradient": (ramp, ramp[..., ::-1].copy()),
        "one-hot": (hot, np.zeros_like(hot)),
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("c", [1, 3])
def test_scores_agree_with_float64(variant, c):
    for h, w in [*((side, side) for side in AWKWARD), (11, 40), (100, 13), (128, 128)]:
        for name, (x, y) in families(h, w, c).items():
            found = runtime.score_patches(x, y, variant=variant)
            exact = score_patches_f64(x, y)
            where = (variant, name, h, w)
            assert abs(found.phi[0] - exact.phi[0]) <= 1e-6, where
            assert abs(found.phi_local[0] - exact.phi_local[0]) <= 1e-6, where
            assert np.abs(found.heatmap - exact.heatmap.reshape(found.heatmap.shape)).max() <= 1e-6, where
            assert runtime.score_patches(x, x, variant=variant).phi[0] == 0, where


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_spoils_its_own_patch_only(variant, bad):
    x = np.random.default_rng(0).random((3, 1, 33, 40), np.float32)
    for place in ((0, 0), (16, 20), (32, 39)):
        for index in (0, 1):
            pair = [x.copy(), x[:, :, ::-1].copy()]
            clean = runtime.score_patches(*pair, variant=variant)
            pair[index][1, 0, place[0], place[1]] = bad
            found = runtime.score_patches(*pair, variant=variant)
            assert np.isnan(found.phi[1]) and np.isnan(found.phi_local[1])
            for other in (0, 2):
                assert found.phi[other] == clean.phi[other]
                assert found.phi_local[other] == clean.phi_local[other]


@pytest.mark.parametrize("variant", VARIANTS)
def test_strides_do_not_matter(variant):
    rng = np.random.default_rng(1)
    wide = rng.random((2, 3, 40, 90), np.float32)
    x, y = wide[..., 3:40], wide[..., 41:78]
    expected = runtime.score_patches(x.copy(), y.copy(), variant=variant)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for a in (x, last, np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]):
        found = runtime.score_patches(a, y, variant=variant)
        assert np.array_equal(found.phi, expected.phi)
        assert np.array_equal(found.phi_local, expected.phi_local)
        assert np.array_equal(found.heatmap, expected.heatmap)


@pytest.mark.parametrize("variant", VARIANTS)
def test_box_window(variant):
    for x, y in families(33, 40).values():
        found, exact = runtime.score_patches(x, y, variant=variant, window="box"), score_patches_f64(x, y, window="box")
        assert abs(found.phi[0] - exact.phi[0]) <= 1e-6
        assert abs(found.phi_local[0] - exact.phi_local[0]) <= 1e-6


def test_forcing_a_variant_works_or_fails_loudly():
    assert VARIANTS[0] == "scalar"
    code = "from grd_edge.runtime import active_variant as a; print(a())"

    def active(name):
        import os

        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "GRD_FORCE_VARIANT": name}
        )

    for name in VARIANTS:
        assert active(name).stdout.strip() == name
        assert runtime.active_variant(name) == name
    missing = active("avx9000")
    assert missing.returncode != 0
    assert "unset GRD_FORCE_VARIANT" in missing.stderr
    with pytest.raises(InputError, match="known: scalar"):
        runtime.active_variant("neonx")


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 3), (32, 32), (33, 95), (300, 300), (61, 200, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale_px", [None, 32, 40, 48])
def test_the_native_cutter_agrees_with_the_definition(shape, dtype, scale_px):
    frame = np.random.default_rng(2).integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    for channels in (1, 3) if len(shape) == 3 else (1,):
        grid = PatchGrid(32, 32, 12, 20)
        expected = grid.cut(prepare_frame(frame, scale_px=scale_px, channels=channels))
        found = runtime.cut_frame(frame, grid, scale_px=scale_px, channels=channels)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-6


def test_the_native_cutter_reflects_small_frames():
    frame = np.random.default_rng(3).integers(0, 256, (20, 7), np.uint8)
    grid = PatchGrid(32, 32, 12, 12, "reflect")
    expected = grid.cut(prepare_frame(frame, scale_px=None, channels=1))
    assert np.abs(runtime.cut_frame(frame, grid, scale_px=None, channels=1) - expected).max() <= 1e-6
    with pytest.raises(InputError):
        runtime.cut_frame(frame, PatchGrid(32, 32, 12, 12), scale_px=None, channels=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_patches_come_in_the_type_and_layout_of_the_engine(variant, layout):
    frame = np.random.default_rng(6).integers(0, 256, (47, 61, 3), np.uint8)
    grid = PatchGrid(17, 23, 11, 20)
    scale = 2 / 255  # every other pixel value lies between two steps
    for channels, scale_px in ((3, None), (1, None), (3, 40)):
        choice = {"scale_px": scale_px, "channels": channels, "layout": layout, "variant": variant}
        exact = runtime.cut_frame(frame, grid, **choice)
        expected = grid.cut(prepare_frame(frame, scale_px=scale_px, channels=channels))
        planes = exact if layout == "NCHW" else exact.transpose(0, 3, 1, 2)
        assert np.abs(planes - expected).max() <= (1e-6 if scale_px else 0)
        halves = runtime.cut_frame(frame, grid, dtype=np.float16, **choice)
        assert np.array_equal(halves, exact.astype(np.float16))
        steps = runtime.cut_frame(frame, grid, dtype=np.int8, input_scale=scale, **choice)
        assert np.array_equal(steps, np.minimum(np.rint(exact / np.float32(scale)), 127))
    cutter = runtime.Cutter((47, 61), grid, scale_px=None, channels=1, variant=variant)
    cutter(frame)
    assert cutter.ran == variant


def test_cutting_refuses_what_it_cannot_do():
    frame, grid = np.zeros((40, 40), np.uint8), PatchGrid(32, 32, 12, 12)
    for choice in (
        {"dtype": np.uint8},
        {"dtype": np.int8},
        {"dtype": np.int8, "input_scale": -1.0},
        {"layout": "CHWN"},
    ):
        with pytest.raises(InputError):
            runtime.cut_frame(frame, grid, scale_px=None, channels=1, **choice)
    with pytest.raises(InputError, match="made for"):
        runtime.Cutter((40, 41), grid, scale_px=None, channels=1)(frame)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_stitching_is_the_definition_bit_for_bit(variant, dtype):
    rng, grid = np.random.default_rng(7), PatchGrid(16, 24, 5, 9, "reflect")
    for shape, scale_px in (((33, 61), None), ((12, 70), None), ((80, 64), 40)):
        scaled = working_size(*shape, scale_px)
        count = len(grid.positions(*scaled))
        maps, scores = (200 * rng.random((count, 16, 24))).astype(dtype), rng.random(count).astype(np.float32)
        choice = {"scale_px": scale_px, "variant": variant}
        assert np.array_equal(runtime.stitch_frame(maps, grid, shape, **choice), grid.stitch(maps, *scaled))
        spread = np.broadcast_to(scores[:, None, None], maps.shape)
        assert np.array_equal(runtime.stitch_frame(scores, grid, shape, **choice), grid.stitch(spread, *scaled))
    with pytest.raises(InputError, match="do not fit"):
        runtime.stitch_frame(maps[1:], grid, shape)


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
    code = "import sys, grd_edge.runtime, grd_edge.bundle, grd_edge.decide, grd_edge.patches, grd_edge._native\n"
    code += f"print(sorted(set({heavy}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
