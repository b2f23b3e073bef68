"""Bundles: written atomically, opened with every rule checked. Never imports torch.

Source of the format and the rules: docs/bundle.md. The same rules are implemented in kernels/runtime/bundle.cpp.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle_schema import (
    DECISION,
    HEX,
    MANIFEST,
    SCHEMA,
    check_decision,
    check_manifest,
    regions_of,
)
from grd_edge.errors import BundleError, InputError
from grd_edge.files import sha256_hex, write_atomically, writing_to
from grd_edge.patches import PatchGrid
from grd_edge.regions import WHOLE_FRAME, Regions, mask_from_pgm
from grd_edge.staging import put_in_place, staging

MODEL = "models/fp32.onnx"
RANGES = "models/ranges.json"
FINE_TUNED = "models/fine-tuned.onnx"  # what the ranges belong to, where it is not MODEL
ROI = "roi.pgm"
MAX_JSON_BYTES = 1 << 20
UNSEALED = "0" * 64

_ATTEMPTS = 20
_MAX_LEVELS = 16
_BUILD = "build one with: grd-edge build bundle"
_REBUILD = "copy the bundle again or rebuild it with: grd-edge build bundle"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `files` maps relative paths to the bytes that were hashed."""

    path: Path
    manifest: dict[str, Any]
    decision: dict[str, Any] | None
    files: dict[str, bytes]

    @property
    def seal(self) -> str:
        return self.manifest["seal"]

    @property
    def head(self) -> str:
        """What its graph yields, one of `grd_edge.heads.HEADS`."""
        return self.manifest["head"]

    @property
    def grid(self) -> PatchGrid:
        g = self.manifest["geometry"]
        return PatchGrid(g["patch_h"], g["patch_w"], g["stride_y"], g["stride_x"], g["padding"])

    @property
    def threshold(self) -> float | None:
        """Threshold of the one region; None while the bundle has no decision.json, and when there are several."""
        return self.thresholds[0] if len(self.thresholds) == 1 else None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One threshold per region; empty while the bundle has no decision.json."""
        return tuple(region["threshold"] for region in self.decision["regions"]) if self.decision else ()

    @property
    def regions(self) -> Regions:
        """The regions that the thresholds belong to; the whole frame while the bundle has no decision.json."""
        return regions_of(self.decision) if self.decision else WHOLE_FRAME

    @property
    def roi(self) -> np.ndarray | None:
        """Mask of interest, (H, W) uint8, nonzero = of interest; None: the whole frame."""
        name = self.manifest.get("roi")
        return mask_from_pgm(self.files[name]) if name else None


# ----------------------------------------------------------------------------------------------- writing


def sealed(mapping: dict[str, Any]) -> bytes:
    """JSON bytes of `mapping` with its `seal` filled in (docs/bundle.md, rule 2)."""
    text = json.dumps({**mapping, "seal": UNSEALED}, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    if text.count(UNSEALED) != 1:
        raise BundleError("64 zeros occur in the bundle's description by themselves; they are reserved for the seal")
    return text.replace(UNSEALED, sha256_hex(text.encode())).encode()


def write_bundle(
    path: Path,
    manifest: dict[str, Any],
    files: dict[str, bytes],
    *,
    check: Callable[[Path], None] | None = None,
) -> Bundle:
    """Writes a bundle without thresholds; an older bundle at `path` stays until the new one is complete.

    Args:
        path: folder that ends in `.grdb`.
        manifest: what docs/bundle.md lists for bundle.json, without `schema`, `files` and `seal`.
        files: relative path -> bytes.
        check: called with the complete new bundle before it takes its place; an exception keeps the old one.

    Returns:
        The bundle as read back and verified.

    Raises:
        InputError: `path` is something else than a bundle, or cannot be written.
        BundleError: the description breaks a rule of the format.
    """
    path = Path(path)
    if path.suffix != ".grdb":
        raise InputError(f"a bundle's name ends in .grdb, found {path.name!r}; call it {path.name}.grdb")
    if path.is_symlink() or (path.exists() and not (path / MANIFEST).is_file()):
        raise InputError(f"{path} exists and is not a bundle; choose another name or remove it")
    listed = {name: {"sha256": sha256_hex(data), "bytes": len(data)} for name, data in sorted(files.items())}
    seal_me = {"schema": SCHEMA, **manifest, "files": listed}
    with writing_to(path), staging(path) as folder:
        new = folder / path.name
        new.mkdir()
        for name, data in {MANIFEST: sealed(seal_me), **files}.items():
            write_atomically(new / name, data)
        read_bundle(new)
        if check:
            check(new)
        put_in_place(new, path, folder)
    return read_bundle(path)


def copied_bundle(source: Path, path: Path) -> Bundle:
    """Writes a bundle of the same content, thresholds included; an older one at `path` stays until it is complete.

    Raises:
        BundleError: there is no bundle at `source`, or it breaks a rule of the format.
        InputError: as `write_bundle`.
    """
    bundle = read_bundle(source)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    decision = {k: v for k, v in (bundle.decision or {}).items() if k not in ("schema", "bundle", "seal")}

    def decide(folder: Path) -> None:
        if decision:
            write_decision(folder, decision)

    return write_bundle(path, manifest, bundle.files, check=decide)


def write_decision(path: Path, decision: dict[str, Any], *, of: Bundle | None = None) -> Bundle:
    """Replaces the thresholds of the bundle at `path`, atomically, without touching anything else.

    Args:
        decision: what docs/bundle.md lists for decision.json, without `schema`, `bundle` and `seal`.
        of: the bundle that the thresholds were fitted on; None: whatever lies at `path`.

    Raises:
        BundleError: there is no bundle at `path`, or the decision breaks a rule of the format.
        InputError: it cannot be written, or another process has replaced the bundle meanwhile.
    """
    path = Path(path)
    replaced = f"{path} was replaced by another process while its thresholds were made; fit them again"
    root = _opened(path)
    try:
        try:
            bundle = _read_folder(root, path)
        except BundleError as error:
            if _moved(root, path):  # and is being removed while it is read
                raise InputError(replaced) from error
            raise
        data = sealed({"schema": SCHEMA, "bundle": bundle.seal, **decision})
        with _sentence(f"{path}: {DECISION}"):
            check_decision(_unsealed(data, DECISION), bundle.seal)
        if of is None or of.seal == bundle.seal:
            # Into the folder that was read, wherever it is by now: thresholds never meet another model.
            with writing_to(path), staging(Path(os.path.realpath(path))) as folder:
                write_atomically(folder / DECISION, data)
                with contextlib.suppress(FileNotFoundError):  # the folder is gone, as is told below
                    os.replace(folder / DECISION, DECISION, dst_dir_fd=root)
        after = read_bundle(path)
        if _moved(root, path) or (of is not None and of.seal != bundle.seal):
            raise InputError(replaced)
        return after
    finally:
        os.close(root)


# ----------------------------------------------------------------------------------------------- reading


def read_bundle(path: Path) -> Bundle:
    """Opens and verifies a bundle: every rule of docs/bundle.md.

    Raises:
        BundleError: one sentence with the rule that is broken and the way out.
    """
    path = Path(path)
    for _ in range(_ATTEMPTS):
        root = _opened(path)
        try:
            return _read_folder(root, path)
        except BundleError:
            # A writer may have put another bundle here and removed this one while it was read.
            if not _moved(root, path):
                raise
        finally:
            os.close(root)
    raise BundleError(f"{path} is replaced again and again while it is read; let its writers finish")


def _opened(path: Path) -> int:
    """Descriptor of a bundle's folder."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"there is no bundle at {path} ({error.strerror}); {_BUILD}") from error
    return root


def _moved(root: int, path: Path) -> bool:
    """Whether `path` names another folder than the one that was opened."""
    try:
        return not os.path.samestat(os.stat(path), os.fstat(root))
    except OSError:
        return False


def _read_folder(root: int, path: Path) -> Bundle:
    """The bundle in an open folder; `path` is for messages."""
    try:
        os.stat(MANIFEST, dir_fd=root, follow_symlinks=False)
    except OSError as error:
        raise BundleError(f"there is no bundle at {path}, it holds no {MANIFEST}; {_BUILD}") from error
    manifest = _unsealed(_read(root, MANIFEST, path, MAX_JSON_BYTES), f"{path}: {MANIFEST}")
    with _sentence(f"{path}: {MANIFEST}"):
        check_manifest(manifest)
    decision = None
    names = _listing(root, path, manifest["files"])
    if DECISION in names:
        decision = _unsealed(_read(root, DECISION, path, MAX_JSON_BYTES), f"{path}: {DECISION}")
        with _sentence(f"{path}: {DECISION}"):
            check_decision(decision, manifest["seal"])
    files = {}
    for name, entry in manifest["files"].items():
        data = _read(root, name, path, entry["bytes"], exact=True)
        found = sha256_hex(data)
        if found != entry["sha256"]:
            raise BundleError(
                f"{path}: {name} has sha256 {found[:12]}…, expected {entry['sha256'][:12]}…: it was changed after "
                f"the bundle was written; {_REBUILD}"
            )
        files[name] = data
    if "roi" in manifest:
        with _sentence(f"{path}: {manifest['roi']}"):
            mask_from_pgm(files[manifest["roi"]])
    return Bundle(path, manifest, decision, files)


@contextlib.contextmanager
def _sentence(where: str):
    """Turns a broken schema rule into one sentence that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{where} {what}; {_REBUILD}") from error
    except InputError as error:
        raise BundleError(f"{where}: {error}") from error


def _read(root: int, name: str, path: Path, limit: int, *, exact: bool = False) -> bytes:
    """Bytes of a regular file below `root`, no link followed at any level, read once."""
    folder, opened = root, []
    try:
        *parents, last = name.split("/")
        for parent in parents:
            folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            opened.append(folder)
        handle = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        opened.append(handle)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: {name} is not a regular file; {_REBUILD}")
        if status.st_size > limit or (exact and status.st_size != limit):
            word = "exactly" if exact else "at most"
            raise BundleError(f"{path}: {name} has {status.st_size} bytes, expected {word} {limit}; {_REBUILD}")
        with os.fdopen(os.dup(handle), "rb") as stream:
            data = stream.read(limit + 1)
        if len(data) != status.st_size:
            raise BundleError(f"{path}: {name} changed while it was read; open the bundle again")
        return data
    except OSError as error:
        raise BundleError(f"{path}: {name} is missing, linked or unreadable ({error.strerror}); {_REBUILD}") from error
    finally:
        for handle in opened:
            os.close(handle)


def _unsealed(data: bytes, where: str) -> dict[str, Any]:
    """Parsed JSON object whose seal holds."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError("a key occurs twice")
        return mapping

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"the number {text[:40]} is none that a float64 holds")
        return value

    def integer(text: str) -> int:
        number(text)
        return int(text)

    try:
        # `parse_constant` is called for NaN and the infinities, which are not JSON.
        mapping = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=number,
            parse_int=integer,
            parse_constant=number,
        )
        _check_json(mapping)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}); {_REBUILD}") from error
    if not isinstance(mapping, dict):
        raise BundleError(f"{where} does not hold a JSON object; {_REBUILD}")
    schema = mapping.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise BundleError(f"{where} has schema {schema}, newer than {SCHEMA}; update grd-edge")
    seal = mapping.get("seal")
    if not isinstance(seal, str) or not HEX.fullmatch(seal) or data.count(seal.encode()) != 1:
        raise BundleError(f"{where} has no valid seal; {_REBUILD}")
    if sha256_hex(data.replace(seal.encode(), UNSEALED.encode())) != seal:
        raise BundleError(f"{where} does not match its seal: it was changed after it was written; {_REBUILD}")
    return mapping


def _check_json(value: Any, levels: int = _MAX_LEVELS) -> None:
    """Raises ValueError for what Python's parser lets pass: deep nesting, and halves of surrogate pairs in texts."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, (dict, list)):
        if levels == 0:
            raise ValueError(f"nests deeper than {_MAX_LEVELS} levels")
        for part in value:
            _check_json(part, levels - 1)
        for part in value.values() if isinstance(value, dict) else ():
            _check_json(part, levels - 1)


def _listing(root: int, path: Path, files: dict[str, Any]) -> set[str]:
    """All files below the bundle; refuses whatever is not listed."""
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    found: set[str] = set()

    def walk(folder: int, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in list(entries):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False) and name in folders:
                    child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        walk(child, name + "/")
                    finally:
                        os.close(child)
                elif entry.is_file(follow_symlinks=False) and (name in files or name in (MANIFEST, DECISION)):
                    found.add(name)
                else:
                    raise BundleError(f"{path}: {name!r} is not listed in {MANIFEST}, or is a link; {_REBUILD}")

    try:
        walk(root, "")
    except OSError as error:
        raise BundleError(f"{path} cannot be listed ({error.strerror}); {_REBUILD}") from error
    return found
