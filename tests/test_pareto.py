"""The choice among methods, on made-up figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grd_edge.metrics import auroc, bootstrap_values
from grd_edge.pareto import TIE, Candidate, optimism_of, pareto_front, selected

NAN = math.nan


def candidate(name: str, accuracy: float, ms: float, *, p99: float | None = None, spread: float = 0.0, seed: int = 0):
    """Its accuracy on resamples is spread about it, independently of others with another seed."""
    drawn = accuracy + spread * np.random.default_rng(seed).standard_normal(500)
    return Candidate(name, accuracy, ms, ms if p99 is None else p99, drawn)


@pytest.mark.parametrize(
    ("accuracy", "ms", "front"),
    [
        ([0.9], [5], [1]),
        ([0.9, 0.8, 0.7], [5, 3, 1], [1, 1, 1]),
        ([0.9, 0.8, 0.7], [1, 3, 5], [1, 0, 0]),
        ([0.9, 0.9], [5, 5], [1, 1]),  # equals stand together
        ([0.9, 0.9], [5, 4], [0, 1]),
        ([0.9, 0.8], [5, 5], [1, 0]),
        ([0.9, 0.8, 0.85, 0.7], [9, 2, 4, 3], [1, 1, 1, 0]),
        ([NAN, 0.5], [1, 9], [0, 1]),  # what was not measured neither stands nor beats
        ([0.9, 0.5], [NAN, 9], [0, 1]),
        ([NAN, NAN], [1, 2], [0, 0]),
        ([], [], []),
    ],
)
def test_front(accuracy, ms, front):
    assert pareto_front(accuracy, ms).tolist() == [bool(each) for each in front]


def test_the_front_is_what_the_definition_says():
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 7, 17):
        accuracy, ms = rng.integers(0, 5, n) / 5, rng.integers(1, 6, n)
        beaten = [
            any(
                accuracy[j] >= accuracy[i] and ms[j] <= ms[i] and (accuracy[j] > accuracy[i] or ms[j] < ms[i])
                for j in range(n)
            )
            for i in range(n)
        ]
        assert pareto_front(accuracy, ms).tolist() == [not each for each in beaten]


def test_the_most_accurate_inside_the_budget_is_taken():
    found = selected([candidate("a", 0.99, 30), candidate("b", 0.95, 10), candidate("c", 0.90, 5)], 20)
    assert found.best == found.chosen == "b"
    assert [found.standings[name].inside for name in "abc"] == [False, True, True]
    assert all(standing.front for standing in found.standings.values())
    assert selected([candidate("a", 0.99, 30), candidate("b", 0.95, 10)]).chosen == "a"


def test_the_budget_is_held_against_its_own_figure():
    found = selected([candidate("a", 0.99, 10, p99=21), candidate("b", 0.95, 19.5, p99=20)], 20)
    assert found.chosen == "b" and not found.standings["a"].inside


def test_nothing_inside_the_budget():
    found = selected([candidate("a", 0.99, 30), candidate("b", 0.95, 25)], 20)
    assert found.best is found.chosen is None and found.optimism == 0
    assert found.standings["b"].difference == pytest.approx(-0.04)  # less the best of all
    assert selected([], 20).chosen is None
    assert selected([candidate("a", NAN, 5)]).chosen is None


def test_of_what_ties_the_faster_is_taken():
    best, near, far = (
        candidate("best", 0.990, 12, spread=0.01, seed=1),
        candidate("near", 0.987, 6, spread=0.01, seed=2),
        candidate("far", 0.970, 3, spread=0.02, seed=3),
    )
    found = selected([best, near, far], 20)
    assert found.best == "best" and found.chosen == "near"
    low, high = found.standings["near"].difference_ci95
    assert low < found.standings["near"].difference < high
    # Not told apart from the best by these images, which is no proof that it is as good.
    assert found.standings["far"].open and not found.standings["far"].tied and found.standings["far"].alternative
    told_apart = selected([candidate("best", 0.990, 12), candidate("near", 0.987, 6)])
    assert told_apart.chosen == "best" and not told_apart.standings["near"].open


def test_a_tie_ends_at_its_limit():
    for drop, chosen in ((TIE, "b"), (TIE + 1e-6, "a")):
        found = selected([candidate("a", 0.9, 12, spread=0.1, seed=1), candidate("b", 0.9 - drop, 6, spread=0.1)])
        assert found.chosen == chosen


def test_a_slower_tie_is_no_alternative_and_equals_go_by_speed():
    found = selected([candidate("a", 0.99, 5, spread=0.01), candidate("b", 0.989, 9, spread=0.01, seed=1)])
    assert found.chosen == "a" and found.standings["b"].tied and not found.standings["b"].alternative
    assert selected([candidate("a", 1.0, 9), candidate("b", 1.0, 5)]).chosen == "b"


def test_what_was_not_measured_is_never_taken():
    found = selected([candidate("a", NAN, 1), candidate("b", 0.6, 9), candidate("c", 0.9, NAN)], 20)
    assert found.best == found.chosen == "b"
    assert found.standings["a"].difference is None and not found.standings["c"].inside


def test_optimism_of_a_choice_among_equals():
    """Twenty methods that tell nothing apart: the best of them looks better than it is, and the correction says so."""
    rng = np.random.default_rng(5)
    labels = np.arange(60) < 30
    candidates = []
    for index in range(20):
        scores = rng.standard_normal(60)
        drawn = bootstrap_values(auroc, scores, labels, n=400)
        candidates.append(Candidate(str(index), auroc(scores, labels), 1.0 + index, 1.0, drawn))
    best = max(each.accuracy for each in candidates)
    assert best > 0.6
    assert 0.5 * (best - 0.5) < optimism_of(candidates) < 1.5 * (best - 0.5)
    assert optimism_of(candidates[:1]) == 0 == optimism_of([])
    perfect = [Candidate(name, 1.0, 1.0, 1.0, np.ones(9)) for name in "ab"]
    assert optimism_of(perfect) == 0
