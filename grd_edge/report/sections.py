"""The HTML report: its sections in order."""

from __future__ import annotations

from collections.abc import Sequence

from grd_edge.report.blocks import Section
from grd_edge.report.built import built, precision, thresholds, training
from grd_edge.report.categories import categories
from grd_edge.report.measured import device, latency
from grd_edge.report.methods import methods_of
from grd_edge.report.quality import accuracy, curves, errors, parity, scores, summary
from grd_edge.report.runs import SLOTS, Run


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All sections in the order of the page; where data are missing, they say which command brings them.

    Runs of which nothing but a benchmark over categories is given have that section only, and a comparison of methods
    alone its own ones.

    Raises:
        InputError: a file that one of the runs names cannot be used. MissingExtraError: see `picture`.
    """
    quality = (summary, built, accuracy, curves, scores, errors, parity)
    compared = [section for run in runs if run.methods for section in methods_of(run)]
    if all(run.methods and not any(getattr(run, slot) for slot in SLOTS if slot != "methods") for run in runs):
        return compared
    if all(run.benchmark and not any(getattr(run, slot) for slot in SLOTS if slot != "benchmark") for run in runs):
        return [categories(runs)]
    over_roots = (categories,) if any(run.benchmark for run in runs) else ()
    rest = (thresholds, precision, latency, training, device)
    return [*(make(runs) for make in (*quality, *over_roots)), *compared, *(make(runs) for make in rest)]
