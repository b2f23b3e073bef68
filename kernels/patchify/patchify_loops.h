/* patchify_loops.h - the cutter's loops in plain C++, for every variant to compile with its own flags.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Exact where it costs nothing: sums of pixels are integers, a grey value is one integer numerator and one
 * division, so white is exactly 1 and the order of a sum cannot change a score. */
#ifndef GRD_PATCHIFY_LOOPS_H
#define GRD_PATCHIFY_LOOPS_H

#include <cstring>
#include <type_traits>

#include "half.h"
#include "patchify/patchify_kernels.h"

namespace grd::patchify {
namespace { /* local to each variant's file: see patchify_kernels.h */

/* ------------------------------------------------------------------------------------ elements of patches */

template <class T> constexpr float full_scale() { return sizeof(T) == 1 ? 255.0f : 65535.0f; }
constexpr int32_t kRed = 299, kGreen = 587, kBlue = 114; /* thousandths. Source: docs/method.md, section 6 */
constexpr float kGreyUnits = 1000.0f;

template <class T> float value_of(T pixel) { return static_cast<float>(static_cast<int32_t>(pixel)) / full_scale<T>(); }
template <class T> float grey_of(const T *pixel) {
    const int32_t grey = kRed * pixel[0] + kGreen * pixel[1] + kBlue * pixel[2];
    return static_cast<float>(grey) / (full_scale<T>() * kGreyUnits);
}

/* Sinks take values in [0, 1] and store element i of a patch. */
struct ToFloat {
    explicit ToFloat(const Format &) {}
    static constexpr int64_t kBytes = 4;
    void store(uint8_t *out, float value) const { std::memcpy(out, &value, sizeof value); }
};
struct ToHalf {
    explicit ToHalf(const Format &) {}
    static constexpr int64_t kBytes = 2;
    void store(uint8_t *out, float value) const {
        const uint16_t half = half_from_float(value);
        std::memcpy(out, &half, sizeof half);
    }
};
struct ToInt8 {
    explicit ToInt8(const Format &format) : input_scale(format.input_scale) {}
    static constexpr int64_t kBytes = 1;
    float input_scale;
    void store(uint8_t *out, float value) const {
        const float steps = value / input_scale;
        /* Adding 2^23 rounds to an integer, ties to even. No value is below 0. */
        *out = static_cast<uint8_t>(steps < 127.0f ? (steps + 8388608.0f) - 8388608.0f : 127.0f);
    }
};

template <class Sink, class T>
void store_values(const Sink &sink, const T *from, int64_t begin, int64_t end, uint8_t *out) {
    for (int64_t i = begin; i < end; ++i) sink.store(out + i * Sink::kBytes, value_of(from[i]));
}
template <class Sink>
void store_values(const Sink &sink, const float *from, int64_t begin, int64_t end, uint8_t *out) {
    for (int64_t i = begin; i < end; ++i) sink.store(out + i * Sink::kBytes, from[i]);
}
template <class Sink, class T>
void store_grey(const Sink &sink, const T *row, int64_t begin, int64_t end, uint8_t *out) {
    for (int64_t x = begin; x < end; ++x) sink.store(out + x * Sink::kBytes, grey_of(row + 3 * x));
}
template <class Sink, class T>
void store_planes(const Sink &sink, const T *row, int64_t begin, int64_t end, uint8_t *out, int64_t plane_bytes) {
    for (int c = 0; c < 3; ++c)
        for (int64_t x = begin; x < end; ++x)
            sink.store(out + c * plane_bytes + x * Sink::kBytes, value_of(row[3 * x + c]));
}

/* Calls run(sink) with the sink of the format. */
template <class Run> void with_sink(const Format &format, const Run &run) {
    if (format.dtype == GRD_FLOAT32) run(ToFloat(format));
    else if (format.dtype == GRD_FLOAT16) run(ToHalf(format));
    else run(ToInt8(format));
}

/* -------------------------------------------------------------------------------------- area resampling */

template <class T> void add_row(const T *row, int64_t n, uint32_t *sums) {
    for (int64_t i = 0; i < n; ++i) sums[i] += row[i];
}

template <class T> void weigh_row(const T *row, int64_t n, float weight, bool keep, float *line) {
    if (keep) {
        for (int64_t i = 0; i < n; ++i) line[i] += weight * static_cast<float>(static_cast<int32_t>(row[i]));
    } else {
        for (int64_t i = 0; i < n; ++i) line[i] = weight * static_cast<float>(static_cast<int32_t>(row[i]));
    }
}

void add_sums(const uint32_t *sums, int64_t n, float *line) {
    for (int64_t i = 0; i < n; ++i) line[i] += static_cast<float>(sums[i]);
}

void split_line(const float *mixed, int64_t w, int c_in, int c_out, float *line, int64_t plane_px) {
    if (c_in == 1) {
        for (int64_t x = 0; x < w; ++x) line[x] = mixed[x];
    } else if (c_out == 1) {
        for (int64_t x = 0; x < w; ++x)
            line[x] = 0.299f * mixed[3 * x] + 0.587f * mixed[3 * x + 1] + 0.114f * mixed[3 * x + 2];
    } else {
        for (int64_t x = 0; x < w; ++x) {
            line[x] = mixed[3 * x];
            line[plane_px + x] = mixed[3 * x + 1];
            line[2 * plane_px + x] = mixed[3 * x + 2];
        }
    }
}

/* Four chains, so that additions do not wait for each other. Double: a sum may have 65536 terms. */
double sum_of(const float *values, int32_t n) {
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        s0 += values[i];
        s1 += values[i + 1];
        s2 += values[i + 2];
        s3 += values[i + 3];
    }
    for (; i < n; ++i) s0 += values[i];
    return (s0 + s1) + (s2 + s3);
}

void shrink_line(const float *line, const Tap *taps, int64_t n_out, double scale, float *out, int64_t step) {
    for (int64_t x = 0; x < n_out; ++x) {
        const Tap tap = taps[x];
        const float *p = line + tap.first;
        double sum = static_cast<double>(tap.f0) * p[0];
        if (tap.whole >= 0) sum += sum_of(p + 1, tap.whole) + static_cast<double>(tap.f1) * p[1 + tap.whole];
        const float value = static_cast<float>(sum * scale);
        out[x * step] = value < 1.0f ? value : 1.0f; /* rounding must not carry white past 1 */
    }
}

/* -------------------------------------------------------------------------------------------- stitching */

void add_values(const float *values, int64_t n, double *sums, int32_t *counts) {
    for (int64_t i = 0; i < n; ++i) sums[i] += values[i];
    for (int64_t i = 0; i < n; ++i) ++counts[i];
}

void divide(const double *sums, const int32_t *counts, int64_t n, float *means) {
    for (int64_t i = 0; i < n; ++i) means[i] = static_cast<float>(sums[i] / (counts[i] > 0 ? counts[i] : 1));
}

} // namespace
} // namespace grd::patchify
#endif
