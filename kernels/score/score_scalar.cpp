/* score_scalar.cpp - the definition in C: float64, one pixel at a time, both windows.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source: docs/method.md section 5. With s = x + x^ and d = x - x^, and m, V the weighted mean and the biased
 * weighted variance under the 11x11 window,
 *
 *     l  = (2 m_x m_x^ + C1) / (m_x^2 + m_x^^2 + C1)    =>  1 - l  = 2 m_d^2 / (m_s^2 + m_d^2 + 2 C1)
 *     cs = (2 cov + C2) / (V_x + V_x^ + C2)             =>  1 - cs = 2 V_d   / (V_s   + V_d   + 2 C2)
 *     1 - l cs = a + b - a b   with a = 1 - l, b = 1 - cs
 *
 * because 2 m_x m_x^ = (m_s^2 - m_d^2) / 2, m_x^2 + m_x^^2 = (m_s^2 + m_d^2) / 2, and likewise for V. Equal
 * images have d = 0 and hence distance 0 exactly. float64 leaves E[s^2] - m_s^2 exact to 1e-15, so that this
 * file needs none of the care that score_fused.h takes.
 *
 * Kept scalar by the pragma, so that it stays the plain baseline whatever the compiler learns.
 */
#pragma GCC optimize("no-tree-vectorize", "no-tree-slp-vectorize")

#include <math.h>

#include "score/score_internal.h"

namespace grd::score {
namespace {

/* The four quantities of a pixel that are averaged under the window. */
struct Moments {
    double s, d, ss, dd;
};

struct Layout {
    Moments *line;   /* one input row, with kReach zero pixels on either side for the box window */
    Moments *ring;   /* the last kTaps input rows, averaged along x: kTaps x map_w */
    double *distance; /* the whole map, mean over channels: map_h x map_w */
    double *columns; /* sums of the last `local` rows of the map */
    double *residual; /* one row of the heatmap */
};

size_t lay_out(const Job &job, void *base, Layout *out) {
    Arena arena(base);
    out->line = arena.take<Moments>(job.w + 2 * kReach);
    out->ring = arena.take<Moments>(kTaps * job.map_w);
    out->distance = arena.take<double>(job.map_h * job.map_w);
    out->columns = arena.take<double>(job.map_w);
    out->residual = arena.take<double>(job.w);
    return arena.used();
}

void add(Moments *sum, double weight, const Moments &m) {
    sum->s += weight * m.s;
    sum->d += weight * m.d;
    sum->ss += weight * m.ss;
    sum->dd += weight * m.dd;
}

/* max(0, v) that keeps NaN: rounding must not make a variance negative. */
double positive(double v) { return v < 0 ? 0 : v; }

double distance_from_moments(const Moments &m) {
    const double vs = positive(m.ss - m.s * m.s);
    const double vd = positive(m.dd - m.d * m.d);
    const double a = 2 * m.d * m.d / (m.s * m.s + m.d * m.d + 2 * kC1);
    const double b = 2 * vd / (vs + vd + 2 * kC2);
    return a + b - a * b;
}

/* One input row of one channel, averaged along x. Rows outside the patch are zero (box window only). */
void average_row(const Job &job, const Patch &patch, const double *taps, int64_t c, int64_t y, Moments *line,
                 Moments *out) {
    const int64_t pad = job.box ? kReach : 0;
    const Moments zero = {0, 0, 0, 0};
    for (int64_t x = 0; x < job.w + 2 * pad; x++) line[x] = zero;
    if (y >= 0 && y < job.h) {
        for (int64_t x = 0; x < job.w; x++) {
            if (!of_interest(patch.roi, y, x)) continue; /* both are taken as 0, whatever they hold */
            const double p = load_pixel(pixel_at(patch.x, c, y, x), job.x_dtype);
            const double q = load_pixel(pixel_at(patch.x_hat, c, y, x), job.x_hat_dtype);
            const double s = p + q, d = p - q;
            line[x + pad] = {s, d, s * s, d * d};
        }
    }
    for (int64_t x = 0; x < job.map_w; x++) {
        Moments sum = zero;
        for (int k = 0; k < kTaps; k++) add(&sum, taps[k], line[x + k]);
        out[x] = sum;
    }
}

/* The distance map, mean over channels. */
void distance_map(const Job &job, const Patch &patch, const Layout &at) {
    double taps[kTaps];
    for (int k = 0; k < kTaps; k++) taps[k] = job.box ? 1.0 / kTaps : kGaussian[k];
    const int64_t pad = job.box ? kReach : 0;

    for (int64_t c = 0; c < job.c; c++) {
        for (int64_t y = 0; y < job.h + 2 * pad; y++) {
            average_row(job, patch, taps, c, y - pad, at.line, at.ring + y % kTaps * job.map_w);
            const int64_t map_y = y - (kTaps - 1);
            if (map_y < 0) continue;
            double *row = at.distance + map_y * job.map_w;
            for (int64_t x = 0; x < job.map_w; x++) {
                Moments sum = {0, 0, 0, 0};
                for (int k = 0; k < kTaps; k++) add(&sum, taps[k], at.ring[(map_y + k) % kTaps * job.map_w + x]);
                const double distance = distance_from_moments(sum) / static_cast<double>(job.c);
                row[x] = c == 0 ? distance : row[x] + distance;
            }
        }
    }
}

double mean_of_map(const Job &job, const double *distance, int64_t positions) {
    double sum = 0;
    for (int64_t i = 0; i < job.map_h * job.map_w; i++) sum += distance[i];
    return sum / static_cast<double>(positions);
}

/* The largest mean over a local x local window. Sliding sums in float64 drift by 1e-16 a step; a NaN would
 * stay in them, but a patch with NaN has no finite answer, and the sums start anew with each patch. */
double largest_local_mean(const Job &job, const Layout &at) {
    const int64_t w = job.local;
    double largest = 0;
    for (int64_t x = 0; x < job.map_w; x++) at.columns[x] = 0;
    for (int64_t y = 0; y < job.map_h; y++) {
        for (int64_t x = 0; x < job.map_w; x++) {
            at.columns[x] += at.distance[y * job.map_w + x];
            if (y >= w) at.columns[x] -= at.distance[(y - w) * job.map_w + x];
        }
        if (y < w - 1) continue;
        double sum = 0;
        for (int64_t x = 0; x < job.map_w; x++) {
            sum += at.columns[x];
            if (x >= w) sum -= at.columns[x - w];
            if (x >= w - 1 && sum > largest) largest = sum;
        }
    }
    return largest / static_cast<double>(w * w);
}

/* Heatmap rows and the range over them. Returns false when a pixel is NaN or Inf. */
bool residuals(const Job &job, const Patch &patch, double *row, Result *result) {
    bool finite = true;
    float least = INFINITY, largest = 0;
    for (int64_t y = 0; y < job.h; y++) {
        for (int64_t x = 0; x < job.w; x++) row[x] = 0;
        for (int64_t c = 0; c < job.c; c++) {
            for (int64_t x = 0; x < job.w; x++) {
                if (!of_interest(patch.roi, y, x)) continue;
                const double p = load_pixel(pixel_at(patch.x, c, y, x), job.x_dtype);
                const double q = load_pixel(pixel_at(patch.x_hat, c, y, x), job.x_hat_dtype);
                row[x] += fabs(p - q);
            }
        }
        for (int64_t x = 0; x < job.w; x++) {
            const float mean = static_cast<float>(row[x] / static_cast<double>(job.c));
            finite = finite && isfinite(row[x]);
            if (mean < least && of_interest(patch.roi, y, x)) least = mean;
            if (mean > largest) largest = mean;
            if (patch.heatmap)
                store_residual(job, patch.heatmap + y * patch.heatmap_stride_y + x * patch.heatmap_stride_x, mean);
        }
    }
    result->residual_min = least;
    result->residual_max = largest;
    return finite;
}

Result run(const Job &job, const Patch &patch, void *scratch) {
    Layout at;
    lay_out(job, scratch, &at);
    Result result = {NAN, NAN, NAN, NAN};
    if (job.want_residual && !residuals(job, patch, at.residual, &result))
        return {NAN, NAN, NAN, NAN};
    if (job.want_phi || job.want_local) {
        distance_map(job, patch, at);
        const double phi = mean_of_map(job, at.distance, patch.positions);
        if (!isfinite(phi)) return {NAN, NAN, NAN, NAN};
        result.phi = static_cast<float>(positive(phi));
        if (job.want_local) result.phi_local = static_cast<float>(largest_local_mean(job, at));
    }
    return result;
}

bool takes(const Job &) { return true; }

size_t scratch_bytes(const Job &job) {
    Layout unused;
    return lay_out(job, nullptr, &unused);
}

} // namespace

const Variant variant_scalar = {takes, scratch_bytes, run};

} // namespace grd::score
