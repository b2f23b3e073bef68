"""`grd-edge import`: checkpoints of other programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import Json, Settings, err, print_json, print_rows
from grd_edge.errors import InputError

app = typer.Typer(help="Import a checkpoint that another program trained.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `grdnet` a verb of its own while it is the only one."""


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

    The file is read without running anything it holds. Second encoder, discriminator, segmentor and optimizers are left
    out; scores and thresholds are those of grd-edge.
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
    result["left_out"] = ", ".join(f"{part} ({count})" for part, count in imported["left_out"].items())
    print_rows("imported", result)
