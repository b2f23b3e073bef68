/* patchify.h - what the parts of the cutter share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_PATCHIFY_H
#define GRD_PATCHIFY_H

#include <cstddef>
#include <cstdint>

#include "grd_edge.h"

namespace grd {

/* Longest side of a frame, before and after the working scale. It keeps the column sums of UINT16 rows inside
 * 32 bits: 65536 * 65535 < 2^32. */
constexpr int64_t kMaxSidePx = 65536;

/* One output pixel of area resampling: first * f0 + sum of `whole` pixels that follow + next one * f1, all
 * divided by the length of the interval. When the interval lies inside one pixel, whole is -1: that pixel. */
struct Tap {
    int32_t first;
    int32_t whole;
    float f0;
    float f1;
};

/* Interval [i * n_in / n_out, (i + 1) * n_in / n_out), in integer arithmetic. */
inline Tap tap_of(int64_t i, int64_t n_in, int64_t n_out) {
    const int64_t begin = i * n_in, end = begin + n_in; /* in units of 1 / n_out pixel */
    const int64_t first = begin / n_out, last = (end - 1) / n_out;
    Tap tap;
    tap.first = static_cast<int32_t>(first);
    tap.whole = static_cast<int32_t>(last - first - 1);
    const int64_t covered = last > first ? (first + 1) * n_out - begin : n_in;
    tap.f0 = static_cast<float>(static_cast<double>(covered) / static_cast<double>(n_out));
    tap.f1 = static_cast<float>(static_cast<double>(end - last * n_out) / static_cast<double>(n_out));
    return tap;
}

/* Where patch `index` of an axis begins; the last one shifts inward. */
inline int32_t position_px(int32_t index, int32_t stride, int32_t patch, int32_t extent) {
    const int64_t begin = static_cast<int64_t>(index) * stride;
    const int64_t limit = extent > patch ? extent - patch : 0;
    return static_cast<int32_t>(begin < limit ? begin : limit);
}

/* Index that position i >= n of an axis of n pixels repeats: reflection without the edge, as often as needed. */
inline int32_t reflected_px(int32_t i, int32_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (static_cast<int64_t>(n) - 1);
    const int64_t inside = i % period;
    return static_cast<int32_t>(inside < n ? inside : period - inside);
}

/* Kernels, patchify_scalar.cpp. Pixels of a row are interleaved; planes of a line lie plane_px apart. */

/* One row to float32 in [0, 1], with grey conversion when c_in is 3 and c_out is 1. */
void row_to_line(const uint8_t *row, int64_t w, int c_in, int c_out, float *line, int64_t plane_px);
void row_to_line(const uint16_t *row, int64_t w, int c_in, int c_out, float *line, int64_t plane_px);
/* sums[i] += row[i] */
void add_row(const uint8_t *row, int64_t n, uint32_t *sums);
void add_row(const uint16_t *row, int64_t n, uint32_t *sums);
/* line[i] = weight * row[i] + (keep ? line[i] : 0) */
void weigh_row(const uint8_t *row, int64_t n, float weight, bool keep, float *line);
void weigh_row(const uint16_t *row, int64_t n, float weight, bool keep, float *line);
/* line[i] += sums[i] */
void add_sums(const uint32_t *sums, int64_t n, float *line);
/* Interleaved c_in to planes of c_out, grey as in row_to_line, no scaling of the values. */
void split_line(const float *mixed, int64_t w, int c_in, int c_out, float *line, int64_t plane_px);
/* Area resampling along a line, times `scale`; at most 1. */
void shrink_line(const float *line, const Tap *taps, int64_t n_out, double scale, float *out);

/* grd_cut_frame for some of the patches: slots[i] is where patch i of the grid goes in `patches`, -1 for nowhere;
 * NULL: all, in order. `patches` holds `count` patches, as many as there are slots. */
grd_status cut_frame(const grd_cut_params &cut, const grd_view *frame, const int32_t *slots, int32_t count,
                     float *patches, void *workspace, size_t workspace_bytes);

/* The inverse of cutting, stitch.cpp: patches (dense N,1,patch_h,patch_w, in the places that slots gives) are averaged
 * where they overlap and written to map (1,1,scaled_h,scaled_w FLOAT32, any strides), 0 where there is none.
 * line: 2 scaled_w floats of scratch. */
void stitch(const grd_cut_params &cut, const grd_grid &grid, const int32_t *slots, const float *patches,
            const grd_view &map, float *line);

} // namespace grd
#endif
