"""Scoring beside multiply-adds alone, in short rounds of nothing else: what a few percent of a kernel are seen in.

Beside the baselines of bench_score.py a kernel runs once in tens of ms, on caches and predictors that they left; its
minimum then varies by 10 % from run to run on a shared machine, and here by 1 % (docs/bench.md, "The gate").
"""

from __future__ import annotations

from contextlib import ExitStack

from grd_edge.bench.baselines import score_check, score_pair
from grd_edge.bench.gpu import FMAS_PER_POSITION
from grd_edge.bench.limits import fma_limit
from grd_edge.bench.rows import LIMIT, PRODUCT, Contender, Group, Race, Setting, suite, variant_rows

from grd_edge.kernels import Scorer

SIDE_PX = 256
_ROLES = {**dict.fromkeys(variant_rows(), PRODUCT), "fma": LIMIT}


def prepare(setting: Setting, stack: ExitStack) -> Race:
    x, x_hat = score_pair(SIDE_PX, SIDE_PX, 1)
    work = {"bytes": 3 * x.nbytes, "gflop": 2e-9 * FMAS_PER_POSITION * (SIDE_PX - 10) ** 2}

    def native(scorer: Scorer):
        return lambda _: (lambda s: (s.phi, s.phi_local, s.heatmap))(scorer(x, x_hat))

    rows: dict[str, Contender | str] = {
        row: Contender(native(Scorer(x.shape, variant=variant)), **work) for row, variant in variant_rows().items()
    }
    check = score_check(x, x_hat)
    return Race(
        {**rows, "fma": fma_limit(stack)},
        lambda found: check({row: each for row, each in found.items() if _ROLES[row] != LIMIT}),
    )


test_score_limit = suite(Group("score 256x256 float32 limit", _ROLES, prepare, rounds=4000, short_rounds=1500))
