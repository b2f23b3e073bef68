/* patchify_avx2.cpp - patchify_vector.h over AVX2: 8 lanes. Compiled with -mavx2 -mfma -mf16c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#include "patchify/patchify_vector.h"
#include "patchify/patchify_x86.h"

namespace grd::patchify {
namespace {

__m128i half_of(const void *at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }
__m256i halves(const void *low, const void *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(half_of(low)), half_of(high), 1);
}

/* Eight interleaved pixels, four in each half. take: channels `low` and `high` as two words per pixel. */
template <class T> struct Pixels;
template <> struct Pixels<uint8_t> {
    explicit Pixels(const uint8_t *at) : bytes(halves(at, at + 8)) {}
    template <int low, int high> __m256i take() const {
        static constexpr Mask first = mask_of<uint8_t>(0, low, high), second = mask_of<uint8_t>(4, low, high);
        return _mm256_shuffle_epi8(bytes, _mm256_set_m128i(second.load(), first.load()));
    }
    __m256i bytes;
};
template <> struct Pixels<uint16_t> { /* four are 24 bytes */
    explicit Pixels(const uint16_t *at) : begin(halves(at, at + 12)), end(halves(at + 4, at + 16)) {}
    template <int low, int high> __m256i take() const {
        static constexpr Mask of_begin = mask_of<uint16_t>(0, low, high), of_end = mask_of<uint16_t>(-8, low, high);
        return _mm256_or_si256(_mm256_shuffle_epi8(begin, _mm256_broadcastsi128_si256(of_begin.load())),
                               _mm256_shuffle_epi8(end, _mm256_broadcastsi128_si256(of_end.load())));
    }
    __m256i begin, end;
};

/* Vector traits, see patchify_vector.h. Loads and stores take any alignment. */
struct Avx2 {
    using F = __m256;
    using I = __m256i; /* int32 */
    static constexpr int kLanes = 8;

    static I load(const uint8_t *at) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(at)));
    }
    static I load(const uint16_t *at) { return _mm256_cvtepu16_epi32(half_of(at)); }
    static F load(const float *at) { return _mm256_loadu_ps(at); }

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
            red_green = _mm256_xor_si256(red_green, _mm256_set1_epi16(-32768));
            blue = _mm256_xor_si256(blue, _mm256_set1_epi16(-32768));
        }
        const I sum = _mm256_add_epi32(_mm256_madd_epi16(red_green, _mm256_set1_epi32(kGreen << 16 | kRed)),
                                       _mm256_madd_epi16(blue, _mm256_set1_epi32(kBlue)));
        return sizeof(T) == 1 ? sum : _mm256_add_epi32(sum, _mm256_set1_epi32(32768 * (kRed + kGreen + kBlue)));
    }

    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }

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
