"""`grd-edge train`: good images to a checkpoint, or a checkpoint to one whose INT8 form holds."""

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
    err,
    is_first_process,
    load_dataset,
    print_json,
    print_rows,
    progress,
)


@each_category(
    inputs={"qat": ".safetensors", "ranges": ".json"},
    outputs={"output": ".safetensors"},
    columns=("checkpoint", "train_images", "steps", "seconds"),
)
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run was saved.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where there is a run or a checkpoint.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")] = None,
    num_nodes: Annotated[int | None, typer.Option(min=1, help="Machines; each runs this command.")] = None,
    qat: Annotated[
        Path | None, typer.Option("--qat", metavar="CHECKPOINT", help="Fine-tune this checkpoint for INT8 instead.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option("--ranges", help="With --qat: range table of that checkpoint to start from.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train the generator on good images; for a benchmark root one for each category, into the folder OUTPUT."""
    from grd_edge.config import load_config
    from grd_edge.run_folder import check_output
    from grd_edge.train import Watcher, train_run

    if resume and overwrite:
        raise typer.BadParameter("--resume goes on with a run and --overwrite drops it; give one of them")
    check_output(output)
    overrides = list(settings or ())
    if steps is not None or train_seconds is not None:
        overrides += [f"train.steps={steps or 'null'}", f"train.seconds={train_seconds or 'null'}"]
    options = {"precision": precision, "accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}
    overrides += [f"train.{name}={value}" for name, value in options.items() if value is not None]
    if qat is not None:
        foreign = {"--profile": profile, "--resume": resume or None, "--precision": precision}
        foreign |= {"--devices": devices, "--num-nodes": num_nodes}
        if given := [name for name, value in foreign.items() if value is not None]:
            raise typer.BadParameter(f"{given[0]} does not go with --qat, which takes the checkpoint's settings")
        _fine_tune(qat, data, output, config_file, overrides, ranges, overwrite=overwrite, json_=json_)
        return
    if ranges is not None:
        raise typer.BadParameter("--ranges goes with --qat only")
    config = load_config(profile=profile, path=config_file, overrides=overrides)
    dataset = load_dataset(data, seed=config.train.seed, need_test=False, need_validation=config.train.validation)
    with progress(visible=is_first_process()) as bar:
        watch = Watcher(TrainingBar(bar), lambda text: err.print(f"note: {text}", soft_wrap=True))
        checkpoint = train_run(dataset, config, output, resume=resume, overwrite=overwrite, watch=watch)
    if checkpoint is None:  # another process reports
        return
    provenance = {key: value for key, value in checkpoint.provenance.items() if key != "seen"}
    result = {"checkpoint": str(output), **provenance}
    print_json(result) if json_ else print_rows("trained", result)


def _fine_tune(
    checkpoint: Path,
    data: str,
    output: Path,
    config_file: Path | None,
    overrides: list[str],
    ranges: Path | None,
    *,
    overwrite: bool,
    json_: bool,
) -> None:
    """`train --qat`."""
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.qat import qat_config, qat_run
    from grd_edge.ranges import read_table
    from grd_edge.train import Watcher

    trained = read_checkpoint(checkpoint).config
    config = qat_config(trained, path=config_file, overrides=overrides)
    table = read_table(ranges) if ranges else None
    # The split of a folder follows the seed, and must be the one that the checkpoint was trained on.
    dataset = load_dataset(data, seed=trained.train.seed, need_test=False, need_validation=trained.train.validation)
    with progress() as bar:
        watch = Watcher(TrainingBar(bar, "fine-tune"))
        result = qat_run(checkpoint, dataset, output, config, overwrite=overwrite, table=table, watch=watch)
    described = {"checkpoint": str(output), **result.provenance["qat"]}
    if json_:
        print_json(described)
        return
    shown = (
        "checkpoint",
        "dataset",
        "train_images",
        "style",
        "steps",
        "seconds",
        "measured_patches",
        "before",
        "after",
    )
    print_rows("fine-tuned", {name: described[name] for name in shown})
