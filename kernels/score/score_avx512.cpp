/* score_avx512.cpp - phi, phi_local and the heatmap in one pass, over AVX-512: 16 lanes. Compiled with -mavx512f
 * -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A row of w pixels is cut into 16 segments of span = ceil(w / 16) pixels, one per lane: vector i holds pixels i,
 * span + i, 2 span + i, ... Neighbors along x are then whole vectors, as neighbors along y are anyway; vector span + i
 * is vector i moved by one lane. Only the two maps of the input are ever transposed, and nothing is transposed back,
 * for sums over the map need no order.
 *
 * score_avx512_blur.h says how the blurs hold 1e-6 in FP32. Work goes by batches of kBatch rows of the distance map:
 *   take rows   each new input row once: heatmap, range, s and d in segments
 *   blur y      means and variances down each column, kBatch rows at a time
 *   blur x      the same along each row, then the distance formula
 *   sums        distances -> fixed point; running sums along each lane give phi and the windows of phi_local
 */
#include "score/score_avx512_blur.h"
#include "score/score_vector256.h"

namespace grd::score {
namespace {

/* Loops that need all registers are functions of their own. */
#define GRD_APART __attribute__((noinline))

constexpr int64_t kNarrowest = 160; /* measured: kernels/README.md */
static_assert((kNarrowest + kL - 1) / kL >= 8, "blur_row takes 8 vectors from the next segment");
constexpr int64_t kFlush = 32;      /* distances in fixed point whose sum stays below 2^31 */

/* Sums of 64 bits. */
GRD_INLINE I add_wide(I sum, I v) {
    const I low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v));
    return _mm512_add_epi64(_mm512_add_epi64(sum, low), _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1)));
}

class Segments {
    /* Arrays of vectors are declared by their elements; each begins on a kAlign boundary. Those with a pitch have
     * odd ones, so that a column of them does not fall into few sets of the cache. */
    struct Layout {
        int64_t span;      /* vectors that hold a row */
        int64_t in_pitch, column_pitch;
        __mmask16 *inside; /* which of the 16 pixels of a block of a segment lie in the row: span in whole vectors */
        __mmask16 *on_map; /* which lanes of a vector lie on the map: span */
        float *unwanted;   /* where a heatmap that is not wanted goes: w */
        float *residual;   /* |d| summed over channels so far, where c > 1: kRows x span vectors */
        F *input;          /* s and d of the last kRows rows, row y at y % kRows: c x kRows x in_pitch vectors */
        F *columns;        /* means and variances along y of s, then of d: 2 x kBatch x column_pitch vectors */
        F *rows;           /* the same under the window, for one row of the map: 2 x 2 x span */
        F *distance;       /* of the batch, summed over channels so far, where c > 1: kBatch x span */
        I *prefix;         /* of one row in fixed point, summed along each lane: span */
        I *ring;           /* sums along x of the last `local` rows of the map: local x span */
        I *sums;           /* sums of the rows in `ring`: span */
    };

    static size_t lay_out(const Job &job, void *base, Layout *out) {
        Arena arena(base);
        const int64_t span = out->span = (job.w + kL - 1) / kL;
        const int64_t local = job.want_local ? job.local : 0;
        out->in_pitch = 2 * span + 1;
        out->column_pitch = 2 * (span + kAhead) + 1;
        out->inside = arena.take<__mmask16>((span + kL - 1) / kL * kL);
        out->on_map = arena.take<__mmask16>(span);
        out->unwanted = arena.take<float>(job.w);
        out->residual = arena.take<float>(job.c > 1 ? kRows * span * kL : 0);
        out->input = arena.take<F>(job.c * kRows * out->in_pitch);
        out->columns = arena.take<F>(2 * kBatch * out->column_pitch);
        out->rows = arena.take<F>(2 * 2 * span);
        out->distance = arena.take<F>(job.c > 1 ? kBatch * span : 0);
        out->prefix = arena.take<I>(span);
        out->ring = arena.take<I>(local * span);
        out->sums = arena.take<I>(span);
        return arena.used();
    }

    const Job &job;
    const Patch &patch;
    Layout at;
    FixedPoint fixed;
    int64_t held_to = 0;      /* rows taken so far */
    int64_t ring_row = 0;     /* of the next row's sums in at.ring */
    int64_t window_lanes = 0; /* lanes that a phi_local window reaches back over, rounded up */
    F residual_min, residual_max;
    F pixel_guard; /* a running sum, only because NaN and Inf stay in it */
    I phi_sum, local_max;

    /* ---------------------------------------------------------------------------------- take rows */

    F *input_of(int64_t c, int64_t y) const { return at.input + (c * kRows + y % kRows) * at.in_pitch; }

    /* The pixels of `lanes`, others 0. */
    static GRD_INLINE F load_pixels(const char *from, int64_t stride_x, int32_t dtype, __mmask16 lanes) {
        if (dtype == GRD_FLOAT32 && stride_x == 4) return _mm512_maskz_loadu_ps(lanes, from);
        if (dtype == GRD_UINT8 && stride_x == 1) {
            const F v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, from)));
            return fma(v, set(kByteHigh), v * set(kByteLow));
        }
        if (dtype == GRD_FLOAT16 && stride_x == 2) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from));
        float gathered[kL] = {};
        for (int i = 0; lanes >> i; i++)
            if (lanes >> i & 1) gathered[i] = load_pixel(from + i * stride_x, dtype);
        return _mm512_loadu_ps(gathered);
    }
    /* Those of `lanes` whose pixels are of interest. */
    GRD_INLINE __mmask16 wanted_of(int64_t y, int64_t x, __mmask16 lanes) const {
        const uint8_t *from = patch.roi.data;
        if (!from) return lanes;
        const int64_t step = patch.roi.stride_x;
        from += y * patch.roi.stride_y + x * step;
        uint8_t gathered[kL] = {};
        for (int i = 0; step != 1 && lanes >> i; i++)
            if (lanes >> i & 1) gathered[i] = from[i * step];
        const __m128i v = _mm_maskz_loadu_epi8(lanes, step == 1 ? from : gathered);
        return _mm_test_epi8_mask(v, v);
    }
    GRD_INLINE void store_residuals(char *to, int64_t stride_x, __mmask16 lanes, F value) const {
        if (job.heatmap_dtype == GRD_FLOAT32 && stride_x == 4) return _mm512_mask_storeu_ps(to, lanes, value);
        if (job.heatmap_dtype == GRD_FLOAT16 && stride_x == 2)
            return _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
        if (job.heatmap_dtype == GRD_UINT8 && stride_x == 1) {
            const I whole = _mm512_cvtps_epi32(_mm512_min_ps(value * set(job.heatmap_scale), set(255)));
            return _mm_mask_storeu_epi8(to, lanes, _mm512_cvtepi32_epi8(whole));
        }
        float values[kL];
        _mm512_storeu_ps(values, value);
        for (int i = 0; lanes >> i; i++)
            if (lanes >> i & 1) store_residual(job, to + i * stride_x, values[i]);
    }

    /* Row y of channel c, the `index`th of a batch: s and d go to `input`, the mean of |d| over channels to the
     * heatmap and into its range. kPlain: is_plain(), known at compile time. */
    template <bool kPlain, bool kWhole> GRD_APART void take_row(int64_t c, int64_t y, int64_t index) {
        const bool first_channel = kPlain || c == 0, last_channel = kPlain || c + 1 == job.c;
        const char *p = pixel_at(patch.x, c, y, 0), *q = pixel_at(patch.x_hat, c, y, 0);
        char *heat = patch.heatmap ? patch.heatmap + y * patch.heatmap_stride_y : reinterpret_cast<char *>(at.unwanted);
        const int64_t dense = sizeof(float), heat_step = patch.heatmap_stride_x;
        const int64_t p_step = kPlain ? dense : patch.x.stride_x, q_step = kPlain ? dense : patch.x_hat.stride_x;
        const auto load = [&](const char *from, int64_t step, int32_t dtype, __mmask16 lanes) {
            return kPlain ? _mm512_maskz_loadu_ps(lanes, from) : load_pixels(from, step, dtype, lanes);
        };
        const F share = set(1.0f / static_cast<float>(job.c)), scale = set(kGuardScale);
        F *out = input_of(c, y);
        F least = residual_min, largest = residual_max, guard = set(0);
        for (int64_t i = 0; i < at.span; i += kL) {
            const int64_t count = kWhole || at.span - i >= kL ? kL : at.span - i;
            F v[kL];
            GRD_UNROLL for (int lane = 0; lane < kL; lane++) {
                const int64_t x = lane * at.span + i;
                const __mmask16 inside = kWhole ? 0xffff : at.inside[i + lane];
                const __mmask16 wanted = kPlain ? inside : wanted_of(y, x, inside);
                const F s = load(p + x * p_step, p_step, job.x_dtype, wanted) +
                            load(q + x * q_step, q_step, job.x_hat_dtype, wanted);
                guard = fma(s, scale, guard);
                v[lane] = s;
            }
            store_transposed(v, out + i, count);
            asm volatile("" ::: "memory"); /* 16 vectors and their transpose need all registers: no pixel is kept */
            GRD_UNROLL for (int lane = 0; lane < kL; lane++) {
                const int64_t x = lane * at.span + i;
                const __mmask16 inside = kWhole ? 0xffff : at.inside[i + lane];
                const __mmask16 wanted = kPlain ? inside : wanted_of(y, x, inside);
                const F d = load(p + x * p_step, p_step, job.x_dtype, wanted) -
                            load(q + x * q_step, q_step, job.x_hat_dtype, wanted);
                v[lane] = d;
                F r = _mm512_abs_ps(d);
                if (!kPlain && job.c > 1) {
                    float *so_far = at.residual + (index * at.span + i) * kL + lane * count;
                    if (!first_channel) r = r + _mm512_maskz_loadu_ps(inside, so_far);
                    _mm512_mask_storeu_ps(so_far, inside, r);
                    r = r * share;
                }
                if (last_channel) {
                    least = _mm512_mask_min_ps(least, wanted, least, r);
                    largest = _mm512_max_ps(largest, r);
                    if (kPlain && inside == 0xffff) _mm512_storeu_ps(heat + x * dense, r);
                    else if (kPlain) _mm512_mask_storeu_ps(heat + x * dense, inside, r);
                    else if (patch.heatmap) store_residuals(heat + x * heat_step, heat_step, inside, r);
                }
            }
            store_transposed(v, out + at.span + i, count);
        }
        residual_min = least, residual_max = largest;
        pixel_guard = fma(guard, set(kGuardUnscale), pixel_guard);
    }

    /* Holds rows [first, first + kRows), as far as they exist. */
    template <bool kPlain> void hold_rows(int64_t first) {
        const bool whole = kPlain && job.w % (kL * kL) == 0;
        const int64_t end = first + kRows < job.h ? first + kRows : job.h;
        for (int64_t c = 0; c < job.c; c++)
            for (int64_t y = held_to; y < end; y++)
                whole ? take_row<kPlain, kPlain>(c, y, y - held_to) : take_row<kPlain, false>(c, y, y - held_to);
        held_to = end;
    }

    /* -------------------------------------------------------------------------- columns and rows */

    /* Row r of the batch in `columns`: map 0 is s, 1 is d. */
    F *columns_of(int map, int64_t r) const { return at.columns + (map * kBatch + r) * at.column_pitch; }

    /* Means and variances along y of n rows of the batch; past the end of each the first kAhead ones again, moved by
     * one lane. */
    template <int kMap> GRD_APART void blur_columns(const F *const *rows, int64_t n, F bias) const {
        const int64_t pitch = at.column_pitch, x = kMap * at.span;
        F *mean = columns_of(kMap, 0), *var = mean + at.span + kAhead;
        for (int64_t i = 0; i < kAhead; i++)
            blur_column<true, kMap == 0>(rows, x + i, n, bias, mean + i, var + i, pitch, at.span);
        for (int64_t i = kAhead; i < at.span; i++)
            blur_column<false, kMap == 0>(rows, x + i, n, bias, mean + i, var + i, pitch, at.span);
    }

    /* Row r of a map to `rows`. */
    GRD_APART void blur_row_of(int map, int64_t r) const {
        const F *in = columns_of(map, r);
        F *mean = at.rows + 2 * map * at.span, *var = mean + at.span;
        blur_row(in, in + at.span + kAhead, at.span, [&](int64_t i, F m, F v) GRD_INLINED { mean[i] = m, var[i] = v; });
    }

    /* Distances of row r of the batch, from `rows`, in fixed point and summed along each lane, to `prefix`. kOne: one
     * channel. */
    template <bool kOne> GRD_APART void distances(int64_t r, int64_t c, F unit) {
        const F *s = at.rows, *var_s = s + at.span, *d = var_s + at.span, *var_d = d + at.span;
        F *so_far = at.distance + r * at.span;
        const bool last_channel = kOne || c + 1 == job.c;
        I *out = at.prefix, prefix = _mm512_setzero_si512();
        for (int64_t i = 0; i < at.span; i++) {
            F half = half_distance(s[i], d[i], var_s[i], var_d[i]);
            if (!kOne && c > 0) half = half + so_far[i];
            if (!last_channel) {
                so_far[i] = half;
                continue;
            }
            prefix = _mm512_add_epi32(prefix, _mm512_maskz_cvtps_epi32(at.on_map[i], half * unit));
            out[i] = prefix;
        }
        if (!last_channel) return;
        I before = _mm512_setzero_si512();
        for (int64_t end = kFlush; end < at.span; end += kFlush) {
            phi_sum = add_wide(phi_sum, _mm512_sub_epi32(out[end - 1], before));
            before = out[end - 1];
        }
        phi_sum = add_wide(phi_sum, _mm512_sub_epi32(prefix, before));
    }

    /* Sum of the lanes before each lane, modulo 2^32. */
    static GRD_INLINE I sum_before(I v) {
        const I zero = _mm512_setzero_si512();
        v = _mm512_alignr_epi32(v, zero, 15);
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 15));
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 14));
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 12));
        return _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 8));
    }

    /* The next row of the map, from `prefix`, into the sums of phi_local. A window's sum is the difference of two
     * prefixes `local` pixels, that is some lanes and vectors, apart. Windows that begin before the map, or hang over
     * its end, hold zeros there. No distance is negative by more than its rounding: they exceed the nearest whole
     * window by no more than that, and need no special case. */
    GRD_APART void sum_row() {
        const I before = sum_before(at.prefix[at.span - 1]);
        const I half = _mm512_set1_epi32(fixed.sum_shift ? 1 << (fixed.sum_shift - 1) : 0);
        const __m128i shift = _mm_cvtsi32_si128(fixed.sum_shift);
        const int64_t span = at.span;
        const I *const prefix = at.prefix;
        I *const ring = at.ring + ring_row * span, *const sums = at.sums;
        ring_row = ring_row + 1 < job.local ? ring_row + 1 : 0;
        I largest = local_max;
        for (int64_t lanes = window_lanes, i = 0; i < span; lanes--) {
            /* Vectors whose windows begin `lanes` lanes before. */
            const int64_t gone = lanes * span - job.local;
            const int64_t to = gone > 0 ? span - gone : span;
            const __mmask16 kept = static_cast<__mmask16>(lanes < kL ? 0xffff << lanes : 0);
            const I index = _mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(static_cast<int>(lanes)));
            const I base = _mm512_add_epi32(
                half, _mm512_sub_epi32(before, _mm512_maskz_permutexvar_epi32(kept, index, before)));
            for (; i < to; i++) {
                const I old = _mm512_maskz_permutexvar_epi32(kept, index, prefix[i + gone]);
                const I sum = _mm512_add_epi32(base, _mm512_sub_epi32(prefix[i], old));
                const I cut = _mm512_sra_epi32(sum, shift);
                const I column = _mm512_add_epi32(sums[i], _mm512_sub_epi32(cut, ring[i]));
                ring[i] = cut;
                sums[i] = column;
                largest = _mm512_max_epi32(largest, column);
            }
        }
        local_max = largest;
    }

    /* Rows [y, y + kBatch) of the map, as far as they exist. */
    template <bool kPlain> void batch(int64_t y) {
        hold_rows<kPlain>(y);
        if (!job.want_phi && !job.want_local) return;
        const int64_t count = job.map_h - y < kBatch ? job.map_h - y : kBatch;
        const int64_t whole = (count + 3) / 4 * 4;
        const F unit = set(static_cast<float>(ldexp(2.0, fixed.scale_bits) / static_cast<double>(job.c)));
        for (int64_t c = 0; c < job.c; c++) {
            const F *rows[kRows];
            for (int k = 0; k < kRows; k++) rows[k] = input_of(c, y + k < job.h ? y + k : job.h - 1);
            blur_columns<0>(rows, whole, set(static_cast<float>(2 * kC2 / kGaussian[0])));
            blur_columns<1>(rows, whole, set(0));
            blur_row_of(0, 0);
            blur_row_of(1, 0);
            for (int64_t r = 0; r < count; r++) {
                job.c == 1 ? distances<true>(r, c, unit) : distances<false>(r, c, unit);
                if (r + 1 < count) blur_row_of(0, r + 1);
                if (r + 1 < count) blur_row_of(1, r + 1);
                if (c + 1 == job.c && job.want_local) sum_row();
            }
        }
    }

    Result result() const {
        float least[kL], largest[kL], guard[kL];
        int32_t local[kL];
        int64_t phi[kL / 2], phi_total = 0;
        memcpy(least, &residual_min, sizeof least), memcpy(largest, &residual_max, sizeof largest);
        memcpy(guard, &pixel_guard, sizeof guard);
        memcpy(local, &local_max, sizeof local), memcpy(phi, &phi_sum, sizeof phi);
        for (int64_t sum : phi) phi_total += sum;
        return result_of_lanes(job, patch, fixed, kL, least, largest, guard, local, phi_total);
    }

  public:
    static size_t scratch_bytes(const Job &job) {
        Layout unused;
        return lay_out(job, nullptr, &unused);
    }

    Segments(const Job &job_, const Patch &patch_, void *scratch) : job(job_), patch(patch_) {
        lay_out(job, scratch, &at);
        fixed = fixed_point(job.local); /* also without phi_local: phi must not depend on what else is wanted */
        residual_min = set(INFINITY);
        residual_max = pixel_guard = set(0);
        phi_sum = local_max = _mm512_setzero_si512();
        for (int64_t i = 0; i < at.span; i++)
            at.on_map[i] = first_lanes((job.map_w - i + at.span - 1) / at.span);
        for (int64_t i = 0; i < at.span; i += kL) {
            for (int lane = 0; lane < kL; lane++) {
                const int64_t left = job.w - (lane * at.span + i);
                at.inside[i + lane] = first_lanes(left < at.span - i ? left : at.span - i);
            }
        }
        if (!job.want_local) return;
        window_lanes = (job.local + at.span - 1) / at.span;
        memset(at.sums, 0, sizeof(I) * static_cast<size_t>(at.span));
        memset(at.ring, 0, sizeof(I) * static_cast<size_t>(job.local * at.span));
    }

    Result run() {
        const bool plain = is_plain(job, patch);
        for (int64_t y = 0; y < job.map_h; y += kBatch) plain ? batch<true>(y) : batch<false>(y);
        return result();
    }
};

/* Of narrower patches too much is overlap of segments: they go through 256 bits, compiled for AVX-512 here. */
using Narrow = Fused<Vector256>;
bool is_wide(const Job &job) { return job.w >= kNarrowest; }

bool takes(const Job &job) { return Narrow::takes(job); }

size_t scratch_bytes(const Job &job) {
    return is_wide(job) ? Segments::scratch_bytes(job) : Narrow::scratch_bytes(job);
}

Result run(const Job &job, const Patch &patch, void *scratch) {
    return is_wide(job) ? Segments(job, patch, scratch).run() : Narrow(job, patch, scratch).run();
}

} // namespace

const Variant variant_avx512 = {takes, scratch_bytes, run};

} // namespace grd::score
