"""The C programs: unit tests, plain and sanitized, the example, and the header's layout."""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from grd_edge import _native

ROOT = Path(__file__).resolve().parents[2]


def ctest(folder: Path) -> None:
    command = ["ctest", "--test-dir", str(folder), "--output-on-failure", "--no-tests=error", "--parallel", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"100% tests passed", done.stdout)


def test_c_tests_pass(native_build):
    ctest(native_build)


def test_c_tests_pass_under_sanitizers(sanitized_build):
    ctest(sanitized_build)


@pytest.mark.parametrize("name", ["test_pool", "test_inspector"])
def test_pools_pass_under_the_thread_sanitizer(thread_sanitized_build, name):
    folder = thread_sanitized_build / "kernels" / "test"
    environment = {**os.environ, "GRD_TEST_BACKENDS": str(folder)}
    done = subprocess.run([str(folder / name)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert done.stdout.endswith(" passed, 0 failed\n")


STRUCTURES = {
    "grd_view": _native.View,
    "grd_score_params": _native.ScoreParams,
    "grd_score_outputs": _native.ScoreOutputs,
    "grd_cut_params": _native.CutParams,
    "grd_cut_options": _native.CutOptions,
    "grd_grid": _native.Grid,
    "grd_bundle_info": _native.BundleInfo,
    "grd_inspector_params": _native.InspectorParams,
    "grd_patch_result": _native.PatchResult,
    "grd_result": _native.Result,
    "grd_stream_result": _native.StreamResult,
    "grd_stream_params": _native.StreamParams,
    "grd_stream_frame": _native.StreamFrame,
    "grd_latency": _native.Latency,
    "grd_stream_stats": _native.StreamStats,
}


def test_ctypes_mirrors_the_header(tmp_path):
    lines = ['#include "grd_edge.h"', "#include <stdio.h>", "int main(void) {"]
    for name, mirror in STRUCTURES.items():
        lines.append(f'  printf("{name} %zu\\n", sizeof({name}));')
        for field, *_ in mirror._fields_:
            lines.append(f'  printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
    lines += ["  return 0;", "}"]
    (tmp_path / "abi.c").write_text("\n".join(lines), encoding="utf-8")
    include = f"-I{ROOT / 'kernels' / 'include'}"
    build = ["cc", "-std=c99", "-Wall", "-Werror", include, str(tmp_path / "abi.c"), "-o", str(tmp_path / "abi")]
    subprocess.run(build, check=True)
    printed = subprocess.run([str(tmp_path / "abi")], capture_output=True, text=True, check=True).stdout
    expected = []
    for name, mirror in STRUCTURES.items():
        expected.append(f"{name} {ctypes.sizeof(mirror)}")
        expected += [f"{name}.{field} {getattr(mirror, field).offset}" for field, *_ in mirror._fields_]
    assert printed.split("\n")[:-1] == expected


def test_every_function_of_the_header_is_exported_and_nothing_else(native_build):
    header = (ROOT / "kernels" / "include" / "grd_edge.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^GRD_API [\w ]+?\*?(grd_\w+)\(", header, re.M))
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(native_build / "libgrd_edge.so")], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1].split("@")[0] for line in listing.splitlines() if " T " in line}
    of_cuda = {name for name in declared if name.startswith("grd_cuda_")}  # tests/native/test_cuda.py
    assert len(declared) >= 20
    assert declared - of_cuda == exported


def test_the_library_needs_no_vendor_library_and_bakes_in_no_path(native_build):
    for name in ("libgrd_edge.so", "libgrd_backend_openvino.so"):
        for path in (native_build / name, _native.library_dir() / name):
            dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
            needed = set(re.findall(r"NEEDED.*\[(.+?)\]", dynamic))
            assert all(re.match(r"(libstdc\+\+|libm|libgcc_s|libc|libdl|libpthread|ld-linux)", n) for n in needed), (
                needed
            )
        installed = subprocess.run(
            ["readelf", "-d", str(_native.library_dir() / name)], capture_output=True, text=True, check=True
        ).stdout
        assert "RPATH" not in installed and "RUNPATH" not in installed


@pytest.mark.parametrize("color", [False, True])
def test_the_example_inspects_a_frame(native_build, tiny_bundle, tmp_path, color):
    from grd_edge.runtime import Inspector

    example = next(native_build.rglob("inspect_frame"))
    shape = (50, 60, 3) if color else (50, 60)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / ("frame.ppm" if color else "frame.pgm")
    path.write_bytes(b"%s\n60 50\n255\n" % (b"P6" if color else b"P5") + frame.tobytes())
    with Inspector(tiny_bundle) as inspector:
        expected = inspector.inspect(frame)
    command = [str(example), str(tiny_bundle), str(path), _native.openvino_dir()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (0 if expected.decision == "good" else 3), done.stderr
    assert f"decision: {expected.decision}" in done.stdout
    printed = re.search(r"score=(\S+) threshold=(\S+)", done.stdout)
    assert float(printed[1]) == pytest.approx(expected.score, abs=1e-5)
    assert done.stdout.count("phi_local") >= len(expected.phi)


def test_the_example_names_regions(native_build, tiny_bundle, tmp_path):
    from grd_edge.bundle import write_decision

    regions = [
        {"name": "left", "threshold": 0.5, "areas": [[0, 0, 50, 20]]},
        {"name": "right", "threshold": 2.25, "areas": [[0, 20, 50, 40]]},
    ]
    write_decision(tiny_bundle, {"frame_px": [50, 60], "regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})
    frame = np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)
    (tmp_path / "frame.pgm").write_bytes(b"P5\n60 50\n255\n" + frame.tobytes())
    command = [str(next(native_build.rglob("inspect_frame"))), str(tiny_bundle), str(tmp_path / "frame.pgm")]
    done = subprocess.run([*command, _native.openvino_dir()], capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert " in left, threshold=0.5\n" in done.stdout and " in right, threshold=2.25\n" in done.stdout
    assert re.search(r"threshold=0\n$", done.stdout)


def test_the_example_says_what_is_wrong(native_build, tmp_path):
    example = next(native_build.rglob("inspect_frame"))
    for arguments in ([], [str(tmp_path / "no.grdb"), str(tmp_path / "no.pgm")]):
        done = subprocess.run([str(example), *arguments], capture_output=True, text=True)
        assert done.returncode not in (0, 3)
        assert done.stderr.strip()
