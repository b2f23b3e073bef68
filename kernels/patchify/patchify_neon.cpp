/* patchify_neon.cpp - patchify_vector.h over NEON: 8 lanes in two registers.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <arm_neon.h>

#include "patchify/patchify_vector.h"

namespace grd::patchify {
namespace {

/* Vector traits, see patchify_vector.h. Loads and stores take any alignment. */
struct Neon {
    using F = float32x4x2_t;
    using I = int32x4x2_t;
    static constexpr int kLanes = 8;

    static I widened(uint16x8_t v) {
        return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(v))), vreinterpretq_s32_u32(vmovl_high_u16(v))}};
    }
    static I load(const uint8_t *at) { return widened(vmovl_u8(vld1_u8(at))); }
    static I load(const uint16_t *at) { return widened(vld1q_u16(at)); }
    static F load(const float *at) { return {{vld1q_f32(at), vld1q_f32(at + 4)}}; }

    static uint16x8_t words(uint8x8_t v) { return vmovl_u8(v); }
    static uint16x8_t words(uint16x8_t v) { return v; }
    static uint8x8x3_t pixels(const uint8_t *at) { return vld3_u8(at); }
    static uint16x8x3_t pixels(const uint16_t *at) { return vld3q_u16(at); }

    /* kLanes interleaved pixels, channel by channel. */
    template <class T> static void load3(const T *at, I *out) {
        const auto rgb = pixels(at);
        for (int c = 0; c < 3; ++c) out[c] = widened(words(rgb.val[c]));
    }
    /* kRed R + kGreen G + kBlue B */
    template <class T> static I load_grey(const T *at) {
        const auto rgb = pixels(at);
        const uint16x8_t red = words(rgb.val[0]), green = words(rgb.val[1]), blue = words(rgb.val[2]);
        return {{weighted(vget_low_u16(red), vget_low_u16(green), vget_low_u16(blue)),
                 weighted(vget_high_u16(red), vget_high_u16(green), vget_high_u16(blue))}};
    }
    static int32x4_t weighted(uint16x4_t red, uint16x4_t green, uint16x4_t blue) {
        const uint32x4_t sum = vmlal_n_u16(vmlal_n_u16(vmull_n_u16(red, kRed), green, kGreen), blue, kBlue);
        return vreinterpretq_s32_u32(sum);
    }

    static F to_float(I v) { return {{vcvtq_f32_s32(v.val[0]), vcvtq_f32_s32(v.val[1])}}; }

    static F set(float v) { return {{vdupq_n_f32(v), vdupq_n_f32(v)}}; }
    static F mul(F a, F b) { return {{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}}; }
    static F div(F a, F b) { return {{vdivq_f32(a.val[0], b.val[0]), vdivq_f32(a.val[1], b.val[1])}}; }
    static F fma(F a, F b, F c) {
        return {{vfmaq_f32(c.val[0], a.val[0], b.val[0]), vfmaq_f32(c.val[1], a.val[1], b.val[1])}};
    }
    static F min(F a, F b) { return {{vminq_f32(a.val[0], b.val[0]), vminq_f32(a.val[1], b.val[1])}}; }

    static void store(uint8_t *at, F v) {
        vst1q_f32(reinterpret_cast<float *>(at), v.val[0]);
        vst1q_f32(reinterpret_cast<float *>(at) + 4, v.val[1]);
    }
    static void store_halves(uint8_t *at, F v) {
        const float16x8_t halves = vcvt_high_f16_f32(vcvt_f16_f32(v.val[0]), v.val[1]);
        vst1q_u8(at, vreinterpretq_u8_f16(halves));
    }
    /* To the nearest integer, ties to even, as int8. */
    static void store_rounded(uint8_t *at, F v) {
        const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(v.val[0]));
        vst1_s8(reinterpret_cast<int8_t *>(at), vqmovn_s16(vqmovn_high_s32(low, vcvtnq_s32_f32(v.val[1]))));
    }
};

} // namespace

const Kernels kernels_neon = vector_kernels<Neon>();

} // namespace grd::patchify
