"""Files of torch.save, read without running anything they hold."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from grd_edge.errors import CheckpointError

# The pickle of a checkpoint names its tensors and holds no weights: 0.2 MB for a hundred layers with optimizer state.
MAX_PICKLE_BYTES = 64 << 20
EXPECTED = "expected a PyTorch checkpoint, epoch_XXXX.pt"
_TENSORFLOW_SUFFIXES = (".index", ".meta", ".pb", ".h5", ".hdf5", ".keras", ".ckpt")
_TENSORFLOW_FILES = ("saved_model.pb", "checkpoint", "keras_metadata.pb")


def read_torch_file(path: Path) -> Any:
    """What `path` holds: containers, numbers, strings and tensors on the CPU, left on the disk until they are used.

    Raises:
        CheckpointError: missing, of another format, damaged, compressed, or holding any other Python object.
    """
    path = Path(path)
    try:
        _check_archive(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise CheckpointError(
                f"{path} holds Python objects such as {named[1]}, which could run code when read; expected tensors, "
                "numbers and containers only, as the authors' code saves them"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as tensors, numbers and containers ({type(error).__name__}); it is damaged or "
            f"holds other objects, {EXPECTED}"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses all that is not a plain archive of torch.save, before anything is unpickled."""
    if path.is_dir():
        foreign = "a TensorFlow model" if any((path / name).exists() for name in _TENSORFLOW_FILES) else "a folder"
        raise CheckpointError(f"{path} is {foreign}; {EXPECTED}")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; {EXPECTED}")
    with path.open("rb") as stream:
        head = stream.read(9)
    if not head.startswith(b"PK"):
        raise CheckpointError(f"{path} is {_other_format(path, head)}; {EXPECTED}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.partition("/")[2]: entry for entry in entries}
            if "data.pkl" not in names or "constants.pkl" in names:
                kind = "a TorchScript module" if "constants.pkl" in names else "an archive of another program"
                raise CheckpointError(f"{path} is {kind}; {EXPECTED}")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{path} is compressed, which torch.save never does; {EXPECTED}")
            size = names["data.pkl"].file_size
            if size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path} describes its tensors in {size >> 20} MiB, more than {MAX_PICKLE_BYTES >> 20}; {EXPECTED}"
                )
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); copy it again from its source") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum; copy it again from its source")


def _other_format(path: Path, head: bytes) -> str:
    if not head:
        return "empty"
    if head[8:9] == b"{":
        return "a safetensors file, which needs no import if grd-edge wrote it"
    if head.startswith(b"\x89HDF") or path.suffix in _TENSORFLOW_SUFFIXES or ".data-0" in path.name:
        return "a TensorFlow checkpoint, of another network of the authors"
    if head.startswith(b"\x80"):
        return "a bare pickle or a file of torch before 1.6, either of which could run code when read"
    return "of another format"
