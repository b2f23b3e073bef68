"""Properties of the scoring kernels that hold for every variant, type and size: docs/method.md, section 5.

Accuracy and layouts are in kernels/test/test_score*.c and test_kernels.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge import kernels
from grd_edge.patches import PatchGrid
from grd_edge.score import score_patches_f64

VARIANTS = [name for name, supported in kernels.variants().items() if supported]
X_TYPES, X_HAT_TYPES = (np.uint8, np.float16, np.float32), (np.float16, np.float32)
quick = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def pairs(draw, n=(1, 3), x_types=X_TYPES, x_hat_types=X_HAT_TYPES):
    """(x, x_hat) of N, C, H, W: noise about a level, with a dark block in x."""
    shape = (draw(st.integers(*n)), draw(st.integers(1, 3)), draw(st.integers(11, 40)), draw(st.integers(11, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    level, sigma = draw(st.floats(0, 1)), draw(st.sampled_from([0, 1e-3, 0.05, 0.5]))
    x = np.clip(level + sigma * rng.standard_normal(shape), 0, 1)
    x_hat = np.clip(x + draw(st.sampled_from([0, 1e-3, 0.1])) * rng.standard_normal(shape), 0, 1)
    x[..., : draw(st.integers(0, 11)), 3:9] = 0
    x_type, x_hat_type = draw(st.sampled_from(x_types)), draw(st.sampled_from(x_hat_types))
    x = np.round(x * 255) if x_type == np.uint8 else x
    return x.astype(x_type), x_hat.astype(x_hat_type)


def scored(x, x_hat, roi=None, **options):
    """Scores as arrays of their own, and the variant that ran."""
    scorer = kernels.Scorer(x.shape, **options)
    scores = scorer(x, x_hat, roi)
    return {name: np.array(getattr(scores, name)) for name in scores.__dataclass_fields__}, scorer.ran


def assert_same(found, expected, take=slice(None)):
    for name, values in expected.items():
        assert found[name].tobytes() == values[take].tobytes(), name


def as_float(x):
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("window", ["gaussian", "box"])
class TestEveryVariant:
    @quick
    @given(pair=pairs(), local_window_px=st.integers(1, 45))
    def test_the_definition_on_the_values_as_stored(self, variant, window, pair, local_window_px):
        x, x_hat = pair
        options = {"window": window, "local_window_px": local_window_px}
        found, _ = scored(x, x_hat, variant=variant, **options)
        exact = score_patches_f64(as_float(x), as_float(x_hat), **options)
        for name in ("phi", "phi_local"):
            np.testing.assert_allclose(found[name], getattr(exact, name), rtol=0, atol=1e-6)
        assert np.abs(found["heatmap"] - exact.heatmap.reshape(found["heatmap"].shape)).max() <= 1e-6

    @quick
    @given(pair=pairs())
    def test_a_patch_and_itself_score_0(self, variant, window, pair):
        x = pair[0]
        found, _ = scored(x, x if x.dtype != np.uint8 else as_float(x), variant=variant, window=window)
        assert not any(values.any() for values in found.values())

    @quick
    @given(pair=pairs(x_types=(np.float32,), x_hat_types=(np.float32,)))
    def test_symmetry(self, variant, window, pair):
        forward, _ = scored(*pair, variant=variant, window=window)
        backward, _ = scored(*pair[::-1], variant=variant, window=window)
        for name, values in forward.items():
            np.testing.assert_allclose(backward[name], values, rtol=0, atol=5e-7)

    @quick
    @given(pair=pairs(), value=st.integers(1, 255), shared=st.booleans())
    def test_a_mask_of_ones_is_no_mask(self, variant, window, pair, value, shared):
        n, _, h, w = pair[0].shape
        roi = np.full((1 if shared else n, 1, h, w), value, np.uint8)
        masked, ran = scored(*pair, roi, variant=variant, window=window)
        assert_same(masked, scored(*pair, variant=ran, window=window)[0])

    @quick
    @given(pair=pairs(n=(2, 4)), masked=st.booleans(), bad=st.sampled_from([np.nan, np.inf]))
    def test_neighbors_do_not_matter(self, variant, window, pair, masked, bad):
        x, x_hat = pair
        n, _, h, w = x.shape
        roi = np.random.default_rng(h).random((n, 1, h, w)) < 0.5 if masked else None
        together, _ = scored(x, x_hat, roi, variant=variant, window=window)
        x_hat = x_hat.copy()
        x_hat[0] = bad
        spoiled, _ = scored(x, x_hat, roi, variant=variant, window=window)
        assert np.isnan(spoiled["phi"][0])
        for i in range(1, n):
            alone, _ = scored(
                x[i : i + 1], x_hat[i : i + 1], None if roi is None else roi[i : i + 1], variant=variant, window=window
            )
            assert_same(alone, together, slice(i, i + 1))
            assert_same(alone, spoiled, slice(i, i + 1))

    @settings(quick, max_examples=10)
    @given(pair=pairs(n=(1, 7)), threads=st.integers(1, 4))
    def test_threads_do_not_matter(self, variant, window, pair, threads):
        with kernels.Pool(threads) as pool:
            found, _ = scored(*pair, variant=variant, window=window, pool=pool)
        assert_same(found, scored(*pair, variant=variant, window=window)[0])

    @quick
    @given(pair=pairs(), shift=st.integers(0, 63))
    def test_alignment_does_not_matter(self, variant, window, pair, shift):
        moved = []
        for array in pair:
            room = np.empty(array.nbytes + shift, np.uint8)
            moved.append(np.ndarray(array.shape, array.dtype, room, shift))
            moved[-1][...] = array
        found, _ = scored(*moved, variant=variant, window=window)
        assert_same(found, scored(*pair, variant=variant, window=window)[0])

    @quick
    @given(pair=pairs(n=(1, 1), x_types=(np.uint8,)))
    def test_uint8_is_what_the_cutter_makes_of_it(self, variant, window, pair):
        x, x_hat = pair[0][:, :1], pair[1][:, :1]
        h, w = x.shape[2:]
        cut = kernels.cut_frame(x[0, 0], PatchGrid(h, w, h, w), scale_px=None, channels=1)
        found, ran = scored(x, x_hat, variant=variant, window=window)
        assert_same(found, scored(cut, x_hat, variant=ran, window=window)[0])
