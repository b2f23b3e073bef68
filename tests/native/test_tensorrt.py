"""The C++ TensorRT backends: on fakes with every set of headers, and on the real TensorRT-RTX as far as its driver.

GRD_TENSORRT_HEADERS names a folder of folders that hold NvInferRuntime.h, each itself or in `include` (HACKING.md).
"""

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.native.conftest import ROOT, build_native


def header_folders() -> list[Path]:
    root = os.environ.get("GRD_TENSORRT_HEADERS")
    folders = sorted(Path(root).iterdir()) if root else []
    found = [inner for folder in folders for inner in (folder, folder / "include")]
    return [folder for folder in found if (folder / "NvInferRuntime.h").exists()]


def version_of(folder: Path) -> str:
    text = (folder / "NvInferVersion.h").read_text(encoding="utf-8")
    pattern = r"define (?:NV_TENSORRT|TRT)_{}(?:_ENTERPRISE)? +(\d+)"
    return ".".join(re.search(pattern.format(part), text)[1] for part in ("MAJOR", "MINOR"))


FOLDERS = {version_of(folder): folder for folder in header_folders()}
needs_cuda = pytest.mark.skipif(
    shutil.which("nvcc") is None and not Path("/usr/local/cuda").exists(), reason="there is no CUDA toolkit"
)
needs_headers = pytest.mark.skipif(not FOLDERS, reason="GRD_TENSORRT_HEADERS names no folder with TensorRT's headers")


def built(name: str, kinds: tuple[str, ...], *options: str, tests: tuple[str, ...] = ()) -> Path:
    options = ("-DGRD_WITH_OPENVINO=OFF", "-DGRD_WITH_TENSORRT=ON", *options)
    targets = tuple(f"{prefix}_{kind}" for kind in kinds for prefix in ("grd_backend", "test"))
    targets += tuple(f"test_{test}" for test in tests)
    return build_native(ROOT / "build" / f"tensorrt-{name}", *options, targets=targets)


def passes(folder: Path, name: str) -> None:
    program = folder / "kernels" / "test" / "tensorrt" / f"test_{name}"
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert re.search(r"\d{3,} passed, 0 failed\n$", done.stdout)


def kinds_of(version: str) -> tuple[str, ...]:
    return ("tensorrt", "tensorrt_rtx") if version.startswith("11.") else ("tensorrt",)


@needs_cuda
@needs_headers
@pytest.mark.slow
@pytest.mark.parametrize("version", FOLDERS or ["none"])
def test_backends_pass_on_fakes_with_the_headers_of(version):
    folder = built(version, kinds_of(version), f"-DGRD_TENSORRT_INCLUDE_DIR={FOLDERS[version]}")
    for kind in kinds_of(version):
        passes(folder, kind)
        library = folder / f"libgrd_backend_{kind}.so"
        dynamic = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"NEEDED.*\[(.+?)\]", dynamic))
        assert all(re.match(r"(libstdc\+\+|libm|libgcc_s|libc|libdl|librt|libpthread|ld-linux)", n) for n in needed)
        names = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True).stdout
        assert {line.split()[-1].split("@")[0] for line in names.splitlines()} == {"grd_backend_table"}


@pytest.fixture(scope="module")
def newest():
    return max((v for v in FOLDERS if v.startswith("11.")), key=lambda v: int(v.split(".")[1]), default=None)


def sanitized(name: str, version: str, sanitizers: str, tests: tuple[str, ...]) -> Path:
    options = (f"-DGRD_TENSORRT_INCLUDE_DIR={FOLDERS[version]}", f"-DGRD_SANITIZE={sanitizers}")
    options += ("-DCMAKE_BUILD_TYPE=Debug",)  # the kernels are not what is tested, and optimized take minutes
    return built(name, kinds_of(version), *options, tests=tests)


@needs_cuda
@needs_headers
@pytest.mark.slow
def test_backends_whole_frames_and_streams_pass_on_fakes_under_sanitizers(newest):
    version = newest or next(iter(FOLDERS))
    more = tuple(f"{kind}_{test}" for kind in kinds_of(version) for test in ("frames", "stream"))
    folder = sanitized("sanitized", version, "address;undefined;float-cast-overflow", more)
    for name in (*kinds_of(version), *more):
        passes(folder, name)


@needs_cuda
@needs_headers
@pytest.mark.slow
def test_streams_of_two_engines_pass_on_fakes_under_thread_sanitizer(newest):
    version = newest or next(iter(FOLDERS))
    passes(sanitized("threads", version, "thread", ("tensorrt_stream",)), "tensorrt_stream")


RUNTIME = """
class IRuntimeCache : public INoCopy {
public:
    virtual ~IRuntimeCache() noexcept = default;
    IHostMemory* serialize() const noexcept { return mImpl->serialize(); }
    bool deserialize(void const* blob, size_t size) noexcept { return mImpl->deserialize(blob, size); }
protected:
    apiv::VRuntimeCache* mImpl;
};
"""
ENUMS = """
enum class EngineValidity : int32_t { kVALID = 0, kSUBOPTIMAL = 1, kINVALID = 2 };
enum class EngineInvalidityDiagnostics : uint64_t { kVERSION_MISMATCH = 1, kUNSUPPORTED_CC = 2, kOLD_CUDA_DRIVER = 4,
    kOLD_CUDA_RUNTIME = 8, kINSUFFICIENT_GPU_MEMORY = 16, kMALFORMED_ENGINE = 32, kCUDA_ERROR = 64 };
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };
class IRuntimeCache;
"""
CONFIG = """
    IRuntimeCache* createRuntimeCache() const noexcept { return mImpl->createRuntimeCache(); }
    bool setRuntimeCache(IRuntimeCache const& cache) noexcept { return mImpl->setRuntimeCache(cache); }
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy s) noexcept
    { mImpl->setDynamicShapesKernelSpecializationStrategy(s); }
"""
VIRTUAL_CONFIG = """
    virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;
    virtual bool setRuntimeCache(IRuntimeCache const& cache) noexcept = 0;
    virtual void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy s) noexcept = 0;
"""
VIRTUAL_CACHE = """
class VRuntimeCache : public VRoot
{
public:
    virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
};
"""
VALIDITY = """
    int64_t getEngineHeaderSize() const noexcept { return mImpl->getEngineHeaderSize(); }
    EngineValidity getEngineValidity(void const* blob, int64_t size, uint64_t* diagnostics) const noexcept
    { return mImpl->getEngineValidity(blob, size, diagnostics); }
"""
VIRTUAL_VALIDITY = """
    virtual int64_t getEngineHeaderSize() const noexcept = 0;
    virtual EngineValidity getEngineValidity(void const* blob, int64_t size, uint64_t* diagnostics) const noexcept = 0;
"""


def write_sdk_headers(classic: Path, out: Path) -> None:
    """Headers as the manual of the TensorRT-RTX SDK documents them, made of those of TensorRT 11.

    Source: class reference of TensorRT-RTX 1.6, IRuntime, IRuntimeConfig, IRuntimeCache.
    """
    shutil.copytree(classic, out)

    def edit(name: str, *pairs: tuple[str, str]) -> None:
        text = (out / name).read_text(encoding="utf-8")
        for pattern, addition in pairs:
            text, count = re.subn(
                pattern, lambda match, addition=addition: match[0] + addition, text, count=1, flags=re.S
            )
            assert count == 1, (name, pattern)
        (out / name).write_text(text, encoding="utf-8")

    defines = "\n#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 7\n"
    edit("NvInferVersion.h", (r"#define NV_INFER_VERSION_H", defines))
    edit(
        "NvInferImpl.h",
        (r"namespace nvinfer1\s*\{", ENUMS),
        (r"namespace apiv\s*\{.*?class VRoot\s*\{.*?\n\};", VIRTUAL_CACHE),
        (r"class VRuntime : public VRoot\s*\{\s*public:", VIRTUAL_VALIDITY),
        (r"class VRuntimeConfig : public VRoot\s*\{\s*public:", VIRTUAL_CONFIG),
    )
    edit(
        "NvInferRuntime.h",
        (r"inline IHostMemory::~IHostMemory\(\) noexcept = default;", RUNTIME),
        (r"class IRuntime : public INoCopy\s*\{\s*public:", VALIDITY),
        (r"class IRuntimeConfig : public INoCopy\s*\{\s*public:", CONFIG),
    )


@needs_cuda
@needs_headers
def test_what_tensorrt_rtx_alone_has_passes_on_fakes(newest, tmp_path_factory):
    if newest is None:
        pytest.skip("GRD_TENSORRT_HEADERS holds no headers of TensorRT 11")
    headers = ROOT / "build" / "tensorrt-sdk-headers"
    shutil.rmtree(headers, ignore_errors=True)
    write_sdk_headers(FOLDERS[newest], headers)
    passes(built("sdk", ("tensorrt_rtx",), f"-DGRD_TENSORRT_RTX_INCLUDE_DIR={headers}"), "tensorrt_rtx")


# The real library


class EngineDesc(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        *[(name, ctypes.c_int32) for name in ("threads", "batch_limit", "channels", "patch_h", "patch_w")],
        ("bytes", ctypes.c_char_p),
        ("byte_count", ctypes.c_size_t),
        *[(name, ctypes.c_char_p) for name in ("format", "precision", "vendor_dir", "library_version")],
        *[(name, ctypes.c_char_p) for name in ("compute_capabilities", "compatibility", "target")],
    ]


def half_engine() -> bytes:
    """A convolution in FP16 with FP32 input and output, for Ada (SM 89): N,1,16,16, batches of 1 to 64."""
    import onnx
    import tensorrt_rtx as trt
    from onnx import TensorProto, helper, numpy_helper

    side = ["n", 1, 16, 16]
    weight = numpy_helper.from_array(np.full((1, 1, 3, 3), 0.1, np.float16), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["y"], ["x_hat"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, side) for name in ("x", "x_hat")]
    graph = helper.make_graph(nodes, "half", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(n, 1, 16, 16) for n in (1, 8, 64)])
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


PROGRAM = """
import ctypes, json, os, sys
sys.path.insert(0, {root!r})
from tests.native.test_tensorrt import EngineDesc
library = ctypes.CDLL({library!r})
library.grd_backend_table.restype = ctypes.POINTER(ctypes.c_void_p)
open_engine = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, ctypes.c_size_t)(library.grd_backend_table()[2])
said = []
for case in json.load(sys.stdin):
    data = open(case.pop("file"), "rb").read()
    data = data[: case.pop("cut", None)]
    desc = EngineDesc(ctypes.sizeof(EngineDesc), 0, case.pop("batch_limit", 8), 1, 16, 16, data, len(data))
    for name, value in case.items():
        setattr(desc, name, value.encode())
    message, engine = ctypes.create_string_buffer(1024), ctypes.c_void_p()
    status = open_engine(ctypes.addressof(desc), ctypes.addressof(engine), message, 1024)
    said.append([status, message.value.decode()])
print(json.dumps(said))
"""


@needs_cuda
@needs_headers
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_the_real_library_is_asked_last_and_the_driver_is_quoted(newest, tmp_path):
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or newest is None:
        pytest.skip("needs TensorRT-RTX (extra gpu) and headers of TensorRT 11")
    folder = built(newest, kinds_of(newest), f"-DGRD_TENSORRT_INCLUDE_DIR={FOLDERS[newest]}")
    engine = half_engine()
    (tmp_path / "engine").write_bytes(engine)
    (tmp_path / "garbage").write_bytes(b"x" * 4096)
    import tensorrt_rtx

    good = {
        "file": str(tmp_path / "engine"),
        "format": "tensorrt-rtx",
        "precision": "fp16",
        "vendor_dir": str(Path(spec.submodule_search_locations[0])),
        "library_version": tensorrt_rtx.__version__,
        "compute_capabilities": "8.9",
        "target": "rtx-ada",
    }
    cases = [
        (
            good,
            36,
            r"the CUDA driver refused: .*driver.* \(cudaError\w+\); install an NVIDIA driver that knows CUDA \d+",
        ),
        ({**good, "cut": 100}, 33, rf"has 100 bytes but its header says {len(engine)}, so it was cut"),
        ({**good, "cut": -1}, 33, "so it was cut"),
        ({**good, "cut": 0}, 33, "has 0 bytes"),
        ({**good, "file": str(tmp_path / "garbage")}, 33, "no TensorRT engine"),
        (
            {**good, "library_version": "1.6.0.5"},
            35,
            r"built with TensorRT-RTX 1\.6\.0\.5, this machine has TensorRT-RTX",
        ),
        ({**good, "format": "tensorrt"}, 33, 'takes format "tensorrt-rtx"'),
        (
            {**good, "vendor_dir": str(tmp_path)},
            32,
            r"holds no libtensorrt_rtx\.so\.1; name the folder of TensorRT-RTX",
        ),
    ]
    program = PROGRAM.format(root=str(ROOT), library=str(folder / "libgrd_backend_tensorrt_rtx.so"))
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps([case[0] for case in cases]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for (_, status, pattern), (found, message) in zip(cases, json.loads(done.stdout), strict=True):
        assert found == status, message
        assert re.search(pattern, message), message
        assert "\n" not in message and message
