"""A picture that shows at a glance what engines see: images, reconstructions, heatmaps, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grd_edge.report.figures import pyplot, write_figure

# Rows of the sheet of one engine, and the color scale of each; None: grey.
ENGINE_ROWS = {"image": None, "reconstruction": None, "|difference|": "heatmap"}


@dataclass(frozen=True)
class Panel:
    """One image: its title, a picture (H, W) or (H, W, 3) per row, in [0, 1], and whether what was said is right."""

    title: str
    pictures: Sequence[np.ndarray]
    correct: bool


def write_contact_sheet(
    path: Path,
    panels: Sequence[Panel],
    *,
    title: str,
    rows: Mapping[str, str | None] = ENGINE_ROWS,
    columns: int = 8,
) -> None:
    """Writes a PNG with blocks of a row per picture of a panel.

    All pictures of one color scale share it: scaled each by itself, every good part would look hot.

    Args:
        rows: name of each row, and that of its color scale; None: grey in [0, 1].
        columns: panels beside each other.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plots = pyplot("to draw the contact sheet")
    names, scales = list(rows), list(rows.values())
    tops = {
        scale: _top([panel.pictures[row] for panel in panels for row, each in enumerate(scales) if each == scale])
        for scale in dict.fromkeys(scales)
        if scale
    }
    blocks = -(-len(panels) // columns)
    size = (1.55 * columns + 0.9 * (len(tops) - 1), (1.45 * len(rows) + 0.6) * blocks + 0.7)
    figure, axes = plots.subplots(len(rows) * blocks, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.ravel():
        axis.axis("off")
    shown = {}
    for index, panel in enumerate(panels):
        block, column = divmod(index, columns)
        for row, (scale, picture) in enumerate(zip(scales, panel.pictures, strict=True)):
            axis = axes[len(rows) * block + row, column]
            options = {"cmap": "inferno", "vmax": tops[scale]} if scale else {"cmap": "gray", "vmax": 1}
            shown[scale] = axis.imshow(picture, vmin=0, interpolation="nearest", **options)
            if row == 0:
                axis.set_title(panel.title, fontsize=7, color="black" if panel.correct else "crimson")
    for block in range(blocks):
        for row, name in enumerate(names):
            axis = axes[len(rows) * block + row, 0]
            axis.text(-0.08, 0.5, name, fontsize=7, rotation=90, va="center", ha="right", transform=axis.transAxes)
    for scale in tops:
        bar = figure.colorbar(shown[scale], ax=axes, shrink=0.5, pad=0.01)
        bar.ax.tick_params(labelsize=6)
        if len(tops) > 1:
            bar.set_label(scale, fontsize=7)
    figure.suptitle(title, fontsize=9)
    write_figure(path, figure)


def _top(pictures: Sequence[np.ndarray]) -> float:
    """Where a color scale ends."""
    return max(1e-6, float(np.quantile(np.concatenate([picture.ravel() for picture in pictures]), 0.999)))
