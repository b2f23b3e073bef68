/* score_fused.h - phi, phi_local and the heatmap in one pass over a patch, for any vector type.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A variant defines a vector traits type V (see score_vector256.h) and instantiates Fused<V>. Gaussian
 * window only; see score_scalar.cpp for the formula and for the box window.
 *
 * Work goes by batches of kRows rows of the distance map, and in these by chunks of kChunk columns:
 *   take rows   in the order of memory: heatmap, range, s and d
 *   columns     means and variances of one vector of columns along y, transposed: lanes are rows now
 *   rows        means and variances along x for each group of kL rows, then the distance formula
 *   sums        distances -> fixed point; sums for phi and phi_local
 * Blurring along x needs the neighbors of each pixel. After the transpose these are whole vectors, so that no
 * load straddles a cache line and both blurs have the same form.
 *
 * score_blur.h says how the two blurs hold 1e-6 in FP32. Distances become fixed point before they are summed:
 * integer sums are exact in any order, and a sliding integer sum does not drift.
 */
#ifndef GRD_SCORE_FUSED_H
#define GRD_SCORE_FUSED_H

#include <math.h>

#include "score/score_blur.h"

namespace grd::score {
namespace { /* local to each variant's file: see score_internal.h */

/* No product of the distance formula leaves FP32 while |s| and |d| are at most 2^30. s is summed at a scale
 * where 2^30 is Inf (one pixel beyond 5e8, or all pixels beyond 4e5); |d| is known from the range. */
constexpr float kGuardScale = 3.1691265e29f; /* 2^98 */
constexpr float kGuardUnscale = 8.6736174e-19f; /* 2^-60: sums of many batches stay finite, Inf stays Inf */
constexpr float kLargestDifference = 1073741824.0f; /* 2^30 */

constexpr int64_t kLargestLocal = 256; /* of FixedPoint; larger phi_local windows take the scalar path */

/* Distances, in [0, 2], are held as integers in units of 2^-scale_bits. Sums of `local` of them along x are
 * cut by sum_shift bits before they are summed along y; neither sum can leave 30 bits. The two roundings move
 * a mean by at most 2^-(scale_bits + 1) (1 + 2^sum_shift / local): 8e-8 at 21 px, 5e-7 at 256 px. */
struct FixedPoint {
    int scale_bits, sum_shift;
};
inline FixedPoint fixed_point(int64_t local) {
    int bits = 0;
    while ((int64_t{1} << bits) < local) bits++;
    return {29 - (bits < 5 ? 5 : bits), bits};
}

/* The figures of a patch from what each lane has seen of it. guard: not finite where a pixel was not, or too large. */
inline Result result_of_lanes(const Job &job, const Patch &patch, FixedPoint fixed, int lanes, const float *least,
                              const float *largest, const float *guard, const int32_t *local, int64_t phi_sum) {
    const Result nan = {NAN, NAN, NAN, NAN};
    Result out = {0, 0, INFINITY, 0};
    int32_t local_sum = 0;
    for (int i = 0; i < lanes; i++) {
        if (!isfinite(guard[i])) return nan;
        if (least[i] < out.residual_min) out.residual_min = least[i];
        if (largest[i] > out.residual_max) out.residual_max = largest[i];
        if (local[i] > local_sum) local_sum = local[i];
    }
    if (!(out.residual_max * static_cast<float>(job.c) <= kLargestDifference)) return nan;
    const double window = static_cast<double>(job.local) * static_cast<double>(job.local);
    const double sum = static_cast<double>(phi_sum > 0 ? phi_sum : 0); /* rounding may leave it below 0 */
    out.phi = static_cast<float>(ldexp(sum, -fixed.scale_bits) / static_cast<double>(patch.positions));
    out.phi_local = static_cast<float>(ldexp(local_sum, fixed.sum_shift - fixed.scale_bits) / window);
    return out;
}

template <class V> class Fused {
    using F = typename V::F;
    using I = typename V::I;
    using B = Blur<V>;
    static constexpr int kL = V::kLanes;
    static constexpr int kRows = V::kGroups * kL;        /* rows of the map in a batch */
    static constexpr int kTall = kRows + kTaps - 1;      /* input rows that they depend on */
    static constexpr int kChunk = V::kChunk * kL;        /* columns between the two blurs at a time */
    /* The window between the blurs: the columns before the chunk that its outputs need, in whole vectors of the
     * input, then the chunk, then room for the last results to read past the patch. */
    static constexpr int kKeep = (kTaps - 1 + kL - 1) / kL * kL;
    static constexpr int kSpan = kKeep + kChunk + kL;
    enum Map { kMeanS, kVarS, kMeanD, kVarD, kMaps };

    /* Arrays of vectors are declared by their elements; each begins on a kAlign boundary. */
    struct Layout {
        int64_t blocks;   /* vectors that cover a row of the input */
        float *residual;  /* |d| summed over channels so far, where c > 1: kTall x blocks vectors */
        float *taken;     /* s and d of the chunk's input rows: V::kChunk x 2 x kTall vectors */
        float *column;    /* of a block: square steps, deltas, means, variances; kTall vectors each */
        float *window;    /* columns of the four maps: V::kGroups x kMaps x kSpan vectors */
        float *line;      /* of a group: square steps, deltas, then the four maps; kSpan vectors each */
        float *distance;  /* of each group the columns, summed over channels so far, where c > 1 */
        int32_t *history; /* of each group the map in fixed point, after `local` vectors of 0 */
        int32_t *ring;    /* sums along x of the last `local` rows of the map */
        int32_t *columns; /* sums of the rows in `ring` */
    };

    static size_t lay_out(const Job &job, void *base, Layout *out) {
        Arena arena(base);
        const int64_t blocks = out->blocks = (job.w + kL - 1) / kL, pitch = blocks * kL;
        const int64_t local = job.want_local ? job.local : 0;
        out->residual = arena.take<float>(job.c > 1 ? kTall * pitch : 0);
        out->taken = arena.take<float>(V::kChunk * 2 * kTall * kL);
        out->column = arena.take<float>(4 * kTall * kL);
        out->window = arena.take<float>(V::kGroups * kMaps * kSpan * kL);
        out->line = arena.take<float>((2 + kMaps) * kSpan * kL);
        out->distance = arena.take<float>(job.c > 1 ? V::kGroups * pitch * kL : 0);
        out->history = arena.take<int32_t>(V::kGroups * (local + pitch) * kL);
        out->ring = arena.take<int32_t>(local * pitch);
        out->columns = arena.take<int32_t>(pitch);
        return arena.used();
    }

    const Job &job;
    const Patch &patch;
    Layout at;
    FixedPoint fixed;
    int64_t held_to = 0; /* input rows whose residual is known */
    int64_t phi_sum = 0;
    F residual_min, residual_max;
    F pixel_guard; /* a running sum, only because NaN and Inf stay in it */
    I local_max;

    /* ---------------------------------------------------------------------------------- take rows */

    /* Where block b of the input begins. The last one overlaps the one before, so that nothing is read or
     * written past a row of the caller's. Needs w >= kL. */
    int64_t block_x(int64_t b) const { return (b + 1) * kL <= job.w ? b * kL : job.w - kL; }

    /* kL pixels of a row: in place, or one by one. */
    static GRD_INLINE F load_pixels(const char *from, int64_t stride_x, int32_t dtype) {
        if (dtype == GRD_FLOAT32 && stride_x == 4) return V::load(from);
        if (dtype == GRD_UINT8 && stride_x == 1) return V::load_bytes(from);
        if (dtype == GRD_FLOAT16 && stride_x == 2) return V::load_halves(from);
        float gathered[kL];
        for (int i = 0; i < kL; i++) gathered[i] = load_pixel(from + i * stride_x, dtype);
        return V::load(gathered);
    }
    /* All bits of the lanes whose pixels are of interest. */
    static GRD_INLINE F load_mask(const uint8_t *from, int64_t stride_x) {
        if (stride_x == 1) return V::load_mask(from);
        uint8_t gathered[kL];
        for (int i = 0; i < kL; i++) gathered[i] = from[i * stride_x];
        return V::load_mask(gathered);
    }
    GRD_INLINE void store_residuals(char *to, int64_t stride_x, F value) const {
        if (job.heatmap_dtype == GRD_FLOAT32 && stride_x == 4) return V::store(to, value);
        if (job.heatmap_dtype == GRD_FLOAT16 && stride_x == 2) return V::store_halves(to, value);
        if (job.heatmap_dtype == GRD_UINT8 && stride_x == 1)
            return V::store_bytes(to, V::mul(value, V::set(job.heatmap_scale)));
        float values[kL];
        V::store(values, value);
        for (int i = 0; i < kL; i++) store_residual(job, to + i * stride_x, values[i]);
    }

    /* Rows [y, y + rows) of blocks [first, end): s and d go to `taken`, and of rows that no batch before has taken
     * the mean of |d| over channels to the heatmap and into its range. Past the patch the last row repeats: what
     * comes of it is thrown away, it only has to be defined. kPlain: is_plain(), known at compile time. */
    template <bool kPlain> GRD_INLINE void take_blocks(int64_t c, int64_t first, int64_t end, int64_t y, int64_t rows) {
        const int64_t dense = sizeof(float);
        const Image &view = patch.x, &view_hat = patch.x_hat;
        const bool first_channel = kPlain || c == 0, last_channel = kPlain || c + 1 == job.c;
        const int64_t p_step = kPlain ? dense : view.stride_x, q_step = kPlain ? dense : view_hat.stride_x;
        const bool masked = !kPlain && patch.roi.data;
        const F share = V::set(1.0f / static_cast<float>(job.c)), scale = V::set(kGuardScale);
        F least = residual_min, largest = residual_max, guard = V::set(0);
        const int64_t old = held_to - y, inside = y + rows < job.h ? rows : job.h - y;
        const int64_t last_x = job.w - kL; /* block_x of the last block */
        for (int64_t i = 0; i < inside; i++) {
            const char *p = pixel_at(view, c, y + i, 0), *q = pixel_at(view_hat, c, y + i, 0);
            F *out = reinterpret_cast<F *>(at.taken) + i;
            const uint8_t *roi = masked ? patch.roi.data + (y + i) * patch.roi.stride_y : nullptr;
            F wanted;
            const auto take = [&](int64_t x, F *s, F *d) {
                F value = kPlain ? V::load(p + x * dense) : load_pixels(p + x * p_step, p_step, job.x_dtype);
                F value_hat = kPlain ? V::load(q + x * dense) : load_pixels(q + x * q_step, q_step, job.x_hat_dtype);
                if (masked) {
                    wanted = load_mask(roi + x * patch.roi.stride_x, patch.roi.stride_x);
                    value = V::keep(wanted, value), value_hat = V::keep(wanted, value_hat);
                }
                *s = V::add(value, value_hat), *d = V::sub(value, value_hat);
                out[0] = *s, out[kTall] = *d;
                out += 2 * kTall;
            };
            F s, d;
            if (i < old) {
                for (int64_t b = first; b < end; b++) take(b * kL < last_x ? b * kL : last_x, &s, &d);
                continue;
            }
            char *heat = patch.heatmap ? patch.heatmap + (y + i) * patch.heatmap_stride_y : nullptr;
            F row_guard = V::set(0);
            for (int64_t b = first; b < end; b++) {
                const int64_t x = b * kL < last_x ? b * kL : last_x;
                take(x, &s, &d);
                row_guard = V::fma(s, scale, row_guard);
                F r = V::abs(d);
                if (!kPlain && job.c > 1) {
                    float *so_far = at.residual + ((i - old) * at.blocks + b) * kL;
                    if (!first_channel) r = V::add(r, V::load(so_far));
                    V::store(so_far, r);
                    r = V::mul(r, share);
                }
                if (last_channel) {
                    least = V::min(least, masked ? V::pick(wanted, r, V::set(INFINITY)) : r);
                    largest = V::max(largest, r);
                    if (heat && kPlain) V::store(heat + x * dense, r);
                    else if (heat) store_residuals(heat + x * patch.heatmap_stride_x, patch.heatmap_stride_x, r);
                }
            }
            guard = V::add(guard, row_guard);
        }
        for (int64_t b = first; b < end; b++) {
            F *out = reinterpret_cast<F *>(at.taken) + (b - first) * 2 * kTall;
            for (int64_t i = inside; i < rows; i++)
                out[i] = out[inside - 1], out[kTall + i] = out[kTall + inside - 1];
        }
        residual_min = least, residual_max = largest;
        pixel_guard = V::fma(guard, V::set(kGuardUnscale), pixel_guard);
    }

    /* -------------------------------------------------------------------------- columns and rows */

    /* What summing needs of a group besides the distances. */
    struct Sums {
        int64_t rows;            /* rows of the group that lie in the map */
        int32_t *ring[kL];       /* their rows in at.ring */
        I *history;              /* its map in at.history */
        I along_x;               /* sum of the last `local` columns, and a half for the cut */
        typename V::Wide phi;    /* per row of the group */
    };

    /* Takes columns [x, x + kL) of the finished map into the sums. Windows that begin before the map, or hang
     * over its end, hold zeros there. No distance is negative by more than its rounding: they exceed the nearest
     * whole window by no more than that, and need no special case. */
    GRD_INLINE void sum_block(const F *halves, int64_t x, F unit, Sums *sums) {
        I value[kL], total = V::iset(0);
        GRD_UNROLL for (int i = 0; i < kL; i++) {
            value[i] = V::round(V::mul(halves[i], unit));
            total = V::iadd(total, value[i]);
        }
        V::add_wide(&sums->phi, total);
        if (!job.want_local) return;

        I *history = sums->history + job.local + x;
        const I *gone = history - job.local;
        const I shift = V::iset(fixed.sum_shift);
        I along_x = sums->along_x, cut[kL], row[kL];
        GRD_UNROLL for (int i = 0; i < kL; i++) {
            history[i] = value[i];
            along_x = V::iadd(along_x, V::isub(value[i], gone[i]));
            cut[i] = V::ishift(along_x, shift);
        }
        sums->along_x = along_x;
        V::itranspose(cut, row);

        I column = V::iload(at.columns + x), largest = local_max;
        const auto take = [&](int64_t r) {
            column = V::iadd(column, V::isub(row[r], V::iload(sums->ring[r] + x)));
            V::istore(sums->ring[r] + x, row[r]);
            largest = V::imax(largest, column);
        };
        if (sums->rows == kL) {
            GRD_UNROLL for (int r = 0; r < kL; r++) take(r);
        } else {
            for (int64_t r = 0; r < sums->rows; r++) take(r);
        }
        V::istore(at.columns + x, column);
        local_max = largest;
    }

    /* Columns [x, x + n) of a group's map for one channel; after the last channel also the sums. */
    GRD_INLINE void distance_columns(const F *in, int64_t x, int64_t n, int64_t c, F unit, F *so_far, Sums *sums) {
        F *square_step = reinterpret_cast<F *>(at.line), *delta = square_step + kSpan, *mean = delta + kSpan;
        F *var = mean + kSpan, *mean_d = var + kSpan, *var_d = mean_d + kSpan;
        const auto blur = [&](int map, F *to_mean, F *to_var) {
            const F *from = in + map * kSpan;
            B::moments_of_moments(from, from + kSpan, n, delta, square_step, to_mean, to_var);
        };
        blur(kMeanS, mean, var);
        blur(kMeanD, mean_d, var_d);
        const bool last_channel = c + 1 == job.c;
        for (int64_t i = 0; i < n; i += kL) {
            F out[kL];
            GRD_UNROLL for (int k = 0; k < kL; k++)
                out[k] = B::half_distance(mean[i + k], mean_d[i + k], var[i + k], var_d[i + k]);
            for (int64_t k = job.map_w - x - i; k < kL; k++) out[k] = V::set(0); /* past the map */
            if (c > 0)
                for (int k = 0; k < kL; k++) out[k] = V::add(out[k], so_far[x + i + k]);
            if (last_channel) sum_block(out, x + i, unit, sums);
            else
                for (int k = 0; k < kL; k++) so_far[x + i + k] = out[k];
        }
    }

    /* The batch's rows of the map for one channel. Outputs lag behind the chunk by kKeep columns. */
    template <bool kPlain> void distance_rows(int64_t y, int64_t groups, int64_t c, F unit, Sums *sums) {
        F *window = reinterpret_cast<F *>(at.window), *taken = reinterpret_cast<F *>(at.taken);
        F *square_step = reinterpret_cast<F *>(at.column), *delta = square_step + kTall, *mean = delta + kTall;
        F *var = mean + kTall, *distance = reinterpret_cast<F *>(at.distance);
        const int64_t rows = groups * kL;
        const F bias = V::set(static_cast<float>(2 * kC2)); /* joins the variance here, where it costs nothing */
        for (int64_t chunk = 0; chunk < job.w; chunk += kChunk) {
            const int64_t end = chunk + kChunk < job.w ? chunk + kChunk : job.w;
            const int64_t first_block = chunk / kL, end_block = (end + kL - 1) / kL;
            take_blocks<kPlain>(c, first_block, end_block, y, rows + kTaps - 1);
            for (int64_t b = first_block; b < end_block; b++) {
                const F *s = taken + (b - first_block) * 2 * kTall;
                F *out = window + kKeep + block_x(b) - chunk;
                const auto transpose = [&](int map) {
                    for (int64_t g = 0; g < groups; g++) {
                        V::transpose(mean + g * kL, out + (g * kMaps + map) * kSpan);
                        V::transpose(var + g * kL, out + (g * kMaps + map + 1) * kSpan);
                    }
                };
                B::moments(s, rows, bias, delta, square_step, mean, var);
                transpose(kMeanS);
                B::moments(s + kTall, rows, V::set(0), delta, square_step, mean, var);
                transpose(kMeanD);
            }
            const int64_t first = chunk ? chunk - kKeep : 0;
            const int64_t stop = end == job.w ? job.map_w : end - kKeep;
            if (stop > first)
                for (int64_t g = 0; g < groups; g++)
                    distance_columns(window + g * kMaps * kSpan + kKeep + first - chunk, first,
                                     (stop - first + kL - 1) / kL * kL, c, unit,
                                     distance + g * at.blocks * kL, sums + g);
            for (int m = 0; m < groups * kMaps; m++)
                for (int i = 0; i < kKeep; i++) window[m * kSpan + i] = window[m * kSpan + kChunk + i];
        }
    }

    /* Rows [y, y + kRows) of the map, as far as they exist, in whole groups. */
    template <bool kPlain> void batch(int64_t y) {
        const int64_t left = (job.map_h - y + kL - 1) / kL, groups = left < V::kGroups ? left : V::kGroups;
        if (!job.want_phi && !job.want_local) {
            for (int64_t c = 0; c < job.c; c++)
                for (int64_t b = 0; b < at.blocks; b += V::kChunk)
                    take_blocks<kPlain>(c, b, b + V::kChunk < at.blocks ? b + V::kChunk : at.blocks, y,
                                        groups * kL + kTaps - 1);
        } else {
            Sums sums[V::kGroups];
            for (int64_t g = 0; g < groups; g++) {
                const int64_t first = y + g * kL;
                sums[g].rows = job.map_h - first < kL ? job.map_h - first : kL;
                for (int r = 0; r < kL && job.want_local; r++)
                    sums[g].ring[r] = at.ring + (first + r) % job.local * at.blocks * kL;
                sums[g].history = reinterpret_cast<I *>(at.history) + g * (job.local + at.blocks * kL);
                sums[g].along_x = V::iset(fixed.sum_shift ? 1 << (fixed.sum_shift - 1) : 0);
                memset(&sums[g].phi, 0, sizeof sums[g].phi);
            }
            const F unit = V::set(static_cast<float>(ldexp(2.0, fixed.scale_bits) / static_cast<double>(job.c)));
            for (int64_t c = 0; c < job.c; c++) distance_rows<kPlain>(y, groups, c, unit, sums);
            for (int64_t g = 0; g < groups; g++) {
                int64_t phi[kL];
                memcpy(phi, &sums[g].phi, sizeof phi);
                for (int64_t r = 0; r < sums[g].rows; r++) phi_sum += phi[r];
            }
        }
        held_to = y + groups * kL + kTaps - 1;
        if (held_to > job.h) held_to = job.h;
    }

    Result result() const {
        float least[kL], largest[kL], guard[kL];
        int32_t local[kL];
        V::store(least, residual_min), V::store(largest, residual_max), V::store(guard, pixel_guard);
        V::istore(local, local_max);
        return result_of_lanes(job, patch, fixed, kL, least, largest, guard, local, phi_sum);
    }

  public:
    static bool takes(const Job &job) { return !job.box && job.w >= kL && job.local <= kLargestLocal; }

    static size_t scratch_bytes(const Job &job) {
        Layout unused;
        return lay_out(job, nullptr, &unused);
    }

    Fused(const Job &job_, const Patch &patch_, void *scratch) : job(job_), patch(patch_) {
        lay_out(job, scratch, &at);
        fixed = fixed_point(job.local); /* also without phi_local: phi must not depend on what else is wanted */
        residual_min = V::set(INFINITY);
        residual_max = pixel_guard = V::set(0);
        local_max = V::iset(0);
        /* Sums start from 0, and vectors that reach past a row find defined values there. */
        const size_t pitch = static_cast<size_t>(at.blocks * kL) * sizeof(float);
        const int64_t all = (job.map_h + kL - 1) / kL, groups = all < V::kGroups ? all : V::kGroups;
        memset(at.window, 0, sizeof(F) * static_cast<size_t>(groups * kMaps * kSpan));
        memset(at.columns, 0, pitch);
        if (!job.want_local) return;
        for (int64_t g = 0; g < groups; g++)
            memset(at.history + g * (job.local + at.blocks * kL) * kL, 0, sizeof(I) * static_cast<size_t>(job.local));
        memset(at.ring, 0, pitch * static_cast<size_t>(job.local));
    }

    Result run() {
        const bool plain = is_plain(job, patch);
        for (int64_t y = 0; y < job.map_h; y += kRows) plain ? batch<true>(y) : batch<false>(y);
        return result();
    }
};

} // namespace
} // namespace grd::score
#endif
