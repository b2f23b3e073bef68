"""Packages: what is in them, that they decide where there is nothing else, and what is refused."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grd_edge import _native, package, package_content
from grd_edge.bundle import read_bundle, write_bundle, write_decision
from grd_edge.elf import wants_of
from grd_edge.errors import BundleError, CheckFailedError, EngineError, InputError
from grd_edge.package import package_from_bundle
from grd_edge.regions import pgm_from_mask
from grd_edge.runtime import Inspector
from tests.conftest import run_cli
from tests.test_storage import FullDisk, contents

SYSTEM = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1")
LOADED = """
import sys
import numpy as np
from grd_edge.runtime import Inspector
with Inspector(sys.argv[1], vendor_dir=sys.argv[2]) as inspector:
    inspector.inspect(np.zeros((40, 40), np.uint8))
print("\\n".join({line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps") if ".so" in line}))
"""


@pytest.fixture(scope="module")
def made(tiny_bundle_files, tmp_path_factory):
    """A package that was moved after it was made."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "numpy.py").write_text("raise ImportError('not this one')")
    with contextlib.chdir(folder):
        package_from_bundle(tiny_bundle_files, Path("first"))
    (folder / "second place").mkdir()
    return Path(shutil.move(folder / "first", folder / "second place" / "pkg"))


def compiled(source: Path, made: Path, output: Path, *more: str) -> None:
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{made}/include", str(source)]
    subprocess.run([*command, "-o", str(output), f"-L{made}/lib", "-lgrd_edge", *more], check=True)


def write_frame(path: Path, seed: int = 0) -> np.ndarray:
    frame = np.random.default_rng(seed).integers(0, 256, (50, 60), np.uint8)
    path.write_bytes(b"P5\n60 50\n255\n" + frame.tobytes())
    return frame


def test_it_holds_the_libraries_that_a_run_loads_and_no_others(made):
    there = {path.name for path in (made / "lib").iterdir() if path.is_file()}
    environment = {**os.environ, "GRD_LIBRARY_DIR": str(made / "lib")}
    command = [sys.executable, "-c", LOADED, str(made / "tiny.grdb"), str(made / "lib")]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    loaded = {Path(line).name for line in printed.splitlines() if line.startswith(str(made / "lib"))}
    # What binds threads to cores is opened on some machines only.
    assert loaded <= there and there - loaded <= {"libhwloc.so.15", "libtbbbind_2_5.so.3"}
    assert not [line for line in printed.splitlines() if "openvino" in line and str(made) not in line]


def test_a_graph_that_scores_patches_itself(tiny_score_map_bundle, tmp_path):
    package_from_bundle(tiny_score_map_bundle, tmp_path / "pkg")
    packaged = tmp_path / "pkg" / tiny_score_map_bundle.name
    frame = write_frame(tmp_path / "frame.pgm")
    compiled(tmp_path / "pkg" / "examples" / "inspect_frame.c", tmp_path / "pkg", tmp_path / "inspect")
    command = [str(tmp_path / "inspect"), str(packaged), str(tmp_path / "frame.pgm")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "pkg" / "lib")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    with Inspector(tiny_score_map_bundle) as inspector:
        expected = inspector.inspect(frame)
    scores = np.array(re.findall(r"phi=(\S+) phi_local=(\S+)", done.stdout), float).T
    assert np.abs(scores - [expected.phi, expected.phi_local]).max() <= 1e-6
    assert f" {expected.decision}\n" in done.stdout and done.returncode == 3 * (expected.decision == "defective")


def test_every_library_finds_what_it_needs_in_the_package_or_on_every_system(made):
    there = {path.name: path for path in (made / "lib").iterdir() if path.is_file()}
    for path in there.values():
        others = set(wants_of(path.read_bytes()).libraries) - there.keys()
        assert all(name in SYSTEM or name.startswith("ld-linux") for name in others), (path, others)


def test_the_rest_of_it(made, tiny_bundle_files):
    described = json.loads((made / "package.json").read_bytes())
    found = {str(path.relative_to(made)): path for path in made.rglob("*") if path.is_file()}
    assert described["files"].keys() == found.keys() - {"package.json"}
    assert all(described["files"][name]["bytes"] == found[name].stat().st_size for name in described["files"])
    assert sum(path.stat().st_size for path in found.values()) < 130e6
    assert contents(made / "tiny.grdb") == contents(tiny_bundle_files)
    assert {path.name for path in (made / "licenses").rglob("*.txt")} == {
        *("grd_edge.txt", "nlohmann-json.txt", "runtime-third-party-programs.txt"),
        *("onednn_third-party-programs.txt", "onetbb_third-party-programs.txt"),
    }
    assert "Apache License" in (made / "licenses" / "openvino" / "LICENSE").read_text()
    assert "Niels Lohmann" in (made / "licenses" / "nlohmann-json.txt").read_text()
    assert "glibc 2." in (made / "README.txt").read_text()
    for name in ("lib/cmake/grd_edge/grd_edge-config.cmake", "lib/pkgconfig/grd_edge.pc", "README.txt", "package.json"):
        assert not re.search(r"/(tmp|root|home|usr|work)\b", (made / name).read_text()), name


def test_a_moved_package_decides_where_there_is_nothing_but_the_c_library(made, tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("chroot and mount namespaces are for root, who this is not (or may not)")
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    shutil.copytree(made, root / "line" / "pkg")
    example = root / "line" / "pkg" / "line_loop"
    compiled(made / "examples" / "line_loop.c", made, example, "-Wl,-rpath,$ORIGIN/lib")
    interpreter = re.search(rb"/lib[\w/.-]*/ld-linux[\w.-]+\.so\.\d", example.read_bytes())[0].decode()
    for name in SYSTEM:
        source = subprocess.run(["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout
        (root / "lib").mkdir(exist_ok=True)
        shutil.copy(source.strip(), root / "lib" / name)
    (root / interpreter[1:]).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(interpreter, root / interpreter[1:])
    (root / "frames").mkdir()
    with Inspector(made / "tiny.grdb") as inspector:
        expected = [inspector.inspect(write_frame(root / "frames" / f"{i}.pgm", seed=i)) for i in range(3)]
    inside = 'mount --bind /proc "$0/proc" && exec env -i "$(command -v chroot)" "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", inside, root, "/line/pkg/line_loop", "/line/pkg/tiny.grdb", "/frames"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 3 * any(each.decision != "good" for each in expected), done.stderr
    printed = re.findall(r"^\d /frames/\d.pgm: (\w+), score (\S+),", done.stdout, re.M)
    assert [decision for decision, _ in printed] == [each.decision for each in expected]
    assert [float(score) for _, score in printed] == pytest.approx([each.score for each in expected], abs=1e-5)


def with_other_engine(path: Path) -> Path:
    """The bundle with an engine of another target, and a file that only a rebuild needs."""
    bundle = read_bundle(path)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    engine = {**manifest["engines"][0], "target": "rtx-ada", "precision": "fp16", "backend": "tensorrt_rtx"}
    engine |= {"file": "engines/rtx-ada-fp16.engine", "format": "tensorrt-rtx"}
    manifest["engines"] = [*manifest["engines"], engine]
    manifest["precision"] = {**manifest["precision"], "chosen": {"cpu": "fp32", "rtx-ada": "fp16"}}
    decision = {key: value for key, value in bundle.decision.items() if key not in ("schema", "bundle", "seal")}
    write_bundle(path, manifest, {**bundle.files, engine["file"]: b"engine", "models/ranges.json": b"{}"})
    write_decision(path, decision)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Packages without the engine's libraries, which nobody runs."""
    monkeypatch.setattr(package, "vendor_libraries", lambda: {})
    monkeypatch.setattr(package, "_check_runs", lambda *_: None)


def test_engines_of_other_targets_stay_out_and_thresholds_stay(quick, tiny_bundle, tmp_path):
    whole = read_bundle(with_other_engine(tiny_bundle))
    made = package_from_bundle(tiny_bundle, tmp_path / "pkg").bundle
    assert made.files.keys() == {"models/fp32.onnx"}
    assert made.manifest["precision"]["chosen"] == {"cpu": "fp32"}
    assert [engine["target"] for engine in made.manifest["engines"]] == ["cpu"]
    assert made.thresholds == whole.thresholds
    assert made.manifest["provenance"]["packaged_from"] == whole.seal
    assert made.decision["fit"] == {**whole.decision["fit"], "packaged_from": whole.decision["seal"]}
    assert read_bundle(tiny_bundle).seal == whole.seal


def test_a_package_is_replaced_unless_it_holds_anything_else(quick, tiny_bundle, tmp_path):
    output = tmp_path / "pkg"
    package_from_bundle(tiny_bundle, output)
    write_decision(
        tiny_bundle, {"regions": [{"name": "all", "threshold": 0.25}], "k": 2, "run_agreement": 0.7, "fit": {}}
    )
    assert package_from_bundle(tiny_bundle, output).bundle.decision["k"] == 2
    mine = output / "examples" / "mine.c"
    for change in (lambda: mine.write_text("mine"), lambda: (output / "README.txt").write_text("mine")):
        change()
        before = contents(output)
        with pytest.raises(InputError, match=r"holds (examples/mine.c|README.txt), which was added or changed"):
            package_from_bundle(tiny_bundle, output)
        assert contents(output) == before
        mine.unlink(missing_ok=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["file", "folder", "link", "bundle", "in the bundle", "list of nothing"])
def test_a_place_that_holds_something_else(quick, tiny_bundle, tmp_path, place):
    output = tmp_path / "pkg"
    if place == "file":
        output.write_text("mine")
    elif place == "folder":
        output.mkdir()
    elif place == "link":
        package_from_bundle(tiny_bundle, tmp_path / "real")
        output.symlink_to(tmp_path / "real")
    elif place == "list of nothing":
        output.mkdir()
        (output / "package.json").write_text("[]")
    else:
        output = tiny_bundle / "pkg" if place == "in the bundle" else tiny_bundle
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"choose another folder$"):
        package_from_bundle(tiny_bundle, output)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["rtx-ada", "jetson-orin", "tpu"])
def test_targets_that_are_not_packaged(tiny_bundle, tmp_path, target):
    words = {"rtx-ada": "TensorRT-RTX must fit", "jetson-orin": "TensorRT must fit", "tpu": "choose cpu"}[target]
    with pytest.raises(InputError, match=words):
        package_from_bundle(tiny_bundle, tmp_path / "pkg", target=target)


def test_bundles_that_hold_no_engine_for_it(tiny_bundle, tmp_path):
    bundle = read_bundle(tiny_bundle)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    other = {**manifest["engines"][0], "backend": "identity"}
    for change, words in (
        ({"engines": [], "precision": {**manifest["precision"], "chosen": {}}}, r"no engine for cpu \(it has: none\)"),
        ({"engines": [other]}, "run by backend 'identity'"),
    ):
        write_bundle(tiny_bundle, {**manifest, **change}, bundle.files)
        with pytest.raises(BundleError, match=words):
            package_from_bundle(tiny_bundle, tmp_path / "pkg")
    with pytest.raises(BundleError, match="there is no bundle"):
        package_from_bundle(tmp_path / "no.grdb", tmp_path / "pkg")


def copied_library(tmp_path: Path, monkeypatch) -> Path:
    folder = shutil.copytree(_native.library_dir(), tmp_path / "_lib")
    monkeypatch.setenv("GRD_LIBRARY_DIR", str(folder))
    return folder


@pytest.mark.parametrize("name", ["libgrd_edge.so", "libgrd_backend_openvino.so", "include/grd_edge.h", "package"])
def test_a_library_of_ours_that_is_not_whole(tiny_bundle, tmp_path, monkeypatch, name):
    gone = copied_library(tmp_path, monkeypatch) / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(EngineError, match=rf"{name}\S* of the native library is missing .*; reinstall grd-edge"):
        package_from_bundle(tiny_bundle, tmp_path / "pkg")
    assert not (tmp_path / "pkg").exists()


def wheel(tmp_path: Path, monkeypatch, *leave_out: str) -> Path:
    """The folder of OpenVINO's libraries, some of them left out."""
    folder = tmp_path / "libs"
    folder.mkdir()
    for path in Path(_native.openvino_dir()).iterdir():
        if not path.name.startswith(leave_out):
            (folder / path.name).symlink_to(path)
    monkeypatch.setattr(_native, "openvino_dir", lambda: str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("libopenvino_c", "holds no library whose name is libopenvino_c"),
        ("libopenvino_onnx_frontend", "holds no library whose name is libopenvino_onnx_frontend"),
        ("libtbb.so", r"libtbb\.so\.12, which OpenVINO's libraries need, is neither in"),
    ],
)
def test_a_wheel_of_openvino_that_is_not_whole(tiny_bundle, tmp_path, monkeypatch, name, words):
    wheel(tmp_path, monkeypatch, name)
    with pytest.raises(EngineError, match=words):
        package_from_bundle(tiny_bundle, tmp_path / "pkg")


def test_a_library_that_is_none(tmp_path, monkeypatch):
    broken = wheel(tmp_path, monkeypatch, "libtbb.so") / "libtbb.so.12"
    for data in (b"no library", b"\x7fELF\x02\x01" + bytes(100), Path(sys.executable).read_bytes()[:5000]):
        broken.write_bytes(data)
        with pytest.raises(EngineError, match=r"libtbb\.so\.12 is no shared library of this system"):
            package_content.vendor_libraries()


def test_no_wheel_of_openvino(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "openvino_dir", lambda: None)
    with pytest.raises(EngineError, match="pip install openvino"):
        package_from_bundle(tiny_bundle, tmp_path / "pkg")


def test_libraries_are_not_passed_on_without_their_licenses(monkeypatch):
    def nothing(name: str):
        raise package_content.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(package_content.metadata, "distribution", nothing)
    with pytest.raises(EngineError, match="license text LICENSE was not found"):
        package_content.vendor_licenses()


def test_a_package_that_does_not_run_is_not_written(tiny_bundle, tmp_path, monkeypatch):
    output = tmp_path / "pkg"
    with monkeypatch.context() as quickly:
        quickly.setattr(package, "_check_runs", lambda *_: None)
        package_from_bundle(tiny_bundle, output)
    before = contents(output)
    monkeypatch.setattr(package, "vendor_libraries", lambda: {})
    with pytest.raises(CheckFailedError, match=r"does not inspect a frame \(.*libopenvino_c\.so"):
        package_from_bundle(tiny_bundle, output)
    assert contents(output) == before
    assert [path.name for path in tmp_path.iterdir() if "pkg" in path.name] == ["pkg"]


def test_the_frame_that_it_is_tried_with_fits_mask_and_areas(tiny_bundle, tmp_path):
    regions = [{"name": "left", "threshold": 0.5, "areas": [[0, 0, 50, 40]]}]
    write_decision(tiny_bundle, {"frame_px": [50, 60], "regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})
    package_from_bundle(tiny_bundle, tmp_path / "areas")
    bundle = read_bundle(tiny_bundle)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    mask = pgm_from_mask(np.eye(45, 70, dtype=bool))
    write_bundle(tiny_bundle, {**manifest, "roi": "roi.pgm"}, {**bundle.files, "roi.pgm": mask})
    assert package_from_bundle(tiny_bundle, tmp_path / "mask").bundle.roi.shape == (45, 70)


def test_no_space_left_at_every_writing_call(quick, tiny_bundle, tmp_path, monkeypatch):
    """With and without an older package; every third call, since the files of a package are alike."""
    out = tmp_path / "out"
    disk = FullDisk(out, monkeypatch)
    for older in (False, True):
        for n in range(0, 1000, 3):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            if older:
                package_from_bundle(tiny_bundle, out / "pkg")
            before = contents(out)
            disk.start(n)
            try:
                package_from_bundle(tiny_bundle, out / "pkg")
                break
            except InputError as error:
                assert str(out / "pkg ") in str(error) and "No space left on device" in str(error)
            finally:
                disk.stop()
            assert contents(out) == before
            assert [path.name for path in out.iterdir()] == (["pkg"] if older else [])
        assert n > 30


def test_the_command_line(quick, tiny_bundle, tmp_path, capsys):
    assert run_cli("package", tiny_bundle, "-o", tmp_path / "pkg", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["precision"], told["bundle"]) == ("cpu", "fp32", "tiny.grdb")
    assert told["bytes"] == sum(entry["bytes"] for entry in told["files"].values())
    assert run_cli("package", tiny_bundle, "-o", tmp_path / "pkg") == 0
    assert "glibc" in capsys.readouterr().out
    assert run_cli("package", tiny_bundle, "-o", tmp_path) == 1
    assert capsys.readouterr().err.startswith("grd-edge: ")
    assert run_cli("package", tiny_bundle) == 2


def test_what_packages_needs_no_training_stack(tiny_bundle):
    code = "import sys, grd_edge.package; print(sorted({'torch', 'onnx', 'pydantic', 'yaml'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_its_readme_is_right(made, tmp_path):
    """The commands that it tells, as they are printed, in a copy of the folder."""
    told = (made / "README.txt").read_text()
    commands = re.findall(r"^  ((?:cc|export|cmake|\./).*)$", told.partition("Compile and run")[2], re.M)
    assert len(commands) == 5
    copy, frames = shutil.copytree(made, tmp_path / "copy"), tmp_path / "frames"
    frames.mkdir()
    write_frame(frames / "frame.pgm")
    script = "\n".join(commands).replace("FOLDER_OF_PGM_OR_PPM_IMAGES", f"{frames} || [ $? = 3 ]")
    lines = "./line_loop build/line_loop build/line_loop_cpp"
    script += f"\nfor line in {lines}; do $line tiny.grdb {frames} || [ $? = 3 ]; done"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GRD_VENDOR_DIR", "LD_LIBRARY_PATH")
    }
    done = subprocess.run(["sh", "-e", "-c", script], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("1 frames: ") == 4
