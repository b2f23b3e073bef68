"""Other ways to compute phi, phi_local and the heatmap: what the kernels are raced against.

Each takes float32 patches (N, 1, H, W) and returns (phi, phi_local, heatmap). Source: docs/method.md, section 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from grd_edge.errors import CheckFailedError, one_line
from grd_edge.score import score_patches_f64, window_taps

C1, C2 = 0.01**2, 0.03**2
LOCAL_PX = 21


def torch_separable(x, x_hat, taps=None):
    """Eager PyTorch, both filters separable: two 1-D convolutions over four stacked maps, two 1-D poolings.

    taps: the window's 11 weights on another device than the CPU.
    """
    import torch
    from torch.nn import functional as F

    taps = _torch_taps() if taps is None else taps
    center = x.mean((2, 3), keepdim=True) + x_hat.mean((2, 3), keepdim=True)
    d = x - x_hat
    s = x + x_hat - center
    maps = torch.cat([s, d, s * s, d * d], 1)
    n, _, h, w = maps.shape
    maps = F.conv2d(F.conv2d(maps.view(-1, 1, h, w), taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    mu_s, mu_d, e_ss, e_dd = maps.view(n, 4, h - 10, w - 10).unbind(1)
    dd = mu_d * mu_d
    v_d, v_s = e_dd - dd, e_ss - mu_s * mu_s
    mu_s = mu_s + center[:, 0]
    a = 2 * dd / (mu_s * mu_s + dd + 2 * C1)
    b = 2 * v_d / (v_s + v_d + 2 * C2)
    distance = a + b - a * b
    local = F.avg_pool2d(F.avg_pool2d(distance[:, None], (1, LOCAL_PX), 1), (LOCAL_PX, 1), 1)
    return distance.mean((1, 2)), local.amax((1, 2, 3)), d.abs()


@cache
def _torch_taps():
    import torch

    return torch.tensor(window_taps("gaussian"), dtype=torch.float32)


def opencv_separable(x: np.ndarray, x_hat: np.ndarray):
    """OpenCV and numpy: sepFilter2D for the window, boxFilter for the local mean, patch by patch."""
    import cv2

    taps = np.array(window_taps("gaussian"), np.float32)
    phi, phi_local = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    heatmap = np.empty(x.shape, np.float32)
    margin, half = len(taps) // 2, LOCAL_PX // 2

    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(image, cv2.CV_32F, taps, taps)[margin:-margin, margin:-margin]

    for index in range(len(x)):
        a, b = x[index, 0], x_hat[index, 0]
        center = np.float32(a.mean() + b.mean())
        d = cv2.subtract(a, b)
        s = cv2.add(a, b) - center
        mu_s, mu_d = blur(s), blur(d)
        dd = mu_d * mu_d
        v_d = blur(d * d) - dd
        v_s = blur(s * s) - mu_s * mu_s
        mu_s = mu_s + center
        luminance = 2 * dd / (mu_s * mu_s + dd + np.float32(2 * C1))
        contrast = 2 * v_d / (v_s + v_d + np.float32(2 * C2))
        distance = luminance + contrast - luminance * contrast
        phi[index] = distance.mean()
        phi_local[index] = cv2.blur(distance, (LOCAL_PX, LOCAL_PX))[half:-half, half:-half].max()
        heatmap[index, 0] = cv2.absdiff(a, b)
    return phi, phi_local, heatmap


def compiled(function: Callable[..., Any], *example: Any) -> Callable[..., Any] | str:
    """`torch.compile` of a function, compiled for arguments such as the example; or why it does not work here."""
    import torch

    run = torch.compile(function, dynamic=False)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is cached by Python
            run(*example)
    except Exception as error:  # whatever its tracer, its code generator or the C++ compiler raises
        return f"torch.compile does not work here ({one_line(error)}); it needs a C++ compiler"
    return run


@contextmanager
def library_threads(threads: int) -> Iterator[None]:
    """So many threads for PyTorch and for OpenCV."""
    import cv2
    import torch

    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)


def score_pair(h: int, w: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth patches and noisy reconstructions to score, (n, 1, h, w) float32 in [0, 1]."""
    import cv2

    rng = np.random.default_rng(0)
    x = cv2.GaussianBlur(rng.random((h, w), np.float32), (0, 0), 2)[None, None].repeat(n, 0)
    return x, np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1).astype(np.float32)


def score_forms(x: np.ndarray, x_hat: np.ndarray) -> dict[str, Callable[[object], tuple]]:
    """The ways above to score a pair, and the reference's, by name; under `torch.inference_mode`."""
    import torch

    from grd_edge.score import score_patches_torch

    tx, ty = torch.from_numpy(x), torch.from_numpy(x_hat)
    return {
        "torch_reference": lambda _: tuple(score_patches_torch(tx, ty)),
        "torch_separable": lambda _: torch_separable(tx, ty),
        "opencv": lambda _: opencv_separable(x, x_hat),
    }


def score_check(x: np.ndarray, x_hat: np.ndarray) -> Callable[[dict[str, Any]], None]:
    """A check of (phi, phi_local, heatmap) by name: within 2e-6 of float64 (the baselines keep no tighter contract)."""
    exact = score_patches_f64(x, x_hat)

    def check(outputs: dict[str, Any]) -> None:
        for name, (phi, phi_local, _) in outputs.items():
            pairs = ((phi, exact.phi), (phi_local, exact.phi_local))
            worst = max(float(np.abs(np.asarray(found) - right).max()) for found, right in pairs)
            if not worst <= 2e-6:
                raise CheckFailedError(f"{name} is {worst:.1e} off the float64 scores; a wrong result is not timed")

    return check


def race_scores(
    *, h: int = 256, w: int = 256, n: int = 1, rounds: int = 60, threads: int = 1, variant: str | None = None
) -> dict[str, float]:
    """Min and median ms per call of the native kernel and of every baseline, interleaved.

    Keys are `native`, `torch_op`, `torch_separable`, `torch_reference` and `opencv` with `_min_ms` and `_p50_ms`.
    `threads` are those of PyTorch, the operator's among them, and of OpenCV; `native` runs on one.

    Raises:
        CheckFailedError: an output is off; see `score_check`.
    """
    import torch
    from grd_edge.bench.timer import figures, interleaved

    from grd_edge.kernels import Scorer
    from grd_edge.torch_ops import score_patches

    x, x_hat = score_pair(h, w, n)
    tx, ty = torch.from_numpy(x), torch.from_numpy(x_hat)
    scorer = Scorer(x.shape, variant=variant)
    contenders: dict[str, Callable[[object], object]] = {
        "native": lambda _: (lambda s: (s.phi, s.phi_local, s.heatmap))(scorer(x, x_hat)),
        "torch_op": lambda _: score_patches(tx, ty, variant=variant)[:3],
        **score_forms(x, x_hat),
    }
    with library_threads(threads), torch.inference_mode():
        return figures(interleaved(contenders, rounds=rounds, check=score_check(x, x_hat)))
