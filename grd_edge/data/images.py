"""Image files: found, decoded, hashed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grd_edge.data.headers import check_tiff_strips, open_image, read_header
from grd_edge.errors import InputError, require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files and subfolders directly in `folder`, each sorted by name; hidden ones are passed over.

    Raises:
        InputError: the folder is missing or unreadable, or a link to an image leads nowhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    if not entry.is_file():
                        raise InputError(f"the image {entry.path} is a link to nothing, or no file; remove it")
                    files.append(entry.name)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    return [folder / name for name in sorted(files)], [folder / name for name in sorted(folders)]


def image_files(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name.

    Raises:
        InputError: the folder is missing, unreadable, or holds no image.
    """
    files = listing(folder)[0]
    if not files:
        raise InputError(f"the folder {folder} holds no image; expected files ending in {', '.join(SUFFIXES)}")
    return files


def images_of(paths: Sequence[Path], *, recursive: bool = False) -> list[Path]:
    """Image files, and those in folders, sorted by name within a folder.

    Raises:
        InputError: a folder is missing, unreadable or holds no image.
    """
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
        elif recursive:
            files += _below(path) or image_files(path)
        else:
            files += image_files(path)
    return files


def _below(folder: Path) -> list[Path]:
    files, folders = listing(folder)
    return files + [file for inner in folders for file in _below(inner)]


def read_image(path: Path) -> np.ndarray:
    """Decoded image as stored: uint8, uint16 or float32, (H, W) or (H, W, 3) in RGB order.

    The EXIF orientation is not applied, since masks are drawn on the stored image; an alpha channel must be opaque.

    Raises:
        InputError: missing, truncated, not an image, or of a kind that is not taken.
        MissingExtraError: OpenCV is not installed.
    """
    path = Path(path)
    try:
        with open_image(path) as stream:
            data = stream.read()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); check or remove it") from error
    header = read_header(path, data)
    if data.startswith(b"\x93NUMPY"):
        return np.ascontiguousarray(np.load(io.BytesIO(data), allow_pickle=False))
    if data.startswith((b"II*\0", b"MM\0*")):
        check_tiff_strips(path, data)
    cv2 = require("cv2", extra="images", purpose="to decode images")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"the image {path} cannot be decoded ({error.err}); check or remove it") from error
    if image is None or image.shape[:2] != (header.h, header.w):
        raise InputError(f"the image {path} is damaged, or compressed in a way that is not taken; save it as PNG")
    if image.ndim == 2:
        return image
    opaque = 1 if image.dtype == np.float32 else np.iinfo(image.dtype).max
    if image.shape[2] == 4 and (image[:, :, 3] != opaque).any():
        raise InputError(f"the image {path} has transparent pixels; save it without an alpha channel")
    # OpenCV decodes to BGR, and grey with alpha to four channels; numpy would take as long to swap as to decode.
    if header.channels == 1:
        return np.ascontiguousarray(image[:, :, 0])
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Mask of an image: bool (H, W), True where the file is not 0 (defective, or of interest).

    Args:
        path: image file of any format; in colors, a pixel counts if any of them is not 0.
        shape: (H, W) of the image that it belongs to.

    Raises:
        InputError: not readable as an image, of another size, or 0 everywhere.
    """
    mask = read_image(path) != 0
    mask = mask.any(axis=2) if mask.ndim == 3 else mask
    if mask.shape != tuple(shape):
        raise InputError(
            f"the mask {path} is {mask.shape[0]}x{mask.shape[1]} px but its image is {shape[0]}x{shape[1]} px; "
            "draw it on the image as it is stored"
        )
    if not mask.any():
        raise InputError(f"the mask {path} is 0 everywhere; mark the pixels that count, or remove it")
    return mask


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open_image(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); check or remove it") from error
