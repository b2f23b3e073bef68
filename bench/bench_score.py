"""Scoring: phi, phi_local and the heatmap of patches, FP32, one thread."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from grd_edge.bench.baselines import (
    compiled,
    library_threads,
    score_check,
    score_forms,
    score_pair,
    torch_separable,
)
from grd_edge.bench.gpu import FMAS_PER_POSITION
from grd_edge.bench.limits import copy_limit, fma_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, Setting, suite, variant_rows

from grd_edge.kernels import Scorer

_BASELINES = {"torch_separable": "torch-eager", "torch_reference": "torch-reference", "opencv": "opencv"}
_ROLES = {
    **dict.fromkeys(variant_rows(), PRODUCT),
    **dict.fromkeys((*_BASELINES.values(), "torch-compile"), BASELINE),
    **dict.fromkeys(("memcpy", "fma"), LIMIT),
}


def prepare(setting: Setting, stack: ExitStack, *, side_px: int, n: int) -> Race:
    stack.enter_context(library_threads(1))
    stack.enter_context(torch.inference_mode())
    x, x_hat = score_pair(side_px, side_px, n)
    work = {"bytes": 3 * x.nbytes, "gflop": 2e-9 * FMAS_PER_POSITION * n * (side_px - 10) ** 2}

    def native(scorer: Scorer):
        return lambda _: (lambda s: (s.phi, s.phi_local, s.heatmap))(scorer(x, x_hat))

    tx, ty = torch.from_numpy(x), torch.from_numpy(x_hat)
    fast = setting.without_compiler or compiled(torch_separable, tx, ty)
    rows: dict[str, Contender | str] = {
        row: Contender(native(Scorer(x.shape, variant=variant)), **work) for row, variant in variant_rows().items()
    }
    rows |= {_BASELINES[name]: Contender(run, **work) for name, run in score_forms(x, x_hat).items()}
    rows["torch-compile"] = fast if isinstance(fast, str) else Contender(lambda _: fast(tx, ty), **work)
    rows |= {"memcpy": copy_limit(work["bytes"]), "fma": fma_limit(stack)}
    return Race(rows, score_check(x, x_hat))


test_score_256_float32 = suite(
    Group("score 256x256 float32", _ROLES, partial(prepare, side_px=256, n=1), rounds=100, short_rounds=40)
)
test_score_16x128_float32 = suite(
    Group("score 16 of 128x128 float32", _ROLES, partial(prepare, side_px=128, n=16), rounds=25)
)
