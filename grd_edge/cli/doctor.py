"""`grd-edge doctor`: what works on this machine."""

from __future__ import annotations

import platform
from importlib import metadata

from grd_edge.cli.common import Json, print_json, print_rows

PACKAGES = ("grd-edge", "numpy", "openvino", "opencv-python-headless", "torch", "onnx", "onnxruntime", "elpv-dataset")


def doctor(json_: Json = False) -> None:
    """Report versions, the native library, its kernels and the engine's libraries; exit 3 when inference cannot run."""
    import typer

    from grd_edge import _native, kernels
    from grd_edge.errors import GrdError

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    report: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine()}
    report |= {package: version(package) for package in PACKAGES}
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
