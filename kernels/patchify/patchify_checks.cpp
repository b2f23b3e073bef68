/* patchify_checks.cpp - what every entry point for cutting asks of its arguments, and where patches lie.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cmath>
#include <initializer_list>

#include "patchify/patchify.h"
#include "views.h"

namespace grd {
namespace {

int64_t count_along(int64_t extent, int64_t patch, int64_t stride) {
    return extent <= patch ? 1 : (extent - patch + stride - 1) / stride + 1;
}

} // namespace

grd_status check_params(const grd_cut_params *params) {
    if (params == nullptr) return GRD_ERR_ARGUMENT;
    if (params->struct_size < sizeof(grd_cut_params)) return GRD_ERR_STRUCT_SIZE;
    if (params->scale_px < 0 || params->scale_px > kMaxSidePx) return GRD_ERR_ARGUMENT;
    for (int32_t extent : {params->patch_h, params->patch_w, params->stride_y, params->stride_x})
        if (extent < 1 || extent > kMaxSidePx) return GRD_ERR_ARGUMENT;
    /* A stride above the patch would leave pixels that nobody inspects. */
    if (params->stride_y > params->patch_h || params->stride_x > params->patch_w) return GRD_ERR_ARGUMENT;
    if (params->channels != 1 && params->channels != 3) return GRD_ERR_ARGUMENT;
    if (params->padding != GRD_PADDING_ERROR && params->padding != GRD_PADDING_REFLECT) return GRD_ERR_ARGUMENT;
    return GRD_OK;
}

grd_status grid_of(const grd_cut_params &cut, int64_t h, int64_t w, grd_grid *out) {
    if (h < 1 || w < 1 || h > kMaxSidePx || w > kMaxSidePx) return GRD_ERR_SHAPE;
    int64_t scaled_h = h, scaled_w = w;
    if (cut.scale_px > 0) {
        const int64_t shorter = h < w ? h : w;
        scaled_h = h == shorter ? cut.scale_px : (2 * h * cut.scale_px + shorter) / (2 * shorter);
        scaled_w = w == shorter ? cut.scale_px : (2 * w * cut.scale_px + shorter) / (2 * shorter);
        if (scaled_h > kMaxSidePx || scaled_w > kMaxSidePx) return GRD_ERR_SHAPE;
    }
    if (cut.padding == GRD_PADDING_ERROR && (scaled_h < cut.patch_h || scaled_w < cut.patch_w))
        return GRD_ERR_FRAME_SIZE;
    const int64_t rows = count_along(scaled_h, cut.patch_h, cut.stride_y);
    const int64_t cols = count_along(scaled_w, cut.patch_w, cut.stride_x);
    if (rows * cols > INT32_MAX) return GRD_ERR_SHAPE;
    out->scaled_h = static_cast<int32_t>(scaled_h);
    out->scaled_w = static_cast<int32_t>(scaled_w);
    out->rows = static_cast<int32_t>(rows);
    out->cols = static_cast<int32_t>(cols);
    out->count = static_cast<int32_t>(rows * cols);
    return GRD_OK;
}

grd_status check_frame(const grd_cut_params &cut, const grd_view *frame, int32_t space) {
    if (frame == nullptr || frame->data == nullptr) return GRD_ERR_ARGUMENT;
    if (frame->dtype != GRD_UINT8 && frame->dtype != GRD_UINT16) return GRD_ERR_DTYPE;
    if (frame->space != space) return GRD_ERR_SPACE;
    if (frame->extent[0] != 1) return GRD_ERR_SHAPE;
    const int64_t c = frame->extent[1];
    if (c < 1) return GRD_ERR_SHAPE;
    if ((c != 1 && c != 3) || (c == 1 && cut.channels == 3)) return GRD_ERR_FRAME_CHANNELS;
    if (frame->extent[2] < 1 || frame->extent[3] < 1) return GRD_ERR_SHAPE;
    int64_t stride[4];
    return strides_of(*frame, false, stride);
}

grd_status read_patches(const grd_cut_params &cut, int64_t count, const grd_view *patches, int32_t space,
                        PatchType *out) {
    if (patches == nullptr || patches->data == nullptr) return GRD_ERR_ARGUMENT;
    if (patches->dtype != GRD_FLOAT32 && patches->dtype != GRD_FLOAT16 && patches->dtype != GRD_INT8)
        return GRD_ERR_DTYPE;
    const int64_t item = dtype_bytes(patches->dtype);
    if (reinterpret_cast<uintptr_t>(patches->data) % static_cast<uintptr_t>(item) != 0) return GRD_ERR_ARGUMENT;
    if (patches->space != space) return GRD_ERR_SPACE;
    const int64_t c = cut.channels, h = cut.patch_h, w = cut.patch_w;
    const int64_t want[4] = {count, c, h, w};
    const int64_t planar[4] = {c * h * w * item, h * w * item, w * item, item};
    const int64_t interleaved[4] = {c * h * w * item, item, w * c * item, c * item};
    bool unset = true, in_planes = true, in_pixels = true;
    for (int i = 0; i < 4; ++i) {
        if (patches->extent[i] != want[i]) return GRD_ERR_SHAPE;
        const int64_t stride = patches->stride_bytes[i];
        unset = unset && stride == 0;
        in_planes = in_planes && (want[i] == 1 || stride == planar[i]);
        in_pixels = in_pixels && (want[i] == 1 || stride == interleaved[i]);
    }
    if (!unset && !in_planes && !in_pixels) return GRD_ERR_STRIDE;
    out->dtype = patches->dtype;
    out->interleaved = !unset && !in_planes;
    return GRD_OK;
}

grd_status check_type(const PatchType &type) {
    const bool scaled = type.input_scale > 0 && std::isfinite(type.input_scale);
    return type.dtype == GRD_INT8 && !scaled ? GRD_ERR_ARGUMENT : GRD_OK;
}

} // namespace grd
