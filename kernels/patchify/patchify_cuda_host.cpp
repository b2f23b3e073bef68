/* patchify_cuda_host.cpp - the CUDA variant of cutting run by the host, for the tests of the CPU variants. For tests only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "patchify/patchify_kernels.h"
#include "patchify/patchify_plan.h"
#include "views.h"

namespace grd::patchify {
namespace {

template <class T, class E> void run_all(const CutLaunch &job) {
    const uint32_t runs = static_cast<uint32_t>(job.runs) * static_cast<uint32_t>(job.patch_h);
    for (int64_t plane = job.planes - 1; plane >= 0; plane--)
        for (uint32_t i = 0; i < runs; i++)
            scales(job) ? cut_run<T, E, true>(job, plane, i) : cut_run<T, E, false>(job, plane, i);
}
template <class T> void run_all(const CutLaunch &job, int32_t dtype) {
    if (dtype == GRD_FLOAT32) run_all<T, float>(job);
    else if (dtype == GRD_FLOAT16) run_all<T, uint16_t>(job);
    else run_all<T, int8_t>(job);
}

void cut(const WholeCut &call) {
    CutLaunch job = {};
    int64_t stride[4];
    strides_of(call.frame, false, stride);
    job.frame = {static_cast<const char *>(call.frame.data), 0, stride[1], stride[2], stride[3], call.frame.dtype};
    job.h = static_cast<int32_t>(call.frame.extent[2]), job.w = static_cast<int32_t>(call.frame.extent[3]);
    plan_cut(&job, call.cut, call.grid, call.format, call.grid.count, call.patches);
    if (call.frame.dtype == GRD_UINT8) run_all<uint8_t>(job, call.format.dtype);
    else run_all<uint16_t>(job, call.format.dtype);
}

} // namespace

const Kernels kernels_cuda_host = with_cut(kernels_scalar, cut); /* stitching is not done on devices */

} // namespace grd::patchify
