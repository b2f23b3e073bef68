"""From measured methods to a choice, and to what `grd-edge compare` says of it: rows, sentences, compare.json.

Never imports torch. Source: docs/compare.md.
"""

from __future__ import annotations

import datetime
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from grd_edge.compare_measures import ROUNDS, Halves
from grd_edge.data.dataset import Dataset
from grd_edge.machine import fingerprint
from grd_edge.pareto import NAMES, Candidate, Selected, selected
from grd_edge.precision import DEFAULT_BUDGET, Budget, Request
from grd_edge.results import path_text

SCHEMA = 1
KIND = "compare"
LARGEST_GAIN = 4.0  # of a lower precision over FP32; docs/results.md has 3.8


@dataclass(frozen=True)
class Options:
    """How methods are compared.

    Attributes:
        minutes: for all methods together; a plan, as steps and builds are not cut off.
        train_seconds: of each training, in place of a share of `minutes`.
        budget_ms: what a frame may take, in decision out, at `budget_at`; None: anything.
        by: figure that methods are chosen by, of `compare_measures.FIGURES`.
        holdout: share of the test images that has no part in the choice; None: all choose.
        request, budget: precision of the bundles, as of `build.bundle_from_dataset`.
        rounds, threads: of the times.
    """

    minutes: float = 15.0
    train_seconds: float | None = None
    budget_ms: float | None = None
    budget_at: Literal["p50", "p99"] = "p99"
    by: str = "image_auroc"
    holdout: float | None = None
    request: Request = "auto"
    budget: Budget = DEFAULT_BUDGET
    rounds: int = ROUNDS
    threads: int = 0


def document_of(
    rows: Mapping[str, dict[str, Any]],
    options: Options,
    halves: Halves,
    dataset: Dataset,
    planned: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """compare.json, which docs/compare.md describes.

    Args:
        rows: name -> what is known of a method: `failed`, or what was measured, with `drawn` (figure -> its values on
            resampled images), which does not go into the document.
        planned: name -> seconds of training, of those that were made now.
        seconds: that all of it took now.
    """
    candidates = [_candidate(name, row, options) for name, row in rows.items() if "failed" not in row]
    choice = selected(candidates, options.budget_ms)
    methods = []
    for name, row in rows.items():
        kept = {key: value for key, value in row.items() if key != "drawn"}
        if "failed" not in row:
            kept |= vars(choice.standings[name])
        methods.append(kept | {"best": name == choice.best, "chosen": name == choice.chosen})
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "title": f"{dataset.name}: methods compared",
        "data": {
            "name": dataset.name,
            "path": path_text(dataset.root or dataset.name),
            "manifest_sha256": dataset.manifest_sha256(),
            "train": len(dataset.train),
            "calibration": len(dataset.calibration),
            "test": _counted(dataset.test),
        },
        "by": options.by,
        "budget_ms": options.budget_ms,
        "budget_at": options.budget_at,
        "holdout": {
            "share": options.holdout,
            "choosing": _counted(halves.choosing),
            "reported": _counted(halves.reported),
        }
        if halves.held_out
        else None,
        "minutes": options.minutes if options.train_seconds is None else None,
        "train_seconds": options.train_seconds,
        "planned_train_seconds": {name: round(seconds, 1) for name, seconds in planned.items()},
        "methods": methods,
        "best": choice.best,
        "chosen": choice.chosen,
        "optimism": choice.optimism,
        "bundle": None,
        "seconds": round(seconds, 1),
        "command": path_text(shlex.join(["grd-edge", *sys.argv[1:]])),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": fingerprint(),
    }
    document["why"] = _why(document, choice, {each.name: each for each in candidates}, options)
    document["notes"] = _notes(document, halves)
    return document


def next_to_lower(
    rows: Mapping[str, dict[str, Any]], fp32_ms: Mapping[str, float], gained: Mapping[str, float], options: Options
) -> str | None:
    """The method that would be chosen if every lower precision that was not searched for yet gained what is possible;
    None: a method whose search is done would be, so that no search can change the choice any more, or none would be.

    Args:
        rows: name -> what was measured of a method, with `drawn`.
        fp32_ms: name -> what a frame takes in FP32.
        gained: name -> how many times as fast as that its bundle is, of those whose search is done.
    """
    hoped = []
    for name, row in rows.items():
        ms = fp32_ms[name] / gained.get(name, LARGEST_GAIN)
        hoped.append(_candidate(name, row | {"p50_ms": ms, "p99_ms": ms}, options))
    chosen = selected(hoped, options.budget_ms).chosen
    return None if chosen in gained else chosen


def _candidate(name: str, row: Mapping[str, Any], options: Options) -> Candidate:
    accuracy = (row["choosing"] or row["figures"])[options.by]
    budgeted = row[f"{options.budget_at}_ms"]
    return Candidate(
        name,
        math.nan if accuracy is None else accuracy,
        row["p50_ms"],
        # A p99 of too few frames is their worst.
        row["worst_ms"] if budgeted is None else budgeted,
        row["drawn"].get(options.by, np.empty(0)),
    )


def _counted(samples) -> dict[str, int]:
    defective = sum(sample.defective for sample in samples)
    return {"good": len(samples) - defective, "defective": defective}


def _why(document: Mapping[str, Any], choice: Selected, candidates: Mapping[str, Candidate], options: Options) -> str:
    """Why the chosen one was chosen, or none was, in a sentence without its full stop."""
    figure, budget = NAMES[options.by], f"{options.budget_at} of {options.budget_ms or 0:g} ms"
    if choice.chosen is None:
        measured = [each for each in candidates.values() if each.measured]
        if not measured:
            return f"no method has a {figure} to be chosen by, so none was chosen and nothing was written"
        near = min(measured, key=lambda each: each.budgeted_ms)
        return (
            f"no method is inside the budget, a {budget}, and nothing was written; {near.name} is nearest with "
            f"{near.budgeted_ms:.4g} ms; raise --budget-ms, or give it smaller or fewer patches with "
            f"--set {near.name}:geometry.scale_px=…"
        )
    chosen, best = candidates[choice.chosen], candidates[choice.best]
    limit = f" inside a {budget}" if options.budget_ms is not None else ""
    if chosen is best:
        return f"{chosen.name} has the highest {figure}{limit}"
    standing = choice.standings[chosen.name]
    low, high = standing.difference_ci95
    return (
        f"{chosen.name} is the fastest of those that tie with the highest {figure}{limit}, which {best.name} has: the "
        f"difference is {standing.difference:+.4f}, 95 % [{low:+.4f}, {high:+.4f}]"
    )


def _notes(document: Mapping[str, Any], halves: Halves) -> list[str]:
    """What to know before the figures are believed, in sentences."""
    figure, held = NAMES[document["by"]], document["holdout"]
    notes = []
    if held:
        notes.append(
            f"{len(halves.choosing)} test images chose the method, and the figures are of the other "
            f"{len(halves.reported)}, which had no part in it"
        )
    elif document["chosen"] and sum("failed" not in each for each in document["methods"]) > 1:
        row = next(each for each in document["methods"] if each["chosen"])
        notes.append(
            f"the test images chose the method, so its {figure} of {row['figures'][document['by']]:.4f} is optimistic, "
            f"by about {document['optimism']:.4f} (bootstrap of the choice); --holdout 0.5 chooses on one half of them "
            "and reports the other"
        )
    for each in document["methods"]:
        if each.get("substitutes"):
            notes.append(f"{each['name']} is not as published: {'; '.join(each['substitutes'])}")
    if plain := [each["name"] for each in document["methods"] if not each.get("searched", True)]:
        notes.append(
            f"{', '.join(plain)}: in fp32, as lower precisions were tried only where they could make the choice; for "
            "another one: grd-edge build bundle NAME/checkpoint.safetensors, in the folder of the comparison"
        )
    if document["minutes"] and document["seconds"] > 60 * document["minutes"]:
        took, asked = document["seconds"] / 60, document["minutes"]
        notes.append(f"it took {took:.1f} minutes in place of {asked:g}; steps and builds are not cut off")
    timed = [each for each in document["methods"] if "failed" not in each]
    if document["budget_at"] == "p99" and (few := [each["name"] for each in timed if each["p99_ms"] is None]):
        notes.append(f"too few frames of {', '.join(few)} were timed for a p99; the worst of them counts in its place")
    return notes


def substitutes_of(provenance: Any) -> list[str]:
    """What stands in a checkpoint for an ingredient of the method's paper that was not at hand, in words."""
    if not isinstance(provenance, dict):
        return []
    found = []
    for key, value in provenance.items():
        found += [value] if key == "substitute" else substitutes_of(value)
    return found
