"""Frames of video files, cameras and network streams, by OpenCV."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from grd_edge.errors import GrdError, InputError, require
from grd_edge.results import path_text
from grd_edge.sources import Captured, Note

_POLL_S = 0.2
_FRAME_COUNT = 7  # CAP_PROP_FRAME_COUNT, without importing OpenCV
_BACKOFF_S = 0.5, 5.0  # first and longest pause between two tries to reconnect


def open_capture(device: int | str) -> Any:
    """OpenCV's capture of a file, camera or URL; whether it opened is asked of it.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what failed is said in one sentence
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    return require("cv2", extra="images", purpose="to read videos and cameras").VideoCapture(device)


def _read(capture: Any) -> np.ndarray | None:
    """The next frame in RGB order."""
    cv2 = require("cv2", extra="images", purpose="to read videos and cameras")
    try:
        read, image = capture.read()
    except cv2.error:
        return None
    if not read or image is None:
        return None
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class VideoSource:
    """Frames of a video file, once or again and again.

    Raises:
        InputError: it does not open, or holds no frame.
    """

    names, lost = None, 0

    def __init__(self, path: Path, *, loop: bool = False, on_note: Note = lambda text: None) -> None:
        self._path, self._loop, self._on_note = path, loop, on_note
        self._capture = open_capture(str(path))
        first = _read(self._capture)
        if first is None:
            self.close()
            raise InputError(
                f"{path} does not open as a video, or holds no frame; check it, or convert it with a video tool"
            )
        self.shape = first.shape
        self._first: np.ndarray | None = first

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        number, first, name = 0, self._first, path_text(self._path)
        self._first = None
        while True:
            told = int(self._capture.get(_FRAME_COUNT))
            frame, before = first, number
            while frame is not None and not stop.is_set():
                yield Captured(f"{name}#{number:06d}", frame)
                number += 1
                frame = _read(self._capture)
            if stop.is_set():
                return
            if number - before < told:
                self._on_note(f"{name} ended after {number - before} of {told} frames; it may be damaged")
            if not self._loop:
                return
            self._capture.release()
            self._capture = open_capture(str(self._path))
            first = _read(self._capture)
            if first is None:
                raise InputError(f"{name} does not open any more; check it")

    def close(self) -> None:
        self._capture.release()


class CameraSource:
    """The newest frame of a camera or network stream, read by a thread; those it replaces are counted in `lost`.

    When the camera vanishes, it is reported and opened again and again, with growing pauses.

    Args:
        device: number, path or URL.
        reconnect_s: how long without a frame until it is given up; 0: at once.

    Raises:
        InputError: it gives no frame now.
    """

    names = None

    def __init__(self, device: int | str, *, reconnect_s: float = 60.0, on_note: Note = lambda text: None) -> None:
        self._device, self._reconnect_s, self._on_note = device, reconnect_s, on_note
        self._name = f"camera {device}" if isinstance(device, int) else _without_password(device)
        self._capture = open_capture(device)
        self._closing, self._changed = threading.Event(), threading.Condition()
        self._failure: GrdError | None = None
        self.lost = 0
        self._newest = _read(self._capture)
        if self._newest is None:
            self._capture.release()
            raise InputError(f"{self._name} gives no frame; check that it is connected, free, and that you may use it")
        self.shape = self._newest.shape
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        self._thread.start()
        number = 0
        while not stop.is_set():
            with self._changed:
                if self._newest is None and self._failure is None:
                    self._changed.wait(_POLL_S)
                frame, self._newest = self._newest, None
            if frame is not None:
                yield Captured(f"{self._name}#{number:06d}", frame)
                number += 1
            elif self._failure is not None:
                raise self._failure

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2.0)  # a read that hangs ends with the process

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                frame = _read(self._capture)
                if frame is None:
                    frame = self._reconnected()
                with self._changed:
                    self.lost += self._newest is not None
                    self._newest = frame
                    self._changed.notify()
        except GrdError as error:
            with self._changed:
                self._failure = error
                self._changed.notify()
        finally:
            self._capture.release()

    def _reconnected(self) -> np.ndarray | None:
        """The first frame of a camera that came back; None when it is time to end.

        Raises:
            InputError: it stayed away.
        """
        self._on_note(f"{self._name} gives no frame any more; opening it again for up to {self._reconnect_s:g} s")
        pause, end = _BACKOFF_S[0], time.monotonic() + self._reconnect_s
        while time.monotonic() < end:
            self._capture.release()
            if self._closing.wait(min(pause, max(0.0, end - time.monotonic()))):
                return None
            self._capture = open_capture(self._device)
            frame = _read(self._capture)
            if frame is not None:
                self._on_note(f"{self._name} is back")
                return frame
            pause = min(2 * pause, _BACKOFF_S[1])
        raise InputError(
            f"{self._name} gave no frame for {self._reconnect_s:g} s; check its cable and power, or wait longer with "
            "--reconnect-s"
        )


def _without_password(url: str) -> str:
    """A URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url
