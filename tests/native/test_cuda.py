"""libgrd_edge_cuda.so: one build for all parts, its symbols, and what it says where there is no driver.

What the kernels compute is tested without a device by the `*_cuda_host` programs of ctest, and on one by
`make test-gpu`.
"""

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest

from grd_edge import _native

ROOT = Path(__file__).resolve().parents[2]
PARTS = {75, 80, 86, 87, 89, 90, 110, 120}  # compute capabilities times ten
CUDA, UINT8, FLOAT32 = 1, 1, 4  # GRD_SPACE_CUDA, GRD_UINT8, GRD_FLOAT32
STATUS = {"ok": 0, "argument": 10, "dtype": 12, "stride": 14, "space": 15, "variant": 16, "buffer": 17, "device": 36}


def run(*command) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def fat_binaries(library: Path) -> list[tuple[str, int]]:
    """Kind and compute capability times ten of each piece of device code in the library."""
    offset, size = 0, 0
    for line in run("readelf", "-SW", library).splitlines():
        if found := re.search(r"\.nv_fatbin\s+\S+\s+\S+\s+(\S+)\s+(\S+)", line):
            offset, size = (int(text, 16) for text in found.groups())
    section = library.read_bytes()[offset : offset + size]
    pieces = []
    at = section.find(struct.pack("<I", 0xBA55ED50))
    while at >= 0:
        _, header, length = struct.unpack_from("<HHQ", section, at + 4)
        entry, end = at + header, at + header + length
        while entry < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", section, entry)
            (part,) = struct.unpack_from("<I", section, entry + 28)
            pieces.append(({1: "ptx", 2: "cubin"}[kind], part))
            entry += entry_header + payload
        at = section.find(struct.pack("<I", 0xBA55ED50), end)
    return pieces


@pytest.mark.slow
def test_one_build_holds_code_for_every_part(cuda_library):
    pieces = fat_binaries(cuda_library)
    for part in PARTS:
        assert pieces.count(("cubin", part)) == 2, f"scoring or cutting has no code for {part / 10}: {pieces}"
    assert ("ptx", max(PARTS)) in pieces, "parts after the newest have nothing to compile"


def test_it_exports_the_cuda_section_and_needs_no_vendor_library(cuda_library):
    header = (ROOT / "kernels" / "include" / "grd_edge.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^GRD_API [\w ]+?\*?(grd_cuda_\w+)\(", header, re.M))
    symbols = run("nm", "-D", "--defined-only", cuda_library).splitlines()
    assert {line.split()[-1].split("@")[0] for line in symbols if " T " in line} == declared
    dynamic = run("readelf", "-d", cuda_library)
    assert not re.findall(r"NEEDED.*(?:cuda|nv)", dynamic)
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


class Call:
    """Arguments of both calls that are right but for their pointers: nothing lies there."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.grd_cuda_message.restype = ctypes.c_char_p
        self.library.grd_cuda_score_workspace_bytes.restype = ctypes.c_size_t
        self.library.grd_cuda_score_workspace_bytes.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 4)
        at = 1 << 20
        self.x = self.view(at, (2, 1, 64, 64))
        self.x_hat = self.view(at, (2, 1, 64, 64))
        self.outputs = _native.ScoreOutputs(phi=at, phi_local=at)
        self.params = _native.ScoreParams(workspace=at)
        self.params.workspace_bytes = self.workspace_bytes(2, 1, 64, 64)
        self.cut = _native.CutParams(patch_h=16, patch_w=16, stride_y=16, stride_x=16, channels=1)
        self.frame = self.view(at, (1, 1, 32, 48), UINT8)
        self.patches = self.view(at, (6, 1, 16, 16))

    @staticmethod
    def view(at: int, extent: tuple[int, ...], dtype: int = FLOAT32) -> _native.View:
        return _native.View(data=at, dtype=dtype, space=CUDA, extent=extent)

    def workspace_bytes(self, *extent: int) -> int:
        return self.library.grd_cuda_score_workspace_bytes(ctypes.byref(self.params), *extent)

    def score(self) -> int:
        by_reference = map(ctypes.byref, (self.params, self.x, self.x_hat, self.outputs))
        return self.library.grd_cuda_score_patches(*by_reference, None)

    def cut_frame(self) -> int:
        by_reference = map(ctypes.byref, (self.cut, self.frame, self.patches))
        params, frame, patches = by_reference
        return self.library.grd_cuda_cut_frame(params, frame, None, patches, None, None)

    def message(self) -> str:
        return self.library.grd_cuda_message().decode()


@pytest.fixture
def call(cuda_library):
    return Call(cuda_library)


@pytest.mark.parametrize("name", ["score", "cut_frame"])
def test_without_a_driver_each_call_says_what_the_driver_says(call, name):
    if Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists():
        pytest.skip("this machine has a CUDA device, whose memory the arguments do not point to")
    assert getattr(call, name)() == STATUS["device"]
    assert re.fullmatch(r"the CUDA driver refused: .+ \(cudaError\w+\); install .+", call.message())
    call.x.space = call.frame.space = 0
    assert getattr(call, name)() == STATUS["space"]
    assert call.message() == ""


def test_what_a_device_cannot_take_is_refused_before_it_is_asked(call):
    def refused(field: str, value, status: str, function: str = "score") -> None:
        target, attribute = field.split(".")
        structure = getattr(call, target)
        before = getattr(structure, attribute)
        before = tuple(before) if isinstance(before, ctypes.Array) else before
        setattr(structure, attribute, value)
        assert getattr(call, function)() == STATUS[status], field
        setattr(structure, attribute, before)

    four = ctypes.c_int64 * 4
    refused("x.space", 0, "space")
    refused("x.data", (1 << 20) + 2, "argument")
    refused("x_hat.stride_bytes", four(16384, 16384, 258, 4), "stride")
    refused("x_hat.dtype", UINT8, "dtype")
    refused("params.variant", b"avx2", "variant")
    refused("params.workspace", None, "buffer")
    refused("params.workspace", (1 << 20) + 16, "argument")
    refused("params.workspace_bytes", call.params.workspace_bytes - 1, "buffer")
    refused("params.window", 7, "argument")
    refused("frame.space", 0, "space", "cut_frame")
    refused("patches.data", (1 << 20) + 2, "argument", "cut_frame")
    refused("patches.dtype", UINT8, "dtype", "cut_frame")


def test_the_workspace_grows_with_the_patches_and_tells_what_is_not_taken(call):
    sizes = [call.workspace_bytes(n, 1, 256, 256) for n in (1, 2, 64)]
    assert 65536 < sizes[0] < sizes[1] < sizes[2]
    assert call.workspace_bytes(1, 1, 10, 64) == call.workspace_bytes(0, 1, 64, 64) == 0
    call.params.local_window_px = 257
    assert call.workspace_bytes(1, 1, 300, 300) == 0
    assert call.workspace_bytes(1, 1, 266, 266) > 0  # cut to the map
