"""`grd-edge calibrate`: activation ranges of a model on calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import (
    CheckpointPath,
    Data,
    Json,
    StepBar,
    each_category,
    load_dataset,
    print_json,
    print_rows,
    progress,
)


@each_category(
    inputs={"checkpoint": ".safetensors"},
    outputs={"output": ".json"},
    columns=("ranges", "algorithm", "tensors", "images", "patches"),
)
def calibrate(
    checkpoint: CheckpointPath,
    data: Data,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="default, minmax, percentile, entropy, phi, or a YAML file.")
    ] = "default",
    images: Annotated[
        int | None, typer.Option(min=1, help="Calibration images to use; default: the recipe's, else all.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Range table to write.")] = Path(
        "artifacts/ranges.json"
    ),
    json_: Json = False,
) -> None:
    """Measure activation ranges for quantization. (Thresholds: see recalibrate.)"""
    from grd_edge.calibrate import ranges_from_checkpoint
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.data.check import check_dataset
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.files import write_atomically
    from grd_edge.recipes import load_recipe

    how = load_recipe(recipe)
    if images:
        how = how.model_copy(update={"images": images})
    trained = read_checkpoint(checkpoint)
    dataset = load_dataset(data, seed=trained.config.train.seed, need_test=False)
    check_dataset(dataset, trained.config)
    with progress() as bar:
        table = ranges_from_checkpoint(
            trained,
            onnx_from_checkpoint(trained),
            dataset.calibration,
            recipe=how,
            on_progress=StepBar(bar, "calibrate"),
        )
    write_atomically(output, table.to_bytes())
    result = {
        "ranges": str(output),
        "recipe": table.recipe,
        "algorithm": table.algorithm,
        "tensors": len(table.ranges),
        "images": table.images,
        "patches": table.patches,
        **({"in higher precision": dict(table.keep)} if table.keep else {}),
    }
    print_json(result) if json_ else print_rows("calibrated", result)
