/* stitch.cpp - maps of patches back to a map of the scaled frame.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * How often a pixel is shown is a product of a count along y and a count along x, so no map of counts is kept. */
#include <cstring>

#include "patchify.h"

namespace grd {
namespace {

/* Patches of one axis that show position i. */
int32_t shown_by(int32_t i, int32_t count, int32_t stride, int32_t patch, int32_t extent, int32_t *first) {
    int32_t found = 0;
    for (int32_t k = i > patch ? (i - patch) / stride : 0; k < count; ++k) {
        const int32_t begin = position_px(k, stride, patch, extent);
        if (begin > i) break;
        if (i - begin >= patch) continue;
        if (found++ == 0) *first = k;
    }
    return found;
}

} // namespace

void stitch(const grd_cut_params &cut, const grd_grid &grid, const float *patches, const grd_view &map, float *line) {
    const int64_t patch_px = static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    const int64_t *stride = map.stride_bytes;
    const bool dense = stride[0] == 0 && stride[1] == 0 && stride[2] == 0 && stride[3] == 0;
    const int64_t stride_x = dense ? static_cast<int64_t>(sizeof(float)) : stride[3];
    const int64_t stride_y = dense ? grid.scaled_w * stride_x : stride[2];
    const int32_t shown_w = grid.scaled_w < cut.patch_w ? grid.scaled_w : cut.patch_w; /* padding is dropped */
    for (int32_t y = 0; y < grid.scaled_h; ++y) {
        int32_t row = 0;
        const int32_t rows = shown_by(y, grid.rows, cut.stride_y, cut.patch_h, grid.scaled_h, &row);
        std::memset(line, 0, static_cast<size_t>(grid.scaled_w) * sizeof(float));
        for (int32_t r = row; r < row + rows; ++r) {
            const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
            for (int32_t c = 0; c < grid.cols; ++c) {
                const float *from = patches + (static_cast<int64_t>(r) * grid.cols + c) * patch_px +
                                    static_cast<int64_t>(y - top) * cut.patch_w;
                float *to = line + position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
                for (int32_t x = 0; x < shown_w; ++x) to[x] += from[x];
            }
        }
        uint8_t *to = static_cast<uint8_t *>(map.data) + y * stride_y;
        for (int32_t x = 0; x < grid.scaled_w; ++x) {
            int32_t unused = 0;
            const int32_t cols = shown_by(x, grid.cols, cut.stride_x, cut.patch_w, grid.scaled_w, &unused);
            const float value = line[x] / (static_cast<float>(rows) * static_cast<float>(cols));
            std::memcpy(to + x * stride_x, &value, sizeof(value));
        }
    }
}

} // namespace grd
