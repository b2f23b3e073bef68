/* stream_batch.cpp - how many frames of a stream go to the engine together.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <algorithm>

#include "stream.h"

namespace grd {
namespace {

/* What a frame that waits for others keeps of its deadline: so many engine calls, for the other stages and for slow ones,
 * too, and one part in so many of it, since a thread of a busy machine wakes late. */
constexpr int64_t kCalls = 2, kPart = 5;
/* Times a frame takes that count as different: less is what they vary by anyhow. A larger batch is taken unless it is
 * that much slower, and waited for if it is that much quicker. */
constexpr double kSlower = 1.1, kQuicker = 0.95;

} // namespace

/* How many of the frames that wait share the next engine calls: of the sizes that keep their deadlines the one that takes
 * least time a frame. 0: not yet, more may come; until an engine is free, which wakes a worker, or until *until_ns. */
int32_t Stream::frames_to_cut(int64_t now_ns, int64_t *until_ns) {
    const int32_t first = ledger_.first_waiting(), number = ledger_.charge_of_entry(first);
    const Charge &charge = *charges_[number];
    const int64_t h = frame(first).given.view.extent[2], w = frame(first).given.view.extent[3];
    const int32_t patches = charge.patches_of(h, w);
    int32_t sizes[Sharing::kSizes];
    const int32_t kinds = patches > 0 ? charge.sharing.sizes(patches, sizes) : 1;
    if (kinds == 1) return 1;
    const auto usual_ns = [&](int32_t frames) {
        return static_cast<int64_t>(charge.sharing.usual_ms(int64_t{frames} * patches) * kNsPerMs);
    };
    const auto fits = [&](int32_t entry) {
        const grd_view &view = frame(entry).given.view;
        return ledger_.charge_of_entry(entry) == number && view.extent[2] == h && view.extent[3] == w;
    };
    int32_t best = 1, seen = 0, entry = first;
    double best_ms = charge.sharing.hoped_ms(patches), larger_ms = best_ms; /* a frame; of all sizes */
    int64_t deadline = kForever, latest = kForever; /* the first that can be kept; when all must have begun */
    for (int32_t kind = 0; kind < kinds; ++kind) {
        for (; seen < sizes[kind] && entry != kNone && fits(entry); ++seen, entry = ledger_.after(entry)) {
            const int64_t due = frame(entry).deadline_ns;
            if (due == kForever) continue;
            latest = std::min(latest, due - (due - frame(entry).submitted_ns) / kPart - kCalls * usual_ns(sizes[kinds - 1]));
            if (due >= now_ns + usual_ns(1)) deadline = std::min(deadline, due);
        }
        const double ms = charge.sharing.hoped_ms(int64_t{sizes[kind]} * patches) / sizes[kind];
        larger_ms = std::min(larger_ms, ms);
        if (seen < sizes[kind] || ms > kSlower * best_ms || now_ns > deadline - usual_ns(sizes[kind])) continue;
        best = sizes[kind];
        best_ms = std::min(best_ms, ms);
    }
    const bool may_grow = entry == kNone && seen < sizes[kinds - 1] && !ledger_.stopped();
    /* Cut while the engine is busy, a frame would gain little, and share with none of those that come meanwhile. */
    if (may_grow && !ledger_.engine_free(number) && larger_ms < kQuicker * best_ms) return 0;
    if (may_grow && params_.batch_wait_ms > 0 && flushing_ == 0) {
        const int64_t until = std::min(later(frame(first).submitted_ns, params_.batch_wait_ms), latest);
        if (now_ns < until) {
            *until_ns = until;
            return 0;
        }
    }
    return best;
}

} // namespace grd
