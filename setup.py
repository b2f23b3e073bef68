"""Builds the native library with CMake and installs it into grd_edge/_lib (see pyproject.toml)."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def version_from_header() -> str:
    """The C header is the one home of the version."""
    text = Path(__file__).with_name("kernels").joinpath("include", "grd_edge.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define GRD_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


setup(
    version=version_from_header(),
    # bench/ is the home of timers and baselines; the demo uses them, so it ships as grd_edge.bench;
    # calibration/ is data.
    packages=[*find_packages(include=["grd_edge", "grd_edge.*"]), "grd_edge.bench", "grd_edge.calibration"],
    package_dir={"grd_edge.bench": "bench", "grd_edge.calibration": "calibration"},
    package_data={"grd_edge": ["profiles/*.yaml"], "grd_edge.calibration": ["recipes/*.yaml"]},
    cmake_source_dir=".",
)
