"""The builder: the real TensorRT-RTX without a GPU, and classic releases played by a module that records its calls."""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from grd_edge.engine import builder, device, library
from grd_edge.engine.builder import BuildOptions, check_options, engine_from_onnx
from grd_edge.engine.fingerprint import Device
from grd_edge.engine.library import check_header, driver_floor, library_of
from grd_edge.errors import EngineError, EngineMismatchError, InputError, MissingExtraError, StoppedError
from grd_edge.files import sha256_hex
from grd_edge.targets import TARGETS


@pytest.fixture(scope="module")
def model() -> bytes:
    """x -> sigmoid of one FP16 convolution, typed."""
    shape = ["N", 1, 16, 24]
    weight = np.random.default_rng(0).normal(size=(1, 1, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["f"], ["x_hat"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "x_hat")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(built)
    return built.SerializeToString()


class TestRtx:
    @pytest.fixture(autouse=True)
    def needs(self):
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'grd-edge[gpu]'")

    @pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.ahead_of_time])
    def test_it_builds_without_a_gpu(self, model, name):
        target, steps = TARGETS[name], []
        built = engine_from_onnx(
            model, target, "fp16", BuildOptions((2, 3, 5)), on_progress=lambda done, total: steps.append((done, total))
        )
        version = library_of(target).__version__
        check_header(built.data, "tensorrt_rtx", version)
        assert built.fingerprint.to_json() == {
            "library": "tensorrt_rtx",
            "version": version,
            "compute_capabilities": " ".join(target.compute_capabilities),
            "driver_floor": "580.65.06",
            "precision": "fp16",
            "profile": "2:3:5",
            "onnx_sha256": sha256_hex(model),
            "compatibility": "none",
        }
        assert built.seconds < 60
        assert len(steps) > 10 and all(done <= total for done, total in steps)
        assert b"x_hat" in built.data

    def test_engines_of_two_parts_differ(self, model):
        first, second = (engine_from_onnx(model, TARGETS[name], "fp16").data for name in ("rtx-turing", "rtx-ada"))
        assert first != second

    def test_what_the_parser_refuses(self, model):
        odd = onnx.load_from_string(model)
        odd.graph.node[1].op_type = "NoSuchOperator"
        with pytest.raises(InputError, match=r"does not take the model \(.*NoSuchOperator.*export it again") as caught:
            engine_from_onnx(odd.SerializeToString(), TARGETS["rtx-ada"], "fp16")
        assert "\n" not in str(caught.value)

    def test_what_the_builder_refuses(self, model):
        """FP8 for a part without it, past the table of targets."""
        eight = onnx.load_from_string(model)
        eight.opset_import[0].version = 19
        graph = eight.graph
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(0.01, np.float16), "s"),
                helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True),
            ]
        )
        graph.node[1].input[0] = "dq"
        graph.node.insert(1, helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]))
        graph.node.insert(2, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
        with pytest.raises(EngineError, match=r"cannot build fp8 for rtx-ampere \(.*fp8_e4m3.*try another precision"):
            engine_from_onnx(eight.SerializeToString(), TARGETS["rtx-ampere"], "fp8")

    def test_ctrl_c_ends_the_build(self, model):
        def press(done: int, total: int) -> None:
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(StoppedError, match="Ctrl-C; the bundle is as it was"):
            engine_from_onnx(model, TARGETS["rtx-ada"], "fp16", on_progress=press)
        assert signal.getsignal(signal.SIGINT) is before

    def test_options_that_it_has_not(self, model, tmp_path):
        target = TARGETS["rtx-ada"]
        for options, words in (
            (BuildOptions(timing_cache=tmp_path / "t"), "--timing-cache is not for rtx-ada: .* times nothing"),
            (BuildOptions(version_compatible=True), "--version-compatible is not for rtx-ada"),
            (BuildOptions(hardware_compatible="ampere+"), "--hardware-compatible is not for rtx-ada"),
            (BuildOptions(dla=0), "rtx-ada .* has no DLA; leave --dla out"),
        ):
            with pytest.raises(InputError, match=words):
                engine_from_onnx(model, target, "fp16", options)
        assert not list(tmp_path.iterdir())

    def test_headers(self, model):
        built = engine_from_onnx(model, TARGETS["rtx-ada"], "fp16")
        data, version = built.data, built.fingerprint.version
        for bad, name, here, words in (
            (b"", "tensorrt_rtx", version, "these 0 bytes are no TensorRT engine"),
            (model, "tensorrt_rtx", version, "are no TensorRT engine"),
            (data[:-1], "tensorrt_rtx", version, r"it was cut short"),
            (data, "tensorrt", version, "an engine of tensorrt_rtx and tensorrt was to run it"),
            (data, "tensorrt_rtx", "9.9.9", "was built by tensorrt_rtx 1"),
        ):
            with pytest.raises(EngineError, match=f"{words}.*build it again"):
                check_header(bad, name, here)


class Kind(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def classic(version: str, *, plan: bytes | None = b"ftrt" + bytes(100), cores: int = 2, fails: str = "") -> ModuleType:
    """A module that looks like `tensorrt` of a version, and keeps what was asked of it in `asked`."""
    asked: dict = {"flags": []}
    major, minor = (int(part) for part in version.split(".")[:2])

    class ILogger:
        Severity = Kind

    class IProgressMonitor:
        pass

    class Config:
        def __init__(self) -> None:
            self.cache = None

        def set_flag(self, flag):
            asked["flags"].append(flag)

        def set_memory_pool_limit(self, pool, size):
            asked["workspace"] = size

        def add_optimization_profile(self, profile):
            asked["profile"] = profile.shapes

        def create_timing_cache(self, data):
            asked["cache"] = data
            return None if data == b"foreign" else SimpleNamespace(serialize=lambda: b"times " + data)

        def set_timing_cache(self, cache, ignore):
            assert ignore is False
            self.cache = cache
            return True

        def get_timing_cache(self):
            return self.cache

    class Profile:
        def set_shape(self, *shapes):
            self.shapes = shapes

    class Builder:
        num_DLA_cores = cores

        def __init__(self, log) -> None:
            self.log = log
            if fails == "start":
                log.log(Kind.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags):
            asked["network"] = flags
            return SimpleNamespace(get_input=lambda index: SimpleNamespace(name="x", shape=(-1, 1, 16, 24)))

        def create_builder_config(self):
            asked["config"] = Config()
            return asked["config"]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            self.log.log(Kind.WARNING, "one\nwarning")
            self.log.log(Kind.WARNING, "one warning")
            if plan is None:
                self.log.log(Kind.ERROR, "no kernel for layer conv1")
            return plan

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, log) -> None:
            pass

        def parse(self, data):
            return fails != "parse"

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: "line one\nline two")  # older ones do not tell the node

    levels = {"NONE": 0, "AMPERE_PLUS": 1}
    if (major, minor) >= (10, 9):
        levels["SAME_COMPUTE_CAPABILITY"] = 2
    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=version,
        asked=asked,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        Builder=Builder,
        OnnxParser=OnnxParser,
        NetworkDefinitionCreationFlag=enum.IntEnum("Flag", {} if major > 11 else {"STRONGLY_TYPED": 1}),
        BuilderFlag=enum.Enum("BuilderFlag", ["GPU_FALLBACK", "VERSION_COMPATIBLE"]),
        HardwareCompatibilityLevel=enum.IntEnum("Level", levels),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        DeviceType=enum.Enum("DeviceType", ["GPU", "DLA"]),
    )
    return module


class TestClassic:
    @pytest.fixture
    def orin(self, monkeypatch):
        """Installs such a module and plays the device."""

        def install(version="10.3.0.30", capability="8.7", **options):
            module = classic(version, **options)
            monkeypatch.setitem(sys.modules, "tensorrt", module)
            monkeypatch.setattr(device, "device_here", lambda: Device("Orin", capability, "540.4.0"))
            return module.asked

        return install

    @pytest.mark.parametrize(
        ("version", "cuda"),
        [("10.3.0.30", 12), ("10.9.0", 12), ("10.13.3", 13), ("10.16.1", 13), ("11.0.0", 13), ("11.4.1", 13)],
    )
    def test_one_file_serves_all_releases(self, orin, model, version, cuda):
        asked = orin(version)
        built = engine_from_onnx(model, TARGETS["jetson-orin"], "int8", BuildOptions((1, 4, 9), 1 << 30))
        assert asked["network"] == 2  # strongly typed
        assert asked["profile"] == ("x", (1, 1, 16, 24), (4, 1, 16, 24), (9, 1, 16, 24))
        assert asked["workspace"] == 1 << 30
        assert asked["flags"] == []  # no precision is asked for: it is in the model
        assert built.warnings == ("one warning",)
        fingerprint = built.fingerprint
        assert (fingerprint.library, fingerprint.version) == ("tensorrt", version)
        assert (fingerprint.compute_capabilities, fingerprint.profile) == ("8.7", "1:4:9")
        assert fingerprint.driver_floor == library.DRIVER_FLOORS[cuda]

    def test_compatible_engines(self, orin, model):
        asked = orin("10.9.0")
        options = BuildOptions(version_compatible=True, hardware_compatible="same_compute_capability")
        built = engine_from_onnx(model, TARGETS["trt"], "fp16", options)
        assert [flag.name for flag in asked["flags"]] == ["VERSION_COMPATIBLE"]
        assert asked["config"].hardware_compatibility_level == 2
        assert built.fingerprint.compatibility == "version same_compute_capability"
        orin("10.3.0")
        with pytest.raises(
            InputError, match=r"TensorRT 10.3.0 has no hardware compatibility 'same_compute_capability'"
        ):
            engine_from_onnx(model, TARGETS["trt"], "fp16", options)

    def test_dla(self, orin, model):
        for version in ("10.3.0", "10.7.0", "11.4.1"):
            asked = orin(version)
            engine_from_onnx(model, TARGETS["jetson-orin"], "int8", BuildOptions(dla=1))
            assert asked["config"].DLA_core == 1 and asked["config"].default_device_type.name == "DLA"
            assert [flag.name for flag in asked["flags"]] == ["GPU_FALLBACK"]
        for version in ("10.8.0", "10.16.1", "11.0.0", "11.4.0"):
            orin(version)
            with pytest.raises(InputError, match=f"TensorRT {version} has no DLA compiler, .* leave --dla out"):
                engine_from_onnx(model, TARGETS["jetson-orin"], "int8", BuildOptions(dla=0))
        orin("10.3.0", cores=0)
        with pytest.raises(InputError, match="has 0 DLA cores and core 0 was asked for"):
            engine_from_onnx(model, TARGETS["jetson-orin"], "int8", BuildOptions(dla=0))
        with pytest.raises(InputError, match=r"jetson-thor .* has no DLA"):
            check_options(TARGETS["jetson-thor"], BuildOptions(dla=0), classic("11.4.1"))

    def test_timing_cache(self, orin, model, tmp_path):
        path = tmp_path / "times.cache"
        for known in (b"", b"times "):
            asked = orin()
            engine_from_onnx(model, TARGETS["trt"], "fp16", BuildOptions(timing_cache=path))
            assert asked["cache"] == known
        assert path.read_bytes() == b"times times "
        path.write_bytes(b"foreign")
        with pytest.raises(InputError, match=r"times.cache is no timing cache of this device and TensorRT 10.3.0.30"):
            engine_from_onnx(model, TARGETS["trt"], "fp16", BuildOptions(timing_cache=path))
        assert path.read_bytes() == b"foreign"

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"fails": "start"}, EngineError, r"cannot start .*initialization failure with error: 35.*on the device"),
            ({"fails": "parse"}, InputError, r"does not take the model \(line one line two\); export it again"),
            ({"plan": None}, EngineError, r"cannot build int8 for jetson-orin \(no kernel for layer conv1\)"),
            ({"plan": b"garbage" * 20}, EngineError, "140 bytes are no TensorRT engine"),
            ({"version": "10.2.0"}, EngineMismatchError, r"TensorRT 10.2.0 is installed and 10.3 to 11.x are known"),
            ({"version": "12.0.0"}, EngineMismatchError, "TensorRT 12.0.0 is installed"),
            ({"capability": "7.2"}, EngineError, r"compute capability 8.7, and Orin has 7.2; build on the Jetson Orin"),
        ],
    )
    def test_failures(self, orin, model, options, kind, words):
        orin(**options)
        with pytest.raises(kind, match=words) as caught:
            engine_from_onnx(model, TARGETS["jetson-orin"], "int8")
        assert "\n" not in str(caught.value)

    def test_not_installed(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingExtraError, match=r"tensorrt is needed for jetson-orin .* package of JetPack"):
            engine_from_onnx(model, TARGETS["jetson-orin"], "fp16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": (0, 8, 64)}, "batch profile is 0:8:64; expected least:usual:largest"),
        ({"batches": (4, 2, 8)}, "in rising order"),
        ({"batches": (1, 8, 2000)}, "from 1 to 1024"),
        ({"workspace_bytes": 5}, "workspace is 5 bytes; give 1MiB or more"),
        ({"dla": -1}, "cores count from 0"),
        ({"hardware_compatible": "turing"}, "no hardware compatibility 'turing'; choose ampere"),
    ],
)
def test_options(options, words):
    with pytest.raises(InputError, match=words):
        BuildOptions(**options)


def test_what_a_library_prints_is_no_result(capfd):
    with builder._words_to_stderr():
        os.write(1, b"WARNING: precision-lose casting\n")
        ctypes.CDLL(None).puts(b"another")
    print("{}")
    told = capfd.readouterr()
    assert told.out == "{}\n" and told.err == "WARNING: precision-lose casting\nanother\n"


def test_driver_floor_by_package(monkeypatch):
    def version(name):
        if name != "tensorrt_rtx_cu12":
            raise library.metadata.PackageNotFoundError(name)
        return "1.7.1"

    monkeypatch.setattr(library.metadata, "version", version)
    assert driver_floor(SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1")) == "525.60.13"
    assert driver_floor(SimpleNamespace(__name__="tensorrt", __version__="10.12.0")) == "525.60.13"
    assert driver_floor(SimpleNamespace(__name__="tensorrt", __version__="11.0.0")) == "580.65.06"


class TestDevice:
    class Driver:
        """libcuda as ctypes sees it."""

        def __init__(self, init=0, capability=(8, 9)) -> None:
            self.init, self.capability = init, capability

        def cuInit(self, flags):
            return self.init

        def cuDeviceGet(self, out, index):
            out._obj.value = 0
            return 0 if index == 0 else 101

        def cuDeviceGetName(self, buffer, size, at):
            buffer.value = b"NVIDIA RTX"
            return 0

        def cuDeviceGetAttribute(self, out, attribute, at):
            out._obj.value = self.capability[attribute - 75]
            return 0

        def cuGetErrorString(self, code, out):
            out._obj.value = b"no CUDA-capable device is detected" if code == 100 else b"invalid device ordinal"
            return 0

    def test_it_tells_name_and_capability(self):
        found = device.device_here(load=lambda name: self.Driver())
        assert (found.name, found.compute_capability) == ("NVIDIA RTX", "8.9")

    def test_refusals_are_the_drivers_words(self):
        with pytest.raises(EngineError, match=r"refuses \(no CUDA-capable device is detected\); run this on a machine"):
            device.device_here(load=lambda name: self.Driver(init=100))
        with pytest.raises(EngineError, match="invalid device ordinal"):
            device.device_here(3, load=lambda name: self.Driver())

    def test_no_driver(self):
        def load(name):
            raise OSError(f"{name}: cannot open shared object file")

        with pytest.raises(EngineError, match=r"no NVIDIA driver on this machine \(libcuda.so.1: cannot open"):
            device.device_here(load=load)
