"""The HTML report: one file with everything in it, for which a browser fetches nothing. Use: docs/report.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path

from grd_edge.errors import InputError, require
from grd_edge.files import write_atomically
from grd_edge.report.columns import labels
from grd_edge.report.runs import Run, read_runs
from grd_edge.report.sections import sections_of
from grd_edge.results import path_text

TEMPLATE = "report.html.j2"


def html_of_runs(runs: Sequence[Run]) -> str:
    """The page of one run, or of two side by side.

    Raises:
        InputError: a file of a run cannot be used. MissingExtraError: Jinja or OpenCV is not installed.
    """
    jinja = require("jinja2", extra="report", purpose="to write reports")
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    template = environment.from_string((resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=" against ".join(labels(runs)[::-1]) if len(runs) > 1 else labels(runs)[0],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=metadata.version("grd-edge"),
        places=", ".join(path_text(place) for run in runs for place in run.places),
        sections=sections_of(runs),
    )


def _breakable(text: str):
    """`text` as HTML in which a long word, such as a seal, may go on in the next line; copied, it is still one word."""
    from markupsafe import Markup, escape

    # Hashes in columns of eight; where a match is kept, split gives it at odd places.
    parts = re.split(r"([0-9a-f]{8}(?=[0-9a-f])|\S{16}(?=\S))", text)
    return Markup("").join(escape(part) + Markup("<wbr>") * (index % 2) for index, part in enumerate(parts))


def write_html_report(path: Path, places: Sequence[Path]) -> int:
    """Writes the report of what lies at `places`, atomically.

    Args:
        path: ends in .html or .htm.
        places: as `read_runs` takes them.

    Returns:
        Bytes written.

    Raises:
        InputError: `path` is no name of a page or cannot be written, or a place cannot be used.
        BundleError, MissingExtraError: see `read_runs` and `html_of_runs`.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"a report's name ends in .html, found {path_text(path.name)!r}; call it {path_text(path)}.html"
        )
    data = html_of_runs(read_runs(places)).encode("utf-8", "backslashreplace")
    write_atomically(path, data)
    return len(data)
