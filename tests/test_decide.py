"""Patch, product and run decisions: docs/method.md, section 7."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grd_edge.decide import patch_decisions, product_decision, product_margin, product_score, run_decision
from grd_edge.errors import InputError

scores32 = st.lists(st.floats(0, 2, width=32), min_size=1, max_size=12)


class TestPatches:
    def test_defective_unless_below(self):
        scores = np.array([0.1, 0.5, 0.6, np.nan, np.inf, -np.inf], np.float32)
        assert patch_decisions(scores, 0.5).tolist() == [False, True, True, True, True, False]

    def test_comparison_is_float32(self):
        """A float64 score that rounds to the threshold is defective, as on the line."""
        threshold = float(np.float32(0.3))
        assert patch_decisions(np.array([np.nextafter(threshold, 0)]), threshold).tolist() == [True]
        below = np.nextafter(np.float32(threshold), np.float32(0))
        assert patch_decisions(np.array([below]), threshold).tolist() == [False]
        assert patch_decisions(np.array([1e300]), threshold).tolist() == [True]

    def test_regions(self):
        scores = np.array([0.2, 0.2, 0.2], np.float32)
        assert patch_decisions(scores, [0.1, 0.3], np.array([0, 1, 0])).tolist() == [True, False, True]

    @pytest.mark.parametrize("thresholds", [np.nan, np.inf, [], [0.1, np.nan], 1e300])
    def test_bad_thresholds(self, thresholds):
        with pytest.raises(InputError, match="finite"):
            patch_decisions(np.zeros(2), thresholds, np.zeros(2, int))

    @pytest.mark.parametrize("regions", [None, [0], [0, 2], [0, -1], [0.0, 1.0]])
    def test_bad_regions(self, regions):
        with pytest.raises(InputError, match="regions"):
            patch_decisions(np.zeros(2), [0.1, 0.2], regions)

    def test_scores_must_be_numbers(self):
        with pytest.raises(InputError, match="bool"):
            patch_decisions(np.array([True]), 0.5)


class TestProducts:
    def test_k(self):
        defective = np.array([True, False, True])
        assert [product_decision(defective, k) for k in (1, 2, 3)] == [True, True, False]
        assert isinstance(product_decision(defective), bool)

    def test_score_is_the_kth_largest(self):
        scores = np.array([0.3, 0.1, 0.2], np.float32)
        assert [product_score(scores, k) for k in (1, 2, 3)] == [float(s) for s in np.sort(scores)[::-1]]
        assert all(np.isnan(product_score(np.array([0.1, np.nan, 0.3]), k)) for k in (1, 2, 3))

    @given(scores32, st.floats(0, 2, width=32), st.integers(1, 12))
    def test_score_and_decision_agree(self, scores, threshold, k):
        scores, k = np.array(scores, np.float32), min(k, len(scores))
        decided = product_decision(patch_decisions(scores, threshold), k)
        assert decided == (product_score(scores, k) >= np.float32(threshold))

    @given(scores32, st.lists(st.floats(0, 2, width=32), min_size=1, max_size=3), st.integers(1, 12), st.randoms())
    def test_margin_and_decision_agree(self, scores, thresholds, k, random):
        scores, k = np.array(scores, np.float32), min(k, len(scores))
        regions = np.array([random.randrange(len(thresholds)) for _ in scores])
        decided = product_decision(patch_decisions(scores, thresholds, regions), k)
        assert decided == (product_margin(scores, thresholds, regions, k) >= 0)

    def test_bad_arguments(self):
        with pytest.raises(InputError, match="no patches"):
            product_decision(np.array([], bool))
        with pytest.raises(InputError, match="bool"):
            product_decision(np.array([0.5]))
        with pytest.raises(InputError, match="larger than"):
            product_score(np.zeros(2), 3)
        for k in (0, -1, 1.5, None):
            with pytest.raises(InputError, match="k is"):
                product_decision(np.array([True]), k)


class TestRuns:
    @pytest.mark.parametrize(
        ("defective", "n", "expected"),
        [(0, 10, "good"), (3, 10, "good"), (4, 10, "inconsistent"), (6, 10, "inconsistent"), (7, 10, "defective"),
         (1, 1, "defective"), (0, 1, "good"), (1, 2, "inconsistent")],
    )  # fmt: skip
    def test_seven_of_ten(self, defective, n, expected):
        assert run_decision(np.arange(n) < defective) == expected
        assert run_decision([i < defective for i in range(n)]) == expected

    @given(st.integers(1, 300), st.data(), st.integers(51, 100))
    def test_exact_in_the_decimals_that_were_written(self, n, data, percent):
        defective = data.draw(st.integers(0, n))
        share, agreement = Fraction(defective, n), Fraction(percent, 100)
        expected = "defective" if share >= agreement else "good" if 1 - share >= agreement else "inconsistent"
        assert run_decision(np.arange(n) < defective, percent / 100) == expected

    def test_bad_arguments(self):
        for agreement in (0.5, 0, 1.01, float("nan")):
            with pytest.raises(InputError, match="agreement"):
                run_decision([True], agreement)
        with pytest.raises(InputError, match="no acquisitions"):
            run_decision([])
        with pytest.raises(InputError, match="bool"):
            run_decision([0.2, 0.8])
