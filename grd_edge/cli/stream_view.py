"""What a stream does, on a terminal: counts, rate, latencies, and the last decisions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from grd_edge.cli.common import cell
from grd_edge.results import plain
from grd_edge.streaming import Summary, latency_rows

LATENCY_COLUMNS = ("ms", "p50", "p95", "p99", "p99.9", "worst")
LAST = 10  # decisions that are shown
_RATE_S = 3.0  # the frame rate is that of so long
_STYLES = {"good": "green", "defective": "red", "inconsistent": "red", "undecided": "yellow", "error": "bright_red"}


def identity_of(summary: Summary) -> str:
    """The counts of a stream as the sum they make."""
    stats = summary.stats
    return (
        f"{stats.submitted} frames submitted = {stats.scored} scored + {stats.late} late + {stats.dropped} dropped + "
        f"{stats.failed} failed + {stats.in_flight} in flight"
    )


def besides_of(summary: Summary) -> str:
    """Decisions, rate, and what went another way, in one line."""
    parts = [f"{summary.frames_per_s:.1f} frames/s"]
    for level, counts in summary.decisions.items():
        if counts:
            parts.append(f"{level}s: " + ", ".join(f"{count} {decision}" for decision, count in counts.items()))
    if summary.refused:
        parts.append(f"{summary.refused} frames not submitted, as results were written too slowly")
    if summary.lost:
        parts.append(f"{summary.lost} frames of the camera replaced by newer ones")
    if summary.incomplete_products:
        parts.append(f"{summary.incomplete_products} products incomplete")
    return "; ".join(parts)


def latency_table(summary: Summary) -> Table:
    """Latencies of each stage."""
    table = Table(*LATENCY_COLUMNS)
    for row in latency_rows(summary.stats):
        table.add_row(*row)
    return table


class StreamView:
    """A renderable that asks for the state when it is drawn.

    Args:
        title: what runs, on one line.
        summary: gives the counts so far.
        rows: the last rows of `grd_edge.streaming.COLUMNS`; other threads may add some meanwhile.
    """

    def __init__(self, title: str, summary: Callable[[], Summary], rows: Iterable[Mapping[str, Any]]) -> None:
        self._title, self._summary, self._rows = title, summary, rows
        self._back: deque[tuple[float, int]] = deque()

    def __rich__(self) -> Group:
        summary = self._summary()
        rows = Table("last", "decision", "score", "threshold", "total ms", "", box=None)
        for row in list(self._rows):
            name = row["name"] if row["level"] == "image" else f"{row['level']} {row['name']}"
            values = (cell(plain(row[column])) for column in ("score", "threshold", "total_ms"))
            outcome = row["error"] or ("late" if row["outcome"] == "late" else "")
            rows.add_row(
                Text(str(name), overflow="ellipsis", no_wrap=True),
                Text(row["decision"], _STYLES.get(row["decision"], "")),
                *values,
                Text(outcome, overflow="ellipsis", no_wrap=True),
            )
        rate = Text(f"{self._rate(summary):.1f} frames/s now; since the start {besides_of(summary)}")
        return Group(Text(self._title), Text(identity_of(summary)), rate, latency_table(summary), rows)

    def _rate(self, summary: Summary) -> float:
        now, back = time.monotonic(), summary.stats.submitted - summary.stats.in_flight
        self._back.append((now, back))
        while len(self._back) > 2 and now - self._back[0][0] > _RATE_S:
            self._back.popleft()
        then, before = self._back[0]
        return (back - before) / max(now - then, 1e-9) if now > then else 0.0
