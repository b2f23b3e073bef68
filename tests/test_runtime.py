"""The native engine through the C API: same answers as the definitions and as PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grd_edge.engine.torch import TorchInspector
from grd_edge.errors import BundleError, EngineError, InputError
from grd_edge.runtime import Inspector


def test_the_engine_agrees_with_torch(tiny_bundle, tiny_checkpoint):
    reference = TorchInspector(tiny_checkpoint, threshold=float(np.float32(0.4)))
    rng = np.random.default_rng(4)
    with Inspector(tiny_bundle, batch_limit=4) as engine:
        for shape in [(32, 32), (40, 47), (90, 75, 3), (32, 200)]:
            frame = rng.integers(0, 256, shape, np.uint8)
            ours, theirs = (i.inspect(frame, heatmap=True, x_hat=True) for i in (engine, reference))
            assert np.array_equal(ours.positions, theirs.positions)
            assert np.abs(ours.x_hat - theirs.x_hat).max() <= 2e-5
            assert np.abs(ours.phi - theirs.phi).max() <= 1e-4
            assert np.abs(ours.phi_local - theirs.phi_local).max() <= 1e-4
            assert np.abs(ours.heatmap - theirs.heatmap).max() <= 2e-5
            assert np.array_equal(ours.defective, theirs.defective)
            assert ours.decision == theirs.decision
            assert ours.times_ms["total"] >= ours.times_ms["infer"] > 0


def test_decisions_follow_the_threshold(tiny_bundle):
    from grd_edge.bundle import write_decision

    frame = np.random.default_rng(5).integers(0, 256, (60, 60), np.uint8)
    with Inspector(tiny_bundle) as engine:
        phi = engine.inspect(frame).phi
    ordered = np.sort(phi)[::-1]
    for k in (1, 3):
        for threshold, expected in (
            (float(ordered[k - 1]), "defective"),  # score < threshold is good, equality is not
            (float(np.nextafter(ordered[k - 1], np.float32(9))), "good"),
        ):
            regions = [{"name": "frame", "threshold": threshold}]
            write_decision(tiny_bundle, {"regions": regions, "k": k, "run_agreement": 0.7, "fit": {}})
            with Inspector(tiny_bundle) as engine:
                result = engine.inspect(frame)
            assert result.decision == expected
            assert result.score == ordered[k - 1]
            assert result.defective.sum() == (phi >= np.float32(threshold)).sum()


def test_answers_do_not_depend_on_the_batch_limit_or_on_earlier_frames(tiny_bundle):
    frames = [np.random.default_rng(s).integers(0, 256, (50 + 9 * s, 70), np.uint8) for s in range(3)]
    with Inspector(tiny_bundle, batch_limit=1) as one, Inspector(tiny_bundle, batch_limit=16, threads=1) as many:
        for frame in (*frames, *reversed(frames)):
            a, b = one.inspect(frame), many.inspect(frame)
            assert np.abs(a.phi - b.phi).max() <= 1e-5


def test_bad_frames_are_one_sentence_and_the_inspector_goes_on(tiny_bundle):
    with Inspector(tiny_bundle) as engine:
        for frame in (
            np.zeros((31, 64), np.uint8),
            np.zeros((64, 64, 2), np.uint8),
            np.zeros((64, 64, 4), np.uint8),
            np.zeros((64, 64), np.float64),
            np.zeros((64,), np.uint8),
        ):
            with pytest.raises(InputError) as caught:
                engine.inspect(frame)
            assert "\n" not in str(caught.value)
        assert engine.inspect(np.zeros((40, 40), np.uint8)).decision in ("good", "defective")
    with pytest.raises(InputError, match="closed"):
        engine.inspect(np.zeros((40, 40), np.uint8))
    engine.close()


def test_missing_engines_and_backends_are_named(tiny_bundle, tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="int8"):
        Inspector(tiny_bundle, precision="int8")
    with pytest.raises(BundleError, match="rtx"):
        Inspector(tiny_bundle, target="rtx")
    with pytest.raises(EngineError, match="libgrd_backend_openvino"):
        Inspector(tiny_bundle, backend_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("grd_edge._native.openvino_dir", lambda: str(tmp_path / "empty"))
    with pytest.raises(EngineError, match="libopenvino_c"):
        Inspector(tiny_bundle)


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle_files, tmp_path_factory):
    """The tiny bundle with an INT8 engine beside the FP32 one."""
    import onnx

    from grd_edge.bundle import MODEL, read_bundle, write_bundle
    from grd_edge.files import sha256_hex
    from grd_edge.quantize import layers_of, qdq_from_onnx
    from grd_edge.ranges import RangeTable

    tiny = read_bundle(tiny_bundle_files)
    model = tiny.files[MODEL]
    ranges = {layer.tensor: (-4.0, 4.0) for layer in layers_of(onnx.load_from_string(model)) if layer.tensor != "x"}
    table = RangeTable("minmax", sha256_hex(model), "0" * 64, 1, 1, ranges)
    files = {**tiny.files, "models/int8-openvino.onnx": qdq_from_onnx(model, table, style="openvino")}
    manifest = {key: value for key, value in tiny.manifest.items() if key not in ("schema", "files", "seal")}
    engine = {**manifest["engines"][0], "precision": "int8", "file": "models/int8-openvino.onnx"}
    path = tmp_path_factory.mktemp("int8") / "int8.grdb"
    write_bundle(path, {**manifest, "engines": [*manifest["engines"], engine]}, files)
    return path


FRAME = np.random.default_rng(3).integers(0, 256, (40, 47), np.uint8)


def x_hats(bundle, precision):
    with Inspector(bundle, precision=precision) as engine:
        return engine.inspect(FRAME, x_hat=True).x_hat


def test_int8_is_run_as_the_reference_runs_it(int8_bundle):
    from grd_edge.bundle import read_bundle
    from grd_edge.engine.openvino import OpenVinoEngine

    bundle = read_bundle(int8_bundle)
    patches = bundle.grid.cut(FRAME[None].astype(np.float32) / 255)
    reference = OpenVinoEngine(bundle.files["models/int8-openvino.onnx"], "int8").reconstruct(patches)
    found = x_hats(int8_bundle, "int8")
    assert np.abs(found - reference).max() <= 1e-5
    assert 1e-3 < np.abs(found - x_hats(int8_bundle, "fp32")).max() < 0.5


REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
typedef int (*compile_model)(const void *, const void *, const char *, size_t, void **, ...);
int ov_core_compile_model(const void *core, const void *model, const char *device, size_t count, void **out, ...) {
    const char *s[10] = {0};
    int refused = 0;
    va_list list;
    va_start(list, out);
    for (size_t i = 0; i < count; i++) s[i] = va_arg(list, const char *);
    va_end(list);
    for (size_t i = 0; i < count; i += 2) refused |= strcmp(s[i], "SNIPPETS_MODE") == 0;
    fprintf(stderr, refused ? "refused\n" : "compiled\n");
    if (refused) return -1;
    return ((compile_model)dlsym(RTLD_NEXT, "ov_core_compile_model"))(core, model, device, count, out, s[0], s[1],
                                                                      s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9]);
}
"""


def test_an_openvino_that_refuses_a_property_of_int8_runs_it_without(int8_bundle, tmp_path, monkeypatch, capfd):
    """A library before OpenVINO's own that knows no SNIPPETS_MODE."""
    from grd_edge import _native

    expected = x_hats(int8_bundle, "int8")
    real = Path(_native.openvino_dir())
    (library,) = real.glob("libopenvino_c.so*")
    (tmp_path / "shim.c").write_text(REFUSING, encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-rpath,{real}", "-o"]
    command += [str(tmp_path / "libopenvino_c.so"), str(tmp_path / "shim.c"), str(library), "-ldl"]
    subprocess.run(command, check=True)
    monkeypatch.setattr(_native, "openvino_dir", lambda: str(tmp_path))
    capfd.readouterr()
    assert np.abs(x_hats(int8_bundle, "int8") - expected).max() <= 0.05
    said = capfd.readouterr().err.split()
    assert said[:2] == ["refused", "compiled"]
    assert said.count("refused") == 1  # it is asked once
    x_hats(int8_bundle, "fp32")
    assert "refused" not in capfd.readouterr().err


CLOSED_ELSEWHERE = """
import ctypes, os, signal, sys, threading

from grd_edge.bundle import MODEL
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.runtime import Inspector

class Stack(ctypes.Structure):
    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))

def stack():
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.ss_sp, found.ss_flags, found.ss_size

before, seen, path = stack(), [], sys.argv[1]
if sys.argv[2] == "native":
    engines = [Inspector(path)]
else:
    with open(f"{path}/{MODEL}", "rb") as file:
        engines = [OpenVinoEngine(file.read())]
assert stack() == before
closing = threading.Thread(target=engines.clear)
closing.start()
closing.join()
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
assert seen == [signal.SIGUSR1]
"""


@pytest.mark.parametrize("engine", ["native", "python"])
def test_an_engine_may_be_closed_by_another_thread_than_opened_it(tiny_bundle, engine):
    """OpenVINO would leave this thread with a signal stack that is freed with the engine. A process of its own, since
    whatever else loads OpenVINO does that to its thread."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_ELSEWHERE, str(tiny_bundle), engine], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_runtime_leaves_the_training_stack_unloaded():
    heavy = ("torch", "onnx", "cv2", "openvino", "pydantic")
    line = ("runtime", "stream", "streaming", "sources", "slots", "kernels", "bundle", "decide", "patches", "_native")
    code = f"import sys, {', '.join('grd_edge.' + name for name in line)}\n"
    code += f"print(sorted(set({heavy}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TURNS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from grd_edge.runtime import Inspector


def anonymous_bytes():
    resident, shared = map(int, Path("/proc/self/statm").read_text(encoding="utf-8").split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


frame, calls = np.zeros((32, 32), np.uint8), 3000
with Inspector(sys.argv[1], threads=1) as inspector, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:

    def inspect(count):
        for _ in range(count):
            for thread in (one, other):
                thread.submit(inspector.inspect, frame).result()

    inspect(calls // 10)
    before = anonymous_bytes()
    inspect(calls)
    print(anonymous_bytes() - before)
"""


def test_an_engine_that_threads_use_in_turn_takes_no_more_memory(tiny_bundle):
    """OpenVINO lost a kilobyte a call when these came from several threads. In a process of its own: what the tests
    before left in the allocator makes it grow at other times."""
    done = subprocess.run([sys.executable, "-c", TURNS, tiny_bundle], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 20
