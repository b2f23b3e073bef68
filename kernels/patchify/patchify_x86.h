/* patchify_x86.h - masks of byte shuffles that take interleaved pixels apart.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_PATCHIFY_X86_H
#define GRD_PATCHIFY_X86_H

#include <immintrin.h>

#include "patchify/patchify_loops.h"

namespace grd::patchify {
namespace { /* local to each variant's file: see patchify_kernels.h */

struct Mask {
    alignas(16) uint8_t bytes[16];
    __m128i load() const { return _mm_load_si128(reinterpret_cast<const __m128i *>(bytes)); }
};

/* Takes channels `low` and `high` (-1: 0) of four pixels of three T each as two words per pixel. The first pixel is at
 * byte `begin`; what lies outside the 16 bytes is 0. */
template <class T> constexpr Mask mask_of(int begin, int low, int high) {
    Mask mask = {};
    for (int i = 0; i < 16; ++i) {
        const int channel = i % 4 < 2 ? low : high, part = i % 2, size = sizeof(T);
        const int from = begin + (i / 4 * 3 + channel) * size + part;
        const bool shown = channel >= 0 && part < size && from >= 0 && from < 16;
        mask.bytes[i] = static_cast<uint8_t>(shown ? from : 0x80);
    }
    return mask;
}

} // namespace
} // namespace grd::patchify
#endif
