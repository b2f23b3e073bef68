/* score_map.h - the largest value of a map that a graph yields. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source: grd_edge/heads.py, the readable definition. */
#ifndef GRD_SCORE_MAP_H
#define GRD_SCORE_MAP_H

#include <cstdint>

namespace grd {

/* NaN when any value is. count >= 1. */
float largest_value(const float *values, int64_t count);

/* The same of the values whose mask is not 0, of which there is one; the others become 0. */
float largest_inside(float *values, const uint8_t *mask, int64_t count);

} // namespace grd
#endif
