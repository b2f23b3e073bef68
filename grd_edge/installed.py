"""Bytes that grd-edge takes on a disk: the package, what it needs at run time, the native library."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from grd_edge import _native

PACKAGE = "grd-edge"


def library_bytes() -> int | None:
    """Size of `libgrd_edge.so`; None: it is not there."""
    path = _native.library_dir() / _native.LIBRARY
    return path.stat().st_size if path.is_file() else None


def install_bytes(package: str = PACKAGE) -> dict[str, int]:
    """Distribution -> bytes of its files, of a package and all that it needs at run time, no extra among it.

    Requirements that hold on some systems only count where they are installed. Distributions that do not list their
    files are missing. Where grd-edge runs from its source tree, that tree's packages count, as an install holds them.
    """
    sizes: dict[str, int] = {}
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in sizes:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        files = [Path(file.locate()) for file in found.files or ()]
        if name == PACKAGE and not any(file.name == "runtime.py" for file in files):
            files += [file for file in Path(__file__).parent.rglob("*") if "__pycache__" not in file.parts]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
        for requirement in found.requires or ():
            needed, _, marker = requirement.partition(";")
            if "extra" not in marker:
                waiting.append(re.match(r"[\w.-]+", needed.strip())[0])
    return sizes
