/* score_blur.h - the 11x11 Gaussian mean and variance of s and d, and the distance they give.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Why it holds 1e-6 in FP32. A variance is divided by 2 C2 = 0.0018: an error of 1e-8 in it costs 1e-5 in the
 * distance, and on flat parts of an image all errors have the same sign. E[q^2] - E[q]^2 is off by more than
 * that even with q taken relative to the patch mean. Therefore no square of a value is ever blurred. A symmetric
 * filter G whose weights sum to 1 is the identity plus a filter of second differences,
 *
 *     G = 1 + w_5 H L,   L = z - 2 + 1/z,   H symmetric with 9 positive taps, the outermost 1
 *
 * and L v = D[i] - D[i-1] with D[i] = v[i+1] - v[i]. Squares are taken relative to a level nearby, v' = v - level:
 * the middle value of the column, or of the stretch of the row, at hand. Their first differences are
 * D[i] (v'[i+1] + v'[i]), without a square. That gives the mean, and the variance around the center value:
 *
 *     mean = v + M,               M = w_5 H L v
 *     var  = Q' - M (2 v' + M),   Q' = w_5 H L v'^2
 *
 * Every term is as small as the differences in the window. Where v is constant all are 0, at any level. Along
 * x, where v are the means m of columns that have variances u of their own, the variances' mean joins in: the
 * differences of v'^2 become those of m'^2 + u, and var gains u. Means are those of the pixels as they are: relative
 * to a level, a dark part of a bright patch would lose bits of its own level, all in one direction; and squares
 * relative to 0 would lose the bits of small steps in a bright part (kernels/README.md has the figures).
 *
 * H takes 7 operations in place of 8 for its taps. With T_k = z^k + z^-k,
 *
 *     Y = (T_2 + a T_1 + b) l,   H l = (T_2 + c) Y + d l
 *
 * and the four constants follow from the five taps. Both steps look 4 values back, which 8 registers hold: the
 * blurs load each value once and run along columns and rows of any length.
 */
#ifndef GRD_SCORE_BLUR_H
#define GRD_SCORE_BLUR_H

#include "score/score_internal.h"

#define GRD_INLINE inline __attribute__((always_inline))
#define GRD_UNROLL _Pragma("GCC unroll 32")

namespace grd::score {
namespace { /* local to each variant's file: see score_internal.h */

/* H = h_4 (T_4 + ...), h_4 = w_5, h_3 = w_4 + 2 h_4, h_{k-1} = w_k + 2 h_k - h_{k+1} below; a = h_3 / h_4,
 * c = h_1 / h_3 - 1, b = h_2 / h_4 - c, d = h_0 / h_4 - 2 - b c. Source: kGaussian. */
constexpr float kFirstNear = 9.38905609893065f, kFirstCenter = 32.215116460186586f; /* a, b */
constexpr float kSecondCenter = 20.570258783483077f, kSecondInput = -105.28266910677007f; /* c, d */
constexpr float kBlurScale = 0.0010283800844791099f; /* w_5 */

/* Centers that share a level: with 64 a search over 100 000 patches of steps found one off by 1.7e-6, with 32 the worst
 * was 8.9e-7 from 176 px wide on (1.07e-6 once in 50 000 narrower ones), for 3 % more time. */
constexpr int64_t kStretch = 32;

template <class V> struct Blur {
    using F = typename V::F;

    /* H over n + 8 values: next(j) gives the j-th, in order. old(r, t) may add to t, which is the r-th result
     * but for its newest terms; take(r, H) receives it. n is a multiple of 4. What is newest is added last: else
     * the chain from load to store is longer than the CPU looks ahead. */
    template <class Next, class Old, class Take>
    static GRD_INLINE void smooth(int64_t n, Next next, Old old, Take take) {
        const F a = V::set(kFirstNear), b = V::set(kFirstCenter), c = V::set(kSecondCenter), d = V::set(kSecondInput);
        F l[4], y[4]; /* the last four, from k on as a ring */
        const auto first = [&](int k, F l0) {
            const F before = V::fma(a, V::add(l[(k + 1) & 3], l[(k + 3) & 3]), V::fma(b, l[(k + 2) & 3], l[k]));
            return V::add(l0, before);
        };
        GRD_UNROLL for (int k = 0; k < 4; k++) l[k] = next(k);
        GRD_UNROLL for (int k = 0; k < 4; k++) {
            const F l0 = next(k + 4);
            y[k] = first(k, l0);
            l[k] = l0;
        }
        for (int64_t r = 0; r < n; r += 4) {
            GRD_UNROLL for (int k = 0; k < 4; k++) {
                const F l0 = next(r + k + 8), y0 = first(k, l0);
                const F before = V::fma(c, y[(k + 2) & 3], V::fma(d, l[k], y[k]));
                take(r + k, V::add(y0, old(r + k, before)));
                l[k] = l0, y[k] = y0;
            }
        }
    }

    /* The level of n centers among n + 10 values. */
    static GRD_INLINE F level_of(const F *v, int64_t n) { return v[n / 2 + kReach]; }

    /* M / w_5 of n centers among n + 10 values v, center r being v[r + kReach]; and the n + 9 differences of v'^2. */
    static GRD_INLINE void blur_values(const F *v, int64_t n, F *delta, F *square_step) {
        const F level = level_of(v, n);
        F last = v[1], step = V::sub(last, v[0]), last_off = V::sub(last, level);
        square_step[0] = V::mul(step, V::add(last_off, V::sub(v[0], level)));
        const auto next = [&](int64_t j) {
            const F now = v[j + 2], off = V::sub(now, level), new_step = V::sub(now, last);
            const F second = V::sub(new_step, step);
            square_step[j + 1] = V::mul(new_step, V::add(off, last_off));
            last = now, last_off = off, step = new_step;
            return second;
        };
        smooth(n, next, [](int64_t, F before) { return before; }, [&](int64_t r, F value) { delta[r] = value; });
    }

    /* Means, and (Q' - M (2 v' + M)) / w_5, which take(r, .) receives. next_step(j): the differences of v'^2. */
    template <class Next, class Take>
    static GRD_INLINE void blur_squares(const F *v, const F *delta, int64_t n, Next next_step, F *mean, Take take) {
        const F scale = V::set(kBlurScale), level = level_of(v, n), level2 = V::add(level, level);
        F step = next_step(0);
        const auto next = [&](int64_t j) {
            const F new_step = next_step(j + 1), second = V::sub(new_step, step);
            step = new_step;
            return second;
        };
        const auto old = [&](int64_t r, F before) {
            const F center = v[r + kReach], off2 = V::sub(V::add(center, center), level2);
            mean[r] = V::fma(scale, delta[r], center);
            return V::fnma(delta[r], V::fma(scale, delta[r], off2), before);
        };
        smooth(n, next, old, take);
    }

    /* Mean and variance + bias of n centers among n + 10 values. scratch: n and n + 9 vectors. */
    static GRD_INLINE void moments(const F *v, int64_t n, F bias, F *delta, F *square_step, F *mean, F *var) {
        for (int64_t from = 0; from < n; from += kStretch) {
            const int64_t count = n - from < kStretch ? n - from : kStretch;
            const F *at = v + from;
            F *to = var + from;
            blur_values(at, count, delta, square_step);
            blur_squares(
                at, delta, count, [&](int64_t j) { return square_step[j]; }, mean + from,
                [&](int64_t r, F value) { to[r] = V::fma(V::set(kBlurScale), value, bias); });
        }
    }

    /* The same where the values are means with variances u: those of the whole window. */
    static GRD_INLINE void moments_of_moments(const F *v, const F *u, int64_t n, F *delta, F *square_step, F *mean,
                                              F *var) {
        for (int64_t from = 0; from < n; from += kStretch) {
            const int64_t count = n - from < kStretch ? n - from : kStretch;
            const F *at = v + from, *at_u = u + from;
            F *to = var + from;
            blur_values(at, count, delta, square_step);
            F last = at_u[0];
            const auto next_step = [&](int64_t j) {
                const F now = at_u[j + 1], step = V::add(V::sub(now, last), square_step[j]);
                last = now;
                return step;
            };
            blur_squares(at, delta, count, next_step, mean + from, [&](int64_t r, F value) {
                to[r] = V::fma(V::set(kBlurScale), value, at_u[r + kReach]);
            });
        }
    }

    /* (a + b - a b) / 2 over one denominator; v_s has 2 C2 in it. With a = A / D1 and b = B / D2 the numerator is
     * A D2 + B (D1 - A). Where d is 0 all terms are 0. */
    static GRD_INLINE F half_distance(F s, F d, F v_s, F v_d) {
        const F c1 = V::set(static_cast<float>(2 * kC1)), d2 = V::mul(d, d), s2 = V::fma(s, s, c1);
        const F den2 = V::add(v_s, v_d);
        const F num = V::fma(d2, den2, V::mul(v_d, V::sub(s2, d2)));
        return V::div(num, V::mul(V::add(s2, d2), den2));
    }
};

} // namespace
} // namespace grd::score
#endif
