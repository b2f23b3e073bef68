/* score_avx512_blur.h - the vectors of score_avx512.cpp: transpose, blurs along both axes, distance.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The blurs are those of score_blur.h, by second differences: delta = M / w_5 and, to save multiplications, variances
 * in units of w_5, which cancels in the distance. What differs is where values are taken from. Means are sums of
 * pixels as they are: relative to the level of the patch, a dark part of a bright patch would lose bits of its own
 * level, all in one direction. Squares are taken relative to a level nearby, another one for each column and each
 * lane, v' = v - level: relative to 0, small steps of a bright part would lose bits. So
 *
 *     differences of v'^2 = D[i] (v'[i+1] + v'[i]),   var = Q' - M (2 v' + M)
 *
 * and where another level goes on, Q' changes by M times twice the difference of levels.
 */
#ifndef GRD_SCORE_AVX512_BLUR_H
#define GRD_SCORE_AVX512_BLUR_H

#if defined(__GNUC__) && !defined(__clang__) /* GCC 12 warns of what its own intrinsics leave undefined on purpose */
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "score/score_fused.h" /* GRD_INLINE, GRD_UNROLL */

namespace grd::score {
namespace { /* local to the variant's file: see score_internal.h */

using F = __m512;
using I = __m512i;

constexpr int kL = 16;
constexpr int kBatch = 32;                /* rows of the map at a time */
constexpr int kRows = kBatch + kTaps - 1; /* rows of the input they depend on */

GRD_INLINE F set(float v) { return _mm512_set1_ps(v); }
GRD_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
GRD_INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */

/* Lanes [0, count), count of any size. */
GRD_INLINE __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>(count >= kL ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

/* Each lane takes the value of the next one. */
GRD_INLINE F next_lane(F v) {
    const I bits = _mm512_castps_si512(v);
    return _mm512_castsi512_ps(_mm512_alignr_epi32(bits, bits, 1));
}

/* The first `count` vectors of the 16x16 transpose of v. */
GRD_INLINE void store_transposed(const F *v, F *out, int64_t count) {
    F a[kL], b[kL];
    GRD_UNROLL for (int i = 0; i < kL; i += 2) {
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    GRD_UNROLL for (int i = 0; i < kL; i += 4) {
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    GRD_UNROLL for (int i = 0; i < 4; i++) {
        const F c = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), d = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
        const F e = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        const F f = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
        if (i < count) out[i] = _mm512_shuffle_f32x4(c, e, 0x88);
        if (i + 4 < count) out[i + 4] = _mm512_shuffle_f32x4(d, f, 0x88);
        if (i + 8 < count) out[i + 8] = _mm512_shuffle_f32x4(c, e, 0xdd);
        if (i + 12 < count) out[i + 12] = _mm512_shuffle_f32x4(d, f, 0xdd);
    }
}

#define GRD_INLINED __attribute__((always_inline))

/* What is blurred alike: of v and of v^2. */
struct Pair {
    F value, square;
};

/* The last four second differences and what the first step of H makes of them, from k on. */
struct Rings {
    Pair l[4], y[4];

    template <F Pair::*kPart> GRD_INLINE F first_of(int k, F l0) const {
        const F sum = l[(k + 1) & 3].*kPart + l[(k + 3) & 3].*kPart;
        return l0 + fma(set(kFirstNear), sum, fma(set(kFirstCenter), l[(k + 2) & 3].*kPart, l[k].*kPart));
    }
    template <F Pair::*kPart> GRD_INLINE F second_of(int k) const {
        return fma(set(kSecondCenter), y[(k + 2) & 3].*kPart, fma(set(kSecondInput), l[k].*kPart, y[k].*kPart));
    }
    GRD_INLINE Pair first(int k, Pair l0) const {
        return {first_of<&Pair::value>(k, l0.value), first_of<&Pair::square>(k, l0.square)};
    }
    /* H but for its newest term, the first step's result. */
    GRD_INLINE Pair second(int k) const { return {second_of<&Pair::value>(k), second_of<&Pair::square>(k)}; }
    GRD_INLINE void put(int k, Pair l0, Pair y0) { l[k] = l0, y[k] = y0; }
    GRD_INLINE void rotate() {
        const Pair l0 = l[0], y0 = y[0];
        GRD_UNROLL for (int k = 0; k < 3; k++) l[k] = l[k + 1], y[k] = y[k + 1];
        l[3] = l0, y[3] = y0;
    }
};

/* Along y: means, and variances / w_5 (+ bias), of n centers, a multiple of 4, among n + 10 rows. */
template <bool kWrap, bool kBias>
GRD_INLINE void blur_column(const F *const *rows, int64_t x, int64_t n, F bias, F *mean, F *var, int64_t out_pitch,
                            int64_t span) {
    const F scale = set(kBlurScale), level = rows[n / 2 + kReach][x], level2 = level + level;
    F last = rows[1][x], last_off = last - level, step = last - rows[0][x];
    F square_step = step * (last_off + (rows[0][x] - level));
    Rings at;
    const auto next = [&](int64_t j) GRD_INLINED {
        const F now = rows[j + 2][x], off = now - level, new_step = now - last;
        const F new_square_step = new_step * (off + last_off);
        const Pair l = {new_step - step, new_square_step - square_step};
        last = now, last_off = off, step = new_step, square_step = new_square_step;
        return l;
    };
    GRD_UNROLL for (int k = 0; k < 4; k++) at.l[k] = next(k);
    GRD_UNROLL for (int k = 0; k < 4; k++) {
        const Pair l0 = next(k + 4);
        at.put(k, l0, at.first(k, l0));
    }
    for (int64_t r = 0; r < n; r += 4) {
        GRD_UNROLL for (int k = 0; k < 4; k++) {
            const Pair l0 = next(r + k + 8), y0 = at.first(k, l0), old = at.second(k);
            const F center = rows[r + k + kReach][x], delta = y0.value + old.value;
            const F m = fma(scale, delta, center), both_off = fma(scale, delta, fma(set(2), center, -level2));
            const F v = y0.square + fnma(delta, both_off, kBias ? old.square + bias : old.square);
            at.put(k, l0, y0);
            mean[(r + k) * out_pitch] = m;
            var[(r + k) * out_pitch] = v;
            if (kWrap) {
                mean[(r + k) * out_pitch + span] = next_lane(m);
                var[(r + k) * out_pitch + span] = next_lane(v);
            }
        }
    }
}

/* Along x, from means and variances / w_5 of the `span` columns of each segment, of which the first kAhead follow once
 * more, moved by one lane: take(r, m, v) receives those of the whole window. What follows a segment begins the next:
 * most of it is taken from the first values of this row, moved by one lane, instead of being computed again. */
constexpr int kAhead = 2;
template <class Take> GRD_INLINE void blur_row(const F *in_mean, const F *in_var, int64_t span, Take take) {
    const F scale = set(kBlurScale), level = in_mean[span / 2], level2 = level + level;
    const F shift = next_lane(level2) - level2;
    F last = in_mean[1], last_var = in_var[1], last_off = last - level, step = last - in_mean[0];
    F square_step = fma(scale, last_var - in_var[0], step * (last_off + (in_mean[0] - level)));
    Rings at;
    const auto next = [&](int64_t j) GRD_INLINED {
        const F now = in_mean[j + 2], now_var = in_var[j + 2], off = now - level, new_step = now - last;
        const F new_square_step = fma(scale, now_var - last_var, new_step * (off + last_off));
        const Pair l = {new_step - step, new_square_step - square_step};
        last = now, last_var = now_var, last_off = off, step = new_step, square_step = new_square_step;
        return l;
    };
    const auto wrapped = [&](Pair p) GRD_INLINED {
        const F value = next_lane(p.value);
        return Pair{value, fma(shift, value, next_lane(p.square))};
    };
    const auto finish = [&](int64_t r, int k, Pair y0, F center, F center_var) GRD_INLINED {
        const Pair old = at.second(k);
        const F delta = y0.value + old.value, m = fma(scale, delta, center);
        const F both_off = fma(scale, delta, fma(set(2), center, -level2));
        take(r, m, y0.square + fnma(delta, both_off, old.square + center_var));
    };
    const auto advance = [&](int64_t r, int k) GRD_INLINED {
        const Pair l0 = next(r + 8), y0 = at.first(k, l0);
        finish(r, k, y0, in_mean[r + kReach], in_var[r + kReach]);
        at.put(k, l0, y0);
    };
    Pair l_ahead[4], y_ahead[4];
    GRD_UNROLL for (int k = 0; k < 4; k++) at.l[k] = l_ahead[k] = next(k);
    GRD_UNROLL for (int k = 0; k < 4; k++) {
        const Pair l0 = next(k + 4);
        at.put(k, l0, y_ahead[k] = at.first(k, l0));
    }
    const int64_t tail = span - 8;
    int64_t r = 0;
    for (; r < tail % 4; r++) {
        advance(r, 0);
        at.rotate();
    }
    for (; r < tail; r += 4)
        GRD_UNROLL for (int k = 0; k < 4; k++) advance(r + k, k);
    GRD_UNROLL for (int k = 0; k < 4; k++) {
        const Pair l0 = wrapped(l_ahead[k]), y0 = at.first(k, l0);
        if (k + kReach < 8) finish(r + k, k, y0, in_mean[r + k + kReach], in_var[r + k + kReach]);
        else finish(r + k, k, y0, next_lane(in_mean[0]), next_lane(in_var[0]));
        at.put(k, l0, y0);
    }
    GRD_UNROLL for (int k = 0; k < 4; k++) {
        const Pair y0 = wrapped(y_ahead[k]);
        finish(r + 4 + k, k, y0, next_lane(in_mean[k + 1]), next_lane(in_var[k + 1]));
        at.y[k] = y0;
    }
}

/* (a + b - a b) / 2 over one denominator, from variances / w_5; v_s has 2 C2 / w_5 in it. With a = A / D1 and
 * b = B / D2 the numerator is A D2 + B (D1 - A). Where d is 0 all terms are 0. */
GRD_INLINE F half_distance(F s, F d, F v_s, F v_d) {
    const F d2 = d * d, s2 = fma(s, s, set(static_cast<float>(2 * kC1))), den2 = v_s + v_d;
    return fma(d2, den2, v_d * (s2 - d2)) / ((s2 + d2) * den2);
}

} // namespace
} // namespace grd::score
#endif
