#ifndef GRD_SCORE_BLUR_H
#define GRD_SCORE_BLUR_H

#include "score/score_internal.h"

#define GRD_INLINE inline __attribute__((always_inline))
#define GRD_UNROLL _Pragma("GCC unroll 32")

namespace grd::score {
namespace { /* local to each variant's file: see score_internal.h */

constexpr float kBlurA = 9.38905609893065f, kBlurB = 32.215116460186586f, kBlurC = 20.570258783483077f,
                kBlurD = -105.28266910677007f, kBlurScale = 0.0010283800844791099f;

template <class V> struct Blur {
    using F = typename V::F;
    static constexpr int kBatch = V::kLanes;

    template <class Next, class More, class Take>
    static GRD_INLINE void smooth(int64_t n, Next next, More more, Take take) {
        const F a = V::set(kBlurA), b = V::set(kBlurB), c = V::set(kBlurC), d = V::set(kBlurD);
        F l[4], y[4];
        const auto first = [&](int k, F l0) {
            const F old = V::fma(a, V::add(l[(k + 1) & 3], l[(k + 3) & 3]), V::fma(b, l[(k + 2) & 3], l[k]));
            return V::add(l0, old);
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
                const F old = V::fma(c, y[(k + 2) & 3], V::fma(d, l[k], y[k]));
                take(r + k, V::add(y0, more(r + k, old)));
                l[k] = l0, y[k] = y0;
            }
        }
    }

    static GRD_INLINE void deltas(const F *v, int64_t n, F *delta) {
        F last = v[1], step = V::sub(last, v[0]);
        smooth(
            n,
            [&](int64_t j) {
                const F v0 = v[j + 2], next = V::sub(v0, last), l = V::sub(next, step);
                step = next;
                last = v0;
                return l;
            },
            [&](int64_t, F value) { return value; }, [&](int64_t r, F value) { delta[r] = value; });
    }

    /* first pass: var = variance + bias */
    static GRD_INLINE void moments(const F *v, const F *delta, int64_t n, F bias, F *mean, F *var) {
        const F scale = V::set(kBlurScale);
        F last = v[1], step = V::mul(V::sub(last, v[0]), V::add(last, v[0]));
        smooth(
            n,
            [&](int64_t j) {
                const F v0 = v[j + 2], next = V::mul(V::sub(v0, last), V::add(v0, last)), l = V::sub(next, step);
                step = next;
                last = v0;
                return l;
            },
            [&](int64_t r, F value) {
                const F center = v[r + kReach], m = V::fma(scale, delta[r], center);
                mean[r] = m;
                return V::fnma(delta[r], V::add(center, m), value);
            },
            [&](int64_t r, F value) { var[r] = V::fma(scale, value, bias); });
    }

    static GRD_INLINE void moments_of_moments(const F *v, const F *u, const F *delta, int64_t n, F *mean, F *var) {
        const F scale = V::set(kBlurScale);
        F last = v[1], last_u = u[1], step = V::fma(V::sub(last, v[0]), V::add(last, v[0]), V::sub(last_u, u[0]));
        smooth(
            n,
            [&](int64_t j) {
                const F v0 = v[j + 2], u0 = u[j + 2], next = V::fma(V::sub(v0, last), V::add(v0, last), V::sub(u0, last_u)),
                        l = V::sub(next, step);
                step = next;
                last = v0, last_u = u0;
                return l;
            },
            [&](int64_t r, F value) {
                const F center = v[r + kReach], m = V::fma(scale, delta[r], center);
                mean[r] = m;
                return V::fnma(delta[r], V::add(center, m), value);
            },
            [&](int64_t r, F value) { var[r] = V::fma(scale, value, u[r + kReach]); });
    }

    /* v_s with 2 C2 in it */
    static GRD_INLINE F half_distance(F m_s, F m_d, F v_s, F v_d, F center_s, F center_d) {
        const F c1 = V::set(static_cast<float>(2 * kC1));
        const F s = V::add(m_s, center_s), d = V::add(m_d, center_d), d2 = V::mul(d, d), s2 = V::fma(s, s, c1);
        const F den2 = V::add(v_s, v_d);
        const F num = V::fma(d2, den2, V::mul(v_d, V::sub(s2, d2)));
        return V::div(num, V::mul(V::add(s2, d2), den2));
    }
};

} // namespace
} // namespace grd::score
#endif
