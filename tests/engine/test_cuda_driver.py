"""Which package gives CUDA, and what it says where it cannot; the real cuda-bindings where there is no driver."""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np
import pytest

from grd_edge.engine import cuda_driver
from grd_edge.engine.cuda_driver import CudaBindings, PyCuda, opened_cuda
from grd_edge.errors import EngineError, MissingExtraError
from tests.engine.fakes import DEVICE, FakePyCuda, FakeRuntime, Status


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(cuda_driver, "device_here", lambda: DEVICE)


def test_cuda_bindings_come_first(monkeypatch, device):
    runtime = FakeRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setitem(sys.modules, "pycuda.driver", FakePyCuda(runtime))
    found = opened_cuda()
    assert (found.name, found.no_graphs, found.device) == ("cuda-bindings for CUDA 13.5", "", DEVICE)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert isinstance(opened_cuda(), PyCuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingExtraError, match=r"cuda-bindings or pycuda is needed .*pip install 'grd-edge\[gpu\]'"):
        opened_cuda()


def test_a_driver_that_is_too_old():
    runtime = FakeRuntime(cudaGetDeviceCount=(1, Status.cudaErrorInsufficientDriver))
    with pytest.raises(EngineError, match=r"for CUDA 12\.6, too old for .*13\.5 .*'cuda-bindings==12\.\*'"):
        CudaBindings(runtime, DEVICE)
    assert runtime.held == 0


@pytest.mark.parametrize("name", ["init", "retain_primary_context", "Stream", "mem_alloc", "pagelocked_zeros"])
def test_what_pycuda_refuses(name):
    runtime = FakeRuntime()
    driver = FakePyCuda(runtime, fails=name)
    refusal = pytest.raises(EngineError, match=r"of pycuda failed on the GPU \(.* failed: out of memory\); free memory")
    with refusal, closing(PyCuda(driver, DEVICE)) as cuda:
        cuda.allocate(4)
        cuda.pin(4)
    assert driver.pushed == 0


def test_pycuda_copies(device):
    runtime = FakeRuntime()
    cuda = PyCuda(FakePyCuda(runtime), DEVICE)
    memory, other, pointer = cuda.pin(6), cuda.pin(6), cuda.allocate(6)
    memory[:] = range(6)
    cuda.copy_in(pointer, memory, 6)
    cuda.copy_out(other, pointer, 4)
    assert not other.any(), "nothing runs before it is waited for"
    cuda.synchronize()
    assert np.array_equal(other, [0, 1, 2, 3, 0, 0])
    cuda.free(pointer)
    cuda.unpin(memory)
    cuda.unpin(other)
    assert runtime.held == 0


def test_the_names_that_are_used_are_those_of_cuda_bindings():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is missing: pip install 'grd-edge[gpu]'")
    for name in (name for name in vars(FakeRuntime) if name.startswith("cuda")):
        assert hasattr(real, name), name
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t"):
        for member in getattr(FakeRuntime, kind):
            assert getattr(getattr(real, kind), member.name) == member.value, member


def test_real_cuda_bindings_without_a_driver():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is missing: pip install 'grd-edge[gpu]'")
    if real.cudaGetDeviceCount()[0] == 0:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(EngineError, match=r"too old for cuda-bindings .*(insufficient|no CUDA)|failed on the GPU"):
        CudaBindings(real, DEVICE)
    with pytest.raises(EngineError, match=r"^there is no NVIDIA driver .*; run this on a machine with"):
        opened_cuda()
