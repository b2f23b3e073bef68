"""The native library for 64-bit ARM: cross-compiled with warnings as errors, its C programs run under qemu-user."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.conftest import ROOT, build_native
from tests.native.test_native import ctest

QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", QEMU[0]: "qemu-user"}

# Scores one noisy patch; prints the variant that is said to have run, and phi.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "grd_edge.h"

int main(int argc, char **argv) {
    static float x[64 * 64], x_hat[64 * 64];
    float phi, phi_local;
    const char *ran = "none";
    grd_view view = {0}, view_hat;
    grd_score_params params = {0};
    grd_score_outputs outputs = {0};
    for (int i = 0; i < 64 * 64; i++) {
        x[i] = (float)(i * 7919 % 256) / 255;
        x_hat[i] = x[i] * 0.9f;
    }
    view.data = x, view.dtype = GRD_FLOAT32, view.space = GRD_SPACE_HOST;
    view.extent[0] = view.extent[1] = 1, view.extent[2] = view.extent[3] = 64;
    view_hat = view;
    view_hat.data = x_hat;
    params.struct_size = sizeof params, outputs.struct_size = sizeof outputs;
    params.variant = argc > 1 && *argv[1] ? argv[1] : NULL;
    params.window = argc > 2 ? atoi(argv[2]) : GRD_WINDOW_GAUSSIAN;
    outputs.phi = &phi, outputs.phi_local = &phi_local, outputs.variant = &ran;
    const int status = grd_score_patches(&params, &view, &view_hat, &outputs);
    printf("%d %s %.9g\n", status, ran, status == GRD_OK ? phi : 0);
    return 0;
}
"""


@pytest.fixture(scope="module")
def arm_build() -> Path:
    """Build folder with everything for ARM; kept between runs, since CMake knows what is stale."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs Debian's cross compiler for ARM and its emulator: apt install {' '.join(missing)}")
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    return build_native(ROOT / "build" / "aarch64", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")


def run_emulated(*command) -> str:
    done = subprocess.run([*QEMU, *map(str, command)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_c_tests_pass_on_arm(arm_build):
    ctest(arm_build)


def test_both_libraries_are_built_for_arm(arm_build):
    for name in ("libgrd_edge.so", "libgrd_backend_openvino.so"):
        header = subprocess.run(["readelf", "-h", str(arm_build / name)], capture_output=True, text=True, check=True)
        assert "AArch64" in header.stdout


def test_neon_is_what_runs_on_arm(arm_build, tmp_path):
    (tmp_path / "ran.c").write_text(PROGRAM, encoding="utf-8")
    build = ["aarch64-linux-gnu-gcc", "-std=c99", "-Wall", "-Werror", f"-I{ROOT / 'kernels' / 'include'}"]
    build += [str(tmp_path / "ran.c"), "-o", str(tmp_path / "ran")]
    build += [f"-L{arm_build}", "-lgrd_edge", f"-Wl,-rpath,{arm_build}"]
    subprocess.run(build, check=True)

    def ran(forced: str, window: int = 0) -> tuple[int, str, float]:
        status, variant, phi = run_emulated(tmp_path / "ran", forced, window).split()
        return int(status), variant, float(phi)

    status, variant, phi = ran("")
    assert (status, variant) == (0, "neon")
    assert ran("neon") == (0, "neon", phi)
    status, variant, exact = ran("scalar")
    assert (status, variant) == (0, "scalar")
    assert exact > 0.001 and phi == pytest.approx(exact, abs=1e-6)
    assert ran("neon", window=1)[:2] == (0, "scalar")  # box windows are not for vectors
    assert ran("avx2") == (16, "none", 0)  # GRD_ERR_VARIANT


def test_the_bundle_reader_refuses_on_arm_what_it_refuses_elsewhere(arm_build):
    """`char` is unsigned there."""
    printed = run_emulated(arm_build / "kernels" / "fuzz" / "mutate_bundle", 800)
    assert "refused: 600 refused, 0 accepted" in printed and "accepted: 0 refused, 100 accepted" in printed
    assert "0 wrong" in printed
