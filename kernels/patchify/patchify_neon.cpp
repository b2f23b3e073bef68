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

    /* kLanes interleaved pixels, channel by channel. */
    static void load3(const uint8_t *at, I *out) {
        const uint8x8x3_t pixels = vld3_u8(at);
        for (int c = 0; c < 3; ++c) out[c] = widened(vmovl_u8(pixels.val[c]));
    }
    static void load3(const uint16_t *at, I *out) {
        const uint16x8x3_t pixels = vld3q_u16(at);
        for (int c = 0; c < 3; ++c) out[c] = widened(pixels.val[c]);
    }

    static F to_float(I v) { return {{vcvtq_f32_s32(v.val[0]), vcvtq_f32_s32(v.val[1])}}; }
    static I iadd(I a, I b) { return {{vaddq_s32(a.val[0], b.val[0]), vaddq_s32(a.val[1], b.val[1])}}; }
    static I imul(I a, int32_t b) { return {{vmulq_n_s32(a.val[0], b), vmulq_n_s32(a.val[1], b)}}; }

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
