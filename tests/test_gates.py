"""Gates: what they are written as, when they hold, and that an unmeasured one never does."""

import pytest

from grd_edge.errors import InputError
from grd_edge.gates import METRICS, PARTS, failure, gates_from_limits, gates_from_texts, verdicts


def test_gates_are_upper_limits_but_for_speeds():
    gates = gates_from_texts(["p99_ms=20", "p99.9_ms<=30", "speedup >= 3", "throughput=7e1"])
    assert [(gate.metric.name, gate.limit, gate.bound) for gate in gates] == [
        ("p99_ms", 20, "at most"),
        ("p99_9_ms", 30, "at most"),
        ("speedup", 3, "at least"),
        ("throughput", 70, "at least"),
    ]
    lower = {name for name, metric in METRICS.items() if metric.at_least}
    assert lower == {"speedup", "throughput", "throughput_patches"}
    assert {metric.part for metric in METRICS.values()} == set(PARTS)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["p99_ms"], "no metric with a limit"),
        (["=3"], "no metric with a limit"),
        (["p99_ms=fast"], "no number"),
        (["p99_ms=nan"], "a number above 0"),
        (["p99_ms=inf"], "a number above 0"),
        (["speedup=-3"], "a number above 0"),
        (["p99_ms>=3"], "the wrong way round"),
        (["speedup<=3"], "the wrong way round"),
        (["p99_ms=3", "p99_ms=4"], "gated twice"),
        (["p99.9_ms=3", "p99_9_ms=4"], "gated twice"),
        (["p98_ms=3"], "did you mean 'p9"),
        (["accuracy=0.9"], "grd-edge eval"),
    ],
)
def test_what_is_no_gate_is_told_in_one_sentence(texts, words):
    with pytest.raises(InputError) as refused:
        gates_from_texts(texts)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    if texts[0] in ("p98_ms=3", "accuracy=0.9"):
        assert ", ".join(METRICS) in str(refused.value)


def test_limits_are_numbers():
    for limit in (0, True, "20", None, [20]):
        with pytest.raises(InputError, match="a number above 0"):
            gates_from_limits({"p99_ms": limit})


def test_a_limit_that_is_met_exactly_holds_and_an_unmeasured_metric_fails():
    gates = gates_from_limits({"p99_ms": 20, "p50_ms": 20, "speedup": 3, "throughput": 3, "memory_mb": 9, "jitter": 1})
    figures = {"p99_ms": 20.0, "p50_ms": 20.001, "speedup": 3.0, "throughput": 2.999, "memory_mb": None}
    found = verdicts(gates, {**figures, "jitter": float("nan")}, {"memory_mb": "nobody tells"})
    assert [verdict.passed for verdict in found] == [True, False, True, False, False, False]
    sentence = failure(found)
    assert sentence.startswith("4 of 6 gates did not hold: p50_ms 20.001 (at most 20); throughput 2.999 (at least 3)")
    assert "memory_mb not measured: nobody tells" in sentence and "jitter not measured" in sentence
    assert failure(found[:1]) is None and failure([]) is None


def test_quantiles_need_as_many_frames_as_one_in_them_is():
    needed = {name: METRICS[name].rounds for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "jitter")}
    assert needed == {"p50_ms": 2, "p90_ms": 10, "p95_ms": 20, "p99_ms": 100, "p99_9_ms": 1000, "jitter": 100}
