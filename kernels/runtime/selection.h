/* selection.h - which patches of a frame are inspected, by which region, and which of their pixels count. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source: docs/method.md, sections 6 and 7; grd_edge/regions.py is the readable definition. */
#ifndef GRD_SELECTION_H
#define GRD_SELECTION_H

#include <cstdint>
#include <vector>

#include "bundle.h"
#include "grd_edge.h"

namespace grd {

struct SelectedPatch {
    int32_t index;      /* in the grid */
    int32_t y_px, x_px; /* in the scaled frame */
    int32_t region;
    int64_t mask;       /* where its mask begins in `masks`; -1 when all of its pixels are of interest */
};

class Selection {
public:
    /* Chooses among the patches of a frame: those in a region (every one without regions, as region 0) with a pixel of
     * interest; at least one, else Failure. Memory is allocated only when a frame needs more of it than those before. */
    void choose(const grd_cut_params &cut, const grd_grid &grid, int64_t frame_h, int64_t frame_w,
                const std::vector<Region> &regions, const Mask &mask);

    int32_t count() const { return static_cast<int32_t>(patches_.size()); }
    const SelectedPatch &patch(int32_t i) const { return patches_[static_cast<size_t>(i)]; }
    /* By number in the grid: place among the chosen, -1 when not chosen. */
    const int32_t *slots() const { return slots_.data(); }
    /* Whether a patch has pixels that are not of interest. */
    bool any_mask() const { return !masks_.empty(); }
    /* Mask of patch i, dense patch_h x patch_w, 1 = of interest, and those of the patches after it; NULL when all of its
     * pixels are. */
    const uint8_t *mask(int32_t i) const {
        return patch(i).mask < 0 ? nullptr : masks_.data() + patch(i).mask;
    }

private:
    void scale(const Mask &mask);
    int64_t look_at(const grd_cut_params &cut, SelectedPatch *patch);

    std::vector<SelectedPatch> patches_;
    std::vector<int32_t> slots_;
    std::vector<uint8_t> mask_;    /* scaled_h x scaled_w, 0 or 1; empty without a mask */
    std::vector<uint8_t> masks_;   /* of the patches that need one; those after each other lie so */
    std::vector<int64_t> columns_; /* of the mask, by column of the scaled frame */
    int32_t scaled_h_ = 0, scaled_w_ = 0;
};

} // namespace grd
#endif
