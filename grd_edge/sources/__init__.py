"""Where the frames of a stream come from: folders, watched folders, videos, cameras, raw pixels. Never imports torch.

Source: docs/stream.md.
"""

from __future__ import annotations

import datetime
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from grd_edge.errors import InputError

Note = Callable[[str], None]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Captured:
    """A frame, or that one could not be had.

    Attributes:
        name: one line of text: a path, or what numbers the frame.
        frame: uint8 or uint16 (float32 from a file), H x W or H x W x 3 in RGB order; None: `error` says why.
        time: when it was there, UTC.
    """

    name: str
    frame: np.ndarray | None
    error: str = ""
    time: datetime.datetime = field(default_factory=_now)


class Source(Protocol):
    """Frames one after another.

    Attributes:
        shape: (H, W) or (H, W, C) of all frames where it is known before the first, else None.
        names: names of all frames where they are known before the first, else None.
        lost: frames that newer ones replaced before they were taken.
    """

    shape: tuple[int, ...] | None
    names: Sequence[str] | None
    lost: int

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        """Frames until the source ends or `stop` is set, which is seen within a fifth of a second.

        Raises:
            InputError: nothing more can come, such as from a camera that stays away.
            MissingExtraError: OpenCV is not installed.
        """

    def close(self) -> None:
        """Ends what it holds; harmless when repeated."""


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read.

    Attributes:
        recursive: images of all subfolders, too.
        watch: go on with images that appear in the folder.
        raw: `HxW[xC][:uint8|uint16]` of raw frames; empty: none.
        loop: begin again at the end of images or a video.
        reconnect_s: how long a camera that vanished is waited for.
    """

    recursive: bool = False
    watch: bool = False
    raw: str = ""
    loop: bool = False
    reconnect_s: float = 60.0


def source_of(text: str, options: SourceOptions, on_note: Note) -> Source:
    """The source that `text` names: a folder, an image, a video, a camera's number or device, a URL, or - (stdin).

    Raises:
        InputError: there is none, or the options do not fit it.
    """
    from grd_edge.data.images import SUFFIXES
    from grd_edge.sources.folder import ImageSource, WatchedSource
    from grd_edge.sources.raw import RawSource
    from grd_edge.sources.video import CameraSource, VideoSource

    path = Path(text)
    url, mode = "://" in text, _mode(path)
    if options.raw or text == "-":
        _refuse(text, options, "raw frames", "watch", "loop", "recursive")
        return RawSource(text, options.raw)
    if mode is not None and stat.S_ISDIR(mode):
        if options.watch:
            _refuse(text, options, "a watched folder", "loop")
            return WatchedSource(path, recursive=options.recursive, on_note=on_note)
        return ImageSource([path], recursive=options.recursive, loop=options.loop)
    if url or (mode is None and text.isdecimal()) or (mode is not None and stat.S_ISCHR(mode)):
        _refuse(text, options, "a camera", "watch", "loop", "recursive")
        return CameraSource(int(text) if text.isdecimal() else text, reconnect_s=options.reconnect_s, on_note=on_note)
    if mode is None:
        raise InputError(f"there is no source {text}; give a folder, an image, a video, a camera's number, a URL, or -")
    _refuse(text, options, "a file", "watch", "recursive")
    if path.name.lower().endswith(SUFFIXES):
        return ImageSource([path], loop=options.loop)
    return VideoSource(path, loop=options.loop, on_note=on_note)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def _refuse(text: str, options: SourceOptions, kind: str, *names: str) -> None:
    for name in names:
        if getattr(options, name):
            raise InputError(f"--{name} does not fit {text}, which is {kind}; leave it out")


def paced(frames: Iterator[Captured], fps: float, stop: threading.Event) -> Iterator[Captured]:
    """At most `fps` frames per second; a pause is not made up for by haste."""
    due = time.monotonic()
    for captured in frames:
        if stop.wait(max(0.0, due - time.monotonic())):
            return
        due = max(due, time.monotonic() - 1 / fps) + 1 / fps
        yield captured
