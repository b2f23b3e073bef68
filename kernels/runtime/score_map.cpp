/* score_map.cpp - the largest value of a map that a graph yields.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * In integers in the order of the values: compilers make no vectors of a maximum of floats, which NaN may spoil. */
#include "score_map.h"

#include <cstring>
#include <limits>

namespace grd {
namespace {

constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000, kLeast = ~kInfinity /* -Inf */;

/* Integer in the order of the values, which is its own inverse; NaN of either sign is beyond the infinities. */
int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & kMagnitude); }

/* Maximum of what bits(i) gives for i from 0 to count. */
template <class Bits> float largest_of(int64_t count, Bits &&bits) {
    int32_t largest = kLeast, nan = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t value = bits(i), key = ordered(value);
        largest = key > largest ? key : largest;
        nan |= (value & kMagnitude) > kInfinity;
    }
    if (nan != 0) return std::numeric_limits<float>::quiet_NaN();
    float value;
    const int32_t found = ordered(largest);
    std::memcpy(&value, &found, sizeof value);
    return value;
}

int32_t bits_of(const float *value) {
    int32_t bits;
    std::memcpy(&bits, value, sizeof bits);
    return bits;
}

} // namespace

float largest_value(const float *values, int64_t count) {
    return largest_of(count, [&](int64_t i) { return bits_of(values + i); });
}

float largest_inside(float *values, const uint8_t *mask, int64_t count) {
    const int32_t least = ordered(kLeast);
    return largest_of(count, [&](int64_t i) {
        const int32_t value = bits_of(values + i), inside = mask[i] != 0 ? -1 : 0;
        const int32_t shown = value & inside; /* 0.0 outside */
        std::memcpy(values + i, &shown, sizeof shown);
        return shown | (least & ~inside);
    });
}

} // namespace grd
