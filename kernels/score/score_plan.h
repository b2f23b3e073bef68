/* score_plan.h - how a call of the CUDA variant of scoring becomes launches, and what they need of the workspace. Host
 * code; not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_PLAN_H
#define GRD_SCORE_PLAN_H

#include "score/score_local.h"

namespace grd::score {
namespace {

constexpr size_t kPlanAlign = 256;
constexpr int32_t kLaunchPatches = 4096;                            /* at most in one launch */
constexpr size_t kCounterBytes = kLaunchPatches * sizeof(Counter);
constexpr int kLeastStripRows = 24;                                 /* below, the ten rows read twice cost too much */

/* Whether these patches go down the road of score_map. */
inline bool maps(const Launch &job, bool box) {
    return box || job.w > kThreads || (job.phi_local && job.local > kLargestRing);
}

/* Sizes of a launch; its pointers remain. False when the patches are not taken. */
inline bool shape_launch(Launch *job, int64_t c, int64_t h, int64_t w, bool box, int64_t local) {
    const int64_t lost = box ? 0 : kTaps - 1;
    if (h > (1 << 24) || w > (1 << 24) || (h - lost) < 1 || (w - lost) < 1 || c < 1 || c > 4096) return false;
    job->c = static_cast<int32_t>(c), job->h = static_cast<int32_t>(h), job->w = static_cast<int32_t>(w);
    job->map_h = static_cast<int32_t>(h - lost), job->map_w = static_cast<int32_t>(w - lost);
    job->lead = box ? kReach : 0;
    if (local > job->map_h) local = job->map_h;
    if (local > job->map_w) local = job->map_w;
    job->local = static_cast<int32_t>(local);
    job->sum_shift = 0;
    job->unit = static_cast<float>(ldexp(2.0, kUnitBits) / static_cast<double>(c));
    job->share = 1.0f / static_cast<float>(c);
    return local <= kLargestWindow;
}

/* The road and its split of a patch into `strips` at most. */
inline void split_launch(Launch *job, bool box, int strips) {
    const bool map = maps(*job, box);
    const int used = job->w + 2 * job->lead;
    job->tiles = used <= kThreads ? 1 : (job->map_w - 1) / kTileColumns + 1;
    job->sum_shift = 0;
    if (!map)
        while ((1 << job->sum_shift) < job->local) job->sum_shift++;
    /* Windows that cross the border of two strips must not reach a third. */
    const int least = !map && job->phi_local && job->local > kLeastStripRows ? job->local : kLeastStripRows;
    const int most = job->map_h / least < kLargestStrips ? job->map_h / least : kLargestStrips;
    if (strips > most) strips = most;
    if (strips < 1) strips = 1;
    job->strip_rows = ((job->map_h + strips - 1) / strips + kGroup - 1) / kGroup * kGroup;
    job->strips = (job->map_h + job->strip_rows - 1) / job->strip_rows;
    /* Rounding up may have left the lowest strip too low for that. */
    if (job->strips > 1 && job->map_h - (job->strips - 1) * job->strip_rows < job->local - 1) job->strips--;
}

/* Carves the workspace of a launch of n patches; over NULL it only adds up. Counters come first. */
inline size_t lay_out_launch(Launch *job, bool box, int64_t n, void *workspace) {
    char *base = static_cast<char *>(workspace);
    size_t used = kCounterBytes;
    const auto take = [&](int64_t count, size_t size) {
        char *at = base && count ? base + used : nullptr;
        used += (static_cast<size_t>(count) * size + kPlanAlign - 1) / kPlanAlign * kPlanAlign;
        return at;
    };
    const bool map = maps(*job, box), local = job->phi_local != nullptr;
    const int64_t blocks = static_cast<int64_t>(job->strips) * job->tiles;
    const int64_t edge = !map && local && job->strips > 1 ? 2 * (job->local - 1) * static_cast<int64_t>(job->strips) : 0;
    job->counters = reinterpret_cast<Counter *>(base);
    job->parts = reinterpret_cast<Part *>(take(n * blocks, sizeof(Part)));
    job->border = reinterpret_cast<int32_t *>(take(n * edge * kRingColumns, sizeof(int32_t)));
    job->map = reinterpret_cast<int32_t *>(take(map ? n * job->map_h * job->map_w : 0, sizeof(int32_t)));
    job->windows = reinterpret_cast<int64_t *>(take(map && local ? n * local_blocks(*job) : 0, sizeof(int64_t)));
    return used;
}

/* Workspace for n patches, however they are split. */
inline size_t launch_bytes(Launch job, bool box, int64_t n) {
    if (n > kLaunchPatches) n = kLaunchPatches;
    size_t most = 0;
    for (int strips = 1; strips <= kLargestStrips; strips++) {
        split_launch(&job, box, strips);
        const size_t bytes = lay_out_launch(&job, box, n, nullptr);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* The number of strips that keeps `slots` blocks at a time busy with the least work in a row: rows of the map, and the
 * ten rows more that each strip reads, at a quarter of the price. */
inline int strips_for(Launch job, bool box, int64_t n, int64_t slots) {
    int best = 1;
    int64_t least = INT64_MAX;
    for (int strips = 1; strips <= kLargestStrips; strips++) {
        split_launch(&job, box, strips);
        const int64_t blocks = n * job.strips * job.tiles, turns = (blocks + slots - 1) / slots;
        const int64_t cost = turns * (job.strip_rows + 5);
        if (cost < least) least = cost, best = strips;
    }
    return best;
}

inline size_t ring_bytes(const Launch &job) {
    return static_cast<size_t>(job.local + kGroup) * kRingColumns * sizeof(int32_t);
}

} // namespace
} // namespace grd::score
#endif
