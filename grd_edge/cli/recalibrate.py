"""`grd-edge recalibrate`: new thresholds from images, without touching the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import BundlePath, ImageBar, Json, err, print_json, print_rows, progress


def recalibrate(
    bundle: BundlePath,
    good: Annotated[
        Path | None, typer.Option("--good", help="Folder of good images, none of them used for training.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option("--labelled", help="Folder with good/ and a folder per kind of defect.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="False-reject rate per product, in (0, 1); with --good.")] = 0.01,
    objective: Annotated[
        str, typer.Option(help="balanced_accuracy, f_beta or recall_at_precision; with --labelled.")
    ] = "balanced_accuracy",
    beta: Annotated[float, typer.Option(help="Weight of recall in f_beta.")] = 1.0,
    precision: Annotated[float | None, typer.Option(help="Least precision of recall_at_precision.")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Patches that make a product defective; default: the bundle's.")
    ] = None,
    run_agreement: Annotated[
        float | None, typer.Option("--run-agreement", help="Share of a run that must agree; default: the bundle's.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option("--regions", help="YAML file of named areas; default: the bundle's regions.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="Whose engine decides from now on, such as rtx-ada on a machine with that card.")
    ] = "cpu",
    json_: Json = False,
) -> None:
    """Fit thresholds with the engine that ships, and put them into the bundle."""
    from grd_edge.data.dataset import samples_from_folder
    from grd_edge.data.layout import regions_from_file
    from grd_edge.recalibrate import recalibrated_bundle
    from grd_edge.shipped import unknown_images

    if (good is None) == (labelled is None):
        raise typer.BadParameter("give exactly one of --good and --labelled")
    samples = samples_from_folder(good) if good else _labelled_samples(labelled)
    areas = regions_from_file(regions) if regions else None
    with progress() as bar:
        result = recalibrated_bundle(
            bundle,
            samples,
            alpha=alpha,
            k=k,
            run_agreement=run_agreement,
            regions=areas,
            target=target,
            method="good_only" if good else "labelled",
            objective=objective,
            beta=beta,
            precision=precision,
            on_progress=ImageBar(bar, "images", len(samples)),
        )
    decision = result.decision
    fit = {key: value for key, value in decision["fit"].items() if key != "seen"}
    copies = fit["duplicates"]
    counted = "1 product has" if copies == 1 else f"{copies} products have"
    dropped = [f"{counted} the contents of another, which counts once"] if copies else []
    for note in (*dropped, *unknown_images(result)):
        err.print(f"grd-edge: {note}")
    if fit.get("certified") is False:
        err.print(
            f"grd-edge: alpha {alpha:g} is not certified by {fit['n']} products, which reach "
            f"{fit['achievable_alpha']:.3g}; {fit['n_needed']} would certify it"
        )
    thresholds = dict(zip(result.regions.names, result.thresholds, strict=True))
    shown = {
        "bundle": str(bundle),
        "threshold": result.threshold,
        **fit,
        "thresholds": thresholds,
        "k": decision["k"],
        "run_agreement": decision["run_agreement"],
    }
    print_json(shown) if json_ else print_rows("recalibrated", shown)


def _labelled_samples(folder: Path) -> list:
    """Samples of `good` and of every kind of defect; their folder is their label."""
    from grd_edge.data.dataset import samples_from_folder
    from grd_edge.data.images import listing
    from grd_edge.data.layout import GOOD
    from grd_edge.errors import InputError

    kinds = [entry.name for entry in listing(folder)[1]]
    if GOOD not in kinds or len(kinds) < 2:
        raise InputError(
            f"the folder {folder} holds the folders {', '.join(kinds) or '(none)'}; a labelled fit needs good/ and at "
            "least one folder of defects"
        )
    return [sample for kind in kinds for sample in samples_from_folder(folder / kind, kind)]
