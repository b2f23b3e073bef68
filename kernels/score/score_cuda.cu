/* score_cuda.cu - scoring on CUDA devices: kernels and their launches.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a block does is in score_block.h and score_local.h; this file runs its threads. */
#include "score/score_cuda.h"

#include "score/score_plan.h"

namespace grd::score {
namespace {

template <class State> struct DeviceThreads {
    State me;
    template <class Phase> __device__ __forceinline__ void each(const Phase &phase) {
        phase(me, static_cast<int>(threadIdx.x));
        __syncthreads();
    }
    __device__ __forceinline__ void fence() { __threadfence(); }
    __device__ __forceinline__ uint32_t set_bits(uint32_t *word, uint32_t bits) { return atomicOr(word, bits); }
    __device__ __forceinline__ uint32_t add_one(uint32_t *word) { return atomicAdd(word, 1u); }
    /* What another block has written: from the cache that all share. */
    __device__ __forceinline__ int32_t load(const int32_t *at) { return __ldcg(at); }
    __device__ __forceinline__ int64_t load(const int64_t *at) {
        return __ldcg(reinterpret_cast<const long long *>(at));
    }
    __device__ __forceinline__ Part load(const Part *at) {
        const int4 *from = reinterpret_cast<const int4 *>(at);
        const int4 halves[2] = {__ldcg(from), __ldcg(from + 1)};
        Part part;
        memcpy(&part, halves, sizeof part);
        return part;
    }
};

extern __shared__ __align__(16) char shared_memory[];

template <int kX, int kHat, bool kBox, bool kMap>
__global__ void __launch_bounds__(kThreads, 2) score_kernel(const __grid_constant__ Launch job) {
    Shared &sh = *reinterpret_cast<Shared *>(shared_memory);
    int32_t *ring = reinterpret_cast<int32_t *>(shared_memory + sizeof(Shared));
    DeviceThreads<Thread> exec;
    ScoreBlock<DeviceThreads<Thread>, kX, kHat, kBox, kMap>(job, sh, ring, exec, static_cast<int>(blockIdx.x),
                                                            static_cast<int>(blockIdx.y))
        .run();
}

__global__ void __launch_bounds__(kThreads) score_local_kernel(const __grid_constant__ Launch job) {
    __shared__ LocalShared sh;
    DeviceThreads<LocalThread> exec;
    score_local_block(job, sh, exec, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
}

using Kernel = void (*)(Launch);

Kernel kernel_for(const Launch &job, bool box) {
    if (box) return score_kernel<0, 0, true, true>;
    if (maps(job, box)) return score_kernel<0, 0, false, true>;
    const int x = job.x.dtype, x_hat = job.x_hat.dtype;
    if (x == GRD_FLOAT16 && x_hat == GRD_FLOAT16) return score_kernel<GRD_FLOAT16, GRD_FLOAT16, false, false>;
    if (x == GRD_FLOAT32 && x_hat == GRD_FLOAT32) return score_kernel<GRD_FLOAT32, GRD_FLOAT32, false, false>;
    if (x == GRD_UINT8 && x_hat == GRD_FLOAT16) return score_kernel<GRD_UINT8, GRD_FLOAT16, false, false>;
    return score_kernel<0, 0, false, false>;
}

/* Blocks that the device holds at a time. */
cudaError_t slots_of(Kernel kernel, size_t shared_bytes, int64_t *slots) {
    int device = 0, processors = 0, blocks = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared_bytes);
    *slots = static_cast<int64_t>(processors) * blocks;
    return error == cudaSuccess && *slots < 1 ? cudaErrorLaunchOutOfResources : error;
}

} // namespace
} // namespace grd::score

namespace grd::cuda {
namespace {

using score::Launch;

bool is_box(const ScorePatches &p) { return p.window == GRD_WINDOW_BOX; }

bool shaped(const ScorePatches &p, Launch *job) {
    *job = {};
    job->phi_local = p.phi_local;
    const int64_t local = p.local_window_px ? p.local_window_px : score::kDefaultLocal;
    return p.n >= 1 && score::shape_launch(job, p.c, p.h, p.w, is_box(p), local);
}

score::Source dense(const void *data, int dtype, int64_t c, int64_t h, int64_t w) {
    const int64_t item = dtype == GRD_FLOAT32 ? 4 : dtype == GRD_FLOAT16 ? 2 : 1;
    return {static_cast<const char *>(data), c * h * w * item, h * w * item, w * item, item, dtype};
}

void move(score::Source *source, int64_t patches) {
    if (source->data) source->data += patches * source->stride_n;
}

} // namespace

size_t score_workspace_bytes(const ScorePatches &p) {
    Launch job;
    return shaped(p, &job) ? score::launch_bytes(job, is_box(p), p.n) : 0;
}

cudaError_t launch_score(const ScorePatches &p, cudaStream_t stream) {
    ScoreViews views;
    views.x = dense(p.x, p.x_dtype, p.c, p.h, p.w);
    views.x_hat = dense(p.x_hat, p.x_hat_dtype, p.c, p.h, p.w);
    views.heatmap = dense(p.heatmap, p.heatmap_dtype, 1, p.h, p.w);
    views.roi = dense(p.roi, GRD_UINT8, 1, p.h, p.w);
    if (p.roi_n == 1) views.roi.stride_n = 0;
    return launch_score(p, views, stream);
}

cudaError_t launch_score(const ScorePatches &p, const ScoreViews &views, cudaStream_t stream) {
    Launch job;
    if (!shaped(p, &job) || p.workspace == nullptr || p.workspace_bytes < score_workspace_bytes(p))
        return cudaErrorInvalidValue;
    job.x = views.x, job.x_hat = views.x_hat, job.heatmap = views.heatmap, job.roi = views.roi;
    job.phi = p.phi, job.residual_min = p.residual_min, job.residual_max = p.residual_max;
    job.scores = p.phi != nullptr || p.phi_local != nullptr;
    job.heatmap_scale = p.heatmap_scale != 0 ? p.heatmap_scale : 255.0f;

    const bool box = is_box(p), map = score::maps(job, box);
    const score::Kernel kernel = score::kernel_for(job, box);
    const size_t shared_bytes = sizeof(score::Shared) + (map || !job.phi_local ? 0 : score::ring_bytes(job));
    int64_t slots = 0;
    if (const cudaError_t error = score::slots_of(kernel, shared_bytes, &slots)) return error;
    for (int32_t done = 0; done < p.n; done += score::kLaunchPatches) {
        const int32_t n = p.n - done < score::kLaunchPatches ? p.n - done : score::kLaunchPatches;
        score::split_launch(&job, box, score::strips_for(job, box, n, slots));
        score::lay_out_launch(&job, box, n, p.workspace);
        const dim3 grid(static_cast<unsigned>(job.strips * job.tiles), static_cast<unsigned>(n));
        kernel<<<grid, score::kThreads, shared_bytes, stream>>>(job);
        if (map && job.phi_local) {
            const dim3 windows(static_cast<unsigned>(score::local_blocks(job)), static_cast<unsigned>(n));
            score::score_local_kernel<<<windows, score::kThreads, 0, stream>>>(job);
        }
        if (const cudaError_t error = cudaGetLastError()) return error;
        for (score::Source *source : {&job.x, &job.x_hat, &job.heatmap, &job.roi}) move(source, n);
        for (float **figure : {&job.phi, &job.phi_local, &job.residual_min, &job.residual_max})
            if (*figure) *figure += n;
    }
    return cudaSuccess;
}

} // namespace grd::cuda
