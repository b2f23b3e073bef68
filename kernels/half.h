/* half.h - IEEE binary16 by hand: not every CPU and compiler of ours has the type. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_HALF_H
#define GRD_HALF_H

#include <stdint.h>
#include <string.h>

namespace grd {

static inline float float_from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    const float scaled = static_cast<float>(magnitude & 0x3ffu) * 0x1p-24f; /* of zero and subnormals */
    uint32_t bits;
    if (magnitude < 0x400u) memcpy(&bits, &scaled, sizeof bits);
    else bits = (magnitude << 13) + (magnitude < 0x7c00u ? 112u << 23 : 224u << 23);
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/* To nearest, ties to even; NaN stays NaN. */
static inline uint16_t half_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u); /* 65520 and more */
    if (magnitude < 0x38800000u) { /* below 2^-14: the sum's last bit is worth 2^-24 */
        float sum;
        memcpy(&sum, &magnitude, sizeof sum);
        sum += 0.5f;
        memcpy(&bits, &sum, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return static_cast<uint16_t>(sign | (rounded - (112u << 23)) >> 13);
}

} // namespace grd
#endif
