"""What all pictures share: a matplotlib that needs no display, and files that are written whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from grd_edge.errors import require
from grd_edge.files import write_atomically


def pyplot(purpose: str) -> Any:
    """`matplotlib.pyplot`, drawing into files.

    Args:
        purpose: as in `require`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    module = require("matplotlib.pyplot", extra="demo", purpose=purpose)
    module.switch_backend("Agg")
    return module


def write_figure(path: Path, figure: Any, dpi: int = 130) -> None:
    """Writes a figure as PNG, atomically, and closes it."""
    import matplotlib.pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    matplotlib.pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
