"""Frames at the rate of a line: does each decision come within its slot, and by what margin? Never imports torch.

The driver submits a frame at the beginning of each slot, on a schedule that does not wait for results; its deadline is
the slot. What a line sees is the time from submission until the result.

Source: docs/stream.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.errors import InputError
from grd_edge.machine import cpu_name
from grd_edge.runtime import NativeBundle
from grd_edge.shipped import opened_bundle
from grd_edge.stream import Stream
from grd_edge.stream_result import STAGES
from grd_edge.watch import SILENT, Watcher

_FRAMES = 4  # that differ from one another
_WARM_UP = 3  # frames before the first slot


def frame_shape(bundle: Bundle, native: NativeBundle, patches: int) -> tuple[int, ...]:
    """(H, W), or (H, W, 3), of a frame whose grid holds `patches` patches, or the fewest above that.

    A mask of interest or regions fix the size of frames, so it is theirs.
    """
    cut = native.info.cut
    channels = (3,) if cut.channels == 3 else ()
    fixed = _fixed_size(bundle, native)
    if fixed is not None:
        h, w = fixed
    elif cut.scale_px:  # it says how many rows there are
        h = max(cut.scale_px, cut.patch_h)
        rows = _count_along(h, cut.patch_h, cut.stride_y)
        w = max(h, cut.patch_w + (-(-patches // rows) - 1) * cut.stride_x)
    else:
        rows = next(rows for rows in range(int(patches**0.5), 0, -1) if patches % rows == 0)
        h, w = cut.patch_h + (rows - 1) * cut.stride_y, cut.patch_w + (patches // rows - 1) * cut.stride_x
    return (h, w, *channels)


def _fixed_size(bundle: Bundle, native: NativeBundle) -> tuple[int, int] | None:
    if native.info.roi_h:
        return native.info.roi_h, native.info.roi_w
    if bundle.decision and bundle.regions.frame_h is not None:
        return bundle.regions.frame_h, bundle.regions.frame_w
    return None


def _count_along(extent: int, patch: int, stride: int) -> int:
    return 1 + max(0, -(-(extent - patch) // stride))


def simulated_slots(
    path: Path, *, slot_ms: float, patches: int, slots: int = 1000, watcher: Watcher = SILENT, **engine: Any
) -> dict[str, Any]:
    """Runs `slots` slots, and describes them in numbers and names.

    Args:
        path: folder of the bundle.
        engine: arguments of `Stream`; unless it says otherwise the overload policy is `drop-oldest` and one frame may
            wait, so that a slot that takes too long is a miss and not the delay of all that follow.

    Returns:
        `missed` (late, dropped or failed), `margin_ms` and `margin_percent` (slot minus p99), `holds` (nothing missed
        and p99 within the slot), exact percentiles of `total_ms` over all inspected frames and of `start_late_ms` (how
        late the driver itself was), medians of the stages, and what ran where.

    Raises:
        BundleError, EngineError, InputError: as `Stream` and `frame_shape`.
    """
    native, bundle = opened_bundle(path, NativeBundle)
    shape = frame_shape(bundle, native, patches)
    frames = np.random.default_rng(0).integers(0, 256, (_FRAMES, *shape), np.uint8)
    outcomes = dict.fromkeys(("scored", "late", "dropped", "failed"), 0)
    totals, stages, errors = [], {stage: [] for stage in STAGES}, []
    late_starts = np.zeros(slots)
    options = {"queue_depth": 1, "overload": "drop-oldest", "patches": False, **engine}
    options |= {"frame_shape": shape, "deadline_ms": slot_ms}
    with Stream(native, **options) as stream:
        for frame in frames[:_WARM_UP]:
            stream.submit(frame, deadline_ms=-1)
            inspected = stream.wait().patches
        if inspected < patches:
            raise InputError(
                f"{inspected} patches of the {shape[0]}x{shape[1]} px frames that {path} takes are inspected, not "
                f"{patches}; choose fewer with --patches"
            )

        def take(timeout_ms: float) -> None:
            result = stream.wait(timeout_ms)
            if result is None:
                return
            outcomes[result.outcome] += 1
            if result.outcome in ("scored", "late"):
                totals.append(result.times_ms["total"])
                for stage, values in stages.items():
                    values.append(result.times_ms[stage])
            elif result.error and not errors:
                errors.append(result.error)

        began = time.monotonic() + 0.01
        for slot in range(slots):
            due = began + slot * slot_ms / 1000
            while (left := due - time.monotonic()) > 0:
                take(left * 1000)
            late_starts[slot] = (time.monotonic() - due) * 1000
            stream.submit(frames[slot % _FRAMES], id=slot)
            watcher.progress(slot + 1, slots)
        stream.flush()
        while sum(outcomes.values()) < slots - stream.stats().refused:
            take(0.0)
        stats, version = stream.stats(), stream.engine_version
    if not totals:
        raise InputError(f"no frame was inspected within {slots} slots: {errors[0] if errors else 'all were dropped'}")
    missed = slots - outcomes["scored"]
    total = _percentiles(np.array(totals))
    return {
        "slot_ms": slot_ms,
        "slots": slots,
        "frame_px": list(shape),
        "patches": inspected,
        "patches_asked": patches,
        **outcomes,
        "refused": stats.refused,
        "missed": missed,
        "total_ms": total,
        "margin_ms": slot_ms - total["p99"],
        "margin_percent": 100 * (slot_ms - total["p99"]) / slot_ms,
        "holds": missed == 0 and total["p99"] <= slot_ms,
        "stage_p50_ms": {stage: float(np.median(values)) for stage, values in stages.items()},
        "start_late_ms": _percentiles(late_starts),
        "bundle": bundle.manifest["name"],
        "seal": bundle.seal[:12],
        "engine": version,
        "machine": cpu_name(),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    """Exact: the smallest value that so many are not above."""
    rising = np.sort(values)
    shares = {"p50": 500, "p95": 950, "p99": 990, "p99.9": 999, "worst": 1000}
    return {name: float(rising[-(-len(rising) * share // 1000) - 1]) for name, share in shares.items()}
