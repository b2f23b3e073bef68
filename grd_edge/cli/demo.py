"""`grd-edge demo`: the whole way on real images, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import Data, ImageBar, Json, Settings, TrainingBar, load_dataset, out, print_json, progress


def demo(
    data: Data = "elpv",
    train_seconds: Annotated[float, typer.Option(min=1, help="Time budget of the training.")] = 240,
    qat_seconds: Annotated[float, typer.Option(min=0, help="Time budget of the fine-tuning for INT8; 0: none.")] = 100,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Where the results go.")] = Path("artifacts/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and training.")] = 0,
    settings: Settings = None,
    json_: Json = False,
) -> None:
    """Train on good images, export, build, fit the threshold, and prove the engine against PyTorch."""
    from rich.text import Text

    from grd_edge.demo import ELPV_SETTINGS, Watcher, demo_config, run_demo

    own = ELPV_SETTINGS if data == "elpv" else ()
    config = demo_config(train_seconds=train_seconds, seed=seed, settings=(*own, *(settings or ())))
    dataset = load_dataset(data, seed=seed)
    with progress() as bar:
        bars: dict[str, object] = {}

        def stage(text: str) -> None:
            bar.console.print(Text.assemble(("·", "bold"), " ", text))
            bars["text"], bars["images"], bars["training"] = text, None, None

        def training(state) -> None:
            bars["training"] = bars["training"] or TrainingBar(bar)
            bars["training"](state)

        def images(done: int, total: int) -> None:
            bars["images"] = bars["images"] or ImageBar(bar, "images", total)
            bars["images"](done)

        summary = run_demo(dataset, config, out_dir, Watcher(stage, training, images), qat_seconds=qat_seconds)
    print_json(summary) if json_ else _print(summary, dataset, out_dir)


def _speed_of(precision: dict) -> str:
    """How many times as fast as fp32 the chosen precision was measured."""
    found = [each["speed"]["speedup"] for each in precision["tried"] if not each["lost"]]
    return f"{found[0]:.2f}x fp32" if found else ""


def _print(summary: dict, dataset, out_dir: Path) -> None:
    from rich.table import Table

    low, high = summary["image_auroc_ci95"]
    gain_low, gain_high = summary["auroc_gain_ci95"]
    fit, race = summary["threshold_fit"], summary["score_race_ms"]
    table = Table(title=f"{summary['dataset']}: {summary['images']} test images, {summary['defective']} defective")
    for column in ("", "PyTorch", "engine", "compared"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "image AUROC",
        f"{summary['auroc_reference']:.4f}",
        f"{summary['image_auroc']:.4f}",
        f"95 % [{low:.3f}, {high:.3f}]",
    )
    table.add_row(
        "gain over untrained",
        "",
        f"{summary['image_auroc'] - summary['image_auroc_untrained']:+.4f}",
        f"95 % [{gain_low:+.3f}, {gain_high:+.3f}]",
    )
    table.add_row("precision", "fp32", summary["precision"]["chosen"]["cpu"], _speed_of(summary["precision"]))
    table.add_row("largest phi difference", "", "", f"{summary['phi_max_abs_diff']:.1e}")
    table.add_row("decision flips", "", "", f"{summary['decision_flips']} of {summary['images']}")
    one = summary["threshold"]
    threshold = "a threshold per region" if one is None else f"threshold {one:.5f}"
    table.add_row("balanced accuracy", "", f"{summary['balanced_accuracy']:.4f}", threshold)
    table.add_row(
        "rejects / escapes",
        "",
        f"{summary['false_reject_rate']:.2%} / {summary['escape_rate']:.2%}",
        f"alpha {fit['alpha']:g}, {'certified' if fit['certified'] else 'uncertified'} (n = {fit['n']})",
    )
    table.add_row(
        "frame to decision",
        f"{summary['p50_ms_reference']:.2f} ms",
        f"{summary['p50_ms']:.2f} ms",
        f"{summary['speedup']:.2f}x",
    )
    table.add_row(
        f"score ({summary['score_variant']}, 1 thread)",
        f"{race['torch_separable_min_ms']:.2f} ms",
        f"{race['native_min_ms']:.3f} ms",
        f"{summary['score_speedup']:.1f}x",
    )
    out.print(table)
    if not fit["certified"]:
        out.print(
            f"The threshold is not certified: alpha {fit['alpha']:g} needs {fit['n_needed']} calibration images, "
            f"{fit['n']} reach alpha {fit['achievable_alpha']:.3g}."
        )
    for name in (f"{dataset.name}.grdb", "summary.json", "contact_sheet.png"):
        out.print(f"{out_dir / name}")
