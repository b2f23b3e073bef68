/* patchify_avx512.cpp - patchify_vector.h over AVX-512: 16 lanes. Compiled with -mavx512f -mavx512bw -mavx512vl
 * -mavx512dq.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "patchify/patchify_vector.h"
#include "patchify/patchify_x86.h"

namespace grd::patchify {
namespace {

__m128i quarter(const void *at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }
__m256i half(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }
__m512i taken(__m512i v, const Mask &mask) { return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(mask.load())); }

/* Sixteen interleaved pixels, four in each quarter. take: channels `low` and `high` as two words per pixel. */
template <class T> struct Pixels;
template <> struct Pixels<uint8_t> {
    explicit Pixels(const uint8_t *at) {
        const __m512i packed = _mm512_inserti32x4(_mm512_castsi256_si512(half(at)), quarter(at + 32), 2);
        const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 11);
        bytes = _mm512_permutexvar_epi32(index, packed);
    }
    template <int low, int high> __m512i take() const {
        static constexpr Mask mask = mask_of<uint8_t>(0, low, high);
        return taken(bytes, mask);
    }
    __m512i bytes;
};
template <> struct Pixels<uint16_t> { /* four are 24 bytes */
    explicit Pixels(const uint16_t *at) {
        const __m512i low = _mm512_loadu_si512(at), high = _mm512_castsi256_si512(half(at + 32));
        const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21);
        begin = _mm512_permutex2var_epi32(low, index, high);
        end = _mm512_permutex2var_epi32(low, _mm512_add_epi32(index, _mm512_set1_epi32(2)), high);
    }
    template <int low, int high> __m512i take() const {
        static constexpr Mask of_begin = mask_of<uint16_t>(0, low, high), of_end = mask_of<uint16_t>(-8, low, high);
        return _mm512_or_si512(taken(begin, of_begin), taken(end, of_end));
    }
    __m512i begin, end;
};

/* Vector traits, see patchify_vector.h. Loads and stores take any alignment. */
struct Avx512 {
    using F = __m512;
    using I = __m512i; /* int32 */
    static constexpr int kLanes = 16;

    static I load(const uint8_t *at) { return _mm512_cvtepu8_epi32(quarter(at)); }
    static I load(const uint16_t *at) { return _mm512_cvtepu16_epi32(half(at)); }
    static F load(const float *at) { return _mm512_loadu_ps(at); }

    /* kLanes interleaved pixels, channel by channel. */
    template <class T> static void load3(const T *at, I *out) {
        const Pixels<T> pixels(at);
        out[0] = pixels.template take<0, -1>();
        out[1] = pixels.template take<1, -1>();
        out[2] = pixels.template take<2, -1>();
    }
    /* kRed R + kGreen G + kBlue B. Products are of signed words: words of 16 bits are moved down and the sum back. */
    template <class T> static I load_grey(const T *at) {
        const Pixels<T> pixels(at);
        I red_green = pixels.template take<0, 1>(), blue = pixels.template take<2, -1>();
        if (sizeof(T) == 2) {
            red_green = _mm512_xor_si512(red_green, _mm512_set1_epi16(-32768));
            blue = _mm512_xor_si512(blue, _mm512_set1_epi16(-32768));
        }
        const I sum = _mm512_add_epi32(_mm512_madd_epi16(red_green, _mm512_set1_epi32(kGreen << 16 | kRed)),
                                       _mm512_madd_epi16(blue, _mm512_set1_epi32(kBlue)));
        return sizeof(T) == 1 ? sum : _mm512_add_epi32(sum, _mm512_set1_epi32(32768 * (kRed + kGreen + kBlue)));
    }

    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }

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
