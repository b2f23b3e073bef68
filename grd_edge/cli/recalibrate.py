"""`grd-edge recalibrate`: new thresholds from good images, without touching the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import BundlePath, ImageBar, Json, err, print_json, print_rows, progress


def recalibrate(
    bundle: BundlePath,
    good: Annotated[Path, typer.Option("--good", help="Folder of good images, none of them used for training.")],
    alpha: Annotated[float, typer.Option(help="False-reject rate per product, in (0, 1).")] = 0.01,
    k: Annotated[int, typer.Option(min=1, help="Patches that make a product defective.")] = 1,
    json_: Json = False,
) -> None:
    """Fit thresholds on good images with the engine that ships, and put them into the bundle."""
    from grd_edge.build import recalibrated_bundle
    from grd_edge.data.dataset import samples_from_folder

    samples = samples_from_folder(good)
    with progress() as bar:
        images = ImageBar(bar, "images", len(samples))
        result = recalibrated_bundle(bundle, samples, alpha=alpha, k=k, on_progress=images)
    fit = result.decision["fit"]
    if not fit["certified"]:
        err.print(
            f"grd-edge: alpha {alpha:g} is not certified by {fit['n']} images, which reach "
            f"{fit['achievable_alpha']:.3g}; {fit['n_needed']} would certify it"
        )
    shown = {"bundle": str(bundle), "threshold": result.threshold, "k": result.decision["k"], **fit}
    print_json(shown) if json_ else print_rows("recalibrated", shown)
