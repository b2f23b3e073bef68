"""Real inspection images through train, build and eval, as a user would run them: the table of docs/results.md.

    GRD_DATA=/path/to/sets python -m grd_edge.bench.inspection_sets --out artifacts/sets --steps 600

Sets are folders below GRD_DATA (see docs/results.md for their sources); those that are missing are left out by name.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grd_edge.bench.records import interval, write_record

from grd_edge.data.layout import GOOD
from grd_edge.files import write_atomically
from grd_edge.metrics import auroc

# Parts that lie alike: turning and mirroring them only multiplies what has to be learned.
ALIGNED = ("augmentation.rotation_deg=0", "augmentation.flip_y=false", "augmentation.noise_sigma=0")
LOCAL = "score.decides=phi_local"


@dataclass(frozen=True)
class InspectionSet:
    """A set below GRD_DATA, the settings it is trained with, and whose bundle judges it (None: its own)."""

    name: str
    settings: tuple[str, ...] = ()
    judged_by: str | None = None


SETS = (
    InspectionSet("alien", ("geometry.scale_px=128",)),
    InspectionSet("ballscrew", ("geometry.scale_px=256", *ALIGNED)),
    # No training images of its own: larger frames of the same parts, at the same working scale.
    InspectionSet("ballscrew_large", judged_by="ballscrew"),
    InspectionSet("paper/bdp01_tl", (LOCAL,)),
    InspectionSet("paper/btn01_rl", (LOCAL,)),
    InspectionSet("paper/zpb01_rl", (LOCAL,)),
)
PRINTED = ("image_auroc", "image_auroc_untrained", "phi_auroc", "phi_local_auroc", "pixel_auroc", "aupro")


COLUMNS = [
    {"key": "name", "name": "set", "format": "`{set}`"},
    {"key": "counts", "name": "images, defective", "format": "{images}, {defective}"},
    {"key": "decides", "name": "decides"},
    {"key": "auroc", "name": "image AUROC, 95 %", "format": interval("image_auroc")},
    {"key": "untrained", "name": "untrained", "format": "{image_auroc_untrained:.3f}"},
    {"key": "gain", "name": "gain, 95 %", "format": interval("auroc_gain", "+")},
    {"key": "both", "name": "by phi / phi_local", "format": "{phi_auroc:.3f} / {phi_local_auroc:.3f}"},
    {"key": "pixels", "name": "pixel AUROC / AUPRO", "format": "{pixel_auroc:.3f} / {aupro:.3f}"},
    {"key": "pixels_untrained", "name": "untrained", "format": "{pixel_auroc_untrained:.3f} / {aupro_untrained:.3f}"},
    {"key": "balanced", "name": "balanced accuracy, 95 %", "format": interval("balanced_accuracy")},
    {"key": "false_rejects", "name": "false rejects", "format": "{false_reject_rate:.1%}"},
    {"key": "escapes", "name": "escapes", "format": "{escape_rate:.1%}"},
]


def table_of_sets(results: list[dict]) -> dict:
    """Columns, rows and figures of the record, from what `run_sets` returns."""
    rows, figures = [], {}
    for result in results:
        decides = "phi_local" if LOCAL in result["settings"] else "phi"
        pixels = {} if result["pixel_auroc"] is not None else {"pixels": "no masks"}
        rows.append({**result, "decides": decides, **pixels})
        name = re.sub(r"\W", "_", result["set"])
        figures |= {f"{name}_auroc": result["image_auroc"], f"{name}_untrained": result["image_auroc_untrained"]}
    figures |= {name: sum(result[name] for result in results) for name in ("images", "decision_flips")}
    figures |= {"phi_max_abs_diff": max(result["phi_max_abs_diff"] for result in results)}
    return {"columns": COLUMNS, "rows": rows, "figures": figures}


def grd_edge(*words: object) -> dict:
    """Runs the command line and returns what it prints as JSON.

    Raises:
        SystemExit: the command failed; its own sentence is on stderr.
    """
    command = [sys.executable, "-c", "from grd_edge.cli import main; main()", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"grd-edge {' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout)


def run_set(one: InspectionSet, data: Path, out: Path, budget: tuple[str, object]) -> dict:
    """Trains, builds and evaluates a set; what `eval` says, with the training's provenance beside it."""
    name = (one.judged_by or one.name).replace("/", "-")
    checkpoint, bundle = out / f"{name}.safetensors", out / f"{name}.grdb"
    if one.judged_by is None:
        words = [word for setting in one.settings for word in ("--set", setting)]
        grd_edge("train", "--data", data / one.name, "-o", checkpoint, "--overwrite", *words, *budget)
        # FP32: what is measured here is the road, not what a lower precision costs.
        grd_edge("build", "bundle", checkpoint, "-o", bundle, "--data", data / one.name, "--precision", "fp32")
    tables = out / f"{one.name.replace('/', '-')}-eval"
    result = grd_edge("eval", bundle, "--data", data / one.name, "--against", checkpoint, "-o", tables)
    with open(tables / "images.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    defective = np.array([row["kind"] != GOOD for row in rows])
    for name in ("phi", "phi_local"):  # whichever decides, both are told
        result[f"{name}_auroc"] = auroc(np.array([float(row[f"{name}_max"]) for row in rows]), defective)
    return {"set": one.name, "settings": list(one.settings), "judged_by": one.judged_by, **result}


def run_sets(data: Path, out: Path, budget: tuple[str, object], names: tuple[str, ...] = ()) -> list[dict]:
    """Every set that is there (or that is named), in order; results.json grows after each."""
    results = []
    for one in SETS:
        if (names and one.name not in names) or not (data / one.name).is_dir():
            continue
        results.append(run_set(one, data, out, budget))
        write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("GRD_DATA"), help="folder of the sets")
    parser.add_argument("--out", type=Path, default=Path("artifacts/sets"))
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--only", nargs="*", default=(), help="names of sets")
    parser.add_argument(
        "--record", action="store_true", help="write the record `inspection-sets` below bench/results, too"
    )
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        parser.error("give --data or set GRD_DATA to the folder of the sets")
    budget = ("--steps", arguments.steps)
    results = run_sets(Path(arguments.data), arguments.out, budget, tuple(arguments.only))
    for result in results:
        shown = (f"{key} {result[key]:.4f}" for key in PRINTED if result.get(key) is not None)
        print(result["set"], *shown, sep="  ")
    if arguments.record:
        title = "Real inspection images through train, build and eval"
        command = f"GRD_DATA=/path/to/sets python -m grd_edge.bench.inspection_sets --steps {arguments.steps}"
        print(write_record("inspection-sets", title=title, command=command, **table_of_sets(results)))


if __name__ == "__main__":
    main()
