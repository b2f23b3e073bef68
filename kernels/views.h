/* views.h - elements and strides of views. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_VIEWS_H
#define GRD_VIEWS_H

#include "grd_edge.h"

namespace grd {

static inline int64_t dtype_bytes(int32_t dtype) {
    return dtype == GRD_FLOAT32 ? 4 : dtype == GRD_UINT8 || dtype == GRD_INT8 ? 1 : 2;
}

/* |stride| (extent - 1) added to *reach; false when the sum leaves 62 bits. */
static inline bool add_reach(int64_t stride, int64_t extent, int64_t *reach) {
    int64_t span;
    if (stride == INT64_MIN) return false;
    if (__builtin_mul_overflow(stride < 0 ? -stride : stride, extent - 1, &span)) return false;
    return !__builtin_add_overflow(*reach, span, reach) && *reach < INT64_MAX / 2;
}

/* Strides of a view, with the dense ones written out. Refused are offsets that leave 62 bits and, in outputs,
 * pixels that overlap their neighbors. */
static inline grd_status strides_of(const grd_view &view, bool is_output, int64_t *out) {
    const int64_t pixel = dtype_bytes(view.dtype);
    bool dense = true;
    for (int64_t stride : view.stride_bytes) dense = dense && stride == 0;
    int64_t step = pixel, reach = 0;
    for (int axis = 3; axis >= 0; axis--) {
        out[axis] = dense ? step : view.stride_bytes[axis];
        if (dense && __builtin_mul_overflow(step, view.extent[axis], &step)) return GRD_ERR_SHAPE;
        if (!add_reach(out[axis], view.extent[axis], &reach)) return dense ? GRD_ERR_SHAPE : GRD_ERR_STRIDE;
        const bool overlaps = view.extent[axis] > 1 && out[axis] > -pixel && out[axis] < pixel;
        if (is_output && overlaps) return GRD_ERR_STRIDE;
    }
    return GRD_OK;
}

} // namespace grd
#endif
