/* patchify_pixel.h - one element of a patch, from the frame's pixels: the CUDA variant of cutting, for host and device
 * alike.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The same operations in the same order as patchify_loops.h, so that the bits are those of every CPU variant: integer sums,
 * FP32 down the columns, FP64 along the row. Each thread takes the pixels under its own element; the CPU's row buffers
 * would cost a device more than reading a pixel twice. */
#ifndef GRD_PATCHIFY_PIXEL_H
#define GRD_PATCHIFY_PIXEL_H

#include "cuda/portable.h"
#include "patchify/patchify.h"
#include "patchify/patchify_kernels.h"

namespace grd::patchify {
namespace {

constexpr int kCutThreads = 256;
/* Elements of a row that a thread makes: 16 bytes of them, or one where its pixels have to be added up first. */
constexpr int kStoreBytes = 16;
GRD_BOTH constexpr int run_of(bool scaled, int item) { return scaled ? 1 : kStoreBytes / item; }

/* A launch. */
struct CutLaunch {
    cuda::Source frame;
    int32_t h, w, c_in, c_out;
    int32_t scaled_h, scaled_w, cols;
    int32_t patch_h, patch_w, stride_y, stride_x;
    int32_t interleaved, aligned; /* aligned: rows and planes of patches begin at multiples of kStoreBytes */
    const int32_t *indices;
    int32_t runs;   /* of run_of elements in a row */
    int64_t planes; /* of all patches */
    char *patches;
    float input_scale;
    double scale; /* from sums of pixels to [0, 1]; not read at native resolution */
};

template <class T> GRD_DEVICE int32_t pixel_of(const CutLaunch &job, int c, int y, int x) {
    const cuda::Source &f = job.frame;
    return cuda::load_as<T>(f.data + c * f.stride_c + y * f.stride_y + x * f.stride_x);
}

/* x / divisor, rounded once: see kernels/README.md. low: 1 / divisor - high in twice the precision. */
GRD_DEVICE float quotient(float x, double divisor) {
    const float high = static_cast<float>(1.0 / divisor), low = static_cast<float>(1.0 / divisor - high);
    return fmaf(x, high, x * low);
}

/* At native resolution. */
template <class T> GRD_DEVICE float native_value(const CutLaunch &job, int channel, int y, int x) {
    constexpr double kFull = sizeof(T) == 1 ? 255.0 : 65535.0;
    if (job.c_in == job.c_out) return quotient(static_cast<float>(pixel_of<T>(job, channel, y, x)), kFull);
    const int32_t grey = 299 * pixel_of<T>(job, 0, y, x) + 587 * pixel_of<T>(job, 1, y, x) + 114 * pixel_of<T>(job, 2, y, x);
    return quotient(static_cast<float>(grey), kFull * 1000.0);
}

/* Tap of patchify.cpp in 32 bits: no product of two sides leaves them but for 2^32 itself, and what wraps round cancels.
 * The quotients of integers below 2^17 are the same whether rounded from FP64 or at once. */
struct PixelTap {
    int32_t first, whole;
    float f0, f1;
};
GRD_DEVICE PixelTap pixel_tap(int32_t i, int32_t n_in, int32_t n_out) {
    const uint32_t in = static_cast<uint32_t>(n_in), out = static_cast<uint32_t>(n_out);
    const uint32_t begin = static_cast<uint32_t>(i) * in, first = begin / out, last = (begin + (in - 1)) / out;
    const uint32_t covered = last > first ? (first + 1) * out - begin : in;
    return {static_cast<int32_t>(first), static_cast<int32_t>(last - first) - 1,
            static_cast<float>(covered) / static_cast<float>(out),
            static_cast<float>(begin + in - last * out) / static_cast<float>(out)};
}

/* Weighted sum of a column's pixels, grey where the patches are. */
template <class T> GRD_DEVICE float column_sum(const CutLaunch &job, int channel, const PixelTap &tap, int x) {
    const bool grey = job.c_in != job.c_out;
    float mixed[3];
    GRD_UNROLLED for (int c = 0; c < 3; c++) {
        if (c > 0 && !grey) break;
        const int from = grey ? c : channel;
        float sum = tap.f0 * static_cast<float>(pixel_of<T>(job, from, tap.first, x));
        if (tap.whole > 0) {
            uint32_t whole = 0;
            for (int i = 0; i < tap.whole; i++)
                whole += static_cast<uint32_t>(pixel_of<T>(job, from, tap.first + 1 + i, x));
            sum += static_cast<float>(whole);
        }
        if (tap.whole >= 0) sum += tap.f1 * static_cast<float>(pixel_of<T>(job, from, tap.first + 1 + tap.whole, x));
        mixed[c] = sum;
    }
    return grey ? 0.299f * mixed[0] + 0.587f * mixed[1] + 0.114f * mixed[2] : mixed[0];
}

template <class T>
GRD_DEVICE float scaled_value(const CutLaunch &job, int channel, const PixelTap &tap_y, int32_t x) {
    const PixelTap tap = pixel_tap(x, job.w, job.scaled_w);
    const int32_t fours = tap.whole / 4 * 4;
    double first = 0, last = 0, chains[4] = {0, 0, 0, 0}; /* as in sum_of */
    for (int32_t i = -1; i <= tap.whole; i++) { /* whole -1: one pixel */
        const double value = static_cast<double>(column_sum<T>(job, channel, tap_y, tap.first + 1 + i));
        const int32_t chain = i < fours ? i % 4 : 0;
        if (i < 0) first = static_cast<double>(tap.f0) * value;
        else if (i == tap.whole) last = static_cast<double>(tap.f1) * value;
        else if (chain == 0) chains[0] += value;
        else if (chain == 1) chains[1] += value;
        else if (chain == 2) chains[2] += value;
        else chains[3] += value;
    }
    double sum = first;
    if (tap.whole >= 0) sum += ((chains[0] + chains[1]) + (chains[2] + chains[3])) + last;
    const float value = static_cast<float>(sum * job.scale);
    return value < 1.0f ? value : 1.0f;
}

/* A value in [0, 1] as an element of E: float, uint16_t (FLOAT16), int8_t. */
template <class E> GRD_DEVICE E element_of(const CutLaunch &job, float value);
template <> GRD_DEVICE float element_of<float>(const CutLaunch &, float value) { return value; }
template <> GRD_DEVICE uint16_t element_of<uint16_t>(const CutLaunch &, float value) { return cuda::half_of_float(value); }
template <> GRD_DEVICE int8_t element_of<int8_t>(const CutLaunch &job, float value) {
    const float steps = value / job.input_scale;
    return static_cast<int8_t>(steps < 127.0f ? (steps + 8388608.0f) - 8388608.0f : 127.0f);
}

/* Run `index` of a plane (of NHWC patches: of all their planes). */
template <class T, class E, bool kScaled> GRD_DEVICE void cut_run(const CutLaunch &job, int64_t plane, uint32_t index) {
    constexpr int kRun = run_of(kScaled, sizeof(E));
    const int32_t row_elements = job.interleaved ? job.patch_w * job.c_out : job.patch_w;
    const uint32_t planes = job.interleaved ? 1 : static_cast<uint32_t>(job.c_out), runs = static_cast<uint32_t>(job.runs);
    const int32_t y_in = static_cast<int32_t>(index / runs), begin = static_cast<int32_t>(index % runs) * kRun;
    const uint32_t patch = static_cast<uint32_t>(plane) / planes; /* below 2^31 / 3 */
    const int32_t at_plane = static_cast<int32_t>(static_cast<uint32_t>(plane) % planes);
    const int32_t place = job.indices ? job.indices[patch] : static_cast<int32_t>(patch);
    const int32_t top = position_px(place / job.cols, job.stride_y, job.patch_h, job.scaled_h);
    const int32_t left = position_px(place % job.cols, job.stride_x, job.patch_w, job.scaled_w);
    int32_t y = top + y_in;
    if (y >= job.scaled_h) y = reflected_px(y, job.scaled_h);
    PixelTap tap_y = {0, 0, 0, 0};
    if (kScaled) tap_y = pixel_tap(y, job.h, job.scaled_h);

    alignas(kStoreBytes) E run[kRun];
    const int32_t count = row_elements - begin < kRun ? row_elements - begin : kRun;
    GRD_UNROLLED for (int i = 0; i < kRun; i++) {
        const int32_t element = begin + (i < count ? i : 0);
        const int32_t channel = job.interleaved ? element % job.c_out : at_plane;
        int32_t x = left + (job.interleaved ? element / job.c_out : element);
        if (x >= job.scaled_w) x = reflected_px(x, job.scaled_w);
        run[i] = element_of<E>(job, kScaled ? scaled_value<T>(job, channel, tap_y, x) : native_value<T>(job, channel, y, x));
    }
    const int64_t row = plane * job.patch_h + y_in;
    char *to = job.patches + (row * row_elements + begin) * static_cast<int64_t>(sizeof(E));
#if defined(__CUDACC__)
    if (!kScaled && count == kRun && job.aligned) {
        int4 whole;
        memcpy(&whole, run, sizeof run);
        *reinterpret_cast<int4 *>(to) = whole;
        return;
    }
#endif
    GRD_UNROLLED for (int i = 0; i < kRun; i++)
        if (i < count) cuda::store_as<E>(to + i * static_cast<int>(sizeof(E)), run[i]);
}

} // namespace
} // namespace grd::patchify
#endif
