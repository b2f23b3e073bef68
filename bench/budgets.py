"""Budgets of the benchmarks: `bench/budgets.yaml` read and checked, and what a run's JSON says about each.

A budget that cannot be measured fails. Source: docs/bench.md, "The gate".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from grd_edge.config import Section, checked_section, read_yaml
from grd_edge.errors import ConfigError

BUDGETS = Path(__file__).with_name("budgets.yaml")
FASTER, FASTER_P50 = "faster_than", "faster_than_p50"
TIMES = {"min_ms": 0.0, "p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}  # metric -> quantile
SUB_RACES, SUB_ROUNDS = 5, 4
HOLDS, MISSED, UNMEASURED, ELSEWHERE = "holds", "missed", "not measured", "not this device"


Limit = Annotated[float, Field(gt=0, strict=True)]
Limits = Annotated[dict[str, Limit], Field(default_factory=dict)]
Groups = dict[str, dict[str, Any]]  # group -> row -> keys of RowBudgets


class RowBudgets(Section):
    """What one row is held to. Keys: docs/bench.md, "The gate"."""

    needs: tuple[str, ...] = ()
    rounds: int = Field(20, ge=3)
    short: bool = False
    faster_than: Limits
    faster_than_p50: Limits
    at_most: Limits
    at_least: Limits


class Device(Section):
    """A machine, by what its fingerprint says, and the budgets that hold on it alone."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    budgets: Groups

    def is_here(self, machine: dict[str, Any]) -> bool:
        return (self.cpu, self.cores, set(self.flags)) == (machine["cpu"], machine["cores"], set(machine["flags"]))


class BudgetFile(Section):
    everywhere: Groups = Field(default_factory=dict)
    devices: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """One figure of a row and its limit.

    Attributes:
        metric: `faster_than`, `faster_than_p50`, one of TIMES, or a number of the row's `extra_info`.
        against: the other row of a ratio.
        row_budgets: what it is one of.
        device, device_name: whose budget it is; None: every machine's.
    """

    group: str
    row: str
    metric: str
    against: str | None
    limit: float
    at_least: bool
    row_budgets: RowBudgets
    device: Device | None
    device_name: str | None

    def __str__(self) -> str:
        return f"{self.group} / {self.row}: {self.metric}" + (f" {self.against}" if self.against else "")

    @property
    def limit_text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """How a budget went: HOLDS, MISSED, UNMEASURED or ELSEWHERE, and for which reason where there is no value."""

    budget: Budget
    outcome: str
    value: float | None = None
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome in (MISSED, UNMEASURED)


def budgets_from_file(path: Path = BUDGETS) -> list[Budget]:
    """All budgets of a file.

    Raises:
        ConfigError: unreadable, empty, an unknown key, a limit that is no positive number, an absolute budget of every
            machine.
    """
    try:
        found = checked_section(BudgetFile, read_yaml(path))
        budgets = list(_budgets_of(found.everywhere, None, None))
        for name, keys in found.devices.items():
            try:
                device = checked_section(Device, keys)
            except ConfigError as error:
                raise ConfigError(f"device {name}: {error}") from error
            budgets += _budgets_of(device.budgets, device, name)
        if not budgets:
            raise ConfigError("they hold no row to any limit, so nothing would be gated")
    except ConfigError as error:
        raise ConfigError(f"the budgets {path} cannot be used: {error}") from error
    return budgets


def _budgets_of(groups: Groups, device: Device | None, name: str | None) -> Iterator[Budget]:
    for group, rows in groups.items():
        for row, keys in rows.items():
            try:
                held = checked_section(RowBudgets, keys)
                if device is None and (held.at_most or held.at_least):
                    raise ConfigError(
                        "an absolute budget cannot hold on every machine; move it to one under `devices:`"
                    )
                ratios = [(m, other, x, True) for m in (FASTER, FASTER_P50) for other, x in getattr(held, m).items()]
                bounds = [(m, None, x, False) for m, x in held.at_most.items()]
                bounds += [(m, None, x, True) for m, x in held.at_least.items()]
                if not ratios + bounds:
                    raise ConfigError(f"it is held to nothing; give {FASTER}, {FASTER_P50}, at_most or at_least")
            except ConfigError as error:
                raise ConfigError(f"{group} / {row}: {error}") from error
            for which in ratios + bounds:
                yield Budget(group, row, *which, held, device, name)


def verdicts(budgets: list[Budget], result: dict[str, Any]) -> list[Verdict]:
    """How each budget went.

    Args:
        result: what pytest-benchmark wrote; {}: it wrote nothing.
    """
    machine = result.get("machine_info", {}).get("machine")
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for bench in result.get("benchmarks", ()):
        rows.setdefault((bench["group"], bench["param"]), []).append(bench)
    return [_verdict(budget, machine, rows) for budget in budgets]


def _verdict(budget: Budget, machine: dict[str, Any] | None, rows: dict) -> Verdict:
    if machine is None:
        return Verdict(budget, UNMEASURED, why="no benchmark wrote anything: they were disabled, skipped or not found")
    if budget.device and not budget.device.is_here(machine):
        return Verdict(budget, ELSEWHERE, why=f"it is {budget.device_name}'s")
    missing = [need for need in budget.row_budgets.needs if not {*need.split("|")} & {*machine["flags"]}]
    if missing:
        return Verdict(budget, ELSEWHERE, why=f"the CPU has no {', '.join(missing)}")
    try:
        value = _measured(budget, rows)
    except NotMeasuredError as error:
        return Verdict(budget, UNMEASURED, why=str(error))
    holds = value >= budget.limit if budget.at_least else value <= budget.limit
    return Verdict(budget, HOLDS if holds else MISSED, value)


class NotMeasuredError(Exception):
    """Why a budget's figure is not in a run's JSON."""


def _measured(budget: Budget, rows: dict) -> float:
    times = _times_ms(budget, budget.row, rows)
    if budget.metric in (FASTER, FASTER_P50):
        other = _times_ms(budget, budget.against, rows)
        if len(other) != len(times):
            raise NotMeasuredError(f"{budget.against} has {len(other)} rounds and {budget.row} {len(times)}: no race")
        value = sub_races(times, other) if budget.metric == FASTER else float(np.median(other / times))
    elif budget.metric in TIMES:
        quantile = TIMES[budget.metric]
        if quantile and len(times) * (1 - quantile) < 1 - 1e-9:
            raise NotMeasuredError(
                f"{budget.metric} needs {round(1 / (1 - quantile))} rounds, and there were {len(times)}"
            )
        value = float(np.quantile(times, quantile, method="inverted_cdf"))
    else:
        value = rows[budget.group, budget.row][0]["extra_info"].get(budget.metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotMeasuredError(f"the row tells no number {budget.metric}")
    if not math.isfinite(value):
        raise NotMeasuredError(f"it is {value}")
    return float(value)


def _times_ms(budget: Budget, row: str, rows: dict) -> np.ndarray:
    found = rows.get((budget.group, row), [])
    if not found:
        known = ", ".join(sorted(name for group, name in rows if group == budget.group))
        what = f"the row {row} (but {known})" if known else f"the group {budget.group!r}"
        raise NotMeasuredError(f"no benchmark wrote {what}: it was skipped, left out or renamed")
    if len(found) > 1:
        raise NotMeasuredError(f"{len(found)} benchmarks wrote the row {row}")
    stats = found[0].get("stats")
    if not stats or not stats.get("data"):
        raise NotMeasuredError(f"the row {row} has no times: benchmarks were disabled")
    times = np.array(stats["data"], float) * 1e3
    if len(times) < budget.row_budgets.rounds:
        raise NotMeasuredError(
            f"{row} was timed in {len(times)} rounds, too few to tell; {budget.row_budgets.rounds} are needed"
        )
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise NotMeasuredError(f"a time of {row} is no positive number")
    return times


def sub_races(times: np.ndarray, other: np.ndarray) -> float:
    """How many times as fast as the other: the median, over consecutive parts of the race, of the minima's ratios.

    A disturbance that lasts spoils its part, and a lucky round of one side its part, and neither the median.
    """
    return float(np.median(minima_of_parts(other) / minima_of_parts(times)))


def minima_of_parts(times: np.ndarray) -> np.ndarray:
    """The least time in each of up to SUB_RACES consecutive parts of a race."""
    parts = max(1, min(SUB_RACES, len(times) // SUB_ROUNDS))
    return np.array([part.min() for part in np.array_split(times, parts)])
