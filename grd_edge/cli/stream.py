"""`grd-edge stream`: decisions for frames as they come. Needs no training stack."""

from __future__ import annotations

import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from grd_edge.cli.common import (
    BundlePath,
    EnginePrecision,
    Formats,
    HeatmapTop,
    ImageBar,
    Json,
    Output,
    ProductBy,
    Recursive,
    RunBy,
    Threads,
    err,
    format_names,
    out,
    print_json,
    print_rows,
    progress,
    tab_line,
)

LINE = (
    *("image", "outcome", "decision", "score", "threshold", "patches", "defective_patches"),
    *("queue_ms", "infer_ms", "total_ms"),
)
_MOST_PATCHES = 4096


class Overload(StrEnum):
    block = "block"
    drop_oldest = "drop-oldest"
    drop_newest = "drop-newest"


class Images(StrEnum):
    none = "none"
    all = "all"
    rejects = "rejects"


def stream(
    bundle: BundlePath,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]", help="Folder, image, video, camera number, URL, or - (raw).", show_default=False
        ),
    ] = None,
    recursive: Recursive = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with images that appear in the folder.")] = False,
    raw: Annotated[str, typer.Option(metavar="HxW[xC][:uint16]", help="Size of raw frames.", show_default=False)] = "",
    reconnect_s: Annotated[float, typer.Option(min=0, help="How long a camera that vanished is waited for.")] = 60.0,
    fps: Annotated[float, typer.Option(min=0, help="Most frames per second; 0: as they come.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end of the images or the video.")] = False,
    max_frames: Annotated[int, typer.Option(min=0, help="End after so many frames; 0: never.")] = 0,
    output: Output = None,
    formats: Formats = None,
    images: Annotated[Images, typer.Option(help="Pictures of which frames, in OUT/heatmaps.")] = Images.none,
    heatmap_top: HeatmapTop = None,
    product_by: ProductBy = None,
    run_by: RunBy = None,
    product_frames: Annotated[int, typer.Option(min=0, help="Frames of a product; 0: by the names, else 1.")] = 0,
    run_products: Annotated[int, typer.Option(min=0, help="Products of a run; 0: by the names, else none.")] = 0,
    target: Annotated[str, typer.Option(help="Target of the engine.")] = "cpu",
    precision: EnginePrecision = None,
    threads: Threads = 0,
    engines: Annotated[int, typer.Option(min=1, max=16, help="Engines side by side.")] = 1,
    queue: Annotated[
        int | None,
        typer.Option(min=1, max=65536, help="Frames that may wait for the engine. Default: 8; 1 for slots."),
    ] = None,
    overload: Annotated[
        Overload | None,
        typer.Option(
            help="When so many wait: let the source wait, or drop one. Default: block; drop-oldest for slots."
        ),
    ] = None,
    deadline_ms: Annotated[
        float, typer.Option(min=0, help="From frame to result; later ones are marked. 0: none.")
    ] = 0,
    batch_frames: Annotated[
        int, typer.Option(min=0, max=1024, help="Frames that may share an engine call; 0: as many as pay off.")
    ] = 0,
    batch_wait_ms: Annotated[float, typer.Option(min=0, help="How long a frame may wait for others.")] = 0,
    spin_us: Annotated[float, typer.Option(min=0, help="How long idle threads watch before they sleep.")] = 0,
    cpus: Annotated[str, typer.Option(metavar="0-3,5", help="CPUs to run on.", show_default=False)] = "",
    reload: Annotated[
        bool,
        typer.Option("--reload", help="Exchange the bundle without a gap when the one on disk changes, or on SIGHUP."),
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 unless everything is good.")] = False,
    no_live: Annotated[bool, typer.Option("--no-live", help="A line per frame on a terminal, too.")] = False,
    slot_ms: Annotated[
        float | None, typer.Option(min=0.01, help="Without SOURCE: a frame per so many ms; are decisions in time?")
    ] = None,
    patches: Annotated[int, typer.Option(min=1, max=_MOST_PATCHES, help="Patches of such a frame.")] = 60,
    slots: Annotated[int, typer.Option(min=1, help="Number of such frames.")] = 1000,
    json_: Json = False,
) -> None:
    """Inspect frames as they come, overlapped and with deadlines; one line per frame (JSON lines with --json).

    Ends when the source does, or with Ctrl-C: what is in flight is decided, and counts and latencies go to stderr. A
    frame that cannot be inspected gets the decision `error`, and the stream goes on.
    """
    from grd_edge.errors import InputError, require
    from grd_edge.grouping import Grouping
    from grd_edge.machine import cpus_of
    from grd_edge.sources import SourceOptions, source_of
    from grd_edge.streaming import StreamOptions

    engine: dict[str, Any] = {
        "target": target,
        "precision": precision,
        "threads": threads,
        "engines": engines,
        "batch_frames": batch_frames,
        "batch_wait_ms": batch_wait_ms,
        "spin_us": spin_us,
        "cpus": cpus_of(cpus),
        **({"queue_depth": queue} if queue else {}),
        **({"overload": str(overload)} if overload else {}),
    }
    if (source is None) == (slot_ms is None):
        raise InputError("give the source of the frames, such as a folder or a camera's number, or else --slot-ms")
    if slot_ms is not None:
        return _simulate(bundle, slot_ms, patches, slots, engine, json_)
    if images is not Images.none:
        if output is None:
            raise InputError("pictures need a folder to go to; add one with: -o OUT")
        require("cv2", extra="images", purpose="to draw heatmaps")
    options = StreamOptions(
        output=output,
        formats=format_names(formats),
        images=str(images),
        heatmap_top=heatmap_top,
        grouping=Grouping(product_by, run_by, product_frames, run_products),
        fps=fps,
        max_frames=max_frames,
        reload=reload,
        engine={**engine, "deadline_ms": deadline_ms},
    )
    read = SourceOptions(recursive=recursive, watch=watch, raw=raw, loop=loop, reconnect_s=reconnect_s)
    with closing(source_of(source, read, _note)) as frames:
        _run(bundle, source, frames, options, live=not (json_ or no_live), json_=json_, exit_code=exit_code)


def _note(text: str) -> None:
    err.print(f"grd-edge: {text}", soft_wrap=True)


def _run(bundle: Path, name: str, frames, options, *, live: bool, json_: bool, exit_code: bool) -> None:
    from rich.live import Live

    from grd_edge.cli.stream_view import LAST, StreamView, besides_of, identity_of, latency_table
    from grd_edge.errors import CheckFailedError
    from grd_edge.results import json_line
    from grd_edge.streaming import Streaming

    stop, rows = threading.Event(), deque(maxlen=LAST)
    live = live and sys.stdout.isatty()
    on_row = rows.append if live else _printing(json_)
    with ExitStack() as stack:
        line = stack.enter_context(Streaming(bundle, frames, options, name=name, on_row=on_row, on_note=_note))
        stack.enter_context(_signals(stop, line.reload_now if options.reload else None))
        try:
            with ExitStack() as shown:
                if live:
                    view = StreamView(f"{bundle} on {name}; Ctrl-C ends it", line.summary, rows)
                    shown.enter_context(Live(view, console=out, refresh_per_second=5))
                line.run(stop)
        finally:
            summary = line.summary()
            err.print(identity_of(summary))
            err.print(besides_of(summary))
            err.print(latency_table(summary))
    if json_:
        typer.echo(json_line({"summary": summary.as_mapping()}), nl=False)
    if exit_code and not summary.good:
        raise CheckFailedError(f"not everything is good and submitted ({besides_of(summary)}); see the rows above")


def _printing(json_: bool):
    """A function that prints a row on stdout, the first one after a head where it is text."""
    from grd_edge.results import json_line

    titled = json_

    def on_row(row: dict[str, Any]) -> None:
        nonlocal titled
        if not titled:
            typer.echo("\t".join(LINE))
            titled = True
        values = {column: row[column] for column in LINE[1:]}
        if json_:
            more = {key: row[key] for key in ("product", "run", "heatmap", "time", "error") if row[key] is not None}
            typer.echo(json_line({row["level"]: row["name"], **values, **more}), nl=False)
        else:
            name = row["name"] if row["level"] == "image" else f"{row['level']} {row['name']}"
            typer.echo(tab_line([name, *values.values()]))

    return on_row


@contextmanager
def _signals(stop: threading.Event, reload_now: threading.Event | None) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`, a second one ends the process; SIGHUP sets `reload_now`."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    wanted = {signal.SIGINT: interrupt, signal.SIGTERM: interrupt}
    if reload_now is not None:
        wanted[signal.SIGHUP] = lambda number, frame: reload_now.set()
    previous = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _simulate(bundle: Path, slot_ms: float, patches: int, slots: int, engine: dict[str, Any], json_: bool) -> None:
    from grd_edge.errors import CheckFailedError
    from grd_edge.slots import simulated_slots
    from grd_edge.watch import Watcher

    with progress(visible=slots * slot_ms > 2000) as bar:
        watcher = Watcher(progress=ImageBar(bar, "slots", slots))
        found = simulated_slots(bundle, slot_ms=slot_ms, patches=patches, slots=slots, watcher=watcher, **engine)
    if json_:
        print_json(found)
    else:
        shown = {key: _numbers(value) if isinstance(value, dict) else value for key, value in found.items()}
        print_rows(f"{slots} slots of {slot_ms:g} ms, {found['patches']} patches each", shown)
    if not found["holds"]:
        raise CheckFailedError(
            f"{found['missed']} of {slots} slots of {slot_ms:g} ms were missed and p99 is "
            f"{found['total_ms']['p99']:.1f} ms; give it more time, CPUs, or a faster precision"
        )


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
