/* batches.h - how patches are shared out to engine calls. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BATCHES_H
#define GRD_BATCHES_H

#include <cstdint>

namespace grd {

/* Size of the next batch when so many patches are left. Sizes are nearly equal: 17 patches at a limit of 16 are 9 and 8,
 * not 16 and 1, which a CPU finishes sooner and which needs no more than two sizes for any frame. */
inline int32_t next_batch(int32_t left, int32_t limit) {
    const int32_t batches = (left + limit - 1) / limit;
    return (left + batches - 1) / batches;
}

} // namespace grd
#endif
