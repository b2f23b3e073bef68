"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from grd_edge.errors import InputError


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_error(path: Path, error: OSError) -> InputError:
    """What a user is told when `path` cannot be written."""
    return InputError(
        f"{path} cannot be written ({error.strerror}); free space or choose another folder, "
        "what was there before is unchanged"
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside `path`, flushes to the disk, then renames; on failure the old file stays and no new one is left.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
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
