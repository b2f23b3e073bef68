"""`grd-edge doctor`: what works on this machine."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Annotated

import typer

from grd_edge.cli.common import Json, print_json, print_rows

PACKAGES = ("grd-edge", "numpy", "openvino", "opencv-python-headless", "torch", "onnx", "onnxruntime", "elpv-dataset")


def doctor(
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TARGET", help="Ask for TensorRT on rtx, rtx-ada, jetson-orin, trt, ..."),
    ] = None,
    json_: Json = False,
) -> None:
    """Report versions, the native library, its kernels and the engine's libraries; exit 3 when inference cannot run."""
    if target is not None:
        return _doctor_of_target(target, json_)
    from grd_edge import _native, kernels
    from grd_edge.errors import GrdError
    from grd_edge.machine import version_of

    report: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine()}
    report |= {package: version_of(package) or "not installed" for package in PACKAGES}
    healthy = True
    try:
        report["native library"] = f"{_native.library().grd_version_string().decode()} in {_native.library_dir()}"
        variants = kernels.variants()
        report["kernel variants"] = ", ".join(f"{n}{'' if ok else ' (not on this CPU)'}" for n, ok in variants.items())
        report["kernel variant in use"] = kernels.active_variant()
    except GrdError as error:
        report["native library"], healthy = str(error), False
    libraries = _native.library_dir().glob("libgrd_backend_*.so")
    backends = sorted(path.stem.removeprefix("libgrd_backend_") for path in libraries)
    report["backends"] = ", ".join(backends) or "none: the native library was built without one"
    report["openvino libraries"] = _native.openvino_dir() or "not found: pip install openvino"
    healthy = healthy and bool(backends) and _native.openvino_dir() is not None
    report["verdict"] = "cpu inference can run" if healthy else "cpu inference cannot run; see above"
    print_json(report) if json_ else print_rows("grd-edge doctor", report)
    if not healthy:
        raise typer.Exit(3)


def _doctor_of_target(name: str, json_: bool) -> None:
    from grd_edge.engine.probe import FAILS, Machine, checklist
    from grd_edge.targets import target_named

    target = target_named(name)
    items = checklist(target, Machine())
    runs = all(item.state != FAILS for item in items)
    verdict = (
        f"engines of {target.name} can run here" if runs else f"engines of {target.name} cannot run here; see above"
    )
    if json_:
        print_json({"target": target.name, "items": [asdict(item) for item in items], "verdict": verdict})
    else:
        rows = {item.name: item for item in items}
        print_rows(f"grd-edge doctor --target {target.name} ({target.parts})", {**rows, "verdict": verdict})
    if not runs:
        raise typer.Exit(3)
