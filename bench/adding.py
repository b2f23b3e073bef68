"""Records (bench/records.py) from the JSON files that the benches and the verbs write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from grd_edge.bench.records import RESULTS, interval, record_from_json, write_record

from grd_edge.errors import InputError
from grd_edge.gates import METRICS
from grd_edge.machine import cpu_name

Content = dict[str, Any]  # arguments of write_record


def add(
    path: Path,
    what: str,
    *,
    title: str | None = None,
    command: str | None = None,
    notes: Iterable[str] = (),
    root: Path = RESULTS,
) -> Path:
    """Writes the record that a file of measurements makes, in place of the one of that name.

    Args:
        title, command: None: those of the file's kind; plain figures have none.
        notes: sentences that follow where it comes from.

    Returns:
        The record's path.

    Raises:
        InputError: no such file, or one that lacks what a record needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); give a file that a bench wrote") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; give a file that a bench wrote")
    read = next((reader for keys, reader in KINDS if keys <= content.keys()), figures)
    if read is record:
        record_from_json(text, path)
    try:
        found = read(content)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} looks like {read.__doc__} and lacks {error}; measure it again") from error
    found |= {name: text for name, text in (("title", title), ("command", command)) if text}
    if missing := [f"--{name}" for name in ("title", "command") if not found.get(name)]:
        raise InputError(f"{path} does not say what it measures; add {' and '.join(missing)}")
    found["notes"] = [*found.get("notes", ()), *notes]
    return write_record(what, root=root, **found)


def latency(result: dict[str, Any]) -> Content:
    """a result of `grd-edge bench -o`"""
    baseline = result.get("baseline") or {}
    told = baseline.get("figures", {})
    figures = {name: value for name, value in result["figures"].items() if value is not None}
    figures |= {f"baseline_{name}": value for name, value in told.items() if value is not None}
    columns = [
        {"key": "metric", "name": "metric"},
        {"key": "text", "name": "what it is"},
        {"key": "value", "name": "engine", "format": "{value:.3s}"},
        {"key": "baseline", "name": baseline.get("version", "no baseline"), "format": "{baseline:.3s}"},
    ]
    rows = [
        {"metric": f"`{name}`", "text": METRICS[name].text, "value": value, "baseline": told.get(name)}
        for name, value in result["figures"].items()
        if value is not None
    ]
    bundle, patches = result["bundle"], result["frame"]["patches"]
    count = f"{patches[0]}" if patches[0] == patches[1] else f"{patches[0]} to {patches[1]}"
    return {
        "title": f"Frame in, decision out: {count} patches, {bundle['precision']} on {bundle['target']}",
        "command": f"grd-edge bench {bundle['name']}.grdb --rounds {result.get('rounds', 0)}",
        "columns": columns,
        "rows": rows,
        "figures": figures,
        "samples": {f"{name}_ms": times for name, times in (result.get("times_ms") or {}).items() if times},
        "machine": result["machine"],
        "date": result["date"][:10],
    }


def slots(result: dict[str, Any]) -> Content:
    """a result of `grd-edge stream --slot-ms --json`"""
    if result["machine"] != cpu_name():
        raise InputError(
            f"these slots were measured on {result['machine']} and this is {cpu_name()}; make the record where they "
            "were measured, since it holds the machine's fingerprint"
        )
    patches, slot_ms, count = (result[name] for name in ("patches", "slot_ms", "slots"))
    return {
        "title": f"Slots at line rate: {patches} patches every {slot_ms:g} ms",
        "command": f"grd-edge stream BUNDLE --slot-ms {slot_ms:g} --patches {patches} --slots {count}",
        "figures": slot_figures(result),
    }


def slot_figures(result: dict[str, Any]) -> dict[str, Any]:
    """All that is told, percentiles as `p50_ms` and so on, those of parts as `infer_p50_ms`."""
    told = {f"{name}_ms": value for name, value in result["total_ms"].items()}
    told |= {f"{name}_p50_ms": value for name, value in result["stage_p50_ms"].items()}
    told |= {f"start_late_{name}_ms": value for name, value in result["start_late_ms"].items()}
    return dict(_flat({name: value for name, value in result.items() if not isinstance(value, dict)} | told))


def suite(result: dict[str, Any]) -> Content:
    """a file of pytest-benchmark (bench/rows.py)"""
    if not result["benchmarks"]:
        raise InputError(
            "the file of pytest-benchmark holds no row, so nothing was measured; see why its tests were skipped"
        )
    # `of` and not `group`, which only the first row of a group shows
    columns = [
        {"key": "group", "name": "group"},
        {"key": "row", "name": "row"},
        {"key": "min_ms", "name": "least, ms", "format": "{min_ms:.3s}"},
        {"key": "p50_ms", "name": "median, ms", "format": "{p50_ms:.3s}"},
        {"key": "ratio", "name": "times as fast as, by the median of rounds"},
        {"key": "limit", "name": "of the machine's limit", "format": "{limit_share:.0%} of `{limit_row}`"},
    ]
    rows, figures, samples = [], {}, {}
    for one in result["benchmarks"]:
        group, name, extra = one["group"], str(one["param"]), one["extra_info"]
        row = {
            "group": group if not rows or rows[-1]["of"] != group else "",
            "of": group,
            "row": f"`{name}`" + ("" if extra["role"] == "baseline" else f" ({extra['role']})"),
            "min_ms": one["stats"]["min"] * 1e3,
            "p50_ms": one["stats"]["median"] * 1e3,
            "ratio": ", ".join(f"`{other}` {ratio:.2f}" for other, ratio in extra["ratios_p50"].items()),
            "limit_share": extra["limit_share"],
            "limit_row": extra["limit"],
        }
        rows.append(row)
        key = _key(f"{group} {name}")
        figures |= {f"{key}_min_ms": row["min_ms"], f"{key}_p50_ms": row["p50_ms"]}
        figures |= {f"{key}_vs_{_key(other)}": ratio for other, ratio in extra["ratios_p50"].items()}
        if row["limit_share"] is not None:
            figures[f"{key}_limit_share"] = row["limit_share"]
        samples[key] = [round(1e3 * time, 6) for time in one["stats"].get("data", ())]
    return {
        "title": "The benchmarks, each group interleaved",
        "command": "python -m pytest bench --benchmark-json=FILE",
        "columns": columns,
        "rows": rows,
        "figures": figures,
        "samples": {name: times for name, times in samples.items() if times},
        "machine": result["machine_info"]["machine"],
        "date": result["datetime"][:10],
    }


def accuracy(result: dict[str, Any]) -> Content:
    """benchmark.json of `grd-edge eval --benchmark-root`"""
    columns = [
        {"key": "category", "name": "category"},
        {"key": "engine", "name": "engine"},
        *({"key": f"{key}_text", "name": name, "format": interval(key)} for key, name in _ACCURACY.items()),
        {"key": "delta_text", "name": "image AUROC less the reference's", "format": interval("delta", "+", 4)},
        {"key": "gain_text", "name": "less the untrained network's", "format": interval("gain", "+")},
        {"key": "flips", "name": "decisions flipped"},
    ]
    rows, figures = [], {}
    categories = {name: found["engines"] for name, found in result["categories"].items()}
    ships = {(name, found["shipped"]) for name, found in result["categories"].items()}
    for category, engines in (categories | {"mean": result["mean"]}).items():
        for engine, told in engines.items():
            parity = told.get("against_reference", {})
            flips = parity.get("decision_flips", told.get("decision_flips"))
            row = {"category": category if engine == next(iter(engines)) else "", "engine": engine, "flips": flips}
            row["engine"] += " (ships)" * ((category, engine) in ships)
            if (count := told.get("image_auroc_categories", len(categories))) < len(categories):
                row["engine"] += f" (of {count})"  # a mean over other categories than its neighbors'
            for end in ("", "_ci95"):
                row |= {f"{key}{end}": told.get(f"{key}{end}") for key in _ACCURACY}
                row[f"delta{end}"] = parity.get(f"auroc_delta{end}", told.get(f"image_auroc_delta{end}"))
                row[f"gain{end}"] = told.get(f"image_auroc_gain{end}")
            rows.append({key: value for key, value in row.items() if value is not None})
            start = _key(f"{category} {engine}")
            figures |= {f"{start}_{key}": row[key] for key in (*_ACCURACY, "delta", "gain") if row[key] is not None}
    failed = [f"{name} failed: {sentence}." for name, sentence in result["failed"].items()]
    return {
        "title": f"Accuracy of every engine, {len(categories)} categories",
        "command": result["command"],
        "columns": columns,
        "rows": rows,
        "notes": failed,
        "figures": figures,
        "machine": result["machine"],
        "date": result["date"][:10],
    }


_ACCURACY = {
    "image_auroc": "image AUROC, 95 %",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "balanced_accuracy": "balanced accuracy",
}


def comparison(result: dict[str, Any]) -> Content:
    """compare.json of `grd-edge compare`"""
    columns = [
        {"key": "method", "name": "method"},
        {"key": "image_auroc", "name": "image AUROC, 95 %", "format": interval("image_auroc")},
        {"key": "pixel_auroc", "name": "pixel AUROC", "digits": 3},
        {"key": "escapes", "name": "escapes"},
        {"key": "overkill", "name": "overkill"},
        {"key": "p50_ms", "name": "frame, p50, ms", "format": "{p50_ms:.3s}"},
        {"key": "p99_ms", "name": "p99, ms", "format": "{p99_ms:.3s}"},
        {"key": "precision", "name": "precision"},
        {"key": "engine_mb", "name": "engine, MB", "digits": 1},
        {"key": "train_seconds", "name": "trained, s", "digits": 0},
    ]
    rows, chosen = [], result["chosen"]
    for told in result["methods"]:
        own = f"`{told['name']}`" + "°" * bool(told.get("substitutes"))
        row = {"method": own + " (chosen)" * (told["name"] == chosen)}
        if "failed" in told:
            rows.append(row | {"image_auroc": f"failed: {told['failed']}"})
            continue
        counts = told["confusion"]
        row |= {key: told["figures"][key] for key in ("image_auroc", "image_auroc_ci95", "pixel_auroc")}
        row |= {key: told[key] for key in ("p50_ms", "p99_ms", "precision", "engine_mb", "train_seconds")}
        row["escapes"] = f"{counts['defective_passed']} of {counts['defective_passed'] + counts['defective_rejected']}"
        row["overkill"] = f"{counts['good_rejected']} of {counts['good_rejected'] + counts['good_passed']}"
        rows.append(row | {"bold": ["method"] * (told["name"] == chosen)})
    # All stages, of earlier calls, too, but for the times.
    stages = [sum(told["seconds"].values()) for told in result["methods"] if "failed" not in told]
    figures = {"stages_s": round(sum(stages), 1), "chosen": chosen}
    for told in result["methods"]:
        if "failed" not in told:
            keys = ("image_auroc", "image_auroc_ci95", "pixel_auroc")
            figures |= {f"{_key(told['name'])}_{key}": told["figures"][key] for key in keys}
            figures |= {f"{_key(told['name'])}_{key}": told[key] for key in ("p50_ms", "p99_ms")}
    return {
        "title": result["title"],
        "command": result["command"],
        "columns": columns,
        "rows": rows,
        "notes": [f"{result['why']}."],
        "figures": {name: value for name, value in figures.items() if value is not None},
        "machine": result["machine"],
        "date": result["date"][:10],
    }


def demo(result: dict[str, Any]) -> Content:
    """summary.json of `grd-edge demo`"""
    training, tried = result["training"], result["precision"]["tried"]
    shipped = next((one for one in tried if not one["lost"]), {"speed": {"speedup": 1.0}})  # none: fp32
    return {
        "title": f"The demo, {result['dataset']}",
        "command": "make demo",
        "figures": {
            "steps": training["steps"],
            "seconds": result["seconds"],
            "images": result["images"],
            "auroc_torch": result["auroc_reference"],
            "auroc": result["image_auroc"],
            "auroc_ci95": result["image_auroc_ci95"],
            "auroc_gain": result["image_auroc"] - result["image_auroc_untrained"],
            "auroc_gain_ci95": result["auroc_gain_ci95"],
            "precision": result["precision"]["chosen"]["cpu"],
            "precision_speedup": shipped["speed"]["speedup"],
            "layers_kept": len(shipped.get("keep", ())),
            "phi_max_abs_diff": result["phi_max_abs_diff"],
            "decision_flips": result["decision_flips"],
            "false_rejects_percent": 100 * result["false_reject_rate"],
            "escapes_percent": 100 * result["escape_rate"],
            "frame_torch_p50_ms": result["p50_ms_reference"],
            "frame_p50_ms": result["p50_ms"],
            "frame_speedup": result["speedup"],
            "score_torch_ms": result["score_race_ms"]["torch_separable_min_ms"],
            "score_ms": result["score_race_ms"]["native_min_ms"],
            "score_speedup": result["score_speedup"],
        },
        "samples": {f"{name}_ms": times for name, times in result["times_ms"].items()},
    }


def record(result: dict[str, Any]) -> Content:
    """a record"""
    return {name: value for name, value in result.items() if name not in ("what", "transcribed")}


def figures(result: dict[str, Any]) -> Content:
    """numbers, also within objects, such as race_* of bench/ return and programs of kernels/bench print"""
    found = {name: value for name, value in _flat(result) if value is not None}
    samples = {name: found.pop(name) for name, value in list(found.items()) if isinstance(value, list)}
    return {"figures": found, "samples": samples}


def _flat(result: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{start}{name} ")
        else:
            yield _key(start + name), str(value).lower() if isinstance(value, bool) else value


def _key(name: str) -> str:
    """`name` in letters, digits and _."""
    return re.sub(r"\W+", "_", name).strip("_")


# keys that tell a kind, and its reader; the first that fits, else plain figures
KINDS: tuple[tuple[set[str], Callable[[dict[str, Any]], Content]], ...] = (
    ({"benchmarks", "machine_info"}, suite),
    ({"kind", "figures", "bundle"}, latency),
    ({"benchmark_root", "categories", "mean"}, accuracy),
    ({"slot_ms", "total_ms"}, slots),
    ({"methods", "by", "chosen"}, comparison),
    ({"threshold_fit", "score_race_ms"}, demo),
    ({"title", "command", "machine"}, record),
)
