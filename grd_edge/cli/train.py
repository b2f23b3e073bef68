"""`grd-edge train`: good images to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import (
    ConfigFile,
    Data,
    Json,
    Profile,
    Settings,
    TrainingBar,
    each_category,
    load_dataset,
    print_json,
    print_rows,
    progress,
)


@each_category(outputs={"output": ".safetensors"}, columns=("checkpoint", "train_images", "steps", "seconds"))
def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path(
        "artifacts/checkpoint.safetensors"
    ),
    profile: Profile = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    train_seconds: Annotated[float | None, typer.Option(min=1, help="Time budget; instead of --steps.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; instead of a time budget.")] = None,
    json_: Json = False,
) -> None:
    """Train the generator on good images; for a benchmark root one for each category, into the folder OUTPUT."""
    from grd_edge.checkpoint import write_checkpoint
    from grd_edge.config import load_config
    from grd_edge.train import checkpoint_from_dataset

    overrides = list(settings or ())
    if steps is not None or train_seconds is not None:
        overrides += [f"train.steps={steps or 'null'}", f"train.seconds={train_seconds or 'null'}"]
    config = load_config(profile=profile, path=config_file, overrides=overrides)
    dataset = load_dataset(data, seed=config.train.seed, need_test=False)
    with progress() as bar:
        checkpoint = checkpoint_from_dataset(dataset, config, on_progress=TrainingBar(bar))
    write_checkpoint(output, checkpoint)
    result = {"checkpoint": str(output), **checkpoint.provenance}
    print_json(result) if json_ else print_rows("trained", result)
