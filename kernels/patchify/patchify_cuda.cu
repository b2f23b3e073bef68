/* patchify_cuda.cu - cutting on CUDA devices.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * What a thread does is in patchify_pixel.h. */
#include "cuda/launch.h"
#include "patchify/patchify_plan.h"

namespace grd::patchify {
namespace {

template <class T, class E, bool kScaled>
__global__ void __launch_bounds__(kCutThreads) cut_kernel(const __grid_constant__ CutLaunch job) {
    const uint32_t index = blockIdx.x * kCutThreads + threadIdx.x;
    if (index >= static_cast<uint32_t>(job.runs) * static_cast<uint32_t>(job.patch_h)) return;
    for (int64_t plane = blockIdx.y; plane < job.planes; plane += gridDim.y) cut_run<T, E, kScaled>(job, plane, index);
}

using Kernel = void (*)(CutLaunch);

template <class T, class E> Kernel kernel_of(bool scaled) {
    return scaled ? cut_kernel<T, E, true> : cut_kernel<T, E, false>;
}
template <class T> Kernel kernel_of(int dtype, bool scaled) {
    return dtype == GRD_FLOAT32   ? kernel_of<T, float>(scaled)
           : dtype == GRD_FLOAT16 ? kernel_of<T, uint16_t>(scaled)
                                  : kernel_of<T, int8_t>(scaled);
}

} // namespace
} // namespace grd::patchify

namespace grd::cuda {

size_t cut_workspace_bytes(const CutPatches &) { return 0; }

cudaError_t launch_cut(const CutPatches &p, cudaStream_t stream) {
    if (p.count < 1) return p.count == 0 ? cudaSuccess : cudaErrorInvalidValue;
    patchify::CutLaunch job = {};
    job.frame = {static_cast<const char *>(p.frame), 0, p.channel_stride_bytes, p.row_stride_bytes,
                 p.pixel_stride_bytes, p.dtype};
    job.h = p.h, job.w = p.w;
    job.indices = p.indices;
    const patchify::Format format = {p.c, p.cut.channels, p.interleaved != 0, p.patches_dtype, p.input_scale};
    patchify::plan_cut(&job, p.cut, p.grid, format, p.count, p.patches);
    const int64_t runs = static_cast<int64_t>(job.runs) * job.patch_h; /* at most 2^16 times 3 * 2^14 */
    const dim3 blocks(static_cast<unsigned>((runs + patchify::kCutThreads - 1) / patchify::kCutThreads),
                      static_cast<unsigned>(job.planes < 65535 ? job.planes : 65535));
    const bool scaled = patchify::scales(job);
    const patchify::Kernel kernel = p.dtype == GRD_UINT8 ? patchify::kernel_of<uint8_t>(p.patches_dtype, scaled)
                                                         : patchify::kernel_of<uint16_t>(p.patches_dtype, scaled);
    kernel<<<blocks, patchify::kCutThreads, 0, stream>>>(job);
    return cudaGetLastError();
}

} // namespace grd::cuda
