"""`grd-edge build`: from a checkpoint to what ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grd_edge.cli.build_engine import Targets, chosen_for, engine, targets_named
from grd_edge.cli.common import (
    CheckpointPath,
    ImageBar,
    Json,
    MaxAurocDrop,
    MaxFlips,
    PrecisionBar,
    StageBar,
    each_category,
    err,
    load_dataset,
    print_json,
    print_rows,
    progress,
)

if TYPE_CHECKING:
    from grd_edge.bundle import Bundle
    from grd_edge.engine_choice import Trial
    from grd_edge.targets import Target

app = typer.Typer(
    help="Build what ships: the ONNX model, its INT8 form, a whole bundle, or TensorRT engines for one.",
    no_args_is_help=True,
)
app.command()(engine)


@app.command()
def onnx(
    checkpoint: CheckpointPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.")] = Path("artifacts/fp32.onnx"),
    json_: Json = False,
) -> None:
    """Export encoder, bottleneck and decoder to ONNX, checked against PyTorch."""
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.files import write_atomically

    data = onnx_from_checkpoint(read_checkpoint(checkpoint))
    write_atomically(output, data)
    result = {"model": str(output), "bytes": len(data)}
    print_json(result) if json_ else print_rows("exported", result)


@app.command()
def int8(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL.onnx|CHECKPOINT", help="FP32 model, or the checkpoint that gives it."),
    ],
    ranges: Annotated[Path, typer.Option(help="Range table of grd-edge calibrate.")],
    style: Annotated[str, typer.Option(metavar="STYLE", help="openvino, onnxruntime or tensorrt.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Layer that stays in FP32, or a pattern such as 'decoder.*'; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.")] = Path("artifacts/int8.onnx"),
    json_: Json = False,
) -> None:
    """Write an INT8 model in the style of an engine, and tell how far its reconstructions are from FP32."""
    from grd_edge.build import int8_from_onnx
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.export import onnx_from_checkpoint
    from grd_edge.files import write_atomically
    from grd_edge.ranges import read_table

    table = read_table(ranges)
    checkpoint = model.suffix == ".safetensors"
    fp32 = onnx_from_checkpoint(read_checkpoint(model)) if checkpoint else model.read_bytes()
    built = int8_from_onnx(fp32, table, style=style, keep=keep or ())
    write_atomically(output, built.model)
    result = {
        "model": str(output),
        "bytes": len(built.model),
        "style": style,
        "max_difference": built.max_difference,
        "mean_difference": built.mean_difference,
    }
    print_json(result) if json_ else print_rows("quantized", result)


@app.command()
@each_category(
    inputs={"checkpoint": ".safetensors", "qat": ".safetensors"},
    outputs={"output": ".grdb"},
    columns=("bundle", "threshold", "precision"),
)
def bundle(
    checkpoint: CheckpointPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write, name.grdb.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR|elpv", help="The training data: its calibration split gives the thresholds."
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="False-reject rate; default: the checkpoint's.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto (default with --data): the fastest that is measured faster than fp32 and inside the budget; "
            "or fp32, bf16, int8."
        ),
    ] = None,
    max_auroc_drop: MaxAurocDrop = 0.002,
    max_flips: MaxFlips = 0.005,
    qat: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint that train --qat made from CHECKPOINT: INT8 is written from it, where inside the budget."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How activation ranges are calibrated: a name or a YAML file.")
    ] = None,
    target: Targets = None,
    json_: Json = False,
) -> None:
    """Write a bundle for the cpu target; with --data, its precision, mask of interest, regions and thresholds too; with
    --target, TensorRT engines as of build engine, precision auto, the same budget.

    For a benchmark root CHECKPOINT and --output are the folders of <category>.safetensors and <category>.grdb.
    """
    from grd_edge.build import bundle_from_checkpoint, bundle_from_dataset
    from grd_edge.checkpoint import read_checkpoint
    from grd_edge.data.check import check_dataset
    from grd_edge.engine_choice import Trial
    from grd_edge.errors import InputError
    from grd_edge.precision import Budget
    from grd_edge.qat import student_of

    targets, trial = targets_named(target), None
    if targets:
        _check_targets(targets)
    trained = read_checkpoint(checkpoint)
    if data is None:
        if precision not in (None, "fp32") or qat:
            raise InputError("a lower precision is measured on images before it ships; give them with --data")
        lost = _without_data(output)
        built = bundle_from_checkpoint(trained, output)
        if lost:
            err.print(f"grd-edge: {lost}", soft_wrap=True)
    else:
        dataset = load_dataset(data, seed=trained.config.train.seed, need_test=False)
        check_dataset(dataset, trained.config)
        budget = Budget(max_auroc_drop, max_flips)
        trial = Trial(dataset.train, trained.config, budget) if targets else None
        options = {"request": precision or "auto", "budget": budget, **({"recipe": recipe} if recipe else {})}
        options["student"] = student_of(checkpoint, qat) if qat else None
        with progress() as bar:
            built = bundle_from_dataset(
                trained,
                output,
                dataset,
                alpha=alpha,
                watch=PrecisionBar(bar).watcher,
                on_calibrated=ImageBar(bar, "calibrate", len(dataset.calibration)),
                **options,
            )
    if targets:
        built = _with_engines(output, targets, trial)
    engines = [f"{engine['target']}-{engine['precision']}" for engine in built.manifest["engines"]]
    thresholds = dict(zip(built.regions.names, built.thresholds, strict=True)) if built.decision else {}
    result = {
        "bundle": str(output),
        "engines": engines,
        "precision": built.manifest["precision"]["chosen"]["cpu"],
        "why": built.manifest["precision"]["why"],
        "threshold": built.threshold,
        "thresholds": thresholds,
        "seal": built.seal,
        **({"targets": chosen_for(built, targets)} if targets else {}),
    }
    print_json(result) if json_ else print_rows("built", result)


def _check_targets(targets: Sequence[Target]) -> None:
    """Refuses, before the minutes of a bundle, targets whose engines cannot be built here."""
    from grd_edge.build_engine import check_targets
    from grd_edge.engine.builder import BuildOptions

    check_targets(targets, ["auto"], BuildOptions())


def _with_engines(path: Path, targets: Sequence[Target], trial: Trial | None) -> Bundle:
    """A bundle with engines for targets, precision auto.

    Raises:
        GrdError: as of `engines_into_bundle`; it says that the bundle is complete without them.
    """
    from grd_edge.build_engine import engines_into_bundle, plan_of_engines
    from grd_edge.errors import GrdError
    from grd_edge.watch import Watcher

    with progress() as bar:
        told = StageBar(bar, "engines")
        watch = Watcher(told.begins, told.progress)
        try:
            return engines_into_bundle(plan_of_engines(path, targets, trial=trial, watch=watch), watch=watch)[0]
        except GrdError as error:
            names = ", ".join(target.name for target in targets)
            raise type(error)(
                f"{path} is complete for the cpu target and has no new engines for {names}: {error}"
            ) from error


def _without_data(output: Path) -> str:
    """What a new bundle at `output` made without --data loses of the older one, in a sentence; empty for nothing."""
    from grd_edge.bundle import read_bundle
    from grd_edge.errors import GrdError

    try:
        older = read_bundle(output)
    except GrdError:  # none, or none that could be used
        return ""
    lost, way = [], "build with --data"
    if older.decision:
        lost.append(f"thresholds (fitted {older.decision['fit'].get('fitted', 'at an unknown time')})")
        way += ", or fit new thresholds with: grd-edge recalibrate"
    if older.roi is not None:
        lost.append("mask of interest")
    return f"the {' and the '.join(lost)} of the older {output} were not taken over; {way}" if lost else ""
