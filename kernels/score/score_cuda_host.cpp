/* score_cuda_host.cpp - the CUDA variant of scoring run by the host, one thread of a block after the other, so that the
 * tests of the CPU variants hold for its arithmetic, tiles, strips and reductions. For tests only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include <vector>

#include "score/score_plan.h"

namespace grd::score {
namespace {

template <class State> struct HostThreads {
    std::vector<State> threads{kThreads};
    template <class Phase> void each(const Phase &phase) {
        for (int t = 0; t < kThreads; t++) phase(threads[static_cast<size_t>(t)], t);
    }
    void fence() {}
    uint32_t set_bits(uint32_t *word, uint32_t bits) {
        const uint32_t old = *word;
        *word |= bits;
        return old;
    }
    uint32_t add_one(uint32_t *word) { return (*word)++; }
    template <class T> T load(const T *at) { return *at; }
};

/* Blocks of a launch in an order that no device promises, either: every second one, then the others from the end. */
template <class Run> void in_some_order(int blocks, const Run &run) {
    for (int i = 0; i < blocks; i += 2) run(i);
    for (int i = blocks - 1; i >= 0; i--)
        if (i % 2) run(i);
}

template <bool kBox, bool kMap> void run_blocks(const Launch &job) {
    std::vector<int32_t> ring(kMap ? 1 : ring_bytes(job) / sizeof(int32_t), -1);
    std::vector<Shared> shared(1);
    in_some_order(job.strips * job.tiles, [&](int block) {
        memset(static_cast<void *>(shared.data()), 0xff, sizeof(Shared)); /* NaN, as shared memory may hold */
        HostThreads<Thread> exec;
        ScoreBlock<HostThreads<Thread>, 0, 0, kBox, kMap>(job, shared[0], ring.data(), exec, block, 0).run();
    });
}

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
    if (!maps(launch, job.box)) run_blocks<false, false>(launch);
    else if (job.box) run_blocks<true, true>(launch);
    else run_blocks<false, true>(launch);
    if (maps(launch, job.box) && launch.phi_local) {
        std::vector<LocalShared> shared(1);
        in_some_order(local_blocks(launch), [&](int block) {
            HostThreads<LocalThread> exec;
            score_local_block(launch, shared[0], exec, block, 0);
        });
    }
    const Counter &counter = launch.counters[0];
    if (counter.done || counter.finished) abort(); /* the next launch would wait for ever */
    return out;
}

} // namespace

const Variant variant_cuda_host = {takes, scratch_bytes, run};

} // namespace grd::score
