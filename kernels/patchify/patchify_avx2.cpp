/* patchify_avx2.cpp - patchify_vector.h over AVX2: 8 lanes. Compiled with -mavx2 -mfma -mf16c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "patchify/patchify_vector.h"

namespace grd::patchify {
namespace {

/* Vector traits, see patchify_vector.h. Loads and stores take any alignment. */
struct Avx2 {
    using F = __m256;
    using I = __m256i; /* int32 */
    static constexpr int kLanes = 8;

    static __m128i half_of(const void *at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }
    static I halves(const void *low, const void *high) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(half_of(low)), half_of(high), 1);
    }

    static I load(const uint8_t *at) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(at)));
    }
    static I load(const uint16_t *at) { return _mm256_cvtepu16_epi32(half_of(at)); }
    static F load(const float *at) { return _mm256_loadu_ps(at); }

    /* kLanes interleaved pixels, channel by channel. Half a vector holds pixels 0..3, or 4..7 from the fourth byte. */
    static void load3(const uint8_t *at, I *out) {
        const I pixels = halves(at, at + 8);
        const I first = _mm256_setr_epi8(0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1, 4, -1, -1, -1, 7, -1,
                                         -1, -1, 10, -1, -1, -1, 13, -1, -1, -1);
        out[0] = _mm256_shuffle_epi8(pixels, first);
        out[1] = _mm256_shuffle_epi8(pixels, _mm256_add_epi32(first, _mm256_set1_epi32(1)));
        out[2] = _mm256_shuffle_epi8(pixels, _mm256_add_epi32(first, _mm256_set1_epi32(2)));
    }
    /* Four pixels are twelve words: a has words 0..7 of each four, b words 4..11. */
    static void load3(const uint16_t *at, I *out) {
        const I a = halves(at, at + 12), b = halves(at + 4, at + 16);
        out[0] = _mm256_or_si256(words(a, 0, 3, 6, -1), words(b, -1, -1, -1, 5));
        out[1] = _mm256_or_si256(words(a, 1, 4, 7, -1), words(b, -1, -1, -1, 6));
        out[2] = _mm256_or_si256(words(a, 2, 5, -1, -1), words(b, -1, -1, 4, 7));
    }
    /* Words of each half as int32; -1: 0. */
    static I words(I v, int w0, int w1, int w2, int w3) {
        return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi32(pair(w0), pair(w1), pair(w2), pair(w3))));
    }
    static int pair(int word) { return word < 0 ? -1 : -65536 + (2 * word + 1) * 256 + 2 * word; }

    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
    static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
    static I imul(I a, int32_t b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }

    static F set(float v) { return _mm256_set1_ps(v); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }

    static void store(uint8_t *at, F v) { _mm256_storeu_ps(reinterpret_cast<float *>(at), v); }
    static void store_halves(uint8_t *at, F v) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(at), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    /* To the nearest integer, ties to even, as int8. */
    static void store_rounded(uint8_t *at, F v) {
        const I whole = _mm256_cvtps_epi32(v);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(at), _mm_packs_epi16(words, words));
    }
};

} // namespace

const Kernels kernels_avx2 = vector_kernels<Avx2>();

} // namespace grd::patchify
