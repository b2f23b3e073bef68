"""`grd-edge infer`: decisions for images. Needs no training stack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grd_edge.cli.common import (
    BundlePath,
    EnginePrecision,
    Formats,
    HeatmapTop,
    ImageBar,
    Json,
    Output,
    ProductBy,
    Recursive,
    RunBy,
    Threads,
    each_category,
    err,
    format_names,
    in_category,
    print_json,
    progress,
    tab_line,
)

COLUMNS = ("image", "decision", "score", "threshold", "patches", "defective_patches", "total_ms")
LONG_IMAGES = 200  # from here on a bar shows progress even when the lines go to a terminal, too


def _root(arguments: dict[str, Any]) -> Path | None:
    return arguments["images"][0] if len(arguments["images"]) == 1 else None


@each_category(
    inputs={"bundle": ".grdb"},
    outputs={"output": ""},
    columns=("images", "good", "defective", "undecided", "error"),
    root=_root,
    narrowed=lambda folder: {"images": [folder / "test"], "recursive": True},
)
def infer(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    output: Output = None,
    formats: Formats = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="A picture per image, in OUT/heatmaps.")] = False,
    heatmap_top: HeatmapTop = None,
    roi: Annotated[Path | None, typer.Option("--roi", help="Mask of interest of all images.")] = None,
    product_by: ProductBy = None,
    run_by: RunBy = None,
    recursive: Recursive = False,
    threads: Threads = 0,
    precision: EnginePrecision = None,
    json_: Json = False,
) -> None:
    """Inspect images with the bundle's engine; one line per image (JSON lines with --json).

    An image that cannot be inspected gets the decision `error`, the others are inspected, and the exit code is 1. For
    a benchmark root BUNDLE is the folder that holds <category>.grdb, and the test images are inspected.
    """
    from grd_edge.data.images import images_of
    from grd_edge.errors import InputError
    from grd_edge.inference import InferOptions, inspected_images
    from grd_edge.results import json_line

    if heatmaps and output is None:
        raise InputError("heatmaps need a folder to go to; add one with: -o OUT")
    files = images_of(images, recursive=recursive)
    options = InferOptions(
        output=output,
        formats=format_names(formats),
        heatmaps=heatmaps,
        heatmap_top=heatmap_top,
        roi=roi,
        product_by=product_by,
        run_by=run_by,
        threads=threads,
        precision=precision,
    )
    counts = dict.fromkeys(("images", "good", "defective", "undecided", "error"), 0)
    failed: list[dict[str, Any]] = []
    titled = json_
    with progress(visible=len(files) >= LONG_IMAGES) as bar:
        on_progress = ImageBar(bar, "infer", len(files))
        for row in inspected_images(bundle, files, options, on_note=lambda text: err.print(f"grd-edge: {text}")):
            if not titled:
                typer.echo("\t".join(COLUMNS))
                titled = True
            if row["level"] == "image":
                counts["images"] += 1
                counts[row["decision"]] += 1
                if row["decision"] == "error":
                    failed.append(row)
                on_progress(counts["images"])
            line = {row["level"]: row["name"], **{column: row[column] for column in COLUMNS[1:]}}
            if row["error"]:
                line["error"] = row["error"]
            if json_:
                typer.echo(json_line(line), nl=False)
            else:
                line[row["level"]] = row["name"] if row["level"] == "image" else f"{row['level']} {row['name']}"
                typer.echo(tab_line(list(line.values())[: len(COLUMNS)]))
    if in_category():
        print_json(counts)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(files)} images could not be inspected and count as `error`: {failed[0]['error']}"
        )
