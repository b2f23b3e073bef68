"""Rows of pytest-benchmark out of interleaved races.

pytest-benchmark times one function after the other, and on a machine whose clock drifts that compares nothing. Here a
group is raced once by `grd_edge.bench.timer.interleaved`, outputs checked first, and each contender's times are then
replayed as the rounds of a row of its own, exactly: a clock that shows what was recorded is the row's timer. So
statistics, JSON and comparisons of pytest-benchmark hold the interleaved times.

A row is `benchmarks[i]` of `--benchmark-json`: `group`, `param` (the row's name within it), `stats` (seconds) and
`extra_info` with exactly these keys:

    role         "product", "baseline" or "limit"
    ratios       of products: {baseline row: its minimum / the product's}; else {}
    ratios_p50   of products: {baseline row: median over the rounds of its time / the product's}; else {}
    bytes        least that one round reads and writes, both counted; null: not counted
    gflop        10^9 multiplications and additions of one round; null: not counted
    limit        the limit row whose time for as many bytes or operations is longest; null: none was measured
    limit_share  that time / the row's own minimum; above 1 where the limit's runs were disturbed, or data stayed in
                 caches; null: none

`machine_info["machine"]` is `grd_edge.machine.fingerprint()`. A row that cannot be measured is a skipped test that says
why, and is not in the JSON: whoever gates on it has to miss it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from grd_edge.bench.timer import Timing, interleaved, speedup

from grd_edge.kernels import variants

if TYPE_CHECKING:
    from grd_edge.bench.subject import Subject

PRODUCT, BASELINE, LIMIT = "product", "baseline", "limit"
PRECISION = "int8"  # of the bundle with random weights
WARMUP = 3


class ReplayClock:
    """A timer for pytest-benchmark that shows recorded times. It begins anew at 0 each round, so nothing is rounded."""

    def __init__(self) -> None:
        self._now, self._times = 0.0, iter(())

    def __call__(self) -> float:
        now, self._now = self._now, 0.0
        return now

    def load(self, times_s: Iterator[float]) -> None:
        self._now, self._times = 0.0, times_s

    def next(self) -> None:
        """One round passes."""
        self._now = next(self._times)


CLOCK = ReplayClock()


@dataclass(frozen=True)
class Contender:
    """One side of a race.

    Attributes:
        run: function of one input; what it returns is checked.
        bytes, gflop: as in `extra_info`.
        own_ms: reads from what `run` returned the ms that count; None: all of the run counts.
    """

    run: Callable[[Any], Any]
    bytes: int | None = None
    gflop: float | None = None
    own_ms: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Race:
    """What a group's contenders are.

    Attributes:
        contenders: row -> contender, or one sentence on why it cannot be measured here.
        check: receives the outputs for the first input by row, those of limits left out; raises when one is wrong.
        inputs, settle_ms: of `interleaved`.
    """

    contenders: dict[str, Contender | str]
    check: Callable[[dict[str, Any]], None]
    inputs: Sequence[Any] = (None,)
    settle_ms: float = 0


@dataclass(frozen=True)
class Group:
    """A group of rows.

    Attributes:
        name: of the group; `{precision}` stands for that of the bundle.
        roles: row -> role, in the order of the race.
        prepare: makes the race; what must be closed after it goes onto the stack.
        rounds: of the full run.
        short_rounds: of the short run; None: it leaves the group out.
        warmup: untimed rounds before; 1 in the short run.
    """

    name: str
    roles: dict[str, str]
    prepare: Callable[[Setting, ExitStack], Race]
    rounds: int
    short_rounds: int | None = None
    warmup: int = WARMUP


@dataclass(frozen=True)
class Row:
    """One contender, raced: its times, and its `extra_info`."""

    times_ms: np.ndarray
    extra_info: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One session of pytest.

    Attributes:
        short: the short run.
        given: bundle to measure; None: one with random weights.
        folder: for what is made.
        subject: the bundle that is measured.
    """

    short: bool
    given: Path | None
    folder: Path

    @property
    def without_compiler(self) -> str:
        """Why this run leaves `torch.compile` out; empty: it does not."""
        return "the short run has no time for torch.compile, which takes most of a minute" if self.short else ""

    @cached_property
    def subject(self) -> Subject:
        from grd_edge.bench.frame_stages import write_int8_bundle
        from grd_edge.bench.subject import Subject

        return Subject(self.given or write_int8_bundle(self.folder / "int8.grdb"))

    @cached_property
    def _raced(self) -> dict[str, dict[str, Row | str] | Exception]:
        return {}

    def raced(self, group: Group) -> dict[str, Row | str]:
        """The rows of a group, or why they were not measured; raced at the first call.

        Raises:
            Exception: what preparing or checking raised, at every call.
        """
        if group.name not in self._raced:
            try:
                self._raced[group.name] = _race(self, group)
            except Exception as error:
                self._raced[group.name] = error
                raise
        found = self._raced[group.name]
        if isinstance(found, Exception):
            raise found.with_traceback(None)  # it grows each time
        return found


def variant_rows() -> dict[str, str]:
    """Rows of the kernel variants that this CPU runs, and the variants: all but the scalar one, the definition."""
    supported = [name for name, runs in variants().items() if runs]
    return {f"native-{name}": name for name in supported if name != "scalar" or len(supported) == 1}


def suite(group: Group) -> Callable[..., None]:
    """A test whose cases are the group's rows."""

    @pytest.mark.benchmark(group=group.name.format(precision=PRECISION), timer=CLOCK)
    @pytest.mark.parametrize("row", group.roles)
    def rows(benchmark, setting: Setting, row: str) -> None:
        if not benchmark.enabled:
            pytest.fail("benchmarks are disabled, so nothing is measured; leave --benchmark-disable and xdist out")
        found = setting.raced(group)[row]
        if isinstance(found, str):
            pytest.skip(found)
        times_s = (found.times_ms / 1e3).tolist()
        CLOCK.load(iter(times_s))
        if setting.given:
            benchmark.group = group.name.format(precision=setting.subject.precision)
        benchmark.extra_info |= found.extra_info
        benchmark.pedantic(CLOCK.next, rounds=len(times_s), iterations=1, warmup_rounds=0)

    return pytest.mark.full(rows) if group.short_rounds is None else rows


def _race(setting: Setting, group: Group) -> dict[str, Row | str]:
    rounds = (setting.short and group.short_rounds) or group.rounds
    with ExitStack() as stack:
        race = group.prepare(setting, stack)
        if race.contenders.keys() != group.roles.keys():
            raise KeyError(f"{group.name} names the rows {sorted(group.roles)} and races {sorted(race.contenders)}")
        measured = {row: each for row, each in race.contenders.items() if isinstance(each, Contender)}
        spent: dict[str, list[float]] = {row: [] for row, each in measured.items() if each.own_ms}
        runs = {row: _kept(each, spent[row]) if each.own_ms else each.run for row, each in measured.items()}

        def check(outputs: dict[str, Any]) -> None:
            race.check({row: output for row, output in outputs.items() if group.roles[row] != LIMIT})

        timings = interleaved(
            runs,
            rounds=rounds,
            inputs=race.inputs,
            warmup=1 if setting.short else group.warmup,
            settle_ms=race.settle_ms,
            check=check,
        )
    timings |= {row: Timing(row, np.array(times[-rounds:])) for row, times in spent.items()}
    limits = {row: (measured[row], timings[row]) for row in timings if group.roles[row] == LIMIT}
    found: dict[str, Row | str] = {row: each for row, each in race.contenders.items() if isinstance(each, str)}
    for row, timing in timings.items():
        role, each = group.roles[row], measured[row]
        beside = [timings[name] for name in timings if role == PRODUCT and group.roles[name] == BASELINE]
        limit, share = _share(each, timing, limits) if role != LIMIT else (None, None)
        found[row] = Row(
            timing.times_ms,
            {
                "role": role,
                "ratios": {other.name: speedup(other, timing, "min_ms") for other in beside},
                "ratios_p50": {other.name: float(np.median(other.times_ms / timing.times_ms)) for other in beside},
                "bytes": each.bytes,
                "gflop": each.gflop,
                "limit": limit,
                "limit_share": share,
            },
        )
    return found


def _kept(contender: Contender, spent: list[float]) -> Callable[[Any], Any]:
    def run(item: Any) -> Any:
        output = contender.run(item)
        spent.append(contender.own_ms(output))
        return output

    return run


def _share(
    each: Contender, timing: Timing, limits: dict[str, tuple[Contender, Timing]]
) -> tuple[str | None, float | None]:
    """The limit that takes longest for the same work, and its time as a share of the contender's."""
    times = {}
    for row, (limit, its) in limits.items():
        if limit.gflop and each.gflop:
            times[row] = each.gflop / limit.gflop * its.min_ms
        elif limit.bytes and each.bytes:
            times[row] = each.bytes / limit.bytes * its.min_ms
    if not times:
        return None, None
    slowest = max(times, key=times.__getitem__)
    return slowest, times[slowest] / timing.min_ms
