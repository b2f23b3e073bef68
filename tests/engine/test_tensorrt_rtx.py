"""The runner against the real TensorRT-RTX, as far as it goes without a device: headers, damage, the driver's words."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from grd_edge.engine.cuda_driver import CudaBindings
from grd_edge.engine.fingerprint import Fingerprint
from grd_edge.engine.library import log_of
from grd_edge.engine.tensorrt import TensorRtEngine
from grd_edge.errors import EngineError
from tests.engine.fakes import DEVICE, FakeRuntime, FakeTensorRt, refused

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'grd-edge[gpu]'")


@pytest.fixture(scope="module")
def engine() -> bytes:
    """One convolution, built for compute capability 8.9."""
    shape = ["N", 1, 16, 24]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["x_hat"], pads=[1, 1, 1, 1])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("x_hat", TensorProto.FLOAT16, shape)],
        [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float16), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    log = log_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), log.words()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, *shape[1:]), (2, *shape[1:]), (4, *shape[1:]))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def damaged(engine: bytes) -> dict[str, bytes]:
    noise = np.random.default_rng(0).bytes(5000)
    header = trt.Runtime(log_of(trt)).engine_header_size
    assert 0 < header < len(engine)
    return {
        "nothing": b"",
        "one byte": engine[:1],
        "half a header": engine[: header // 2],
        "a header": engine[:header],
        "noise": noise,
        "noise after the header": engine[:header] + noise,
        "an ONNX model": b"\x08\x09\x12\x00",
        "truncated": engine[:-1],
        "half": engine[: len(engine) // 2],
        "too long": engine + b"x",
    }


def fingerprint() -> Fingerprint:
    return Fingerprint("tensorrt_rtx", trt.__version__, "8.9", "570", "fp16", "1:2:4", "0" * 64)


def test_damage_is_one_sentence(engine):
    for name, data in damaged(engine).items():
        runtime = FakeRuntime()
        with pytest.raises(EngineError, match=r"TensorRT-RTX .* does not (take|read) the engine.*; build it again"):
            TensorRtEngine(data, fingerprint(), "rtx-ada", cuda=CudaBindings(runtime, DEVICE))
        assert runtime.held == 0, name


def test_damage_never_crashes_the_process(engine, tmp_path):
    """The library alone, without the check of the header, in a process of its own."""
    for name, data in damaged(engine).items():
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys, pathlib, tensorrt_rtx as trt\n"
        "runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    data = path.read_bytes()\n"
        "    validity, bits = runtime.get_engine_validity(data)\n"
        "    assert validity == trt.EngineValidity.INVALID or len(data) >= runtime.engine_header_size\n"
        "    assert runtime.deserialize_cuda_engine(data) is None\n"
        "print('through')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["through"]), done.stderr


def test_a_sound_engine_without_a_driver(engine, monkeypatch):
    """Once by the driver's absence, once by the words of the library, should it be asked all the same."""
    monkeypatch.setattr("grd_edge.engine.cuda_driver.device_here", refused)
    with pytest.raises(EngineError, match="there is no NVIDIA driver on this machine"):
        TensorRtEngine(engine, fingerprint(), "rtx-ada")
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is missing")
    if runtime.cudaGetDeviceCount()[0] == 0:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(EngineError, match=r"does not take the engine \(.*CUDA driver version is insufficient"):
        TensorRtEngine(engine, fingerprint(), "rtx-ada", cuda=CudaBindings(FakeRuntime(), DEVICE))


def test_the_names_that_are_used_are_those_of_the_library():
    for kind in (
        "DataType",
        "TensorIOMode",
        "DynamicShapesKernelSpecializationStrategy",
        "EngineValidity",
        "EngineInvalidityDiagnostics",
    ):
        for member in getattr(FakeTensorRt, kind):
            assert int(getattr(trt, kind).__members__[member.name]) == member.value, member
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    for member in FakeTensorRt.ILogger.Severity:
        assert trt.ILogger.Severity.__members__[member.name].value == member.value
    wanted = {
        trt.Runtime: "get_engine_validity deserialize_cuda_engine",
        trt.ICudaEngine: "get_tensor_name num_io_tensors get_tensor_mode get_tensor_shape get_tensor_dtype "
        "get_tensor_profile_shape create_runtime_config create_execution_context device_memory_size_v2",
        trt.IExecutionContext: "set_device_memory set_tensor_address set_input_shape execute_async_v3 "
        "is_stream_capturable",
        trt.IRuntimeConfig: "set_execution_context_allocation_strategy create_runtime_cache set_runtime_cache "
        "dynamic_shapes_kernel_specialization_strategy",
        trt.IRuntimeCache: "serialize deserialize",
    }
    for kind, names in wanted.items():
        assert set(names.split()) <= set(dir(kind)), kind
