"""Image files: found, decoded, hashed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

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


def read_image(path: Path) -> np.ndarray:
    """Decoded image as stored: uint8 or uint16, (H, W) or (H, W, 3) in RGB order; `.npy` may hold float32 too.

    Raises:
        InputError: missing, truncated, not an image, or of a depth or channel count that is not taken.
        MissingExtraError: OpenCV is not installed.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            return _checked(path, np.load(path, allow_pickle=False))
        data = np.fromfile(path, np.uint8)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the image {path} cannot be read ({error}); check or remove it") from error
    cv2 = require("cv2", extra="images", purpose="to decode images")
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise InputError(f"the file {path} is not an image or is damaged ({data.size} bytes); check or remove it")
    if image.ndim == 3:
        # Opaque alpha carries nothing; OpenCV decodes to BGR.
        image = np.ascontiguousarray(image[:, :, 2::-1]) if image.shape[2] in (3, 4) else image
    return _checked(path, image)


def _checked(path: Path, image: np.ndarray) -> np.ndarray:
    shape_ok = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))
    if not shape_ok or image.size == 0:
        raise InputError(f"the image {path} has shape {image.shape}; expected H x W or H x W x 3")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"the image {path} holds {image.dtype}; expected 8 or 16 bit unsigned integers")
    return image


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
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); check or remove it") from error
