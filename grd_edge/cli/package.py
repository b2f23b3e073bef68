"""`grd-edge package`: a bundle with all that runs it, for machines without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grd_edge.cli.common import BundlePath, Json, print_json, print_rows


def package(
    bundle: BundlePath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; only a package is replaced.")
    ],
    target: Annotated[str, typer.Option(metavar="TARGET", help="Whose engine to package: cpu.")] = "cpu",
    json_: Json = False,
) -> None:
    """Write a folder with C API, engine, bundle and examples that runs where there is no Python."""
    from grd_edge.package import package_from_bundle

    made = package_from_bundle(bundle, output, target=target)
    shown = {
        "package": str(output),
        "target": made.target,
        "precision": made.precision,
        "bundle": made.bundle.path.name,
        "seal": made.bundle.seal,
        "bytes": made.bytes,
        "engine_libraries": made.engine_libraries,
        "needs": made.needs,
    }
    if json_:
        print_json({**shown, "files": made.files})
        return
    shown["bytes"] = f"{made.bytes:,}"
    shown |= {name: ", ".join(shown[name]) for name in ("engine_libraries", "needs")}
    print_rows("packaged", {**shown, "files": len(made.files), "how to compile and run": "README.txt in it"})
