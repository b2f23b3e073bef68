"""What machine this is, for results that depend on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from grd_edge.errors import EngineError, InputError

PACKAGES = (
    "grd-edge",
    "numpy",
    "openvino",
    "onnxruntime",
    "torch",
    "opencv-python-headless",
    "tensorrt-rtx",
    "tensorrt",
)
# instructions that decide how fast networks and kernels run, as /proc/cpuinfo names them
FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
BUILT_FROM = "commit.txt"  # in the package: the commit that a wheel was built from; setup.py writes it
_UNLIMITED = 1 << 60  # cgroup v1 writes no limit as a number near 2^63


def cpu_name() -> str:
    """Model name and usable cores of this machine's processor."""
    return f"{cpu_model()}, {usable_cores()} cores"


def cpu_model(root: Path = Path("/")) -> str:
    """Model name of this machine's processor."""
    found = re.search(r"^model name\s*:\s*(.+)$", system_text(root, "proc/cpuinfo"), re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def version_of(package: str) -> str | None:
    """Version of an installed package; None: it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fingerprint(root: Path = Path("/")) -> dict[str, Any]:
    """All that a time on this machine depends on and that it tells; null where it does not.

    Args:
        root: of the file system.

    Returns:
        JSON-ready: `cpu`, `architecture`, `cores` (usable), `cores_online`, `flags`, `memory_bytes`, `kernel`,
        `governor`, `board` (of a device tree), `gpu`, `limits` (of the container: `cpus`, `memory_bytes`), `versions`,
        `commit` (of grd-edge's source tree, or that it was built from).
    """
    told = set(
        re.findall(
            r"\w+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", system_text(root, "proc/cpuinfo"), re.M))
        )
    )
    memory = re.search(r"^MemTotal:\s+(\d+) kB", system_text(root, "proc/meminfo"), re.M)
    return {
        "cpu": cpu_model(root),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "cores_online": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in told],
        "memory_bytes": int(memory[1]) << 10 if memory else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "governor": system_text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "board": system_text(root, "proc/device-tree/model") or None,
        "gpu": _gpu(),
        "limits": _limits(root),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """Commit of the source tree that this runs from, else of the one it was built from, with `+changes` where files
    differ; None: neither was told."""
    package = Path(__file__).resolve().parent
    if (package.parent / ".git").exists():
        return commit_of(package.parent)
    return system_text(package, BUILT_FROM) or None


def commit_of(tree: Path) -> str | None:
    """Commit of a git work tree, with `+changes` where tracked files differ; None: git does not tell."""
    # git sets these for its hooks, and they name the repository whatever -C says
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    told = {"capture_output": True, "text": True, "timeout": 20, "check": True, "env": environment}
    try:
        commit, changes = (
            subprocess.run(["git", "-C", tree, *words], **told).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+changes" if changes.strip() else "")


def _gpu() -> str | None:
    from grd_edge.engine.device import device_here

    try:
        device = device_here()
    except EngineError:
        return None
    return f"{device.name}, compute capability {device.compute_capability}, driver {device.driver or 'unknown'}"


def _limits(root: Path) -> dict[str, float | int | None]:
    """What the container, as seen from inside, may use: cgroup v2, else v1."""
    quota, _, period = system_text(root, "sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota, period = (system_text(root, f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    memory = system_text(root, "sys/fs/cgroup/memory.max") or system_text(
        root, "sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    limited = quota.isdigit() and period.isdigit() and int(period) > 0
    return {
        "cpus": int(quota) / int(period) if limited else None,
        "memory_bytes": int(memory) if memory.isdigit() and int(memory) < _UNLIMITED else None,
    }


def system_text(root: Path, path: str) -> str:
    """Content of a file of the system; "" where there is none. Device trees end theirs, and part them, with NUL."""
    try:
        return (root / path).read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return ""


def cpus_of(text: str) -> tuple[int, ...]:
    """CPU numbers from a list such as `0-3,5`, rising; none from an empty one.

    Raises:
        InputError: no such list, or CPUs that this process may not use.
    """
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise InputError(f"--cpus {text!r} is no list of CPUs; write it as 0-3,5")
        cpus |= set(range(first, last + 1))
    usable = os.sched_getaffinity(0)
    if cpus - usable:
        raise InputError(
            f"--cpus {text!r} names CPU {min(cpus - usable)}, which this process may not use; choose among "
            f"{', '.join(map(str, sorted(usable)))}"
        )
    return tuple(sorted(cpus))
