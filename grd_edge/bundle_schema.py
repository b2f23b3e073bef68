"""The schema of bundle.json and decision.json: every key, its type and its limits. Never imports torch.

A broken rule is a ValueError whose text goes on after the name of the file. Source: docs/bundle.md; the same rules are
implemented in kernels/runtime/bundle_json.cpp.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from grd_edge.heads import HEADS
from grd_edge.regions import MAX_REGIONS, MAX_SIDE_PX, Region, Regions

SCHEMA = 1
MANIFEST = "bundle.json"
DECISION = "decision.json"
MAX_FILE_BYTES = 4 << 30
HEX = re.compile(r"[0-9a-f]{64}")

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){0,2}")


def _integer(low: int, high: int = 2**31 - 1):
    return lambda value: type(value) is int and low <= value <= high


def _integers(count: int, low: int):
    each = _integer(low, MAX_SIDE_PX)
    return lambda value: isinstance(value, list) and len(value) == count and all(each(number) for number in value)


def _one_of(*values: object):
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096


def _name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9_-]{1,64}", value) is not None


_GEOMETRY = {
    "scale_px": lambda value: value is None or _integer(1, 1 << 16)(value),
    "patch_h": _integer(11, 1 << 14),
    "patch_w": _integer(11, 1 << 14),
    "stride_y": _integer(1, 1 << 14),
    "stride_x": _integer(1, 1 << 14),
    "channels": _one_of(1, 3),
    "padding": _one_of("error", "reflect"),
}
_SCORE = {
    "decides": _one_of("phi", "phi_local"),
    "window": _one_of("gaussian", "box"),
    "local_window_px": _integer(1, 1 << 14),
}
_FILE = {"sha256": lambda v: isinstance(v, str) and HEX.fullmatch(v) is not None, "bytes": _integer(0, MAX_FILE_BYTES)}
_ENGINE = {
    "target": _name,
    "precision": _name,
    "backend": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z0-9_]{1,64}", value) is not None,
    "file": _text,
    "format": _name,
    "fingerprint": lambda value: isinstance(value, dict),
}
_PRECISION = {
    "chosen": lambda value: isinstance(value, dict) and all(_name(k) and _name(v) for k, v in value.items()),
    "tried": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    "why": lambda value: isinstance(value, str),
}
_REGION = {
    "name": _text,
    "threshold": lambda value: _float32(value),
    "areas": lambda value: isinstance(value, list) and all(_integers(4, 0)(area) for area in value),
}


def _float32(value: object) -> bool:
    """Whether a number is one that FP32 represents exactly; integers count as the float64 they are nearest to."""
    if type(value) not in (int, float):
        return False
    number = float(value)
    return abs(number) <= float(np.finfo(np.float32).max) and float(np.float32(number)) == number


def _check_keys(value: object, rules: dict[str, Any], where: str, *, optional: tuple[str, ...] = ()) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"has {where} that is not an object")
    for key in value.keys() - rules.keys():
        raise ValueError(f"has an unknown key {where}.{key}")
    for key, holds in rules.items():
        if key not in value and key in optional:
            continue
        if key not in value:
            raise ValueError(f"lacks {where}.{key}")
        if not holds(value[key]):
            raise ValueError(f"has {where}.{key} = {str(value[key])[:40]!r}, which the schema does not allow")


def check_manifest(manifest: dict[str, Any]) -> None:
    _check_keys(
        manifest,
        {
            "schema": _one_of(SCHEMA),
            "name": _text,
            "head": _one_of(*HEADS),
            "files": lambda value: isinstance(value, dict) and 0 < len(value) <= 1000,
            "geometry": lambda value: isinstance(value, dict),
            "score": lambda value: isinstance(value, dict),
            "precision": lambda value: isinstance(value, dict),
            "engines": lambda value: isinstance(value, list) and len(value) <= 100,
            "provenance": lambda value: isinstance(value, dict),
            "roi": _text,
            "seal": _text,
        },
        "bundle",
        optional=("roi",),
    )
    for name, entry in manifest["files"].items():
        if not _PATH.fullmatch(name) or name in (MANIFEST, DECISION):
            raise ValueError(f"lists a file with a bad name {name[:60]!r}")
        _check_keys(entry, _FILE, f"files[{name}]")
    if manifest.get("roi", next(iter(manifest["files"]))) not in manifest["files"]:
        raise ValueError(f"has a mask of interest {manifest['roi'][:60]!r} that files does not list")
    geometry = manifest["geometry"]
    _check_keys(geometry, _GEOMETRY, "geometry")
    for axis in "yx":
        if geometry[f"stride_{axis}"] > geometry["patch_h" if axis == "y" else "patch_w"]:
            raise ValueError(f"has geometry.stride_{axis} beyond the patch, so pixels would never be inspected")
    _check_keys(manifest["score"], _SCORE, "score")
    _check_keys(manifest["precision"], _PRECISION, "precision")
    seen = set()
    for engine in manifest["engines"]:
        _check_keys(engine, _ENGINE, "engines[]")
        key = (engine["target"], engine["precision"])
        if engine["file"] not in manifest["files"] or key in seen:
            raise ValueError(f"has an engine {key[0]}-{key[1]} that is doubled or whose file is not listed")
        seen.add(key)
    for target, precision in manifest["precision"]["chosen"].items():
        if (target, precision) not in seen:
            raise ValueError(f"chooses {precision} for {target} but has no such engine")


def check_decision(decision: dict[str, Any], seal: str) -> None:
    _check_keys(
        decision,
        {
            "schema": _one_of(SCHEMA),
            "bundle": _text,
            "frame_px": _integers(2, 1),
            "regions": lambda value: isinstance(value, list) and 1 <= len(value) <= MAX_REGIONS,
            "k": _integer(1),
            "run_agreement": lambda value: type(value) in (int, float) and 0.5 < value <= 1,
            "fit": lambda value: isinstance(value, dict),
            "seal": _text,
        },
        "decision",
        optional=("frame_px",),
    )
    if decision["bundle"] != seal:
        raise ValueError("belongs to another bundle; fit new thresholds with: grd-edge recalibrate")
    for index, region in enumerate(decision["regions"]):
        _check_keys(region, _REGION, f"regions[{index}]", optional=("areas",))
    regions_of(decision)


def regions_of(decision: dict[str, Any]) -> Regions:
    """The regions of a decision.json.

    Raises:
        InputError: names, areas and frame_px that do not go together.
    """
    regions = tuple(
        Region(region["name"], tuple(tuple(area) for area in region["areas"]) if "areas" in region else None)
        for region in decision["regions"]
    )
    return Regions(regions, *decision.get("frame_px", (None, None)))


def decision_regions(regions: Regions, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """`frame_px` and `regions` of a decision.json."""
    described = regions.to_json()
    listed = [
        {"name": region["name"], "threshold": threshold, **({"areas": region["areas"]} if region["areas"] else {})}
        for region, threshold in zip(described["regions"], thresholds, strict=True)
    ]
    return {**({"frame_px": described["frame_px"]} if described["frame_px"] else {}), "regions": listed}
