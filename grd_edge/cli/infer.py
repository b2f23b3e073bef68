"""`grd-edge infer`: decisions for images. Needs no training stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import BundlePath, Json, err

COLUMNS = ("image", "decision", "score", "threshold", "patches", "defective_patches", "total_ms")


def infer(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0: all cores.")] = 0,
    precision: Annotated[str | None, typer.Option(help="Precision of the engine; default: the bundle's.")] = None,
    json_: Json = False,
) -> None:
    """Inspect images with the bundle's engine; one line per image (JSON lines with --json)."""
    from grd_edge.data.images import image_files, read_image
    from grd_edge.errors import InputError
    from grd_edge.runtime import Inspector

    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    with Inspector(bundle, threads=threads, precision=precision) as inspector:
        if not inspector.info.has_decision:
            err.print("grd-edge: this bundle has no thresholds yet, so nothing is decided; run: grd-edge recalibrate")
        if not json_:
            typer.echo("\t".join(COLUMNS))
        for file in files:
            try:
                result = inspector.inspect(read_image(file))
            except InputError as error:
                raise error if str(file) in str(error) else InputError(f"{file}: {error}") from error
            row = (
                str(file),
                result.decision,
                result.score,
                result.threshold,
                len(result.phi),
                int(result.defective.sum()),
                round(result.times_ms["total"], 3),
            )
            if json_:
                # NaN is no JSON: a score that does not exist is null.
                values = [None if value != value else value for value in row]
                typer.echo(json.dumps(dict(zip(COLUMNS, values, strict=True))))
            else:
                typer.echo("\t".join(f"{value:.6f}" if isinstance(value, float) else str(value) for value in row))
