/* score_fused.h - phi, phi_local and the heatmap in one pass over a patch, for any vector type.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A variant defines a vector traits type V (see score_avx2.cpp) and instantiates run_fused<V>. Gaussian
 * window only; see score_scalar.cpp for the formula and for the box window.
 *
 * Work goes by batches of kBatch rows of the distance map, kBatch being the lanes of a vector:
 *   take rows   each new input row once: heatmap, range, s and d
 *   columns     means and variances of one vector of columns along y, transposed: lanes are rows now
 *   rows        means and variances along x, then the distance formula
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

/* s is summed at this scale, so that pixels beyond 2^47 count as Inf: squares of them could leave FP32 where
 * no check looks. */
constexpr float kGuardScale = 1.2089258196146292e24f; /* 2^80 */

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

template <class V> class Fused {
    using F = typename V::F;
    using I = typename V::I;
    using B = Blur<V>;
    static constexpr int kL = V::kLanes;
    static constexpr int kBatch = B::kBatch, kRows = B::kRows, kSpan = B::kSpan, kKeep = B::kKeep;
    static constexpr int kHeld = kRows + V::kSlack * kBatch;  /* input rows held before they are moved up */
    static constexpr int kChunk = V::kChunk * kL;             /* columns between the two blurs at a time */

    /* Arrays of vectors are declared by their elements; each begins on a kAlign boundary. */
    struct Layout {
        int64_t blocks;   /* vectors that cover a row of the input */
        float *centers;   /* patch means of s and d: c x 2 */
        float *residual;  /* |d| summed over channels so far, where c > 1: blocks x kRows vectors */
        float *input;     /* s and d of the rows in use, block by block: c x blocks x 2 x kHeld vectors */
        float *window;    /* columns of the four maps, see distance_rows: 2 x kMaps x kSpan vectors */
        float *distance;  /* columns of the batch, summed over channels so far: map_w vectors */
        int32_t *history; /* the same in fixed point, after `local` vectors of 0 */
        int32_t *ring;    /* sums along x of the last `local` rows of the map */
        int32_t *columns; /* sums of the rows in `ring` */
    };

    static size_t lay_out(const Job &job, void *base, Layout *out) {
        Arena arena(base);
        const int64_t blocks = out->blocks = (job.w + kL - 1) / kL, pitch = blocks * kL;
        const int64_t local = job.want_local ? job.local : 0;
        out->centers = arena.take<float>(job.c * 2);
        out->residual = arena.take<float>(job.c > 1 ? kRows * pitch : 0);
        out->input = arena.take<float>(job.c * 2 * kHeld * pitch);
        out->window = arena.take<float>(2 * kMaps * kSpan * kL);
        out->distance = arena.take<float>(pitch * kL);
        out->history = arena.take<int32_t>((local + pitch) * kL);
        out->ring = arena.take<int32_t>(local * pitch);
        out->columns = arena.take<int32_t>(pitch);
        return arena.used();
    }

    const Job &job;
    const Patch &patch;
    Layout at;
    FixedPoint fixed;
    int64_t held_from = 0, held_to = 0; /* input rows in at.input */
    int64_t phi_sum = 0;
    F residual_min, residual_max;
    F pixel_guard, distance_guard; /* running sums, only because NaN and Inf stay in them */
    I local_max;

    /* ---------------------------------------------------------------------------------- take rows */

    /* Means of s and d over a grid of at most 16 x 16 pixels: any value near the patch's level will do. */
    void find_centers() const {
        const int64_t step_y = (job.h + 15) / 16, step_x = (job.w + 15) / 16;
        for (int64_t c = 0; c < job.c; c++) {
            double s = 0, d = 0, count = 0;
            for (int64_t y = 0; y < job.h; y += step_y) {
                for (int64_t x = 0; x < job.w; x += step_x) {
                    const double p = load_float(pixel_at(patch.x, c, y, x));
                    const double q = load_float(pixel_at(patch.x_hat, c, y, x));
                    s += p + q;
                    d += p - q;
                    count++;
                }
            }
            at.centers[2 * c] = static_cast<float>(s / count);
            at.centers[2 * c + 1] = static_cast<float>(d / count);
        }
    }

    /* Where block b of the input begins. The last one overlaps the one before, so that nothing is read or
     * written past a row of the caller's. Needs w >= kL. */
    int64_t block_x(int64_t b) const { return (b + 1) * kL <= job.w ? b * kL : job.w - kL; }

    float *input_of(int64_t c, int64_t block, int map, int64_t row) const {
        return at.input + (((c * at.blocks + block) * 2 + map) * kHeld + row) * kL;
    }

    /* kL pixels of a row: in place, or one by one into `gathered`. */
    static GRD_INLINE F load_pixels(const char *from, int64_t stride_x, float *gathered) {
        if (stride_x == sizeof(float)) return V::load(from);
        for (int i = 0; i < kL; i++) gathered[i] = load_float(from + i * stride_x);
        return V::load(gathered);
    }
    static GRD_INLINE void store_pixels(char *to, int64_t stride_x, F value) {
        if (stride_x == sizeof(float)) return V::store(to, value);
        float values[kL];
        V::store(values, value);
        for (int i = 0; i < kL; i++) store_float(to + i * stride_x, values[i]);
    }

    /* The common patch: one channel, every row dense. */
    bool is_plain() const {
        const int64_t dense = sizeof(float);
        return job.c == 1 && patch.x.stride_x == dense && patch.x_hat.stride_x == dense &&
               (!patch.heatmap || patch.heatmap_stride_x == dense);
    }

    /* Rows [held_to, held_to + count) of a block: s and d go to `input`, the mean of |d| over channels to the
     * heatmap and into its range. Past the patch the last row repeats: what comes of it is thrown away, it
     * only has to be defined. kPlain: is_plain(), known at compile time. */
    template <bool kPlain> GRD_INLINE void take_block(int64_t c, int64_t b, int64_t count) {
        const int64_t dense = sizeof(float), x = block_x(b), row = held_to - held_from;
        const Image &view = patch.x, &view_hat = patch.x_hat;
        const bool first_channel = kPlain || c == 0, last_channel = kPlain || c + 1 == job.c;
        const int64_t p_step = kPlain ? dense : view.stride_x, q_step = kPlain ? dense : view_hat.stride_x;
        const int64_t heat_step = kPlain || !patch.heatmap ? dense : patch.heatmap_stride_x;
        const int64_t p_row = view.stride_y, q_row = view_hat.stride_y;
        const char *p = pixel_at(view, c, held_to, x), *q = pixel_at(view_hat, c, held_to, x);
        float gathered[kL];
        char *heat = reinterpret_cast<char *>(gathered); /* where a heatmap that is not wanted goes */
        int64_t heat_row = 0;
        if (patch.heatmap) {
            heat_row = patch.heatmap_stride_y;
            heat = patch.heatmap + held_to * heat_row + x * patch.heatmap_stride_x;
        }
        const F center_s = V::set(at.centers[2 * c]), center_d = V::set(at.centers[2 * c + 1]);
        const F share = V::set(1.0f / static_cast<float>(job.c));
        float *s_out = input_of(c, b, 0, row), *d_out = input_of(c, b, 1, row);
        float *so_far = at.residual + (kPlain ? 0 : b * kRows * kL);
        F least = residual_min, largest = residual_max, guard = pixel_guard;
        const F scale = V::set(kGuardScale);
        const int64_t inside = held_to + count < job.h ? count : job.h - held_to;
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < count; i++, s_out += kL, d_out += kL) {
            const F value = load_pixels(p, p_step, gathered), value_hat = load_pixels(q, q_step, gathered);
            const F s = V::add(value, value_hat), d = V::sub(value, value_hat);
            V::store(s_out, V::sub(s, center_s));
            V::store(d_out, V::sub(d, center_d));
            guard = V::fma(s, scale, guard);
            F r = V::abs(d);
            if (!kPlain && job.c > 1) {
                if (!first_channel) r = V::add(r, V::load(so_far));
                V::store(so_far, r);
                so_far += kL;
                r = V::mul(r, share);
            }
            if (last_channel) {
                least = V::min(least, r);
                largest = V::max(largest, r);
                store_pixels(heat, heat_step, r);
            }
            if (i + 1 < inside) p += p_row, q += q_row, heat += heat_row;
        }
        residual_min = least, residual_max = largest, pixel_guard = guard;
    }

    /* Makes room for rows [first, first + kRows); returns how many of them are to be taken. */
    int64_t hold_rows(int64_t first) {
        if (first + kRows > held_from + kHeld) {
            const int64_t kept = held_to - first, up = (first - held_from) * kL;
            for (int64_t i = 0; i < job.c * at.blocks * 2; i++) {
                float *rows = at.input + i * kHeld * kL;
                for (int64_t k = 0; k < kept * kL; k += kL) V::store(rows + k, V::load(rows + up + k));
            }
            held_from = first;
        }
        return first + kRows - held_to;
    }

    /* -------------------------------------------------------------------------- columns and rows */

    /* Columns [x, x + kL) of the distance map, halved, from kRows columns of the window. */
    GRD_INLINE void distances(const F *in, int64_t x, F center_s, F center_d, F *out) {
        F s[kBatch], d[kBatch], v_s[kBatch], v_d[kBatch];
        B::blur_row(in, s, v_s);
        forget();
        B::blur_row(in + kMaps * kSpan, d, v_d);
        forget();
        F guard = distance_guard;
        GRD_UNROLL for (int i = 0; i < kBatch; i++)
            out[i] = B::half_distance(s[i], d[i], v_s[i], v_d[i], center_s, center_d, &guard);
        distance_guard = guard;
        for (int64_t i = job.map_w - x; i < kBatch; i++) out[i] = V::set(0); /* past the map */
    }

    /* What sum_block needs of a batch besides the distances. */
    struct Sums {
        int64_t first, last;     /* rows of the batch to be summed; others were, or lie past the map */
        int32_t *ring[kBatch];   /* their rows in at.ring */
        I along_x;               /* sum of the last `local` columns */
        typename V::Wide phi;    /* per row of the batch */
    };

    /* Takes columns [x, x + kL) of the finished map into the sums. Windows that begin before the map, or hang
     * over its end, hold zeros there. No distance is negative: they never exceed the nearest whole window and
     * need no special case. */
    GRD_INLINE void sum_block(const F *halves, int64_t x, F unit, Sums *sums) {
        I value[kBatch], total = V::iset(0);
        GRD_UNROLL for (int i = 0; i < kBatch; i++) {
            value[i] = V::round(V::max(V::set(0), V::mul(halves[i], unit)));
            total = V::iadd(total, value[i]);
        }
        V::add_wide(&sums->phi, total);
        if (!job.want_local) return;

        I *history = reinterpret_cast<I *>(at.history) + job.local + x;
        const I *gone = history - job.local;
        const I half = V::iset(fixed.sum_shift ? 1 << (fixed.sum_shift - 1) : 0);
        I along_x = sums->along_x, cut[kBatch], row[kBatch];
        GRD_UNROLL for (int i = 0; i < kBatch; i++) {
            history[i] = value[i];
            along_x = V::iadd(along_x, V::isub(value[i], gone[i]));
            cut[i] = V::ishift(V::iadd(along_x, half), fixed.sum_shift);
        }
        sums->along_x = along_x;
        V::itranspose(cut, row);

        I column = V::iload(at.columns + x), largest = local_max;
        const auto take = [&](int64_t r) {
            column = V::iadd(column, V::isub(row[r], V::iload(sums->ring[r] + x)));
            V::istore(sums->ring[r] + x, row[r]);
            largest = V::imax(largest, column);
        };
        if (sums->last - sums->first == kBatch) {
            GRD_UNROLL for (int r = 0; r < kBatch; r++) take(r);
        } else {
            for (int64_t r = sums->first; r < sums->last; r++) take(r);
        }
        V::istore(at.columns + x, column);
        local_max = largest;
    }

    /* The batch's rows of the map for one channel; after the last channel also the sums. Columns pass through
     * a window of kSpan vectors a map that stays in the first-level cache: the columns before the chunk that
     * its outputs need, then the chunk. Outputs lag behind by kKeep columns. */
    template <bool kPlain> void distance_rows(int64_t row, int64_t fresh_rows, int64_t c, F unit, Sums *sums) {
        const F center_s = V::set(at.centers[2 * c]), center_d = V::set(at.centers[2 * c + 1]);
        const bool last_channel = c + 1 == job.c;
        F *window = reinterpret_cast<F *>(at.window), *chunk_in = window + kKeep;
        F *so_far = reinterpret_cast<F *>(at.distance);
        for (int64_t chunk = 0; chunk < job.w; chunk += kChunk) {
            const int64_t end = chunk + kChunk < job.w ? chunk + kChunk : job.w;
            for (int64_t b = chunk / kL; b * kL < end; b++) {
                take_block<kPlain>(c, b, fresh_rows);
                F *out = chunk_in + block_x(b) - chunk;
                B::take_column(reinterpret_cast<const F *>(input_of(c, b, 0, row)), out);
                B::take_column(reinterpret_cast<const F *>(input_of(c, b, 1, row)), out + kMaps * kSpan);
            }
            const int64_t stop = end == job.w ? job.map_w : end - kKeep;
            for (int64_t x = chunk ? chunk - kKeep : 0; x < stop; x += kL) {
                F out[kBatch];
                distances(chunk_in + x - chunk, x, center_s, center_d, out);
                if (c > 0)
                    for (int i = 0; i < kBatch; i++) out[i] = V::add(out[i], so_far[x + i]);
                if (last_channel) sum_block(out, x, unit, sums);
                else
                    for (int i = 0; i < kBatch; i++) so_far[x + i] = out[i];
            }
            for (int m = 0; m < 2 * kMaps; m++)
                for (int i = 0; i < kKeep; i++) window[m * kSpan + i] = window[m * kSpan + kChunk + i];
        }
    }

    /* Rows [y, y + kBatch) of the map, as far as they exist. The last batch moves up to stay inside the patch;
     * rows that the batch before has summed are computed again, and not summed. */
    template <bool kPlain> void batch(int64_t y) {
        const int64_t first = y + kBatch <= job.map_h || job.map_h < kBatch ? y : job.map_h - kBatch;
        const int64_t fresh_rows = hold_rows(first);
        if (!job.want_phi && !job.want_local) {
            for (int64_t c = 0; c < job.c; c++)
                for (int64_t b = 0; b < at.blocks; b++) take_block<kPlain>(c, b, fresh_rows);
            held_to += fresh_rows;
            return;
        }
        Sums sums;
        sums.first = y - first;
        sums.last = job.map_h - first < kBatch ? job.map_h - first : kBatch;
        for (int r = 0; r < kBatch && job.want_local; r++)
            sums.ring[r] = at.ring + (first + r) % job.local * at.blocks * kL;
        sums.along_x = V::iset(0);
        memset(&sums.phi, 0, sizeof sums.phi);
        const F unit = V::set(static_cast<float>(ldexp(2.0, fixed.scale_bits) / static_cast<double>(job.c)));
        for (int64_t c = 0; c < job.c; c++) distance_rows<kPlain>(first - held_from, fresh_rows, c, unit, &sums);
        held_to += fresh_rows;
        int64_t phi[kL];
        memcpy(phi, &sums.phi, sizeof phi);
        for (int64_t r = sums.first; r < sums.last; r++) phi_sum += phi[r];
    }

    Result result() const {
        const Result nan = {NAN, NAN, NAN, NAN};
        float least[kL], largest[kL], guard[2][kL];
        int32_t local[kL], local_sum = 0;
        V::store(least, residual_min), V::store(largest, residual_max);
        V::store(guard[0], pixel_guard), V::store(guard[1], distance_guard);
        V::istore(local, local_max);
        Result out = {0, 0, INFINITY, 0};
        for (int i = 0; i < kL; i++) {
            if (!isfinite(guard[0][i]) || !isfinite(guard[1][i])) return nan;
            if (least[i] < out.residual_min) out.residual_min = least[i];
            if (largest[i] > out.residual_max) out.residual_max = largest[i];
            if (local[i] > local_sum) local_sum = local[i];
        }
        const double window = static_cast<double>(job.local) * static_cast<double>(job.local);
        out.phi = static_cast<float>(ldexp(static_cast<double>(phi_sum), -fixed.scale_bits) / static_cast<double>(patch.positions));
        out.phi_local = static_cast<float>(ldexp(local_sum, fixed.sum_shift - fixed.scale_bits) / window);
        return out;
    }

  public:
    static bool takes(const Job &job) {
        const bool floats = job.x_dtype == GRD_FLOAT32 && job.x_hat_dtype == GRD_FLOAT32 &&
                            job.heatmap_dtype == GRD_FLOAT32;
        return floats && !job.masked && !job.box && job.w >= kL && job.local <= kLargestLocal;
    }

    static size_t scratch_bytes(const Job &job) {
        Layout unused;
        return lay_out(job, nullptr, &unused);
    }

    Fused(const Job &job_, const Patch &patch_, void *scratch) : job(job_), patch(patch_) {
        lay_out(job, scratch, &at);
        fixed = fixed_point(job.local); /* also without phi_local: phi must not depend on what else is wanted */
        residual_min = V::set(INFINITY);
        residual_max = pixel_guard = distance_guard = V::set(0);
        local_max = V::iset(0);
        /* Sums start from 0, and vectors that reach past a row find defined values there. */
        const size_t pitch = static_cast<size_t>(at.blocks * kL) * sizeof(float);
        memset(at.window, 0, sizeof(F) * 2 * kMaps * kSpan);
        memset(at.columns, 0, pitch);
        if (!job.want_local) return;
        memset(at.history, 0, sizeof(I) * static_cast<size_t>(job.local));
        memset(at.ring, 0, pitch * static_cast<size_t>(job.local));
    }

    Result run() {
        find_centers();
        const bool plain = is_plain();
        for (int64_t y = 0; y < job.map_h; y += kBatch) plain ? batch<true>(y) : batch<false>(y);
        return result();
    }
};

} // namespace
} // namespace grd::score
#endif
