"""Mutated bundles through both readers, and the fuzz targets over their corpus.

100,000 cases under sanitizers through the C reader; through the Python reader, which is slower, every tenth of them,
or all with GRD_FUZZ_FULL=1 (`make fuzz`). docs/bundle.md says what must become of each.
"""

import ctypes
import os
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from grd_edge.bundle import read_bundle
from grd_edge.errors import BundleError

CASES = 100_000
FULL = os.environ.get("GRD_FUZZ_FULL") == "1"
PYTHON_CASES = CASES if FULL else CASES // 10
CORPUS = Path(__file__).resolve().parents[2] / "kernels" / "fuzz" / "corpus"
REFUSED, ACCEPTED, EITHER = range(3)
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


class Readers:
    """The mutations, and both readers on what they write."""

    def __init__(self, build: Path, folder: Path) -> None:
        self.bundle = folder / "b.grdb"
        self.mutations = ctypes.CDLL(str(build / "kernels" / "fuzz" / "libgrd_fuzz.so"))
        self.mutations.grd_fuzz_write.argtypes = (
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_char_p),
        )
        self.mutations.grd_fuzz_write_bytes.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p)
        self.mutations.grd_fuzz_onnx_self_contained.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        self.native = ctypes.CDLL(str(build / "libgrd_edge.so"))
        self.native.grd_bundle_open.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
        self.native.grd_bundle_message.argtypes = self.native.grd_bundle_close.argtypes = (ctypes.c_void_p,)
        self.native.grd_bundle_message.restype = ctypes.c_char_p

    def write(self, seed: int, index: int) -> tuple[int, str]:
        what = ctypes.c_char_p()
        expected = self.mutations.grd_fuzz_write(seed, index, os.fsencode(self.bundle), ctypes.byref(what))
        return expected, what.value.decode()

    def write_bytes(self, data: bytes) -> None:
        self.mutations.grd_fuzz_write_bytes(data, len(data), os.fsencode(self.bundle))

    def opened_by_c(self) -> tuple[bool, str]:
        handle = ctypes.c_void_p()
        status = self.native.grd_bundle_open(os.fsencode(self.bundle), ctypes.byref(handle))
        message = self.native.grd_bundle_message(handle).decode("utf-8", "replace")
        self.native.grd_bundle_close(handle)
        assert (status == 0) == (message == "") and "\n" not in message
        return status == 0, message

    def opened_by_python(self) -> tuple[bool, str]:
        try:
            read_bundle(self.bundle)
        except BundleError as error:
            return False, str(error)
        return True, ""


@pytest.fixture
def readers(native_build):
    """In memory where the system has such a place: bundles are written by the thousand."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="grd_fuzz_", dir=memory) as folder:
        yield Readers(native_build, Path(folder))


def run_sanitized(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=500, env={**os.environ, **SANITIZERS}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.slow
def test_no_mutated_bundle_passes_the_c_reader_or_breaks_it(sanitized_build):
    # Of 8 cases 6 must be refused, 1 accepted. Two processes, for two cores.
    part = -(-CASES // 12) * 8
    driver = sanitized_build / "kernels" / "fuzz" / "mutate_bundle"
    with ThreadPoolExecutor(2) as pool:
        printed = list(pool.map(lambda first: run_sanitized(driver, part, 1, first), (0, part)))
    for text in printed:
        assert f"refused: {part * 6 // 8} refused, 0 accepted" in text
        assert f"accepted: 0 refused, {part // 8} accepted" in text
        assert "0 wrong" in text
    assert 2 * part * 6 // 8 >= CASES


@pytest.mark.slow
def test_no_mutated_bundle_passes_the_python_reader_and_the_readers_agree(readers):
    seen, wrong = Counter(), []
    index = 0
    while seen[REFUSED] < PYTHON_CASES:
        expected, what = readers.write(1, index)
        by_c, by_python = readers.opened_by_c(), readers.opened_by_python()
        if by_c[0] != by_python[0] or (expected != EITHER and by_python[0] != (expected == ACCEPTED)):
            wrong.append((index, what, by_c, by_python))
        seen[expected] += 1
        index += 1
    assert not wrong, wrong[:5]
    assert seen[ACCEPTED] >= PYTHON_CASES // 7


@pytest.mark.parametrize("path", sorted(CORPUS.glob("bundle/*")), ids=lambda path: path.name)
def test_bundles_of_the_corpus(readers, path):
    """`accepted-…` and `refused-…`: among them each defect that fuzzing found."""
    readers.write_bytes(path.read_bytes())
    accepted = path.name.startswith("accepted-")
    assert readers.opened_by_c()[0] == accepted, readers.opened_by_c()
    assert readers.opened_by_python()[0] == accepted, readers.opened_by_python()


@pytest.mark.parametrize("target", ["bundle", "kernels", "onnx", "sha256"])
def test_fuzz_targets_run_over_their_corpus_and_changes_of_it(sanitized_build, target):
    files = sorted((CORPUS / target).glob("*"))
    assert files
    runs = {"bundle": 2_000, "kernels": 50_000}.get(target, 200_000)
    run_sanitized(sanitized_build / "kernels" / "fuzz" / f"fuzz_{target}", runs, *files)


def tensors(message):
    """All TensorProto of an ONNX message, wherever they are."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                if part.DESCRIPTOR.name == "TensorProto":
                    yield part
                yield from tensors(part)


def test_the_onnx_checker_finds_what_the_onnx_package_finds(readers):
    """A model that the package reads and that refers to other files never counts as self-contained."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    hidden = helper.make_tensor("h", TensorProto.FLOAT, [2], [1.0, 2.0])
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="away")
    nodes = [helper.make_node("Constant", [], ["c"], value=weights), helper.make_node("Add", ["x", "w"], ["y"])]
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    models = []
    for initializer in (weights, hidden):
        graph = helper.make_graph(nodes, "g", io[:1], io[1:], [initializer])
        models.append(helper.make_model(graph).SerializeToString())
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(4_000):
        data = bytearray(models[int(rng.integers(2))])
        for _ in range(int(rng.integers(0, 3))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            model = onnx.ModelProto.FromString(bytes(data))
        except DecodeError:
            found["unreadable"] += 1
            continue
        external = any(t.data_location == TensorProto.EXTERNAL or len(t.external_data) for t in tensors(model))
        verdict = readers.mutations.grd_fuzz_onnx_self_contained(bytes(data), len(data))
        assert not (external and verdict == 1), bytes(data)
        found[external, verdict] += 1
    assert found[True, 0] > 500 and found[False, 1] > 500
