"""`grd-edge calibrate`: activation ranges of a model on calibration images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import CheckpointPath, Data, Json, each_category, load_dataset, print_json, print_rows


@each_category(
    inputs={"checkpoint": ".safetensors"}, outputs={"output": ".json"}, columns=("ranges", "tensors", "patches")
)
def calibrate(
    checkpoint: CheckpointPath,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Range table to write.")] = Path(
        "artifacts/ranges.json"
    ),
    json_: Json = False,
) -> None:
    """Measure activation ranges for quantization. (Thresholds: see recalibrate.)"""
    from grd_edge.build import calibration_patches
    from grd_edge.calibrate import ranges_from_images
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.files import write_atomically

    trained = read_checkpoint(checkpoint)
    dataset = load_dataset(data, seed=trained.config.train.seed, need_test=False)
    table = ranges_from_images(
        onnx_from_checkpoint(trained),
        calibration_patches(trained, dataset.calibration),
        images_sha256=dataset.manifest_sha256(),
    )
    write_atomically(output, (json.dumps(table, indent=1) + "\n").encode())
    result = {"ranges": str(output), "tensors": len(table["ranges"]), "patches": table["patches"]}
    print_json(result) if json_ else print_rows("calibrated", result)
