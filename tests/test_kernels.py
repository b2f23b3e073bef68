"""The native kernels on arrays: scoring and cutting agree with the definitions, in every variant."""

import subprocess
import sys

import numpy as np
import pytest

from grd_edge import kernels
from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, prepare_frame, working_size
from grd_edge.score import score_patches_f64

AWKWARD = [11, 12, 15, 16, 17, 31, 33, 63, 65]
VARIANTS = [name for name, supported in kernels.variants().items() if supported]


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
            found = kernels.score_patches(x, y, variant=variant)
            exact = score_patches_f64(x, y)
            where = (variant, name, h, w)
            assert abs(found.phi[0] - exact.phi[0]) <= 1e-6, where
            assert abs(found.phi_local[0] - exact.phi_local[0]) <= 1e-6, where
            assert np.abs(found.heatmap - exact.heatmap.reshape(found.heatmap.shape)).max() <= 1e-6, where
            assert kernels.score_patches(x, x, variant=variant).phi[0] == 0, where


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_spoils_its_own_patch_only(variant, bad):
    x = np.random.default_rng(0).random((3, 1, 33, 40), np.float32)
    for place in ((0, 0), (16, 20), (32, 39)):
        for index in (0, 1):
            pair = [x.copy(), x[:, :, ::-1].copy()]
            clean = kernels.score_patches(*pair, variant=variant)
            pair[index][1, 0, place[0], place[1]] = bad
            found = kernels.score_patches(*pair, variant=variant)
            assert np.isnan(found.phi[1]) and np.isnan(found.phi_local[1])
            for other in (0, 2):
                assert found.phi[other] == clean.phi[other]
                assert found.phi_local[other] == clean.phi_local[other]


@pytest.mark.parametrize("variant", VARIANTS)
def test_strides_do_not_matter(variant):
    rng = np.random.default_rng(1)
    wide = rng.random((2, 3, 40, 90), np.float32)
    x, y = wide[..., 3:40], wide[..., 41:78]
    expected = kernels.score_patches(x.copy(), y.copy(), variant=variant)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for a in (x, last, np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]):
        found = kernels.score_patches(a, y, variant=variant)
        assert np.array_equal(found.phi, expected.phi)
        assert np.array_equal(found.phi_local, expected.phi_local)
        assert np.array_equal(found.heatmap, expected.heatmap)


@pytest.mark.parametrize("variant", VARIANTS)
def test_box_window(variant):
    for x, y in families(33, 40).values():
        found, exact = kernels.score_patches(x, y, variant=variant, window="box"), score_patches_f64(x, y, window="box")
        assert abs(found.phi[0] - exact.phi[0]) <= 1e-6
        assert abs(found.phi_local[0] - exact.phi_local[0]) <= 1e-6


def test_forcing_a_variant_works_or_fails_loudly():
    assert VARIANTS[0] == "scalar"
    code = "from grd_edge.kernels import active_variant as a; print(a())"

    def active(name):
        import os

        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "GRD_FORCE_VARIANT": name}
        )

    for name in VARIANTS:
        assert active(name).stdout.strip() == name
        assert kernels.active_variant(name) == name
    missing = active("avx9000")
    assert missing.returncode != 0
    assert "unset GRD_FORCE_VARIANT" in missing.stderr
    with pytest.raises(InputError, match="known: scalar"):
        kernels.active_variant("neonx")


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 3), (32, 32), (33, 95), (300, 300), (61, 200, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale_px", [None, 32, 40, 48])
def test_the_native_cutter_agrees_with_the_definition(shape, dtype, scale_px):
    frame = np.random.default_rng(2).integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    for channels in (1, 3) if len(shape) == 3 else (1,):
        grid = PatchGrid(32, 32, 12, 20)
        expected = grid.cut(prepare_frame(frame, scale_px=scale_px, channels=channels))
        found = kernels.cut_frame(frame, grid, scale_px=scale_px, channels=channels)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-6


def test_the_native_cutter_reflects_small_frames():
    frame = np.random.default_rng(3).integers(0, 256, (20, 7), np.uint8)
    grid = PatchGrid(32, 32, 12, 12, "reflect")
    expected = grid.cut(prepare_frame(frame, scale_px=None, channels=1))
    assert np.abs(kernels.cut_frame(frame, grid, scale_px=None, channels=1) - expected).max() <= 1e-6
    with pytest.raises(InputError):
        kernels.cut_frame(frame, PatchGrid(32, 32, 12, 12), scale_px=None, channels=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_patches_come_in_the_type_and_layout_of_the_engine(variant, layout):
    frame = np.random.default_rng(6).integers(0, 256, (47, 61, 3), np.uint8)
    grid = PatchGrid(17, 23, 11, 20)
    scale = 2 / 255  # every other pixel value lies between two steps
    for channels, scale_px in ((3, None), (1, None), (3, 40)):
        choice = {"scale_px": scale_px, "channels": channels, "layout": layout, "variant": variant}
        exact = kernels.cut_frame(frame, grid, **choice)
        expected = grid.cut(prepare_frame(frame, scale_px=scale_px, channels=channels))
        planes = exact if layout == "NCHW" else exact.transpose(0, 3, 1, 2)
        assert np.abs(planes - expected).max() <= (1e-6 if scale_px else 0)
        halves = kernels.cut_frame(frame, grid, dtype=np.float16, **choice)
        assert np.array_equal(halves, exact.astype(np.float16))
        steps = kernels.cut_frame(frame, grid, dtype=np.int8, input_scale=scale, **choice)
        assert np.array_equal(steps, np.minimum(np.rint(exact / np.float32(scale)), 127))
    cutter = kernels.Cutter((47, 61), grid, scale_px=None, channels=1, variant=variant)
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
            kernels.cut_frame(frame, grid, scale_px=None, channels=1, **choice)
    with pytest.raises(InputError, match="made for"):
        kernels.Cutter((40, 41), grid, scale_px=None, channels=1)(frame)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_stitching_is_the_definition_bit_for_bit(variant, dtype):
    rng, grid = np.random.default_rng(7), PatchGrid(16, 24, 5, 9, "reflect")
    for shape, scale_px in (((33, 61), None), ((12, 70), None), ((80, 64), 40)):
        scaled = working_size(*shape, scale_px)
        count = len(grid.positions(*scaled))
        maps, scores = (200 * rng.random((count, 16, 24))).astype(dtype), rng.random(count).astype(np.float32)
        choice = {"scale_px": scale_px, "variant": variant}
        assert np.array_equal(kernels.stitch_frame(maps, grid, shape, **choice), grid.stitch(maps, *scaled))
        spread = np.broadcast_to(scores[:, None, None], maps.shape)
        assert np.array_equal(kernels.stitch_frame(scores, grid, shape, **choice), grid.stitch(spread, *scaled))
    with pytest.raises(InputError, match="do not fit"):
        kernels.stitch_frame(maps[1:], grid, shape)
