/* score_local.h - phi_local from a stored map of distances, for what score_block.h does not sum itself.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A block has kThreads columns of windows and kLocalRows rows of them. Sums of `local` rows slide down 2 kThreads columns,
 * two to a thread; on each row the sum along x takes whole sixteens where it can. 64-bit integers: exact for any window. */
#ifndef GRD_SCORE_LOCAL_H
#define GRD_SCORE_LOCAL_H

#include "score/score_block.h"

namespace grd::score {
namespace {

constexpr int kLocalRows = 64;
constexpr int kStretch16 = 16;

struct LocalShared {
    int64_t column[2 * kThreads], stretch[2 * kThreads / kStretch16];
    int64_t largest[kThreads];
};
struct LocalThread {
    int64_t column[2], largest;
};

GRD_BOTH int local_tiles(const Launch &job) { return (job.map_w - job.local) / kThreads + 1; }
GRD_BOTH int local_blocks(const Launch &job) {
    return local_tiles(job) * ((job.map_h - job.local) / kLocalRows + 1);
}

template <class E> GRD_DEVICE void score_local_block(const Launch &job, LocalShared &sh, E &exec, int block, int n) {
    const int x0 = block % local_tiles(job) * kThreads, top = block / local_tiles(job) * kLocalRows;
    const int bottom = top + kLocalRows + job.local - 1 < job.map_h ? top + kLocalRows + job.local - 1 : job.map_h;
    const int32_t *map = job.map + static_cast<int64_t>(n) * job.map_h * job.map_w + x0;
    const auto value = [&](int y, int x) -> int64_t {
        return x0 + x < job.map_w ? map[static_cast<int64_t>(y) * job.map_w + x] : 0;
    };
    exec.each([&](LocalThread &me, int t) {
        me.column[0] = me.column[1] = me.largest = 0;
        for (int y = top; y < top + job.local - 1; y++)
            for (int i = 0; i < 2; i++) me.column[i] += value(y, t + i * kThreads);
    });
    for (int y = top + job.local - 1; y < bottom; y++) {
        exec.each([&](LocalThread &me, int t) {
            for (int i = 0; i < 2; i++) {
                const int x = t + i * kThreads;
                me.column[i] += value(y, x);
                sh.column[x] = me.column[i];
                me.column[i] -= value(y - job.local + 1, x);
            }
        });
        exec.each([&](LocalThread &, int t) {
            if (t >= 2 * kThreads / kStretch16) return;
            int64_t sum = 0;
            for (int i = 0; i < kStretch16; i++) sum += sh.column[t * kStretch16 + i];
            sh.stretch[t] = sum;
        });
        exec.each([&](LocalThread &me, int t) {
            if (x0 + t + job.local > job.map_w) return;
            int64_t sum = 0;
            for (int x = t; x < t + job.local;) {
                const bool whole = x % kStretch16 == 0 && x + kStretch16 <= t + job.local;
                sum += whole ? sh.stretch[x / kStretch16] : sh.column[x];
                x += whole ? kStretch16 : 1;
            }
            if (sum > me.largest) me.largest = sum;
        });
    }
    exec.each([&](LocalThread &me, int t) { sh.largest[t] = me.largest; });
    exec.each([&](LocalThread &, int t) {
        if (t != 0) return;
        int64_t largest = 0;
        for (int i = 0; i < kThreads; i++) largest = sh.largest[i] > largest ? sh.largest[i] : largest;
        int64_t *windows = job.windows + static_cast<int64_t>(n) * local_blocks(job);
        windows[block] = largest;
        exec.fence();
        Counter &counter = job.counters[n];
        if (exec.add_one(&counter.finished) + 1 != static_cast<uint32_t>(local_blocks(job))) return;
        exec.fence();
        for (int i = 0; i < local_blocks(job); i++) {
            const int64_t other = exec.load(windows + i);
            largest = other > largest ? other : largest;
        }
        const double area = static_cast<double>(job.local) * job.local;
        if (!isnan(job.phi_local[n])) /* of score_block.h */
            job.phi_local[n] = static_cast<float>(static_cast<double>(largest) / (1 << kUnitBits) / area);
        counter.finished = 0;
    });
}

} // namespace
} // namespace grd::score
#endif
