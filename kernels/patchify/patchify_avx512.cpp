/* patchify_avx512.cpp - patchify_vector.h over AVX-512: 16 lanes. Compiled with -mavx512f -mavx512bw -mavx512vl
 * -mavx512dq.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "patchify/patchify_vector.h"

namespace grd::patchify {
namespace {

/* Vector traits, see patchify_vector.h. Loads and stores take any alignment. */
struct Avx512 {
    using F = __m512;
    using I = __m512i; /* int32 */
    static constexpr int kLanes = 16;

    static __m128i quarter(const void *at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }
    static __m256i half(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }

    static I load(const uint8_t *at) { return _mm512_cvtepu8_epi32(quarter(at)); }
    static I load(const uint16_t *at) { return _mm512_cvtepu16_epi32(half(at)); }
    static F load(const float *at) { return _mm512_loadu_ps(at); }

    /* kLanes interleaved pixels, channel by channel. A quarter of a vector takes four pixels. */
    static void load3(const uint8_t *at, I *out) {
        const I bytes = _mm512_inserti32x4(_mm512_castsi256_si512(half(at)), quarter(at + 32), 2);
        const I index = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 11);
        const I pixels = _mm512_permutexvar_epi32(index, bytes);
        const I first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1));
        out[0] = _mm512_shuffle_epi8(pixels, first);
        out[1] = _mm512_shuffle_epi8(pixels, _mm512_add_epi32(first, _mm512_set1_epi32(1)));
        out[2] = _mm512_shuffle_epi8(pixels, _mm512_add_epi32(first, _mm512_set1_epi32(2)));
    }
    /* Four pixels are twelve words: a has words 0..7 of each four, b words 4..11. */
    static void load3(const uint16_t *at, I *out) {
        const I low = _mm512_loadu_si512(at), high = _mm512_castsi256_si512(half(at + 32));
        const I index = _mm512_setr_epi32(0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21);
        const I a = _mm512_permutex2var_epi32(low, index, high);
        const I b = _mm512_permutex2var_epi32(low, _mm512_add_epi32(index, _mm512_set1_epi32(2)), high);
        out[0] = _mm512_or_si512(words(a, 0, 3, 6, -1), words(b, -1, -1, -1, 5));
        out[1] = _mm512_or_si512(words(a, 1, 4, 7, -1), words(b, -1, -1, -1, 6));
        out[2] = _mm512_or_si512(words(a, 2, 5, -1, -1), words(b, -1, -1, 4, 7));
    }
    /* Words of each quarter as int32; -1: 0. */
    static I words(I v, int w0, int w1, int w2, int w3) {
        return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi32(pair(w0), pair(w1), pair(w2), pair(w3))));
    }
    static int pair(int word) { return word < 0 ? -1 : -65536 + (2 * word + 1) * 256 + 2 * word; }

    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
    static I imul(I a, int32_t b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }

    static F set(float v) { return _mm512_set1_ps(v); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }

    static void store(uint8_t *at, F v) { _mm512_storeu_ps(at, v); }
    static void store_halves(uint8_t *at, F v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    /* To the nearest integer, ties to even, as int8. */
    static void store_rounded(uint8_t *at, F v) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(at), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
    }
};

} // namespace

const Kernels kernels_avx512 = vector_kernels<Avx512>();

} // namespace grd::patchify
