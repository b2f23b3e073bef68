"""Which of several methods to take: accuracy against latency, and what the intervals of both images and choice allow.

- *Front*: a method is on it unless another one is at least as accurate and at least as fast, and better in one of both.
- *Best*: the most accurate one inside the budget; of equals the faster.
- *Open*: the 95 % interval of a method's accuracy less that of the best, on the same resampled images, holds 0: these
  images do not tell the two apart. One that is faster, too, is an alternative for who needs the time.
- *Tied*: open, and less accurate by at most `TIE`. Where images are few, much is open that is not alike.
- *Chosen*: the fastest of the best and what ties with it, inside the budget.

Source: docs/compare.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from grd_edge.metrics import interval_of

# What methods can be chosen by.
NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "balanced_accuracy": "balanced accuracy",
}

TIE = 0.005  # what one swapped pair is worth on small sets; docs/method.md, section 8


@dataclass(frozen=True)
class Candidate:
    """A method as it was measured.

    Attributes:
        accuracy: larger is better; NaN: it could not be measured.
        latency_ms: by which methods are compared, p50; NaN: as before.
        budgeted_ms: what the budget is held against.
        drawn: (n,) the accuracy on resampled images, the same for all candidates.
    """

    name: str
    accuracy: float
    latency_ms: float
    budgeted_ms: float
    drawn: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def measured(self) -> bool:
        return not (math.isnan(self.accuracy) or math.isnan(self.latency_ms) or math.isnan(self.budgeted_ms))


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands; see the module's definitions.

    Attributes:
        inside: whether it is inside the budget.
        difference, difference_ci95: its accuracy less that of the best; None where one of them was not measured.
    """

    front: bool
    inside: bool
    difference: float | None = None
    difference_ci95: tuple[float, float] | None = None
    open: bool = False
    tied: bool = False
    alternative: bool = False


@dataclass(frozen=True)
class Selected:
    """Names of the best and the chosen candidate, None where none is inside the budget; how all stand.

    Attributes:
        optimism: by how much the accuracy of the best of several is too high because the same images chose it.
    """

    best: str | None
    chosen: str | None
    standings: dict[str, Standing]
    optimism: float = 0.0


def pareto_front(accuracy: Sequence[float], latency_ms: Sequence[float]) -> np.ndarray:
    """(n,) bool, whether each is on the front. Equal ones are on it together; one with a NaN never is."""
    a, t = np.asarray(accuracy, np.float64), np.asarray(latency_ms, np.float64)
    measured = ~(np.isnan(a) | np.isnan(t))
    # A comparison with NaN is False, so what was not measured beats nothing.
    no_worse = (a[:, None] >= a) & (t[:, None] <= t)
    better = (a[:, None] > a) | (t[:, None] < t)
    return measured & ~(no_worse & better).any(axis=0)


def selected(candidates: Sequence[Candidate], budget_ms: float | None = None) -> Selected:
    """The choice among candidates of different names.

    Args:
        budget_ms: what `budgeted_ms` may be; None: everything is inside.
    """
    front = pareto_front([each.accuracy for each in candidates], [each.latency_ms for each in candidates])
    limit = math.inf if budget_ms is None else budget_ms
    inside = [each for each in candidates if each.measured and each.budgeted_ms <= limit]
    measured = [each for each in candidates if each.measured]
    best = min(inside or measured, key=lambda each: (-each.accuracy, each.latency_ms), default=None)
    standings = {
        each.name: _standing(each, best, front=bool(on_front), inside=each in inside)
        for each, on_front in zip(candidates, front, strict=True)
    }
    if not inside:
        return Selected(None, None, standings)
    alike = [each for each in inside if each is best or standings[each.name].tied]
    chosen = min(alike, key=lambda each: (each.latency_ms, -each.accuracy))
    return Selected(best.name, chosen.name, standings, optimism_of(inside))


def _standing(each: Candidate, best: Candidate | None, *, front: bool, inside: bool) -> Standing:
    if best is None or not each.measured:
        return Standing(front, inside)
    if each is best:
        return Standing(front, inside, 0.0, (0.0, 0.0))
    difference = each.accuracy - best.accuracy
    n = min(len(each.drawn), len(best.drawn))
    if not n:
        return Standing(front, inside, difference)
    low, high = interval_of(each.drawn[:n] - best.drawn[:n])
    unclear = low <= 0 <= high
    # The tolerance takes rounding of the difference, not a larger one.
    tied = unclear and difference >= -TIE * (1 + 1e-9)
    faster = each.latency_ms < best.latency_ms
    return Standing(front, inside, difference, (low, high), unclear, tied, unclear and faster)


def optimism_of(candidates: Sequence[Candidate]) -> float:
    """How much higher the accuracy of the most accurate candidate is, on the images that chose it, than on others of
    their kind: on each resample the best one there is taken, and its accuracy on all images subtracted; mean, >= 0.

    Source: Efron, Journal of the American Statistical Association 78 (1983), 316-331, applied to the choice alone.
    """
    drawn = [each for each in sorted(candidates, key=lambda each: each.latency_ms) if len(each.drawn)]
    if len(drawn) < 2:
        return 0.0
    n = min(len(each.drawn) for each in drawn)
    values = np.stack([each.drawn[:n] for each in drawn])
    taken = values.argmax(axis=0)
    own = np.array([each.accuracy for each in drawn])
    return max(0.0, float((values[taken, np.arange(n)] - own[taken]).mean()))
