"""A bundle and all that runs it in one folder, for machines without Python. Never imports torch or onnx.

Source: docs/c-api.md, section "Package"; what goes in and what stays out: docs/design/package.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grd_edge import _native
from grd_edge.bundle import Bundle, read_bundle, write_bundle, write_decision
from grd_edge.errors import BundleError, CheckFailedError, InputError
from grd_edge.files import sha256_hex, write_atomically, writing_to
from grd_edge.package_content import library_files, needs_of, readme, vendor_libraries, vendor_licenses
from grd_edge.staging import put_in_place, staging
from grd_edge.targets import CLASSIC, CPU, TARGETS

LIST = "package.json"
VERSION = 1  # of LIST
_CHECK_S = 300

_FRAME = """
import sys
import numpy as np
from grd_edge.runtime import Inspector
bundle, vendor, target, *shape = sys.argv[1:]
frame = np.random.default_rng(0).integers(0, 256, tuple(map(int, shape)), np.uint8)
with Inspector(bundle, target=target, vendor_dir=vendor) as inspector:
    inspector.inspect(frame)
"""


@dataclass(frozen=True)
class Package:
    """A package as it was written.

    Attributes:
        path: its folder.
        target, precision: of the engine that it runs.
        bundle: as it lies in it.
        files: path below the folder -> `sha256` and `bytes`.
        engine_libraries: names of the vendor's libraries.
        needs: what the machine must have at least, such as `glibc 2.34`.
    """

    path: Path
    target: str
    precision: str
    bundle: Bundle
    files: dict[str, dict[str, Any]]
    engine_libraries: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


def package_from_bundle(bundle: Path, path: Path, *, target: str = CPU) -> Package:
    """Writes a package; an older one at `path` stays until the new one has inspected a frame.

    Args:
        bundle: folder of the bundle; the package holds what its engines of `target` need.
        path: folder of the package.

    Raises:
        InputError: a target that is not packaged; `path` is something else, holds other files, or cannot be written.
        BundleError: the bundle breaks a rule of its format, or holds no engine for the target.
        EngineError: our library or the vendor's are missing or incomplete.
        CheckFailedError: the package does not inspect a frame.
    """
    bundle, path = Path(os.path.abspath(bundle)), Path(os.path.abspath(path))
    _check_target(target)
    opened = read_bundle(bundle)
    engine = _engine_of(opened, target)
    _check_place(path, bundle)
    files, vendor = library_files(engine["backend"]), vendor_libraries()
    files |= {f"lib/{name}": data for name, data in vendor.items()}
    files |= vendor_licenses()
    needs = needs_of(data for name, data in files.items() if ".so" in name)
    version = _native.library().grd_version_string().decode()
    name = bundle.name.removesuffix(".grdb") + ".grdb"
    files["README.txt"] = readme(name, target, engine["precision"], version, needs)
    with writing_to(path), staging(path) as folder:
        new = folder / "new"
        new.mkdir()
        for each, data in files.items():
            write_atomically(new / each, data)
        packed = _write_bundle(opened, target, new / name)
        listed = _listed(new)
        described = {
            "package": VERSION,
            "grd_edge": version,
            "target": target,
            "precision": engine["precision"],
            "bundle": name,
            "seal": packed.seal,
            "needs": needs,
            "files": listed,
        }
        write_atomically(new / LIST, json.dumps(described, indent=1).encode() + b"\n")
        _check_runs(new, packed, target)
        _check_place(path, bundle)
        put_in_place(new, path, folder)
    return Package(path, target, engine["precision"], read_bundle(path / name), listed, tuple(vendor), needs)


# ----------------------------------------------------------------------------------------------- checks


def _check_target(target: str) -> None:
    if target in TARGETS:
        library = "TensorRT" if TARGETS[target].library == CLASSIC else "TensorRT-RTX"
        raise InputError(
            f"no package is made for {target}: {library} must fit the driver of the device and is installed there; "
            "copy the bundle to it, install the C library there (docs/c-api.md), and set GRD_VENDOR_DIR to where "
            f"{library}'s libraries are"
        )
    if target != CPU:
        raise InputError(f"no package is made for target {target!r}; choose {CPU}")


def _engine_of(bundle: Bundle, target: str) -> dict[str, Any]:
    """The engine that a bundle chose for a target.

    Raises:
        BundleError: there is none, or it is of a backend whose libraries are not known here.
    """
    precision = bundle.manifest["precision"]["chosen"].get(target)
    engines = [e for e in bundle.manifest["engines"] if (e["target"], e["precision"]) == (target, precision)]
    if not engines:
        has = ", ".join(bundle.manifest["precision"]["chosen"]) or "none"
        raise BundleError(
            f"{bundle.path} holds no engine for {target} (it has: {has}); build one with: grd-edge build bundle"
        )
    if engines[0]["backend"] != "openvino":
        raise BundleError(
            f"{bundle.path}: the engine for {target} is run by backend {engines[0]['backend']!r}, whose libraries are "
            "not known here; packages are made for openvino"
        )
    return engines[0]


def _check_place(path: Path, bundle: Path) -> None:
    """Refuses a place that holds anything but a package of ours as it was written.

    Raises:
        InputError: names what else is there.
    """
    if Path(os.path.realpath(bundle)) in Path(os.path.realpath(path)).parents:
        raise InputError(
            f"{path} lies in the bundle {bundle}, which holds nothing but what it lists; choose another folder"
        )
    if not path.is_symlink() and not path.exists():
        return
    elsewhere = "choose another folder"
    try:
        described = json.loads((path / LIST).read_bytes())
        listed = described["files"]
        known = described["package"] >= 1 and isinstance(listed, dict) and not path.is_symlink()
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{path} exists and is not a package of grd-edge; {elsewhere}")
    found = _listed(path)
    found.pop(LIST, None)
    for name in sorted(found):
        if found[name] != listed.get(name):
            raise InputError(
                f"{path} holds {name}, which was added or changed after the package was made; move it away, or "
                f"{elsewhere}"
            )


def _check_runs(folder: Path, bundle: Bundle, target: str) -> None:
    """One random frame through the libraries of the package, in a process of its own.

    Raises:
        CheckFailedError: it ends with an error.
    """
    hidden = ("GRD_VENDOR_DIR", "GRD_FORCE_VARIANT", "LD_LIBRARY_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["GRD_LIBRARY_DIR"] = str(folder / "lib")
    arguments = [str(bundle.path), str(folder / "lib"), target, *map(str, _frame_shape(bundle))]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _FRAME, *arguments],  # -P: imports nothing from where the user is
            capture_output=True,
            text=True,
            env=environment,
            timeout=_CHECK_S,
        )
    except subprocess.TimeoutExpired:
        raise CheckFailedError(
            f"the package did not inspect a frame within {_CHECK_S} s and was not written; try again when the machine "
            "is less busy"
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise CheckFailedError(
            f"the package does not inspect a frame ({said[0].strip()}) and was not written; reinstall grd-edge and "
            "openvino"
        )


def _frame_shape(bundle: Bundle) -> tuple[int, ...]:
    """H, W and, in color, C of a frame that a bundle takes."""
    channels = bundle.manifest["geometry"]["channels"]
    side = bundle.manifest["geometry"]["scale_px"] or 1
    size = (max(side, bundle.grid.patch_h), max(side, bundle.grid.patch_w))
    if bundle.regions.frame_h is not None:
        size = bundle.regions.frame_h, bundle.regions.frame_w
    if bundle.roi is not None:
        size = bundle.roi.shape
    return size if channels == 1 else (*size, channels)


# ----------------------------------------------------------------------------------------------- content


def _write_bundle(bundle: Bundle, target: str, path: Path) -> Bundle:
    """The bundle with its engines of one target; the same bytes where it holds no others.

    Models of other targets' engines, and what they are rebuilt from, stay out. The FP32 model is an engine of `cpu`.
    """
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    engines = [engine for engine in manifest["engines"] if engine["target"] == target]
    kept = {engine["file"] for engine in engines} | {manifest.get("roi")}
    files = {name: data for name, data in bundle.files.items() if name in kept}
    decision = bundle.decision and {k: v for k, v in bundle.decision.items() if k not in ("schema", "bundle", "seal")}
    if len(files) < len(bundle.files) or len(engines) < len(manifest["engines"]):
        manifest["engines"] = engines
        precision = manifest["precision"]
        manifest["precision"] = {**precision, "chosen": {target: precision["chosen"][target]}}
        manifest["provenance"] = {**manifest["provenance"], "packaged_from": bundle.seal}
        if decision:
            decision["fit"] = {**decision["fit"], "packaged_from": bundle.decision["seal"]}
    written = write_bundle(path, manifest, files)
    return write_decision(path, decision, of=written) if decision else written


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file below a folder; what is no file, or a link, has neither."""

    def entries() -> Iterator[tuple[str, dict[str, Any]]]:
        for each in sorted(folder.rglob("*")):
            if each.is_file() and not each.is_symlink():
                data = each.read_bytes()
                yield str(each.relative_to(folder)), {"sha256": sha256_hex(data), "bytes": len(data)}
            elif each.is_symlink() or not each.is_dir():
                yield str(each.relative_to(folder)), {}

    return dict(entries())
