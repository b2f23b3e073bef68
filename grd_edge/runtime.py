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
class Inspection:
    """What the engine says of one frame.

    Attributes:
        decision: `good`, `defective`, or `undecided`: the bundle has no thresholds, or the frame fewer patches than k.
        score: the product's statistic, float32: the k-th largest patch score, with several regions the k-th largest
            margin (score - threshold of its region). NaN when a patch scored NaN.
        threshold: float32, what `score` is compared with: 0 with several regions; NaN without thresholds.
        positions: (N, 2) int32, (y, x) of each inspected patch in the scaled frame. Patches without a pixel of
            interest, or in no region, are not inspected.
        phi, phi_local: (N,) float32. Of head `score_map`: the graph's score, and the largest value of its map.
        defective: (N,) bool; all False without thresholds.
        regions: (N,) int32, index of each patch's region in `region_names`; 0 without thresholds.
        region_names: names of the regions, in order.
        heatmap: (scaled_h, scaled_w) float32, of head `score_map` that map; 0 where nothing was inspected; None when
            not asked for.
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


class NativeBundle:
    """A bundle as the native library holds it, verified and read once. It must stay open as long as what it opened.

    Attributes:
        handle: the library's.
        info: its `grd_bundle_info`.
        region_names: names of its regions, in order; one for the whole frame where it has none.

    Raises:
        BundleError: the bundle breaks a rule of docs/bundle.md.
    """

    def __init__(self, path: str | Path) -> None:
        self.handle = ctypes.c_void_p()
        lib = self._lib = _native.library()
        try:
            status = lib.grd_bundle_open(os.fsencode(path), ctypes.byref(self.handle))
            _native.check(status, lib.grd_bundle_message(self.handle) if self.handle else None)
            self.info = _native.BundleInfo()
            _native.check(lib.grd_bundle_get_info(self.handle, ctypes.byref(self.info)))
            names = (lib.grd_bundle_region_name(self.handle, i) for i in range(self.info.region_count))
            self.region_names = tuple(name.decode() for name in names) or WHOLE_FRAME.names
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees it; harmless when repeated."""
        handle, self.handle = self.handle, None
        if handle:
            self._lib.grd_bundle_close(handle)


def engine_params(
    *,
    target: str = "cpu",
    precision: str | None = None,
    decide: bool = True,
    threads: int = 0,
    batch_limit: int = 16,
    variant: str | None = None,
    backend_dir: str | Path | None = None,
    vendor_dir: str | Path | None = None,
) -> _native.InspectorParams:
    """What the native library is told of an engine; arguments as those of `Inspector`."""
    vendor = vendor_dir or _native.vendor_dir(target)
    return _native.InspectorParams(
        threads=threads,
        batch_limit=batch_limit,
        undecided=not decide,
        target=target.encode(),
        precision=precision.encode() if precision else None,
        backend_dir=os.fsencode(backend_dir or _native.library_dir()),
        vendor_dir=os.fsencode(vendor) if vendor else None,
        variant=variant.encode() if variant else None,
    )


def inspection_of(
    result: _native.Result | _native.StreamResult,
    patches: ctypes.Array[_native.PatchResult],
    region_names: tuple[str, ...],
    *,
    heatmap: np.ndarray | None = None,
    x_hat: np.ndarray | None = None,
) -> Inspection:
    """An inspected frame from the structures that the native library filled; heatmap and x_hat as it filled them."""
    table = np.ctypeslib.as_array(patches)[: result.patch_count]
    return Inspection(
        decision=DECISIONS[result.decision],
        score=float(result.score),
        threshold=float(result.threshold),
        positions=np.stack([table["y_px"], table["x_px"]], axis=1),
        phi=table["phi"].copy(),
        phi_local=table["phi_local"].copy(),
        defective=table["decision"] == 1,
        regions=table["region"].copy(),
        region_names=region_names,
        heatmap=None if heatmap is None else heatmap[0, 0],
        x_hat=None if x_hat is None else x_hat[: result.patch_count],
        times_ms={stage: getattr(result, f"{stage}_ms") for stage in ("cut", "infer", "score", "total")},
    )


class Inspector:
    """An engine of a bundle, ready to inspect frames. For one thread at a time; a context manager.

    Args:
        bundle: folder of the bundle.
        target: `cpu`, or one that an engine was built for.
        precision: precision of the engine; None: the one the bundle chose.
        decide: False leaves the bundle's thresholds and regions out: every patch of interest is inspected and nothing
            is decided. So patch scores for new thresholds are measured.
        threads: threads of the engine, and of scoring between its calls (there at most 8); 0: all cores.
        batch_limit: patches per engine call.
        variant: kernel variant by name; None: GRD_FORCE_VARIANT, else the fastest this CPU supports.
        backend_dir: folder of `libgrd_backend_<name>.so`; None: beside the native library.
        vendor_dir: folder of the engine's vendor library; None: that of the installed wheel.

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
        vendor_dir: str | Path | None = None,
    ) -> None:
        self._handle = ctypes.c_void_p()
        lib = self._lib = _native.library()
        params = engine_params(
            target=target,
            precision=precision,
            decide=decide,
            threads=threads,
            batch_limit=batch_limit,
            variant=variant,
            backend_dir=backend_dir,
            vendor_dir=vendor_dir,
        )
        self._bundle = NativeBundle(bundle)
        try:
            self.info = self._bundle.info
            self.region_names = self._bundle.region_names if decide else WHOLE_FRAME.names
            status = lib.grd_inspector_open(self._bundle.handle, ctypes.byref(params), ctypes.byref(self._handle))
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
            bundle.close()

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
            x_hat: also return the reconstructed patches, which head `score_map` has not.

        Raises:
            InputError: wrong dtype or channels; a frame smaller than a patch, of another size than the mask or the
                regions, or without a patch to inspect; `x_hat` asked of a bundle that reconstructs nothing.
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
        return inspection_of(result, patches, self.region_names, heatmap=maps, x_hat=rebuilt)

    def _require_open(self) -> None:
        if not self._handle:
            raise InputError("this inspector is closed; open a new one")
