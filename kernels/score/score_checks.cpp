/* score_checks.cpp - see score_checks.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "score/score_checks.h"

#include <math.h>
#include <string.h>

#include "views.h"

namespace grd::score {
namespace {

/* ------------------------------------------------------------------------------------------ params */

/* Sizes of the structures in release 0.1.0, which is the first: what a caller must at least know. */
constexpr uint32_t kParamsFirstSize = offsetof(grd_score_params, workspace_bytes) + sizeof(size_t);
constexpr uint32_t kOutputsFirstSize = offsetof(grd_score_outputs, variant) + sizeof(void *);

/* The caller's structure in our length: members it does not know stay 0, which is their default. */
template <class Struct> grd_status read_struct(const Struct *given, uint32_t first_size, Struct *out) {
    memset(out, 0, sizeof *out);
    const uint32_t size = given->struct_size;
    if (size < first_size) return GRD_ERR_STRUCT_SIZE;
    memcpy(out, given, size < sizeof *out ? size : sizeof *out);
    return GRD_OK;
}

/* ----------------------------------------------------------------------------------- sizes and views */

/* Far beyond any image, and small enough that no product of two extents and a few constants overflows. */
constexpr int64_t kLargestExtent = int64_t{1} << 24;
constexpr int64_t kLargestChannels = 1 << 12;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

grd_status check_view(const grd_view &view, int32_t space, bool takes_bytes, bool takes_halves, bool takes_floats) {
    if (!view.data) return GRD_ERR_ARGUMENT;
    const bool taken = (takes_bytes && view.dtype == GRD_UINT8) || (takes_halves && view.dtype == GRD_FLOAT16) ||
                       (takes_floats && view.dtype == GRD_FLOAT32);
    if (!taken) return GRD_ERR_DTYPE;
    if (view.space != space) return GRD_ERR_SPACE;
    for (int64_t extent : view.extent)
        if (extent < 1) return GRD_ERR_SHAPE;
    return GRD_OK;
}

bool same_extents(const int64_t *a, const int64_t *b) { return memcmp(a, b, 4 * sizeof *a) == 0; }

grd_status check_heatmap(const grd_view &heatmap, int32_t space, CheckedCall *call) {
    const grd_status status = check_view(heatmap, space, true, true, true);
    if (status != GRD_OK) return status;
    const int64_t *x = call->x->extent;
    const int64_t wanted[4] = {x[0], 1, x[2], x[3]};
    if (!same_extents(heatmap.extent, wanted)) return GRD_ERR_SHAPE;
    call->job.heatmap_dtype = heatmap.dtype;
    return strides_of(heatmap, true, call->heatmap_stride);
}

grd_status check_roi(const grd_view &roi, int32_t space, CheckedCall *call) {
    const grd_status status = check_view(roi, space, true, false, false);
    if (status != GRD_OK) return status;
    const int64_t *x = call->x->extent;
    const int64_t one[4] = {1, 1, x[2], x[3]}, each[4] = {x[0], 1, x[2], x[3]};
    if (!same_extents(roi.extent, one) && !same_extents(roi.extent, each)) return GRD_ERR_SHAPE;
    const grd_status strides = strides_of(roi, false, call->roi_stride);
    if (roi.extent[0] == 1) call->roi_stride[0] = 0;
    return strides;
}

} // namespace

grd_status read_params(const grd_score_params *given, grd_score_params *out) {
    if (!given) {
        memset(out, 0, sizeof *out);
        return GRD_OK;
    }
    const grd_status status = read_struct(given, kParamsFirstSize, out);
    if (status != GRD_OK) return status;
    const bool window_known = out->window == GRD_WINDOW_GAUSSIAN || out->window == GRD_WINDOW_BOX;
    if (!window_known || out->local_window_px < 0) return GRD_ERR_ARGUMENT;
    if (!(out->heatmap_scale >= 0) || !isfinite(out->heatmap_scale)) return GRD_ERR_ARGUMENT;
    return GRD_OK;
}

bool job_from_size(const grd_score_params &params, int64_t c, int64_t h, int64_t w, Job *out) {
    const bool box = params.window == GRD_WINDOW_BOX;
    const int64_t smallest = box ? 1 : kTaps;
    if (c < 1 || c > kLargestChannels) return false;
    if (h < smallest || h > kLargestExtent || w < smallest || w > kLargestExtent) return false;
    if (h * w > INT64_MAX / 256 / c) return false; /* no variant's scratch takes 256 bytes a pixel */
    const int64_t lost = box ? 0 : kTaps - 1;
    const int64_t local = params.local_window_px ? params.local_window_px : kDefaultLocal;
    *out = {};
    out->c = c, out->h = h, out->w = w;
    out->map_h = h - lost, out->map_w = w - lost;
    out->local = least(local, least(out->map_h, out->map_w));
    out->box = box;
    out->x_dtype = out->x_hat_dtype = out->heatmap_dtype = GRD_FLOAT32;
    out->heatmap_scale = params.heatmap_scale != 0 ? params.heatmap_scale : 255.0f;
    return true;
}

grd_status check_score(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                       const grd_score_outputs *outputs, int32_t space, CheckedCall *call) {
    if (!x || !x_hat || !outputs) return GRD_ERR_ARGUMENT;
    grd_status status = read_params(params, &call->params);
    if (status == GRD_OK) status = read_struct(outputs, kOutputsFirstSize, &call->outputs);
    if (status == GRD_OK) status = check_view(*x, space, true, true, true);
    if (status == GRD_OK) status = check_view(*x_hat, space, false, true, true);
    if (status != GRD_OK) return status;

    call->x = x;
    call->x_hat = x_hat;
    if (!same_extents(x->extent, x_hat->extent)) return GRD_ERR_SHAPE;
    if (!job_from_size(call->params, x->extent[1], x->extent[2], x->extent[3], &call->job)) return GRD_ERR_SHAPE;
    call->job.x_dtype = x->dtype, call->job.x_hat_dtype = x_hat->dtype;
    status = strides_of(*x, false, call->x_stride);
    if (status == GRD_OK) status = strides_of(*x_hat, false, call->x_hat_stride);
    if (status == GRD_OK && call->outputs.heatmap) status = check_heatmap(*call->outputs.heatmap, space, call);
    if (status == GRD_OK && call->params.roi) status = check_roi(*call->params.roi, space, call);
    if (status != GRD_OK) return status;

    call->job.want_phi = call->outputs.phi != nullptr;
    call->job.want_local = call->outputs.phi_local != nullptr;
    call->job.want_residual = call->outputs.residual_min || call->outputs.residual_max || call->outputs.heatmap;
    return GRD_OK;
}

} // namespace grd::score
