"""TensorRT engines of a whole profile, built ahead of time: seconds, sizes, and the memory that it takes.

    python -m grd_edge.bench.engines --profile deepindustrial_sn

Weights are random and ranges come from noise: neither changes what the builder has to do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from grd_edge.bench.records import slug, write_record
from grd_edge.bench.upsampling import random_checkpoint

from grd_edge.build import bundle_from_checkpoint
from grd_edge.build_engine import engines_into_bundle, plan_of_engines
from grd_edge.bundle import MODEL, RANGES
from grd_edge.calibrate import MIN_PATCHES, ranges_from_images
from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.precision import Choice, only_fp32
from grd_edge.recipes import Minmax
from grd_edge.targets import target_named

_FIGURES = {"mib": "engine_mib", "builder_s": "builder_seconds", "s": "seconds", "peak_gib": "peak_gib"}
TARGETS = ("rtx-ampere", "rtx-ada", "rtx-blackwell")


def ranged_bundle(checkpoint: Checkpoint, path: Path) -> None:
    """An fp32 bundle, with the ranges of its activations on noise."""
    shape = checkpoint.config.model

    def choose(model: bytes) -> Choice:
        x = np.random.default_rng(0).random((MIN_PATCHES, shape.channels, shape.patch_h, shape.patch_w), np.float32)
        table = ranges_from_images(model, [x], recipe=Minmax(algorithm="minmax"), images_sha256="")
        choice = only_fp32(MODEL, "it was not measured")
        choice.files[RANGES] = table.to_bytes()
        return choice

    bundle_from_checkpoint(checkpoint, path, choose=choose)


def _build(path: Path, target: str, precision: str, queue) -> None:
    start = time.monotonic()
    _, ((_, engine),) = engines_into_bundle(plan_of_engines(path, [target_named(target)], [precision]))
    queue.put(
        {
            "target": target,
            "precision": precision,
            "seconds": round(time.monotonic() - start, 1),
            "builder_seconds": round(engine.seconds, 1),
            "engine_mib": round(len(engine.data) / 2**20, 1),
            "peak_gib": round(_peak_bytes() / 2**30, 2),
        }
    )


def _peak_bytes() -> int:
    """Most memory that this process has held; unlike that of getrusage it is not that of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measured_builds(path: Path, precisions: tuple[str, ...] = ("fp16", "int8")) -> list[dict]:
    """Each engine of a bundle, built in a process of its own, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    found = []
    for target in TARGETS:
        for precision in precisions:
            queue = context.Queue()
            process = context.Process(target=_build, args=(path, target, precision, queue))
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError(f"building {precision} for {target} ended with exit code {process.exitcode}")
            found.append(queue.get())
            print(json.dumps(found[-1]), flush=True)
    return found


def columns_of(*, peak: bool) -> list[dict]:
    """Columns of a record: engine and seconds of the builder per precision; with the peak of the memory."""
    form = "{NAME_mib:.2s} MiB, {NAME_builder_s:.1f} s" + ", {NAME_peak_gib:.1f} GiB" * peak
    names = ("fp16", "int8", "fp8")
    named = ({"key": name, "name": name.upper(), "format": form.replace("NAME", name)} for name in names)
    return [{"key": "network", "name": "network"}, {"key": "target", "name": "target"}, *named]


def rows_of(network: str, builds: list[dict]) -> list[dict]:
    """A row per target, the network's name in the first."""
    rows: dict[str, dict] = {}
    for build in builds:
        row = rows.setdefault(build["target"], {"network": "" if rows else network, "target": build["target"]})
        row |= {f"{build['precision']}_{new}": build[old] for new, old in _FIGURES.items()}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="deepindustrial_sn")
    parser.add_argument("--bundle", type=Path, help="build from this bundle instead; it is changed")
    parser.add_argument("--record", action="store_true", help="write the record `trt-NAME` below bench/results, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.bundle
        if path is None:
            path = Path(folder) / "random.grdb"
            ranged_bundle(random_checkpoint(load_config(profile=arguments.profile)), path)
        builds = measured_builds(path)
    if arguments.record:
        name = arguments.bundle.stem if arguments.bundle else arguments.profile
        command = f"python -m grd_edge.bench.engines {'--bundle BUNDLE' if arguments.bundle else f'--profile {name}'}"
        title, rows = f"TensorRT engines of {name}", rows_of(f"`{name}`", builds)
        print(write_record(f"trt-{slug(name)}", title=title, command=command, columns=columns_of(peak=True), rows=rows))


if __name__ == "__main__":
    main()
