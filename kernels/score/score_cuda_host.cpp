/* score_cuda_host.cpp - the CUDA variant of scoring run by the host, so that the tests of the CPU variants hold for its
 * arithmetic, tiles, strips and reductions. For tests only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "score/score_emulated.h"

namespace grd::score {
namespace {

Source source_of(const Image &image, int32_t dtype) {
    return {image.data, 0, image.stride_c, image.stride_y, image.stride_x, dtype};
}

bool launch_of(const Job &job, Launch *out) {
    memset(out, 0, sizeof *out);
    static float wanted;
    if (job.want_local) out->phi_local = &wanted;
    return shape_launch(out, job.c, job.h, job.w, job.box, job.local);
}

bool takes(const Job &job) {
    Launch launch;
    return launch_of(job, &launch);
}

size_t scratch_bytes(const Job &job) {
    Launch launch;
    launch_of(job, &launch);
    return launch_bytes(launch, job.box, 1);
}

Result run(const Job &job, const Patch &patch, void *scratch) {
    Launch launch;
    Result out = {0, 0, 0, 0};
    launch_of(job, &launch);
    launch.x = source_of(patch.x, job.x_dtype), launch.x_hat = source_of(patch.x_hat, job.x_hat_dtype);
    launch.roi = {reinterpret_cast<const char *>(patch.roi.data), 0, 0, patch.roi.stride_y, patch.roi.stride_x, GRD_UINT8};
    launch.heatmap = {patch.heatmap, 0, 0, patch.heatmap_stride_y, patch.heatmap_stride_x, job.heatmap_dtype};
    launch.heatmap_scale = job.heatmap_scale;
    launch.scores = job.want_phi || job.want_local;
    if (job.want_phi) launch.phi = &out.phi;
    if (job.want_local) launch.phi_local = &out.phi_local;
    launch.residual_min = &out.residual_min, launch.residual_max = &out.residual_max;
    static unsigned calls = 0; /* strips must not matter: another number each time */
    split_launch(&launch, job.box, static_cast<int>(1 + calls++ % 7));
    lay_out_launch(&launch, job.box, 1, scratch);
    memset(scratch, 0, kCounterBytes);
    run_launch(launch, job.box, 1);
    const Counter &counter = launch.counters[0];
    if (counter.done || counter.finished) abort(); /* the next launch would wait for ever */
    return out;
}

} // namespace

const Variant variant_cuda_host = {takes, scratch_bytes, run};

} // namespace grd::score
