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

SHOWN_LAYERS = 8


@each_category(
    inputs={"checkpoint": ".safetensors"},
    outputs={"output": ".json", "sensitivity": ".json"},
    columns=("ranges", "algorithm", "tensors", "images", "patches"),
)
def calibrate(
    checkpoint: CheckpointPath,
    data: Data,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="default, minmax, percentile, peaks, entropy, phi, or a YAML file.")
    ] = "default",
    images: Annotated[
        int | None, typer.Option(min=1, help="Calibration images to use; default: the recipe's, else all.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Range table to write.")] = Path(
        "artifacts/ranges.json"
    ),
    sensitivity: Annotated[
        Path | None,
        typer.Option(help="JSON to write: what quantizing each layer alone does to phi, AUROC and decisions."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure activation ranges for quantization. (Thresholds: see recalibrate.)"""
    from grd_edge.calibrate import ranges_from_checkpoint
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.data.check import check_dataset
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.files import write_atomically
    from grd_edge.recipes import load_recipe
    from grd_edge.results import json_document
    from grd_edge.sensitivity import effects_of_checkpoint

    how = load_recipe(recipe)
    if images:
        how = how.model_copy(update={"images": images})
    trained = read_checkpoint(checkpoint)
    dataset = load_dataset(data, seed=trained.config.train.seed, need_test=False)
    check_dataset(dataset, trained.config)
    model = onnx_from_checkpoint(trained)
    effects = []
    with progress() as bar:
        table = ranges_from_checkpoint(
            trained,
            model,
            dataset.calibration,
            recipe=how,
            on_progress=StepBar(bar, "calibrate"),
        )
        if sensitivity:
            effects = effects_of_checkpoint(
                trained, dataset.train, model, table, on_progress=StepBar(bar, "layers alone")
            )
    write_atomically(output, table.to_bytes())
    if sensitivity:
        write_atomically(sensitivity, json_document([effect.to_json() for effect in effects]))
    result = {
        "ranges": str(output),
        "recipe": table.recipe,
        "algorithm": table.algorithm,
        "tensors": len(table.ranges),
        "images": table.images,
        "patches": table.patches,
        **({"in higher precision": dict(table.keep)} if table.keep else {}),
    }
    worst = sorted(effects, key=lambda effect: -effect.accuracy.phi_diff_std)[:SHOWN_LAYERS]
    result |= {
        f"layer {effect.layer} alone": f"phi off by {effect.accuracy.phi_mean_abs_diff:.1e} "
        f"(std {effect.accuracy.phi_diff_std:.1e}), AUROC {-effect.accuracy.auroc_drop:+.4f}, "
        f"{effect.accuracy.flips} of {effect.accuracy.patches} patches flip, {effect.share:.1%} of the multiply-adds"
        for effect in worst
    }
    print_json(result) if json_ else print_rows("calibrated", result)
