/* score_map_case.h - what the tests' backends yield where a bundle's graph scores patches itself.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_MAP_CASE_H
#define GRD_SCORE_MAP_CASE_H

#include <stddef.h>
#include <stdint.h>

#include "grd_edge.h"

/* Whether the engine yields 1 x (1 + patch_h) x patch_w. A library of the first release asks for patches. */
static inline int wants_score_map(const grd_engine_desc *desc) {
    return desc->struct_size > offsetof(grd_engine_desc, output_w) && desc->output_c == 1 &&
           desc->output_h == 1 + desc->patch_h && desc->output_w == desc->patch_w;
}

/* The map is the first channel times gain. The score, all along row 0, is no value of the map: its first one and 1/4. */
static inline void write_score_map(const float *x, float *y, int64_t h, int64_t w, float gain) {
    for (int64_t i = 0; i < w; ++i) y[i] = 0.25f + x[0] * gain;
    for (int64_t i = 0; i < h * w; ++i) y[w + i] = x[i] * gain;
}

#endif
