"""Size, channels and depth of an image file from its header, and whether the file is whole, without decoding it.

Decoders pass over much: depending on its version OpenCV fills the rest of a truncated JPEG with grey; it takes the
first of several pages, and turns a TIFF by its tag. What would silently become another image is refused here.

Sources: W3C PNG Recommendation; ITU T.81 (JPEG); Microsoft BITMAPINFOHEADER; TIFF revision 6.0; numpy.lib.format.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from grd_edge.errors import InputError

TAIL_BYTES = 1024  # where the end mark of a whole file is looked for first


class Header(NamedTuple):
    """What an image decodes to: H and W in px, 1 or 3 channels, and `uint8`, `uint16` or `float32`."""

    h: int
    w: int
    channels: int
    dtype: str


class _Unusable(Exception):
    """Why a file is refused: the end of a sentence that begins with the image's name."""


def open_image(path: Path) -> BinaryIO:
    """Binary stream of an image file; opening a pipe would wait for a writer, and a device may never end.

    Raises:
        InputError: not a regular file.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"the image {path} is a folder, a pipe or a device; give a file, or remove it")
    return open(handle, "rb")


def read_header(path: Path, data: bytes | None = None) -> Header:
    """Header of an image file; only its beginning and its end are read.

    Args:
        data: the file's bytes where they are at hand.

    Raises:
        InputError: missing, of no known format, truncated, or of a kind that is not taken.
    """
    try:
        if data is not None:
            return _header(io.BytesIO(data), len(data))
        with open_image(path) as stream:
            return _header(stream, stream.seek(0, io.SEEK_END))
    except _Unusable as reason:
        raise InputError(f"the image {path} {reason}") from None
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); check or remove it") from error
    except (struct.error, ValueError, LookupError) as error:
        raise InputError(f"the image {path} has a damaged header; check or remove it") from error


def _header(stream: BinaryIO, size: int) -> Header:
    stream.seek(0)
    magic = stream.read(8)
    for start, of_format in _FORMATS.items():
        if magic.startswith(start):
            header = of_format(stream, size)
            if header.h < 1 or header.w < 1:
                raise _Unusable(f"has no pixels ({header.h}x{header.w}); check or remove it")
            return header
    raise _Unusable(f"is not an image or is damaged ({size} bytes); expected PNG, JPEG, BMP, TIFF or npy")


def _need(stop: int, size: int) -> None:
    if stop > size:
        raise _Unusable(f"is truncated ({size} of at least {stop} bytes); copy it again or remove it")


def _read(stream: BinaryIO, at: int, count: int) -> bytes:
    stream.seek(at)
    data = stream.read(count)
    if len(data) < count:
        _need(at + count, at + len(data))
    return data


def _need_end_mark(stream: BinaryIO, size: int, mark: bytes, start: int) -> None:
    """Mostly the mark is at the very end; what else may follow it does no harm."""
    for begin in (max(start, size - TAIL_BYTES), start):
        stream.seek(begin)
        if mark in stream.read():
            return
    raise _Unusable(f"is truncated ({size} bytes, without an end mark); copy it again or remove it")


def _png(stream: BinaryIO, size: int) -> Header:
    name, w, h, bits, color = struct.unpack(">4sIIBB", _read(stream, 12, 14))
    if name != b"IHDR":
        raise ValueError(name)
    _need_end_mark(stream, size, b"IEND\xaeB`\x82", 26)
    # Color types 0 and 4 are grey; a palette is decoded to colors, whatever they are.
    return Header(h, w, 1 if color in (0, 4) else 3, "uint16" if bits == 16 else "uint8")


def _jpeg(stream: BinaryIO, size: int) -> Header:
    at, found = 2, None
    while True:
        mark, code = _read(stream, at, 2)
        if mark != 0xFF:
            raise ValueError(at)
        if code == 0xFF:  # fill byte
            at += 1
            continue
        if code == 0xDA:
            break
        if code == 0x01 or 0xD0 <= code <= 0xD8:  # without a payload
            at += 2
            continue
        (length,) = struct.unpack(">H", _read(stream, at + 2, 2))
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            found = struct.unpack(">BHHB", _read(stream, at + 4, 6))
        at += 2 + length
    bits, h, w, components = found or (0, 0, 0, 0)
    if found and components not in (1, 3):
        raise _Unusable(f"is a JPEG of {components} components (CMYK?); save it as grey or RGB")
    if found and bits != 8:
        raise _Unusable(f"is a JPEG of {bits} bit; save it as 8 bit, or as PNG")
    # Inside coded data 0xFF is followed by 0 or a restart mark, so the end mark cannot occur there.
    _need_end_mark(stream, size, b"\xff\xd9", at)
    return Header(h, w, components, "uint8")


def _bmp(stream: BinaryIO, size: int) -> Header:
    pixels, head = struct.unpack("<II", _read(stream, 10, 8))
    colors_used = compression = 0
    if head == 12:
        w, h, _, bits = struct.unpack("<HHHH", _read(stream, 18, 8))
    else:
        w, h, _, bits, compression, stored = struct.unpack("<iiHHII", _read(stream, 18, 20))
        (colors_used,) = struct.unpack("<I", _read(stream, 46, 4))
    h = abs(h)  # negative: rows from top to bottom
    _need(pixels + (stored if compression in (1, 2) else (w * bits + 31) // 32 * 4 * h), size)
    grey = False
    if bits <= 8:
        entry = 3 if head == 12 else 4
        count = min(colors_used or 256, 1 << bits)
        palette = np.frombuffer(_read(stream, 14 + head, count * entry), np.uint8).reshape(count, entry)
        grey = bool((palette[:, :1] == palette[:, :3]).all())
    return Header(h, w, 1 if grey else 3, "uint8")


def _tiff(stream: BinaryIO, size: int) -> Header:
    order = "<" if _read(stream, 0, 2) == b"II" else ">"
    (at,) = struct.unpack(order + "I", _read(stream, 4, 4))
    pages, seen = [], set()
    while at and at not in seen:
        seen.add(at)
        tags, at = _tiff_directory(stream, at, order)
        if not tags.get(254, (0,))[0] & 5:  # a thumbnail or a transparency mask
            pages.append(tags)
    if len(pages) != 1:
        raise _Unusable(f"is a TIFF of {len(pages)} pages; save each page as a file of its own")
    tags = pages[0]
    for offsets, counts in ((273, 279), (324, 325)):
        for start, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            _need(start + count, size)

    def tag(number: int, default: int) -> int:
        return tags.get(number, (default,))[0]

    if tag(274, 1) != 1:
        raise _Unusable(
            f"is a TIFF with the orientation tag {tag(274, 1)}; save it as it is to be seen, without the tag"
        )
    bits, samples, photometric = tag(258, 1), tag(277, 1), tag(262, 1)
    number = {1: "unsigned", 2: "signed", 3: "float"}.get(tag(339, 1), "unknown")
    dtype = {(1, "unsigned"): "uint8", (8, "unsigned"): "uint8", (16, "unsigned"): "uint16", (32, "float"): "float32"}
    if (bits, number) not in dtype:
        raise _Unusable(f"is a TIFF of {bits} bit {number} numbers; save it as 8 or 16 bit unsigned integers")
    if samples > 1 and tag(284, 1) != 1:
        raise _Unusable("is a TIFF that holds its channels one after the other; save it with interleaved channels")
    # libtiff inverts a white zero for 8 bit only.
    if (photometric, samples) not in ((0, 1), (1, 1), (2, 3), (2, 4), (3, 1), (6, 3)) or (
        photometric == 0 and bits > 8
    ):
        raise _Unusable(
            f"is a TIFF of {samples} samples with the color space {photometric}; save it as grey (black is 0) or RGB"
        )
    return Header(tag(257, 0), tag(256, 0), 1 if photometric < 2 else 3, dtype[bits, number])


def _tiff_directory(stream: BinaryIO, at: int, order: str) -> tuple[dict[int, tuple[int, ...]], int]:
    """Integer tags of a directory, and where the next one begins (0: nowhere)."""
    (count,) = struct.unpack(order + "H", _read(stream, at, 2))
    data = _read(stream, at + 2, 12 * count + 4)
    tags = {}
    for entry in range(0, 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if kind not in (1, 3, 4) or tag not in _TIFF_TAGS:
            continue
        letter = {1: "B", 3: "H", 4: "I"}[kind]
        length = number * struct.calcsize(letter)
        if length <= 4:
            values = data[entry + 8 : entry + 8 + length]
        else:
            values = _read(stream, struct.unpack_from(order + "I", data, entry + 8)[0], length)
        tags[tag] = struct.unpack(f"{order}{number}{letter}", values)
    return tags, struct.unpack_from(order + "I", data, 12 * count)[0]


def check_tiff_strips(path: Path, data: bytes) -> None:
    """Raises InputError when a strip or tile of a Deflate TIFF does not decompress: decoders would give zeros for it.

    LZW and uncompressed data hold no checksum, so that damage inside them is not to be seen.
    """
    stream, order = io.BytesIO(data), "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack(order + "I", _read(stream, 4, 4))
    tags = _tiff_directory(stream, at, order)[0]
    if tags.get(259, (1,))[0] not in (8, 32946):  # Deflate, by either of its numbers
        return
    try:
        for offsets, counts in ((273, 279), (324, 325)):
            for start, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
                zlib.decompress(data[start : start + count])
    except zlib.error as error:
        raise InputError(f"the image {path} is damaged ({error}); copy it again or remove it") from error


# Subfile, size, bits, compression, color space, strips, orientation, samples, planes, tiles, sample format.
_TIFF_TAGS = frozenset({254, 256, 257, 258, 259, 262, 273, 274, 277, 279, 284, 324, 325, 339})


def _big_tiff(stream: BinaryIO, size: int) -> Header:
    raise _Unusable("is a BigTIFF; save it as TIFF or PNG")


def _npy(stream: BinaryIO, size: int) -> Header:
    stream.seek(0)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # numpy evaluates the header as Python, which can fail in every way
        raise ValueError(error) from error
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise _Unusable(f"has shape {shape}; expected H x W or H x W x 3")
    if dtype not in (np.uint8, np.uint16, np.float32):
        raise _Unusable(f"holds {dtype}; expected 8 or 16 bit unsigned integers, or float32 in [0, 1]")
    _need(stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)), size)
    return Header(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, dtype.name)


_FORMATS: dict[bytes, Callable[[BinaryIO, int], Header]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"II+\0": _big_tiff,
    b"MM\0+": _big_tiff,
    b"\x93NUMPY": _npy,
}
