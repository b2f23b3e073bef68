/* patchify_scalar.cpp - the loops of the cutter, written so that a compiler vectorises them.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Exact where it costs nothing: sums of pixels are integers, a grey value is one integer numerator and one
 * division, so white is exactly 1 and the order of a sum cannot change a score. */
#include "patchify.h"

namespace grd {
namespace {

template <class T> constexpr float full_scale() { return sizeof(T) == 1 ? 255.0f : 65535.0f; }

template <class T> void row_to_line_of(const T *row, int64_t w, int c_in, int c_out, float *line, int64_t plane_px) {
    const float full = full_scale<T>();
    if (c_in == 1) {
        for (int64_t x = 0; x < w; ++x) line[x] = static_cast<float>(static_cast<int32_t>(row[x])) / full;
    } else if (c_out == 1) {
        const float divisor = full * 1000.0f;
        for (int64_t x = 0; x < w; ++x) {
            const int32_t grey = 299 * row[3 * x] + 587 * row[3 * x + 1] + 114 * row[3 * x + 2];
            line[x] = static_cast<float>(grey) / divisor;
        }
    } else {
        float *r = line, *g = line + plane_px, *b = line + 2 * plane_px;
        for (int64_t x = 0; x < w; ++x) {
            r[x] = static_cast<float>(static_cast<int32_t>(row[3 * x])) / full;
            g[x] = static_cast<float>(static_cast<int32_t>(row[3 * x + 1])) / full;
            b[x] = static_cast<float>(static_cast<int32_t>(row[3 * x + 2])) / full;
        }
    }
}

template <class T> void add_row_of(const T *row, int64_t n, uint32_t *sums) {
    for (int64_t i = 0; i < n; ++i) sums[i] += row[i];
}

template <class T> void weigh_row_of(const T *row, int64_t n, float weight, bool keep, float *line) {
    if (keep) {
        for (int64_t i = 0; i < n; ++i) line[i] += weight * static_cast<float>(static_cast<int32_t>(row[i]));
    } else {
        for (int64_t i = 0; i < n; ++i) line[i] = weight * static_cast<float>(static_cast<int32_t>(row[i]));
    }
}

/* Four chains, so that additions do not wait for each other. Double: a sum may have 65536 terms. */
inline double sum_of(const float *values, int32_t n) {
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

} // namespace

void row_to_line(const uint8_t *row, int64_t w, int c_in, int c_out, float *line, int64_t plane_px) {
    row_to_line_of(row, w, c_in, c_out, line, plane_px);
}
void row_to_line(const uint16_t *row, int64_t w, int c_in, int c_out, float *line, int64_t plane_px) {
    row_to_line_of(row, w, c_in, c_out, line, plane_px);
}
void add_row(const uint8_t *row, int64_t n, uint32_t *sums) { add_row_of(row, n, sums); }
void add_row(const uint16_t *row, int64_t n, uint32_t *sums) { add_row_of(row, n, sums); }
void weigh_row(const uint8_t *row, int64_t n, float weight, bool keep, float *line) {
    weigh_row_of(row, n, weight, keep, line);
}
void weigh_row(const uint16_t *row, int64_t n, float weight, bool keep, float *line) {
    weigh_row_of(row, n, weight, keep, line);
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

void shrink_line(const float *line, const Tap *taps, int64_t n_out, double scale, float *out) {
    for (int64_t x = 0; x < n_out; ++x) {
        const Tap tap = taps[x];
        const float *p = line + tap.first;
        double sum = static_cast<double>(tap.f0) * p[0];
        if (tap.whole >= 0) sum += sum_of(p + 1, tap.whole) + static_cast<double>(tap.f1) * p[1 + tap.whole];
        const float value = static_cast<float>(sum * scale);
        out[x] = value < 1.0f ? value : 1.0f; /* rounding must not carry white past 1 */
    }
}

} // namespace grd
