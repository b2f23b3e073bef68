"""The CUDA kernels against PyTorch and against what the device can do: `make bench-gpu`.

Needs a CUDA device, a PyTorch that sees it, and libgrd_edge_cuda.so (`make gpu` builds it). Contenders take turns,
outputs are checked first; all but PyTorch as it is usually called are CUDA graphs, replayed. Results go to
bench/results/<device>/.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from grd_edge.bench.adding import figures
from grd_edge.bench.baselines import torch_separable
from grd_edge.bench.records import RESULTS, slug, write_record

from grd_edge import _native
from grd_edge.errors import CheckFailedError, EngineError, GrdError
from grd_edge.score import score_patches_f64, window_taps

PATCHES, SIDE_PX = 64, 256
CUDA = 1  # GRD_SPACE_CUDA
REPEAT = 20  # calls in a graph where one alone is too short for the device's clock
FMAS_PER_POSITION = 88  # 4 maps, 2 passes, 11 taps
BARS = {"floor": 3.0, "eager": 20.0, "compiled": 3.0, "p99_p50": 1.2, "error": 2e-6}  # issue E, bar 4
COLUMNS = [
    {"key": "part", "name": "part"},
    {"key": "contender", "name": "contender"},
    {"key": "min_us", "name": "least, microseconds", "digits": 1},
    {"key": "p50_us", "name": "median", "digits": 1},
    {"key": "p99_us", "name": "p99", "digits": 1},
    {"key": "p99_p50", "name": "p99 / median", "digits": 2},
]


class Kernels:
    """libgrd_edge_cuda.so over PyTorch tensors. Calls enqueue on the current stream."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EngineError(f"{path} is missing; build it with `make gpu`, or name its folder with --build")
        self._library = ctypes.CDLL(str(path))
        self._library.grd_cuda_message.restype = ctypes.c_char_p
        self._library.grd_cuda_score_workspace_bytes.restype = ctypes.c_size_t
        self._library.grd_cuda_score_workspace_bytes.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 4)

    def _check(self, status: int) -> None:
        if status:
            raise EngineError(f"status {status} of libgrd_edge_cuda: {self._library.grd_cuda_message().decode()}")

    @staticmethod
    def _view(tensor, extent: tuple[int, ...] | None = None) -> _native.View:
        dtype = _native.DTYPES[np.dtype(str(tensor.dtype).removeprefix("torch."))]
        extent = extent or tuple(tensor.shape)
        return _native.View(data=tensor.data_ptr(), dtype=dtype, space=CUDA, extent=extent)

    def scorer(self, x, x_hat, figures, heatmap) -> Callable[[], None]:
        """figures: 4 x N float32 (phi, phi_local, residual range); heatmap: N,1,H,W."""
        import torch

        params = _native.ScoreParams()
        size = self._library.grd_cuda_score_workspace_bytes(ctypes.byref(params), *x.shape)
        workspace = torch.zeros(size, dtype=torch.uint8, device=x.device)
        params.workspace, params.workspace_bytes = workspace.data_ptr(), size
        columns = [figures[i].data_ptr() for i in range(4)]
        heat = self._view(heatmap)
        outputs = _native.ScoreOutputs(
            phi=columns[0],
            phi_local=columns[1],
            residual_min=columns[2],
            residual_max=columns[3],
            heatmap=ctypes.pointer(heat),
        )
        views = self._view(x), self._view(x_hat)
        keep = workspace, x, x_hat, figures, heatmap

        def run() -> None:
            assert keep
            arguments = (params, *views, outputs)
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self._check(self._library.grd_cuda_score_patches(*map(ctypes.byref, arguments), stream))

        return run

    def cutter(self, frame, patches, stride: int, scale_px: int = 0) -> Callable[[], None]:
        """frame: H,W uint8; patches: N,1,h,w."""
        import torch

        h, w = patches.shape[2:]
        params = _native.CutParams(
            scale_px=scale_px, patch_h=h, patch_w=w, stride_y=stride, stride_x=stride, channels=1
        )
        views = self._view(frame, (1, 1, *frame.shape)), self._view(patches)
        keep = frame, patches

        def run() -> None:
            assert keep
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            pointers = [ctypes.byref(item) for item in (params, *views)]
            self._check(self._library.grd_cuda_cut_frame(pointers[0], pointers[1], None, pointers[2], None, stream))

        return run


def captured(call: Callable[[], Any], repeat: int = 1) -> Callable[[], None]:
    """A CUDA graph of `repeat` calls, after three calls to warm up."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            call()
    return graph.replay


def timed(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Microseconds of each contender by events of the device, in turn."""
    import torch

    events = {name: [] for name in contenders}
    for index in range(-5, rounds):
        for name, call in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            if index >= 0:
                events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: np.array([a.elapsed_time(b) * 1e3 for a, b in pairs]) for name, pairs in events.items()}


def fma_rate(program: Path) -> float:
    """FMAs a second of the whole device, by a kernel of nothing else (kernels/bench/cuda_fmas.cu)."""
    return float(subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout)


def copy_us(count: int, rounds: int) -> float:
    """Least time to copy `count` bytes in all: half of them read, half written."""
    import torch

    source = torch.empty(max(count // 2, 1), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return float(timed({"copy": captured(lambda: target.copy_(source), REPEAT)}, rounds)["copy"].min() / REPEAT)


def statistics(times_us: np.ndarray) -> dict[str, float]:
    p50, p99 = (float(np.quantile(times_us, q)) for q in (0.5, 0.99))
    return {"min_us": float(times_us.min()), "p50_us": p50, "p99_us": p99, "p99_p50": p99 / p50}


def bench_scores(kernels: Kernels, rounds: int, fmas: float) -> dict[str, Any]:
    """64 patches of 256x256 FP16: the kernel, eager PyTorch, torch.compile, and the floors."""
    import torch

    torch.manual_seed(0)
    x = torch.rand(PATCHES, 1, SIDE_PX, SIDE_PX, device="cuda")
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2).half()
    x_hat = (x.float() + 0.02 * torch.randn_like(x.float())).clamp(0, 1).half()
    figures = torch.empty(4, PATCHES, device="cuda")
    heatmap = torch.empty(PATCHES, 1, SIDE_PX, SIDE_PX, dtype=torch.float16, device="cuda")
    score = kernels.scorer(x, x_hat, figures, heatmap)

    taps = torch.tensor(window_taps("gaussian"), dtype=torch.float32, device="cuda")
    torch.backends.cudnn.allow_tf32 = False  # TF32 in these filters costs a thousandfold in accuracy

    def eager():
        return torch_separable(x.float(), x_hat.float(), taps)

    compiled = torch.compile(eager, mode="max-autotune-no-cudagraphs")

    score()
    torch.cuda.synchronize()
    exact = score_patches_f64(x.float().cpu().numpy(), x_hat.float().cpu().numpy())
    pairs = ((figures[0], exact.phi), (figures[1], exact.phi_local))
    error = max(float(np.abs(got.cpu().numpy() - right).max()) for got, right in pairs)
    if not error <= BARS["error"]:
        raise CheckFailedError(f"the scores are {error:.1e} off float64; a wrong result is not timed")
    with torch.inference_mode():
        times = timed({"kernel": captured(score), "eager": eager, "compiled": compiled}, rounds)
        graphs = timed({"eager_graph": captured(eager), "compiled_graph": captured(compiled)}, rounds)
        times["kernel_of_20"] = timed({"kernel": captured(score, REPEAT)}, rounds)["kernel"] / REPEAT
    positions = PATCHES * (SIDE_PX - 10) ** 2
    traffic = sum(t.numel() * t.element_size() for t in (x, x_hat, heatmap, figures))
    floors = {"fma_us": positions * FMAS_PER_POSITION / fmas * 1e6, "copy_us": copy_us(traffic, rounds)}
    found = {name: statistics(values) for name, values in {**times, **graphs}.items()}
    kernel = found["kernel"]["p50_us"]
    ratios = {
        "floor": found["kernel_of_20"]["p50_us"] / max(floors.values()),
        "eager": found["eager"]["p50_us"] / kernel,
        "compiled": found["compiled"]["p50_us"] / kernel,
        "p99_p50": found["kernel"]["p99_p50"],
    }
    return {"error": error, "floors": floors, "times": found, "ratios": ratios}


def bench_cuts(kernels: Kernels, rounds: int) -> dict[str, Any]:
    """A 2048x2048 UINT8 frame into 256 px patches of stride 236, against a copy of as many bytes."""
    import torch

    frame = torch.randint(0, 256, (2048, 2048), dtype=torch.uint8, device="cuda")
    out = {}
    for name, scale, count in (("native", 0, 81), ("scaled to 1024", 1024, 25)):
        patches = torch.empty(count, 1, SIDE_PX, SIDE_PX, dtype=torch.float16, device="cuda")
        call = kernels.cutter(frame, patches, 236, scale)
        moved = frame.numel() + patches.numel() * 2
        times = timed({"cut": captured(call)}, rounds)["cut"]
        out[name] = {**statistics(times), "copy_us": copy_us(moved, rounds)}
    return out


def bench_frame(kernels: Kernels, rounds: int) -> dict[str, Any]:
    """A whole frame in one graph: copy in, cut, a stand-in for the engine, score, one copy out."""
    import torch

    from grd_edge.config import ModelConfig
    from grd_edge.models.generator import Reconstructor

    side, count = 1024, 25
    host = torch.randint(0, 256, (side, side), dtype=torch.uint8).pin_memory()
    frame = torch.empty_like(host, device="cuda")
    patches = torch.empty(count, 1, SIDE_PX, SIDE_PX, dtype=torch.float16, device="cuda")
    x_hat = torch.empty_like(patches)
    figures = torch.empty(4, count, device="cuda")
    result = torch.empty(4, count).pin_memory()
    heatmap = torch.empty(count, 1, SIDE_PX, SIDE_PX, dtype=torch.float16, device="cuda")
    torch.manual_seed(0)
    config = ModelConfig(channels=1, patch_h=SIDE_PX, patch_w=SIDE_PX, base=16)
    generator = Reconstructor(config).cuda().half().eval()
    cut, score = kernels.cutter(frame, patches, 236), kernels.scorer(patches, x_hat, figures, heatmap)

    def engine() -> None:
        x_hat.copy_(generator(patches))

    def whole() -> None:
        frame.copy_(host, non_blocking=True)
        cut()
        engine()
        score()
        result.copy_(figures, non_blocking=True)

    with torch.inference_mode():
        stages = {"whole": captured(whole), "cut": captured(cut), "engine": captured(engine), "score": captured(score)}
        times = timed(stages, rounds)
    if not bool(torch.isfinite(result).all()):
        raise CheckFailedError("a frame's scores are not finite")
    return {name: statistics(values) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/gpu"), help="CMake's folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    try:
        import torch

        if not torch.cuda.is_available():
            raise EngineError(
                "PyTorch sees no CUDA device; run this where there is an NVIDIA GPU, its driver and a PyTorch with CUDA"
            )
        kernels = Kernels(arguments.build / "libgrd_edge_cuda.so")
        fmas = fma_rate(arguments.build / "kernels/bench/cuda_fmas")
        found = {
            "device": torch.cuda.get_device_name(0),
            "scores": bench_scores(kernels, arguments.rounds, fmas),
            "cuts": bench_cuts(kernels, arguments.rounds),
            "frame": bench_frame(kernels, arguments.rounds),
        }
        print(json.dumps(found, indent=2))
        title = f"The CUDA kernels on {found['device']}"
        rows = [
            {"part": part, "contender": name, **times}
            for part, timings in (
                ("scores", found["scores"]["times"]),
                ("cuts", found["cuts"]),
                ("frame", found["frame"]),
            )
            for name, times in timings.items()
        ]
        path = write_record(
            "gpu-kernels",
            title=title,
            command="make bench-gpu",
            columns=COLUMNS,
            rows=rows,
            figures=figures(found)["figures"],
            device=slug(found["device"]),
            root=arguments.results,
        )
    except GrdError as error:
        print(error, file=sys.stderr)
        return 1
    ratios = found["scores"]["ratios"]
    missed = [name for name in ("floor", "p99_p50") if not ratios[name] <= BARS[name]]
    missed += [name for name in ("eager", "compiled") if not ratios[name] >= BARS[name]]
    print(f"written to {path}; bars missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
