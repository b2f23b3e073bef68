"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
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


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` through `atomic_stream`.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with atomic_stream(path) as stream:
        stream.write(data)
