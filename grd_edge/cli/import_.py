"""`grd-edge import`: checkpoints and models of other programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from grd_edge.cli.common import (
    ImageBar,
    Json,
    MaxAurocDrop,
    MaxFlips,
    PrecisionBar,
    Settings,
    err,
    load_dataset,
    print_json,
    print_rows,
    progress,
)
from grd_edge.errors import InputError

app = typer.Typer(help="Import a checkpoint or a model that another program trained.", no_args_is_help=True)


def _patch(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no size; write 128 or 256x128 (height x width, in px)")
    return int(found[1]), int(found[2] or found[1])


@app.command()
def grdnet(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="The authors' checkpoint, epoch_XXXX.pt.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")] = Path(
        "artifacts/checkpoint.safetensors"
    ),
    config_file: Annotated[
        Path | None, typer.Option("--config", help="The YAML file it was trained with, in the authors' schema.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="PX|HxW", help="Patch size, where neither weights nor YAML tell it.")
    ] = None,
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    json_: Json = False,
) -> None:
    """Import a generator from the public code of the method's authors (epoch_XXXX.pt).

    The file is read without running anything it holds. Second encoder, discriminator and optimizers are left out, and
    with --set method.segmentor=false a segmentor; scores and thresholds are those of grd-edge.
    """
    from grd_edge.checkpoint import write_checkpoint
    from grd_edge.importers.grdnet import checkpoint_from_grdnet
    from grd_edge.run_folder import check_output

    if output.resolve() == source.resolve():
        raise InputError(f"{output} is the file to import and would be overwritten; name another with --output")
    check_output(output)
    size = _patch(patch) if patch else None
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; replace it with --overwrite, or choose another --output")
    checkpoint = checkpoint_from_grdnet(source, config_path=config_file, patch=size, overrides=settings or ())
    write_checkpoint(output, checkpoint)
    config, imported = checkpoint.config, checkpoint.provenance["imported"]
    model = config.model
    if config.geometry.scale_px is None:
        err.print(
            "grd-edge: the file does not tell the scale of its training images, so frames keep their own resolution; "
            "give --config, or --set geometry.scale_px=PX, if the training images were scaled"
        )
    result = {
        "checkpoint": str(output),
        "profile": config.profile,
        "epoch": imported["epoch"],
        "sha256": imported["sha256"],
        "model": model.model_dump(mode="json"),
        "segmentor": config.segmented,
        "left_out": imported["left_out"],
    }
    if json_:
        print_json(result)
        return
    result["model"] = (
        f"{model.channels} channel(s), patch {model.patch_h}x{model.patch_w} px, base {model.base}, stages "
        f"{list(model.stages)}, resampling {model.resample}/{model.decoder_resample or model.resample}, "
        f"{model.bottleneck} bottleneck of {model.latent}"
    )
    result["segmentor"] = f"U-Net of base {config.method.segmentor_base}" if config.segmented else "none"
    result["left_out"] = ", ".join(f"{part} ({count})" for part, count in imported["left_out"].items())
    print_rows("imported", result)


@app.command()
def anomalib(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="ONNX model that anomalib 2.x exported.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write, name.grdb.")],
    name: Annotated[str | None, typer.Option(help="Name in the bundle; default: the file's.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="metadata.json of the export; default: the one beside MODEL.onnx, if any.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="PX|HxW", help="Input size, where the export leaves it open.")
    ] = None,
    normalize: Annotated[
        str | None, typer.Option(help="imagenet: put this normalization in front of a model exported without one.")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Frames of one channel, which the model sees as three equal ones.")
    ] = False,
    scale_px: Annotated[
        str | None,
        typer.Option(
            "--scale-px",
            metavar="PX|native",
            help="Shorter side of frames at working scale; default: that of the patch. native: not scaled.",
        ),
    ] = None,
    padding: Annotated[str, typer.Option(help="Frames smaller than a patch: error, or reflect.")] = "error",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR|elpv",
            help="Good images that the model was not trained on: for thresholds and the precision.",
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="False-reject rate of the thresholds; default: 0.01.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="With --data: auto (default), fp32, bf16 or int8, as of build bundle.")
    ] = None,
    max_auroc_drop: MaxAurocDrop = 0.002,
    max_flips: MaxFlips = 0.005,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    json_: Json = False,
) -> None:
    """Make a bundle of an ONNX model that anomalib 2.x exported, for C, INT8 and TensorRT (docs/anomalib.md).

    Scores and map are those of the export. Without --data the precision is fp32 and the threshold anomalib's.
    """
    from grd_edge.importers.anomalib import bundle_from_anomalib
    from grd_edge.precision import Budget

    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; replace it with --overwrite, or choose another --output")
    if data is None and (alpha is not None or precision not in (None, "fp32")):
        raise InputError("--alpha and --precision are measured on images; give them with --data")
    if padding not in ("error", "reflect"):
        raise typer.BadParameter(f"there is no padding {padding!r}; choose error or reflect")
    dataset = load_dataset(data, need_test=False) if data else None
    with progress(visible=dataset is not None) as bar:
        precisions = PrecisionBar(bar) if dataset else None
        bundle, notes = bundle_from_anomalib(
            source,
            output,
            name=name,
            metadata=metadata,
            patch=_patch(patch) if patch else None,
            normalize=normalize,
            grey=grey,
            scale_px=_scale(scale_px) if scale_px else None,
            padding=padding,
            dataset=dataset,
            alpha=alpha,
            request=precision or "auto",
            budget=Budget(max_auroc_drop, max_flips),
            **(
                {
                    "watch": precisions.watcher,
                    "on_calibrated": ImageBar(bar, "calibrate", len(dataset.calibration)),
                }
                if dataset
                else {}
            ),
        )
    for note in notes:
        err.print(f"grd-edge: {note}", soft_wrap=True)
    geometry, imported = bundle.manifest["geometry"], bundle.manifest["provenance"]["training"]["imported"]
    chosen = bundle.manifest["precision"]
    result = {
        "bundle": str(output),
        "patch": f"{geometry['patch_h']}x{geometry['patch_w']}",
        "scale_px": geometry["scale_px"],
        "outputs": imported["outputs"],
        "normalize": imported["normalize"],
        "precision": chosen["chosen"]["cpu"],
        "why": chosen["why"],
        "thresholds": dict(zip(bundle.regions.names, bundle.thresholds, strict=True)) if bundle.decision else {},
        "sha256": imported["sha256"],
        "seal": bundle.seal,
    }
    print_json({**result, "notes": list(notes)}) if json_ else print_rows("imported", result)


def _scale(text: str) -> int | Literal["native"]:
    if text == "native":
        return "native"
    if not re.fullmatch(r"[1-9]\d{0,4}", text):
        raise typer.BadParameter(f"{text!r} is no scale; write the shorter side in px, such as 256, or native")
    return int(text)
