"""Files of results that grow row by row, and survive a killed writer. Needs neither torch nor OpenCV.

A row is one write to a file opened for appending, under a lock, and ends with a newline: two writers cannot mix their
rows, and a row without a newline is one that a killed writer did not finish.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from grd_edge.errors import InputError
from grd_edge.files import write_error

Format = Literal["csv", "jsonl"]
_TAIL_BYTES = 1 << 20


def path_text(path: str | Path) -> str:
    """A path as one line of valid text: bytes that are no UTF-8, and control characters, become escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def csv_line(values: Iterable[Any]) -> bytes:
    """One line of CSV; NaN and None are empty."""
    stream = io.StringIO()
    cells = ["" if value is None or value != value else value for value in values]
    csv.writer(stream, lineterminator="\n").writerow(
        [
            value.encode("unicode_escape").decode() if isinstance(value, str) and "\n" in value else value
            for value in cells
        ]
    )
    return stream.getvalue().encode("utf-8", "backslashreplace")


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A whole CSV file with its header."""
    return b"".join([csv_line(columns), *(csv_line(row[column] for column in columns) for row in rows)])


def plain(value: Any) -> Any:
    """`value` as JSON has it: NaN and infinity, which JSON lacks, are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def json_document(value: Any) -> bytes:
    """A whole JSON file; NaN and infinity are null."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON; NaN is null."""
    values = {key: None if value != value else value for key, value in row.items()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


class ResultFile:
    """A file of results open for appending; a context manager.

    Args:
        path: file, created with its folder where missing. What it holds stays.
        columns: keys of every row. The last one must not be empty in a row: by it a whole last row without its newline
            is told from a torn one.
        kind: `csv`, with a header written once, or `jsonl`.

    Attributes:
        removed: what was left of a row that an earlier writer did not finish, and was taken away; else empty.

    Raises:
        InputError: the file cannot be written, or was written with other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], kind: Format) -> None:
        self.path, self.columns, self.kind = Path(path), tuple(columns), kind
        self.removed = ""
        self._header = csv_line(columns) if kind == "csv" else b""
        self._stream = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._stream, fcntl.LOCK_EX)
            try:
                self._continue()
            finally:
                fcntl.flock(self._stream, fcntl.LOCK_UN)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise write_error(self.path, error) from error
            raise

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        stream, self._stream = self._stream, -1
        if stream >= 0:
            os.close(stream)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row whole, or not at all.

        Raises:
            InputError: no space, or another failure to write; the rows before stay.
        """
        values = {column: row[column] for column in self.columns}
        line = csv_line(values.values()) if self.kind == "csv" else json_line(values)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX)
            try:
                self._mend_tail()  # another process may have been killed within its row since
                self._write(line)
            finally:
                fcntl.flock(self._stream, fcntl.LOCK_UN)
        except OSError as error:
            raise write_error(self.path, error) from error

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._stream).st_size
        try:
            written = os.write(self._stream, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._stream, end)
            raise

    def _continue(self) -> None:
        """Checks the columns, and makes the file end with a whole row."""
        first = os.pread(self._stream, _TAIL_BYTES, 0)
        if len(first) < len(self._header) and self._header.startswith(first):
            os.ftruncate(self._stream, 0)  # an empty file, or a header that was not finished
            self._write(self._header)
            return
        head, newline, _ = first.partition(b"\n")
        self._check_columns(head, bool(newline))
        self._mend_tail()

    def _mend_tail(self) -> None:
        """Ends a whole last row, or removes half of one."""
        size = os.fstat(self._stream).st_size
        if size and os.pread(self._stream, 1, size - 1) == b"\n":
            return
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._stream, _TAIL_BYTES, start)
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return
        if self._whole(last):
            self._write(b"\n")
        else:
            os.ftruncate(self._stream, size - len(last))
            self.removed = last.decode("utf-8", "replace")

    def _check_columns(self, head: bytes, whole: bool) -> None:
        if self.kind == "csv":
            found = head.rstrip(b"\r") + b"\n" == self._header
        else:
            found = not head or not whole or self._whole(head)
        if not found:
            raise InputError(
                f"{self.path} holds other columns than {', '.join(self.columns)}; "
                "move it away, or choose another folder"
            )

    def _whole(self, line: bytes) -> bool:
        """Whether a line without its newline is a row."""
        try:
            text = line.decode("utf-8")
            if self.kind == "jsonl":
                return tuple(json.loads(text)) == self.columns
            cells = next(csv.reader([text], strict=True))
        except (ValueError, TypeError, csv.Error, StopIteration):
            return False
        return len(cells) == len(self.columns) and len(cells[-1]) == 12
