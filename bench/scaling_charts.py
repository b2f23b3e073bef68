"""Charts of bench/scaling.py: cost against size, both axes logarithmic, the fitted line dashed; memory against frames.

Colors and dashes are those of the report's charts (grd_edge/report/report.html.j2).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from grd_edge.bench.exponents import affine_power_fit, power_fit
from grd_edge.bench.sweeps import Sweep

from grd_edge.errors import CheckFailedError
from grd_edge.files import write_atomically
from grd_edge.report.figures import pyplot

INK, GRID = "#1b1f24", "#e4e8ec"
STYLES = (("#0b5cad", "-"), ("#b33a00", "--"), ("#2b7a2b", ":"), ("#7a3aa0", "-."))
SIZE_IN = (6.4, 4.4)


def write_charts(folder: Path, sweeps: Sequence[Sweep], memory: dict[str, Any] | None) -> list[Path]:
    """An SVG for each name of a sweep, and one of the memory; their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plots = pyplot("to draw the charts")
    written = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        figure, axis = _axes(plots)
        for (color, dash), sweep in zip(STYLES, [each for each in sweeps if each.name == name], strict=False):
            _draw(axis, sweep, color, dash)
        several = len({each.y_label for each in sweeps if each.name == name}) > 1
        axis.set(xscale="log", yscale="log", xlabel=sweep.x_label, ylabel="ms" if several else sweep.y_label)
        axis.set_xticks(sorted({size for each in sweeps if each.name == name for size in each.sizes}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_locator(plots.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend(fontsize=8, frameon=False)
        written.append(_write(plots, folder / f"{name}.svg", figure))
    if memory:
        figure, axis = _axes(plots)
        axis.plot(memory["frames"], np.array(memory["resident_bytes"]) / 1e6, color=STYLES[0][0])
        axis.set(xlabel="frames streamed", ylabel="resident memory, MB", ylim=(0, None))
        interval = f"{memory['bytes_a_frame']:.2g} bytes a frame [{memory['low']:.2g}, {memory['high']:.2g}]"
        axis.set_title(interval, fontsize=9)
        written.append(_write(plots, folder / "memory.svg", figure))
    return written


def _axes(plots: Any) -> tuple[Any, Any]:
    figure, axis = plots.subplots(figsize=SIZE_IN, layout="constrained")
    axis.grid(color=GRID, linewidth=1)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(labelsize=9)
    return figure, axis


def _draw(axis: Any, sweep: Sweep, color: str, dash: str) -> None:
    """Minima as points, medians as a bar above each, and the power law through the minima."""
    least, middle = sweep.times_ms.min(0), np.median(sweep.times_ms, axis=0)
    label = sweep.engine if sweep.y_label.startswith("ms a frame") else sweep.y_label
    try:
        fit = power_fit(sweep.sizes, sweep.times_ms)
    except CheckFailedError:
        axis.plot(sweep.sizes, least, dash, color=color, linewidth=1.5, label=label)
    else:
        x = np.array(sweep.sizes, float)
        line = np.exp(np.log(least).mean()) * np.exp(fit.exponent * (np.log(x) - np.log(x).mean()))
        label += f": exponent {fit}"
        if sweep.name == "patches":  # the one that the bar is on
            with suppress(CheckFailedError):
                beside = affine_power_fit(sweep.sizes, sweep.times_ms)
                label += f"\n    {beside} beside {beside.fixed:.2g} ms"
        axis.plot(x, line, dash, color=color, linewidth=1.5, label=label)
    axis.errorbar(
        sweep.sizes, least, (np.zeros_like(least), middle - least), fmt="o", color=color, markersize=5, capsize=3
    )


def _write(plots: Any, path: Path, figure: Any) -> Path:
    buffer = io.BytesIO()
    with plots.rc_context({"svg.hashsalt": "grd-edge", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plots.close(figure)
    write_atomically(path, buffer.getvalue())
    return path
