"""Replacing a folder so that nobody ever sees half of one, whoever else writes it and whenever a writer is killed.

A writer works in a folder of its own beside the target, `.<name>.<8 characters>.tmp`, and holds a lock on the file
`lock` in it for as long as it lives. What a killed writer left is recognized by a lock that nobody holds, and removed
by the next writer. Complete folders take their place by one exchange of two names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK, _OLD = "lock", "old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ATTEMPTS = 100


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target` (but for its lock), removed with all it holds at the end.

    Raises:
        OSError: the folder of `target` cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        _remove(folder, target)
        os.close(lock)


def put_in_place(new: Path, target: Path, folder: Path) -> None:
    """Puts the folder `new` in the place of `target`, whose old content ends in the staging folder.

    One step where the system can exchange two names. Else the old one steps aside first, into `folder`; from there it
    is put back when the second step fails, or by the next writer when this one is killed in between.

    Raises:
        OSError: the folder of `target` cannot be written, or other writers never pause.
    """
    for attempt in range(_ATTEMPTS):
        try:
            if not target.exists():
                os.rename(new, target)
                return
            if _exchange(new, target):
                return
            os.rename(target, folder / f"{_OLD}{attempt:02}")
        except OSError as error:
            # Another writer was quicker: `target` came or went since it was looked at.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or attempt == _ATTEMPTS - 1:
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot.

    Raises:
        FileNotFoundError: one of them is gone.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) == errno.ENOENT:
        raise FileNotFoundError(number, os.strerror(number), str(b))
    return False


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new staging folder and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        lock = None
        # Until the lock is held another writer takes this folder for a leftover; then begin again.
        try:
            os.chmod(folder, 0o755)
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with contextlib.suppress(OSError):  # a file system without locks: nothing is ever cleared there
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.stat(folder / _LOCK)
            return folder, lock
        except FileNotFoundError:
            pass
        except OSError:  # no space for the lock
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None:
            os.close(lock)


def _clear_leftovers(target: Path) -> None:
    """Removes the staging folders of `target` whose writers are dead, and puts back what one had set aside."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}\.tmp")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _clear_leftover(Path(entry.path), target)


def _clear_leftover(folder: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # killed before it had a lock
        return
    with contextlib.suppress(OSError):
        lock = os.open(folder / _LOCK, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder, target)
        finally:
            os.close(lock)


def _remove(folder: Path, target: Path) -> None:
    """Removes a staging folder, its lock last, so that half of one is still recognized; what stepped aside and was
    not replaced goes back."""
    for _ in range(_ATTEMPTS):  # thresholds may still arrive in an old bundle
        with contextlib.suppress(OSError):
            aside = sorted(folder.glob(f"{_OLD}[0-9][0-9]"))
            if aside and not target.exists():
                os.rename(aside[-1], target)
            for entry in folder.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            shutil.rmtree(folder)
            return
