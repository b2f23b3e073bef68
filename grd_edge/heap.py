"""Memory that a training step frees stays with the process, so that the next step need not fetch it again.

glibc returns every block of 32 MiB and more to the system at once, and many smaller ones; each is then zeroed page by
page when it is allocated anew. A training step on a CPU allocates the same hundreds of such blocks every time, and a
third of its time went there (docs/design/training-step.md). Results do not change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_DYNAMIC_MAX = 32 << 20  # where glibc's own adjustment of the threshold ends


@contextmanager
def keep_heap(wanted: bool = True) -> Iterator[None]:
    """Freed blocks of any size are kept within the block; does nothing where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not wanted or not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, _DYNAMIC_MAX)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _DYNAMIC_MAX)
        libc.malloc_trim(ctypes.c_size_t(0))
