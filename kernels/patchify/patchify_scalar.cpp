/* patchify_scalar.cpp - the definition in C++, one pixel at a time.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Kept scalar by the pragma, so that it stays the plain baseline whatever the compiler learns. */
#pragma GCC optimize("no-tree-vectorize", "no-tree-slp-vectorize")

#include "patchify/patchify_loops.h"

namespace grd::patchify {
namespace {

template <class T> void convert(const Format &format, const T *row, int64_t w, uint8_t *out, int64_t plane_bytes) {
    with_sink(format, [&](const auto &sink) {
        if (format.c_in == format.c_out && (format.c_in == 1 || format.interleaved))
            store_values(sink, row, 0, w * format.c_in, out);
        else if (format.c_out == 1) store_grey(sink, row, 0, w, out);
        else store_planes(sink, row, 0, w, out, plane_bytes);
    });
}

void store_line(const Format &format, const float *line, int64_t n, uint8_t *out) {
    with_sink(format, [&](const auto &sink) { store_values(sink, line, 0, n, out); });
}

} // namespace

const Kernels kernels_scalar = {{convert<uint8_t>, add_row<uint8_t>, weigh_row<uint8_t>},
                                {convert<uint16_t>, add_row<uint16_t>, weigh_row<uint16_t>},
                                store_line,
                                add_sums,
                                split_line,
                                shrink_line,
                                add_values,
                                divide};

} // namespace grd::patchify
