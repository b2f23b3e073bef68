"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grd_edge.errors import InputError


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_error(path: Path, error: OSError) -> InputError:
    """What a user is told when `path` cannot be written."""
    return InputError(
        f"{path} cannot be written ({error.strerror}); free space or choose another folder, "
        "what was there before is unchanged"
    )


def check_parent(path: Path) -> None:
    """Before work whose result goes to `path`: that a folder can hold it, as far as can be told without writing.

    Raises:
        InputError: what should be a folder on the way is a file, or the nearest folder there is cannot be written.
    """
    nearest = next(each for each in Path(path).absolute().parents if each.exists())
    if not nearest.is_dir():
        raise InputError(f"{path} cannot be written, as {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written, as {nearest} is not open to you; choose another folder")


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Failures to write are told of `path`, not of the folder that it is made in.

    Raises:
        InputError: in place of an OSError, or of an InputError that one caused.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise write_error(path, error.__cause__) from error.__cause__
        raise


@contextlib.contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path` when the block ends: written beside it, flushed to the disk, renamed.

    When the block raises or the disk is full, the old file stays and no new one is left.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is private by default; results are ordinary files
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def locked_file(path: Path, busy: str) -> BinaryIO:
    """A file open and locked until it is closed, or until the process ends in whatever way; its folder is made.

    Args:
        busy: the sentence where another process holds it.

    Raises:
        InputError: `busy`, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "ab")  # noqa: SIM115 (held as long as the lock)
    except OSError as error:
        raise write_error(path.parent, error) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise InputError(busy) from error
    return stream


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` through `atomic_stream`.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with atomic_stream(path) as stream:
        stream.write(data)
