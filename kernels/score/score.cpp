/* score.cpp - the scoring section of grd_edge.h: argument checks, choice of the variant, the loop over patches.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"
#include "score/score_internal.h"

namespace grd::score {
namespace {

/* ---------------------------------------------------------------------------------------- variants */

struct Entry {
    const char *name;
    const Variant *variant;
    bool (*supported)();
};

#define GRD_SCORE_VARIANT(name, supported_expression)     \
    bool supported_##name() {                             \
        return static_cast<bool>(supported_expression);   \
    }
#include "score/score_variants.inc"
#undef GRD_SCORE_VARIANT

const Entry kEntries[] = {
#define GRD_SCORE_VARIANT(name, supported_expression) {#name, &variant_##name, supported_##name},
#include "score/score_variants.inc"
#undef GRD_SCORE_VARIANT
};
constexpr int32_t kEntryCount = sizeof kEntries / sizeof kEntries[0];

const Entry *entry_from_name(const char *name) {
    for (const Entry &entry : kEntries)
        if (strcmp(entry.name, name) == 0) return &entry;
    return nullptr;
}

/* The forced variant (by the call, else by the environment), else the fastest one. NULL when the forced one
 * is unknown or does not run here. */
const Entry *entry_from_params(const grd_score_params &params) {
    const char *name = params.variant;
    if (!name) {
        name = getenv("GRD_FORCE_VARIANT");
        if (name && !*name) name = nullptr; /* set but empty: not set */
    }
    if (name) {
        const Entry *entry = entry_from_name(name);
        return entry && entry->supported() ? entry : nullptr;
    }
    for (int32_t i = kEntryCount - 1; i > 0; i--)
        if (kEntries[i].supported()) return &kEntries[i];
    return &kEntries[0];
}

/* ------------------------------------------------------------------------------------------ params */

/* Sizes of the structures in release 0.1.0, which is the first: what a caller must at least know. */
constexpr uint32_t kParamsFirstSize = offsetof(grd_score_params, workspace_bytes) + sizeof(size_t);
constexpr uint32_t kOutputsFirstSize = offsetof(grd_score_outputs, heatmap) + sizeof(void *);

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
    if (!window_known || out->local_window_px < 0 || out->reserved != 0) return GRD_ERR_ARGUMENT;
    return GRD_OK;
}

/* ----------------------------------------------------------------------------------- sizes and views */

/* Far beyond any image, and small enough that no product of two extents and a few constants overflows. */
constexpr int64_t kLargestExtent = int64_t{1} << 24;
constexpr int64_t kLargestChannels = 1 << 12;
constexpr int32_t kDefaultLocal = 21; /* Source: docs/method.md section 5 */

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
    return true;
}

/* Scratch of the hungriest variant for a call that wants everything, and slack to align it. */
size_t workspace_bytes_for(Job job) {
    job.want_phi = job.want_local = job.want_residual = true;
    size_t bytes = 0;
    for (const Entry &entry : kEntries) {
        const size_t own = entry.variant->scratch_bytes(job);
        if (own > bytes) bytes = own;
    }
    return bytes + kAlign - 1;
}

grd_status check_view(const grd_view &view) {
    if (!view.data) return GRD_ERR_ARGUMENT;
    if (view.dtype != GRD_FLOAT32) return GRD_ERR_DTYPE;
    if (view.space != GRD_SPACE_HOST) return GRD_ERR_SPACE;
    for (int64_t extent : view.extent)
        if (extent < 1) return GRD_ERR_SHAPE;
    return GRD_OK;
}

bool same_extents(const int64_t *a, const int64_t *b) { return memcmp(a, b, 4 * sizeof *a) == 0; }

/* |stride| (extent - 1) added to *reach; false when the sum leaves 62 bits. */
bool add_reach(int64_t stride, int64_t extent, int64_t *reach) {
    int64_t span;
    if (stride == INT64_MIN) return false;
    if (__builtin_mul_overflow(stride < 0 ? -stride : stride, extent - 1, &span)) return false;
    return !__builtin_add_overflow(*reach, span, reach) && *reach < INT64_MAX / 2;
}

/* Strides of a view, with the dense ones written out. Refused are offsets that leave 62 bits and, in outputs,
 * pixels that overlap their neighbors. */
grd_status strides_of(const grd_view &view, bool is_output, int64_t *out) {
    const int64_t pixel = sizeof(float);
    bool dense = true;
    for (int64_t stride : view.stride_bytes) dense = dense && stride == 0;
    int64_t step = pixel, reach = 0;
    for (int axis = 3; axis >= 0; axis--) {
        out[axis] = dense ? step : view.stride_bytes[axis];
        if (dense && __builtin_mul_overflow(step, view.extent[axis], &step)) return GRD_ERR_SHAPE;
        if (!add_reach(out[axis], view.extent[axis], &reach)) return dense ? GRD_ERR_SHAPE : GRD_ERR_STRIDE;
        const bool overlaps = view.extent[axis] > 1 && out[axis] > -pixel && out[axis] < pixel;
        if (is_output && overlaps) return GRD_ERR_STRIDE;
    }
    return GRD_OK;
}

/* ----------------------------------------------------------------------------------------- the call */

/* A call after its checks. */
struct Call {
    grd_score_params params;
    grd_score_outputs outputs;
    const grd_view *x, *x_hat;
    Job job;
    const Variant *variant;
    int64_t x_stride[4], x_hat_stride[4], heatmap_stride[4];
};

grd_status check_heatmap(const grd_view &heatmap, Call *call) {
    grd_status status = check_view(heatmap);
    if (status != GRD_OK) return status;
    const int64_t *x = call->x->extent;
    const int64_t wanted[4] = {x[0], 1, x[2], x[3]};
    if (!same_extents(heatmap.extent, wanted)) return GRD_ERR_SHAPE;
    return strides_of(heatmap, true, call->heatmap_stride);
}

/* Everything that can be wrong with the arguments, before any output is touched. */
grd_status check_call(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                      const grd_score_outputs *outputs, Call *call) {
    if (!x || !x_hat || !outputs) return GRD_ERR_ARGUMENT;
    grd_status status = read_params(params, &call->params);
    if (status == GRD_OK) status = read_struct(outputs, kOutputsFirstSize, &call->outputs);
    if (status == GRD_OK) status = check_view(*x);
    if (status == GRD_OK) status = check_view(*x_hat);
    if (status != GRD_OK) return status;

    call->x = x;
    call->x_hat = x_hat;
    if (!same_extents(x->extent, x_hat->extent)) return GRD_ERR_SHAPE;
    if (!job_from_size(call->params, x->extent[1], x->extent[2], x->extent[3], &call->job)) return GRD_ERR_SHAPE;
    status = strides_of(*x, false, call->x_stride);
    if (status == GRD_OK) status = strides_of(*x_hat, false, call->x_hat_stride);
    if (status == GRD_OK && call->outputs.heatmap) status = check_heatmap(*call->outputs.heatmap, call);
    if (status != GRD_OK) return status;

    const Entry *entry = entry_from_params(call->params);
    if (!entry) return GRD_ERR_VARIANT;
    call->variant = entry->variant;
    if (call->params.workspace && call->params.workspace_bytes < workspace_bytes_for(call->job))
        return GRD_ERR_BUFFER;

    call->job.want_phi = call->outputs.phi != nullptr;
    call->job.want_local = call->outputs.phi_local != nullptr;
    call->job.want_residual = call->outputs.residual_min || call->outputs.residual_max || call->outputs.heatmap;
    return GRD_OK;
}

Image image_at(const grd_view &view, const int64_t *stride, int64_t n) {
    return {static_cast<const char *>(view.data) + n * stride[0], stride[1], stride[2], stride[3]};
}

void score_all(const Call &call, void *scratch) {
    const grd_score_outputs &out = call.outputs;
    for (int64_t n = 0; n < call.x->extent[0]; n++) {
        Patch patch = {};
        patch.x = image_at(*call.x, call.x_stride, n);
        patch.x_hat = image_at(*call.x_hat, call.x_hat_stride, n);
        if (out.heatmap) {
            patch.heatmap = static_cast<char *>(out.heatmap->data) + n * call.heatmap_stride[0];
            patch.heatmap_stride_y = call.heatmap_stride[2];
            patch.heatmap_stride_x = call.heatmap_stride[3];
        }
        const Result result = call.variant->run(call.job, patch, scratch);
        if (out.phi) out.phi[n] = result.phi;
        if (out.phi_local) out.phi_local[n] = result.phi_local;
        if (out.residual_min) out.residual_min[n] = result.residual_min;
        if (out.residual_max) out.residual_max[n] = result.residual_max;
    }
}

void *aligned(void *at) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    return static_cast<char *>(at) + (kAlign - address % kAlign) % kAlign;
}

} // namespace
} // namespace grd::score

using namespace grd::score;

extern "C" {

grd_status grd_score_patches(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                             const grd_score_outputs *outputs) {
    Call call = {};
    const grd_status status = check_call(params, x, x_hat, outputs, &call);
    if (status != GRD_OK) return status;
    if (!call.job.want_phi && !call.job.want_local && !call.job.want_residual) return GRD_OK;
    if (call.params.workspace) {
        score_all(call, aligned(call.params.workspace));
        return GRD_OK;
    }
    void *block = malloc(call.variant->scratch_bytes(call.job) + kAlign - 1);
    if (!block) return GRD_ERR_MEMORY;
    score_all(call, aligned(block));
    free(block);
    return GRD_OK;
}

size_t grd_score_workspace_bytes(const grd_score_params *params, int64_t c, int64_t h, int64_t w) {
    grd_score_params own;
    Job job;
    if (read_params(params, &own) != GRD_OK || !job_from_size(own, c, h, w, &job)) return 0;
    return workspace_bytes_for(job);
}

const char *grd_score_variant_name(int32_t index) {
    return index >= 0 && index < kEntryCount ? kEntries[index].name : nullptr;
}

int32_t grd_score_variant_supported(const char *name) {
    const Entry *entry = name ? entry_from_name(name) : nullptr;
    return entry && entry->supported();
}

const char *grd_score_variant_active(const grd_score_params *params) {
    grd_score_params own;
    if (read_params(params, &own) != GRD_OK) return nullptr;
    const Entry *entry = entry_from_params(own);
    return entry ? entry->name : nullptr;
}

} // extern "C"
