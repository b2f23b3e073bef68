/* score_vector256.h - vectors of 256 bits for score_fused.h: AVX2 and FMA, 8 lanes.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef GRD_SCORE_VECTOR256_H
#define GRD_SCORE_VECTOR256_H

#include <immintrin.h>

#include "score/score_fused.h"

namespace grd::score {
namespace { /* local to each variant's file: see score_internal.h */

/* Vector traits, see score_fused.h. Loads and stores take any alignment. */
struct Vector256 {
    using F = __m256;
    using I = __m256i;
    struct Wide { /* kLanes sums of 64 bits, in order */
        __m256i low, high;
    };
    static constexpr int kLanes = 8;
        static constexpr int kChunk = 16, kGroups = 8; /* measured: kernels/README.md */

    static F load(const void *at) { return _mm256_loadu_ps(static_cast<const float *>(at)); }
    static void store(void *at, F v) { _mm256_storeu_ps(static_cast<float *>(at), v); }
    static F set(float v) { return _mm256_set1_ps(v); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a b */
    static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    /* With a NaN these give b. */
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static I round(F a) { return _mm256_cvtps_epi32(a); }

    static F load_bytes(const void *at) { /* value / 255 */
        const F v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(at))));
        return fma(v, set(kByteHigh), mul(v, set(kByteLow)));
    }
    static F load_halves(const void *at) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(at))); }
    static F load_mask(const void *at) {
        const I v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(at)));
        return _mm256_castsi256_ps(_mm256_cmpgt_epi32(v, _mm256_setzero_si256()));
    }
    static F keep(F mask, F a) { return _mm256_and_ps(mask, a); }
    static F pick(F mask, F a, F b) { return _mm256_blendv_ps(b, a, mask); } /* a where the mask is set */
    static void store_halves(void *at, F v) {
        _mm_storeu_si128(static_cast<__m128i *>(at), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    static void store_bytes(void *at, F v) { /* at most 255, also of NaN */
        const I whole = round(min(v, set(255)));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64(static_cast<__m128i *>(at), _mm_packus_epi16(words, words));
    }

    static F halves(const float *low, const float *high) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(low)), _mm_load_ps(high), 1);
    }
    /* The 8x8 transpose of in[0..7]. 128-bit inserts take their operand from memory without the shuffle port. */
    static GRD_INLINE void transpose(const F *in, F *out) {
        const float *f = reinterpret_cast<const float *>(in);
        F half[8];
        for (int i = 0; i < 4; i++) {
            half[i] = halves(f + 8 * i, f + 8 * i + 32);
            half[i + 4] = halves(f + 8 * i + 4, f + 8 * i + 36);
        }
        for (int h = 0; h < 8; h += 4) {
            const F *v = half + h;
            const F a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
            const F c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
            out[h] = _mm256_shuffle_ps(a, c, 0x44);
            out[h + 1] = _mm256_shuffle_ps(a, c, 0xee);
            out[h + 2] = _mm256_shuffle_ps(b, d, 0x44);
            out[h + 3] = _mm256_shuffle_ps(b, d, 0xee);
        }
    }

    static GRD_INLINE void itranspose(const I *in, I *out) {
        transpose(reinterpret_cast<const F *>(in), reinterpret_cast<F *>(out));
    }

    static void add_wide(Wide *sum, I v) {
        sum->low = _mm256_add_epi64(sum->low, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)));
        sum->high = _mm256_add_epi64(sum->high, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
    }

    static I iload(const int32_t *at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)); }
    static void istore(int32_t *at, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), v); }
    static I iset(int32_t v) { return _mm256_set1_epi32(v); }
    static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
    static I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I imax(I a, I b) { return _mm256_max_epi32(a, b); }
    static I ishift(I a, I bits) { return _mm256_srav_epi32(a, bits); }
};

} // namespace
} // namespace grd::score
#endif
