"""Raw pixels from stdin, a pipe or a file."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Iterator

import numpy as np

from grd_edge.errors import InputError
from grd_edge.sources import Captured

_MOST_PX = 65536
_POLL_S = 0.2


def raw_format(text: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from `HxW[xC][:uint8|uint16]`; C is 1 or 3, uint16 of this machine's byte order.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)(?:x([13]))?(?::(uint8|uint16))?", text, re.ASCII)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not found or not all(1 <= side <= _MOST_PX for side in sides):
        raise InputError(
            f"--raw {text!r} is no frame format; write it as HxW, HxWx3 or HxW:uint16, such as 480x640, with sides of "
            f"1 to {_MOST_PX} px"
        )
    return sides if found[3] in (None, "1") else (*sides, 3), np.dtype(found[4] or "uint8")


class RawSource:
    """Frames as rows of pixels without a header, one after another.

    Args:
        text: path of a file or pipe, or - for stdin.
        layout: see `raw_format`.

    Raises:
        InputError: no layout, or the file cannot be opened.
    """

    names, lost = None, 0

    def __init__(self, text: str, layout: str) -> None:
        if not layout:
            raise InputError("raw frames come without their size; give it with --raw, such as --raw 480x640")
        self.shape, self._dtype = raw_format(layout)
        self._name = "stdin" if text == "-" else text
        try:
            self._handle = os.dup(0) if text == "-" else os.open(text, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self._name} cannot be read ({error.strerror}); check the path") from error

    def frames(self, stop: threading.Event) -> Iterator[Captured]:
        number = 0
        while not stop.is_set():
            frame, name = np.empty(self.shape, self._dtype), f"{self._name}#{number:06d}"
            found = self._fill(memoryview(frame).cast("B"), stop)
            if found == frame.nbytes:
                yield Captured(name, frame)
            elif found and not stop.is_set():
                yield Captured(
                    name, None, f"{name} ends after {found} of {frame.nbytes} bytes; check --raw and what writes frames"
                )
            if found < frame.nbytes:
                return
            number += 1

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _fill(self, buffer: memoryview, stop: threading.Event) -> int:
        """Bytes read: fewer than the buffer takes at the end, or when it is time to stop."""
        found = 0
        while found < len(buffer) and not stop.is_set():
            if not select.select([self._handle], [], [], _POLL_S)[0]:
                continue
            try:
                count = os.readv(self._handle, [buffer[found:]])
            except OSError as error:
                raise InputError(
                    f"{self._name} cannot be read any more ({error.strerror}); check what writes it"
                ) from error
            if not count:
                break
            found += count
        return found
