"""`grd-edge train`: good images to a checkpoint, or a checkpoint to one whose INT8 form holds, or to a narrower one."""

from __future__ import annotations

import re
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
    share,
)


@each_category(
    inputs={"qat": ".safetensors", "ranges": ".json", "teacher": ".safetensors"},
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
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            metavar="CHECKPOINT",
            help="Train a narrower generator after this one: --student or --prune-to.",
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student", metavar="KEY=VALUE", help="Shape of the student, such as base=8,latent=32; repeatable."
        ),
    ] = None,
    prune_to: Annotated[
        float | None,
        typer.Option(
            "--prune-to", parser=share, metavar="SHARE", help="Of the teacher's multiply-adds, such as 25%: the shape."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Weights of the method's backbone, .safetensors."),
    ] = None,
    bank_mb: Annotated[
        float | None, typer.Option("--bank-mb", help="PatchCore: limit of the memory bank in the graph.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train the method of a profile on good images; for a benchmark root one per category, into the folder OUTPUT."""
    from grd_edge.config import load_config
    from grd_edge.distill import student_config
    from grd_edge.run_folder import check_output
    from grd_edge.train import Watcher, train_run

    if resume and overwrite:
        raise typer.BadParameter("--resume goes on with a run and --overwrite drops it; give one of them")
    check_output(output)
    overrides = list(settings or ())
    if steps is not None or train_seconds is not None:
        overrides += [f"train.steps={steps or 'null'}", f"train.seconds={train_seconds or 'null'}"]
    if weights is not None:
        overrides.append(f"method.backbone.weights={weights}")
    if bank_mb is not None:
        overrides.append(f"method.bank_mb={bank_mb}")
    options = {"precision": precision, "accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}
    overrides += [f"train.{name}={value}" for name, value in options.items() if value is not None]
    if qat is not None:
        foreign = {"--profile": profile, "--resume": resume or None, "--precision": precision}
        foreign |= {"--devices": devices, "--num-nodes": num_nodes, "--teacher": teacher}
        foreign |= {"--student": student, "--prune-to": prune_to, "--weights": weights, "--bank-mb": bank_mb}
        if given := [name for name, value in foreign.items() if value is not None]:
            raise typer.BadParameter(f"{given[0]} does not go with --qat, which takes the checkpoint's settings")
        _fine_tune(qat, data, output, config_file, overrides, ranges, overwrite=overwrite, json_=json_)
        return
    if ranges is not None:
        raise typer.BadParameter("--ranges goes with --qat only")
    taught = _teacher(teacher, student, prune_to, profile)
    if taught is None:
        config = load_config(profile=profile, path=config_file, overrides=overrides)
        seed = config.train.seed
    else:
        shape = [each for text in student or () for each in re.split(r",(?![^\[]*\])", text)]
        config = student_config(taught.config, shape=shape, share=prune_to, path=config_file, overrides=overrides)
        seed = taught.config.train.seed  # the split of a folder follows it, and must be the teacher's
    dataset = load_dataset(data, seed=seed, need_test=False, need_validation=config.train.validation)
    with progress(visible=is_first_process()) as bar:
        watch = Watcher(TrainingBar(bar), lambda text: err.print(f"note: {text}", soft_wrap=True))
        options = {"resume": resume, "overwrite": overwrite, "teacher": taught}
        checkpoint = train_run(dataset, config, output, watch=watch, **options)
    if checkpoint is None:  # another process reports
        return
    provenance = {key: value for key, value in checkpoint.provenance.items() if key != "seen"}
    result = {"checkpoint": str(output), **provenance}
    if taught and not json_:
        cost, whole = taught.costs(config)
        result["cost"] = f"{cost / 1e9:.3g} GMAC per patch of the teacher's {whole / 1e9:.3g}, {cost / whole:.1%}"
    print_json(result) if json_ else print_rows("trained", result)


def _teacher(path: Path | None, student: list[str] | None, prune_to: float | None, profile: str | None):
    """The teacher of `train --teacher`; None where none is given."""
    from grd_edge.distill import read_teacher

    if path is None:
        if student or prune_to is not None:
            name = "--student" if student else "--prune-to"
            raise typer.BadParameter(
                f"{name} goes with --teacher CHECKPOINT only, the trained generator it learns from"
            )
        return None
    if bool(student) == (prune_to is not None):
        raise typer.BadParameter("--teacher needs the student's shape: give one of --student and --prune-to")
    if prune_to is not None and not 0 < prune_to < 1:
        raise typer.BadParameter(f"--prune-to {prune_to:g} is no share between 0 and 1; write it as 0.25 or 25%")
    if profile is not None:
        raise typer.BadParameter("--profile does not go with --teacher, whose settings the student takes")
    return read_teacher(path)


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
