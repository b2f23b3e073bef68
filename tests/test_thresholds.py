"""Thresholds against brute force and against the rates they promise: docs/method.md, section 8."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grd_edge.decide import patch_decisions, product_decision
from grd_edge.errors import InputError
from grd_edge.thresholds import ThresholdFit, fit_good_only, fit_labelled


def above(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def rejected(fit: ThresholdFit, scores: np.ndarray, regions: np.ndarray | None = None) -> bool:
    return product_decision(patch_decisions(scores, fit.thresholds, regions), fit.k)


class TestGoodOnly:
    @pytest.mark.parametrize(
        ("n", "alpha", "rank"),
        [(99, 0.01, 99), (198, 0.01, 198), (199, 0.01, 198), (9, 0.1, 9), (19, 0.1, 18), (29, 0.1, 27), (10, 0.3, 8),
         (99, 0.07, 93)],
    )  # fmt: skip
    def test_rank(self, n, alpha, rank):
        assert rank == math.ceil((n + 1) * (1 - Fraction(str(alpha))))
        scores = np.random.default_rng(0).permutation(np.arange(1, n + 1, dtype=np.float32))
        fit = fit_good_only(list(scores[:, None]), alpha=alpha)
        assert fit.certified and fit.thresholds == (above(rank),)
        assert fit.achievable_alpha == 1 / (n + 1) and fit.n == n and fit.score_max == n

    @given(st.integers(1, 400), st.integers(1, 99))
    def test_certified_exactly_where_a_rank_exists(self, n, percent):
        alpha = Fraction(percent, 100)
        fit = fit_good_only([np.array([i], np.float32) for i in range(n)], alpha=percent / 100)
        assert fit.certified == (math.ceil((n + 1) * (1 - alpha)) <= n)
        assert fit.certified == (fit.achievable_alpha <= percent / 100) == (n >= fit.n_needed)
        if not fit.certified:
            assert fit.thresholds == (above(n - 1),)

    def test_uncertified_says_what_is_missing(self):
        fit = fit_good_only([np.array([0.1, 0.3]), np.array([0.2, 0.05])])
        assert not fit.certified and fit.n_needed == 99 and fit.achievable_alpha == 1 / 3
        assert fit.thresholds == (above(np.float32(0.3)),)
        assert not any(rejected(fit, s) for s in (np.array([0.1, 0.3]), np.array([0.2, 0.05])))

    def test_threshold_is_a_float32_just_above(self):
        scores = np.random.default_rng(0).random((120, 4)).astype(np.float32)
        fit = fit_good_only(list(scores), alpha=0.05)
        (threshold,) = fit.thresholds
        assert float(np.float32(threshold)) == threshold
        statistic = np.sort(scores.max(axis=1))
        assert statistic[np.searchsorted(statistic, threshold) - 1] == np.nextafter(
            np.float32(threshold), np.float32(0)
        )
        assert np.mean([rejected(fit, s) for s in scores]) <= 0.05

    @pytest.mark.parametrize(("n", "alpha", "k"), [(30, 0.1, 1), (99, 0.05, 2), (19, 0.05, 1), (12, 0.01, 3)])
    def test_rate_of_false_rejects(self, n, alpha, k):
        """Exchangeable products whose patches hang together: rejected at most alpha of the time, on average."""
        rng = np.random.default_rng(1)
        repeats, fresh, patches = 300, 60, 6
        rates = []
        for _ in range(repeats):
            shape = (n + fresh, patches)
            scores = (rng.gamma(2, size=(shape[0], 1)) + 0.3 * rng.gamma(2, size=shape)).astype(np.float32)
            fit = fit_good_only(list(scores[:n]), alpha=alpha, k=k)
            statistic = np.sort(scores[n:], axis=1)[:, -k]
            rates.append(np.mean(statistic >= np.float32(fit.thresholds[0])))
        promised = alpha if fit.certified else fit.achievable_alpha
        error = 3 * np.std(rates) / math.sqrt(repeats)
        assert np.mean(rates) <= promised + error
        assert np.mean(rates) >= promised - 1 / (n + 1) - error  # and not needlessly strict

    @pytest.mark.parametrize(("k", "count"), [(1, 3), (2, 2), (3, 2), (4, 3)])
    def test_rate_with_regions(self, k, count):
        """Bonferroni over regions of different levels and sizes holds for the product as a whole."""
        rng = np.random.default_rng(2)
        regions = np.repeat(np.arange(count), [4, 3, 5][:count])
        n, alpha, rates = 80, 0.1, []
        for _ in range(150):
            shared = rng.gamma(2, size=(n + 50, 1))
            scores = (shared + rng.gamma(2, size=(n + 50, len(regions)))) * (1 + regions)
            fit = fit_good_only(list(scores[:n]), alpha=alpha, k=k, regions=[regions] * n)
            assert fit.certified and len(fit.thresholds) == count
            rates.append(np.mean([rejected(fit, s, regions) for s in scores[n:]]))
        assert np.mean(rates) <= alpha + 3 * np.std(rates) / math.sqrt(len(rates))

    def test_regions_share_alpha(self):
        products = [np.array([i, 10 * i], np.float32) for i in range(1, 51)]
        regions = [np.array([0, 1])] * 50
        fit = fit_good_only(products, alpha=0.05, regions=regions)
        assert fit.certified and fit.n_needed == 39 and fit.achievable_alpha == 2 / 51
        assert fit.thresholds == (above(50), above(500))
        assert not fit_good_only(products, alpha=0.03, regions=regions).certified
        one = fit_good_only(products, alpha=0.05, regions=[np.array([0, 0])] * 50)
        assert one.thresholds == fit_good_only(products, alpha=0.05).thresholds

    def test_k_takes_the_kth_largest(self):
        products = [np.array([0.9, 0.2, 0.1], np.float32)] * 5
        assert [fit_good_only(products, k=k).thresholds[0] for k in (1, 2, 3)] == [
            above(np.float32(v)) for v in (0.9, 0.2, 0.1)
        ]

    @pytest.mark.parametrize(
        ("products", "options", "match"),
        [
            ([], {}, "no good products"),
            ([[0.1, math.nan]], {}, "1 of 2 scores of product 0 are NaN"),
            ([[0.1], [math.inf]], {}, "product 1"),
            ([[1e39]], {}, "infinite"),
            ([[0.1]], {"alpha": 0}, "alpha"),
            ([[0.1]], {"alpha": 1.0}, "alpha"),
            ([[0.1]], {"alpha": math.nan}, "alpha"),
            ([[0.1]], {"k": 0}, "k is 0"),
            ([[0.1]], {"k": 2}, "1 patches and k is 2"),
            ([[]], {}, "0 patches"),
            ([[3.4028234e38]], {}, "no float32 above"),
            ([[0.1]], {"regions": []}, "regions of 0 products"),
            ([[0.1]], {"regions": [[0, 1]]}, "one integer"),
            ([[0.1]], {"regions": [[-1]]}, "one integer"),
            ([[0.1]], {"regions": [[7]]}, "without gaps"),
            ([[0.1, 0.2], [0.1, 0.2]], {"regions": [[0, 1], [0, 0]]}, "product 1 has 0 patches in region 1"),
            ([["a"]], {}, "floating point"),
        ],
    )
    def test_refused(self, products, options, match):
        with pytest.raises(InputError, match=match):
            fit_good_only([np.array(p) for p in products], **options)


labelled = st.lists(st.tuples(st.integers(-3, 6), st.booleans()), min_size=2, max_size=25).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def quality(objective: str, called: np.ndarray, labels: np.ndarray, beta: float, precision: float) -> float:
    """The objective by its definition, -1 where a cut is not admitted."""
    tp, fp, fn = int((called & labels).sum()), int((called & ~labels).sum()), int((~called & labels).sum())
    if objective == "balanced_accuracy":
        return (tp / labels.sum() + (~called[~labels]).mean()) / 2
    if objective == "f_beta":
        return (1 + beta**2) * tp / ((1 + beta**2) * tp + beta**2 * fn + fp)
    return tp / labels.sum() if tp + fp and tp / (tp + fp) >= precision else -1.0


class TestLabelled:
    @settings(max_examples=200, deadline=None)
    @given(labelled, st.sampled_from(["balanced_accuracy", "f_beta", "recall_at_precision"]),
           st.sampled_from([0.5, 1, 2]), st.sampled_from([0.1, 0.5, 0.75, 1]))  # fmt: skip
    def test_is_the_best_of_all_thresholds(self, pairs, objective, beta, precision):
        scores = np.array([s for s, _ in pairs], np.float32) / 7
        labels = np.array([label for _, label in pairs])
        options = {"beta": beta} if objective == "f_beta" else {}
        options |= {"precision": precision} if objective == "recall_at_precision" else {}
        every = [*np.unique(scores), np.float32(above(scores.max()))]
        best = max(quality(objective, ~(scores < t), labels, beta, precision) for t in every)
        if best < 0:
            with pytest.raises(InputError, match="no threshold reaches"):
                fit_labelled(scores, labels, objective=objective, **options)
            return
        fit = fit_labelled(scores, labels, objective=objective, **options)
        (threshold,) = fit.thresholds
        assert float(np.float32(threshold)) == threshold
        reached = quality(objective, patch_decisions(scores, threshold), labels, beta, precision)
        assert abs(reached - best) < 1e-12 and abs(fit.objective_value - best) < 1e-12
        # Of equally good cuts, the one that calls most defective.
        most = max(
            int((scores >= t).sum())
            for t in every
            if quality(objective, ~(scores < t), labels, beta, precision) >= best - 1e-12
        )
        assert int(patch_decisions(scores, threshold).sum()) == most

    def test_equally_good_cuts_that_differ_by_rounding(self):
        """Balanced accuracy is 0.65 twice: 3 of 5 defective and 7 of 10 good ones right, or 2 of 5 and 9 of 10."""
        scores = np.array([0] * 9 + [1] * 3 + [2] * 3, np.float32)
        labels = np.array([0] * 7 + [1] * 2 + [0, 0, 1] + [0, 1, 1])
        fit = fit_labelled(scores, labels)
        assert fit.thresholds == (0.5,)

    def test_the_middle_of_a_gap(self):
        fit = fit_labelled(np.array([0.25, 0.75]), np.array([0, 1]))
        assert fit.thresholds == (0.5,) and fit.objective_value == 1 and fit.certified is None

    def test_neighboring_floats(self):
        low = np.float32(0.3)
        high = np.nextafter(low, np.float32(1))
        fit = fit_labelled(np.array([low, high]), np.array([False, True]))
        assert fit.thresholds == (float(high),)

    def test_many_scores_are_quick(self):
        rng = np.random.default_rng(0)
        labels = rng.random(200_000) < 0.1
        fit = fit_labelled(rng.normal(size=200_000) + 2 * labels, labels)
        assert 0.8 < fit.thresholds[0] < 1.2

    @pytest.mark.parametrize(
        ("scores", "labels", "options", "match"),
        [
            ([0.1, 0.2], [0, 0], {}, "0 of 2 labels are defective"),
            ([0.1, 0.2], [1, 1], {}, "good and defective"),
            ([0.1, 0.2], [0, 2], {}, "bool or 0 and 1"),
            ([0.1, 0.2], [0], {}, "one label per score"),
            ([0.1, math.nan], [0, 1], {}, "NaN"),
            ([0.1, 0.2], [0, 1], {"objective": "f1"}, "objective"),
            ([0.1, 0.2], [0, 1], {"objective": "f_beta", "beta": 0}, "beta"),
            ([0.1, 0.2], [0, 1], {"objective": "recall_at_precision"}, "precision is None"),
            ([0.1, 0.2], [0, 1], {"objective": "recall_at_precision", "precision": 1.5}, "precision"),
            ([0.1, 0.2], [0, 1], {"precision": 0.5}, "leave one"),
            ([0.2, 0.1], [0, 1], {"objective": "recall_at_precision", "precision": 0.9}, "the best is 0.5"),
        ],
    )
    def test_refused(self, scores, labels, options, match):
        with pytest.raises(InputError, match=match):
            fit_labelled(np.array(scores), np.array(labels), **options)


class TestJson:
    @pytest.mark.parametrize(
        "fit",
        [
            fit_good_only([np.array([0.1, 0.2])] * 3, k=2),
            fit_good_only([np.array([0.1, 0.2])] * 3, regions=[np.array([0, 1])] * 3),
            fit_labelled(np.array([0.1, 0.2]), np.array([0, 1]), objective="f_beta", beta=2),
        ],
    )
    def test_round_trip(self, fit):
        stored = json.loads(json.dumps(fit.to_json(), allow_nan=False))
        assert ThresholdFit.from_json({**stored, "engine": "cpu"}) == fit
        assert None not in stored.values()

    @pytest.mark.parametrize("change", [{"thresholds": [0.1]}, {"thresholds": [math.inf]}, {"thresholds": []},
                                        {"thresholds": None}, {"thresholds": ["x"]}])  # fmt: skip
    def test_refused(self, change):
        stored = fit_good_only([np.array([0.1])]).to_json()
        with pytest.raises(InputError, match="again"):
            ThresholdFit.from_json({**stored, **change})
        del stored["n"]
        with pytest.raises(InputError, match="again"):
            ThresholdFit.from_json(stored)
