"""Where the time of a whole frame goes with an INT8 engine: cut, infer, score, decide.

Random weights: speed does not depend on them. It says what share of a frame the kernels take, nothing of accuracy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from grd_edge.bench.precisions import random_network

from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import MODEL
from grd_edge.engine.native import engine_entry
from grd_edge.precision import Choice
from grd_edge.runtime import Inspector
from grd_edge.search import MODEL as INT8_MODEL

SIDE_PATCHES = 4


def frame_stages(*, base: int = 16, patch_px: int = 128, rounds: int = 40):
    """Median ms of each stage over frames of 16 patches, and the share of cutting and scoring together.

    Returns:
        dict with `patches`, `cut_ms`, `infer_ms`, `score_ms`, `total_ms` and `kernels_share`.
    """
    network = random_network(base=base, patch_px=patch_px)
    side = patch_px + (SIDE_PATCHES - 1) * (patch_px - 20)
    engines = [engine_entry("cpu", "fp32", MODEL), engine_entry("cpu", "int8", INT8_MODEL)]
    described = {"chosen": {"cpu": "int8"}, "tried": [], "why": "a bench"}
    choice = Choice(engines, {INT8_MODEL: network.int8}, described)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.grdb"
        bundle_from_checkpoint(network.checkpoint, path, choose=lambda model: choice)
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
