"""Which TensorRT engine ships where its device is here: FP16 and lower precisions, raced on it and held against FP32.

Imports torch, as the patches that precisions are judged by are made with it. Source: docs/design/tensorrt-choice.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grd_edge.bundle import MODEL
from grd_edge.config import Config
from grd_edge.data.dataset import Sample
from grd_edge.engine.builder import BuiltEngine
from grd_edge.engine.native import PatchScores
from grd_edge.engine.tensorrt import TensorRtEngine
from grd_edge.engine.verdict import BASE, Verdict, engine_file, unmeasured
from grd_edge.errors import EngineError, MissingExtraError
from grd_edge.heads import SCORE_MAP, head_of_shapes, scores_from_maps
from grd_edge.kernels import score_patches
from grd_edge.precision import (
    DEFAULT_BUDGET,
    Bench,
    Budget,
    Candidate,
    Contender,
    Tried,
    in_words,
    judged,
    native,
    outside,
    unable,
)
from grd_edge.selection import selection_from_samples, unit_patches
from grd_edge.targets import CPU, Target
from grd_edge.watch import SILENT, Watcher


class TensorRtContender:
    """A built engine as a bench measures it: the network from host to host; what it reconstructs is scored by
    the kernels of the CPU.

    Raises:
        MissingExtraError, EngineError: see `TensorRtEngine`.
    """

    def __init__(self, built: BuiltEngine, target: Target, config: Config) -> None:
        self._batch, self._score = built.fingerprint.batches[1], config.score
        self._engine = TensorRtEngine(built.data, built.fingerprint, target.name, batch_limit=self._batch)
        self.version = self._engine.version

    def __enter__(self) -> TensorRtContender:
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine.close()

    def scores(self, patches: np.ndarray) -> PatchScores:
        """Scores of patches (N, patch_h, patch_w, C) uint8.

        Raises:
            EngineError: values that are not finite.
        """
        head = head_of_shapes(self._engine.patch_shape, self._engine.output_shape)
        options = {"window": self._score.window, "local_window_px": self._score.local_window_px, "heatmap": False}
        found = []
        for start in range(0, len(patches), self._batch):
            x = unit_patches(patches[start : start + self._batch])
            x_hat = self._engine.reconstruct(x)
            if not np.isfinite(x_hat).all():
                raise EngineError("it gives values that are not finite")
            found.append(scores_from_maps(x_hat) if head == SCORE_MAP else score_patches(x, x_hat, **options))
        phi, phi_local = (np.concatenate([getattr(each, name) for each in found]) for name in ("phi", "phi_local"))
        return PatchScores(phi, phi_local, phi if self._score.decides == "phi" else phi_local)

    def run_of(self, patches: np.ndarray) -> Callable[[], object]:
        """The network on patches, copies to the device and back included."""
        x = unit_patches(patches)
        return lambda: self._engine.reconstruct(x)


@dataclass(frozen=True)
class Trial:
    """What `auto` measures with: good images of the training, as for the CPU's precision, and what may be lost."""

    samples: Sequence[Sample]
    config: Config
    budget: Budget = DEFAULT_BUDGET

    def verdicts(
        self,
        fp32: bytes,
        built: Mapping[Target, Mapping[str, BuiltEngine]],
        details: Mapping[str, dict],
        *,
        watch: Watcher = SILENT,
    ) -> dict[str, Verdict]:
        """See `EngineTrial`."""
        engines = {
            engine_file(target, precision): (engine, target)
            for target, by_precision in built.items()
            for precision, engine in by_precision.items()
        }

        def opened(candidate: Candidate, config: Config) -> Contender:
            if candidate.target == CPU:
                return native(candidate, config)
            return TensorRtContender(*engines[candidate.file], config)

        def candidate(target: Target, precision: str) -> Candidate:
            file = engine_file(target, precision)
            return Candidate(precision, engines[file][0].data, file, details[precision], target.name)

        watch.stage("choosing patches to judge precisions by")
        selection = selection_from_samples(self.samples, self.config)
        batch = next(iter(engines.values()))[0].fingerprint.batches[1]
        watch.stage("scoring fp32 on the CPU")
        try:
            bench = Bench(Candidate("fp32", fp32, MODEL), selection, self.config, opened=opened, batch=batch)
        except EngineError as error:
            return {target.name: unmeasured(str(error)) for target in built}
        if why := bench.blind():
            return {target.name: unmeasured(why) for target in built}
        found = {}
        for target, by_precision in built.items():
            candidates = [candidate(target, precision) for precision in by_precision]
            try:
                found[target.name] = self._verdict(bench, candidates, watch)
            except (EngineError, MissingExtraError) as error:
                found[target.name] = unmeasured(str(error))
        return found

    def _verdict(self, bench: Bench, candidates: Sequence[Candidate], watch: Watcher) -> Verdict:
        """Of the engines of a target.

        Raises:
            MissingExtraError, EngineError: this machine cannot run FP16.
        """
        base = next(each for each in candidates if each.precision == BASE)
        tried = []
        for each in sorted(candidates, key=lambda each: each is not base):
            watch.stage(f"scoring {each.target} {each.precision}")
            try:
                tried.append(Tried(each, bench.accuracy(each)))
            except EngineError as error:
                if each is base:
                    raise
                tried.append(unable(each, error))
        held, *lower = tried
        watch.stage(f"timing {base.target} in turn")
        ready = [each for each in lower if not each.lost]
        speeds = iter(bench.race([each.candidate for each in ready], base) if ready else ())
        best, told = judged(
            [each if each.lost else replace(each, speed=next(speeds)) for each in lower], budget=self.budget
        )
        if best:
            why, lost = in_words(best), f"{best.candidate.precision} is {best.speed.speedup:.2f} times as fast"
        else:
            why, lost = _why_base(held, told, self.budget), ""
        records = {each.candidate.precision: each.to_json() for each in (replace(held, lost=lost), *told)}
        return Verdict(best.candidate.precision if best else BASE, why, records)


def _why_base(base: Tried, lower: Sequence[Tried], budget: Budget) -> str:
    lost = "; ".join(f"{each.candidate.precision}: {each.lost}" for each in lower)
    said = f"no lower precision is faster than {BASE} and inside the budget ({lost})"
    beyond = outside(base.accuracy, budget)
    return f"{said}; {BASE} itself is OUTSIDE the budget: {beyond}" if beyond else said
