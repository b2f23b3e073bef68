/* score_neon.cpp - score_fused.h over NEON of 64-bit ARM: 4 lanes. No flags: every such CPU has it.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <arm_neon.h>

#include "score/score_fused.h"

namespace grd::score {
namespace {

/* Vector traits, see score_fused.h. Loads and stores take any alignment. */
struct Neon {
    /* Arrays of float are read as arrays of F, which only the x86 types allow by themselves. */
    typedef float32x4_t F __attribute__((may_alias));
    typedef int32x4_t I __attribute__((may_alias));
    struct Wide { /* kLanes sums of 64 bits, in order */
        int64x2_t low, high;
    };
    static constexpr int kLanes = 4;
    static constexpr int kChunk = 8, kGroups = 4; /* as avx2, not measured */

    static F load(const void *at) {
        F v;
        memcpy(&v, at, sizeof v);
        return v;
    }
    static void store(void *at, F v) { memcpy(at, &v, sizeof v); }
    static F set(float v) { return vdupq_n_f32(v); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); } /* c - a b */
    static F abs(F a) { return vabsq_f32(a); }
    /* With a NaN, in either place, these give NaN. */
    static F min(F a, F b) { return vminq_f32(a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static I round(F a) { return vcvtnq_s32_f32(a); } /* ties to even; beyond int32 the nearest, NaN 0 */

    static uint32x4_t bytes(const void *at) {
        uint32_t four;
        memcpy(&four, at, sizeof four);
        const uint8x8_t v = vreinterpret_u8_u32(vdup_n_u32(four));
        return vmovl_u16(vget_low_u16(vmovl_u8(v)));
    }
    static F load_bytes(const void *at) { /* value / 255 */
        const F v = vcvtq_f32_u32(bytes(at));
        return fma(v, set(kByteHigh), mul(v, set(kByteLow)));
    }
    static F load_halves(const void *at) {
        uint16x4_t v;
        memcpy(&v, at, sizeof v);
        return vcvt_f32_f16(vreinterpret_f16_u16(v));
    }
    static F load_mask(const void *at) { return vreinterpretq_f32_u32(vcgtq_u32(bytes(at), vdupq_n_u32(0))); }
    static F keep(F mask, F a) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(mask), vreinterpretq_u32_f32(a)));
    }
    static F pick(F mask, F a, F b) { return vbslq_f32(vreinterpretq_u32_f32(mask), a, b); } /* a where it is set */
    static void store_halves(void *at, F v) {
        const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(v));
        memcpy(at, &halves, sizeof halves);
    }
    static void store_bytes(void *at, F v) { /* at most 255, also of NaN */
        const uint16x4_t words = vmovn_u32(vcvtnq_u32_f32(vminnmq_f32(v, set(255))));
        const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
        memcpy(at, &four, sizeof four);
    }

    /* The 4x4 transpose of in[0..3]. */
    static GRD_INLINE void transpose(const F *in, F *out) {
        const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(in[0], in[1]));
        const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(in[0], in[1]));
        const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(in[2], in[3]));
        const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(in[2], in[3]));
        out[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
        out[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
        out[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
        out[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
    }

    static GRD_INLINE void itranspose(const I *in, I *out) {
        transpose(reinterpret_cast<const F *>(in), reinterpret_cast<F *>(out));
    }

    static void add_wide(Wide *sum, I v) {
        sum->low = vaddw_s32(sum->low, vget_low_s32(v));
        sum->high = vaddw_high_s32(sum->high, v);
    }

    static I iload(const int32_t *at) { return vld1q_s32(at); }
    static void istore(int32_t *at, I v) { vst1q_s32(at, v); }
    static I iset(int32_t v) { return vdupq_n_s32(v); }
    /* Unsigned inside: of patches with NaN or Inf the sums may wrap. */
    static uint32x4_t bits(I a) { return vreinterpretq_u32_s32(a); }
    static I signless(uint32x4_t a) { return vreinterpretq_s32_u32(a); }
    static I iadd(I a, I b) { return signless(vaddq_u32(bits(a), bits(b))); }
    static I isub(I a, I b) { return signless(vsubq_u32(bits(a), bits(b))); }
    static I imax(I a, I b) { return vmaxq_s32(a, b); }
    static I ishift(I a, I by) { return vshlq_s32(a, vnegq_s32(by)); } /* to the right */
};

bool takes(const Job &job) { return Fused<Neon>::takes(job); }
size_t scratch_bytes(const Job &job) { return Fused<Neon>::scratch_bytes(job); }
Result run(const Job &job, const Patch &patch, void *scratch) { return Fused<Neon>(job, patch, scratch).run(); }

} // namespace

const Variant variant_neon = {takes, scratch_bytes, run};

} // namespace grd::score
