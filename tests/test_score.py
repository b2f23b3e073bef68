"""phi, phi_local and the heatmap against the textbook, and float32 forms against float64: docs/method.md, section 5."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge.errors import InputError
from grd_edge.score import PatchScores, score_patches_f64, ssim_distance_map, window_taps

torch = pytest.importorskip("torch")

from grd_edge.score import score_patches_torch  # noqa: E402

WINDOWS = ("gaussian", "box")
TOLERANCE = 1e-6  # the contract
SIZES = ((11, 11), (11, 17), (12, 63), (15, 33), (16, 16), (31, 12), (33, 65), (65, 31))


def ssim_by_definition(x: np.ndarray, y: np.ndarray, window: str) -> np.ndarray:
    """SSIM map of (H, W) images by loops over positions and window pixels, two-pass moments."""
    h, w = x.shape
    if window == "gaussian":
        weight = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
        centers = [(i, j) for i in range(5, h - 5) for j in range(5, w - 5)]
    else:
        weight = [[1.0] * 11 for _ in range(11)]
        centers = [(i, j) for i in range(h) for j in range(w)]
    total = sum(map(sum, weight))
    out = []
    for i, j in centers:
        taps = []
        for di in range(-5, 6):
            for dj in range(-5, 6):
                inside = 0 <= i + di < h and 0 <= j + dj < w
                a, b = (float(x[i + di, j + dj]), float(y[i + di, j + dj])) if inside else (0.0, 0.0)
                taps.append((weight[di + 5][dj + 5] / total, a, b))
        mx, my = sum(t * a for t, a, _ in taps), sum(t * b for t, _, b in taps)
        vx, vy = sum(t * (a - mx) ** 2 for t, a, _ in taps), sum(t * (b - my) ** 2 for t, _, b in taps)
        cov = sum(t * (a - mx) * (b - my) for t, a, b in taps)
        upper = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
        out.append(upper / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4)))
    return np.array(out).reshape((h - 10, w - 10) if window == "gaussian" else (h, w))


def local_by_definition(distance: np.ndarray, w: int) -> float:
    w = min(w, *distance.shape)
    h_out, w_out = distance.shape[0] - w + 1, distance.shape[1] - w + 1
    return max(distance[i : i + w, j : j + w].mean() for i in range(h_out) for j in range(w_out))


def patches_of(kind: str, h: int = 64, w: int = 64, channels: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 patches and their reconstructions, of a kind that rounding may hurt."""
    rng = np.random.default_rng(seed)
    shape = (2, channels, h, w)

    def noise(sigma: float) -> np.ndarray:
        return sigma * rng.standard_normal(shape)

    yy, xx = np.mgrid[:h, :w]
    steps = np.broadcast_to(np.where(xx < w // 2, 0.05, 0.95), shape)
    waves = np.broadcast_to(0.5 + 0.5 * np.sin(xx / 4) * np.cos(yy / 7), shape)
    spot = np.full(shape, 0.9)
    spot[..., h // 3 : h // 3 + 4, w // 3 : w // 3 + 4] = 0.1
    x, y = {
        "random": lambda: (rng.random(shape), rng.random(shape)),
        "flat": lambda: (np.full(shape, 0.9), 0.9 + noise(0.003)),
        "flat fp16": lambda: (np.full(shape, 0.9), (0.9 + noise(0.003)).astype(np.float16)),
        "flat, other level": lambda: (np.full(shape, 0.2), np.full(shape, 0.7)),
        "noise, other level": lambda: (0.2 + noise(0.01), 0.7 + noise(0.01)),
        "saturated": lambda: (np.ones(shape), np.minimum(1 + noise(0.01), 1)),
        "white on black": lambda: (np.zeros(shape), np.ones(shape)),
        "identical": lambda: (x0 := rng.random(shape), x0),
        "uint8": lambda: (x0 := np.round(rng.random(shape) * 255) / 255, np.round((x0 * 0.9) * 255) / 255),
        "steps": lambda: (steps, np.clip(steps + noise(0.02), 0, 1)),
        "waves": lambda: (waves, waves * 0.97 + 0.01),
        "spot": lambda: (spot, np.full(shape, 0.9) + noise(0.002)),
        "almost": lambda: (0.9 + noise(1e-4), 0.9 + noise(1e-4)),
    }[kind]()
    return np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32)


KINDS = (
    "random", "flat", "flat fp16", "flat, other level", "noise, other level", "saturated", "white on black",
    "identical", "uint8", "steps", "waves", "spot", "almost",
)  # fmt: skip


def torch_scores(x: np.ndarray, y: np.ndarray, **options) -> PatchScores:
    scores = score_patches_torch(torch.from_numpy(x), torch.from_numpy(y), **options)
    return PatchScores(*(t.numpy() for t in scores))


def assert_within_contract(scores: PatchScores, reference: PatchScores) -> None:
    np.testing.assert_allclose(scores.phi, reference.phi, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores.phi_local, reference.phi_local, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(scores.heatmap, reference.heatmap, rtol=0, atol=1e-7)


class TestDefinition:
    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize(("h", "w"), [(11, 11), (11, 17), (15, 12), (16, 16)])
    @pytest.mark.parametrize("kind", ["random", "noise, other level", "steps"])
    def test_is_the_textbooks(self, window, h, w, kind):
        x, y = patches_of(kind, h, w)
        for local_window_px in (1, 3, 21):
            scores = score_patches_f64(x, y, window=window, local_window_px=local_window_px)
            for i in range(2):
                distance = 1 - ssim_by_definition(x[i, 0], y[i, 0], window)
                assert abs(scores.phi[i] - distance.mean()) < 1e-12
                assert abs(scores.phi_local[i] - local_by_definition(distance, local_window_px)) < 1e-12
        np.testing.assert_allclose(scores.heatmap, np.abs(x.astype(np.float64) - y), atol=1e-16)

    def test_box_takes_patches_smaller_than_its_window(self):
        x, y = patches_of("random", 7, 3)
        distance = 1 - ssim_by_definition(x[0, 0], y[0, 0], "box")
        assert abs(score_patches_f64(x, y, window="box").phi[0] - distance.mean()) < 1e-12
        assert abs(torch_scores(x, y, window="box").phi[0] - distance.mean()) < TOLERANCE

    def test_taps(self):
        taps = window_taps("gaussian")
        assert len(taps) == 11 and abs(math.fsum(taps) - 1) < 1e-15 and taps == taps[::-1]
        assert abs(taps[5] / taps[4] - math.exp(1 / 4.5)) < 1e-14
        assert window_taps("box") == (1 / 11,) * 11

    @pytest.mark.parametrize("window", WINDOWS)
    def test_channels_are_averaged(self, window):
        x, y = patches_of("random", 33, 31, channels=3)
        scores = score_patches_f64(x, y, window=window, local_window_px=5)
        single = [score_patches_f64(x[:, c : c + 1], y[:, c : c + 1], window=window) for c in range(3)]
        np.testing.assert_allclose(scores.phi, np.mean([s.phi for s in single], axis=0), atol=1e-12)
        np.testing.assert_allclose(scores.heatmap, np.mean([s.heatmap for s in single], axis=0), atol=1e-15)
        # phi_local is a maximum of the mean over channels, not a mean of maxima.
        maps = [1 - ssim_by_definition(x[0, c], y[0, c], window) for c in range(3)]
        assert abs(scores.phi_local[0] - local_by_definition(np.mean(maps, axis=0), 5)) < 1e-12

    def test_small_defects_move_phi_local_most(self):
        """A dark square of 4 px in a patch of 128 px: the reason for phi_local."""
        rng = np.random.default_rng(0)
        x_hat = np.clip(0.6 + 0.05 * rng.standard_normal((1, 1, 128, 128)), 0, 1)
        x = x_hat.copy()
        x[0, 0, 60:64, 60:64] = 0.2
        scores = score_patches_f64(x, x_hat)
        assert scores.phi[0] < 0.02 and scores.phi_local[0] > 10 * scores.phi[0]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_scores_inputs_as_stored(self, dtype):
        x, y = (a.astype(dtype) for a in patches_of("random", 16, 16))
        scores = score_patches_f64(x, y)
        assert scores.phi.dtype == scores.heatmap.dtype == np.float64
        np.testing.assert_array_equal(scores.phi, score_patches_f64(x.astype(float), y.astype(float)).phi)

    def test_no_patches(self):
        empty = np.zeros((0, 1, 16, 16), np.float32)
        for scores in (score_patches_f64(empty, empty), torch_scores(empty, empty)):
            assert scores.phi.shape == scores.phi_local.shape == (0,) and scores.heatmap.shape == (0, 1, 16, 16)


class TestContract:
    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_torch_is_within_a_millionth(self, kind, window):
        for channels, (h, w) in ((1, (64, 64)), (3, (33, 65)), (1, (128, 96))):
            x, y = patches_of(kind, h, w, channels)
            assert_within_contract(torch_scores(x, y, window=window), score_patches_f64(x, y, window=window))

    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize(("h", "w"), SIZES)
    @pytest.mark.parametrize("local_window_px", [1, 2, 21])
    def test_awkward_sizes(self, h, w, window, local_window_px):
        x, y = patches_of("noise, other level", h, w)
        options = {"window": window, "local_window_px": local_window_px}
        assert_within_contract(torch_scores(x, y, **options), score_patches_f64(x, y, **options))

    @settings(max_examples=80, deadline=None)
    @given(
        level=st.floats(0, 1), other=st.floats(0, 1), sigma=st.floats(0, 0.2), gain=st.floats(0.5, 1),
        half=st.booleans(), size=st.integers(11, 70), seed=st.integers(0, 9),
    )  # fmt: skip
    def test_levels_noise_and_gain(self, level, other, sigma, gain, half, size, seed):
        rng = np.random.default_rng(seed)
        shape = (1, 1, size, size)
        x = np.clip(level + sigma * rng.standard_normal(shape), 0, 1).astype(np.float32)
        y = np.clip(gain * x + (1 - gain) * other + 0.01 * rng.standard_normal(shape), 0, 1).astype(np.float32)
        y = y.astype(np.float16).astype(np.float32) if half else y
        assert_within_contract(torch_scores(x, y), score_patches_f64(x, y))

    @pytest.mark.parametrize("kind", ["flat", "flat fp16", "saturated", "almost"])
    def test_raw_moments_fail_it(self, kind):
        """Why no form here takes E[x^2] - E[x]^2 of raw values: in float32 it misses the contract on easy patches."""
        x, y = patches_of(kind, 128, 128)
        taps = torch.tensor(window_taps("gaussian"), dtype=torch.float32)

        def blur(t):
            t = torch.nn.functional.conv2d(t, taps.view(1, 1, 1, 11))
            return torch.nn.functional.conv2d(t, taps.view(1, 1, 11, 1))

        a, b = torch.from_numpy(x), torch.from_numpy(y)
        mx, my = blur(a), blur(b)
        vx, vy, cov = blur(a * a) - mx * mx, blur(b * b) - my * my, blur(a * b) - mx * my
        ssim = ((2 * mx * my + 1e-4) * (2 * cov + 9e-4)) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
        phi = (1 - ssim.double()).mean((1, 2, 3)).numpy()
        reference = score_patches_f64(x, y)
        assert np.abs(phi - reference.phi).max() > TOLERANCE
        assert np.abs(torch_scores(x, y).phi - reference.phi).max() < TOLERANCE / 10

    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "steps"])
    def test_float32_filters_keep_it_but_for_steps(self, kind, window):
        for channels, (h, w) in ((1, (64, 64)), (3, (33, 65)), (1, (128, 96))):
            x, y = patches_of(kind, h, w, channels)
            scores = torch_scores(x, y, window=window, filters="float32")
            assert_within_contract(scores, score_patches_f64(x, y, window=window))

    @pytest.mark.parametrize("window", WINDOWS)
    def test_steps_are_why_filters_are_float64(self, window):
        """No constant fits a half dark, half bright patch; what cancels is left in float32, about 2e-6 of it."""
        worst = {"float32": 0.0, "float64": 0.0}
        for seed in range(5):
            x, y = patches_of("steps", seed=seed)
            reference = score_patches_f64(x, y, window=window)
            for filters in worst:
                scores = torch_scores(x, y, window=window, filters=filters)
                error = max(np.abs(scores[i] - reference[i]).max() for i in range(2))
                worst[filters] = max(worst[filters], error)
        assert worst["float64"] < TOLERANCE / 4
        assert TOLERANCE / 4 < worst["float32"] < 2e-5

    @settings(max_examples=60, deadline=None)
    @given(
        levels=st.tuples(*[st.floats(0, 1)] * 4), sigma=st.sampled_from([0, 1e-4, 1e-3, 0.01, 0.05]),
        at=st.integers(3, 60), window=st.sampled_from(WINDOWS), seed=st.integers(0, 9),
    )  # fmt: skip
    def test_two_levels_each(self, levels, sigma, at, window, seed):
        """Patch and reconstruction with an edge, at levels that may have nothing to do with each other."""
        rng = np.random.default_rng(seed)
        left = np.arange(64) < at
        x, y = (
            np.clip(np.where(left, a, b) + sigma * rng.standard_normal((1, 1, 64, 64)), 0, 1).astype(np.float32)
            for a, b in (levels[:2], levels[2:])
        )
        assert_within_contract(torch_scores(x, y, window=window), score_patches_f64(x, y, window=window))

    def test_a_constant_residual_needs_its_own_shift(self):
        """Shifting the sum only leaves E[d^2] - E[d]^2 to cancel where the reconstruction is off by a level."""
        x, y = patches_of("noise, other level", 128, 128)
        taps = torch.tensor(window_taps("gaussian"), dtype=torch.float32)
        d = torch.from_numpy(x - y)

        def variance(t):
            t = torch.stack([t, t * t], 1).flatten(0, 2)[:, None]
            t = torch.nn.functional.conv2d(t, taps.view(1, 1, 1, 11).to(t.dtype))
            mean, square = (
                torch.nn.functional.conv2d(t, taps.view(1, 1, 11, 1).to(t.dtype)).view(2, 2, 118, 118).unbind(1)
            )
            return square - mean * mean

        exact = variance(d.double())
        plain, shifted = variance(d) - exact, variance(d - d.mean((2, 3), keepdim=True)) - exact
        assert plain.abs().max() > 20 * shifted.abs().max()

    @pytest.mark.parametrize("window", WINDOWS)
    def test_identical_is_exactly_zero(self, window):
        x, _ = patches_of("random", 63, 65, channels=3)
        for scores in (score_patches_f64(x, x.copy(), window=window), torch_scores(x, x.copy(), window=window)):
            assert not scores.phi.any() and not scores.phi_local.any() and not scores.heatmap.any()

    @pytest.mark.parametrize("score", [score_patches_f64, torch_scores])
    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [(0, 0), (15, 16), (30, 32)])
    def test_nan_and_inf_spoil_their_patch_only(self, score, window, bad, at):
        x, y = patches_of("random", 31, 33, channels=2)
        x, y = np.concatenate([x, x]), np.concatenate([y, y])
        clean = score(x, y, window=window)
        (x if at[0] else y)[1, 1, at[0], at[1]] = bad
        scores = score(x, y, window=window)
        assert np.isnan(scores.phi[1]) and np.isnan(scores.phi_local[1])
        others = [0, 2, 3]
        np.testing.assert_array_equal(scores.phi[others], clean.phi[others])
        np.testing.assert_array_equal(scores.phi_local[others], clean.phi_local[others])
        np.testing.assert_array_equal(scores.heatmap[others], clean.heatmap[others])

    def test_range(self):
        x, y = patches_of("random", 33, 33)
        for a, b in ((x, y), (x, 1 - x), (np.zeros_like(x), np.ones_like(x)), patches_of("flat, other level")):
            for scores in (score_patches_f64(a, b), torch_scores(a, b)):
                for values in (scores.phi, scores.phi_local):
                    assert ((values >= 0) & (values <= 2)).all()

    def test_batches_change_nothing_that_matters(self):
        x, y = (np.concatenate([patches_of("random", 96, 96, seed=s)[i] for s in range(6)]) for i in range(2))
        together = torch_scores(x, y)
        for i in (0, 7, 11):
            alone = torch_scores(x[i : i + 1], y[i : i + 1])
            np.testing.assert_allclose(together.phi[i], alone.phi[0], atol=TOLERANCE)
            np.testing.assert_allclose(together.phi_local[i], alone.phi_local[0], atol=TOLERANCE)

    def test_strided_inputs(self):
        x, y = patches_of("random", 33, 65, channels=3)
        channels_last = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
        flipped = torch.from_numpy(y).transpose(2, 3).contiguous().transpose(2, 3)
        scores = PatchScores(*(t.numpy() for t in score_patches_torch(channels_last, flipped)))
        assert_within_contract(scores, score_patches_f64(x, y))


class TestTorch:
    def test_types(self):
        x, y = (torch.from_numpy(a) for a in patches_of("random", 16, 16))
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert score_patches_torch(x.to(dtype), y.to(dtype)).phi.dtype == torch.float32
            assert ssim_distance_map(x.to(dtype), y.to(dtype)).dtype == torch.float32
        half = score_patches_torch(x.half(), y.half())
        assert_within_contract(
            PatchScores(*(t.numpy() for t in half)), score_patches_f64(x.half().numpy(), y.half().numpy())
        )
        double = score_patches_torch(x.double(), y.double())
        assert double.phi.dtype == double.phi_local.dtype == double.heatmap.dtype == torch.float64
        reference = score_patches_f64(x.double().numpy(), y.double().numpy())
        np.testing.assert_allclose(double.phi, reference.phi, atol=1e-12)
        np.testing.assert_allclose(double.phi_local, reference.phi_local, atol=1e-12)

    @pytest.mark.parametrize("window", WINDOWS)
    def test_map_is_the_definitions(self, window):
        x, y = patches_of("noise, other level", 16, 33, channels=3)
        distance = ssim_distance_map(torch.from_numpy(x), torch.from_numpy(y), window=window).numpy()
        assert distance.shape == ((2, 3, 6, 23) if window == "gaussian" else (2, 3, 16, 33))
        expected = 1 - ssim_by_definition(x[1, 2], y[1, 2], window)
        np.testing.assert_allclose(distance[1, 2], expected, atol=5e-6)
        np.testing.assert_allclose(distance.mean((1, 2, 3)), score_patches_f64(x, y, window=window).phi, atol=TOLERANCE)

    @pytest.mark.parametrize("window", WINDOWS)
    def test_gradients(self, window):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(1, 2, 12, 11, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "xy")
        assert torch.autograd.gradcheck(lambda a, b: ssim_distance_map(a, b, window=window), (x, y))

    def test_gradient_vanishes_where_nothing_differs(self):
        x = torch.rand(1, 1, 16, 16)
        y = x.clone().requires_grad_()
        ssim_distance_map(x, y).mean().backward()
        assert torch.isfinite(y.grad).all() and y.grad.abs().max() < 1e-6

    def test_autocast_does_not_reach_the_filters(self):
        x, y = (torch.from_numpy(a) for a in patches_of("flat", 33, 33))
        plain, plain_map = score_patches_torch(x, y).phi, ssim_distance_map(x, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(score_patches_torch(x, y).phi, plain)
            assert torch.equal(ssim_distance_map(x, y), plain_map)

    def test_reduced_matmul_precision_does_not_reach_the_filters(self):
        x, y = patches_of("random", 65, 65)
        reference = score_patches_f64(x, y)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            scores = torch_scores(x, y)
        finally:
            torch.set_float32_matmul_precision(before)
        assert scores.phi.dtype == np.float32
        assert_within_contract(scores, reference)

    def test_bands_cached_in_inference_mode_serve_training(self):
        x, y = (torch.rand(1, 1, 29, 37) for _ in "xy")
        with torch.inference_mode():
            score_patches_torch(x, y)
            ssim_distance_map(x, y)
        y.requires_grad_()
        ssim_distance_map(x, y).mean().backward()
        assert y.grad.abs().max() > 0

    def test_kornia_agrees(self):
        metrics = pytest.importorskip("kornia.metrics")
        x, y = patches_of("random", 33, 65)
        theirs = metrics.ssim(torch.from_numpy(x), torch.from_numpy(y), 11, padding="valid", eps=0.0).numpy()
        assert abs((1 - theirs).mean() - score_patches_f64(x, y).phi.mean()) < 1e-5

    def test_inputs_are_not_written(self):
        x, y = patches_of("random", 16, 16)
        x0, y0 = x.copy(), y.copy()
        torch_scores(x, y)
        score_patches_f64(x, y)
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(y, y0)


class TestArguments:
    @pytest.mark.parametrize("score", [score_patches_f64, torch_scores])
    def test_refused(self, score):
        good = np.zeros((1, 1, 16, 16), np.float32)
        for x, y, what in (
            (good[0], good[0], "expected equal"),
            (good, good[:, :, :15], "expected equal"),
            (good[:, :, :10], good[:, :, :10], "at least 11"),
            (good.astype(np.uint8), good, "floating point"),
            (good[:, :0], good[:, :0], "not empty"),
        ):
            with pytest.raises(InputError, match=what):
                score(x, y)
        with pytest.raises(InputError, match="window is"):
            score(good, good, window="hann")
        for w in (0, -1, 2.5, None):
            with pytest.raises(InputError, match="local_window_px"):
                score(good, good, local_window_px=w)
        with pytest.raises(InputError, match="filters is"):
            torch_scores(good, good, filters="float16")


def test_importing_the_module_does_not_import_torch():
    code = "import sys, grd_edge.score; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
