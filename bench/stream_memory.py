"""Resident memory against the number of frames that went through a stream, in a process of its own.

    python -m grd_edge.bench.stream_memory '{"bundle": …, "frames": …, "readings": …, "threads": …}'

is that process; `stream_memory` starts it. kernels/test/stream_soak.c is the proof in C. Never imports torch.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from grd_edge.bench.exponents import growth

from grd_edge.bundle import read_bundle
from grd_edge.cold_start import answer_of_process
from grd_edge.errors import EngineError
from grd_edge.latency_frames import made_frames
from grd_edge.machine import system_text
from grd_edge.stream import Stream

IN_FLIGHT, WARMUP = 16, 0.2  # share of the frames before the first reading
# glibc's smallest block takes 32 bytes: a leak of one a frame shows as that.
FLAT_BYTES = 16


def stream_memory(bundle: Path, *, frames: int, readings: int = 40, threads: int = 1) -> dict[str, Any]:
    """Frames of one patch, or of as few as the bundle takes, through one stream.

    Args:
        threads: of the engine. One: what its pool of threads holds swings where others take the CPUs.

    Returns:
        `frames` (counts at the readings), `resident_bytes`, `bytes_a_frame`, and its 95 % interval `low`, `high`.

    Raises:
        EngineError: the process fails, or the system does not tell the memory of a process.
    """
    task = {"bundle": str(bundle), "frames": frames, "readings": readings, "threads": threads}
    found = answer_of_process("grd_edge.bench.stream_memory", task, failed="did not stream its frames")
    slope, low, high = growth(found["frames"], found["resident_bytes"])
    return {**found, "bytes_a_frame": slope, "low": low, "high": high}


def _resident_bytes() -> int:
    """Exact, unlike that of /proc/self/status, which lags by some pages a thread."""
    found = re.search(r"^Rss:\s+(\d+) kB", system_text(Path("/"), "proc/self/smaps_rollup"), re.M)
    if not found:
        raise EngineError("this system does not tell the memory of a process (/proc/self/smaps_rollup)")
    return int(found[1]) * 1024


def _main(task: dict[str, Any]) -> dict[str, list[int]]:
    bundle, total = Path(task["bundle"]), task["frames"]
    opened = read_bundle(bundle)
    fixed = opened.roi is not None or opened.regions.frame_h is not None or opened.manifest["geometry"]["scale_px"]
    frames = made_frames(opened, None if fixed else 1)
    read_at = np.linspace(round(WARMUP * total), total, task["readings"]).astype(int).tolist()
    resident, waiting = [], read_at[::-1]
    with Stream(bundle, threads=task["threads"], frame_shape=frames[0].shape) as stream:
        for index in range(total + IN_FLIGHT):
            if index < total:
                stream.submit(frames[index % len(frames)], id=index)
            if index < IN_FLIGHT:
                continue
            result = stream.wait()
            if result.id != index - IN_FLIGHT or result.outcome != "scored":
                raise EngineError(f"frame {index - IN_FLIGHT} came back as {result.id}, {result.outcome}")
            while waiting and waiting[-1] == index - IN_FLIGHT + 1:
                resident.append(_resident_bytes())
                waiting.pop()
    return {"frames": read_at, "resident_bytes": resident}


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
