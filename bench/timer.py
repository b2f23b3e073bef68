"""The one timer: contenders in turn, in one process, outputs checked before anything is timed.

Machines are shared and clocks drift, so only ratios of runs that alternate mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grd_edge.errors import CheckFailedError


@dataclass(frozen=True)
class Timing:
    """Times of one contender in ms, one per round."""

    name: str
    times_ms: np.ndarray

    @property
    def min_ms(self) -> float:
        return float(self.times_ms.min())

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.times_ms))

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self.times_ms, 0.99))


def interleaved(
    contenders: dict[str, Callable[[Any], Any]],
    *,
    rounds: int,
    inputs: Sequence[Any] = (None,),
    warmup: int = 3,
    settle_ms: float = 0,
    check: Callable[[dict[str, Any]], None] | None = None,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timing]:
    """Times the contenders in turn: in round i each gets inputs[i % len(inputs)] before the next round begins.

    Args:
        contenders: name -> function of one input. The first runs first in even rounds and last in odd ones, so that
            none always inherits the cache that the same other one left.
        rounds: timed rounds, >= 3.
        inputs: inputs to cycle through.
        warmup: untimed rounds before.
        settle_ms: pause before each run. Thread pools spin for some milliseconds after their last task; without a pause
            a contender with threads pays for the spinning of the one before it (OpenMP's: 4 ms of an 8 ms inspection on
            2 cores, 2026-11-25), which no line PC does.
        check: receives the outputs for the first input by name, before timing; raises when they do not agree.
        on_round: told between timed rounds how many are done, of how many.

    Raises:
        CheckFailedError: fewer than 3 rounds, which measure nothing; or raised by `check`.
    """
    if rounds < 3:
        raise CheckFailedError(f"{rounds} rounds measure nothing; time at least 3")
    if check:
        check({name: run(inputs[0]) for name, run in contenders.items()})
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for index in range(-warmup, rounds):
        item = inputs[index % len(inputs)]
        for name, run in order if index % 2 == 0 else reversed(order):
            if settle_ms:
                time.sleep(settle_ms / 1e3)
            start = time.perf_counter_ns()
            run(item)
            spent = time.perf_counter_ns() - start
            if index >= 0:
                times[name].append(spent / 1e6)
        if index >= 0:
            on_round(index + 1, rounds)
    return {name: Timing(name, np.array(values)) for name, values in times.items()}


def speedup(baseline: Timing, contender: Timing, statistic: str = "p50_ms") -> float:
    """How many times faster the contender is than the baseline."""
    return getattr(baseline, statistic) / getattr(contender, statistic)


def figures(timings: dict[str, Timing]) -> dict[str, float]:
    """`<name>_min_ms` and `<name>_p50_ms` of every contender."""
    return {
        f"{name}_{statistic}": getattr(timing, statistic)
        for name, timing in timings.items()
        for statistic in ("min_ms", "p50_ms")
    }
