"""Bundle -> the same bundle with TensorRT engines in it, for parts that need not be here. Never imports torch.

Source: docs/design/tensorrt.md, docs/bundle.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grd_edge import bundle as bundles
from grd_edge.bundle import RANGES, Bundle, read_bundle
from grd_edge.engine import device
from grd_edge.engine.builder import (
    BuildOptions,
    BuiltEngine,
    capability_here,
    check_options,
    engine_from_onnx,
)
from grd_edge.engine.fingerprint import engine_entry
from grd_edge.engine.fusion_check import Finding, findings_of
from grd_edge.engine.layer_report import LayerReport, report_from_graph
from grd_edge.engine.library import library_of
from grd_edge.engine.onnxruntime import reconstruction_difference
from grd_edge.engine.typed import FORM, check_graph, parsed_model, typed_from_onnx
from grd_edge.engine.verdict import BASE, EngineTrial, Verdict, engine_file, unmeasured
from grd_edge.errors import BundleError, CheckFailedError, EngineError, InputError
from grd_edge.files import sha256_hex
from grd_edge.ranges import RangeTable, read_table, table_from_json
from grd_edge.targets import CPU, TARGETS, Target, checked_precisions
from grd_edge.watch import SILENT, Watcher

UNMEASURED = "unmeasured: it was built without the device"
NO_IMAGES = "no images were given"


@dataclass(frozen=True)
class Planned:
    """A typed model that an engine is built from, and what is known of it before.

    Attributes:
        model: serialized.
        keep: layers that stay in a higher precision.
        max_difference, mean_difference: of its output to the bundle's FP32 model, run by ONNX Runtime on seeded noise.
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
    """What `engines_into_bundle` builds: precisions per target, in the order they were asked for.

    Attributes:
        trial: what `auto` measures with.
        hindered: where `auto` comes first, per name of a target why it measures nothing there; "" where it does.
        lost: per precision that `auto` would have tried why there is no model of it.
    """

    bundle: Bundle
    jobs: tuple[tuple[Target, str], ...]
    models: dict[str, Planned]
    options: BuildOptions
    asked: tuple[str, ...]
    trial: EngineTrial | None = None
    hindered: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    def only_tried(self, target: Target, precision: str) -> bool:
        """Whether it is built to be measured, and ships if it wins."""
        return self.hindered.get(target.name) == "" and precision not in self.asked


def plan_of_engines(
    path: Path,
    targets: Sequence[Target],
    precisions: Sequence[str] = ("auto",),
    *,
    options: BuildOptions | None = None,
    ranges: Path | None = None,
    keep: Sequence[str] = (),
    form: str = FORM,
    trial: EngineTrial | None = None,
    dry: bool = False,
    watch: Watcher = SILENT,
) -> Plan:
    """The typed models of all engines that are asked for, each run beside FP32 and searched for what does not fuse.

    Nothing is written.

    Args:
        ranges: range table; None: that of the bundle.
        keep: layers, or patterns of them, that stay in a higher precision: FP16 in a quantized model, FP32 in FP16. For
            quantized models the layers that the bundle's own INT8 keeps join them.
        trial: for `auto`, which then builds lower precisions, too, for targets whose device is here.
        dry: the libraries that build need not be installed.

    Raises:
        InputError: no target, a precision or option that a target lacks, no ranges, a model that cannot be cast.
        BundleError, MissingExtraError, EngineError, CheckFailedError: see what it calls.
    """
    options = options or BuildOptions()
    check_targets(targets, precisions, options, dry=dry)
    bundle = read_bundle(path)
    if bundles.MODEL not in bundle.files:
        raise BundleError(
            f"{bundle.path} holds no {bundles.MODEL}, which engines are built from; build the bundle again"
        )
    geometry = bundle.manifest["geometry"]
    shape = geometry["channels"], geometry["patch_h"], geometry["patch_w"]
    check_graph(parsed_model(bundle.files[bundles.MODEL]), shape, bundle.head)
    has_ranges = ranges is not None or RANGES in bundle.files
    auto = targets if precisions[0] == "auto" else ()
    hindered = {target.name: _hindrance(target, trial, bundle, has_ranges) for target in auto}
    jobs = []
    for target in targets:
        found = checked_precisions(target, precisions)
        if hindered.get(target.name) == "":
            found += [each for each in target.precisions if each not in found]
        jobs += [(target, each) for each in found]
    models: dict[str, Planned] = {}
    lost: dict[str, str] = {}
    for precision in dict.fromkeys(each for _, each in jobs):
        watch.stage(f"writing the {precision} model")
        try:
            models[precision] = _planned(bundle, precision, ranges, tuple(keep), form)
        except (InputError, BundleError, EngineError, CheckFailedError) as error:
            if precision == BASE or precision in precisions:
                raise
            lost[precision] = f"there is no model of it: {error}"
    jobs = tuple(dict.fromkeys(job for job in jobs if job[1] in models))
    return Plan(bundle, jobs, models, options, tuple(precisions), trial, hindered, lost)


def check_targets(
    targets: Sequence[Target], precisions: Sequence[str], options: BuildOptions, *, dry: bool = False
) -> None:
    """What would be refused after minutes: no target, a precision or option that one lacks, a library that is missing.

    Args:
        dry: the libraries that build need not be installed.

    Raises:
        InputError, MissingExtraError, EngineError: see above; or a device is needed and is not here.
    """
    if not targets:
        raise InputError(f"no target is given; name one with --target: {', '.join(TARGETS)}")
    for target in targets:
        checked_precisions(target, precisions)
    for target in () if dry else targets:
        check_options(target, options, library_of(target))
        if not target.ahead_of_time:
            capability_here(target)


def _hindrance(target: Target, trial: EngineTrial | None, bundle: Bundle, has_ranges: bool) -> str:
    """Why `auto` measures nothing for a target; "" where it can."""
    if trial is None:
        return NO_IMAGES
    if not has_ranges:
        return f"{bundle.path} holds no {RANGES}, so there is nothing lower to build"
    try:
        here = device.device_here()
    except EngineError as error:
        return str(error)
    parts = target.compute_capabilities or target.device_capabilities
    if parts and here.compute_capability not in parts:
        return (
            f"{target.name} is for compute capability {' or '.join(parts)}, {here.name} has {here.compute_capability}"
        )
    return ""


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
    """Builds the engines of a plan and puts all that ship into the bundle, or none; thresholds stay.

    Engines of the same target and precision are replaced. The precision named first is the one that the target uses; of
    `auto` it is FP16, or what is measured faster and inside the budget. What `auto` tried and lost does not ship.

    Returns:
        The bundle, and the engines that were put into it.

    Raises:
        EngineError, StoppedError: see `engine_from_onnx`; the bundle is as it was.
        InputError: images that cannot be used, no space on the disk, or another process wrote to the bundle meanwhile.
    """
    bundle = plan.bundle
    _check_space(plan)
    built: dict[Target, dict[str, BuiltEngine]] = {}
    lost = {
        (target, each): why
        for target in dict.fromkeys(target for target, _ in plan.jobs)
        for each, why in plan.lost.items()
        if each in target.precisions and plan.only_tried(target, each)
    }
    for target, precision in plan.jobs:
        watch.stage(f"building {target.name} {precision}")
        model = plan.models[precision].model
        try:
            engine = engine_from_onnx(model, target, precision, plan.options, on_progress=watch.progress)
        except EngineError as error:
            if precision == BASE or not plan.only_tried(target, precision):
                raise
            lost[target, precision] = f"it cannot be built: {error}"
        else:
            built.setdefault(target, {})[precision] = engine
    verdicts = _verdicts(plan, built, watch)
    watch.stage("writing the bundle")
    shipped = [
        (target, engine)
        for target, engines in built.items()
        for precision, engine in engines.items()
        if not plan.only_tried(target, precision) or verdicts[target.name].precision == precision
    ]
    manifest, files = _with_engines(plan, shipped, verdicts, lost)

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

    return bundles.write_bundle(bundle.path, manifest, files, check=unchanged), shipped


def _verdicts(plan: Plan, built: Mapping[Target, Mapping[str, BuiltEngine]], watch: Watcher) -> dict[str, Verdict]:
    """Per name of a target what it uses, measured where that is possible."""
    found, raced = {}, {}
    for target, engines in built.items():
        hindrance = plan.hindered.get(target.name)
        if hindrance is None:
            found[target.name] = Verdict(plan.asked[0], "it was asked for")
        elif hindrance or len(engines) == 1:
            found[target.name] = unmeasured(hindrance or "nothing lower could be built")
        else:
            raced[target] = engines
    if raced:
        details = {name: each.to_json() for name, each in plan.models.items()}
        found |= plan.trial.verdicts(plan.bundle.files[bundles.MODEL], raced, details, watch=watch)
    return found


def _with_engines(
    plan: Plan,
    shipped: Sequence[tuple[Target, BuiltEngine]],
    verdicts: Mapping[str, Verdict],
    lost: Mapping[tuple[Target, str], str],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """bundle.json, less what its writer fills in, and the files of the bundle with its new engines."""
    old, files = plan.bundle.manifest, dict(plan.bundle.files)
    engines = {(each["target"], each["precision"]): each for each in old["engines"]}
    jobs = list(dict.fromkeys((*plan.jobs, *lost)))
    replaced = {(target.name, precision) for target, precision in jobs}
    for key in replaced & engines.keys():
        files.pop(engines.pop(key)["file"], None)
    for target, engine in shipped:
        precision = engine.fingerprint.precision
        file = engine_file(target, precision)
        files[file] = engine.data
        engines[target.name, precision] = engine_entry(target, file, engine.fingerprint)
    tried = [each for each in old["precision"]["tried"] if (each.get("target"), each.get("precision")) not in replaced]
    for target, precision in jobs:
        verdict = verdicts[target.name]
        tried.append(_tried(plan, target, precision, verdict, lost.get((target, precision), "")))
    chosen = {**old["precision"]["chosen"], **{name: verdict.precision for name, verdict in verdicts.items()}}
    manifest = {key: value for key, value in old.items() if key not in ("schema", "files", "seal")}
    manifest["engines"] = list(engines.values())
    manifest["precision"] = {**old["precision"], "chosen": chosen, "tried": tried}
    return manifest, files


def _tried(plan: Plan, target: Target, precision: str, verdict: Verdict, lost: str) -> dict[str, Any]:
    """An entry of `precision.tried`; of what ships it tells why."""
    described: dict[str, Any] = {"target": target.name, "precision": precision}
    if precision in plan.models:
        described |= plan.models[precision].to_json()
    ships = precision == verdict.precision or not plan.only_tried(target, precision)
    if not ships:
        return {**described, **verdict.tried.get(precision, {"lost": lost or f"not measured; {verdict.why}"})}
    ahead = target.ahead_of_time and target.name not in plan.hindered
    measured = verdict.tried.get(precision, {"speed": UNMEASURED if ahead else "unmeasured", "lost": ""})
    if precision == verdict.precision:
        why = verdict.why
    elif target.name not in plan.hindered:
        why = f"{verdict.precision} was asked for first"
    else:
        why = "it was asked for beside auto" + (f", which refused it: {measured['lost']}" if measured["lost"] else "")
    return {**described, "why": why, **measured, "lost": ""}


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
