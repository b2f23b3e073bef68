"""A picture that shows at a glance what the engine sees: images, reconstructions, heatmaps, decisions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grd_edge.errors import require
from grd_edge.files import write_atomically


@dataclass(frozen=True)
class Panel:
    """One image: (H, W) or (H, W, 3) in [0, 1], its reconstruction, its heatmap (H, W), and what was said of it."""

    title: str
    image: np.ndarray
    x_hat: np.ndarray
    heatmap: np.ndarray
    correct: bool


def write_contact_sheet(path: Path, panels: Sequence[Panel], *, title: str, columns: int = 8) -> None:
    """Writes a PNG with blocks of three rows: image, reconstruction, heatmap.

    All heatmaps share one color scale: scaled each by itself, every good part would look hot.
    """
    pyplot = require("matplotlib.pyplot", extra="demo", purpose="to draw the contact sheet")
    pyplot.switch_backend("Agg")
    top = max(1e-6, float(np.quantile(np.concatenate([panel.heatmap.ravel() for panel in panels]), 0.999)))
    blocks = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        3 * blocks, columns, figsize=(1.55 * columns, 5.2 * blocks + 0.7), squeeze=False, layout="constrained"
    )
    for axis in axes.ravel():
        axis.axis("off")
    for index, panel in enumerate(panels):
        block, column = divmod(index, columns)
        for row, picture in enumerate((panel.image, panel.x_hat, panel.heatmap)):
            axis = axes[3 * block + row, column]
            options = {"cmap": "inferno", "vmax": top} if row == 2 else {"cmap": "gray", "vmax": 1}
            shown = axis.imshow(picture, vmin=0, interpolation="nearest", **options)
            if row == 0:
                axis.set_title(panel.title, fontsize=7, color="black" if panel.correct else "crimson")
    for block in range(blocks):
        for row, name in enumerate(("image", "reconstruction", "|difference|")):
            axis = axes[3 * block + row, 0]
            axis.text(-0.08, 0.5, name, fontsize=7, rotation=90, va="center", ha="right", transform=axis.transAxes)
    figure.colorbar(shown, ax=axes, shrink=0.5, pad=0.01).ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
