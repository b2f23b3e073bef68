/* stitch.cpp - maps of patches back to a map of the scaled frame.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Some patches may be missing, so how often a pixel is shown is counted along with the sum. */
#include <cstring>

#include "half.h"
#include "patchify.h"
#include "patchify_kernels.h"
#include "variants.h"
#include "views.h"

namespace grd {
namespace {

struct Scratch {
    double *sums;
    int32_t *counts;
    float *values; /* a row of a patch, or of the map */
};

size_t row_px(const grd_cut_params &cut, const grd_grid &grid) {
    return static_cast<size_t>(grid.scaled_w > cut.patch_w ? grid.scaled_w : cut.patch_w);
}

Scratch lay_out(uint8_t *base, size_t w) {
    return {reinterpret_cast<double *>(base), reinterpret_cast<int32_t *>(base + w * sizeof(double)),
            reinterpret_cast<float *>(base + w * (sizeof(double) + sizeof(int32_t)))};
}

/* n values of a row as contiguous floats: where they lie already, else gathered. */
const float *values_of(const uint8_t *from, int32_t dtype, int64_t stride_x, int64_t n, float *gathered) {
    const bool even = reinterpret_cast<uintptr_t>(from) % sizeof(float) == 0;
    if (dtype == GRD_FLOAT32 && stride_x == sizeof(float) && even) return reinterpret_cast<const float *>(from);
    for (int64_t x = 0; x < n; ++x) {
        const uint8_t *at = from + x * stride_x;
        uint16_t half;
        if (dtype == GRD_FLOAT32) {
            std::memcpy(gathered + x, at, sizeof(float));
        } else if (dtype == GRD_FLOAT16) {
            std::memcpy(&half, at, sizeof half);
            gathered[x] = float_from_half(half);
        } else {
            gathered[x] = *at;
        }
    }
    return gathered;
}

grd_status check_maps(const grd_view *view, const int64_t *extent, bool is_output) {
    if (view == nullptr || view->data == nullptr) return GRD_ERR_ARGUMENT;
    const bool narrow = view->dtype == GRD_FLOAT16 || view->dtype == GRD_UINT8;
    if (view->dtype != GRD_FLOAT32 && (is_output || !narrow)) return GRD_ERR_DTYPE;
    if (view->space != GRD_SPACE_HOST) return GRD_ERR_SPACE;
    return std::memcmp(view->extent, extent, sizeof view->extent) == 0 ? GRD_OK : GRD_ERR_SHAPE;
}

} // namespace

size_t stitch_bytes(const grd_cut_params &cut, const grd_grid &grid) {
    return row_px(cut, grid) * (sizeof(double) + sizeof(int32_t) + sizeof(float));
}

grd_status stitch(const grd_cut_params &cut, const grd_grid &grid, const int32_t *slots, const grd_view &patches,
                  const grd_view &map, const grd_cut_options *options) {
    int64_t from_stride[4], to_stride[4];
    if (const grd_status status = strides_of(patches, false, from_stride)) return status;
    if (const grd_status status = strides_of(map, true, to_stride)) return status;
    grd_cut_options used;
    int32_t variant = 0;
    if (const grd_status status = read_cut_options(options, &used, &variant)) return status;
    CutWorkspace workspace;
    if (const grd_status status = workspace.open(used, stitch_bytes(cut, grid) + kCutAlign - 1)) return status;

    const Scratch s = lay_out(workspace.base, row_px(cut, grid));
    const patchify::Kernels &kernels = *patchify::kKernels[variant];
    const size_t w = static_cast<size_t>(grid.scaled_w);
    const int32_t shown_w = grid.scaled_w < cut.patch_w ? grid.scaled_w : cut.patch_w; /* padding is dropped */
    for (int32_t y = 0; y < grid.scaled_h; ++y) {
        std::memset(s.sums, 0, w * sizeof *s.sums);
        std::memset(s.counts, 0, w * sizeof *s.counts);
        for (int32_t r = y > cut.patch_h ? (y - cut.patch_h) / cut.stride_y : 0; r < grid.rows; ++r) {
            const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
            if (top > y) break;
            if (y - top >= cut.patch_h) continue;
            for (int32_t c = 0; c < grid.cols; ++c) {
                const int64_t index = static_cast<int64_t>(r) * grid.cols + c;
                const int64_t slot = slots != nullptr ? slots[index] : index;
                if (slot < 0) continue;
                const uint8_t *from =
                    static_cast<const uint8_t *>(patches.data) + slot * from_stride[0] + (y - top) * from_stride[2];
                const float *values = values_of(from, patches.dtype, from_stride[3], shown_w, s.values);
                const int32_t left = position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
                kernels.add_values(values, shown_w, s.sums + left, s.counts + left);
            }
        }
        kernels.divide(s.sums, s.counts, grid.scaled_w, s.values);
        uint8_t *to = static_cast<uint8_t *>(map.data) + y * to_stride[2];
        for (int32_t x = 0; x < grid.scaled_w; ++x) std::memcpy(to + x * to_stride[3], s.values + x, sizeof *s.values);
    }
    if (used.ran != nullptr) *used.ran = variant_name(variant);
    return GRD_OK;
}

} // namespace grd

grd_status grd_stitch_frame(const grd_cut_params *params, int64_t frame_h, int64_t frame_w, const grd_view *patches,
                            const grd_view *map, const grd_cut_options *options) {
    grd_grid grid = {};
    grid.struct_size = sizeof grid;
    if (const grd_status status = grd_cut_grid(params, frame_h, frame_w, &grid)) return status;
    const int64_t patch_extent[4] = {grid.count, 1, params->patch_h, params->patch_w};
    const int64_t map_extent[4] = {1, 1, grid.scaled_h, grid.scaled_w};
    if (const grd_status status = grd::check_maps(patches, patch_extent, false)) return status;
    if (const grd_status status = grd::check_maps(map, map_extent, true)) return status;
    return grd::stitch(*params, grid, nullptr, *patches, *map, options);
}
