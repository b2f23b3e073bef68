/* launch.h - the CUDA kernels as C++ calls: what libgrd_edge_cuda.so and backends on the device share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every pointer is device memory, aligned to its element. Launchers only enqueue work on the stream: they neither
 * allocate nor wait, and can be captured in a CUDA graph. Arguments are taken as they are; the C entry points
 * (grd_cuda_* in grd_edge.h) check them first. What a launcher cannot run is cudaErrorInvalidValue. */
#ifndef GRD_CUDA_LAUNCH_H
#define GRD_CUDA_LAUNCH_H

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "grd_edge.h"

namespace grd::cuda {

/* N dense patches (N,C,H,W) and their reconstructions. Outputs that are NULL are not wanted. */
struct ScorePatches {
    const void *x, *x_hat;
    int x_dtype, x_hat_dtype; /* GRD_UINT8, GRD_FLOAT16, GRD_FLOAT32; x_hat: not GRD_UINT8 */
    int32_t n, c, h, w;
    int32_t window, local_window_px; /* GRD_WINDOW_*; w of phi_local, 0 = 21, at most 256 after the cut to the map */
    float *phi, *phi_local, *residual_min, *residual_max; /* N values each */
    void *heatmap;       /* N,1,H,W */
    int heatmap_dtype;   /* GRD_UINT8, GRD_FLOAT16, GRD_FLOAT32 */
    float heatmap_scale; /* of a GRD_UINT8 heatmap; 0 = 255 */
    const uint8_t *roi;  /* roi_n,1,H,W, nonzero = of interest; NULL = everything */
    int32_t roi_n;       /* 1 or n */
    void *workspace;     /* aligned to 256 bytes */
    size_t workspace_bytes;
};

/* Workspace of launch_score. Its first kScoreCounterBytes must be 0 before its first use (cudaMemset once after
 * allocation); every launch leaves them 0, whatever its size, so that one workspace serves batches of any size, one
 * at a time. The rest needs no initialization. 0 when the arguments are not taken. */
constexpr size_t kScoreCounterBytes = 4096 * 16;
size_t score_workspace_bytes(const ScorePatches &score);

/* One launch up to 4096 patches of at most 256 px a row with the Gaussian window and phi_local windows up to 32 px;
 * else two, and as many times that as 4096 goes into n. */
cudaError_t launch_score(const ScorePatches &score, cudaStream_t stream);

/* A frame (1,C,H,W, any strides that keep pixels aligned) into patches. */
struct CutPatches {
    const void *frame;
    int dtype;       /* GRD_UINT8 or GRD_UINT16 */
    int32_t h, w, c; /* of the frame; c 1 or 3 */
    int64_t row_stride_bytes, pixel_stride_bytes, channel_stride_bytes;
    grd_cut_params cut;
    grd_grid grid;          /* of grd_cut_grid for h and w */
    const int32_t *indices; /* device; the patches of the grid to cut, in order; NULL = all */
    int32_t count;          /* patches to cut */
    void *patches;          /* count,channels,patch_h,patch_w dense */
    int patches_dtype;      /* GRD_FLOAT32, GRD_FLOAT16, GRD_INT8 */
    float input_scale;      /* of GRD_INT8, > 0 */
    void *workspace;        /* not used so far */
    size_t workspace_bytes;
    int32_t interleaved = 0; /* 1: patches are count,patch_h,patch_w,channels */
};

size_t cut_workspace_bytes(const CutPatches &cut); /* 0: none is needed */

/* One launch. The bits are those of every CPU variant. */
cudaError_t launch_cut(const CutPatches &cut, cudaStream_t stream);

} // namespace grd::cuda
#endif
