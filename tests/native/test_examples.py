"""The examples: against the build tree, an installed prefix by CMake and by pkg-config, and from the documentation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grd_edge import _native
from grd_edge.runtime import Inspector
from tests.native.conftest import ROOT

EXAMPLES = ROOT / "kernels" / "examples"
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
ENVIRONMENT = {**os.environ, "GRD_VENDOR_DIR": str(_native.openvino_dir())}


def run(program: Path, *arguments, env=ENVIRONMENT) -> subprocess.CompletedProcess:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, env=env, timeout=120)


def checked(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of one size, more than the examples hold at a time twice over, and a file that is none."""
    folder = tmp_path_factory.mktemp("images") / "of a camera"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(17):
        pixels = rng.integers(0, 256, (41, 50), np.uint8) if i % 2 else np.full((41, 50), 9 * i, np.uint8)
        (folder / f"{i:02}.pgm").write_bytes(b"P5\n# a comment\n50 41\n255\n" + pixels.tobytes())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected(images, tiny_bundle_files):
    """What the examples have to print of each image."""
    found = {}
    with Inspector(tiny_bundle_files) as inspector:
        for path in sorted(images.glob("*.pgm")):
            pixels = np.frombuffer(path.read_bytes()[-41 * 50 :], np.uint8).reshape(41, 50)
            found[path.name] = inspector.inspect(pixels)
    assert {each.decision for each in found.values()} == {"good", "defective"}, "the images do not try both"
    return found


def check_lines(printed: str, expected, threshold: str = "0.4") -> None:
    """A line per image, in order, and the statistics."""
    lines = printed.splitlines()
    assert len(lines) == len(expected) + 2
    for i, (name, inspection) in enumerate(expected.items()):
        found = re.fullmatch(rf"(\d+) (.+): (\w+), score (\S+), threshold {threshold}, \S+ ms", lines[i])
        assert found and (int(found[1]), Path(found[2]).name, found[3]) == (i + 1, name, inspection.decision), lines[i]
        assert float(found[4]) == pytest.approx(inspection.score, abs=1e-5)
    good = sum(each.decision == "good" for each in expected.values())
    counts = f"{good} good, {len(expected) - good} defective, 0 undecided, 0 dropped, 0 failed; 0 late"
    assert lines[-2] == f"{len(expected)} frames: {counts}"
    assert re.fullmatch(r"from frame to decision: p50 \S+ ms, p99 \S+ ms, worst \S+ ms", lines[-1])


@pytest.fixture(scope="module", params=["line_loop", "line_loop_cpp"])
def built(request, native_build):
    return native_build / "kernels" / "examples" / request.param


def test_a_line_decides_every_image_in_order(built, tiny_bundle, images, expected):
    done = run(built, tiny_bundle, images)
    assert done.returncode == 3 and not done.stderr, done.stderr
    check_lines(done.stdout, expected)


def test_a_line_whose_graph_scores_patches_itself(built, tiny_score_map_bundle, images, expected):
    done = run(built, tiny_score_map_bundle, images)
    with Inspector(tiny_score_map_bundle) as inspector:
        found = {
            name: inspector.inspect(np.frombuffer((images / name).read_bytes()[-41 * 50 :], np.uint8).reshape(41, 50))
            for name in expected
        }
    assert done.returncode == 3 and not done.stderr, done.stderr
    check_lines(done.stdout, found, "0.08")


def test_a_line_of_good_parts_in_color(built, tiny_bundle, images, expected, tmp_path):
    for name in (name for name, each in expected.items() if each.decision == "good"):
        grey = np.frombuffer((images / name).read_bytes()[-41 * 50 :], np.uint8)
        (tmp_path / f"{name}.ppm").write_bytes(b"P6 50 41 255\n" + np.repeat(grey, 3).tobytes())
    done = run(built, tiny_bundle, tmp_path)
    assert done.returncode == 0 and ", 0 defective" in done.stdout, done.stderr


def test_late_and_unfit_frames_are_rejected(built, tiny_bundle, images, tmp_path):
    shutil.copy(images / "00.pgm", tmp_path / "a.pgm")
    (tmp_path / "b.ppm").write_bytes(b"P6\n20 20\n255\n" + bytes(1200))
    done = run(built, tiny_bundle, tmp_path)
    assert done.returncode == 3
    assert re.search(r"2 \S+b.ppm: not inspected, .*, failed: .*20x20", done.stdout), done.stdout
    assert "0 dropped, 1 failed; 0 late" in done.stdout
    done = run(built, tiny_bundle, images, 1e-6)
    assert done.returncode == 3 and done.stdout.count(" ms, late\n") == 17 and "; 17 late" in done.stdout


def test_what_is_wrong_is_told(built, tiny_bundle, images, tmp_path):
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        ([], "usage: line_loop"),
        ([tmp_path / "no.grdb", images], "no.grdb"),
        ([tiny_bundle, tmp_path / "folder"], "folder"),
        ([tiny_bundle, tmp_path / "none"], "none"),
    ):
        done = run(built, *arguments)
        assert done.returncode == 1 and words in done.stderr and not done.stdout, (arguments, done)
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    (broken / "03.pgm").write_bytes(b"P5\n50 50\n255\nshort")
    done = run(built, tiny_bundle, broken)
    assert done.returncode == 1 and done.stderr.endswith("03.pgm is not a readable 8-bit binary PGM or PPM file\n")
    assert "16 frames: " in done.stdout
    done = run(built, tiny_bundle, images, env={**ENVIRONMENT, "GRD_VENDOR_DIR": str(tmp_path)})
    assert done.returncode == 1 and "libopenvino_c.so" in done.stderr


# ------------------------------------------------------------------------------------------ installed


@pytest.fixture(scope="module")
def prefix(native_build, tmp_path_factory):
    """A prefix that was moved after the installation."""
    folder = tmp_path_factory.mktemp("prefix")
    checked("cmake", "--install", native_build, "--prefix", folder / "first")
    return Path(shutil.move(folder / "first", folder / "second"))


def test_what_is_installed(prefix):
    library = prefix / "lib" / "libgrd_edge.so"
    version = _native.library().grd_version_string().decode()
    assert library.resolve().name == f"libgrd_edge.so.{version}"
    soname = re.search(r"SONAME.*\[(.+)\]", checked("readelf", "-d", library))[1]
    assert soname == f"libgrd_edge.so.{version.rpartition('.')[0]}" and (prefix / "lib" / soname).exists()
    assert (prefix / "lib" / "libgrd_backend_openvino.so").is_file() and (prefix / "include" / "grd_edge.h").is_file()
    installed = [path for path in prefix.rglob("*") if path.is_file()]
    for path in installed:
        assert str(prefix.parent).encode() not in path.read_bytes(), path
        assert str(ROOT).encode() not in path.read_bytes(), path
    shared = {
        str(path.relative_to(prefix / "share" / "doc" / "grd_edge")) for path in installed if "share" in path.parts
    }
    assert shared == {
        *("licenses/grd_edge.txt", "licenses/nlohmann-json.txt", "examples/project/CMakeLists.txt", "examples/pnm.h"),
        *("examples/inspect_frame.c", "examples/line_loop.c", "examples/line_loop.cpp"),
    }


def test_a_project_finds_it_by_cmake(prefix, tiny_bundle, images, expected, tmp_path):
    examples = shutil.copytree(prefix / "share" / "doc" / "grd_edge" / "examples", tmp_path / "mine")
    warnings = [f"-DCMAKE_{language}_FLAGS={' '.join(WARNINGS)}" for language in ("C", "CXX")]
    build = tmp_path / "build"
    checked("cmake", "-S", examples / "project", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", *warnings)
    checked("cmake", "--build", build)
    for name in ("line_loop", "line_loop_cpp"):
        done = run(build / name, tiny_bundle, images)
        assert done.returncode == 3, done.stderr
        check_lines(done.stdout, expected)


def test_cmake_takes_what_fits_of_its_versions(prefix, tmp_path):
    major, minor, patch = map(int, _native.library().grd_version_string().split(b"."))
    versions = {f"{major}.{minor}": 1, f"{major}.{minor}.{patch}": 1, "": 1}
    versions |= {f"{major}.{minor + 1}": 0, f"{major}.{minor}.{patch + 1}": 0, f"{major + 1}": 0}
    versions |= {f"{major}.{minor - 1}": 0} if minor else {}
    lines = ["cmake_minimum_required(VERSION 3.16)", "project(versions LANGUAGES C)"]
    for version in versions:
        lines.append(f'find_package(grd_edge {version} CONFIG QUIET)\nmessage(STATUS "{version}=${{grd_edge_FOUND}}=")')
        lines.append("unset(grd_edge_DIR CACHE)")
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines))
    said = checked("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert {version: int(found) for version, found in re.findall(r"-- ([\d.]*)=([01])=", said)} == versions


@pytest.mark.parametrize(("source", "compiler"), [("line_loop.c", "cc -std=c99"), ("line_loop.cpp", "c++ -std=c++17")])
def test_pkg_config_finds_it(prefix, tiny_bundle, images, expected, tmp_path, source, compiler):
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    command = f"{compiler} {' '.join(WARNINGS)} {EXAMPLES / source} -o {tmp_path / 'line'} -pthread "
    command += f"$(pkg-config --cflags --libs grd_edge) -Wl,-rpath,{prefix}/lib"
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    checked("sh", "-c", command, env=environment)
    assert (
        checked("pkg-config", "--modversion", "grd_edge", env=environment).strip()
        in (ROOT / "CHANGELOG.md").read_text()
    )
    done = run(tmp_path / "line", tiny_bundle, images)
    assert done.returncode == 3, done.stderr
    check_lines(done.stdout, expected)


def test_pkg_config_in_other_layouts(tmp_path):
    """A distribution's folder of libraries, and headers of their own; configured, not built."""
    layout = ["-DCMAKE_INSTALL_LIBDIR=lib/x86_64-linux-gnu", "-DCMAKE_INSTALL_INCLUDEDIR=include/grd"]
    checked("cmake", "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}", *layout)
    assert "includedir=${pcfiledir}/../../../include/grd\n" in (tmp_path / "grd_edge.pc").read_text()
    config = (tmp_path / "grd_edge-config.cmake").read_text()
    assert "${CMAKE_CURRENT_LIST_DIR}/../../../../" in config
    assert "${PACKAGE_PREFIX_DIR}/lib/x86_64-linux-gnu/libgrd_edge.so" in config


# ------------------------------------------------------------------------------------------ the documentation


def document() -> str:
    return (ROOT / "docs" / "c-api.md").read_text(encoding="utf-8")


def test_a_newcomer_gets_decisions_from_the_documentation_alone(tiny_bundle_files, images, expected, tmp_path):
    """The page's first commands and its program, as they are printed."""
    commands = re.search(r"```sh\n(grd-edge package .*?)```", document(), re.S)[1]
    program = re.search(r"```c\n(.*?)```", document(), re.S)[1]
    assert program.count("\n") <= 40 and "int main" in program
    shutil.copytree(tiny_bundle_files, tmp_path / "part.grdb")
    (tmp_path / "images").mkdir()
    for path in images.glob("*.pgm"):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes().replace(b"# a comment\n", b"", 1))
    (tmp_path / "decide.c").write_text(program)
    strict = tmp_path / "strict"
    checked("cc", "-std=c99", *WARNINGS, f"-I{ROOT}/kernels/include", "-c", tmp_path / "decide.c", "-o", strict)
    environment = {key: value for key, value in os.environ.items() if key != "GRD_VENDOR_DIR"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    printed = checked("sh", "-e", "-c", commands, cwd=tmp_path, env=environment)
    found = dict(re.findall(r"^images/(\S+): (\w+), score ", printed, re.M))
    assert found == {name: each.decision for name, each in expected.items()}


def test_every_function_is_documented():
    header = (ROOT / "kernels" / "include" / "grd_edge.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^GRD_API [\w ]+?\*?(grd_\w+)\(", header, re.M))
    titles = {
        name for line in re.findall(r"^#+ (.*`grd_.*)$", document(), re.M) for name in re.findall(r"`(grd_\w+)`", line)
    }
    rows = set(re.findall(r"^\| `(grd_\w+)` \|", document(), re.M))
    assert len(declared) >= 45 and declared == titles | rows
    statuses = set(re.findall(r"\b(GRD_(?:OK|ERR_\w+)) = ", header))
    assert statuses <= set(re.findall(r"`(GRD_\w+)`", document()))
