"""What a shared library asks of the loader, read from its bytes. Never imports torch.

Source: the System V ABI, chapters "Program Header" and "Dynamic Section"; symbol versions: the Linux Standard Base.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _VERSIONS, _VERSION_COUNT = 1, 5, 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class Wants:
    """What the loader must find before a library runs.

    Attributes:
        libraries: names of other libraries, in order.
        versions: symbol versions of them, such as `GLIBC_2.34`.
    """

    libraries: tuple[str, ...]
    versions: frozenset[str]


def wants_of(data: bytes) -> Wants:
    """Reads a 64-bit little-endian ELF file, as all platforms of the library have.

    Raises:
        ValueError: it is no such file, or is cut short.
    """
    try:
        return _wants(data)
    except (struct.error, KeyError) as error:
        raise ValueError("the file ends too early") from error


def _wants(data: bytes) -> Wants:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("it is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []  # of those that are loaded: address, offset in the file, bytes
    dynamic = None
    for at in range(table, table + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _LOAD:
            segments.append((address, offset, length))
        elif kind == _DYNAMIC:
            dynamic = offset, length
    if dynamic is None:
        return Wants((), frozenset())

    def offset_of(address: int) -> int:
        for start, offset, length in segments:
            if start <= address < start + length:
                return address - start + offset
        raise ValueError(f"address {address:#x} lies in no segment")

    entries = list(struct.iter_unpack("<QQ", data[dynamic[0] : dynamic[0] + dynamic[1] // 16 * 16]))
    values = dict(entries)
    strings = offset_of(values[_STRINGS])

    def text(at: int) -> str:
        end = data.find(b"\0", strings + at)
        return data[strings + at : end].decode("utf-8", "replace")

    libraries = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    versions = set()
    at = offset_of(values[_VERSIONS]) if _VERSIONS in values else 0
    for _ in range(values.get(_VERSION_COUNT, 0)):  # a list of libraries, and for each a list of versions
        _, count, _, first, following = struct.unpack_from("<HHIII", data, at)
        each = at + first
        for _ in range(count):
            _, _, _, name, next_one = struct.unpack_from("<IHHII", data, each)
            versions.add(text(name))
            each += next_one
        at += following
    return Wants(libraries, frozenset(versions))
