"""Every method on real sets through the whole road: trained, exported, quantized, built for the CPU and for RTX,
streamed from C, and compared with PyTorch.

    python -m grd_edge.bench.methods --data SETS [--sets alien,paper/NAME] [--methods patchcore] [--train-seconds 120]

SETS is a folder of sets in the MVTec layout. What was trained and built stays in --work and is not made again. With
--comparisons the checkpoints are those of `grd-edge compare --data SETS/paper/NAME -o FOLDER/paper-NAME.grdb`.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
from grd_edge.bench.inspection_sets import grd_edge
from grd_edge.bench.records import write_record

from grd_edge._native import library_dir, vendor_dir
from grd_edge.bundle import read_bundle
from grd_edge.compare_measures import engine_bytes
from grd_edge.config import profile_names
from grd_edge.data.images import read_image
from grd_edge.errors import CheckFailedError
from grd_edge.targets import CPU

SOURCES = Path(__file__).resolve().parent.parent / "kernels"
SETS = ("alien", "ballscrew")
LEFT_OUT = ("deepindustrial_sn", "grdnet_2023")  # too large to train on a CPU: their small profiles stand for them
RTX = "rtx-ada"
COLUMNS = [
    {"key": "set", "name": "set"},
    {"key": "method", "name": "profile"},
    {"key": "auroc", "name": "image AUROC, 95 %", "format": "{image_auroc:.3f} [{low:.3f}, {high:.3f}]"},
    {"key": "pixel_auroc", "name": "pixel AUROC", "digits": 3},
    {"key": "escapes", "name": "escapes / false rejects", "format": "{escape_rate:.0%} / {false_reject_rate:.0%}"},
    {"key": "int8", "name": "all of it in INT8: AUROC drop, speed"},
    {"key": "precision", "name": "ships"},
    {"key": "p50_ms", "name": "frame, p50", "unit": "ms", "digits": 1},
    {"key": "mib", "name": "engine", "unit": "MiB", "digits": 1},
    {"key": "rtx_mib", "name": "RTX FP16", "unit": "MiB", "digits": 1},
    {"key": "flips", "name": "flips, fp32 / shipped", "format": "{flips_fp32} / {flips_shipped}"},
    {"key": "stream", "name": "C stream"},
]


def line_loop(folder: Path) -> Path:
    """The example program, compiled against the installed library."""
    program = folder / "line_loop"
    source, include, library = SOURCES / "examples" / "line_loop.c", SOURCES / "include", library_dir()
    flags = ["-std=c99", f"-I{include}", f"-L{library}", f"-Wl,-rpath,{library}"]
    subprocess.run(["cc", *flags, str(source), "-lgrd_edge", "-o", str(program)], check=True)
    return program


def streamed(program: Path, bundle: Path, rows: Sequence[dict[str, str]]) -> int:
    """Images of a set through the C program; how many it decides as the rows of `eval` do.

    Raises:
        CheckFailedError: it decides one otherwise, or loses one.
    """
    sizes: dict[tuple[int, ...], list[dict[str, str]]] = {}
    for row in rows:
        sizes.setdefault(read_image(Path(row["image"])).shape, []).append(row)
    same = 0
    for alike in sizes.values():  # a stream of a camera has frames of one size
        with tempfile.TemporaryDirectory() as folder:
            for index, row in enumerate(alike):
                image = cv2.imread(row["image"], cv2.IMREAD_UNCHANGED)
                cv2.imwrite(f"{folder}/{index:04}.{'ppm' if image.ndim == 3 else 'pgm'}", image)
            environment = {**os.environ, "GRD_VENDOR_DIR": str(vendor_dir("cpu"))}
            command = [str(program), str(bundle), folder]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        lines = re.findall(r"/(\d+)\.p[gp]m: (\w+), score", done.stdout)
        found = {int(index): decision for index, decision in lines}
        wrong = [row["image"] for index, row in enumerate(alike) if found.get(index) != row["decision"]]
        if wrong:
            raise CheckFailedError(
                f"the C stream decides {len(wrong)} images otherwise, such as {wrong[0]}{done.stderr}"
            )
        same += len(alike)
    return same


def in_int8(described: dict) -> str:
    """What INT8 of every layer costs on synthetic defects, and gains, as the search for a bundle's precision found."""
    whole = [each for each in described["tried"] if each["precision"] == "int8" and not each.get("keep")]
    told = next((each for each in whole if "accuracy" in each and "speed" in each), None)
    if told is None:
        return next((each["lost"] for each in whole), "not tried")
    return f"{told['accuracy']['auroc_drop']:+.4f}, {told['speed']['speedup']:.2f}x"


def ships(described: dict) -> str:
    """The precision of the CPU's engine, and how many layers it keeps in a higher one."""
    chosen = described["chosen"][CPU]
    kept = next((len(each.get("keep", ())) for each in described["tried"] if not each["lost"]), 0)
    return f"{chosen}, {kept} layers kept" if kept else chosen


def measured(profile: str, name: str, arguments: argparse.Namespace, program: Path) -> dict:
    """One row: a method on a set."""
    work, source, slug = arguments.work, arguments.data / name, f"{name.replace('/', '-')}-{profile}"
    checkpoint, bundle = work / f"{slug}.safetensors", work / f"{slug}.grdb"
    if arguments.comparisons:
        checkpoint = arguments.comparisons / f"{name.replace('/', '-')}.compare" / profile / "checkpoint.safetensors"
    elif not checkpoint.exists():
        budget = ("--train-seconds", arguments.train_seconds)
        grd_edge("train", "--data", source, "-o", checkpoint, "--profile", profile, "--overwrite", *budget)
    if not bundle.exists():
        grd_edge("build", "bundle", checkpoint, "-o", bundle, "--data", source)
        grd_edge("build", "engine", bundle, "--target", RTX, "--precision", "fp16")
    exact = grd_edge("eval", bundle, "--data", source, "--against", checkpoint, "--precision", "fp32", "--no-untrained")
    folder = work / f"{slug}-eval"
    shipped = grd_edge("eval", bundle, "--data", source, "--against", checkpoint, "-o", folder, "--no-untrained")
    with open(folder / "images.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    frames = [rows[index]["image"] for index in range(0, len(rows), -(-len(rows) // 8))]
    words = [word for frame in frames for word in ("--images", frame)]
    timed = grd_edge("bench", bundle, *words, "--against", "none", "--rounds", 100, "--cold-starts", 0)
    opened = read_bundle(bundle)
    engine = next(each for each in opened.manifest["engines"] if each["target"] == RTX)
    low, high = shipped["image_auroc_ci95"]
    return {
        **{key: shipped[key] for key in ("image_auroc", "pixel_auroc", "escape_rate", "false_reject_rate")},
        "set": name,
        "method": profile,
        "low": low,
        "high": high,
        "int8": in_int8(opened.manifest["precision"]),
        "precision": ships(opened.manifest["precision"]),
        "p50_ms": timed["figures"]["p50_ms"],
        "mib": engine_bytes(opened) / 2**20,
        "rtx_mib": opened.manifest["files"][engine["file"]]["bytes"] / 2**20,
        "flips_fp32": exact["decision_flips"],
        "flips_shipped": shipped["decision_flips"],
        "stream": f"{streamed(program, bundle, rows)} of {len(rows)} alike",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", help="profiles, separated by commas; default: all that a CPU trains")
    parser.add_argument("--train-seconds", type=float, default=120)
    parser.add_argument("--comparisons", type=Path, help="folder of comparisons, in place of trainings")
    parser.add_argument("--work", type=Path, default=Path("artifacts/methods"))
    parser.add_argument("--record", action="store_true", help="write the record `methods` below bench/results, too")
    arguments = parser.parse_args()
    names = arguments.methods.split(",") if arguments.methods else [n for n in profile_names() if n not in LEFT_OUT]
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = line_loop(Path(folder))
        for name in arguments.sets.split(","):
            for profile in names:
                try:
                    rows.append(measured(profile, name, arguments, program))
                except (CheckFailedError, SystemExit) as error:  # the other rows are worth having
                    rows.append({"set": name, "method": profile, "auroc": f"failed: {error}"})
                print(rows[-1], flush=True)
    if arguments.record:
        trained = f"--train-seconds {arguments.train_seconds:g}"
        if arguments.comparisons:
            trained = "--comparisons COMPARISONS"
        command = f"python -m grd_edge.bench.methods --data SETS --sets {arguments.sets} {trained}"
        title = "Every method, the whole road"
        print(write_record("methods", title=title, command=command, columns=COLUMNS, rows=rows))


if __name__ == "__main__":
    main()
