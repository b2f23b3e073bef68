"""Which precision ships: candidates, what they cost in accuracy, how fast they are on this machine, and the choice.

A lower precision is chosen only when it is measured faster and inside the budget; what lost, and by how much, goes into
the bundle. Source: docs/design/precision.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from grd_edge.bench.timer import interleaved
from grd_edge.config import Config
from grd_edge.engine.native import NativeEngine, PatchScores, engine_entry
from grd_edge.errors import EngineError, InputError
from grd_edge.machine import cpu_name
from grd_edge.metrics import auroc, bootstrap_interval, paired_bootstrap
from grd_edge.selection import Selection
from grd_edge.thresholds import fit_good_only

Request = Literal["auto", "fp32", "bf16", "int8"]
REQUESTS = ("auto", "fp32", "bf16", "int8")
FP32: Request = "fp32"
TARGET = "cpu"
SECONDS = 8.0  # of a race, at most as many rounds as fit
ROUNDS = (8, 40)


@dataclass(frozen=True)
class Budget:
    """What a lower precision may cost, on the patches of the selection.

    Attributes:
        max_auroc_drop: of the deciding score, good patches against synthetic defects.
        max_flips: share of patches that are decided otherwise, each precision at a threshold fitted on its scores.
    """

    max_auroc_drop: float = 0.002
    max_flips: float = 0.005

    def __post_init__(self) -> None:
        for name in ("max_auroc_drop", "max_flips"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value:g}; expected a share from 0 to 1, such as 0.005")


DEFAULT_BUDGET = Budget()


@dataclass(frozen=True)
class Candidate:
    """A model and what the engine is asked for.

    Attributes:
        precision: `fp32`, `bf16`, `int8`, or `int8-bf16`: what is not quantized runs in BF16; or one of TensorRT.
        model: serialized ONNX, or a built engine.
        file: its name in a bundle.
        details: what sets it apart, JSON-ready: layers kept, form of the graph.
    """

    precision: str
    model: bytes
    file: str
    details: dict[str, Any] = field(default_factory=dict)
    target: str = TARGET


@dataclass(frozen=True)
class Accuracy:
    """A candidate against fp32 on the selection; see `Budget`. Intervals are 95 %."""

    patches: int
    auroc: float
    auroc_drop: float
    auroc_drop_ci95: tuple[float, float]
    flips: int
    phi_mean_abs_diff: float
    phi_max_abs_diff: float
    phi_diff_std: float  # what a refitted threshold cannot undo

    def inside(self, budget: Budget) -> bool:
        return self.auroc_drop <= budget.max_auroc_drop and self.flips <= budget.max_flips * self.patches


@dataclass(frozen=True)
class Speed:
    """A candidate against the precision `base` in one race: medians per batch, and how many times as fast it is."""

    batch: int
    p50_ms: float
    p50_ms_base: float
    speedup: float
    speedup_ci95: tuple[float, float]
    base: str = "fp32"

    @property
    def faster(self) -> bool:
        """Beyond what chance explains, and by enough to be worth an exchange of engines."""
        return self.speedup_ci95[0] > 1 and self.speedup >= 1.03


@dataclass(frozen=True)
class Tried:
    """A candidate and what was measured of it; `lost` says why it does not ship, "" where it does."""

    candidate: Candidate
    accuracy: Accuracy | None = None
    speed: Speed | None = None
    lost: str = ""

    def to_json(self) -> dict[str, Any]:
        measured = {name: asdict(value) for name in ("accuracy", "speed") if (value := getattr(self, name)) is not None}
        target, precision = self.candidate.target, self.candidate.precision
        return {"target": target, "precision": precision, **self.candidate.details, **measured, "lost": self.lost}


@dataclass(frozen=True)
class Choice:
    """What goes into a bundle.

    Attributes:
        engines: entries of `engines`; fp32 is always there.
        files: path -> bytes of what they need besides the fp32 model.
        precision: the bundle's `precision`.
    """

    engines: list[dict[str, Any]]
    files: dict[str, bytes]
    precision: dict[str, Any]


def only_fp32(file: str, why: str, tried: Sequence[Tried] = ()) -> Choice:
    """The choice of fp32, with what lost against it."""
    described = {"chosen": {TARGET: "fp32"}, "tried": [each.to_json() for each in tried], "why": why}
    return Choice([engine_entry(TARGET, "fp32", file)], {}, described)


class Contender(Protocol):
    """An open engine as a bench needs it, such as `NativeEngine`. A context manager."""

    version: str

    def __enter__(self) -> Contender: ...
    def __exit__(self, *exc: object) -> None: ...

    def scores(self, patches: np.ndarray) -> PatchScores:
        """Scores of patches (N, patch_h, patch_w, C) uint8."""

    def run_of(self, patches: np.ndarray) -> Callable[[], object]:
        """What is timed: one run on these patches, which are made ready before."""


def native(candidate: Candidate, config: Config) -> Contender:
    """The engine of the `cpu` target."""
    return NativeEngine(candidate.model, candidate.precision, config)


class Bench:
    """Measures candidates against fp32 on one selection; holds the reference's scores.

    Args:
        fp32: the reference.
        config: shape of patches, score, alpha.
        opened: the engine of a candidate.
        batch: patches that are run at a time in a race.
    """

    def __init__(
        self,
        fp32: Candidate,
        selection: Selection,
        config: Config,
        *,
        opened: Callable[[Candidate, Config], Contender] = native,
        batch: int = NativeEngine.BATCH,
    ) -> None:
        self.fp32, self.selection, self.config = fp32, selection, config
        self._opened, self._batch = opened, batch
        self.reference = self._scores(fp32, selection)
        self._parts: dict[int, tuple[Selection, PatchScores]] = {}

    def _scores(self, candidate: Candidate, selection: Selection) -> PatchScores:
        with self._opened(candidate, self.config) as engine:
            self.version = engine.version
            return engine.scores(selection.patches)

    def blind(self) -> str:
        """Why a budget of accuracy says nothing here, in a sentence without its full stop; "" where it does.

        A network that ranks good patches and synthetic defects by chance may lose all of what it knows and still flip
        nothing.
        """
        labels = self.selection.labels
        low, high = bootstrap_interval(auroc, self.reference.deciding, labels, n=500)
        if low > 0.5:
            return ""
        return (
            "fp32 itself does not tell synthetic defects from good patches (AUROC "
            f"{auroc(self.reference.deciding, labels):.2f}, 95 % {low:.2f} to {high:.2f}), so nothing shows what a "
            "lower precision costs; train it longer or otherwise, or ask for a precision by its name"
        )

    def accuracy(self, candidate: Candidate, *, part: int | None = None) -> Accuracy:
        """A candidate's engine on the selection, or on about `part` good and `part` defective patches of it.

        Raises:
            EngineError: this machine cannot run it.
        """
        selection, reference = self.selection, self.reference
        if part is not None:
            if part not in self._parts:
                smaller = selection.part(part)
                self._parts[part] = smaller, self._scores(self.fp32, smaller)
            selection, reference = self._parts[part]
        return self.compared(selection, reference, self._scores(candidate, selection))

    def compared(self, selection: Selection, reference: PatchScores, scores: PatchScores) -> Accuracy:
        labels = selection.labels
        ours, theirs = scores.deciding, reference.deciding
        difference = ours.astype(np.float64) - theirs
        flipped = (ours >= self._threshold(selection, ours)) != (theirs >= self._threshold(selection, theirs))
        low, high = paired_bootstrap(auroc, theirs, ours, labels, n=500)
        return Accuracy(
            patches=len(labels),
            auroc=auroc(ours, labels),
            auroc_drop=auroc(theirs, labels) - auroc(ours, labels),
            auroc_drop_ci95=(low, high),
            flips=int(flipped.sum()),
            phi_mean_abs_diff=float(np.abs(difference).mean()),
            phi_max_abs_diff=float(np.abs(difference).max()),
            phi_diff_std=float(difference.std()),
        )

    def _threshold(self, selection: Selection, scores: np.ndarray) -> float:
        good = scores[: len(selection.good)]
        images = [good[selection.image == index] for index in np.unique(selection.image)]
        return fit_good_only(images, alpha=self.config.decision.alpha).thresholds[0]

    def race(self, candidates: Sequence[Candidate], base: Candidate | None = None) -> list[Speed]:
        """Every candidate in turn with `base`, or else with fp32, on a batch of good patches.

        Raises:
            EngineError: this machine cannot run one of them.
        """
        base = base or self.fp32
        contenders = [base, *candidates]
        names = [str(index) for index in range(len(contenders))]
        good = self.selection.good
        patches = good[np.arange(self._batch) % len(good)]
        with ExitStack() as stack:
            runs = {}
            for name, each in zip(names, contenders, strict=True):
                run = stack.enter_context(self._opened(each, self.config)).run_of(patches)
                run()  # compiles
                runs[name] = lambda _, run=run: run()
            start = time.perf_counter()
            for _ in range(3):
                runs["0"](None)
            once = (time.perf_counter() - start) / 3 * len(runs)
            rounds = int(np.clip(SECONDS / max(once, 1e-6), *ROUNDS))
            timings = interleaved(runs, rounds=rounds, settle_ms=2)
        before = timings["0"].times_ms
        return [_speed(self._batch, base.precision, before, timings[name].times_ms) for name in names[1:]]


def _speed(batch: int, base: str, base_ms: np.ndarray, times_ms: np.ndarray) -> Speed:
    ratios = base_ms / times_ms  # of one round: both saw the same machine
    draws = np.random.default_rng(0).integers(len(ratios), size=(1000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    medians = (float(np.median(values)) for values in (times_ms, base_ms, ratios))
    return Speed(batch, *medians, (float(low), float(high)), base)


def judged(tried: Sequence[Tried], *, budget: Budget, request: Request = "auto") -> tuple[Tried | None, list[Tried]]:
    """The fastest of the candidates that are faster than their base and inside the budget, or None; and all of them,
    with why they lost.

    Args:
        tried: candidates with what was measured of them so far; what lost for other reasons says so.
        request: `int8` or `bf16` takes the fastest of its kind inside the budget, else the most accurate.
    """
    measured = [each for each in tried if not each.lost]
    if request == "auto":
        fit = [each for each in measured if each.speed.faster and each.accuracy.inside(budget)]
    else:
        kind = [each for each in measured if each.candidate.precision.startswith(request)]
        fit = [each for each in kind if each.accuracy.inside(budget)]
        fit = fit or sorted(kind, key=lambda each: each.accuracy.phi_diff_std)[:1]
    best = max(fit, key=lambda each: each.speed.speedup, default=None)
    return best, [Tried(each.candidate, each.accuracy, each.speed, _lost(each, best, budget)) for each in tried]


def chosen(bench: Bench, tried: Sequence[Tried], *, budget: Budget, request: Request = "auto") -> Choice:
    """What ships on the `cpu` target: the best of `judged`, else fp32."""
    best, told = judged(tried, budget=budget, request=request)
    if best is None:
        why = "; ".join(f"{each.candidate.precision}: {each.lost}" for each in told) or "nothing else was tried"
        return only_fp32(bench.fp32.file, f"no lower precision is faster and inside the budget ({why})", told)
    candidate = best.candidate
    fingerprint = {"engine": bench.version, "cpu": cpu_name()}
    engines = [
        engine_entry(TARGET, "fp32", bench.fp32.file),
        engine_entry(TARGET, candidate.precision, candidate.file, fingerprint),
    ]
    described = {
        "chosen": {TARGET: candidate.precision},
        "tried": [each.to_json() for each in told],
        "why": _why(best, budget, request),
    }
    files = {} if candidate.file == bench.fp32.file else {candidate.file: candidate.model}
    return Choice(engines, files, described)


def _lost(tried: Tried, best: Tried | None, budget: Budget) -> str:
    if tried.lost or tried is best:
        return tried.lost
    speed = tried.speed
    if beyond := outside(tried.accuracy, budget):
        return f"outside the budget: {beyond}"
    if not speed.faster:
        return f"not faster: {speed.speedup:.2f} times {speed.base}'s speed"
    fastest = f"{best.speed.speedup:.2f} times {speed.base}"
    return f"slower than {best.candidate.precision}: {speed.speedup:.2f} against {fastest}"


def outside(accuracy: Accuracy, budget: Budget) -> str:
    """What of it is beyond the budget, for the middle of a sentence; "" where nothing is."""
    beyond = []
    if accuracy.auroc_drop > budget.max_auroc_drop:
        beyond.append(f"AUROC drops by {accuracy.auroc_drop:.4f} (at most {budget.max_auroc_drop:g})")
    if accuracy.flips > budget.max_flips * accuracy.patches:
        beyond.append(f"{accuracy.flips} of {accuracy.patches} patches flip (at most {budget.max_flips:.2%})")
    return ", ".join(beyond)


def speedup_of(described: Mapping[str, Any]) -> float:
    """How many times as fast as FP32 the engine is that ships for the CPU, of a bundle's `precision`; 1: it is FP32."""
    chosen = described["chosen"][TARGET]
    for each in described["tried"]:
        if (each["target"], each["precision"], each["lost"]) == (TARGET, chosen, "") and "speed" in each:
            return each["speed"]["speedup"]
    return 1.0


def in_words(best: Tried) -> str:
    """A candidate that was raced, in a sentence."""
    accuracy, speed = best.accuracy, best.speed
    return (
        f"{best.candidate.precision} is {speed.speedup:.2f} times as fast as {speed.base} (batch {speed.batch}, "
        f"{speed.p50_ms:.1f} against {speed.p50_ms_base:.1f} ms); AUROC on synthetic defects changes by "
        f"{-accuracy.auroc_drop:+.4f}, {accuracy.flips} of {accuracy.patches} patches flip"
    )


def _why(best: Tried, budget: Budget, request: Request) -> str:
    said = in_words(best)
    if request == "auto":
        return said
    inside = "inside" if best.accuracy.inside(budget) else "OUTSIDE"
    return f"{request} was asked for; {said}; that is {inside} the budget"


def unable(candidate: Candidate, error: EngineError) -> Tried:
    """A candidate that this machine cannot run."""
    return Tried(candidate, lost=f"this machine cannot run it: {error}")
