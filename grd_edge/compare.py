"""Methods on the same images: each trained, built and measured, one chosen. Resumable; files: docs/compare.md.

A method goes through three stages, and each is kept with what it was made from: `train.json`, `build.json` and
`measure.json` beside its checkpoint, bundle and pictures. All are built in FP32 first; the search for a lower
precision, which takes longer, is for those that it could make the choice. Times are taken at the end, of all in turn.
"""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.build import bundle_from_dataset
from grd_edge.bundle import copied_bundle
from grd_edge.checkpoint import read_checkpoint
from grd_edge.compare_kept import BUILD, BUNDLE, CHECKPOINT, DRAWN, MEASURE, PLAN, TRAIN, Kept, Made, Stages
from grd_edge.compare_measures import Halves, halves_of_test, measured_bundle, raced
from grd_edge.compare_result import Options, document_of, next_to_lower, substitutes_of
from grd_edge.contenders import Contender, TimePlan, expected_build_s, fitted, headers_of
from grd_edge.data.dataset import Dataset, images_sha256
from grd_edge.data.images import file_sha256
from grd_edge.errors import GrdError, InputError, StoppedError, failure_of, one_line
from grd_edge.files import check_parent, locked_file, write_atomically
from grd_edge.interrupts import noticing_ctrl_c
from grd_edge.latency import MIN_ROUNDS
from grd_edge.machine import cpu_name
from grd_edge.precision import FP32, Request, speedup_of
from grd_edge.results import json_document, path_text, plain
from grd_edge.run_folder import run_folder_of
from grd_edge.train import Progress, train_run
from grd_edge.train import Watcher as TrainWatcher
from grd_edge.watch import Watcher as StageWatcher

RESULT = "compare.json"
RACE = "latency"
HEAT = "heat"
LOWER_S = 200.0  # of the search for a lower precision of one method, and of the heat before it
RACE_S = 60.0  # of the times, at the end and in the heat
SLACK = 0.05  # of all: stages are not cut off where they take longer than was expected


@dataclass(frozen=True)
class Watcher:
    """What a front end is told: the method that begins (its name, which, of how many), its stage, how far that is,
    training progress, and remarks in a sentence."""

    method: Callable[[str, int, int], None] = lambda name, index, count: None
    stage: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None
    training: Callable[[Progress], None] = lambda progress: None
    note: Callable[[str], None] = lambda text: None


DEFAULTS, SILENT = Options(), Watcher()


def work_folder_of(output: Path) -> Path:
    """`best.compare` beside `best.grdb`."""
    return Path(output).with_suffix(".compare")


def compared_methods(
    dataset: Dataset,
    contenders: Sequence[Contender],
    output: Path,
    options: Options = DEFAULTS,
    *,
    work: Path | None = None,
    overwrite: bool = False,
    watch: Watcher = SILENT,
) -> dict[str, Any]:
    """Compares methods and writes the bundle of the chosen one.

    A method that fails is a row with its sentence. What is complete in `work` from an earlier call is not made again.

    Args:
        contenders: of `contenders_from_text`; their seed is that of the dataset's split.
        output: bundle to write, name.grdb; as it was where no method is inside the budget.
        work: folder of checkpoints, bundles and results; None: `work_folder_of`.
        overwrite: make all of them anew.

    Returns:
        The content of `compare.json` in `work`; `chosen` is null where no method is inside the budget, as `why` says.

    Raises:
        InputError: images that tell nothing about methods, too little time, or no method that could be measured.
        StoppedError: Ctrl-C; what is done stays.
    """
    output = Path(output)
    if output.suffix != ".grdb":
        raise InputError(f"a bundle's name ends in .grdb, found {output.name!r}; call it {output.name}.grdb")
    check_parent(output)
    work = work_folder_of(output) if work is None else Path(work)
    check_parent(work)
    halves = halves_of_test(dataset, by=options.by, holdout=options.holdout, seed=contenders[0].config.train.seed)
    busy = f"another comparison is writing {work}; wait until it ends, or choose another --work"
    with locked_file(work / "lock", busy), noticing_ctrl_c() as stopped:
        comparison = _Comparison(dataset, contenders, halves, work, options, watch, stopped)
        try:
            document = comparison.run(overwrite=overwrite)
        except (KeyboardInterrupt, StoppedError) as error:
            raise StoppedError(
                f"stopped while {comparison.doing}; {work} keeps {len(comparison.made)} of {len(contenders)} methods, "
                "and the same command goes on"
            ) from error
        if document["chosen"]:
            copied_bundle(work / document["chosen"] / BUNDLE, output)
            document["bundle"] = path_text(output)
        write_atomically(work / RESULT, json_document(document))
    return plain(document)


class _Comparison:
    """One call.

    Attributes:
        made: name -> what is complete. `failed`: name -> why.
        unlowered: name -> 1, of those whose search for a lower precision failed in this call.
        doing: what is under way, as the middle of a sentence.
    """

    def __init__(
        self,
        dataset: Dataset,
        contenders: Sequence[Contender],
        halves: Halves,
        work: Path,
        options: Options,
        watch: Watcher,
        stopped: Callable[[], bool],
    ) -> None:
        self.dataset, self.halves, self.work, self.options, self.watch = dataset, halves, work, options, watch
        self.stopped = stopped
        self.made: dict[str, Made] = {}
        self.failed: dict[str, GrdError] = {}
        self.unlowered: dict[str, float] = {}
        self.doing = "the images were looked at"
        headers = headers_of(dataset)
        self.contenders: dict[str, Contender] = {}
        for each in contenders:
            try:
                self.contenders[each.name] = fitted(each, headers)
            except InputError as error:
                self.contenders[each.name] = each
                self.failed[each.name] = error
        self.caps = {name: _cap(each) for name, each in self.contenders.items()}
        self.kept = Kept(work)
        self.stages = Stages(self.kept, dataset, halves, options, self.caps)

    def run(self, *, overwrite: bool) -> dict[str, Any]:
        """The document, less the bundle that is written."""
        began, names = time.monotonic(), [name for name in self.contenders if name not in self.failed]
        for name in names if overwrite else ():
            self.kept.drop(name, PLAN, TRAIN, BUILD, MEASURE)
        self.made = {name: made for name in names if (made := self.stages.found(self.contenders[name])).measured}
        to_do = [name for name in names if name not in self.made]
        caps = {name: self.caps[name] for name in to_do}
        plan = None
        if self.options.train_seconds is None and any(cap is not None for cap in caps.values()):
            seconds = 60 * self.options.minutes
            after_s = SLACK * seconds + RACE_S + LOWER_S * (self.options.request != FP32)
            scored = headers_of(self.dataset, ("calibration", "test"))
            built_s = {name: expected_build_s(self.contenders[name], scored) for name in caps}
            plan = TimePlan(seconds, caps, count=len(self.contenders), built_s=built_s, after_s=after_s)
        planned = plan.planned if plan else {n: self.options.train_seconds for n in to_do if caps[n] is not None}
        self._tell_plan(planned)
        # Those without a share first, so that the others share what is left.
        for index, name in enumerate(sorted(to_do, key=lambda name: caps[name] is not None), start=1):
            self.watch.method(name, index, len(to_do))
            self._make(name, plan)
        if not self.made:
            raise failure_of(f"none of {len(self.contenders)} methods could be compared", self.failed)
        self._lower(began)
        race = self._race()
        rows = {name: self._row(name, race) for name in self.contenders}
        seconds = time.monotonic() - began
        return document_of(rows, self.options, self.halves, self.dataset, planned, seconds)

    def _tell_plan(self, planned: dict[str, float]) -> None:
        for name in self.made:
            self.watch.note(f"{name} is complete in {self.work / name} and is not made again")
        for name in self.contenders.keys() - self.made.keys() - self.failed.keys():
            if why := self.kept.change(name, TRAIN, self.stages.training(self.contenders[name])):
                self.watch.note(f"{name} is made anew, since {why}")
        for name, seconds in planned.items():
            self.watch.note(f"{name} trains for about {seconds:.0f} s")
        for contender in self.contenders.values():
            for note in contender.notes:
                self.watch.note(f"{contender.name}: {note}")

    # ------------------------------------------------------------------------------------------ one method

    def _make(self, name: str, plan: TimePlan | None) -> None:
        """Makes what is missing of a method, or notes why it cannot be made."""
        self._attempt(name, lambda: self._stages(name, plan))
        if plan:
            made = self.made.get(name)
            plan.done(name, made and made.built["seconds"] + made.measured["seconds"])

    def _attempt(self, name: str, make: Callable[[], Made]) -> None:
        """Notes what is made of a method, or why it fails."""
        try:
            self.made[name] = make()
        except Exception as error:  # one method's defect does not take what others took minutes for
            self.failed[name] = self._foreseen(name, error)
            self.made.pop(name, None)
            self.kept.drop(name, PLAN)  # a training that failed is not gone on with
            self.watch.note(f"{name}: {self.failed[name]}")

    def _foreseen(self, name: str, error: Exception) -> GrdError:
        """What a method fails with.

        Raises:
            StoppedError, KeyboardInterrupt: it was stopped.
        """
        if isinstance(error, StoppedError):
            raise error
        if self.stopped():  # whatever a library made of Ctrl-C
            raise KeyboardInterrupt from error
        return error if isinstance(error, GrdError) else self._unforeseen(name, error)

    def _unforeseen(self, name: str, error: Exception) -> GrdError:
        log = self.work / name / "error.txt"
        write_atomically(log, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
        told = f"{type(error).__name__}: {one_line(error)}"
        return InputError(f"it failed as nobody foresaw ({told}); please report {log}")

    def _stages(self, name: str, plan: TimePlan | None) -> Made:
        folder, contender, kept, stages = self.work / name, self.contenders[name], self.kept, self.stages
        trained, built, measured = stages.found(contender)
        if built is None and (trained is None or not _holds(folder / CHECKPOINT, trained["sha256"])):
            trained = kept.make(name, TRAIN, stages.training(contender), lambda: self._trained(contender, plan))
        if built is None:
            built = kept.make(name, BUILD, stages.building(trained, FP32), lambda: self._built(contender, FP32))
        if measured is None:
            measured = kept.make(name, MEASURE, stages.measuring(built), lambda: self._measured(contender))
        return Made(trained, built, measured)

    def _trained(self, contender: Contender, plan: TimePlan | None) -> dict[str, Any]:
        name, folder = contender.name, self.work / contender.name
        self._begins(name, "trained", f"training on {len(self.dataset.train)} good images")
        identity, output = self.stages.training(contender), folder / CHECKPOINT
        begun = self.kept.get(name, PLAN, identity)
        if begun is None:
            seconds = self.options.train_seconds if self.caps[name] is not None else None
            if plan:
                seconds = plan.seconds_of(name)
            begun = {"train_seconds": seconds}
            self.kept.put(name, PLAN, identity, begun)
            resume = False
        else:  # stopped within its training, which goes on as it began
            resume = (run_folder_of(output) / "last.safetensors").exists()
        config = contender.within(begun["train_seconds"])
        watch = TrainWatcher(self.watch.training, lambda text: self.watch.note(f"{name}: {text}"))
        checkpoint = train_run(self.dataset, config, output, resume=resume, overwrite=not resume, watch=watch)
        about = checkpoint.provenance
        return {
            "sha256": file_sha256(output),
            "train_seconds": about.get("seconds"),
            "steps": about.get("steps"),
            "substitutes": substitutes_of(about),
        }

    def _built(self, contender: Contender, request: Request) -> dict[str, Any]:
        folder, calibration = self.work / contender.name, len(self.dataset.calibration)
        self._begins(contender.name, "built", "exporting and building")
        bundle = bundle_from_dataset(
            read_checkpoint(folder / CHECKPOINT),
            folder / BUNDLE,
            self.dataset,
            name=f"{self.dataset.name}-{contender.name}",
            request=request,
            budget=self.options.budget,
            watch=StageWatcher(self.watch.stage, self.watch.progress),
            on_calibrated=lambda done: self.watch.progress(done, calibration),
        )
        seals = {"seal": bundle.seal, "decision_seal": bundle.decision["seal"]}
        return seals | {"request": request, "speedup": speedup_of(bundle.manifest["precision"])}

    def _measured(self, contender: Contender) -> dict[str, Any]:
        folder = self.work / contender.name
        images = len(self.halves.choosing)
        self._begins(contender.name, "measured", f"scoring {images} test images")
        measured = measured_bundle(
            folder / BUNDLE,
            self.halves,
            folder,
            data=path_text(self.dataset.root or self.dataset.name),
            bar=lambda _: lambda done: self.watch.progress(done, images),
        )
        stream = io.BytesIO()
        np.savez(stream, **measured.drawn)
        write_atomically(folder / DRAWN, stream.getvalue())
        return measured.result

    def _begins(self, name: str, doing: str, stage: str) -> None:
        self.doing = f"{name} was {doing}"
        self.watch.stage(stage)

    # ---------------------------------------------------------------------------------- lower precisions

    def _lower(self, began: float) -> None:
        """Searches for a lower precision of the methods that it could make the choice, while there is time for another
        search like the last one; for one in any case."""
        options, took = self.options, 0.0
        if options.request == FP32:
            return
        while options.train_seconds is not None or time.monotonic() - began + took < 60 * options.minutes - RACE_S:
            rows = {name: self._measures(name) for name in self.made}
            searched = {name: each.built["speedup"] for name, each in self.made.items() if self._searched(each)}
            name = next_to_lower(rows, self._heat(), searched | self.unlowered, options)
            if name is None:
                return
            start = time.monotonic()
            self._search(self.contenders[name])
            took = time.monotonic() - start

    def _searched(self, made: Made) -> bool:
        return made.built["request"] == self.options.request

    def _search(self, contender: Contender) -> None:
        """The bundle of a method again, in the precision asked for. Where that fails it stays as it is."""
        name, trained, start = contender.name, self.made[contender.name].trained, time.monotonic()
        self.watch.note(f"{name} may be the one, so it is built in {self.options.request} precision")
        try:
            built = self._built(contender, self.options.request)
        except Exception as error:
            self.unlowered[name] = 1.0
            self.watch.note(f"{name} stays in fp32: {self._foreseen(name, error)}")
            return
        built["seconds"] = round(time.monotonic() - start, 1)
        built = self.kept.put(name, BUILD, self.stages.building(trained, self.options.request), built)

        def measure() -> Made:
            identity = self.stages.measuring(built)
            return Made(trained, built, self.kept.make(name, MEASURE, identity, lambda: self._measured(contender)))

        self._attempt(name, measure)

    def _heat(self) -> dict[str, float]:
        """p50 in ms of all methods in FP32, kept as long as their checkpoints stay."""
        checkpoints = {name: made.trained["sha256"] for name, made in self.made.items()}
        identity = {"checkpoints": checkpoints, "threads": self.options.threads, "cpu": cpu_name()}

        def heat() -> dict[str, Any]:
            self.watch.stage(f"timing {len(self.made)} methods in fp32")
            bundles = {name: self.work / name / BUNDLE for name in self.made}
            found = raced(bundles, self.dataset.test, rounds=MIN_ROUNDS, threads=self.options.threads, precision=FP32)
            return {"p50_ms": {name: times["p50_ms"] for name, times in found.items()}}

        return (self.kept.get("", HEAT, identity) or self.kept.make("", HEAT, identity, heat))["p50_ms"]

    # ------------------------------------------------------------------------------------------- the end

    def _race(self) -> dict[str, dict[str, Any]]:
        """Times of all methods that are there, kept as long as these, the machine and what was asked for stay."""
        options = self.options
        seconds = RACE_S if options.train_seconds is None else None
        identity = {
            "seals": {name: [made.built["seal"], made.built["decision_seal"]] for name, made in self.made.items()},
            "rounds": options.rounds,
            "threads": options.threads,
            "budget_ms": options.budget_ms,
            "seconds": seconds,
            "cpu": cpu_name(),
            "images": images_sha256(self.dataset.test),
        }
        if found := self.kept.get("", RACE, identity):
            return found["times"]
        self.doing = "the methods were timed in turn"
        self.watch.stage(f"timing {len(self.made)} methods in turn")

        def race() -> dict[str, Any]:
            times = raced(
                {name: self.work / name / BUNDLE for name in self.made},
                self.dataset.test,
                rounds=options.rounds,
                threads=options.threads,
                budget_ms=options.budget_ms,
                seconds=seconds,
                on_round=self.watch.progress,
            )
            return {"times": times}

        return self.kept.make("", RACE, identity, race)["times"]

    def _row(self, name: str, race: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """All that is known of a method, JSON-ready, and `drawn` besides."""
        contender = self.contenders[name]
        config = contender.config
        row: dict[str, Any] = {"name": name, "profile": config.profile, "method": config.method.name}
        row |= {"patch": [config.model.patch_h, config.model.patch_w], "channels": config.model.channels}
        row["notes"] = list(contender.notes)
        if name in self.failed:
            return row | {"failed": one_line(self.failed[name])}
        made = self.made[name]
        stages = {TRAIN: made.trained, BUILD: made.built, MEASURE: made.measured}
        seconds = {stage: result["seconds"] for stage, result in stages.items()}
        searched = self._searched(made) or name in self.unlowered
        return row | self._measures(name) | made.trained | race[name] | {"searched": searched, "seconds": seconds}

    def _measures(self, name: str) -> dict[str, Any]:
        """What was measured of a method besides its times, and `drawn`."""
        with np.load(self.work / name / DRAWN) as drawn:
            return self.made[name].measured | {"drawn": dict(drawn)}


def _cap(contender: Contender) -> float | None:
    """Seconds of training that a method is given at most; None: they do not bound it."""
    try:
        return contender.config.train.seconds if contender.timed else None
    except GrdError:  # which its turn tells
        return None


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
