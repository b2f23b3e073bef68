"""What a stream says of its frames, and of itself. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from grd_edge.runtime import DECISIONS, Inspection

STREAM_DECISIONS = (*DECISIONS, "inconsistent", "error")
OUTCOMES = {1: "scored", 2: "late", 3: "dropped", 4: "failed"}
STAGES = ("queue", "cut", "infer", "score", "total")


@dataclass(frozen=True)
class StreamResult:
    """What became of one frame.

    Attributes:
        id, product, run: as submitted.
        outcome: `scored`, `late` (decided after its deadline), `dropped` (overload) or `failed` (`error` says why).
        decision: of the frame: `good`, `defective`, `undecided`, or `error` when it was not inspected.
        score, threshold: float32, as in `Inspection`; NaN when not inspected.
        patches, defective_patches: inspected, and of these defective.
        generation: of the bundle that inspected it: 0, and 1 more after each swap.
        product_complete: it was the last frame of its product to come back.
        product_decision: of a complete product; `error`: frames are missing that could tell. Else None.
        product_frames, product_missing, product_defective_patches: of the product so far.
        run_complete, run_decision, run_products, run_defective: the same of its run; `inconsistent` is a decision, too.
        times_ms: `queue` (until work on it began), `cut`, `infer`, `score` of its batch, `total`.
        batch_frames: frames that shared its engine calls.
        error: one sentence about a failed frame, else empty.
        inspection: patch by patch; None when not inspected, or opened with patches=False.
        frame, context: as submitted.
    """

    id: int
    product: int
    run: int
    outcome: str
    decision: str
    score: float
    threshold: float
    patches: int
    defective_patches: int
    generation: int
    product_complete: bool
    product_decision: str | None
    product_frames: int
    product_missing: int
    product_defective_patches: int
    run_complete: bool
    run_decision: str | None
    run_products: int
    run_defective: int
    times_ms: dict[str, float]
    batch_frames: int
    error: str
    inspection: Inspection | None
    frame: np.ndarray | None
    context: Any


@dataclass(frozen=True)
class Latency:
    """Times of one stage over the life of a stream; percentiles are at most 3.2 % above the exact ones."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    worst_ms: float


@dataclass(frozen=True)
class StreamStats:
    """Counts of a stream at one moment: submitted = scored + late + dropped + failed + in_flight, always.

    Attributes:
        waiting: frames in flight that wait for the engine.
        ready: results not yet taken.
        refused: frames that were not submitted as there was no room: results were not taken.
        good, defective, undecided: decisions of scored and late frames.
        products_closed: incomplete products, and runs, that had to make room.
        batches, patches: engine calls, and patches inspected by them.
        oldest_ms: age of the oldest frame in flight.
        queue, cut, infer, score, total: latencies.
    """

    generation: int
    submitted: int
    scored: int
    late: int
    dropped: int
    failed: int
    in_flight: int
    waiting: int
    ready: int
    refused: int
    good: int
    defective: int
    undecided: int
    products_closed: int
    batches: int
    patches: int
    oldest_ms: float
    uptime_s: float
    queue: Latency
    cut: Latency
    infer: Latency
    score: Latency
    total: Latency
