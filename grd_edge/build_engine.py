"""Bundle -> the same bundle with TensorRT engines in it, for parts that need not be here. Never imports torch.

Source: docs/design/tensorrt.md, docs/bundle.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge import bundle as bundles
from grd_edge.bundle import RANGES, Bundle, read_bundle
from grd_edge.engine.builder import (
    BuildOptions,
    BuiltEngine,
    check_options,
    engine_from_onnx,
)
from grd_edge.engine.fingerprint import engine_entry
from grd_edge.engine.fusion_check import Finding, findings_of
from grd_edge.engine.layer_report import LayerReport, report_from_graph
from grd_edge.engine.library import library_of
from grd_edge.engine.onnxruntime import reconstruction_difference
from grd_edge.engine.targets import CPU, TARGETS, Target, checked_precisions
from grd_edge.engine.typed import FORM, check_generator, parsed_model, typed_from_onnx
from grd_edge.errors import BundleError, InputError
from grd_edge.files import sha256_hex
from grd_edge.ranges import RangeTable, read_table, table_from_json
from grd_edge.watch import SILENT, Watcher

EXTENSION = ".engine"
UNMEASURED = "unmeasured: it was built without the device"


@dataclass(frozen=True)
class Planned:
    """A typed model that an engine is built from, and what is known of it before.

    Attributes:
        model: serialized.
        keep: layers that stay in a higher precision.
        max_difference, mean_difference: of its x_hat to the bundle's FP32 model, run by ONNX Runtime on seeded noise.
    """

    precision: str
    model: bytes
    form: str
    keep: tuple[str, ...]
    findings: tuple[Finding, ...]
    layers: LayerReport
    max_difference: float
    mean_difference: float

    def to_json(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "form": self.form,
            "keep": list(self.keep),
            "x_hat_max_difference": self.max_difference,
            "x_hat_mean_difference": self.mean_difference,
            "findings": [str(each) for each in self.findings if each.open],
        }


@dataclass(frozen=True)
class Plan:
    """What `engines_into_bundle` builds: precisions per target, in the order they were asked for."""

    bundle: Bundle
    jobs: tuple[tuple[Target, str], ...]
    models: dict[str, Planned]
    options: BuildOptions
    asked: tuple[str, ...]


def plan_of_engines(
    path: Path,
    targets: Sequence[Target],
    precisions: Sequence[str] = ("auto",),
    *,
    options: BuildOptions | None = None,
    ranges: Path | None = None,
    keep: Sequence[str] = (),
    form: str = FORM,
    dry: bool = False,
    watch: Watcher = SILENT,
) -> Plan:
    """The typed models of all engines that are asked for, each run beside FP32 and searched for what does not fuse.

    Nothing is written.

    Args:
        ranges: range table; None: that of the bundle.
        keep: layers, or patterns of them, that stay in a higher precision: FP16 in a quantized model, FP32 in FP16. For
            quantized models the layers that the bundle's own INT8 keeps join them.
        dry: the libraries that build need not be installed.

    Raises:
        InputError: no target, a precision or option that a target lacks, no ranges, a model that cannot be cast.
        BundleError, MissingExtraError, EngineError, CheckFailedError: see what it calls.
    """
    options = options or BuildOptions()
    if not targets:
        raise InputError(f"no target is given; name one with --target: {', '.join(TARGETS)}")
    jobs = [(target, each) for target in targets for each in checked_precisions(target, precisions)]
    for target in () if dry else targets:
        check_options(target, options, library_of(target))
    bundle = read_bundle(path)
    if bundles.MODEL not in bundle.files:
        raise BundleError(
            f"{bundle.path} holds no {bundles.MODEL}, which engines are built from; build the bundle again"
        )
    geometry = bundle.manifest["geometry"]
    shape = geometry["channels"], geometry["patch_h"], geometry["patch_w"]
    check_generator(parsed_model(bundle.files[bundles.MODEL]), shape)
    models: dict[str, Planned] = {}
    for precision in dict.fromkeys(each for _, each in jobs):
        watch.stage(f"writing the {precision} model")
        models[precision] = _planned(bundle, precision, ranges, tuple(keep), form)
    return Plan(bundle, tuple(dict.fromkeys(jobs)), models, options, tuple(precisions))


def _planned(bundle: Bundle, precision: str, ranges: Path | None, keep: tuple[str, ...], form: str) -> Planned:
    fp32, table = bundle.files[bundles.MODEL], None
    if precision != "fp16":
        fp32, table = _calibrated(bundle, precision, ranges)
        keep = tuple(dict.fromkeys((*keep, *_kept_on_cpu(bundle))))
    model = typed_from_onnx(fp32, precision, table=table, keep=keep, form=form)
    parsed = parsed_model(model)
    run = (
        typed_from_onnx(fp32, precision, table=table, keep=keep, form=form, half=False) if precision == "fp8" else model
    )
    differences = reconstruction_difference(run, bundle.files[bundles.MODEL], f"the {precision} model")
    findings = findings_of(parsed, (*keep, *(table.keep if table else ())))
    return Planned(precision, model, form, keep, tuple(findings), report_from_graph(parsed), *differences)


def _calibrated(bundle: Bundle, precision: str, ranges: Path | None) -> tuple[bytes, RangeTable]:
    """A range table and the FP32 model of the bundle that it was made from."""
    if ranges is not None:
        table = read_table(ranges)
    elif RANGES in bundle.files:
        try:
            described = json.loads(bundle.files[RANGES])
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {RANGES} is no JSON ({error}); build the bundle again") from error
        table = table_from_json(described, f"{bundle.path}: {RANGES}")
    else:
        raise InputError(
            f"{bundle.path} holds no {RANGES}, which {precision} needs; build the bundle with --data, or give the "
            "table of grd-edge calibrate with --ranges"
        )
    for name, data in bundle.files.items():
        if name.endswith(".onnx") and sha256_hex(data) == table.model_sha256:
            return data, table
    raise InputError(
        f"the range table is stale: it belongs to model {table.model_sha256[:12]}, which {bundle.path} does not hold; "
        "calibrate again with: grd-edge calibrate"
    )


def _kept_on_cpu(bundle: Bundle) -> list[str]:
    """Layers that the INT8 engine of the bundle keeps in a higher precision, as accuracy asked for it."""
    for tried in bundle.manifest["precision"]["tried"]:
        if tried.get("target") == CPU and not tried.get("lost") and str(tried.get("precision", "")).startswith("int8"):
            held = tried.get("keep", [])
            return [each for each in held if isinstance(each, str)] if isinstance(held, list) else []
    return []


def engines_into_bundle(plan: Plan, *, watch: Watcher = SILENT) -> tuple[Bundle, list[tuple[Target, BuiltEngine]]]:
    """Builds the engines of a plan and puts all of them into the bundle, or none; thresholds stay.

    Engines of the same target and precision are replaced. The precision named first is the one that the target uses,
    unless `auto` was asked for, which is FP16.

    Raises:
        EngineError, StoppedError: see `engine_from_onnx`; the bundle is as it was.
        InputError: no space on the disk, or another process wrote to the bundle meanwhile.
    """
    bundle = plan.bundle
    _check_space(plan)
    built = []
    for target, precision in plan.jobs:
        watch.stage(f"building {target.name} {precision}")
        model = plan.models[precision].model
        built.append((target, engine_from_onnx(model, target, precision, plan.options, on_progress=watch.progress)))
    watch.stage("writing the bundle")
    manifest, files = _with_engines(plan, built)

    def unchanged(folder: Path) -> None:
        """Thresholds that were fitted meanwhile come along; another model does not."""
        now = read_bundle(bundle.path)
        if now.seal != bundle.seal:
            raise InputError(
                f"{bundle.path} was replaced by another process while its engines were built; build them again"
            )
        if now.decision is not None:
            kept = {key: value for key, value in now.decision.items() if key not in ("schema", "bundle", "seal")}
            bundles.write_decision(folder, kept)

    return bundles.write_bundle(bundle.path, manifest, files, check=unchanged), built


def _with_engines(plan: Plan, built: Sequence[tuple[Target, BuiltEngine]]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """bundle.json, less what its writer fills in, and the files of the bundle with its new engines."""
    old, files = plan.bundle.manifest, dict(plan.bundle.files)
    engines = {(each["target"], each["precision"]): each for each in old["engines"]}
    tried = list(old["precision"]["tried"])
    chosen = dict(old["precision"]["chosen"])
    first: dict[str, str] = {}
    for target, engine in built:
        precision = engine.fingerprint.precision
        key = target.name, precision
        if key in engines:
            files.pop(engines[key]["file"], None)
            tried = [each for each in tried if (each.get("target"), each.get("precision")) != key]
        file = f"engines/{target.name}-{precision}{EXTENSION}"
        files[file] = engine.data
        engines[key] = engine_entry(target, file, engine.fingerprint)
        if first.setdefault(target.name, precision) == precision:
            why = "auto takes FP16 where nothing can be measured" if "auto" in plan.asked else "it was asked for"
        else:
            why = f"{first[target.name]} was asked for first"
        described = {"target": target.name, **plan.models[precision].to_json(), "why": why, "speed": UNMEASURED}
        tried.append({**described, "lost": ""})
    manifest = {key: value for key, value in old.items() if key not in ("schema", "files", "seal")}
    manifest["engines"] = list(engines.values())
    manifest["precision"] = {**old["precision"], "chosen": {**chosen, **first}, "tried": tried}
    return manifest, files


def _check_space(plan: Plan) -> None:
    """Raises InputError where the disk cannot hold the bundle with its engines beside the old one."""
    engines = sum(2 * len(plan.models[precision].model) for _, precision in plan.jobs)
    needed = engines + sum(map(len, plan.bundle.files.values()))
    folder = Path(os.path.realpath(plan.bundle.path)).parent
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise InputError(
            f"{folder} has {free >> 20} MiB free and up to {needed >> 20} MiB may be needed; free space or copy the "
            "bundle to another disk, it is as it was"
        )
