"""Where the time of a whole frame goes with an INT8 engine: cut, infer, score, decide.

Random weights: speed does not depend on them. It says what share of a frame the kernels take, nothing of accuracy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from grd_edge.bench.precisions import int8_everywhere
from grd_edge.bench.upsampling import random_checkpoint, sizes

from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import MODEL
from grd_edge.config import load_config
from grd_edge.engine.native import engine_entry
from grd_edge.precision import Choice
from grd_edge.runtime import Inspector
from grd_edge.search import MODEL as INT8_MODEL

SIDE_PATCHES = 4


def write_int8_bundle(path: Path, *, base: int = 16, patch_px: int = 128) -> Path:
    """A random network whose engine on `cpu` is INT8; the path."""
    engines = [engine_entry("cpu", "fp32", MODEL), engine_entry("cpu", "int8", INT8_MODEL)]
    described = {"chosen": {"cpu": "int8"}, "tried": [], "why": "a bench"}
    checkpoint = random_checkpoint(load_config(overrides=sizes(base, patch_px)))
    bundle_from_checkpoint(
        checkpoint, path, choose=lambda model: Choice(engines, {INT8_MODEL: int8_everywhere(model)}, described)
    )
    return path


def frame_stages(*, base: int = 16, patch_px: int = 128, rounds: int = 40):
    """Median ms of each stage over frames of 16 patches, and the share of cutting and scoring together.

    Returns:
        dict with `patches`, `cut_ms`, `infer_ms`, `score_ms`, `total_ms` and `kernels_share`.
    """
    side = patch_px + (SIDE_PATCHES - 1) * (patch_px - 20)
    with tempfile.TemporaryDirectory() as folder:
        path = write_int8_bundle(Path(folder) / "int8.grdb", base=base, patch_px=patch_px)
        frames = [np.random.default_rng(i).integers(0, 256, (side, side), np.uint8) for i in range(4)]
        with Inspector(path) as inspector:
            for frame in frames:
                inspector.inspect(frame)
            found = [inspector.inspect(frames[i % len(frames)]) for i in range(rounds)]
    stages = {
        f"{stage}_ms": float(np.median([result.times_ms[stage] for result in found]))
        for stage in ("cut", "infer", "score", "total")
    }
    share = np.median([(r.times_ms["cut"] + r.times_ms["score"]) / r.times_ms["total"] for r in found])
    return {"patches": len(found[0].positions), **stages, "kernels_share": float(share)}
