"""`grd-edge eval`: how good is a bundle on labelled images?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import BundlePath, Data, ImageBar, Json, load_dataset, print_json, print_rows, progress


def eval_(
    bundle: BundlePath,
    data: Data,
    against: Annotated[
        Path | None, typer.Option("--against", help="Checkpoint to compare with, image by image, in PyTorch.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    json_: Json = False,
) -> None:
    """Image AUROC, AP, balanced accuracy at the shipped threshold; with --against, agreement with PyTorch."""
    from grd_edge.bundle import read_bundle
    from grd_edge.evaluate import metrics_from_scored, parity_from_scored, scored_from_samples
    from grd_edge.runtime import Inspector

    samples = load_dataset(data, seed=seed).test
    with progress() as bar:
        with Inspector(bundle) as inspector:
            scored = scored_from_samples(inspector, samples, on_progress=ImageBar(bar, "engine", len(samples)))
        result = metrics_from_scored(scored)
        if against:
            from grd_edge.checkpoint import read_checkpoint
            from grd_edge.engine.torch import TorchInspector

            opened = read_bundle(bundle)
            k = opened.decision["k"] if opened.decision else 1
            reference = TorchInspector(read_checkpoint(against), threshold=opened.threshold, k=k)
            reference_scored = scored_from_samples(
                reference, samples, on_progress=ImageBar(bar, "reference", len(samples))
            )
            result["auroc_reference"] = metrics_from_scored(reference_scored)["image_auroc"]
            result |= parity_from_scored(scored, reference_scored)
    print_json(result) if json_ else print_rows(f"{bundle.name} on {data}", result)
