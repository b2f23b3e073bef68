"""Frames to decisions through the native library. Never imports torch.

Example::

    with Inspector("part.grdb") as inspector:
        result = inspector.inspect(frame)      # uint8 or uint16, H x W or H x W x 3 (RGB)
        if result.decision != "good": reject()
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grd_edge import _native
from grd_edge.errors import InputError
from grd_edge.regions import WHOLE_FRAME, checked_mask

DECISIONS = ("good", "defective", "undecided")


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


@dataclass(frozen=True)
class Inspection:
    """What the engine says of one frame.

    Attributes:
        decision: `good`, `defective`, or `undecided`: the bundle has no thresholds, or the frame fewer patches than k.
        score: the product's statistic, float32: the k-th largest patch score, with several regions the k-th largest
            margin (score - threshold of its region). NaN when a patch scored NaN.
        threshold: float32, what `score` is compared with: 0 with several regions; NaN without thresholds.
        positions: (N, 2) int32, (y, x) of each inspected patch in the scaled frame. Patches without a pixel of
            interest, or in no region, are not inspected.
        phi, phi_local: (N,) float32.
        defective: (N,) bool; all False without thresholds.
        regions: (N,) int32, index of each patch's region in `region_names`; 0 without thresholds.
        region_names: names of the regions, in order.
        heatmap: (scaled_h, scaled_w) float32, 0 where nothing was inspected; None when not asked for.
        x_hat: (N, C, patch_h, patch_w) float32 reconstructions, or None when not asked for.
        times_ms: wall time of `cut`, `infer`, `score`, `total`.
    """

    decision: str
    score: float
    threshold: float
    positions: np.ndarray
    phi: np.ndarray
    phi_local: np.ndarray
    defective: np.ndarray
    regions: np.ndarray
    region_names: tuple[str, ...]
    heatmap: np.ndarray | None
    x_hat: np.ndarray | None
    times_ms: dict[str, float]


class Inspector:
    """An engine of a bundle, ready to inspect frames. For one thread at a time; a context manager.

    Args:
        bundle: folder of the bundle.
        target: `cpu`.
        precision: precision of the engine; None: the one the bundle chose.
        decide: False leaves the bundle's thresholds and regions out: every patch of interest is inspected and nothing
            is decided. So patch scores for new thresholds are measured.
        threads: threads of the engine; 0: all cores.
        batch_limit: patches per engine call.
        variant: kernel variant by name; None: GRD_FORCE_VARIANT, else the fastest this CPU supports.
        backend_dir: folder of `libgrd_backend_<name>.so`; None: beside the native library.

    Raises:
        BundleError: the bundle breaks a rule of docs/bundle.md.
        EngineError: the backend or the vendor's libraries are missing, or the engine is refused.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        target: str = "cpu",
        precision: str | None = None,
        decide: bool = True,
        threads: int = 0,
        batch_limit: int = 16,
        variant: str | None = None,
        backend_dir: str | Path | None = None,
    ) -> None:
        self._bundle, self._handle = ctypes.c_void_p(), ctypes.c_void_p()
        lib = self._lib = _native.library()
        try:
            status = lib.grd_bundle_open(os.fsencode(bundle), ctypes.byref(self._bundle))
            _native.check(status, lib.grd_bundle_message(self._bundle) if self._bundle else None)
            self.info = _native.BundleInfo()
            _native.check(lib.grd_bundle_get_info(self._bundle, ctypes.byref(self.info)))
            self.region_names = WHOLE_FRAME.names
            if decide and self.info.region_count:
                names = (lib.grd_bundle_region_name(self._bundle, i) for i in range(self.info.region_count))
                self.region_names = tuple(name.decode() for name in names)
            vendor = _native.openvino_dir()
            params = _native.InspectorParams(
                threads=threads,
                batch_limit=batch_limit,
                undecided=not decide,
                target=target.encode(),
                precision=precision.encode() if precision else None,
                backend_dir=os.fsencode(backend_dir or _native.library_dir()),
                vendor_dir=os.fsencode(vendor) if vendor else None,
                variant=variant.encode() if variant else None,
            )
            status = lib.grd_inspector_open(self._bundle, ctypes.byref(params), ctypes.byref(self._handle))
            _native.check(status, lib.grd_inspector_message(self._handle) if self._handle else None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Frees engine and bundle; harmless when repeated."""
        handle, self._handle = getattr(self, "_handle", None), None
        bundle, self._bundle = getattr(self, "_bundle", None), None
        if handle:
            self._lib.grd_inspector_close(handle)
        if bundle:
            self._lib.grd_bundle_close(bundle)

    @property
    def engine_version(self) -> str:
        """Name and version of the engine's vendor library."""
        self._require_open()
        return self._lib.grd_inspector_engine_version(self._handle).decode()

    def inspect(
        self, frame: np.ndarray, *, roi: np.ndarray | None = None, heatmap: bool = False, x_hat: bool = False
    ) -> Inspection:
        """Scores one frame and decides.

        Args:
            frame: uint8 or uint16, H x W or H x W x 3 in RGB order, any strides.
            roi: (H, W) bool or uint8 mask of interest, nonzero = of interest; in place of the bundle's. None: the
                bundle's mask, else the whole frame.
            heatmap: also return the stitched heatmap.
            x_hat: also return the reconstructed patches.

        Raises:
            InputError: wrong dtype or channels; a frame smaller than a patch, of another size than the mask or the
                regions, or without a patch to inspect.
            EngineError: inference failed.
        """
        self._require_open()
        frame = np.asarray(frame)
        source = _native.frame_view(frame)
        h, w = frame.shape[:2]
        grid = _native.Grid()
        status = self._lib.grd_inspector_grid(self._handle, h, w, ctypes.byref(grid))
        _native.check(status, self._lib.grd_inspector_message(self._handle))
        patches = (_native.PatchResult * grid.count)()
        result = _native.Result(patches=patches, patch_capacity=grid.count)
        maps = rebuilt = mask = None
        if roi is not None:
            mask = checked_mask(roi, h, w)
            result.roi = ctypes.pointer(_native.view(mask[None, None]))
        if heatmap:
            maps = np.empty((1, 1, grid.scaled_h, grid.scaled_w), np.float32)
            result.heatmap = ctypes.pointer(_native.view(maps))
        if x_hat:
            cut = self.info.cut
            rebuilt = np.empty((grid.count, cut.channels, cut.patch_h, cut.patch_w), np.float32)
            result.x_hat = ctypes.pointer(_native.view(rebuilt))
        status = self._lib.grd_inspector_inspect(self._handle, ctypes.byref(source), ctypes.byref(result))
        _native.check(status, self._lib.grd_inspector_message(self._handle))
        count = result.patch_count
        table = np.ctypeslib.as_array(patches)[:count]
        return Inspection(
            decision=DECISIONS[result.decision],
            score=float(result.score),
            threshold=float(result.threshold),
            positions=np.stack([table["y_px"], table["x_px"]], axis=1),
            phi=table["phi"].copy(),
            phi_local=table["phi_local"].copy(),
            defective=table["decision"] == 1,
            regions=table["region"].copy(),
            region_names=self.region_names,
            heatmap=None if maps is None else maps[0, 0],
            x_hat=None if rebuilt is None else rebuilt[:count],
            times_ms={stage: getattr(result, f"{stage}_ms") for stage in ("cut", "infer", "score", "total")},
        )

    def _require_open(self) -> None:
        if not self._handle:
            raise InputError("this inspector is closed; open a new one")


def kernel_variants() -> dict[str, bool]:
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
        known = ", ".join(f"{n}{'' if ok else ' (not on this CPU)'}" for n, ok in kernel_variants().items())
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
