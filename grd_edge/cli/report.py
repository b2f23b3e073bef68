"""`grd-edge report`: what was built and how good it is, as one HTML file for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import out


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Bundles, folders of `eval -o` (with --benchmark-root, too), of a demo, of a training run or of "
            "`compare`, JSON files of `bench -o`.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page.", show_default=False)],
) -> None:
    """Write one self-contained HTML file: what was built, accuracy, curves, errors, parity, precision, latency, device.

    Paths of two bundles are shown side by side. What carries no seal belongs to the bundle before it.
    """
    from grd_edge.report.html import write_html_report

    size = write_html_report(output, runs)
    out.print(f"{output} ({size:,} bytes)")
