"""Builds the native library with CMake and installs it into grd_edge/_lib (see pyproject.toml)."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # builds are isolated from the tree that they build
from grd_edge.machine import BUILT_FROM, commit_of


def version_from_header() -> str:
    """The C header is the one home of the version."""
    text = Path(__file__).with_name("kernels").joinpath("include", "grd_edge.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define GRD_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


class BuildPackage(build_py):
    """The Python package, and the commit that it is built from, for machines where no source tree tells it."""

    def run(self) -> None:
        super().run()
        tree = Path(__file__).parent
        commit = commit_of(tree) if (tree / ".git").exists() else None
        if commit and not self.editable_mode:
            Path(self.build_lib, "grd_edge", BUILT_FROM).write_text(commit + "\n", encoding="utf-8")


setup(
    version=version_from_header(),
    # bench/ is the home of timers and baselines; the demo uses them, so it ships as grd_edge.bench;
    # calibration/ is data.
    packages=[*find_packages(include=["grd_edge", "grd_edge.*"]), "grd_edge.bench", "grd_edge.calibration"],
    package_dir={"grd_edge.bench": "bench", "grd_edge.calibration": "calibration"},
    package_data={"grd_edge": ["profiles/*.yaml", "report/*.j2"], "grd_edge.calibration": ["recipes/*.yaml"]},
    cmake_source_dir=".",
    cmdclass={"build_py": BuildPackage},
)
