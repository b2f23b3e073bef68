"""`grd-edge eval`: how good is a bundle on labelled images?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grd_edge.cli.common import (
    BundlePath,
    ImageBar,
    Json,
    cell,
    each_category,
    in_category,
    load_dataset,
    print_json,
    print_rows,
    progress,
)
from grd_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from grd_edge.parity import Comparison


def _against(text: str) -> Any:
    from grd_edge.engine.against import against_from_text

    return against_from_text(text)


@each_category(
    inputs={"bundle": ".grdb", "against": ".safetensors"},
    outputs={"output": ""},
    columns=(
        "image_auroc",
        "image_auroc_ci95",
        "image_auroc_untrained",
        "image_ap",
        "pixel_auroc",
        "aupro",
        "balanced_accuracy",
        "false_reject_rate",
        "escape_rate",
        "auroc_delta",
        "patch_decision_flips_refit",
        "decision_flips_refit",
    ),
)
def eval_(
    bundle: BundlePath,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR|elpv", help="Folder with test/ (and train/good), or the ELPV solar cells."),
    ] = None,
    benchmark_root: Annotated[
        Path | None,
        typer.Option(
            "--benchmark-root",
            metavar="DIR",
            help="In place of --data: a folder of such folders; every engine on each, beside PyTorch and untrained.",
        ),
    ] = None,
    against: Annotated[
        Any,
        typer.Option(
            "--against",
            parser=_against,
            metavar="BACKEND|CHECKPOINT",
            help="Compare with torch, onnxruntime, openvino, native[:PRECISION] or tensorrt[:TARGET-PRECISION] on the "
            "bundle's own model, or with a checkpoint, image by image.",
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Precision of the engine; default: the one the bundle chose.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for eval.json, images.csv and what `report` shows; with --against, the parity report, too; "
            "with --benchmark-root, for benchmark.json and benchmark.csv.",
        ),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained/--no-untrained", help="Report an untrained generator beside the trained one.")
    ] = True,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the split; default: the training's.")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AP, AUPRO, rates at the shipped threshold, with intervals; with --against, parity with a reference.

    For a benchmark root BUNDLE is the folder that holds <category>.grdb; so is that of checkpoints. `--data` measures
    the engine that ships, `--benchmark-root` all that run here, with intervals of the means.
    """
    if (data is None) == (benchmark_root is None):
        raise typer.BadParameter("give either --data or --benchmark-root")
    if benchmark_root:
        from grd_edge.cli.eval_benchmark import eval_root

        options = {"precision": precision, "untrained": untrained, "seed": seed}
        return eval_root(bundle, benchmark_root, against=against, output=output, json_=json_, **options)
    from grd_edge.bundle import read_bundle
    from grd_edge.evaluate import evaluated_bundle, training_seed
    from grd_edge.files import write_atomically
    from grd_edge.products import ProductRule
    from grd_edge.report.details import write_details
    from grd_edge.report.parity import LargestDifferences, write_report
    from grd_edge.results import csv_lines, json_document
    from grd_edge.scored import COLUMNS, rows_from_scored

    opened = read_bundle(bundle)
    dataset = load_dataset(data, seed=training_seed(opened) if seed is None else seed, need_train=False)
    geometry = opened.manifest["geometry"]
    largest = LargestDifferences(ProductRule.of_bundle(opened), opened.grid, geometry["scale_px"], geometry["channels"])
    counts = {"calibration": len(dataset.calibration)}
    with progress() as bar:
        result, scored, comparison = evaluated_bundle(
            bundle,
            dataset.test,
            against=against,
            calibration=dataset.calibration,
            precision=precision,
            untrained=untrained,
            on_frame=largest.add if output else None,
            bar=lambda name: ImageBar(bar, name, counts.get(name, len(dataset.test))),
        )
    if output:
        write_atomically(output / "images.csv", csv_lines(COLUMNS, rows_from_scored(scored)))
        if comparison:
            try:
                write_report(output, comparison, largest, bundle=opened.manifest["name"], data=data)
            except MissingExtraError as error:
                result["notes"].append(f"no pictures were drawn: {error}")
        try:
            write_details(output, bundle, scored, precision=precision, data=data)
        except MissingExtraError as error:
            result["notes"].append(f"the worst errors were not drawn: {error}")
        write_atomically(output / "eval.json", json_document(result))
    if json_ or in_category():
        print_json(result)
    else:
        print_rows(f"{bundle.name} on {data}", _shown(result, comparison))


def _shown(result: dict[str, Any], comparison: Comparison | None) -> dict[str, Any]:
    """What the table shows: an interval beside its figure, a line per kind of defect, the notes one by one."""
    rows = {name: value for name, value in result.items() if comparison is None or name not in comparison.figures}
    for name in [name for name in rows if name.endswith("_ci95")]:
        interval = cell(rows.pop(name))
        rows[name.removesuffix("_ci95")] = f"{cell(rows.get(name.removesuffix('_ci95')))}  95 % {interval}".strip()
    kinds, notes = rows.pop("kinds"), rows.pop("notes")
    for kind, found in kinds.items():
        rows[f"  {kind}"] = (
            f"{found['images']} images, AUROC {cell(found['image_auroc'])}, "
            f"escapes {cell(found['escapes'])} of {found['products']} products"
        )
    if comparison:
        from grd_edge.report.parity import shown_figures

        rows["compared"] = f"{comparison.engine_name} against {comparison.reference_name}"
        rows |= shown_figures(comparison.figures)
    rows |= {f"note {index}": note for index, note in enumerate(notes, start=1)}
    return {name: cell(value) for name, value in rows.items()}
