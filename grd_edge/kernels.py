"""Scoring and cutting alone: the native kernels on arrays, without bundle and engine. Never imports torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from grd_edge import _native
from grd_edge.errors import InputError


@dataclass(frozen=True)
class PatchScores:
    """Scores of N patches.

    Attributes:
        phi, phi_local: (N,) float32 in [0, 2].
        heatmap: (N, H, W), float32 unless asked for otherwise, or None.
        residual_min, residual_max: (N,) float32, range of |X - X^| (channel mean).
    """

    phi: np.ndarray
    phi_local: np.ndarray
    heatmap: np.ndarray | None
    residual_min: np.ndarray
    residual_max: np.ndarray


def variants() -> dict[str, bool]:
    """Kernel variants of this build, slowest first, and whether this CPU runs them."""
    lib, found = _native.library(), {}
    while name := lib.grd_variant_name(len(found)):
        found[name.decode()] = bool(lib.grd_variant_supported(name))
    return found


def active_variant(variant: str | None = None) -> str:
    """Name of the variant that calls run.

    Raises:
        InputError: the forced variant is unknown or this CPU does not support it.
    """
    name = _native.library().grd_variant_active(variant.encode() if variant else None)
    if name is None:
        known = ", ".join(f"{n}{'' if ok else ' (not on this CPU)'}" for n, ok in variants().items())
        raise InputError(f"the forced kernel variant cannot run; known: {known}; unset GRD_FORCE_VARIANT or choose one")
    return name.decode()


class Pool:
    """Threads for `Scorer`: a context manager. They sleep between calls; a pool serves one call at a time.

    Args:
        threads: 1 to 1024, the calling one included.

    Raises:
        InputError: another number of threads.
        GrdError: the system gives no more threads.
    """

    def __init__(self, threads: int) -> None:
        self.handle, self.threads = ctypes.c_void_p(), threads
        status = _native.library().grd_pool_open(threads, ctypes.byref(self.handle))
        if status:
            _native.check(status, f"a pool of {threads} threads cannot be opened; expected 1 to 1024".encode())

    def close(self) -> None:
        handle, self.handle = self.handle, ctypes.c_void_p()
        _native.library().grd_pool_close(handle)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Scorer:
    """`grd_score_patches` for patches of one shape, with its buffers kept: pairs (N, C, H, W) to scores.

    Args:
        shape: N, C, H, W; H and W >= 11 (Gaussian).
        window: "gaussian" or "box".
        local_window_px: side of the phi_local window, >= 1.
        heatmap: whether it is wanted.
        heatmap_dtype: float32, float16 or uint8; uint8 holds |X - X^| times heatmap_scale, rounded, at most 255.
        pool: shares the patches out; None: the calling thread alone.
        variant: kernel variant by name; None: GRD_FORCE_VARIANT, else the fastest.

    Attributes:
        ran: variant of the last call. It is "scalar" whatever is forced for box windows and phi_local windows above
            256 px.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        window: str = "gaussian",
        local_window_px: int = 21,
        heatmap: bool = True,
        heatmap_dtype: np.typing.DTypeLike = np.float32,
        heatmap_scale: float = 255.0,
        pool: Pool | None = None,
        variant: str | None = None,
    ) -> None:
        if not 1 <= local_window_px < 2**31:  # ctypes would keep its low bits
            raise InputError(f"local_window_px is {local_window_px}; expected 1 or more, in 32 bits")
        lib = self._lib = _native.library()
        n, c, h, w = shape
        self._pool = pool
        self._params = _native.ScoreParams(
            window=_native.WINDOWS[window],
            local_window_px=local_window_px,
            heatmap_scale=heatmap_scale,
            variant=active_variant(variant).encode(),
            pool=pool.handle if pool else None,
        )
        needed = lib.grd_score_workspace_bytes(ctypes.byref(self._params), c, h, w)
        if not needed:
            raise InputError(f"patches of {c}x{h}x{w} cannot be scored; both extents need at least 11 px")
        self._workspace = np.empty(needed, np.uint8)
        self._params.workspace, self._params.workspace_bytes = self._workspace.ctypes.data, needed
        self._phi, self._local, *self._range = (np.empty(n, np.float32) for _ in range(4))
        self._map = np.empty((n, 1, h, w), heatmap_dtype) if heatmap else None
        self._map_view = _native.view(self._map) if heatmap else None
        self._ran = ctypes.c_char_p()
        self._outputs = _native.ScoreOutputs(
            phi=self._phi.ctypes.data,
            phi_local=self._local.ctypes.data,
            residual_min=self._range[0].ctypes.data,
            residual_max=self._range[1].ctypes.data,
            heatmap=ctypes.pointer(self._map_view) if heatmap else None,
            variant=ctypes.pointer(self._ran),
        )

    @property
    def ran(self) -> str | None:
        return self._ran.value.decode() if self._ran.value else None

    def __call__(self, x: np.ndarray, x_hat: np.ndarray, roi: np.ndarray | None = None) -> PatchScores:
        """Scores; the arrays returned are overwritten by the next call.

        Args:
            x: uint8 (value / 255), float16 or float32, any strides.
            x_hat: float16 or float32.
            roi: (N or 1, 1, H, W) uint8 or bool, nonzero = of interest; None: everything is.

        Raises:
            InputError: shapes or dtypes that do not match.
        """
        mask = None if roi is None else _native.view(roi.view(np.uint8) if roi.dtype == bool else roi)
        self._params.roi = ctypes.pointer(mask) if mask else None
        status = self._lib.grd_score_patches(
            ctypes.byref(self._params), _native.view(x), _native.view(x_hat), ctypes.byref(self._outputs)
        )
        _native.check(status)
        return PatchScores(self._phi, self._local, None if self._map is None else self._map[:, 0], *self._range)


def score_patches(x: np.ndarray, x_hat: np.ndarray, roi: np.ndarray | None = None, **options) -> PatchScores:
    """One call of `Scorer`; the same arguments.

    Raises:
        InputError: shapes or dtypes that do not match.
    """
    return Scorer(x.shape, **options)(x, x_hat, roi)


class Cutter:
    """`grd_cut_frame` for frames of one size, with its buffers kept: a frame to patches as the engine takes them.

    Args:
        shape: H, W of the frames.
        grid: `grd_edge.patches.PatchGrid`.
        scale_px: shorter side after area resampling; None: native resolution.
        channels: of the patches, 1 or 3.
        dtype: float32 or float16, in [0, 1]; int8: value / input_scale, to nearest, at most 127.
        layout: "NCHW" or "NHWC".
        input_scale: the engine's, > 0; for int8 only.
        variant: kernel variant by name; None: GRD_FORCE_VARIANT, else the fastest. All give the same bits.

    Attributes:
        ran: variant of the last call.

    Raises:
        InputError: a frame of this size cannot be cut, or one of the choices above is none.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        grid,
        *,
        scale_px: int | None,
        channels: int,
        dtype: np.typing.DTypeLike = np.float32,
        layout: str = "NCHW",
        input_scale: float | None = None,
        variant: str | None = None,
    ) -> None:
        self._lib = _native.library()
        if layout not in ("NCHW", "NHWC"):
            raise InputError(f"layout is {layout!r}; expected 'NCHW' or 'NHWC'")
        if np.dtype(dtype) == np.int8 and not (input_scale and 0 < input_scale < np.inf):
            raise InputError(f"input_scale is {input_scale}; int8 patches need the engine's, a number > 0")
        self._params = _cut_params(grid, scale_px, channels)
        count = _cut_grid(self._params, shape).count
        order = (channels, grid.patch_h, grid.patch_w) if layout == "NCHW" else (grid.patch_h, grid.patch_w, channels)
        self._shape, self._patches = shape, np.empty((count, *order), dtype)
        planes = self._patches if layout == "NCHW" else self._patches.transpose(0, 3, 1, 2)
        self._view, self._ran = _native.view(planes), ctypes.c_char_p()
        needed = self._lib.grd_cut_workspace_bytes(ctypes.byref(self._params), *shape)
        self._workspace = np.empty(needed, np.uint8)
        self._options = _native.CutOptions(
            input_scale=input_scale or 0,
            variant=active_variant(variant).encode(),
            ran=ctypes.pointer(self._ran),
            workspace=self._workspace.ctypes.data,
            workspace_bytes=needed,
        )

    @property
    def ran(self) -> str | None:
        return self._ran.value.decode() if self._ran.value else None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Patches in the type and layout asked for; overwritten by the next call.

        Args:
            frame: uint8 or uint16, H x W or H x W x 3 (RGB), any strides.

        Raises:
            InputError: a frame of another size, dtype, or number of channels.
        """
        if frame.shape[:2] != self._shape:
            raise InputError(f"the frame is {frame.shape} px; this cutter was made for {self._shape}; make another")
        status = self._lib.grd_cut_frame(
            ctypes.byref(self._params), _native.frame_view(frame), ctypes.byref(self._view), ctypes.byref(self._options)
        )
        _native.check(status)
        return self._patches


def cut_frame(frame: np.ndarray, grid, **options) -> np.ndarray:
    """One call of `Cutter`; the same arguments.

    Raises:
        InputError: the frame cannot be cut so.
    """
    return Cutter(frame.shape[:2], grid, **options)(frame)


def stitch_frame(
    maps: np.ndarray, grid, shape: tuple[int, int], *, scale_px: int | None = None, variant: str | None = None
) -> np.ndarray:
    """Map (scaled_h, scaled_w) float32 of a frame from maps or scores of all its patches; the mean where they overlap.

    Args:
        maps: (N, patch_h, patch_w), or (N,): one score for all of a patch; float32, float16 or uint8, any strides.
        grid, scale_px: as the frame was cut.
        shape: H, W of the frame.

    Raises:
        InputError: the maps do not fit the grid of such a frame.
    """
    params = _cut_params(grid, scale_px, 1)
    found = _cut_grid(params, shape)
    if maps.ndim == 1:
        maps = np.broadcast_to(maps[:, None, None], (len(maps), grid.patch_h, grid.patch_w))
    expected = (found.count, grid.patch_h, grid.patch_w)
    if maps.shape != expected:
        raise InputError(f"maps of shape {maps.shape} do not fit the frame; expected {expected} or ({found.count},)")
    out = np.empty((found.scaled_h, found.scaled_w), np.float32)
    source, target = _native.view(maps[:, None]), _native.view(out[None, None])
    options = _native.CutOptions(variant=active_variant(variant).encode())
    status = _native.library().grd_stitch_frame(
        ctypes.byref(params), *shape, ctypes.byref(source), ctypes.byref(target), ctypes.byref(options)
    )
    _native.check(status)
    return out


def _cut_params(grid, scale_px: int | None, channels: int) -> _native.CutParams:
    return _native.CutParams(
        scale_px=scale_px or 0,
        patch_h=grid.patch_h,
        patch_w=grid.patch_w,
        stride_y=grid.stride_y,
        stride_x=grid.stride_x,
        channels=channels,
        padding=_native.PADDINGS[grid.padding],
    )


def _cut_grid(params: _native.CutParams, shape: tuple[int, int]) -> _native.Grid:
    found = _native.Grid()
    _native.check(_native.library().grd_cut_grid(ctypes.byref(params), *shape, ctypes.byref(found)))
    return found
