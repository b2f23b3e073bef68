"""Ctrl-C, whatever a library makes of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noticing_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether Ctrl-C was pressed and interrupted something; never outside of the main thread."""
    stopped = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def interrupt(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, previous)
