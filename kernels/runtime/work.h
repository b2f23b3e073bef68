/* work.h - the stages that frames go through: cut, infer, score, decide. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_WORK_H
#define GRD_WORK_H

#include <chrono>
#include <vector>

#include "buffer.h"
#include "grd_edge.h"
#include "model.h"
#include "selection.h"

namespace grd {

class Stopwatch {
public:
    /* Milliseconds since the last lap. */
    double lap_ms() {
        const auto now = std::chrono::steady_clock::now();
        const double ms = std::chrono::duration<double, std::milli>(now - last_).count();
        last_ = now;
        return ms;
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/* Memory of frames of one size that share engine calls: slot i holds the patches of the i-th. What comes after the engine
 * is done frame by frame, so that there is one frame's worth of it. Every call throws Failure; memory is allocated only
 * when more of it is needed than before. */
class Work {
public:
    /* Frames are scored by these threads, whose pool stays the caller's; without this by the calling one alone. */
    void share_scoring(grd_pool *pool) { pool_ = pool; }
    /* What a frame of this size needs, by its mask of interest: which patches are inspected. roi as grd_result.roi.
     * Nothing is done when it was the same before and roi is NULL. */
    void prepare(const Model &model, const grd_view &frame, const grd_view *roi);
    /* Inspected patches of a frame. */
    int32_t count() const { return selection_.count(); }
    const grd_grid &grid() const { return grid_; }
    /* Whether the caller's outputs take what was prepared. */
    void check_result(const Model &model, const grd_result &result) const;

    /* Makes room for so many frames of the size that was prepared; heatmaps: for theirs, too. */
    void reserve(const Model &model, int32_t frames, bool heatmaps);
    void cut(const Model &model, const grd_view &frame, int32_t slot);
    /* The patches of `frames` slots from `slot` on. */
    void infer(const Model &model, int32_t slot, int32_t frames);
    void score(const Model &model, int32_t slot, bool heatmap);
    /* The three of them by the backend, in the place of slot 0. x_hat: NULL = not wanted. */
    void run_on_device(const Model &model, const grd_view &frame, bool heatmap, float *x_hat);
    /* Of the frame that was scored last, the one of this slot. */
    void stitch(const Model &model, int32_t slot, const grd_view &map);
    void decide(const Model &model, grd_result *result);

    /* Reconstructions of a slot, after infer. */
    const float *x_hat(int32_t slot) const { return yielded_.floats() + slot * frame_floats_; }
    size_t frame_bytes() const { return static_cast<size_t>(frame_floats_) * sizeof(float); }

private:
    void score_some(const Model &model, int32_t slot, bool heatmap, int32_t first, int32_t last);
    void take_scores(const Model &model, int32_t slot);
    grd_view part(const Buffer &buffer, int64_t channels, int64_t first, int64_t n) const;
    grd_view yielded(const Model &model, int64_t first, int64_t n) const;
    grd_cut_options cut_options(const Model &model) const;

    grd_pool *pool_ = nullptr;
    Selection selection_;
    grd_grid grid_ = {};
    int64_t selected_h_ = 0, selected_w_ = 0; /* frame that was prepared, by the bundle's mask; else 0 */
    int64_t patch_h_ = 0, patch_w_ = 0, patch_floats_ = 0, frame_floats_ = 0;
    Buffer cut_workspace_, score_workspace_, x_, yielded_, phi_, phi_local_, margins_, sorted_, heatmaps_;
    std::vector<int32_t> indices_;       /* of the selected patches, for the backend */
    std::vector<const uint8_t *> masks_; /* of the same */
};

/* frame_checks.cpp. Throw Failure. */

/* What a failed cut has to say. */
[[noreturn]] void fail_cut(grd_status status, const grd_view &frame, const grd_cut_params &cut);
/* The mask that the caller sets, else the bundle's; of the frame's size. */
Mask mask_of_frame(const Model &model, const grd_view &frame, const grd_view *roi);
/* Whether the caller's outputs take so many patches. */
void check_outputs(const Model &model, const grd_grid &grid, int32_t count, const grd_result &result);

/* Where the patches of a frame lie. */
grd_grid grid_of_frame(const Model &model, const grd_view &frame);
/* The same for a caller's structure. */
void grid_of_size(const Model &model, int64_t frame_h, int64_t frame_w, grd_grid *out);

} // namespace grd
#endif
