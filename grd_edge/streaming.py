"""A source of frames through a stream to rows of results, files and pictures. Never imports torch.

One thread, the caller's, takes frames from the source and submits them; another takes results and writes them. Where
results are written slower than frames come, the stream fills: then the source waits (`block`), or frames are refused
and counted.

Source: docs/stream.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from grd_edge.bundle import Bundle
from grd_edge.errors import GrdError
from grd_edge.grouping import Grouping, Place
from grd_edge.inference import (
    NO_THRESHOLDS,
    check_masks,
    few_patches,
    highest_region,
    picture,
    picture_style,
    result_files,
)
from grd_edge.products import ProductRule
from grd_edge.results import Format, path_text
from grd_edge.runtime import NativeBundle
from grd_edge.shipped import opened_bundle
from grd_edge.sources import Captured, Note, Source, paced
from grd_edge.stream import Stream
from grd_edge.stream_result import STAGES, StreamResult, StreamStats

# Those that `grd_edge.inference.COLUMNS` has, too, mean the same.
COLUMNS = (
    "level",  # image, product or run
    "name",
    "outcome",  # of an image: scored, late, dropped or failed
    "decision",
    "score",
    "threshold",
    "patches",
    "defective_patches",
    "region",
    "queue_ms",  # until work on it began
    "infer_ms",
    "total_ms",  # from submission until the result was there
    "product",
    "run",
    "heatmap",
    "time",  # when the frame was there
    "error",
    "seal",
)
_POLL_S = 0.1
_RELOAD_S = 0.5
_REFUSED_S = 5.0  # until a bundle that was refused is tried again
_SLOW_S = 0.5  # how often it is looked whether results pile up


@dataclass(frozen=True)
class StreamOptions:
    """What is done besides deciding.

    Attributes:
        output: folder for results and pictures; None: none are written.
        formats: of the results file.
        images: pictures of which frames; `rejects`: all that are not good.
        heatmap_top: as in `InferOptions`.
        grouping: products and runs.
        fps: most frames per second that are taken from the source; 0: as they come.
        max_frames: end after so many; 0: never.
        reload: exchange the bundle when the one on disk changes.
        engine: arguments of `Stream`, such as threads, overload and deadline_ms.
    """

    output: Path | None = None
    formats: tuple[Format, ...] = ("csv",)
    images: Literal["none", "all", "rejects"] = "none"
    heatmap_top: float | None = None
    grouping: Grouping = field(default_factory=Grouping)
    fps: float = 0.0
    max_frames: int = 0
    reload: bool = False
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Charge:
    """What is known of a bundle in charge."""

    rule: ProductRule
    style: dict[str, Any]  # of pictures
    seal: str
    seals: tuple[str, str | None]

    @classmethod
    def of_bundle(cls, bundle: Bundle, heatmap_top: float | None) -> _Charge:
        seals = bundle.seal, bundle.decision and bundle.decision["seal"]
        return cls(
            ProductRule.of_bundle(bundle),
            picture_style(bundle, heatmap_top),
            (seals[1] or seals[0])[:12],
            seals,
        )


@dataclass
class Summary:
    """What a stream did.

    Attributes:
        stats: at the end, or so far.
        decisions: level -> decision -> count.
        refused: frames that found no room, since results were written too slowly.
        lost: frames that newer ones of a camera replaced before they were taken.
        incomplete_products: of frames that came back, at the end.
        frames_per_s: that came back, from the first submission on.
    """

    stats: StreamStats
    decisions: dict[str, dict[str, int]]
    refused: int
    lost: int
    incomplete_products: int
    frames_per_s: float

    @property
    def good(self) -> bool:
        """Whether nothing must be rejected: runs where there are any, else products, else frames."""
        level = next((level for level in ("run", "product") if self.decisions[level]), "image")
        missing = self.refused or (self.incomplete_products if level != "image" else 0)
        return not missing and set(self.decisions[level]) <= {"good"}

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self)


class Streaming:
    """A bundle's stream that runs a source; a context manager.

    Args:
        path: folder of the bundle.
        on_row: called with each row of `COLUMNS`, after it was written; by another thread, one at a time.
        on_note: told, as a sentence, what a user should know; by any thread.

    Attributes:
        stream: the stream.
        reload_now: set, it makes the bundle be looked at now.

    Raises:
        BundleError, EngineError, InputError: as `Stream`, `Grouping.placing` and `result_files`.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        options: StreamOptions,
        *,
        name: str = "the source",
        on_row: Callable[[dict[str, Any]], None] = lambda row: None,
        on_note: Note = lambda text: None,
    ) -> None:
        self._path, self._source, self._options = path, source, options
        self._on_row, self._on_note = on_row, on_note
        self._place = options.grouping.placing(source.names, name)
        self._counts: dict[str, Counter[str]] = {level: Counter() for level in ("image", "product", "run")}
        self._refused, self._open_products, self._began, self._failure = 0, 0, 0.0, None
        self._told: set[str] = set()
        self._all_submitted, self._ended, self.reload_now = threading.Event(), threading.Event(), threading.Event()
        with ExitStack() as stack:
            self._files = result_files(options.output, options.formats, COLUMNS, stack, on_note)
            native, bundle = opened_bundle(path, NativeBundle)
            self.stream = stack.enter_context(
                Stream(
                    native,
                    frame_shape=source.shape,
                    patches=options.images != "none" or len(native.region_names) > 1 or options.reload,
                    heatmaps=options.images != "none",
                    **options.engine,
                )
            )
            self._signature = self._on_disk()
            check_masks(bundle)
            if not bundle.decision:
                on_note(NO_THRESHOLDS)
            self._charges = {0: _Charge.of_bundle(bundle, self._options.heatmap_top)}
            self._stack = stack.pop_all()

    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(self, stop: threading.Event) -> Summary:
        """Runs the source to its end, or until `stop` is set; then what is in flight comes back, too.

        Raises:
            InputError: the source cannot go on, or results cannot be written; what came before is written.
            EngineError: as the source's.
        """
        self._began = time.monotonic()
        threads = [threading.Thread(target=self._take_results, args=[stop], name="results")]
        if self._options.reload:
            threads.append(threading.Thread(target=self._watch_bundle, name="reload"))
        for thread in threads:
            thread.start()
        try:
            for number, captured in enumerate(self._frames(stop)):
                self._submit(captured, number)
        finally:
            self._ended.set()
            self.reload_now.set()  # wakes the thread
            if len(threads) > 1:
                threads[1].join()  # a swap ends with the frames before it
            self.stream.flush()
            self._all_submitted.set()
            threads[0].join()
        if self._failure is not None:
            raise self._failure
        return self.summary()

    def summary(self) -> Summary:
        """Counts and latencies so far."""
        stats = self.stream.stats()
        back = stats.submitted - stats.in_flight
        seconds = max(time.monotonic() - self._began, 1e-9)
        return Summary(
            stats,
            {level: dict(counts) for level, counts in self._counts.items()},
            self._refused,
            self._source.lost,
            self._open_products,
            back / seconds,
        )

    def _frames(self, stop: threading.Event) -> Iterator[Captured]:
        frames, options = self._source.frames(stop), self._options
        if options.fps:
            frames = paced(frames, options.fps, stop)
        return islice(frames, options.max_frames or None)

    def _submit(self, captured: Captured, number: int) -> None:
        """Submits a frame; where results were not taken it waits for room or, by the policy, is refused."""
        place = self._place(number, captured.name)
        self._refused += not self.stream.submit(
            captured.frame,
            id=number,
            product=place.product_id,
            run=place.run_id,
            product_frames=place.product_frames,
            run_products=place.run_products,
            context=(captured, place),
        )

    # ---------------------------------------------------------------- results

    def _take_results(self, stop: threading.Event) -> None:
        """Takes results until all are; after a failure to write, without writing, so that nothing hangs."""
        look = time.monotonic() + _SLOW_S
        while True:
            ended = self._all_submitted.is_set()
            result = self.stream.wait(_POLL_S * 1000)
            if time.monotonic() > look:
                look = time.monotonic() + _SLOW_S
                self._tell_of_slow_results()
            if result is None:
                if ended:
                    return
                continue
            try:
                if self._failure is None:
                    self._write(result)
            except Exception as error:
                self._failure = error
                stop.set()

    def _tell_of_slow_results(self) -> None:
        queue = self._options.engine.get("queue_depth", 8)
        if "slow" not in self._told and self.stream.stats().ready > 2 * queue + 32:  # half of what the stream holds
            self._told.add("slow")
            self._on_note(
                "results are written slower than frames are decided, so that frames will wait or be refused; write to "
                "a faster disk, or draw fewer pictures"
            )

    def _write(self, result: StreamResult) -> None:
        captured, place = result.context
        charge = self._charges[result.generation]
        row = self._image_row(result, captured, place, charge)
        rows = [row, *self._group_rows(result, place)]
        for each in rows:
            each |= {"time": row["time"], "seal": charge.seal}
            for file in self._files:
                file.append(each)
            self._counts[each["level"]][each["decision"]] += 1
            self._on_row(each)

    def _image_row(self, result: StreamResult, captured: Captured, place: Place, charge: _Charge) -> dict[str, Any]:
        times = result.times_ms
        row = dict.fromkeys(COLUMNS) | {
            "level": "image",
            "name": captured.name,
            "outcome": result.outcome,
            "decision": result.decision,
            "score": result.score,
            "threshold": result.threshold,
            "patches": result.patches,
            "defective_patches": result.defective_patches,
            "queue_ms": round(times["queue"], 3),
            "infer_ms": round(times["infer"], 3),
            "total_ms": round(times["total"], 3),
            "product": place.product,
            "run": place.run,
            "time": captured.time.isoformat(timespec="milliseconds"),
        }
        if result.outcome in ("failed", "dropped"):
            said = captured.error or result.error or "not inspected: the stream was overloaded"
            row["error"] = path_text(said if captured.name in said else f"{captured.name}: {said}")
        elif result.inspection is not None:
            row["region"] = highest_region(result.inspection, charge.rule)
            rejected = result.decision != "good"
            drawn = self._options.images == "all" or (self._options.images == "rejects" and rejected)
            if drawn and result.inspection.heatmap is not None:
                row["heatmap"] = picture(
                    self._options.output,
                    captured.frame,
                    result.inspection,
                    Path(captured.name),
                    charge.rule,
                    charge.style,
                )
        if result.decision == "undecided" and charge.rule.thresholds and not self._options.grouping.products:
            if "few" not in self._told:
                self._on_note(few_patches(captured.name, result.patches, charge.rule))
            self._told.add("few")
        return row

    def _group_rows(self, result: StreamResult, place: Place) -> Iterator[dict[str, Any]]:
        """Rows of the product, and of the run, whose last frame this is."""
        row = {**dict.fromkeys(COLUMNS), "run": place.run}
        if place.product is not None:
            self._open_products += result.product_frames == 1
            if not result.product_complete:
                return
            self._open_products -= 1
            missing = f"{result.product_missing} of {result.product_frames} frames were not inspected"
            yield row | {
                "level": "product",
                "name": place.product,
                "decision": result.product_decision,
                "defective_patches": result.product_defective_patches,
                "product": place.product,
                "error": missing if result.product_missing else None,
            }
        if result.run_complete and place.run is not None:
            yield row | {"level": "run", "name": place.run, "decision": result.run_decision}

    # ----------------------------------------------------------------- reload

    def _on_disk(self) -> tuple[Any, ...]:
        """What changes when the bundle's descriptions do; read again only then."""
        found = []
        for name in ("bundle.json", "decision.json"):
            try:
                status = (self._path / name).stat()
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                found.append(None)
        return tuple(found)

    def _watch_bundle(self) -> None:
        """Exchanges the bundle when the one on disk is another; one that is refused may be half copied: tried again."""
        generation, refused, again = 0, "", math.inf
        while not self._ended.is_set():
            asked = self.reload_now.wait(_RELOAD_S)
            self.reload_now.clear()
            signature = self._on_disk()
            wanted = asked or signature != self._signature or time.monotonic() >= again
            if self._ended.is_set() or signature[0] is None or not wanted:
                continue
            self._signature, native, again = signature, None, math.inf
            try:
                native, bundle = opened_bundle(self._path, NativeBundle)
                charge = _Charge.of_bundle(bundle, self._options.heatmap_top)
                if charge.seals == self._charges[generation].seals:
                    native.close()
                    if asked:
                        self._on_note(f"{self._path} is unchanged, so it stays in charge")
                    continue
                check_masks(bundle)
                self._charges[generation + 1] = charge
                generation = self.stream.swap(native)
                self._on_note(f"the new bundle {self._path} is in charge, seal {charge.seal}")
            except GrdError as error:
                if native is not None:
                    native.close()
                if asked or str(error) != refused:
                    self._on_note(f"the new bundle is refused, so the one before stays in charge: {error}")
                refused, again = str(error), time.monotonic() + _REFUSED_S


def latency_rows(stats: StreamStats) -> list[tuple[str, ...]]:
    """A row per stage of p50, p95, p99, p99.9 and worst, in ms."""
    rows = []
    for stage in STAGES:
        latency = getattr(stats, stage)
        values = (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.p999_ms, latency.worst_ms)
        rows.append((stage, *(f"{value:.3f}" for value in values)))
    return rows
