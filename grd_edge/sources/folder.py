"""Images of folders, and of folders that images arrive in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from grd_edge.data.images import SUFFIXES, images_of, listing, read_image
from grd_edge.errors import InputError
from grd_edge.results import path_text
from grd_edge.sources import Captured, Note

POLL_S = 0.1
SETTLE_S = 0.3  # unchanged for so long, a file is taken to be whole
PATIENCE_S = 2.0  # unchanged for so long, one that does not decode is damaged
_SHARE = 5  # a scan is followed by a pause of so many times its duration: large folders cost little


def captured_from(path: Path) -> Captured:
    """An image file, or why it cannot be read.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    try:
        return Captured(path_text(path), read_image(path))
    except InputError as error:
        return Captured(path_text(path), None, str(error))


class ImageSource:
    """Images, and those in folders, in the order of `images_of`, once or again and again."""

    shape, lost = None, 0

    def __init__(self, paths: Sequence[Path], *, recursive: bool = False, loop: bool = False) -> None:
        self._files = images_of(paths, recursive=recursive)
        self._loop = loop
        self.names = [path_text(file) for file in self._files]

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        while True:
            for file in self._files:
                if stop.is_set():
                    return
                yield captured_from(file)
            if not self._loop:
                return

    def close(self) -> None:
        pass


class _Signature(NamedTuple):
    """What tells two contents of one path apart; not the inode, which a share may change when it comes back."""

    size: int
    mtime_ns: int


class _Pending(NamedTuple):
    """A file that may still be written to."""

    signature: _Signature
    since: float
    failed: bool = False


class WatchedSource:
    """Images of a folder and those that appear in it, each once, in the order they were written.

    A file is taken when it has not changed for `SETTLE_S`; one that does not decode then, when it has not for
    `PATIENCE_S`. A file that is replaced under its name by another is a new one. The folder may vanish and come back.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """

    shape, names, lost = None, None, 0

    def __init__(self, folder: Path, *, recursive: bool = False, on_note: Note = lambda text: None) -> None:
        listing(folder)
        self._folder, self._recursive, self._on_note = folder, recursive, on_note
        self._pending: dict[str, _Pending] = {}
        # path -> what was taken, and identity of the folder it was in
        self._taken: dict[str, tuple[_Signature, tuple[int, int]]] = {}

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        gone = False
        while not stop.is_set():
            began = time.monotonic()
            try:
                whole = self._whole_files()
            except OSError as error:
                whole = []
                if not gone:
                    self._on_note(f"the folder {self._folder} is gone ({error.strerror}); waiting for it")
                gone = True
            else:
                if gone:
                    self._on_note(f"the folder {self._folder} is back")
                gone = False
            pause = max(POLL_S, _SHARE * (time.monotonic() - began))
            for path in whole:
                if stop.is_set():
                    return
                captured = self._captured(path)
                if captured is not None:
                    yield captured
            stop.wait(pause)

    def close(self) -> None:
        pass

    def _captured(self, path: str) -> Captured | None:
        """The image; None when it does not decode and may not be whole yet."""
        pending = self._pending[path]
        captured = captured_from(Path(path))
        if captured.error and time.monotonic() - pending.since < PATIENCE_S:
            self._pending[path] = pending._replace(failed=True)
            return None
        del self._pending[path]
        self._taken[path] = pending.signature, self._identity
        return captured

    def _whole_files(self) -> list[str]:
        """Paths of files that are ready to be read, oldest first.

        Raises:
            OSError: the folder cannot be read.
        """
        status, now = os.stat(self._folder), time.monotonic()
        self._identity = status.st_dev, status.st_ino
        found = dict(self._scan(self._folder))
        # What was taken is forgotten with its file, but not when the folder itself was exchanged, as by unmounting it.
        for path in [p for p, (_, identity) in self._taken.items() if p not in found and identity == self._identity]:
            del self._taken[path]
        self._pending = {path: pending for path, pending in self._pending.items() if path in found}
        whole = []
        for path, signature in found.items():
            if path in self._taken and self._taken[path][0] == signature:
                self._taken[path] = signature, self._identity
                continue
            pending = self._pending.get(path)
            if pending is None or pending.signature != signature:
                self._pending[path] = _Pending(signature, now)
            elif now - pending.since >= (PATIENCE_S if pending.failed else SETTLE_S):
                whole.append(path)
        return sorted(whole, key=lambda path: (found[path].mtime_ns, path))

    def _scan(self, folder: Path | str) -> Iterator[tuple[str, _Signature]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir():
                        if self._recursive:
                            yield from self._scan(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        status = entry.stat()
                        yield entry.path, _Signature(status.st_size, status.st_mtime_ns)
                except FileNotFoundError:  # removed or renamed meanwhile
                    continue
