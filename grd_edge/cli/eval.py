"""`grd-edge eval`: how good is a bundle on labelled images?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from grd_edge.cli.common import (
    BundlePath,
    Data,
    ImageBar,
    Json,
    cell,
    each_category,
    in_category,
    load_dataset,
    plain,
    print_json,
    print_rows,
    progress,
)


@each_category(
    inputs={"bundle": ".grdb", "against": ".safetensors"},
    outputs={"output": ""},
    columns=(
        "image_auroc",
        "image_auroc_ci95",
        "image_auroc_untrained",
        "image_ap",
        "pixel_auroc",
        "aupro",
        "balanced_accuracy",
        "false_reject_rate",
        "escape_rate",
    ),
)
def eval_(
    bundle: BundlePath,
    data: Data,
    against: Annotated[
        Path | None, typer.Option("--against", help="Checkpoint to compare with, image by image, in PyTorch.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for eval.json and images.csv, a row per image.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained/--no-untrained", help="Report an untrained generator beside the trained one.")
    ] = True,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the split; default: the training's.")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AP, AUPRO, rates at the shipped threshold, with intervals; with --against, agreement with PyTorch.

    For a benchmark root BUNDLE is the folder that holds <category>.grdb.
    """
    from grd_edge.bundle import read_bundle
    from grd_edge.evaluate import COLUMNS, evaluated_bundle, rows_from_scored, training_seed
    from grd_edge.files import write_atomically
    from grd_edge.results import csv_lines

    if seed is None:
        seed = training_seed(read_bundle(bundle))
    samples = load_dataset(data, seed=seed, need_train=False).test
    with progress() as bar:
        result, scored = evaluated_bundle(
            bundle,
            samples,
            against=against,
            untrained=untrained,
            bar=lambda name: ImageBar(bar, name, len(samples)),
        )
    if output:
        write_atomically(output / "images.csv", csv_lines(COLUMNS, rows_from_scored(scored)))
        write_atomically(output / "eval.json", (json.dumps(plain(result), indent=1, allow_nan=False) + "\n").encode())
    if json_ or in_category():
        print_json(result)
    else:
        print_rows(f"{bundle.name} on {data}", _shown(result))


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """What the table shows: an interval beside its figure, a line per kind of defect, the notes one by one."""
    rows = dict(result)
    for name in [name for name in rows if name.endswith("_ci95")]:
        interval = cell(rows.pop(name))
        rows[name.removesuffix("_ci95")] = f"{cell(rows.get(name.removesuffix('_ci95')))}  95 % {interval}".strip()
    kinds, notes = rows.pop("kinds"), rows.pop("notes")
    for kind, found in kinds.items():
        rows[f"  {kind}"] = (
            f"{found['images']} images, AUROC {cell(found['image_auroc'])}, "
            f"escapes {cell(found['escapes'])} of {found['products']} products"
        )
    rows |= {f"note {index}": note for index, note in enumerate(notes, start=1)}
    return {name: cell(value) for name, value in rows.items()}
