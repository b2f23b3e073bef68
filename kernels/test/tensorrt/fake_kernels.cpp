/* fake_kernels.cpp - the launchers of kernels/cuda/launch.h on the fake CUDA runtime, by the kernels of the host.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/launch.h"
#include "fake_cuda.h"

namespace grd::cuda {
namespace {

grd_view patches_view(const void *data, int32_t dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view = {};
    view.data = const_cast<void *>(data);
    view.dtype = dtype;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

void require(bool holds) {
    if (!holds) std::abort();
}

void cut_now(const CutPatches &cut) {
    const int64_t c = cut.cut.channels, h = cut.cut.patch_h, w = cut.cut.patch_w;
    const size_t bytes = static_cast<size_t>(c * h * w) * (cut.patches_dtype == GRD_FLOAT32 ? 4 : 2);
    std::vector<uint8_t> all(static_cast<size_t>(cut.grid.count) * bytes);
    grd_view frame = patches_view(cut.frame, cut.dtype, 1, cut.c, cut.h, cut.w);
    const int64_t strides[4] = {cut.row_stride_bytes * cut.h, cut.channel_stride_bytes, cut.row_stride_bytes,
                                cut.pixel_stride_bytes};
    std::memcpy(frame.stride_bytes, strides, sizeof strides);
    const grd_view patches = patches_view(all.data(), cut.patches_dtype, cut.grid.count, c, h, w);
    require(grd_cut_frame(&cut.cut, &frame, &patches, nullptr) == GRD_OK);
    for (int32_t i = 0; i < cut.count; ++i) {
        require(cut.indices[i] >= 0 && cut.indices[i] < cut.grid.count);
        std::memcpy(static_cast<uint8_t *>(cut.patches) + static_cast<size_t>(i) * bytes,
                    &all[static_cast<size_t>(cut.indices[i]) * bytes], bytes);
    }
}

void score_now(const ScorePatches &score) {
    const auto *counters = static_cast<const uint8_t *>(score.workspace);
    for (size_t i = 0; i < kScoreCounterBytes; ++i) require(counters[i] == 0);
    std::memset(static_cast<uint8_t *>(score.workspace) + kScoreCounterBytes, 0x5c, score.workspace_bytes - kScoreCounterBytes);
    grd_score_params params = {};
    params.struct_size = sizeof params;
    params.window = score.window, params.local_window_px = score.local_window_px;
    const grd_view roi = patches_view(score.roi, GRD_UINT8, score.roi_n, 1, score.h, score.w);
    const grd_view heatmap = patches_view(score.heatmap, score.heatmap_dtype, score.n, 1, score.h, score.w);
    const grd_view x = patches_view(score.x, score.x_dtype, score.n, score.c, score.h, score.w);
    const grd_view x_hat = patches_view(score.x_hat, score.x_hat_dtype, score.n, score.c, score.h, score.w);
    if (score.roi != nullptr) params.roi = &roi;
    grd_score_outputs outputs = {};
    outputs.struct_size = sizeof outputs;
    outputs.phi = score.phi, outputs.phi_local = score.phi_local;
    if (score.heatmap != nullptr) outputs.heatmap = &heatmap;
    require(grd_score_patches(&params, &x, &x_hat, &outputs) == GRD_OK);
}

} // namespace

size_t score_workspace_bytes(const ScorePatches &score) {
    return score.local_window_px > 256 ? 0 : kScoreCounterBytes + static_cast<size_t>(score.n) * 16;
}

cudaError_t launch_cut(const CutPatches &cut, cudaStream_t stream) {
    if (const int error = fake_cuda_called("launch_cut")) return static_cast<cudaError_t>(error);
    fake_cuda_submit(stream, [cut] { cut_now(cut); });
    return cudaSuccess;
}

cudaError_t launch_score(const ScorePatches &score, cudaStream_t stream) {
    if (const int error = fake_cuda_called("launch_score")) return static_cast<cudaError_t>(error);
    if (score.workspace_bytes < score_workspace_bytes(score)) return cudaErrorInvalidValue;
    fake_cuda_submit(stream, [score] { score_now(score); });
    return cudaSuccess;
}

} // namespace grd::cuda
