/* patchify_plan.h - a call of the CUDA variant of cutting as a launch. Host code; not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_PATCHIFY_PLAN_H
#define GRD_PATCHIFY_PLAN_H

#include "patchify/patchify_pixel.h"

namespace grd::patchify {
namespace {

inline bool scales(const CutLaunch &job) { return job.scaled_h != job.h || job.scaled_w != job.w; }

/* Everything but the frame and its size. count: patches. */
inline void plan_cut(CutLaunch *job, const grd_cut_params &cut, const grd_grid &grid, const Format &format, int64_t count,
                     void *patches) {
    const int item = format.dtype == GRD_FLOAT32 ? 4 : format.dtype == GRD_FLOAT16 ? 2 : 1;
    const int64_t row = static_cast<int64_t>(cut.patch_w) * (format.interleaved ? cut.channels : 1);
    const double full = job->frame.dtype == GRD_UINT8 ? 255.0 : 65535.0;
    job->c_in = format.c_in, job->c_out = format.c_out;
    job->scaled_h = grid.scaled_h, job->scaled_w = grid.scaled_w, job->cols = grid.cols;
    job->patch_h = cut.patch_h, job->patch_w = cut.patch_w, job->stride_y = cut.stride_y, job->stride_x = cut.stride_x;
    job->interleaved = format.interleaved;
    job->aligned = row * item % kStoreBytes == 0 && reinterpret_cast<uintptr_t>(patches) % kStoreBytes == 0;
    const int64_t run = run_of(scales(*job), item);
    job->runs = static_cast<int32_t>((row + run - 1) / run);
    job->planes = count * (format.interleaved ? 1 : cut.channels);
    job->patches = static_cast<char *>(patches);
    job->input_scale = format.input_scale;
    job->scale = static_cast<double>(grid.scaled_h) * grid.scaled_w / (static_cast<double>(job->h) * job->w * full);
}

} // namespace
} // namespace grd::patchify
#endif
