/* score.cpp - the scoring section of grd_edge.h: the variant, its scratch, the loop over patches.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"
#include "pool/pool.h"
#include "score/score_checks.h"
#include "variants.h"
#include "views.h"

namespace grd::score {
namespace {

const Variant *const kVariants[] = {
#define GRD_VARIANT(name, supported) &variant_##name,
#include "variants.inc"
#undef GRD_VARIANT
};

/* ------------------------------------------------------------------------------------------ scratch */

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

/* ----------------------------------------------------------------------------------------- the call */

/* A call after its checks. */
struct Call : CheckedCall {
    int32_t variant; /* in kVariants */
    char *scratch;   /* thread_stride bytes for each thread */
    size_t thread_stride;
};

/* Everything that can be wrong with the arguments, before any output is touched. */
grd_status check_call(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                      const grd_score_outputs *outputs, Call *call) {
    const grd_status status = check_score(params, x, x_hat, outputs, GRD_SPACE_HOST, call);
    if (status != GRD_OK) return status;
    call->variant = variant_index(call->params.variant);
    if (call->variant < 0) return GRD_ERR_VARIANT;
    if (!kVariants[call->variant]->takes(call->job)) call->variant = kVariant_scalar;
    if (call->params.workspace && call->params.workspace_bytes < workspace_bytes_for(call->job, call->params.pool))
        return GRD_ERR_BUFFER;
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
