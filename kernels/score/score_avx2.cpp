/* score_avx2.cpp - score_fused.h over AVX2 and FMA: 8 lanes. Compiled with -mavx2 -mfma.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <immintrin.h>

#include "score/score_fused.h"

namespace grd::score {
namespace {

/* Vector traits, see score_fused.h. Loads and stores take any alignment. */
struct Avx2 {
    using F = __m256;
    using I = __m256i;
    struct Wide { /* kLanes sums of 64 bits, in order */
        __m256i low, high;
    };
    static constexpr int kLanes = 8;
    #ifndef KC
#define KC 8
#define KG 4
#endif
    static constexpr int kChunk = KC, kGroups = KG; /* measured: kernels/README.md */

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

bool takes(const Job &job) { return Fused<Avx2>::takes(job); }
size_t scratch_bytes(const Job &job) { return Fused<Avx2>::scratch_bytes(job); }
Result run(const Job &job, const Patch &patch, void *scratch) { return Fused<Avx2>(job, patch, scratch).run(); }

} // namespace

const Variant variant_avx2 = {takes, scratch_bytes, run};

} // namespace grd::score
