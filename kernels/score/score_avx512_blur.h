/* score_avx512_blur.h - the vectors of score_avx512.cpp: transpose, blurs along both axes, distance.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A blur is its center plus weighted differences, so that nothing cancels where the image is flat. With
 * D[i] = v[i+1] - v[i], E[i] = D[i] (v[i+1] + v[i]) and W[k] = w[k+1] + ... + w[5],
 *
 *     M = sum_{k=0..4} W[k] (D[i+k] - D[i-1-k]),   mean[i] = v[i] + M
 *     Q = sum_{k=0..4} W[k] (E[i+k] - E[i-1-k]),   var[i]  = Q - M (v[i] + mean[i])
 *
 * and along x, where v are means of columns that have variances u, E[i] gains u[i+1] - u[i] and var[i] gains u[i].
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
constexpr int kBatch = 8;                     /* rows of the map at a time */
constexpr int kRows = kBatch + kTaps - 1;     /* rows of the input they depend on */
constexpr int kStride = 8;                    /* vectors at a time along x */

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

/* W[k]. Source: partial sums of kGaussian, rounded from 40 digits. */
constexpr float kStepWeights[kReach] = {0.3669941375691028f, 0.15398859985784913f, 0.04462791034814912f,
                                        0.008627138219718293f, 0.0010283800844791099f};

/* Weighted sum of the differences around center r, `step` holding them from the first value on. */
GRD_INLINE F blur_steps(const F *step, int r) {
    const F *mid = step + r + kReach;
    F sum = set(kStepWeights[4]) * (mid[4] - mid[-5]);
    GRD_UNROLL for (int k = 3; k >= 0; k--) sum = fma(set(kStepWeights[k]), mid[k] - mid[-1 - k], sum);
    return sum;
}

/* Mean and variance along y of kBatch centers among kRows rows. */
template <bool kWrap>
GRD_INLINE void blur_column(const F *const *rows, int64_t x, F *mean, F *var, int64_t out_pitch, int64_t span) {
    F step[kRows - 1], square_step[kRows - 1], last = rows[0][x];
    GRD_UNROLL for (int i = 0; i < kRows - 1; i++) {
        const F next = rows[i + 1][x];
        step[i] = next - last;
        square_step[i] = step[i] * (next + last);
        last = next;
        const int r = i - (kTaps - 2);
        if (r < 0) continue;
        const F center = rows[r + kReach][x], delta = blur_steps(step, r), m = center + delta;
        const F v = fnma(delta, center + m, blur_steps(square_step, r));
        mean[r * out_pitch] = m;
        var[r * out_pitch] = v;
        if (kWrap) {
            mean[r * out_pitch + span] = next_lane(m);
            var[r * out_pitch + span] = next_lane(v);
        }
    }
}

/* Mean and variance under the whole window along one row, from the means and variances of its columns. */
GRD_INLINE void blur_row(const F *in_mean, const F *in_var, F *mean, F *var, int64_t span) {
    constexpr int kOld = kTaps - 2;
    F step[kOld + kStride], square_step[kOld + kStride], last = in_mean[0], last_var = in_var[0];
    const auto take = [&](int i, F next, F next_var) {
        step[i] = next - last;
        square_step[i] = fma(step[i], next + last, next_var - last_var);
        last = next, last_var = next_var;
    };
    GRD_UNROLL for (int i = 0; i < kOld; i++) take(i, in_mean[i + 1], in_var[i + 1]);
    for (int64_t x = 0; x < span; x += kStride) {
        GRD_UNROLL for (int r = 0; r < kStride; r++) {
            if (r == kStride / 2 && x + r >= span) return;
            take(kOld + r, in_mean[x + r + kOld + 1], in_var[x + r + kOld + 1]);
            const F center = in_mean[x + r + kReach], delta = blur_steps(step, r), m = center + delta;
            mean[x + r] = m;
            var[x + r] = fnma(delta, center + m, in_var[x + r + kReach] + blur_steps(square_step, r));
        }
        GRD_UNROLL for (int i = 0; i < kOld; i++) {
            step[i] = step[i + kStride];
            square_step[i] = square_step[i + kStride];
        }
    }
}

/* (a + b - a b) / 2 over one denominator. With a = A / D1 and b = B / D2 the numerator is A D2 + B (D1 - A), and
 * D1 - A has a form that does not cancel. An overflow must not pass for a small distance: 8 den is Inf before any other
 * product here. Lanes outside `valid` hold no position of the map. */
GRD_INLINE F half_distance(F m_s, F m_d, F v_s, F v_d, __mmask16 valid, F *guard) {
    const F c1 = set(static_cast<float>(2 * kC1)), c2 = set(static_cast<float>(2 * kC2)), zero = set(0);
    v_s = _mm512_max_ps(zero, v_s);
    v_d = _mm512_max_ps(zero, v_d);
    const F d2 = m_d * m_d;
    const F d1_less_a = fma(m_s, m_s, c1 - d2), den1 = fma(m_s, m_s, c1 + d2);
    const F den2 = v_s + v_d + c2, den = den1 * den2;
    const F num = fma(d2, den2, v_d * d1_less_a);
    *guard = _mm512_mask3_fmadd_ps(den, set(8), *guard, valid);
    return num / den;
}

} // namespace
} // namespace grd::score
#endif
