"""The TensorRT runner on a device of plain memory: copies, graphs, splitting, refusals, and what is given back."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from grd_edge.engine import cuda_driver, tensorrt
from grd_edge.engine.cuda_driver import CudaBindings, PyCuda
from grd_edge.engine.tensorrt import TensorRtEngine, runtime_cache_name
from grd_edge.errors import EngineError, EngineMismatchError, MissingExtraError
from grd_edge.targets import TARGETS
from tests.engine.fakes import (
    DEVICE,
    FINGERPRINT,
    FakePyCuda,
    FakeRuntime,
    FakeTensorRt,
    Status,
    engine_bytes,
    refused,
)

CLASSIC = replace(FINGERPRINT, library="tensorrt", version="10.13.3.9", compute_capabilities="8.9")


class Machine:
    """A runner's surroundings; `open` gives an engine of x_hat = x / 2."""

    def __init__(self, monkeypatch) -> None:
        self.patch = monkeypatch
        self.use(FakeRuntime())

    def use(self, runtime, *, classic=False) -> None:
        self.cuda = runtime
        version = CLASSIC.version if classic else FINGERPRINT.version
        self.trt = FakeTensorRt(runtime, is_rtx=not classic, version=version)
        self.fingerprint, self.target = (CLASSIC, "trt") if classic else (FINGERPRINT, "rtx-ada")
        self.patch.setitem(sys.modules, self.fingerprint.library, self.trt)

    def open(self, engine=None, *, driver=None, **options) -> TensorRtEngine:
        driver = driver or CudaBindings(self.cuda, DEVICE)
        return TensorRtEngine(engine or engine_bytes(), self.fingerprint, self.target, cuda=driver, **options)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def patches(n: int, shape=(1, 3, 5)) -> np.ndarray:
    return np.random.default_rng(n).random((n, *shape), np.float32)


def io(x: str, x_hat: str, shape=(-1, 1, 3, 5)) -> list:
    return [["x_hat", "OUTPUT", x_hat, list(shape)], ["x", "INPUT", x, list(shape)]]


class TestRunning:
    @pytest.mark.parametrize("classic", [False, True])
    def test_every_batch_size_twice_and_split(self, machine, classic):
        machine.use(FakeRuntime(), classic=classic)
        with machine.open() as engine:
            assert engine.patch_shape == (1, 3, 5)
            assert (engine.no_graphs, "GeForce RTX 4090 (8.9)" in engine.version) == ("", True)
            held = machine.cuda.held
            for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 0):
                for x in (patches(n), patches(n) + 1):
                    assert np.array_equal(engine.reconstruct(x), x / 2)
            sizes = {1, 2, 3, 7, 8}
            assert machine.cuda.held == held + len(sizes), "a graph for each size, and no other allocation"
            assert machine.cuda.calls.count("cudaStreamBeginCapture") == len(sizes)
            assert len(machine.trt.contexts) == len(sizes)
        assert machine.cuda.held == 0

    def test_a_known_size_is_one_launch(self, machine):
        with machine.open() as engine:
            engine.reconstruct(patches(3))
            before = len(machine.cuda.calls)
            engine.reconstruct(patches(3))
            assert machine.cuda.calls[before:] == ["cudaGraphLaunch", "cudaStreamSynchronize"]

    @pytest.mark.parametrize("x, x_hat", [("HALF", "HALF"), ("FLOAT", "HALF"), ("HALF", "FLOAT")])
    def test_half_on_either_side(self, machine, x, x_hat):
        with machine.open(engine_bytes(io=io(x, x_hat))) as engine:
            given = patches(11)
            for _ in range(2):
                found = engine.reconstruct(given)
                assert found.dtype == np.float32
                assert np.abs(found - given / 2).max() <= 2**-11
        assert machine.cuda.held == 0

    def test_scores_of_the_graphs_own(self, machine):
        machine.trt.functions["scores"] = lambda x: np.concatenate([x[:, :1, :1] + 7, x[:, :1] * 3], axis=2)
        described = [["y", "OUTPUT", "FLOAT", [-1, 1, 4, 5]], ["x", "INPUT", "FLOAT", [-1, 2, 3, 5]]]
        with machine.open(engine_bytes(io=described, function="scores")) as engine:
            assert (engine.patch_shape, engine.output_shape) == ((2, 3, 5), (1, 4, 5))
            for n in (3, 3, 19):
                x = patches(n, (2, 3, 5))
                assert np.array_equal(engine.reconstruct(x), machine.trt.functions["scores"](x))
        assert machine.cuda.held == 0

    def test_a_limit_of_the_batch_takes_less_memory(self, machine):
        with machine.open(batch_limit=2) as engine:
            assert engine._pinned[0].nbytes == 2 * 15 * 4
            x = patches(7)
            assert np.array_equal(engine.reconstruct(x), x / 2)
        with machine.open(batch_limit=99) as engine:
            assert engine._pinned[0].nbytes == 8 * 15 * 4

    def test_batches_smaller_than_the_engine_takes(self, machine):
        with machine.open(engine_bytes(profile=[4, 4, 6]), batch_limit=1) as engine:
            for n in (1, 3, 4, 5):
                x = patches(n)
                assert np.array_equal(engine.reconstruct(x), x / 2)
            assert list(engine._graphs) == [4]

    def test_patches_that_are_not_dense(self, machine):
        with machine.open() as engine:
            x = patches(6, (1, 5, 3)).transpose(0, 1, 3, 2)[::2]
            assert np.array_equal(engine.reconstruct(x), x / 2)

    def test_more_sizes_than_graphs(self, machine, monkeypatch):
        monkeypatch.setattr(tensorrt, "GRAPHS", 2)
        with machine.open() as engine:
            for _ in range(2):
                for n in (1, 2, 3, 5):
                    assert np.array_equal(engine.reconstruct(patches(n)), patches(n) / 2)
            assert list(engine._graphs) == [1, 2]
            assert (len(machine.trt.contexts), engine.no_graphs) == (3, "")

    def test_rtx_compiles_before_the_capture_and_shares_memory(self, machine):
        with machine.open() as engine:
            assert engine._setting.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            assert engine._setting.strategy.name == "USER_MANAGED"
            engine.reconstruct(patches(1))
            engine.reconstruct(patches(2))
            assert len({context.workspace for context in machine.trt.contexts}) == 1

    def test_an_engine_without_workspace(self, machine):
        with machine.open(engine_bytes(workspace=0)) as engine:
            assert np.array_equal(engine.reconstruct(patches(2)), patches(2) / 2)
        assert machine.cuda.held == 0


class TestFallBack:
    """No graph: the same results, and the reason."""

    def check(self, machine, engine, reason, contexts=2):
        for _ in range(2):
            for n in (2, 8, 17):
                assert np.array_equal(engine.reconstruct(patches(n)), patches(n) / 2)
        assert reason in engine.no_graphs
        assert (len(machine.trt.contexts), engine._graphs) == (contexts, {})
        engine.close()
        assert machine.cuda.held == 0

    @pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_cuda_refuses(self, machine, call):
        machine.use(FakeRuntime(**{call: (1, Status.cudaErrorStreamCaptureInvalidated)}))
        self.check(machine, machine.open(), f"a batch of 2 could not be captured: {call} failed")
        assert machine.cuda.calls.count("cudaStreamBeginCapture") == 1, "it is not tried again"

    def test_a_copy_that_cannot_be_captured(self, machine):
        machine.use(FakeRuntime(cudaMemcpyAsync=(3, Status.cudaErrorInvalidValue)))
        self.check(machine, machine.open(), "cudaErrorInvalidValue: words of 1")

    def test_tensorrt_says_no(self, machine):
        machine.trt.capturable = False
        self.check(machine, machine.open(), "TensorRT says that this engine cannot be captured")

    def test_pycuda_has_no_capture(self, machine):
        driver = FakePyCuda(machine.cuda)
        engine = machine.open(driver=PyCuda(driver, DEVICE))
        self.check(machine, engine, "pycuda cannot capture a stream; install cuda-bindings", contexts=1)
        assert driver.pushed == 0

    def test_a_later_size_keeps_the_graphs_there_are(self, machine):
        machine.use(FakeRuntime(cudaGraphInstantiate=(2, Status.cudaErrorMemoryAllocation)))
        with machine.open() as engine:
            for n in (1, 2, 3, 1):
                assert np.array_equal(engine.reconstruct(patches(n)), patches(n) / 2)
            assert list(engine._graphs) == [1]
            assert "a batch of 2 could not be captured" in engine.no_graphs
        assert machine.cuda.held == 0


class TestFailures:
    """One sentence, and everything given back."""

    OPENING = (("cudaMalloc", 3), ("cudaHostAlloc", 2), ("cudaStreamCreateWithFlags", 1), ("cudaSetDevice", 1))

    @pytest.mark.parametrize("call, nth", [(call, n) for call, times in OPENING for n in range(1, times + 1)])
    def test_opening(self, machine, call, nth):
        machine.use(FakeRuntime(**{call: (nth, Status.cudaErrorMemoryAllocation)}))
        with pytest.raises(EngineError, match=rf"^{call} failed on the GPU \(cudaErrorMemoryAll.*; free memory of"):
            machine.open()
        assert machine.cuda.held == 0

    RUNNING = (("cudaMemcpyAsync", 1), ("cudaMemcpyAsync", 2), ("cudaStreamSynchronize", 1), ("cudaGraphLaunch", 1))

    @pytest.mark.parametrize("call, nth", RUNNING)
    def test_running(self, machine, call, nth):
        machine.use(FakeRuntime(**{call: (nth, Status.cudaErrorInvalidValue)}))
        refusal = pytest.raises(EngineError, match=rf"^{call} failed on the GPU .*; start the program again")
        with machine.open() as engine, refusal:
            for _ in range(2):
                engine.reconstruct(patches(3))
        assert machine.cuda.held == 0

    @pytest.mark.parametrize("call", ["cudaFree", "cudaFreeHost", "cudaGraphExecDestroy", "cudaStreamDestroy"])
    def test_closing_goes_on_to_the_end(self, machine, call):
        engine = machine.open()
        engine.reconstruct(patches(3))
        call = {"cudaGraphExecDestroy": "cudaGraphDestroy"}.get(call, call)
        machine.cuda.fails = {call: (machine.cuda.calls.count(call) + 1, Status.cudaErrorInvalidValue)}
        with pytest.raises(EngineError, match="failed on the GPU"):
            engine.close()
        assert machine.cuda.held == 0
        engine.close()

    def test_tensorrt_does_not_run_it(self, machine):
        with machine.open() as engine:
            machine.trt.refuses = True
            with pytest.raises(EngineError, match=r"does not run a batch of 3 \(out of luck\)"):
                engine.reconstruct(patches(3))
            machine.trt.refuses = False
            assert np.array_equal(engine.reconstruct(patches(3)), patches(3) / 2)

    def test_tensorrt_makes_no_context(self, machine):
        machine.trt.no_context = True
        with machine.open() as engine, pytest.raises(EngineError, match="makes no context"):
            engine.reconstruct(patches(1))
        assert machine.cuda.held == 0

    def test_patches_of_another_shape_or_type(self, machine):
        with machine.open() as engine:
            for x in (patches(2, (1, 5, 3)), patches(2).astype(np.float64), patches(2)[0], patches(2, (3, 3, 5))):
                with pytest.raises(EngineError, match=r"takes float32 \(N, 1, 3, 5\)"):
                    engine.reconstruct(x)

    def test_closed(self, machine):
        engine = machine.open()
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.reconstruct(patches(1))


class TestRefusals:
    """Before the library sees it where that can be told, in one sentence where it cannot."""

    @pytest.mark.parametrize("cut", [0, 3, 10, 100])
    def test_truncated(self, machine, cut):
        with pytest.raises(EngineError, match=r"does not (take|read) the engine.*build it again with: grd-edge build"):
            machine.open(engine_bytes()[:cut] or b"-")
        assert machine.cuda.held == 0

    def test_the_first_error_is_told(self, machine):
        with pytest.raises(EngineError, match=r"does not read the engine of 7 bytes \(cannot parse"):
            machine.open(b"planxxx")

    @pytest.mark.parametrize("bits, kind, words", [(2, EngineMismatchError, "cc"), (32, EngineError, "malf")])
    def test_what_the_header_says(self, machine, bits, kind, words):
        machine.trt.diagnostics = bits
        with pytest.raises(EngineError, match=words) as caught:
            machine.open()
        assert type(caught.value) is kind
        assert machine.cuda.held == 0

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"compute_capabilities": "8.6"}, "built for compute capability 8.6 and NVIDIA GeForce RTX 4090 has 8.9"),
            ({"version": "1.6.0.5"}, "built with tensorrt_rtx 1.6.0.5 and 1.7.1.116 is installed"),
            ({"driver_floor": "590.10"}, "needs the NVIDIA driver 590.10 or later and 580.65.06"),
        ],
    )
    def test_of_another_part(self, machine, changes, words):
        machine.fingerprint = replace(FINGERPRINT, **changes)
        with pytest.raises(EngineMismatchError, match=words):
            machine.open()
        assert machine.cuda.held == 0
        assert not hasattr(machine.trt, "log"), "the library has not seen it"

    @pytest.mark.parametrize(
        "tensors, words",
        [
            ([], "it has no tensors"),
            (io("FLOAT", "INT8"), "INT8"),
            (io("FLOAT", "FLOAT")[:1], "x_hat FLOAT"),
            (io("FLOAT", "FLOAT", (-1, 15)), r"\(-1, 15\)"),
            ([["a", "INPUT", "FLOAT", [-1, 1, 3, 5]], ["b", "OUTPUT", "FLOAT", [-1, 1, 3, 4]]], r"\(-1, 1, 3, 4\)"),
            (io("FLOAT", "FLOAT", (-1, 1, -1, 5)), "-1, 1, -1"),
            ([["a", "INPUT", "FLOAT", [-1, 1, 3, 5]], ["b", "INPUT", "FLOAT", [-1, 1, 3, 5]]], "a FLOAT"),
        ],
    )
    def test_no_generator(self, machine, tensors, words):
        with pytest.raises(EngineError, match=f"of no bundle.*{words}.*one input and one output"):
            machine.open(engine_bytes(io=tensors))
        assert machine.cuda.held == 0

    def test_library_missing(self, machine, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        with pytest.raises(MissingExtraError, match=r"tensorrt_rtx is needed .*pip install 'grd-edge\[gpu\]'"):
            machine.open()
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingExtraError, match=r"jetson-orin .*python3-libnvinfer package of JetPack"):
            tensorrt.library_of(TARGETS["jetson-orin"])

    @pytest.mark.parametrize("version", ["8.6.1", "10.2.0.19", "12.0.1"])
    def test_a_release_that_is_not_known(self, machine, version):
        machine.use(FakeRuntime(), classic=True)
        machine.trt.__version__ = version
        with pytest.raises(EngineMismatchError, match=rf"TensorRT {version} is installed and 10.3 to 11.x are known"):
            machine.open()

    def test_no_driver(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(FakeRuntime()))
        monkeypatch.setattr(cuda_driver, "device_here", refused)
        with pytest.raises(EngineError, match="there is no NVIDIA driver on this machine"):
            TensorRtEngine(engine_bytes(), FINGERPRINT, "rtx-ada")


class TestRuntimeCache:
    """What TensorRT-RTX compiled, from run to run."""

    def test_written_when_it_grows_and_read_again(self, machine, tmp_path):
        folder = tmp_path / "kernels"
        with machine.open(cache_dir=folder) as engine:
            engine.reconstruct(patches(1))
            (path,) = folder.iterdir()
            assert path.name == runtime_cache_name(engine_bytes(), DEVICE)
            assert path.read_bytes() == b"kernels\x01"
            written = path.stat().st_ino
            engine.reconstruct(patches(1))
            assert path.stat().st_ino == written
            engine.reconstruct(patches(2))
            assert path.read_bytes() == b"kernels\x01\x02"
            assert engine.no_cache == ""
        with machine.open(cache_dir=folder) as engine:
            assert engine._cache.kernels == b"kernels\x01\x02"
        assert [each.name for each in folder.iterdir()] == [path.name]

    def test_a_name_for_each_engine_and_device(self):
        names = {
            runtime_cache_name(engine, device)
            for engine in (engine_bytes(), engine_bytes(gain=2))
            for device in (DEVICE, replace(DEVICE, name="RTX A2000/8"), replace(DEVICE, compute_capability="8.6"))
        }
        assert len(names) == 6
        assert all("/" not in name and name.endswith(".cache") for name in names)

    def test_one_that_is_refused_is_replaced(self, machine, tmp_path):
        path = tmp_path / runtime_cache_name(engine_bytes(), DEVICE)
        path.write_bytes(b"of another driver")
        with machine.open(cache_dir=tmp_path) as engine:
            assert np.array_equal(engine.reconstruct(patches(1)), patches(1) / 2)
        assert path.read_bytes() == b"kernels\x01"

    def test_a_folder_that_cannot_be_written_stops_nothing(self, machine, tmp_path):
        (tmp_path / "file").write_text("")
        with machine.open(cache_dir=tmp_path / "file") as engine:
            assert np.array_equal(engine.reconstruct(patches(1)), patches(1) / 2)
            assert "cannot be written" in engine.no_cache

    def test_classic_and_no_folder(self, machine, tmp_path):
        with machine.open() as engine:
            assert engine.no_cache == "no folder was given"
        machine.use(FakeRuntime(), classic=True)
        with machine.open(cache_dir=tmp_path) as engine:
            engine.reconstruct(patches(2))
            assert "compiles nothing" in engine.no_cache
        assert list(tmp_path.iterdir()) == []
