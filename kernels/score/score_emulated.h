/* score_emulated.h - launches of the CUDA variant of scoring run by the host, one thread of a block after the other. For
 * tests only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_EMULATED_H
#define GRD_SCORE_EMULATED_H

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

template <bool kBox, bool kMap> void run_blocks(const Launch &job, int n) {
    std::vector<int32_t> ring(kMap ? 1 : ring_bytes(job) / sizeof(int32_t), -1);
    std::vector<Shared> shared(1);
    const int blocks = job.strips * job.tiles;
    in_some_order(n * blocks, [&](int block) {
        memset(static_cast<void *>(shared.data()), 0xff, sizeof(Shared)); /* NaN, as shared memory may hold */
        HostThreads<Thread> exec;
        ScoreBlock<HostThreads<Thread>, 0, 0, kBox, kMap>(job, shared[0], ring.data(), exec, block % blocks, block / blocks)
            .run();
    });
}

/* Both kernels, as launch_score enqueues them. */
void run_launch(const Launch &job, bool box, int n) {
    if (!maps(job, box)) return run_blocks<false, false>(job, n);
    if (box) run_blocks<true, true>(job, n);
    else run_blocks<false, true>(job, n);
    if (job.phi_local == nullptr) return;
    std::vector<LocalShared> shared(1);
    const int blocks = local_blocks(job);
    in_some_order(n * blocks, [&](int block) {
        HostThreads<LocalThread> exec;
        score_local_block(job, shared[0], exec, block % blocks, block / blocks);
    });
}

} // namespace
} // namespace grd::score
#endif
