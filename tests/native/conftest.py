"""Builds the native library, its C tests and examples once per session, with warnings as errors."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build_native(folder: Path, *options: str, targets: tuple[str, ...] = ("all",)) -> Path:
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    assert cmake, "cmake is missing: pip install '.[dev]'"
    configure = [
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "-DGRD_BUILD_TESTS=ON",
        "-DGRD_BUILD_FUZZERS=ON",
        "-DGRD_WERROR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
    ]
    for command in (configure, [cmake, "--build", str(folder), "--target", *targets]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def native_build():
    """Build folder with everything; kept between runs, since CMake knows what is stale."""
    return build_native(ROOT / "build" / "tests")


@pytest.fixture(scope="session")
def sanitized_build():
    """The same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build_native(
        ROOT / "build" / "sanitized", "-DGRD_SANITIZE=address;undefined;float-cast-overflow;float-divide-by-zero"
    )


@pytest.fixture(scope="session")
def cuda_library():
    """libgrd_edge_cuda.so for all parts: two minutes of compilation, where it is not kept from the last run."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed; it compiles the CUDA kernels")
    options = ("-DGRD_WITH_CUDA=ON", "-DGRD_WITH_OPENVINO=OFF")
    return build_native(ROOT / "build" / "cuda", *options, targets=("grd_edge_cuda",)) / "libgrd_edge_cuda.so"


@pytest.fixture(scope="session")
def thread_sanitized_build():
    """What has threads, under ThreadSanitizer."""
    options = ("-DGRD_SANITIZE=thread", "-DGRD_WITH_OPENVINO=OFF")
    streams = ("test_stream", "test_stream_frames", "test_stream_overload", "test_stream_products", "stream_faults")
    backends = (f"grd_backend_{name}" for name in ("identity", "other_abi", "no_table", "first_release", "frames"))
    targets = ("test_pool", "test_inspector", *streams, *backends)
    return build_native(ROOT / "build" / "threads", *options, targets=targets)
