"""Energy counters of this machine: RAPL of x86 processors, NVML of NVIDIA GPUs, the rails of a Jetson.

All count what the whole part draws, other work included. Source: docs/bench.md, section "Energy".
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge.machine import system_text

NOT_TOLD = "not told by this machine"
NVML = "libnvidia-ml.so.1"
_POWERCAP = "sys/class/powercap"
_INA3221 = "sys/bus/i2c/drivers/ina3221"  # what Jetsons measure their rails with
_SAMPLE_S = 0.01


@dataclass(frozen=True)
class Counter:
    """Something that draws energy.

    Attributes:
        name: for people.
        joules: what was counted since some time in the past; grows. None: power is sampled in place of it.
        watts: the power at this moment.
        wrap: joules after which the counter begins again at 0.
    """

    name: str
    joules: Callable[[], float] | None = None
    watts: Callable[[], float] | None = None
    wrap: float = 0


def counters(
    root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL, *, gpu: bool = True
) -> tuple[list[Counter], str]:
    """What counts energy here, and why nothing does ("" where something does).

    Args:
        root: of the file system.
        load: opens a shared library by its name.
        gpu: whether one works; else it counts for nothing.
    """
    found = [*_rapl(root), *(_nvml(load) if gpu else ()), *_rails(root)]
    if found:
        return found, ""
    if any((root / _POWERCAP).glob("*rapl*:*/energy_uj")):
        return [], f"{NOT_TOLD} to this user: /{_POWERCAP} is readable by root only"
    return [], NOT_TOLD


def spent(counted: Sequence[Counter], work: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """Joules that each counter told while `work` ran, by its name, and the seconds that it took."""
    totals = {each.name: each for each in counted if each.joules}
    sampled: dict[str, list[float]] = {each.name: [] for each in counted if each.watts}
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            for each in counted:
                if each.watts:
                    sampled[each.name].append(each.watts())
            done.wait(_SAMPLE_S)

    thread = threading.Thread(target=sample, daemon=True)
    before = {name: each.joules() for name, each in totals.items()}
    start = time.perf_counter()
    if sampled:
        thread.start()
    try:
        work()
    finally:
        done.set()
        if sampled:
            thread.join()
    seconds = time.perf_counter() - start
    used = {name: each.joules() - before[name] for name, each in totals.items()}
    used = {name: joules + totals[name].wrap if joules < 0 else joules for name, joules in used.items()}
    return used | {name: sum(watts) / len(watts) * seconds for name, watts in sampled.items()}, seconds


def _rapl(root: Path) -> list[Counter]:
    """One counter per processor package; those of parts of a package lie inside it."""
    found = []
    for folder in sorted((root / _POWERCAP).glob("*rapl:*")):
        name, place = system_text(folder, "name"), folder / "energy_uj"
        if name.startswith("package") and system_text(folder, "energy_uj").isdigit():
            top = system_text(folder, "max_energy_range_uj")
            found.append(
                Counter(f"RAPL {name}", _file_reader(place, 1e-6), wrap=int(top) * 1e-6 if top.isdigit() else 0)
            )
    return found


def _rails(root: Path) -> list[Counter]:
    """The rail that feeds a Jetson's module, else all of its rails."""
    rails = {}
    for place in sorted((root / _INA3221).glob("*/hwmon/hwmon*/in*_label")):
        number, label = re.sub(r"\D", "", place.name), system_text(place.parent, place.name)
        volts, amperes = place.with_name(f"in{number}_input"), place.with_name(f"curr{number}_input")
        if label and label != "NC" and volts.exists() and amperes.exists():
            read = _file_reader(volts, 1e-3), _file_reader(amperes, 1e-3)
            rails[label] = Counter(f"rail {label}", watts=lambda read=read: read[0]() * read[1]())
    return [rails["VDD_IN"]] if "VDD_IN" in rails else list(rails.values())


def _nvml(load: Callable[[str], Any]) -> list[Counter]:
    """The first GPU, where it counts its energy (Volta and later)."""
    try:
        nvml = load(NVML)
        handle = ctypes.c_void_p()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
            return []
    except (OSError, AttributeError):
        return []
    millijoules = ctypes.c_ulonglong()

    def joules() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) or millijoules.value * 1e-3

    return (
        [] if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) else [Counter("NVML", joules)]
    )


def _file_reader(path: Path, unit: float) -> Callable[[], float]:
    return lambda: int(path.read_text(encoding="ascii")) * unit
