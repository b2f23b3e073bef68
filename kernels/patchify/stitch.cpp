/* stitch.cpp - maps of patches back to a map of the scaled frame.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Some patches may be missing, so how often a pixel is shown is counted along with the sum. */
#include <cstring>

#include "patchify.h"

namespace grd {
void stitch(const grd_cut_params &cut, const grd_grid &grid, const int32_t *slots, const float *patches,
            const grd_view &map, float *line) {
    const int64_t patch_px = static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    const int64_t *stride = map.stride_bytes;
    const bool dense = stride[0] == 0 && stride[1] == 0 && stride[2] == 0 && stride[3] == 0;
    const int64_t stride_x = dense ? static_cast<int64_t>(sizeof(float)) : stride[3];
    const int64_t stride_y = dense ? grid.scaled_w * stride_x : stride[2];
    const int32_t shown_w = grid.scaled_w < cut.patch_w ? grid.scaled_w : cut.patch_w; /* padding is dropped */
    float *shown = line + grid.scaled_w;
    for (int32_t y = 0; y < grid.scaled_h; ++y) {
        std::memset(line, 0, 2 * static_cast<size_t>(grid.scaled_w) * sizeof(float));
        for (int32_t r = y > cut.patch_h ? (y - cut.patch_h) / cut.stride_y : 0; r < grid.rows; ++r) {
            const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
            if (top > y) break;
            if (y - top >= cut.patch_h) continue;
            for (int32_t c = 0; c < grid.cols; ++c) {
                const int32_t slot = slots[static_cast<int64_t>(r) * grid.cols + c];
                if (slot < 0) continue;
                const float *from = patches + slot * patch_px + static_cast<int64_t>(y - top) * cut.patch_w;
                const int32_t left = position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
                for (int32_t x = 0; x < shown_w; ++x) line[left + x] += from[x];
                for (int32_t x = 0; x < shown_w; ++x) shown[left + x] += 1.0f;
            }
        }
        uint8_t *to = static_cast<uint8_t *>(map.data) + y * stride_y;
        for (int32_t x = 0; x < grid.scaled_w; ++x) {
            const float value = line[x] / (shown[x] > 0 ? shown[x] : 1.0f);
            std::memcpy(to + x * stride_x, &value, sizeof(value));
        }
    }
}

} // namespace grd
