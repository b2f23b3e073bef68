/* score.cpp - the scoring section of grd_edge.h: argument checks, the loop over patches.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"
#include "pool/pool.h"
#include "score/score_internal.h"
#include "variants.h"
#include "views.h"

namespace grd::score {
namespace {

const Variant *const kVariants[] = {
#define GRD_VARIANT(name, supported) &variant_##name,
#include "variants.inc"
#undef GRD_VARIANT
};

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

/* ----------------------------------------------------------------------------------- sizes and views */

/* Far beyond any image, and small enough that no product of two extents and a few constants overflows. */
constexpr int64_t kLargestExtent = int64_t{1} << 24;
constexpr int64_t kLargestChannels = 1 << 12;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* False when patches of this size are not taken. */
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

size_t round_up(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

/* Scratch of one thread: what counting positions needs, then what the variant does. */
size_t count_bytes(const Job &job) { return round_up(positions_scratch_bytes(job)); }

size_t thread_bytes(const Variant &variant, const Job &job) {
    return count_bytes(job) + round_up(variant.scratch_bytes(job));
}

/* Scratch of the hungriest variant for a call that wants everything, for each thread, and slack to align it. */
size_t workspace_bytes_for(Job job, const grd_pool *pool) {
    job.want_phi = job.want_local = job.want_residual = true;
    size_t bytes = 0;
    for (const Variant *variant : kVariants) {
        const size_t own = variant->takes(job) ? thread_bytes(*variant, job) : 0;
        if (own > bytes) bytes = own;
    }
    return bytes * static_cast<size_t>(pool_threads(pool)) + kAlign - 1;
}

grd_status check_view(const grd_view &view, bool takes_bytes, bool takes_halves, bool takes_floats) {
    if (!view.data) return GRD_ERR_ARGUMENT;
    const bool taken = (takes_bytes && view.dtype == GRD_UINT8) || (takes_halves && view.dtype == GRD_FLOAT16) ||
                       (takes_floats && view.dtype == GRD_FLOAT32);
    if (!taken) return GRD_ERR_DTYPE;
    if (view.space != GRD_SPACE_HOST) return GRD_ERR_SPACE;
    for (int64_t extent : view.extent)
        if (extent < 1) return GRD_ERR_SHAPE;
    return GRD_OK;
}

bool same_extents(const int64_t *a, const int64_t *b) { return memcmp(a, b, 4 * sizeof *a) == 0; }

/* ----------------------------------------------------------------------------------------- the call */

/* A call after its checks. */
struct Call {
    grd_score_params params;
    grd_score_outputs outputs;
    const grd_view *x, *x_hat;
    Job job;
    int32_t variant; /* in kVariants */
    int64_t x_stride[4], x_hat_stride[4], roi_stride[4], heatmap_stride[4];
    char *scratch; /* thread_stride bytes for each thread */
    size_t thread_stride;
};

grd_status check_heatmap(const grd_view &heatmap, Call *call) {
    const grd_status status = check_view(heatmap, true, true, true);
    if (status != GRD_OK) return status;
    const int64_t *x = call->x->extent;
    const int64_t wanted[4] = {x[0], 1, x[2], x[3]};
    if (!same_extents(heatmap.extent, wanted)) return GRD_ERR_SHAPE;
    call->job.heatmap_dtype = heatmap.dtype;
    return strides_of(heatmap, true, call->heatmap_stride);
}

grd_status check_roi(const grd_view &roi, Call *call) {
    const grd_status status = check_view(roi, true, false, false);
    if (status != GRD_OK) return status;
    const int64_t *x = call->x->extent;
    const int64_t one[4] = {1, 1, x[2], x[3]}, each[4] = {x[0], 1, x[2], x[3]};
    if (!same_extents(roi.extent, one) && !same_extents(roi.extent, each)) return GRD_ERR_SHAPE;
    const grd_status strides = strides_of(roi, false, call->roi_stride);
    if (roi.extent[0] == 1) call->roi_stride[0] = 0;
    return strides;
}

/* Everything that can be wrong with the arguments, before any output is touched. */
grd_status check_call(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                      const grd_score_outputs *outputs, Call *call) {
    if (!x || !x_hat || !outputs) return GRD_ERR_ARGUMENT;
    grd_status status = read_params(params, &call->params);
    if (status == GRD_OK) status = read_struct(outputs, kOutputsFirstSize, &call->outputs);
    if (status == GRD_OK) status = check_view(*x, true, true, true);
    if (status == GRD_OK) status = check_view(*x_hat, false, true, true);
    if (status != GRD_OK) return status;

    call->x = x;
    call->x_hat = x_hat;
    if (!same_extents(x->extent, x_hat->extent)) return GRD_ERR_SHAPE;
    if (!job_from_size(call->params, x->extent[1], x->extent[2], x->extent[3], &call->job)) return GRD_ERR_SHAPE;
    call->job.x_dtype = x->dtype, call->job.x_hat_dtype = x_hat->dtype;
    status = strides_of(*x, false, call->x_stride);
    if (status == GRD_OK) status = strides_of(*x_hat, false, call->x_hat_stride);
    if (status == GRD_OK && call->outputs.heatmap) status = check_heatmap(*call->outputs.heatmap, call);
    if (status == GRD_OK && call->params.roi) status = check_roi(*call->params.roi, call);
    if (status != GRD_OK) return status;

    call->variant = variant_index(call->params.variant);
    if (call->variant < 0) return GRD_ERR_VARIANT;
    if (!kVariants[call->variant]->takes(call->job)) call->variant = kVariant_scalar;
    if (call->params.workspace && call->params.workspace_bytes < workspace_bytes_for(call->job, call->params.pool))
        return GRD_ERR_BUFFER;

    call->job.want_phi = call->outputs.phi != nullptr;
    call->job.want_local = call->outputs.phi_local != nullptr;
    call->job.want_residual = call->outputs.residual_min || call->outputs.residual_max || call->outputs.heatmap;
    call->thread_stride = thread_bytes(*kVariants[call->variant], call->job);
    return GRD_OK;
}

Image image_at(const grd_view &view, const int64_t *stride, int64_t n) {
    return {static_cast<const char *>(view.data) + n * stride[0], stride[1], stride[2], stride[3]};
}

void clear_heatmap(const Job &job, const Patch &patch) {
    for (int64_t y = 0; y < job.h && patch.heatmap; y++)
        for (int64_t x = 0; x < job.w; x++)
            store_residual(job, patch.heatmap + y * patch.heatmap_stride_y + x * patch.heatmap_stride_x, 0);
}

/* Patch n, by one thread of the pool. */
void score_patch(void *context, int64_t n, int32_t worker) {
    const Call &call = *static_cast<const Call *>(context);
    const grd_score_outputs &out = call.outputs;
    char *scratch = call.scratch + static_cast<size_t>(worker) * call.thread_stride;
    Patch patch = {};
    patch.x = image_at(*call.x, call.x_stride, n);
    patch.x_hat = image_at(*call.x_hat, call.x_hat_stride, n);
    patch.positions = call.job.map_h * call.job.map_w;
    if (out.heatmap) {
        patch.heatmap = static_cast<char *>(out.heatmap->data) + n * call.heatmap_stride[0];
        patch.heatmap_stride_y = call.heatmap_stride[2];
        patch.heatmap_stride_x = call.heatmap_stride[3];
    }
    if (const grd_view *roi = call.params.roi) {
        const int64_t *stride = call.roi_stride;
        patch.roi = {static_cast<const uint8_t *>(roi->data) + n * stride[0], stride[2], stride[3]};
        bool whole;
        patch.positions = positions_of_interest(call.job, patch.roi, reinterpret_cast<uint8_t *>(scratch), &whole);
        if (whole) patch.roi.data = nullptr;
    }
    Result result = {NAN, NAN, NAN, NAN};
    if (patch.positions > 0) result = kVariants[call.variant]->run(call.job, patch, scratch + count_bytes(call.job));
    else clear_heatmap(call.job, patch);
    if (out.phi) out.phi[n] = result.phi;
    if (out.phi_local) out.phi_local[n] = result.phi_local;
    if (out.residual_min) out.residual_min[n] = result.residual_min;
    if (out.residual_max) out.residual_max[n] = result.residual_max;
}

void score_all(Call *call, void *scratch) {
    call->scratch = static_cast<char *>(scratch);
    pool_run(call->params.pool, call->x->extent[0], score_patch, call);
}

void *aligned(void *at) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    return static_cast<char *>(at) + (kAlign - address % kAlign) % kAlign;
}

} // namespace
} // namespace grd::score

using namespace grd;
using namespace grd::score;

extern "C" {

grd_status grd_score_patches(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                             const grd_score_outputs *outputs) {
    Call call = {};
    const grd_status status = check_call(params, x, x_hat, outputs, &call);
    if (status != GRD_OK) return status;
    if (call.outputs.variant) *call.outputs.variant = variant_name(call.variant);
    if (!call.job.want_phi && !call.job.want_local && !call.job.want_residual) return GRD_OK;
    if (call.params.workspace) {
        score_all(&call, aligned(call.params.workspace));
        return GRD_OK;
    }
    const size_t threads = static_cast<size_t>(pool_threads(call.params.pool));
    void *block = malloc(call.thread_stride * threads + kAlign - 1);
    if (!block) return GRD_ERR_MEMORY;
    score_all(&call, aligned(block));
    free(block);
    return GRD_OK;
}

size_t grd_score_workspace_bytes(const grd_score_params *params, int64_t c, int64_t h, int64_t w) {
    grd_score_params own;
    Job job;
    if (read_params(params, &own) != GRD_OK || !job_from_size(own, c, h, w, &job)) return 0;
    return workspace_bytes_for(job, own.pool);
}

} // extern "C"
