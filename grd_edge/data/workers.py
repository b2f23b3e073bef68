"""Work on many images in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(8, os.cpu_count() or 1)
SHARE = 64  # items of a task: handing over one alone costs more than hashing a small file


def in_threads(
    work: Callable[[T], R], items: Sequence[T], on_progress: Callable[[int, int], None] | None = None
) -> list[R]:
    """`[work(item) for item in items]` in threads; an error of `work` is raised as it is, that of the first item first.

    Args:
        on_progress: called in this thread with items done and planned.
    """
    results: list[R] = []
    shares = [items[start : start + SHARE] for start in range(0, len(items), SHARE)]
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done in pool.map(lambda share: [work(item) for item in share], shares):
                results += done
                if on_progress:
                    on_progress(len(results), len(items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
