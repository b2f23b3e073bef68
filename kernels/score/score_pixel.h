/* score_pixel.h - the arithmetic of the CUDA variant of scoring, for host and device alike.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source: docs/method.md section 5. With s = x + x^ and d = x - x^, m and V their mean and biased variance under the
 * window,
 *
 *     distance = 2 (m_d^2 (V_s + 2 C2) + V_d (m_s^2 + 2 C1)) / ((m_s^2 + m_d^2 + 2 C1) (V_s + V_d + 2 C2)),
 *
 * where nothing is subtracted. Both passes of the window give four neighboring outputs from 14 values. They are taken
 * relative to a level, the value at the center of the second output:
 *
 *     a_i = v_i - level,   M = sum w a,   mean = level + M,   V = sum w a^2 - M^2.
 *
 * The level has the weight w_2 = 0.109 (box: 1/11) at least in each of the four windows. As it adds nothing to the sums,
 * M^2 <= (1 - w_2) sum w a^2: the difference keeps a tenth of what it is taken from, whatever the image, so that V is
 * right to a few units of its own last place and never negative. In the second pass the values are means of columns
 * that have variances u of their own; a^2 + u takes the place of a^2 (law of total variance). */
#ifndef GRD_SCORE_PIXEL_H
#define GRD_SCORE_PIXEL_H

#include "cuda/portable.h"
#include "score/score_internal.h"

namespace grd::score {
namespace {

using cuda::float_of_bits;
using cuda::float_of_half;
using cuda::load_as;
using cuda::Source;
using cuda::store_as;

constexpr int kGroup = 4;                     /* outputs that share a level */
constexpr int kSpread = kGroup + kTaps - 1;   /* values that they depend on */
constexpr int kLevelAt = kReach + 1;          /* center of the second of them */

/* Distances are summed as integers of 2^-24: exact in any order, so that no split of the work changes a bit. */
constexpr int kUnitBits = 24;

/* No product leaves FP32 while |s| and |d| stay below; what is beyond scores NaN, as NaN and Inf do. */
constexpr float kLargestPixel = 536870912.0f; /* 2^29 */

/* Bits of a pixel, and its value; kType 0: the type is `dtype`, known only at run time. */
template <int kType> GRD_DEVICE uint32_t load_bits(const char *at, int dtype) {
    const int type = kType ? kType : dtype;
    if (type == GRD_FLOAT32) return load_as<uint32_t>(at);
    if (type == GRD_FLOAT16) return load_as<uint16_t>(at);
    return load_as<uint8_t>(at);
}
template <int kType> GRD_DEVICE float value_of_bits(uint32_t bits, int dtype) {
    const int type = kType ? kType : dtype;
    if (type == GRD_FLOAT32) return float_of_bits(bits);
    if (type == GRD_FLOAT16) return float_of_half(bits);
    const float byte = static_cast<float>(bits);
    return fmaf(byte, kByteHigh, byte * kByteLow); /* the rounded quotient byte / 255 */
}

/* sum of w a for four windows; a[kLevelAt] is 0 and left out. */
template <bool kBox> GRD_DEVICE void weigh(const float *a, bool has_level, float *out) {
    constexpr float w[kTaps] = {
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[0]), kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[1]),
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[2]), kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[3]),
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[4]), kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[5]),
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[6]), kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[7]),
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[8]), kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[9]),
        kBox ? 1.0f / kTaps : static_cast<float>(kGaussian[10])};
    GRD_UNROLLED for (int j = 0; j < kGroup; j++) {
        float sum = w[0] * a[j];
        GRD_UNROLLED for (int k = 1; k < kTaps; k++)
            if (has_level || j + k != kLevelAt) sum = fmaf(w[k], a[j + k], sum);
        out[j] = sum;
    }
}

/* Means and variances of four windows over 14 values v, which have variances u of their own where kSecond. */
template <bool kBox, bool kSecond>
GRD_DEVICE void moments(const float *v, const float *u, float *mean, float *variance) {
    float a[kSpread], square[kSpread];
    const float level = v[kLevelAt];
    GRD_UNROLLED for (int i = 0; i < kSpread; i++) {
        a[i] = v[i] - level;
        square[i] = kSecond ? fmaf(a[i], a[i], u[i]) : a[i] * a[i];
    }
    weigh<kBox>(a, false, mean);
    weigh<kBox>(square, kSecond, variance);
    GRD_UNROLLED for (int j = 0; j < kGroup; j++) {
        variance[j] = fmaf(-mean[j], mean[j], variance[j]);
        mean[j] = level + mean[j];
    }
}

/* Half the distance. The quotient is a reciprocal, one Newton step and a product: right to 2 units of the last place. */
GRD_DEVICE float half_distance(float s, float d, float v_s, float v_d) {
    const float d2 = d * d, s2 = fmaf(s, s, static_cast<float>(2 * kC1)), biased = v_s + static_cast<float>(2 * kC2);
    const float numerator = fmaf(d2, biased, v_d * s2), denominator = (s2 + d2) * (biased + v_d);
    const float guess = cuda::reciprocal(denominator);
    return numerator * fmaf(guess, fmaf(-denominator, guess, 1.0f), guess);
}

GRD_DEVICE void store_heat(char *at, int dtype, float scale, float value) {
    if (dtype == GRD_FLOAT32) return store_as<float>(at, value);
    if (dtype == GRD_FLOAT16) return store_as<uint16_t>(at, cuda::half_of_float(value));
    const float scaled = value * scale;
    /* Adding 2^23 rounds to an integer, ties to even. */
    const float whole = scaled < 255.0f ? (scaled + 8388608.0f) - 8388608.0f : 255.0f;
    store_as<uint8_t>(at, static_cast<uint8_t>(whole));
}

} // namespace
} // namespace grd::score
#endif
