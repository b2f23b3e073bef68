/* score_roi.cpp - how many windows hold a pixel of interest, in integers, so that every variant agrees.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A window holds one if, in one of its columns, the last such pixel down to its lower end is not above it; so one
 * number a column is enough, and one more along the row. */
#include "score/score_internal.h"

namespace grd::score {

int64_t positions_of_interest(const Job &job, const Mask &roi, int64_t *last, bool *whole) {
    constexpr int64_t kNone = INT64_MIN / 2;
    const int64_t lead = job.box ? kReach : 0; /* box windows reach beyond the patch */
    int64_t count = 0, inside = 0, next = 0;   /* next: row that was not looked at yet */
    for (int64_t x = 0; x < job.w; x++) last[x] = kNone;
    for (int64_t y = 0; y < job.map_h; y++) {
        for (; next < job.h && next <= y - lead + kTaps - 1; next++) {
            for (int64_t x = 0; x < job.w; x++) {
                const bool wanted = of_interest(roi, next, x);
                inside += wanted;
                if (wanted) last[x] = next;
            }
        }
        int64_t column = kNone, seen = 0; /* last column with such a pixel in these rows; columns looked at */
        for (int64_t x = 0; x < job.map_w; x++) {
            for (; seen < job.w && seen <= x - lead + kTaps - 1; seen++)
                if (last[seen] >= y - lead) column = seen;
            count += column >= x - lead;
        }
    }
    *whole = inside == job.h * job.w;
    return count;
}

} // namespace grd::score
