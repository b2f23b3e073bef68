/* score_avx512.cpp - score_fused.h over AVX-512: 16 lanes. Compiled with -mavx512f -mavx512vl -mavx512bw
 * -mavx512dq -mfma.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <immintrin.h>

#include "score/score_fused.h"

namespace grd::score {
namespace {

/* Vector traits, see score_fused.h. Loads and stores take any alignment. */
struct Avx512 {
    using F = __m512;
    using I = __m512i;
    struct Wide { /* kLanes sums of 64 bits, in order */
        __m512i low, high;
    };
    static constexpr int kLanes = 16;
    static constexpr int kChunk = 1, kSlack = 2;

    static F load(const void *at) { return _mm512_loadu_ps(at); }
    static void store(void *at, F v) { _mm512_storeu_ps(at, v); }
    static F set(float v) { return _mm512_set1_ps(v); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
    static F abs(F a) { return _mm512_abs_ps(a); }
    /* With a NaN these give b. */
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static I round(F a) { return _mm512_cvtps_epi32(a); }

    /* The 16x16 transpose of in[0..15]. */
    static GRD_INLINE void transpose(const F *in, F *out) {
        F a[16], b[16];
        for (int i = 0; i < 16; i += 2) {
            a[i] = _mm512_unpacklo_ps(in[i], in[i + 1]);
            a[i + 1] = _mm512_unpackhi_ps(in[i], in[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
            b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
            b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
            b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
        }
        for (int i = 0; i < 4; i++) {
            const F c = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), d = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
            const F e = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88), f = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
            out[i] = _mm512_shuffle_f32x4(c, e, 0x88);
            out[i + 8] = _mm512_shuffle_f32x4(c, e, 0xdd);
            out[i + 4] = _mm512_shuffle_f32x4(d, f, 0x88);
            out[i + 12] = _mm512_shuffle_f32x4(d, f, 0xdd);
        }
    }

    static GRD_INLINE void itranspose(const I *in, I *out) {
        transpose(reinterpret_cast<const F *>(in), reinterpret_cast<F *>(out));
    }

    static void add_wide(Wide *sum, I v) {
        sum->low = _mm512_add_epi64(sum->low, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)));
        sum->high = _mm512_add_epi64(sum->high, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1)));
    }

    static I iload(const int32_t *at) { return _mm512_loadu_si512(at); }
    static void istore(int32_t *at, I v) { _mm512_storeu_si512(at, v); }
    static I iset(int32_t v) { return _mm512_set1_epi32(v); }
    static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
    static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I imax(I a, I b) { return _mm512_max_epi32(a, b); }
    static I ishift(I a, int bits) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits)); }
};

Result run(const Job &job, const Patch &patch, void *scratch) {
    if (!Fused<Avx512>::takes(job)) return variant_scalar.run(job, patch, scratch);
    return Fused<Avx512>(job, patch, scratch).run();
}

size_t scratch_bytes(const Job &job) {
    return Fused<Avx512>::takes(job) ? Fused<Avx512>::scratch_bytes(job) : variant_scalar.scratch_bytes(job);
}

} // namespace

const Variant variant_avx512 = {scratch_bytes, run};

} // namespace grd::score
