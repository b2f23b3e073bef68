/* selection.cpp - regions and masks of interest, in integers, so that every implementation agrees.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "selection.h"

#include <algorithm>
#include <cstring>

#include "failure.h"

namespace grd {
namespace {

bool holds(const Area &area, int64_t center_y, int64_t center_x, int64_t scaled_h, int64_t scaled_w) {
    return 2 * area.y * scaled_h <= center_y && center_y < 2 * (int64_t{area.y} + area.h) * scaled_h &&
           2 * area.x * scaled_w <= center_x && center_x < 2 * (int64_t{area.x} + area.w) * scaled_w;
}

/* Index of the first region that holds the center of the patch at y, x; -1 when none does. */
int32_t region_of(const std::vector<Region> &regions, const grd_cut_params &cut, const grd_grid &grid, int64_t frame_h,
                  int64_t frame_w, int32_t y, int32_t x) {
    if (regions.empty()) return 0;
    /* Centers and areas in px of the frame, times 2 scaled_h and 2 scaled_w. */
    const int64_t center_y = (2 * int64_t{y} + cut.patch_h) * frame_h;
    const int64_t center_x = (2 * int64_t{x} + cut.patch_w) * frame_w;
    for (size_t i = 0; i < regions.size(); ++i) {
        const std::vector<Area> &areas = regions[i].areas;
        if (areas.empty()) return static_cast<int32_t>(i);
        for (const Area &area : areas)
            if (holds(area, center_y, center_x, grid.scaled_h, grid.scaled_w)) return static_cast<int32_t>(i);
    }
    return -1;
}

/* Pixel of the frame under the center of pixel i at working scale. */
int64_t pixel_under(int64_t i, int64_t n_in, int64_t n_out) { return (2 * i + 1) * n_in / (2 * n_out); }

} // namespace

void Selection::choose(const grd_cut_params &cut, const grd_grid &grid, int64_t frame_h, int64_t frame_w,
                       const std::vector<Region> &regions, const Mask &mask) {
    scaled_h_ = grid.scaled_h, scaled_w_ = grid.scaled_w;
    scale(mask);
    patches_.clear();
    masks_.clear();
    slots_.assign(static_cast<size_t>(grid.count), -1);
    for (int32_t i = 0; i < grid.count; ++i) {
        SelectedPatch patch = {i, 0, 0, 0, -1};
        grd_cut_position(&cut, &grid, i, &patch.y_px, &patch.x_px);
        patch.region = region_of(regions, cut, grid, frame_h, frame_w, patch.y_px, patch.x_px);
        if (patch.region < 0) continue;
        if (!mask_.empty() && look_at(cut, &patch) == 0) continue;
        slots_[static_cast<size_t>(i)] = count();
        patches_.push_back(patch);
    }
    if (patches_.empty())
        fail(GRD_ERR_FRAME_SIZE,
             text("the frame of %lldx%lld px has no patch to inspect, as its %d patches lie outside the mask of "
                  "interest or the regions; correct them",
                  static_cast<long long>(frame_h), static_cast<long long>(frame_w), grid.count));
}

void Selection::scale(const Mask &mask) {
    mask_.clear();
    if (mask.pixels == nullptr) return;
    mask_.resize(static_cast<size_t>(scaled_h_) * static_cast<size_t>(scaled_w_));
    columns_.resize(static_cast<size_t>(scaled_w_));
    for (int32_t x = 0; x < scaled_w_; ++x)
        columns_[static_cast<size_t>(x)] = pixel_under(x, mask.w, scaled_w_) * mask.stride_x;
    uint8_t *to = mask_.data();
    for (int32_t y = 0; y < scaled_h_; ++y) {
        const uint8_t *row = mask.pixels + pixel_under(y, mask.h, scaled_h_) * mask.stride_y;
        for (const int64_t column : columns_) *to++ = row[column] != 0;
    }
}

/* Keeps the patch's mask if it needs one; padding is of no interest. Returns how many of its pixels are. */
int64_t Selection::look_at(const grd_cut_params &cut, SelectedPatch *patch) {
    const int32_t shown_h = std::min(cut.patch_h, scaled_h_), shown_w = std::min(cut.patch_w, scaled_w_);
    const size_t w = static_cast<size_t>(cut.patch_w), px = static_cast<size_t>(cut.patch_h) * w, begin = masks_.size();
    masks_.resize(begin + px, 0);
    int64_t inside = 0;
    for (int32_t y = 0; y < shown_h; ++y) {
        const uint8_t *row = mask_.data() + (static_cast<int64_t>(patch->y_px) + y) * scaled_w_ + patch->x_px;
        std::copy(row, row + shown_w, masks_.data() + begin + static_cast<size_t>(y) * w);
        for (int32_t x = 0; x < shown_w; ++x) inside += row[x];
    }
    if (inside == 0 || inside == static_cast<int64_t>(px)) masks_.resize(begin);
    else patch->mask = static_cast<int64_t>(begin);
    return inside;
}

} // namespace grd
