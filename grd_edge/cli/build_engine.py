"""`grd-edge build engine`: TensorRT engines for a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grd_edge.cli.common import (
    BundlePath,
    Json,
    MaxAurocDrop,
    MaxFlips,
    StageBar,
    byte_size,
    err,
    load_dataset,
    print_json,
    print_rows,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from grd_edge.build_engine import Plan
    from grd_edge.bundle import Bundle
    from grd_edge.engine.builder import BuiltEngine
    from grd_edge.engine.layer_report import LayerReport
    from grd_edge.engine_choice import Trial
    from grd_edge.targets import Target

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="rtx, rtx-turing, rtx-ampere, rtx-ada, rtx-blackwell: built here, no GPU needed; jetson-orin, "
        "jetson-thor, trt: built on the device. Repeatable, or joined by commas.",
    ),
]


def engine(
    bundle: BundlePath,
    target: Targets = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            help="auto (default: fp16; with --data on the target's device the fastest inside the budget), fp16, int8 "
            "or fp8; repeatable, or joined by commas. The first is the one that the target then uses.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR|elpv", help="The training data, for auto: precisions are judged by its images."
        ),
    ] = None,
    max_auroc_drop: MaxAurocDrop = 0.002,
    max_flips: MaxFlips = 0.005,
    batch: Annotated[
        str, typer.Option(metavar="LEAST:USUAL:LARGEST", help="Patches per call that the engine is built for.")
    ] = "1:8:64",
    workspace: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that TensorRT may use for scratch, such as 2GiB.")
    ] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="Range table of grd-edge calibrate; default: the bundle's.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layer, or pattern such as 'decoder.*', in a higher precision: FP16 in INT8, FP32 in FP16.",
        ),
    ] = None,
    form: Annotated[
        str, typer.Option(help="How upsampling is computed: transposed, conv3x3 or conv2x2, with or without +blocked.")
    ] = "transposed",
    dla: Annotated[int | None, typer.Option(metavar="CORE", help="DLA core of a Jetson AGX Orin.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File with kernel times of this device, read and written; not for rtx targets.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also for later TensorRT versions; slower and larger.")
    ] = False,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="Also for other parts: ampere+ or same_compute_capability; slower."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print what each layer computes in.")] = False,
    save_onnx: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the typed models, <precision>.onnx, such as for trtexec."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be built; the bundle is not touched.")
    ] = False,
    json_: Json = False,
) -> None:
    """Build TensorRT engines from a bundle's FP32 model and put them into it; thresholds stay.

    After it, on the device: grd-edge recalibrate, as thresholds belong to the engine that decides.
    """
    from grd_edge.build_engine import engines_into_bundle, plan_of_engines
    from grd_edge.engine.builder import BuildOptions
    from grd_edge.errors import InputError
    from grd_edge.files import write_atomically
    from grd_edge.watch import Watcher

    options = BuildOptions(
        batches=_batches(batch),
        workspace_bytes=None if workspace is None else byte_size(workspace),
        dla=dla,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    targets, precisions = targets_named(target), _several(precision) or ["auto"]
    if data and precisions[0] != "auto":
        raise InputError(
            f"--data is for --precision auto, and {precisions[0]} was asked for first; leave one of the two out"
        )
    trial = _trial_of_bundle(bundle, data, max_auroc_drop, max_flips) if data else None
    with progress() as bar:
        told = StageBar(bar, "engines")
        watch = Watcher(told.begins, told.progress)
        plan = plan_of_engines(
            bundle,
            targets,
            precisions,
            options=options,
            ranges=ranges,
            keep=keep or (),
            form=form,
            trial=trial,
            dry=dry_run,
            watch=watch,
        )
        for name, planned in plan.models.items() if save_onnx else ():
            write_atomically(save_onnx / f"{name}.onnx", planned.model)
        written, built = (None, []) if dry_run else engines_into_bundle(plan, watch=watch)
    models = {name: each.to_json() for name, each in plan.models.items()}
    as_built = {
        (job.name, each.fingerprint.precision): report
        for job, each in (built if layers else ())
        if (report := _as_built(job, each))
    }
    engines = [
        {
            "target": job.name,
            "precision": each.fingerprint.precision,
            "bytes": len(each.data),
            "seconds": round(each.seconds, 2),
            "fingerprint": each.fingerprint.to_json(),
            "warnings": list(each.warnings),
            **(
                {"layers": report.to_json()} if (report := as_built.get((job.name, each.fingerprint.precision))) else {}
            ),
        }
        for job, each in built
    ]
    if json_:
        reports = {name: each.layers.to_json() for name, each in plan.models.items()}
        notes = {name: [each.to_json() for each in planned.findings] for name, planned in plan.models.items()}
        told = {"bundle": str(bundle), "models": models, "findings": notes, "layers": reports, "engines": engines}
        print_json({**told, "targets": chosen_for(written, targets) if written else {}})
        return
    _print_engines(plan, engines, as_built, layers=layers, dry_run=dry_run)
    if written:
        print_rows(
            "chosen",
            {name: f"{each['precision']}: {each['why']}" for name, each in chosen_for(written, targets).items()},
        )


def _as_built(target: Target, built: BuiltEngine) -> LayerReport | None:
    """What the layers of an engine compute in; None, and on stderr why, where this machine cannot open it."""
    from grd_edge.engine.tensorrt import TensorRtEngine
    from grd_edge.errors import EngineError, MissingExtraError

    try:
        with TensorRtEngine(built.data, built.fingerprint, target.name, batch_limit=1) as engine:
            return engine.layers()
    except (EngineError, MissingExtraError) as error:
        name = f"{target.name} {built.fingerprint.precision}"
        err.print(f"grd-edge: layers of {name} are told as planned, not as built: {error}", soft_wrap=True)
        return None


def _print_engines(
    plan: Plan,
    engines: list[dict[str, Any]],
    as_built: dict[tuple[str, str], LayerReport],
    *,
    layers: bool,
    dry_run: bool,
) -> None:
    """What was planned and built, for people."""
    from grd_edge.engine.layer_report import COLUMNS, cells

    for name, planned in plan.models.items():
        counted = ", ".join(f"{count} in {kind}" for kind, count in planned.layers.precisions().items())
        difference = f"{planned.max_difference:.2g} at most, {planned.mean_difference:.2g} in the mean"
        rows = {"layers": counted, "output differs from fp32 on noise by": difference}
        rows["to fix"] = "; ".join(str(each) for each in planned.findings if each.open) or "nothing"
        print_rows(f"{name} model, form {planned.form}", rows)
        if layers:
            print_table(f"layers of {name}, planned", COLUMNS, cells(planned.layers))
            for each in planned.findings:
                err.print(f"{name}: {each}", soft_wrap=True)
    if dry_run:
        jobs = ", ".join(f"{target.name} {precision}" for target, precision in plan.jobs)
        print_rows("would build", {"engines": jobs, "batches": plan.options.profile, "bundle": "unchanged"})
        return
    columns = ("target", "precision", "MiB", "seconds", "compute capabilities", "driver", "with")
    rows = [
        (
            each["target"],
            each["precision"],
            f"{each['bytes'] / 2**20:.1f}",
            f"{each['seconds']:.1f}",
            fingerprint["compute_capabilities"],
            f"{fingerprint['driver_floor']} or later",
            f"{fingerprint['library']} {fingerprint['version']}",
        )
        for each in engines
        for fingerprint in [each["fingerprint"]]
    ]
    print_table(f"engines in {plan.bundle.path}", columns, rows)
    for (target, precision), report in as_built.items():
        print_table(f"layers of {target} {precision}, as built", COLUMNS, cells(report))
    if plan.bundle.decision:
        err.print(
            "grd-edge: thresholds were fitted with another engine and stay; on the device, fit them again with: "
            "grd-edge recalibrate",
            soft_wrap=True,
        )


def _trial_of_bundle(path: Path, data: str, max_auroc_drop: float, max_flips: float) -> Trial:
    """What `auto` measures a bundle's engines with: the images that its model was trained on."""
    from grd_edge.bundle import read_bundle
    from grd_edge.data.check import check_dataset
    from grd_edge.engine_choice import Trial
    from grd_edge.precision import Budget
    from grd_edge.shipped import config_of

    budget, config = Budget(max_auroc_drop, max_flips), config_of(read_bundle(path))
    dataset = load_dataset(data, seed=config.train.seed, need_test=False)
    check_dataset(dataset, config)
    return Trial(dataset.train, config, budget)


def chosen_for(bundle: Bundle, targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """Per target the precision that a bundle uses there, and why."""
    precision = bundle.manifest["precision"]
    found = {}
    for name in (target.name for target in targets):
        chosen = precision["chosen"][name]
        entries = [each for each in precision["tried"] if (each.get("target"), each.get("precision")) == (name, chosen)]
        found[name] = {"precision": chosen, "why": entries[0]["why"]}
    return found


def targets_named(texts: list[str] | None) -> list[Target]:
    """The targets of `--target`."""
    from grd_edge.targets import target_named

    return [target_named(name) for name in _several(texts)]


def _several(texts: list[str] | None) -> list[str]:
    """Values of an option that is repeated or joined by commas."""
    return list(dict.fromkeys(each.strip() for text in texts or () for each in text.split(",") if each.strip()))


def _batches(text: str) -> tuple[int, int, int]:
    """`1:8:64`; one number stands for all three."""
    from grd_edge.errors import InputError

    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise InputError(f"the batch profile is {text!r}; expected least:usual:largest, such as 1:8:64")
    return tuple(int(part) for part in (parts if len(parts) == 3 else parts * 3))
