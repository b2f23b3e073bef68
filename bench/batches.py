"""Training batches made ahead in threads against batches made where they are needed, with a stand-in for the step.

python -c "from grd_edge.bench.batches import race_batches as r; print(r('parts/train/good', step_ms=60))"
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from grd_edge.bench.timer import interleaved, speedup

from grd_edge.config import load_config
from grd_edge.data.dataset import samples_from_folder
from grd_edge.data.frames import BatchLoader, FrameStore, batch_at, grid_from_config
from grd_edge.errors import CheckFailedError

STEPS = 16


def race_batches(
    folder: str, *, settings: Iterable[str] = (), step_ms: float | None = None, rounds: int = 5, batch: int = 8
) -> dict[str, Any]:
    """Images per second of both ways over STEPS steps, start and end of the threads included.

    Args:
        folder: images of one kind.
        settings: of the configuration, such as `data.cache_mb=0`, which decodes every image anew.
        step_ms: the step only waits this long, as for a GPU; None: it convolves on all threads of this machine.

    Raises:
        CheckFailedError: the batches differ.
    """
    config = load_config(overrides=settings)
    store, grid = FrameStore(samples_from_folder(Path(folder)), config), grid_from_config(config)
    net = torch.nn.Sequential(*(torch.nn.Conv2d(c, 16, 3, padding=1) for c in (config.model.channels, 16, 16)))
    drawn = {"seed": 0, "batch": batch}

    @torch.no_grad()
    def step(x: torch.Tensor) -> torch.Tensor:
        if step_ms is None:
            net(x)
        else:
            time.sleep(step_ms / 1e3)
        return x

    def direct(_: object) -> list[torch.Tensor]:
        return [step(batch_at(store, grid, step=index, **drawn)) for index in range(STEPS)]

    def ahead(_: object) -> list[torch.Tensor]:
        with BatchLoader(store, grid, **drawn) as batches:
            return [step(batches.at(index)) for index in range(STEPS)]

    def check(outputs: dict[str, list[torch.Tensor]]) -> None:
        if not all(map(torch.equal, outputs["direct"], outputs["ahead"])):
            raise CheckFailedError("batches made ahead differ from those of batch_at")

    timings = interleaved({"direct": direct, "ahead": ahead}, rounds=rounds, warmup=1, check=check)
    images = 1e3 * STEPS * batch
    return {name: round(images / timing.p50_ms, 1) for name, timing in timings.items()} | {
        "speedup": round(speedup(timings["direct"], timings["ahead"]), 3)
    }
