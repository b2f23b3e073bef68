"""Structures and functions of kernels/include/grd_edge.h in ctypes, for `grd_edge._native`. Never imports torch.

`tests/native/test_native.py` compiles the header and compares every size and offset with this file.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)

Four = c_int64 * 4


class View(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("dtype", c_int32),
        ("space", c_int32),
        ("extent", Four),
        ("stride_bytes", Four),
    )


class Sized(Structure):
    """Base of the structures that begin with struct_size."""

    def __init__(self, **values) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **values)


class ScoreParams(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("window", c_int32),
        ("local_window_px", c_int32),
        ("heatmap_scale", c_float),
        ("variant", c_char_p),
        ("roi", POINTER(View)),
        ("pool", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class ScoreOutputs(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("phi", c_void_p),
        ("phi_local", c_void_p),
        ("residual_min", c_void_p),
        ("residual_max", c_void_p),
        ("heatmap", POINTER(View)),
        ("variant", POINTER(c_char_p)),
    )


class CutParams(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("scale_px", c_int32),
        ("patch_h", c_int32),
        ("patch_w", c_int32),
        ("stride_y", c_int32),
        ("stride_x", c_int32),
        ("channels", c_int32),
        ("padding", c_int32),
    )


class CutOptions(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("input_scale", c_float),
        ("variant", c_char_p),
        ("ran", POINTER(c_char_p)),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class Grid(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("scaled_h", c_int32),
        ("scaled_w", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("count", c_int32),
    )


class BundleInfo(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("schema", c_int32),
        ("cut", CutParams),
        ("window", c_int32),
        ("local_window_px", c_int32),
        ("decides_local", c_int32),
        ("has_decision", c_int32),
        ("k", c_int32),
        ("threshold", c_float),
        ("engine_count", c_int32),
        ("region_count", c_int32),
        ("roi_h", c_int32),
        ("roi_w", c_int32),
        ("run_agreement", c_double),
        ("head", c_int32),
        ("reserved", c_int32),
    )


class InspectorParams(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("batch_limit", c_int32),
        ("undecided", c_int32),
        ("target", c_char_p),
        ("precision", c_char_p),
        ("backend_dir", c_char_p),
        ("vendor_dir", c_char_p),
        ("variant", c_char_p),
    )


class PatchResult(Structure):
    _fields_ = (
        ("y_px", c_int32),
        ("x_px", c_int32),
        ("decision", c_int32),
        ("region", c_int32),
        ("phi", c_float),
        ("phi_local", c_float),
    )


class Result(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("decision", c_int32),
        ("patch_count", c_int32),
        ("defective_count", c_int32),
        ("score", c_float),
        ("threshold", c_float),
        ("cut_ms", c_double),
        ("infer_ms", c_double),
        ("score_ms", c_double),
        ("total_ms", c_double),
        ("patches", POINTER(PatchResult)),
        ("patch_capacity", c_int64),
        ("heatmap", POINTER(View)),
        ("x_hat", POINTER(View)),
        ("roi", POINTER(View)),
    )


class StreamResult(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("outcome", c_int32),
        ("status", c_int32),
        ("generation", c_int32),
        ("id", c_int64),
        ("product", c_int64),
        ("run", c_int64),
        ("user", c_void_p),
        ("decision", c_int32),
        ("patch_count", c_int32),
        ("defective_count", c_int32),
        ("product_complete", c_int32),
        ("score", c_float),
        ("threshold", c_float),
        ("product_decision", c_int32),
        ("product_frames", c_int32),
        ("product_missing", c_int32),
        ("product_defective_count", c_int32),
        ("run_complete", c_int32),
        ("run_decision", c_int32),
        ("run_products", c_int32),
        ("run_defective", c_int32),
        ("queue_ms", c_double),
        ("cut_ms", c_double),
        ("infer_ms", c_double),
        ("score_ms", c_double),
        ("total_ms", c_double),
        ("batch_frames", c_int32),
        ("reserved", c_int32),
        ("message", c_char * 256),
    )


class StreamParams(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("queue_depth", c_int32),
        ("capacity", c_int32),
        ("overload", c_int32),
        ("engines", c_int32),
        ("threads", c_int32),
        ("batch_frames", c_int32),
        ("heatmaps", c_int32),
        ("frame_h", c_int64),
        ("frame_w", c_int64),
        ("frame_c", c_int32),
        ("open_products", c_int32),
        ("deadline_ms", c_double),
        ("batch_wait_ms", c_double),
        ("spin_us", c_double),
        ("cpus", POINTER(c_int32)),
        ("cpu_count", c_int64),
        ("inspector", POINTER(InspectorParams)),
        ("on_result", c_void_p),
        ("context", c_void_p),
    )


class StreamFrame(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("product_frames", c_int32),
        ("id", c_int64),
        ("product", c_int64),
        ("run", c_int64),
        ("user", c_void_p),
        ("run_products", c_int32),
        ("reserved", c_int32),
        ("deadline_ms", c_double),
        ("view", View),
        ("patches", POINTER(PatchResult)),
        ("patch_capacity", c_int64),
        ("heatmap", View),
    )


class Latency(Structure):
    _fields_ = (
        ("count", c_int64),
        ("p50_ms", c_double),
        ("p95_ms", c_double),
        ("p99_ms", c_double),
        ("p999_ms", c_double),
        ("worst_ms", c_double),
    )


class StreamStats(Sized):
    _fields_ = (
        ("struct_size", c_uint32),
        ("generation", c_int32),
        ("submitted", c_int64),
        ("scored", c_int64),
        ("late", c_int64),
        ("dropped", c_int64),
        ("failed", c_int64),
        ("in_flight", c_int64),
        ("waiting", c_int64),
        ("ready", c_int64),
        ("refused", c_int64),
        ("good", c_int64),
        ("defective", c_int64),
        ("undecided", c_int64),
        ("products_closed", c_int64),
        ("batches", c_int64),
        ("patches", c_int64),
        ("oldest_ms", c_double),
        ("uptime_s", c_double),
        ("queue", Latency),
        ("cut", Latency),
        ("infer", Latency),
        ("score", Latency),
        ("total", Latency),
    )


# name -> (result, arguments); everything not listed returns a grd_status
PROTOTYPES = {
    "grd_version": (c_int32, ()),
    "grd_version_string": (c_char_p, ()),
    "grd_status_name": (c_char_p, (c_int32,)),
    "grd_score_patches": (c_int32, (POINTER(ScoreParams), POINTER(View), POINTER(View), POINTER(ScoreOutputs))),
    "grd_score_workspace_bytes": (c_size_t, (POINTER(ScoreParams), c_int64, c_int64, c_int64)),
    "grd_variant_name": (c_char_p, (c_int32,)),
    "grd_variant_supported": (c_int32, (c_char_p,)),
    "grd_variant_active": (c_char_p, (c_char_p,)),
    "grd_pool_open": (c_int32, (c_int32, POINTER(c_void_p))),
    "grd_pool_close": (None, (c_void_p,)),
    "grd_cut_grid": (c_int32, (POINTER(CutParams), c_int64, c_int64, POINTER(Grid))),
    "grd_cut_frame": (c_int32, (POINTER(CutParams), POINTER(View), POINTER(View), POINTER(CutOptions))),
    "grd_stitch_frame": (
        c_int32,
        (POINTER(CutParams), c_int64, c_int64, POINTER(View), POINTER(View), POINTER(CutOptions)),
    ),
    "grd_cut_workspace_bytes": (c_size_t, (POINTER(CutParams), c_int64, c_int64)),
    "grd_bundle_open": (c_int32, (c_char_p, POINTER(c_void_p))),
    "grd_bundle_close": (None, (c_void_p,)),
    "grd_bundle_message": (c_char_p, (c_void_p,)),
    "grd_bundle_get_info": (c_int32, (c_void_p, POINTER(BundleInfo))),
    "grd_bundle_engine_target": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_engine_precision": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_region_name": (c_char_p, (c_void_p, c_int32)),
    "grd_bundle_region_threshold": (c_float, (c_void_p, c_int32)),
    "grd_inspector_open": (c_int32, (c_void_p, POINTER(InspectorParams), POINTER(c_void_p))),
    "grd_inspector_close": (None, (c_void_p,)),
    "grd_inspector_message": (c_char_p, (c_void_p,)),
    "grd_inspector_engine_version": (c_char_p, (c_void_p,)),
    "grd_inspector_grid": (c_int32, (c_void_p, c_int64, c_int64, POINTER(Grid))),
    "grd_inspector_inspect": (c_int32, (c_void_p, POINTER(View), POINTER(Result))),
    "grd_stream_open": (c_int32, (c_void_p, POINTER(StreamParams), POINTER(c_void_p))),
    "grd_stream_close": (None, (c_void_p,)),
    "grd_stream_message": (c_char_p, (c_void_p,)),
    "grd_stream_submit": (c_int32, (c_void_p, POINTER(StreamFrame))),
    "grd_stream_poll": (c_int32, (c_void_p, POINTER(StreamResult))),
    "grd_stream_wait": (c_int32, (c_void_p, POINTER(StreamResult), c_double)),
    "grd_stream_flush": (c_int32, (c_void_p, c_double)),
    "grd_stream_swap": (c_int32, (c_void_p, c_void_p)),
    "grd_stream_get_stats": (c_int32, (c_void_p, POINTER(StreamStats))),
    "grd_stream_engine_version": (c_char_p, (c_void_p,)),
    "grd_stream_grid": (c_int32, (c_void_p, c_int64, c_int64, POINTER(Grid))),
}
