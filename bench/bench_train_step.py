"""One training step on all cores: every term of the loss, generator and discriminator."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from grd_edge.bench.rows import BASELINE, PRODUCT, Contender, Group, Race, Setting, suite
from grd_edge.bench.train_baseline import check_losses, training_steps

from grd_edge.heap import keep_heap

_ROLES = {"native": PRODUCT, "torch-eager": BASELINE}


def prepare(setting: Setting, stack: ExitStack) -> Race:
    own, plain, x = training_steps(base=16, patch_px=128, batch=16)
    stack.enter_context(keep_heap())
    rows: dict[str, Contender | str] = {
        "native": Contender(lambda _: own.advance(x, 0, 1000)),
        "torch-eager": Contender(lambda _: plain.advance(*own.perturbed(x, 0))),
    }

    def check(outputs: dict[str, Any]) -> None:
        check_losses(outputs["torch-eager"], outputs["native"])

    return Race(rows, check)


test_train_step = suite(Group("train step base 16 128px", _ROLES, prepare, rounds=6, warmup=1))
