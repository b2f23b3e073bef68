"""Frames in one after another, decisions out, through the native library's stream. Never imports torch.

Example::

    with Stream("part.grdb", deadline_ms=500) as stream:
        stream.submit(frame, id=7)             # uint8 or uint16, H x W or H x W x 3 (RGB)
        result = stream.wait()
        if result.decision != "good": reject(result.id)

Source: docs/stream.md; section "stream" of kernels/include/grd_edge.h.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from grd_edge import _native
from grd_edge.errors import InputError
from grd_edge.runtime import NativeBundle, engine_params, inspection_of
from grd_edge.stream_result import OUTCOMES, STAGES, STREAM_DECISIONS, Latency, StreamResult, StreamStats

Overload = Literal["block", "drop-oldest", "drop-newest"]
_SLICE_MS = 100.0  # longest wait inside the library: between two, Python sees to signals
_SIZES = 64  # frame sizes whose grids are remembered


class _Held(NamedTuple):
    """What must live until a frame comes back: the library writes into it."""

    frame: np.ndarray | None
    pixels: np.ndarray
    patches: ctypes.Array[_native.PatchResult] | None
    heatmap: np.ndarray | None
    context: Any


# Submitted for a frame that could not be had: no bundle takes two channels, so that it comes back as failed.
_NO_FRAME = np.zeros((1, 1, 2), np.uint8)


class Stream:
    """Engines of a bundle that frames are submitted to, and come back from; a context manager.

    Any thread may call any method, `close` last. Frames come back in the order of their submission, dropped ones at
    once. An array that was submitted must not be changed until its result is taken; the stream keeps it alive.

    Args:
        bundle: folder of the bundle, or an opened one, which the stream then closes.
        target, precision, threads, batch_limit, variant, backend_dir, vendor_dir: of the engines, as those of
            `Inspector`.
        queue_depth: frames that may wait for the engines.
        capacity: frames held in all, results that were not taken included; 0: 4 * queue_depth + 64.
        overload: when queue_depth frames wait, `submit` waits (`block`), or drops the oldest of them, or the new one.
        engines: instances of the engine side by side.
        batch_frames: frames that may share engine calls; 0: as many as pay off.
        batch_wait_ms: how long a frame may wait for others to share a batch.
        deadline_ms: from submission until the result; 0: none.
        patches: results have an `inspection`, patch by patch.
        heatmaps: it holds the stitched heatmap, too.
        frame_shape: (H, W) or (H, W, C) of all frames, for which the engines are prepared; others fail. None: any.
        open_products: products, and runs, that may be incomplete at a time; 0: 256. One more closes the oldest.
        spin_us: how long idle threads watch before they sleep.
        cpus: those that the stream's threads run on; empty: any.

    Raises:
        BundleError, EngineError: as `Inspector`.
        InputError: frames of frame_shape cannot be taken, or an argument is out of its range.
    """

    def __init__(
        self,
        bundle: str | Path | NativeBundle,
        *,
        target: str = "cpu",
        precision: str | None = None,
        threads: int = 0,
        batch_limit: int = 16,
        variant: str | None = None,
        backend_dir: str | Path | None = None,
        vendor_dir: str | Path | None = None,
        queue_depth: int = 8,
        capacity: int = 0,
        overload: Overload = "block",
        engines: int = 1,
        batch_frames: int = 0,
        batch_wait_ms: float = 0.0,
        deadline_ms: float = 0.0,
        patches: bool = True,
        heatmaps: bool = False,
        frame_shape: Sequence[int] | None = None,
        open_products: int = 0,
        spin_us: float = 0.0,
        cpus: Sequence[int] = (),
    ) -> None:
        if overload not in _native.OVERLOADS:
            raise InputError(f"there is no overload policy {overload!r}; choose one of {', '.join(_native.OVERLOADS)}")
        self._handle = ctypes.c_void_p()
        self._bundle: NativeBundle | None = None
        self._swapping, self._tokens = threading.Lock(), itertools.count(1)
        self._held: dict[int, _Held] = {}
        self._patches, self._heatmaps = patches or heatmaps, heatmaps
        h, w, c = (*frame_shape, 1)[:3] if frame_shape else (0, 0, 0)
        engine = engine_params(
            target=target,
            precision=precision,
            threads=threads,
            batch_limit=batch_limit,
            variant=variant,
            backend_dir=backend_dir,
            vendor_dir=vendor_dir,
        )
        params = _native.StreamParams(
            queue_depth=queue_depth,
            capacity=capacity,
            overload=_native.OVERLOADS[overload],
            engines=engines,
            batch_frames=batch_frames,
            heatmaps=heatmaps,
            frame_h=h,
            frame_w=w,
            frame_c=c,
            open_products=open_products,
            deadline_ms=deadline_ms,
            batch_wait_ms=batch_wait_ms,
            spin_us=spin_us,
            cpus=(ctypes.c_int32 * len(cpus))(*cpus) if cpus else None,
            cpu_count=len(cpus),
            inspector=ctypes.pointer(engine),
        )
        lib = self._lib = _native.library()
        try:
            self._bundle = bundle if isinstance(bundle, NativeBundle) else NativeBundle(bundle)
            self._cuts = (self._bundle.info.cut,)
            self._rooms: dict[tuple[int, int], tuple[int, tuple[int, int] | None]] = {}
            self._region_names = {0: self._bundle.region_names}
            status = lib.grd_stream_open(self._bundle.handle, ctypes.byref(params), ctypes.byref(self._handle))
            self._check(status)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Drops what waits, ends the work under way, and frees all; harmless when repeated."""
        handle, self._handle = getattr(self, "_handle", None), None
        bundle, self._bundle = getattr(self, "_bundle", None), None
        if handle:
            self._lib.grd_stream_close(handle)
            self._held.clear()
        if bundle:
            bundle.close()

    @property
    def engine_version(self) -> str:
        """Name and version of the engine's vendor library."""
        self._require_open()
        return (self._lib.grd_stream_engine_version(self._handle) or b"").decode()

    def submit(
        self,
        frame: np.ndarray | None,
        *,
        id: int = 0,
        product: int | None = None,
        run: int = 0,
        product_frames: int = 1,
        run_products: int = 0,
        deadline_ms: float | None = None,
        context: Any = None,
    ) -> bool:
        """Gives a frame to the stream; from then on it comes back exactly once.

        Args:
            frame: as for `Inspector.inspect`, without a copy. One that does not fit comes back as failed. None: a frame
                that could not be had, which fails, so that counts and its product know of it.
            id: any number; comes back.
            product: the product it belongs to; None: its id.
            run: the run its product belongs to.
            product_frames: frames that make up the product.
            run_products: products that make up the run; 0: no run.
            deadline_ms: from now until its result; None: that of the stream; below 0: none.
            context: any object; comes back.

        Returns:
            False when it was not taken: results must be taken first.

        Raises:
            InputError: no frame at all, such as an array of text.
        """
        self._require_open()
        pixels = _NO_FRAME if frame is None else np.asarray(frame)
        count, size = self._room(*pixels.shape[:2]) if pixels.ndim in (2, 3) else (0, None)
        table = (_native.PatchResult * count)() if self._patches and count else None
        maps = np.empty((1, 1, *size), np.float32) if self._heatmaps and size else None
        token = next(self._tokens)
        given = _native.StreamFrame(
            product_frames=product_frames,
            id=id,
            product=id if product is None else product,
            run=run,
            user=token,
            run_products=run_products,
            deadline_ms=deadline_ms or 0.0,
            view=_native.frame_view(pixels),
            patches=table,
            patch_capacity=count,
        )
        if maps is not None:
            given.heatmap = _native.view(maps)
        self._held[token] = _Held(frame, pixels, table, maps, context)
        status = self._lib.grd_stream_submit(self._handle, ctypes.byref(given))
        if status:
            del self._held[token]
            if status != _native.STREAM_FULL:
                self._check(status)
        return not status

    def poll(self) -> StreamResult | None:
        """The next result; None when none is ready."""
        return self._taken(lambda result: self._lib.grd_stream_poll(self._handle, result))

    def wait(self, timeout_ms: float = -1.0) -> StreamResult | None:
        """The next result, waiting at most timeout_ms for it; below 0: as long as it takes. None: not within that."""

        def waited(result) -> int:
            return _sliced(lambda ms: self._lib.grd_stream_wait(self._handle, result, ms), timeout_ms)

        return self._taken(waited)

    def flush(self, timeout_ms: float = -1.0) -> bool:
        """Waits until nothing is in flight, at most timeout_ms; below 0: as long as it takes. Results stay to be taken.

        Returns:
            False when something still is.
        """
        self._require_open()
        status = _sliced(lambda ms: self._lib.grd_stream_flush(self._handle, ms), timeout_ms)
        if status != _native.STREAM_TIMEOUT:
            self._check(status)
        return not status

    def swap(self, bundle: str | Path | NativeBundle) -> int:
        """Puts another bundle in charge without a gap, for frames submitted from then on.

        Returns when those submitted before are done, by the bundle and thresholds that were in charge then.

        Args:
            bundle: as that of `Stream`.

        Returns:
            Its generation.

        Raises:
            BundleError, EngineError, InputError: it is refused; the old one stays in charge.
        """
        self._require_open()
        with self._swapping:
            new = bundle if isinstance(bundle, NativeBundle) else NativeBundle(bundle)
            old, cuts, generation = self._bundle, self._cuts, max(self._region_names) + 1
            self._region_names[generation] = new.region_names
            self._take_cuts((*cuts, new.info.cut))
            try:
                self._check(self._lib.grd_stream_swap(self._handle, new.handle))
            except BaseException:
                self._take_cuts(cuts)
                del self._region_names[generation]
                new.close()
                raise
            self._bundle = new
            self._take_cuts((new.info.cut,))
            old.close()
            return generation

    def stats(self) -> StreamStats:
        """Counts, and latencies of each stage."""
        self._require_open()
        found = _native.StreamStats()
        self._check(self._lib.grd_stream_get_stats(self._handle, ctypes.byref(found)))
        values = {field.name: getattr(found, field.name) for field in fields(StreamStats)}
        for stage in STAGES:
            values[stage] = Latency(**{field.name: getattr(values[stage], field.name) for field in fields(Latency)})
        return StreamStats(**values)

    def grid(self, h: int, w: int) -> _native.Grid:
        """Where the patches of an h x w frame lie, by the bundle in charge.

        Raises:
            InputError: a frame of that size does not fit.
        """
        self._require_open()
        found = _native.Grid()
        self._check(self._lib.grd_stream_grid(self._handle, h, w, ctypes.byref(found)))
        return found

    def _take_cuts(self, cuts: tuple[_native.CutParams, ...]) -> None:
        self._cuts, self._rooms = cuts, {}

    def _room(self, h: int, w: int) -> tuple[int, tuple[int, int] | None]:
        """Patches of a frame, and size of its heatmap, whichever bundle will inspect it; None where these differ."""
        rooms, cuts = self._rooms, self._cuts  # a swap replaces both
        room = rooms.get((h, w))
        if room is None:
            grids = []
            for cut in cuts:
                grid = _native.Grid()
                if self._lib.grd_cut_grid(ctypes.byref(cut), h, w, ctypes.byref(grid)) == 0:
                    grids.append(grid)
            sizes = {(grid.scaled_h, grid.scaled_w) for grid in grids}
            if len(rooms) >= _SIZES:
                rooms.clear()
            room = max((grid.count for grid in grids), default=0), sizes.pop() if len(sizes) == 1 else None
            rooms[h, w] = room
        return room

    def _taken(self, take: Callable[[Any], int]) -> StreamResult | None:
        self._require_open()
        found = _native.StreamResult()
        status = take(ctypes.byref(found))
        if status in (_native.STREAM_EMPTY, _native.STREAM_TIMEOUT):
            return None
        self._check(status)
        held, inspected = self._held.pop(found.user), found.outcome in (1, 2)
        inspection = None
        if inspected and held.patches is not None:
            names = self._region_names[found.generation]
            inspection = inspection_of(found, held.patches, names, heatmap=held.heatmap)
        return StreamResult(
            id=found.id,
            product=found.product,
            run=found.run,
            outcome=OUTCOMES[found.outcome],
            decision=STREAM_DECISIONS[found.decision],
            score=float(found.score),
            threshold=float(found.threshold),
            patches=found.patch_count,
            defective_patches=found.defective_count,
            generation=found.generation,
            product_complete=bool(found.product_complete),
            product_decision=STREAM_DECISIONS[found.product_decision] if found.product_complete else None,
            product_frames=found.product_frames,
            product_missing=found.product_missing,
            product_defective_patches=found.product_defective_count,
            run_complete=bool(found.run_complete),
            run_decision=STREAM_DECISIONS[found.run_decision] if found.run_complete else None,
            run_products=found.run_products,
            run_defective=found.run_defective,
            times_ms={stage: getattr(found, f"{stage}_ms") for stage in STAGES},
            batch_frames=found.batch_frames,
            error=found.message.decode("utf-8", "replace"),
            inspection=inspection,
            frame=held.frame,
            context=held.context,
        )

    def _check(self, status: int) -> None:
        _native.check(status, self._lib.grd_stream_message(self._handle) if self._handle else None)

    def _require_open(self) -> None:
        if not self._handle:
            raise InputError("this stream is closed; open a new one")


def _sliced(call: Callable[[float], int], timeout_ms: float) -> int:
    """Status of a call that waits for at most the ms it is given, repeated until timeout_ms are over."""
    end = time.monotonic() + timeout_ms / 1000
    while True:
        left = (end - time.monotonic()) * 1000 if timeout_ms >= 0 else _SLICE_MS
        status = call(min(max(left, 0.0), _SLICE_MS))
        if status != _native.STREAM_TIMEOUT or (timeout_ms >= 0 and left <= _SLICE_MS):
            return status
