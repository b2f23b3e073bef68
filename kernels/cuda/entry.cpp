/* entry.cpp - the CUDA section of grd_edge.h: argument checks, then launches.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstdio>
#include <cstring>

#include "cuda/launch.h"
#include "patchify/patchify.h"
#include "score/score_checks.h"
#include "score/score_cuda.h"
#include "views.h"

namespace grd::cuda {
namespace {

constexpr const char *kVariantName =
#define GRD_VARIANT(name, supported)
#define GRD_DEVICE_VARIANT(name) #name
#include "variants.inc"
#undef GRD_DEVICE_VARIANT
#undef GRD_VARIANT
    ;

thread_local char message[512];

grd_status status_of(cudaError_t error) {
    if (error == cudaSuccess) return GRD_OK;
    cudaGetLastError(); /* else the next call would find this error again */
    const bool missing = error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice;
    std::snprintf(message, sizeof message, "the CUDA driver refused: %s (%s); %s", cudaGetErrorString(error),
                  cudaGetErrorName(error),
                  missing ? "install an NVIDIA driver that knows CUDA " GRD_CUDA_TOOLKIT ", on a machine with a device of "
                            "compute capability 7.5 or more"
                          : "look at what was enqueued on this device before");
    return GRD_ERR_DEVICE;
}

bool is_ours(const char *variant) { return variant == nullptr || std::strcmp(variant, kVariantName) == 0; }

/* Elements lie where devices can load them. */
grd_status check_alignment(const grd_view &view, const int64_t *stride) {
    const int64_t item = dtype_bytes(view.dtype);
    if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(item) != 0) return GRD_ERR_ARGUMENT;
    for (int axis = 0; axis < 4; axis++)
        if (view.extent[axis] > 1 && stride[axis] % item != 0) return GRD_ERR_STRIDE;
    return GRD_OK;
}

Source source_of(const grd_view &view, const int64_t *stride) {
    return {static_cast<const char *>(view.data), stride[0], stride[1], stride[2], stride[3], view.dtype};
}

/* n patches of a job; outputs and workspace remain. */
ScorePatches patches_of(const grd_score_params &params, const score::Job &job, int64_t n) {
    ScorePatches out = {};
    out.x_dtype = job.x_dtype, out.x_hat_dtype = job.x_hat_dtype, out.heatmap_dtype = job.heatmap_dtype;
    out.n = static_cast<int32_t>(n), out.c = static_cast<int32_t>(job.c);
    out.h = static_cast<int32_t>(job.h), out.w = static_cast<int32_t>(job.w);
    out.window = params.window, out.local_window_px = params.local_window_px;
    out.heatmap_scale = job.heatmap_scale;
    return out;
}

/* Bytes for every choice of outputs; 0 when the patches are not taken. */
size_t workspace_bytes_for(ScorePatches patches) {
    float wanted; /* only its address counts */
    patches.phi_local = &wanted;
    return score_workspace_bytes(patches);
}

} // namespace
} // namespace grd::cuda

using namespace grd;

extern "C" {

grd_status grd_cuda_score_patches(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                                  const grd_score_outputs *outputs, void *stream) {
    cuda::message[0] = 0;
    score::CheckedCall call = {};
    if (const grd_status status = score::check_score(params, x, x_hat, outputs, GRD_SPACE_CUDA, &call)) return status;
    if (const grd_status status = cuda::check_alignment(*x, call.x_stride)) return status;
    if (const grd_status status = cuda::check_alignment(*x_hat, call.x_hat_stride)) return status;
    if (x->extent[0] > INT32_MAX || call.job.h * call.job.w > INT32_MAX) return GRD_ERR_SHAPE;
    cuda::ScorePatches patches = cuda::patches_of(call.params, call.job, x->extent[0]);
    cuda::ScoreViews views = {cuda::source_of(*x, call.x_stride), cuda::source_of(*x_hat, call.x_hat_stride), {}, {}};
    if (const grd_view *heatmap = call.outputs.heatmap) {
        if (const grd_status status = cuda::check_alignment(*heatmap, call.heatmap_stride)) return status;
        views.heatmap = cuda::source_of(*heatmap, call.heatmap_stride);
    }
    if (const grd_view *roi = call.params.roi) views.roi = cuda::source_of(*roi, call.roi_stride);
    if (!cuda::is_ours(call.params.variant)) return GRD_ERR_VARIANT;
    const size_t bytes = cuda::workspace_bytes_for(patches);
    if (bytes == 0) return GRD_ERR_ARGUMENT; /* the window of phi_local */
    if (call.params.workspace == nullptr || call.params.workspace_bytes < bytes) return GRD_ERR_BUFFER;
    if (reinterpret_cast<uintptr_t>(call.params.workspace) % 256 != 0) return GRD_ERR_ARGUMENT;

    if (call.outputs.variant) *call.outputs.variant = cuda::kVariantName;
    if (!call.job.want_phi && !call.job.want_local && !call.job.want_residual) return GRD_OK;
    patches.phi = call.outputs.phi, patches.phi_local = call.outputs.phi_local;
    patches.residual_min = call.outputs.residual_min, patches.residual_max = call.outputs.residual_max;
    patches.workspace = call.params.workspace, patches.workspace_bytes = call.params.workspace_bytes;
    return cuda::status_of(cuda::launch_score(patches, views, static_cast<cudaStream_t>(stream)));
}

size_t grd_cuda_score_workspace_bytes(const grd_score_params *params, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_score_params own;
    score::Job job;
    if (n < 1 || n > INT32_MAX) return 0;
    if (score::read_params(params, &own) != GRD_OK || !score::job_from_size(own, c, h, w, &job)) return 0;
    return h * w > INT32_MAX ? 0 : cuda::workspace_bytes_for(cuda::patches_of(own, job, n));
}

grd_status grd_cuda_cut_frame(const grd_cut_params *params, const grd_view *frame, const int32_t *indices,
                              const grd_view *patches, const grd_cut_options *options, void *stream) {
    cuda::message[0] = 0;
    cuda::CutPatches cut = {};
    PatchType type = {};
    int64_t stride[4];
    if (const grd_status status = check_params(params)) return status;
    if (const grd_status status = check_frame(*params, frame, GRD_SPACE_CUDA)) return status;
    if (options != nullptr && options->struct_size < sizeof(grd_cut_options)) return GRD_ERR_STRUCT_SIZE;
    if (const grd_status status = grid_of(*params, frame->extent[2], frame->extent[3], &cut.grid)) return status;
    const int64_t given = patches != nullptr ? patches->extent[0] : 0, all = cut.grid.count;
    if (indices != nullptr && patches != nullptr && (given < 1 || given > INT32_MAX)) return GRD_ERR_SHAPE;
    const int64_t count = indices != nullptr ? given : all;
    if (const grd_status status = read_patches(*params, count, patches, GRD_SPACE_CUDA, &type)) return status;
    type.input_scale = options != nullptr ? options->input_scale : 0;
    if (const grd_status status = check_type(type)) return status;
    strides_of(*frame, false, stride);
    if (const grd_status status = cuda::check_alignment(*frame, stride)) return status;
    if (options != nullptr && !cuda::is_ours(options->variant)) return GRD_ERR_VARIANT;

    cut.frame = frame->data, cut.dtype = frame->dtype;
    cut.c = static_cast<int32_t>(frame->extent[1]);
    cut.h = static_cast<int32_t>(frame->extent[2]), cut.w = static_cast<int32_t>(frame->extent[3]);
    cut.channel_stride_bytes = stride[1], cut.row_stride_bytes = stride[2], cut.pixel_stride_bytes = stride[3];
    cut.cut = *params;
    cut.indices = indices, cut.count = static_cast<int32_t>(count);
    cut.patches = patches->data, cut.patches_dtype = type.dtype;
    cut.interleaved = type.interleaved, cut.input_scale = type.input_scale;
    if (options != nullptr && options->ran != nullptr) *options->ran = cuda::kVariantName;
    return cuda::status_of(cuda::launch_cut(cut, static_cast<cudaStream_t>(stream)));
}

const char *grd_cuda_message(void) { return cuda::message; }

} // extern "C"
