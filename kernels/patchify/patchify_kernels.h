/* patchify_kernels.h - what the cutter (patchify.cpp, stitch.cpp) and its variants share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each variant is compiled with the flags of its own instruction set, so everything here is a plain type or local to
 * its file: see score/score_internal.h. All variants give the same bits. */
#ifndef GRD_PATCHIFY_KERNELS_H
#define GRD_PATCHIFY_KERNELS_H

#include <cstddef>
#include <cstdint>

#include "grd_edge.h"

namespace grd::patchify {

/* One output pixel of area resampling: first * f0 + sum of `whole` pixels that follow + next one * f1, all
 * divided by the length of the interval. When the interval lies inside one pixel, whole is -1: that pixel. */
struct Tap {
    int32_t first;
    int32_t whole;
    float f0;
    float f1;
};

/* What becomes of a pixel: c_in values of a frame, c_out elements of a patch. */
struct Format {
    int c_in, c_out;
    bool interleaved;  /* elements of a pixel lie side by side (NHWC), not in planes (NCHW) */
    int32_t dtype;     /* of elements: GRD_FLOAT32, GRD_FLOAT16, GRD_INT8 */
    float input_scale; /* of GRD_INT8 */
};

/* For frames of T, whose rows hold interleaved pixels. */
template <class T> struct RowKernels {
    /* w pixels to elements, grey where c_in is 3 and c_out is 1; planes lie plane_bytes apart. */
    void (*convert)(const Format &format, const T *row, int64_t w, uint8_t *out, int64_t plane_bytes);
    /* sums[i] += row[i] */
    void (*add_row)(const T *row, int64_t n, uint32_t *sums);
    /* line[i] = weight * row[i] + (keep ? line[i] : 0) */
    void (*weigh_row)(const T *row, int64_t n, float weight, bool keep, float *line);
};

/* A call of grd_cut_frame after its checks. */
struct WholeCut {
    const grd_view &frame;
    const grd_cut_params &cut;
    const grd_grid &grid;
    Format format;
    void *patches;
};

struct Kernels {
    RowKernels<uint8_t> bytes;
    RowKernels<uint16_t> words;
    /* n values in [0, 1] to elements of format.dtype */
    void (*store_line)(const Format &format, const float *line, int64_t n, uint8_t *out);
    /* line[i] += sums[i] */
    void (*add_sums)(const uint32_t *sums, int64_t n, float *line);
    /* Interleaved c_in to planes of c_out, grey as in convert, no scaling of the values. */
    void (*split_line)(const float *mixed, int64_t w, int c_in, int c_out, float *line, int64_t plane_px);
    /* Area resampling along a line, times `scale`; at most 1. Results lie `step` floats apart. */
    void (*shrink_line)(const float *line, const Tap *taps, int64_t n_out, double scale, float *out, int64_t step);
    /* sums[i] += values[i], counts[i] += 1 */
    void (*add_values)(const float *values, int64_t n, double *sums, int32_t *counts);
    /* means[i] = sums[i] / counts[i], 0 where counts[i] is 0 */
    void (*divide)(const double *sums, const int32_t *counts, int64_t n, float *means);
    /* All patches of a frame at once, for variants that do not go row by row (those of the tests); else NULL. */
    void (*cut)(const WholeCut &call) = nullptr;
};

#define GRD_VARIANT(name, supported) extern const Kernels kernels_##name;
#include "variants.inc"
#undef GRD_VARIANT

static inline Kernels with_cut(Kernels kernels, void (*cut)(const WholeCut &)) {
    kernels.cut = cut;
    return kernels;
}

/* By index of variants.h. */
extern const Kernels *const kKernels[];

} // namespace grd::patchify
#endif
