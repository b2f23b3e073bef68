"""From nothing to the first decision, and the memory that inspecting takes: measured in a process of its own.

    python -m grd_edge.cold_start '{"bundle": …, "frame": …, "frames": …, "options": {…}}'

is that process; `cold_start` starts it. Never imports torch. Source: docs/bench.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.errors import EngineError
from grd_edge.machine import system_text

TIMEOUT_S = 600


def cold_start(bundle: Path, frame: np.ndarray, *, frames: int = 20, **options: Any) -> dict[str, float | None]:
    """One start in a fresh process. The files of bundle and libraries are in the page cache from the second on.

    Args:
        frame: that is inspected.
        frames: inspected after the first one, for the memory.
        options: of `Inspector`.

    Returns:
        `open_ms` (of the bundle and its engine), `first_ms` (the first frame), `cold_start_ms` (both), `import_ms` (of
        the runtime), `process_ms` (from the start of the process to the decision), and resident memory in MB, null
        where the system does not tell: `before_mb` (frame in memory, nothing imported but numpy), `opened_mb`,
        `after_mb`, `peak_mb`.

    Raises:
        EngineError: the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "frame.npy"
        np.save(place, frame)
        task = {"bundle": str(bundle), "frame": str(place), "frames": frames, "options": options}
        # One clock for all processes of the machine.
        task["started"] = time.clock_gettime(time.CLOCK_MONOTONIC)
        return answer_of_process("grd_edge.cold_start", task, failed="gave no decision")


def answer_of_process(module: str, task: dict[str, Any], *, failed: str) -> dict[str, Any]:
    """The JSON that a fresh process of a module prints last, given a task as JSON.

    Args:
        failed: what it did where it gives none, for the sentence.

    Raises:
        EngineError: it gives none.
    """
    command = [sys.executable, "-P", "-m", module, json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"a fresh process {failed} within {TIMEOUT_S} s; free the machine") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"a fresh process {failed} ({said}); run: grd-edge doctor")
    return json.loads(done.stdout.splitlines()[-1])


def _resident_mb(what: str = "VmRSS") -> float | None:
    found = re.search(rf"^{what}:\s+(\d+) kB", system_text(Path("/"), "proc/self/status"), re.M)
    return int(found[1]) * 1024 / 1e6 if found else None


def _main(task: dict[str, Any]) -> dict[str, float | None]:
    frame = np.load(task["frame"])
    before_mb, imported = _resident_mb(), time.perf_counter()
    from grd_edge.runtime import Inspector

    start = time.perf_counter()
    with Inspector(task["bundle"], **task["options"]) as inspector:
        opened, opened_mb = time.perf_counter(), _resident_mb()
        inspector.inspect(frame)
        decided, now = time.perf_counter(), time.clock_gettime(time.CLOCK_MONOTONIC)
        for _ in range(task["frames"]):
            inspector.inspect(frame)
        return {
            "import_ms": 1e3 * (start - imported),
            "open_ms": 1e3 * (opened - start),
            "first_ms": 1e3 * (decided - opened),
            "cold_start_ms": 1e3 * (decided - start),
            "process_ms": 1e3 * (now - task["started"]),
            "before_mb": before_mb,
            "opened_mb": opened_mb,
            "after_mb": _resident_mb(),
            "peak_mb": _resident_mb("VmHWM"),
        }


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
