"""How a cost grows with a size: exponents fitted to times of interleaved rounds, and the bar they are held to.

Two forms: `c n^p`, a straight line in the logarithms, and `t0 + c n^p` with t0 >= 0, for costs of which a part is the
same at every size. Intervals are percentile bootstraps over rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from grd_edge.errors import CheckFailedError

Statistic = Literal["min", "p50"]
STATISTICS = {"min": np.min, "p50": np.median}
MIN_SIZES, MIN_ROUNDS = 3, 3
BAR_SIZES = 4  # t0 + c n^p has three parameters: three sizes always fit
BOOTSTRAPS = 500
_TRIED = np.arange(0.3, 3.0001, 0.002)


@dataclass(frozen=True)
class Fit:
    """An exponent with its 95 % interval.

    Attributes:
        fixed: t0, in the unit of the times; None: the form has none.
    """

    exponent: float
    low: float
    high: float
    fixed: float | None

    def __str__(self) -> str:
        return f"{self.exponent:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Verdict:
    """A bar on a value with an interval: `passed` only where the whole interval lies within it; `why` where not."""

    bar: str
    low: float
    high: float
    value: float | None
    passed: bool
    why: str = ""

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.bar}: {found}, bar {self.low:g} to {self.high:g}, {'held' if self.passed else self.why}"


def power_fit(sizes: Any, times: np.ndarray, statistic: Statistic = "min") -> Fit:
    """Fits `c n^p`.

    Args:
        sizes: (S,) > 0.
        times: (R, S) > 0, a row per round.
        statistic: of the rounds, that is fitted.

    Raises:
        CheckFailedError: fewer than 3 sizes or 3 rounds: they tell no exponent.
    """
    x, points = _points(sizes, times, statistic)
    x = np.log(x) - np.log(x).mean()
    slopes = np.log(points) @ x / (x @ x)
    return _fit(slopes, None)


def affine_power_fit(sizes: Any, times: np.ndarray, statistic: Statistic = "min") -> Fit:
    """Fits `t0 + c n^p`, t0 >= 0, with least squares of the relative errors; arguments as `power_fit`.

    Raises:
        CheckFailedError: fewer than 4 sizes, which always fit, or 3 rounds; or no exponent from 0.3 to 3 fits.
    """
    x, points = _points(sizes, times, statistic, least=BAR_SIZES)
    powers = x[:, None] ** _TRIED  # (S, P)
    u = 1 / points  # (B, S): each time's share of itself is to become 1
    uu, uv = (u * u).sum(1)[:, None], (u * u) @ powers
    vv, u1, v1 = (u * u) @ powers**2, u.sum(1)[:, None], u @ powers
    determinant = uu * vv - uv * uv
    fixed = np.maximum((u1 * vv - v1 * uv) / determinant, 0)
    factor = (v1 - fixed * uv) / vv
    errors = len(x) - 2 * (fixed * u1 + factor * v1) + fixed**2 * uu + 2 * fixed * factor * uv + factor**2 * vv
    best = errors.argmin(1)
    if best[0] in (0, len(_TRIED) - 1):
        raise CheckFailedError(f"no cost of t0 + c n^p with p from {_TRIED[0]:g} to {_TRIED[-1]:g} fits the times")
    return _fit(_TRIED[best], float(fixed[0, best[0]]))


def linear_verdict(fit: Fit | None, *, low: float, high: float, bar: str, why: str = "") -> Verdict:
    """Whether an exponent keeps its bar; one that cannot be told does not.

    Args:
        fit: None: nothing was fitted, for the reason `why`.
    """
    if fit is None:
        return Verdict(bar, low, high, None, False, f"cannot measure: {why}")
    return interval_verdict(bar, fit.exponent, (fit.low, fit.high), low=low, high=high)


def interval_verdict(
    bar: str, value: float, interval: tuple[float, float], *, low: float = -np.inf, high: float = np.inf
) -> Verdict:
    """Held where all of the interval lies in the bar, missed where none does, else it cannot be told."""
    if low <= interval[0] and interval[1] <= high:
        return Verdict(bar, low, high, value, True)
    if interval[1] < low or high < interval[0]:
        return Verdict(bar, low, high, value, False, "missed")
    reason = f"cannot tell: {interval[0]:.4g} to {interval[1]:.4g} is not all within; measure more on an idle machine"
    return Verdict(bar, low, high, value, False, reason)


def growth(counts: Any, bytes_: Any) -> tuple[float, float, float]:
    """Bytes a frame by which memory grows, and the 95 % interval, from readings after so many frames.

    The steps between readings are resampled: a leak is in all of them, one larger block in one.

    Raises:
        CheckFailedError: fewer than 8 readings.
    """
    counts, bytes_ = np.asarray(counts, np.float64), np.asarray(bytes_, np.float64)
    if len(counts) < 8:
        raise CheckFailedError(f"{len(counts)} readings tell no growth; take at least 8")
    steps = np.diff(bytes_) / np.diff(counts)
    rng = np.random.default_rng(0)
    means = steps[rng.integers(0, len(steps), (10 * BOOTSTRAPS, len(steps)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float((bytes_[-1] - bytes_[0]) / (counts[-1] - counts[0])), float(low), float(high)


def _points(
    sizes: Any, times: np.ndarray, statistic: Statistic, *, least: int = MIN_SIZES
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, and the statistic of all rounds, then of resampled ones: (1 + BOOTSTRAPS, S)."""
    x, times = np.asarray(sizes, np.float64), np.asarray(times, np.float64)
    if len(set(x)) < least or len(times) < MIN_ROUNDS:
        raise CheckFailedError(
            f"{len(set(x))} sizes in {len(times)} rounds tell no exponent; measure at least {least} sizes in "
            f"{MIN_ROUNDS} rounds"
        )
    rounds = np.random.default_rng(0).integers(0, len(times), (BOOTSTRAPS, len(times)))
    of = STATISTICS[statistic]
    return x, np.concatenate([of(times, axis=0)[None], of(times[rounds], axis=1)])


def _fit(exponents: np.ndarray, fixed: float | None) -> Fit:
    low, high = np.quantile(exponents[1:], (0.025, 0.975))
    return Fit(float(exponents[0]), float(low), float(high), fixed)
