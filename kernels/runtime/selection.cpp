/* selection.cpp - regions and masks of interest, in integers, so that every implementation agrees.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "selection.h"

#include <algorithm>
#include <cstring>

#include "failure.h"

namespace grd {
namespace {

constexpr int32_t kWindow = 11; /* of SSIM */

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
                       const std::vector<Region> &regions, const Mask &mask, bool box) {
    scaled_h_ = grid.scaled_h, scaled_w_ = grid.scaled_w;
    scale(mask);
    patches_.clear();
    slots_.assign(static_cast<size_t>(grid.count), -1);
    for (int32_t i = 0; i < grid.count; ++i) {
        SelectedPatch patch = {0, 0, 0, false, 1.0};
        grd_cut_position(&cut, &grid, i, &patch.y_px, &patch.x_px);
        patch.region = region_of(regions, cut, grid, frame_h, frame_w, patch.y_px, patch.x_px);
        if (patch.region < 0) continue;
        if (!mask_.empty()) look_at(cut, box, &patch);
        if (patch.share == 0) continue;
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

/* Share and partial of a patch. A window holds a pixel of interest if, in one of its rows, the last such pixel up to
 * its right end is not left of it; of those rows only the lowest so far has to be known. */
void Selection::look_at(const grd_cut_params &cut, bool box, SelectedPatch *patch) {
    const int32_t shown_h = std::min(cut.patch_h, scaled_h_), shown_w = std::min(cut.patch_w, scaled_w_);
    const int32_t lead = box ? kWindow / 2 : 0, lost = box ? 0 : kWindow - 1;
    const int32_t map_h = cut.patch_h - lost, map_w = cut.patch_w - lost;
    const uint8_t *row = mask_.data() + static_cast<int64_t>(patch->y_px) * scaled_w_ + patch->x_px;
    constexpr int32_t kNone = -(1 << 20);
    lowest_.assign(static_cast<size_t>(map_w), kNone);
    int64_t touched = 0, inside = 0;
    int32_t next = 0; /* row that was not looked at yet */
    for (int32_t i = 0; i < map_h; ++i) {
        for (; next < shown_h && next <= i - lead + kWindow - 1; ++next, row += scaled_w_) {
            int32_t last = kNone, x = 0;
            for (int32_t j = 0; j < map_w; ++j) {
                for (; x < shown_w && x <= j - lead + kWindow - 1; ++x)
                    if (row[x] != 0) last = x;
                if (last >= j - lead) lowest_[static_cast<size_t>(j)] = next;
            }
            for (int32_t k = 0; k < shown_w; ++k) inside += row[k];
        }
        for (const int32_t lowest : lowest_) touched += lowest >= i - lead;
    }
    patch->partial = inside < static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    patch->share = static_cast<double>(touched) / (static_cast<double>(map_h) * map_w);
}

void Selection::clear_outside(const grd_cut_params &cut, int32_t i, float *patches) const {
    const SelectedPatch &patch = patches_[static_cast<size_t>(i)];
    const int32_t shown_h = std::min(cut.patch_h, scaled_h_), shown_w = std::min(cut.patch_w, scaled_w_);
    const int64_t patch_px = static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    for (int64_t plane = int64_t{i} * cut.channels; plane < (int64_t{i} + 1) * cut.channels; ++plane)
        for (int32_t y = 0; y < cut.patch_h; ++y) {
            float *to = patches + plane * patch_px + static_cast<int64_t>(y) * cut.patch_w;
            int32_t shown = 0; /* padding is of no interest */
            if (y < shown_h) {
                const uint8_t *row = mask_.data() + (static_cast<int64_t>(patch.y_px) + y) * scaled_w_ + patch.x_px;
                for (; shown < shown_w; ++shown) to[shown] = row[shown] != 0 ? to[shown] : 0.0f; /* drops NaN, too */
            }
            std::fill(to + shown, to + cut.patch_w, 0.0f);
        }
}

} // namespace grd
