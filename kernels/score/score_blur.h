/* score_blur.h - the 11x11 Gaussian mean and variance of s and d, and the distance they give.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Why it holds 1e-6 in FP32. A variance is divided by 2 C2 = 0.0018: an error of 1e-8 in it costs 1e-5 in the
 * distance, and on flat parts of an image all errors have the same sign. E[q^2] - E[q]^2 is off by more than
 * that even with q taken relative to the patch mean. Therefore no square of a value is ever blurred. With
 * D[i] = v[i+1] - v[i], a blur is its center plus weighted differences (summation by parts):
 *
 *     mean[i] = v[i] + M,   M = sum_{k=0..4} W[k] (D[i+k] - D[i-1-k]),   W[k] = w[k+1] + ... + w[5]
 *
 * and the same for v^2, whose differences are D[i] (v[i+1] + v[i]) without a square, gives the variance around
 * the center value:
 *
 *     E[i] = D[i] (v[i+1] + v[i]),   Q = sum_{k=0..4} W[k] (E[i+k] - E[i-1-k])
 *     var[i] = Q - M (v[i] + mean[i])
 *
 * Every term is as small as the differences in the window. Where v is constant all are 0, at any level. Along
 * x, where v are the means m of columns that have variances u of their own, the variances' mean joins in:
 * E[i] = D[i] (m[i+1] + m[i]) + u[i+1] - u[i], and var[i] gains u[i]. s and d are still taken relative to
 * their patch means (added back where the formula needs m_s and m_d), which halves what is left of the error.
 */
#ifndef GRD_SCORE_BLUR_H
#define GRD_SCORE_BLUR_H

#include "score/score_internal.h"

#define GRD_INLINE inline __attribute__((always_inline))
#define GRD_UNROLL _Pragma("GCC unroll 32")

namespace grd::score {
namespace { /* local to each variant's file: see score_internal.h */

/* Forgets what the compiler knows of memory. Blurs need all registers; between two of them this keeps it from
 * holding (that is, spilling) values of the first that the second can load again. Worth 10 %. */
GRD_INLINE void forget() { asm volatile("" ::: "memory"); }

/* W[k]. Source: partial sums of kGaussian, rounded from 40 digits. */
constexpr float kTailWeights[kReach] = {0.3669941375691028f, 0.15398859985784913f, 0.04462791034814912f,
                                        0.008627138219718293f, 0.0010283800844791099f};

/* What the window holds of each column, for s and then for d. */
enum Map { kMean, kVar, kStep, kSquareStep, kMaps };

template <class V> struct Blur {
    using F = typename V::F;
    static constexpr int kBatch = V::kLanes;
    static constexpr int kRows = kBatch + kTaps - 1; /* vectors that kBatch results depend on */

    /* The window: vectors of columns between the blur along y and the blur along x. kKeep old ones, at least
     * the 10 that the next results need and whole vectors of the input, then a chunk, then room for the last
     * results to read past the patch. */
    static constexpr int kKeep = (kTaps - 1 + kBatch - 1) / kBatch * kBatch;
    static constexpr int kSpan = kKeep + V::kChunk * kBatch + kBatch;

    /* Weighted sum of the differences around center r; `step` holds D from the first value on. */
    static GRD_INLINE F blur_steps(const F *step, int r) {
        const F *mid = step + r + kReach;
        F sum = V::mul(V::set(kTailWeights[4]), V::sub(mid[4], mid[-5]));
        GRD_UNROLL for (int k = 3; k >= 0; k--)
            sum = V::fma(V::set(kTailWeights[k]), V::sub(mid[k], mid[-1 - k]), sum);
        return sum;
    }

    /* Mean and variance along y of kBatch centers among kRows rows. Differences are taken when they are first
     * needed: the ten in use then stay in registers. */
    static GRD_INLINE void blur_column(const F *in, F *mean, F *var) {
        F step[kRows - 1], square_step[kRows - 1], delta[kBatch];
        GRD_UNROLL for (int i = 0; i < kRows - 1; i++) {
            step[i] = V::sub(in[i + 1], in[i]);
            const int r = i - (kTaps - 2);
            if (r < 0) continue;
            delta[r] = blur_steps(step, r);
            mean[r] = V::add(in[r + kReach], delta[r]);
        }
        forget();
        F last = in[0];
        GRD_UNROLL for (int i = 0; i < kRows - 1; i++) {
            const F next = in[i + 1];
            square_step[i] = V::mul(V::sub(next, last), V::add(next, last));
            last = next;
            const int r = i - (kTaps - 2);
            if (r < 0) continue;
            var[r] = V::fnma(delta[r], V::add(in[r + kReach], mean[r]), blur_steps(square_step, r));
        }
    }

    /* One vector of columns of the batch into the window: means and variances along y, a vector per column,
     * and the steps up to the last of these columns. */
    static GRD_INLINE void take_column(const F *in, F *out) {
        F mean[kBatch], var[kBatch], *out_mean = out + kMean * kSpan, *out_var = out + kVar * kSpan;
        blur_column(in, mean, var);
        forget();
        V::transpose(mean, out_mean);
        forget();
        V::transpose(var, out_var);
        GRD_UNROLL for (int i = -1; i < kBatch - 1; i++) {
            const F step = V::sub(out_mean[i + 1], out_mean[i]);
            const F var_step = V::sub(out_var[i + 1], out_var[i]);
            out[kStep * kSpan + i] = step;
            out[kSquareStep * kSpan + i] = V::fma(step, V::add(out_mean[i + 1], out_mean[i]), var_step);
        }
    }

    /* Mean and variance under the whole window of kBatch centers among kRows columns: the variance of the
     * columns' means and the mean of their variances, in one sum. */
    static GRD_INLINE void blur_row(const F *in, F *mean, F *var) {
        const F *in_mean = in + kMean * kSpan + kReach, *in_var = in + kVar * kSpan + kReach;
        F delta[kBatch];
        GRD_UNROLL for (int r = 0; r < kBatch; r++) {
            delta[r] = blur_steps(in + kStep * kSpan, r);
            mean[r] = V::add(in_mean[r], delta[r]);
        }
        forget();
        GRD_UNROLL for (int r = 0; r < kBatch; r++) {
            const F square = V::add(in_var[r], blur_steps(in + kSquareStep * kSpan, r));
            var[r] = V::fnma(delta[r], V::add(in_mean[r], mean[r]), square);
        }
    }

    /* (a + b - a b) / 2 over one denominator. With a = A / D1 and b = B / D2 the numerator is A D2 +
     * B (D1 - A), and D1 - A has a form that does not cancel. For images that are >= 0 all terms are, and
     * where d is 0 all terms are 0. */
    static GRD_INLINE F half_distance(F m_s, F m_d, F v_s, F v_d, F center_s, F center_d, F *guard) {
        const F c1 = V::set(static_cast<float>(2 * kC1)), c2 = V::set(static_cast<float>(2 * kC2));
        v_s = V::max(V::set(0), v_s);
        v_d = V::max(V::set(0), v_d);
        const F s = V::add(m_s, center_s), d = V::add(m_d, center_d), d2 = V::mul(d, d);
        const F d1_less_a = V::fma(s, s, V::sub(c1, d2));
        const F den1 = V::fma(s, s, V::add(c1, d2));
        const F den2 = V::add(V::add(v_s, v_d), c2);
        const F den = V::mul(den1, den2);
        const F num = V::fma(d2, den2, V::mul(v_d, d1_less_a));
        /* An overflow must not pass for a small distance: 8 den is Inf before any other product here. */
        *guard = V::fma(den, V::set(8), *guard);
        return V::div(num, den);
    }
};

} // namespace
} // namespace grd::score
#endif
