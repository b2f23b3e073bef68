"""What no contender can exceed, measured beside it: a copy of as many bytes, and fused multiply-adds alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
from grd_edge.bench.rows import Contender

SOURCE = Path(__file__).resolve().parent.parent / "kernels" / "bench" / "fma_loop.cpp"
_ROUNDS, _FMAS_PER_ROUND = 20_000, 12 * 16  # kChains x kLanes of fma_loop.h
_PRODUCTS_PER_FMA = 4  # of INT8, that VNNI does in the time of one in FP32


def copy_limit(count: int) -> Contender:
    """A copy that reads and writes `count` bytes in all, on one thread."""
    source, target = np.ones(count // 2, np.uint8), np.ones(count // 2, np.uint8)
    return Contender(lambda _: ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes), bytes=count)


def fma_limit(stack: ExitStack, *, threads: int = 1, int8: bool = False) -> Contender | str:
    """FP32 multiply-adds in registers on so many threads; or why there is none: no compiler.

    Args:
        int8: counted as what VNNI does in the same time.
    """
    loop = _fma_loop()
    if isinstance(loop, str):
        return loop
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if int8 and "vnni" not in flags:
        return "this CPU has no VNNI, so its rate of INT8 products is not known"
    rounds = _ROUNDS if threads == 1 else 200 * _ROUNDS  # long beside waking threads on cores of their own
    outs = [np.zeros(16, np.float32) for _ in range(threads)]
    each = (_PRODUCTS_PER_FMA if int8 else 1) * 2e-9 * rounds * _FMAS_PER_ROUND
    if threads == 1:
        return Contender(lambda _: loop(outs[0].ctypes.data, rounds), gflop=each)
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    return Contender(
        lambda _: [done.result() for done in [pool.submit(loop, out.ctypes.data, rounds) for out in outs]],
        gflop=threads * each,
    )


@cache
def _fma_loop() -> ctypes._FuncPointer | str:
    """`fma_loop` of kernels/bench, compiled for this machine; or why it is not."""
    if not SOURCE.is_file():
        return f"the rate of multiply-adds needs {SOURCE.name} of the source tree, which is not here"
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_loop.so"
        command = [compiler, "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-o", str(library), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return f"the rate of multiply-adds needs a C++ compiler, and {compiler} does not compile; install one"
        function = ctypes.CDLL(str(library)).fma_loop
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64), None
    return function
