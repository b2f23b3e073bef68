"""How many steps of a training fit into a time, by timing some of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

TIMED_STEPS = 8
WARM_STEPS = 3


def steps_within(seconds: float, advance: Callable[[int], object], period: int = TIMED_STEPS) -> int:
    """How many steps fit into `seconds`, those included that are made to find out.

    Args:
        advance: makes the step of a number.
        period: steps after which their cost repeats.
    """
    times = []
    for step in range(WARM_STEPS + 2 * period):
        start = time.perf_counter()
        advance(step)
        times.append(time.perf_counter() - start)
    # Whole periods, as some steps carry more terms; the faster one, as other work may have held up the other.
    first, second = np.split(np.array(times[WARM_STEPS:]), 2)
    return max(1, int((seconds - sum(times)) / min(first.mean(), second.mean())))
