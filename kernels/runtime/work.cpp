/* work.cpp - cut, infer and score: by the library and a backend's engine, or all of it by the backend; then decide.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "work.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "../patchify/patchify.h"
#include "../pool/pool.h"
#include "batches.h"
#include "failure.h"
#include "score_map.h"

namespace grd {
namespace {

grd_view dense_view(void *data, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view = {};
    view.data = data;
    view.dtype = GRD_FLOAT32;
    view.space = GRD_SPACE_HOST;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

/* The k-th largest of the deciding scores, k <= count. NaN when any is NaN. */
float product_score(const float *scores, int32_t count, int32_t k, float *sorted) {
    for (int32_t i = 0; i < count; ++i) {
        if (std::isnan(scores[i])) return std::numeric_limits<float>::quiet_NaN();
        sorted[i] = scores[i];
    }
    float *kth = sorted + k - 1;
    std::nth_element(sorted, kth, sorted + count, std::greater<float>());
    return *kth;
}

} // namespace

grd_grid grid_of_frame(const Model &model, const grd_view &frame) {
    grd_grid grid = {};
    grid.struct_size = sizeof(grid);
    const grd_status status = grd_cut_grid(&model.info.cut, frame.extent[2], frame.extent[3], &grid);
    if (status != GRD_OK) fail_cut(status, frame, model.info.cut);
    return grid;
}

void grid_of_size(const Model &model, int64_t frame_h, int64_t frame_w, grd_grid *out) {
    if (out->struct_size < sizeof(grd_grid))
        fail(GRD_ERR_STRUCT_SIZE,
             text("grid.struct_size is %u, expected at least %zu", out->struct_size, sizeof(grd_grid)));
    const uint32_t struct_size = out->struct_size;
    *out = grid_of_frame(model, grd_view_of_frame(nullptr, GRD_UINT8, frame_h, frame_w, model.info.cut.channels, 1));
    out->struct_size = struct_size;
}

grd_view Work::part(const Buffer &buffer, int64_t channels, int64_t first, int64_t n) const {
    return dense_view(buffer.floats() + first * channels * patch_h_ * patch_w_, n, channels, patch_h_, patch_w_);
}

/* What the graph yields of patches from `first` on. */
grd_view Work::yielded(const Model &model, int64_t first, int64_t n) const {
    return dense_view(yielded_.floats() + first * model.output_floats(), n, model.output_c, model.output_h, model.output_w);
}

grd_cut_options Work::cut_options(const Model &model) const {
    grd_cut_options options = model.cut_options();
    options.workspace = cut_workspace_.data();
    options.workspace_bytes = cut_workspace_.size();
    return options;
}

void Work::prepare(const Model &model, const grd_view &frame, const grd_view *roi) {
    const int64_t h = frame.extent[2], w = frame.extent[3];
    const grd_grid grid = grid_of_frame(model, frame);
    if (model.frame_h != 0 && (h != model.frame_h || w != model.frame_w))
        fail(GRD_ERR_FRAME_SIZE,
             text("the frame is %lldx%lld px but the regions were drawn on frames of %dx%d px; use frames of that "
                  "size, or draw the regions again",
                  static_cast<long long>(h), static_cast<long long>(w), model.frame_h, model.frame_w));
    const Mask mask = mask_of_frame(model, frame, roi);
    if (roi == nullptr && selected_h_ == h && selected_w_ == w) return;
    selected_h_ = selected_w_ = 0; /* until it is complete */
    const grd_cut_params &cut = model.info.cut;
    selection_.choose(cut, grid, h, w, model.regions, mask);
    grid_ = grid;
    patch_h_ = cut.patch_h, patch_w_ = cut.patch_w;
    patch_floats_ = cut.channels * patch_h_ * patch_w_;
    frame_floats_ = selection_.count() * patch_floats_;
    if (roi == nullptr) selected_h_ = h, selected_w_ = w;
    cut_workspace_.reserve(grd_cut_workspace_bytes(&cut, h, w));
}

void Work::check_result(const Model &model, const grd_result &result) const {
    check_outputs(model, grid_, count(), result);
}

void Work::reserve(const Model &model, int32_t frames, bool heatmaps) {
    const size_t count = static_cast<size_t>(selection_.count()), floats = sizeof(float);
    for (Buffer *scores : {&phi_, &phi_local_, &margins_, &sorted_}) scores->reserve(count * floats);
    if (heatmaps && !model.scores_itself()) heatmaps_.reserve(count * static_cast<size_t>(patch_h_ * patch_w_) * floats);
    if (model.frames != nullptr) {
        indices_.reserve(count);
        masks_.reserve(count);
        return;
    }
    x_.reserve(static_cast<size_t>(frames) * frame_bytes());
    yielded_.reserve(static_cast<size_t>(frames) * count * static_cast<size_t>(model.output_floats()) * floats);
    score_workspace_.reserve(model.score_workspace_bytes * static_cast<size_t>(pool_threads(pool_)));
}

void Work::cut(const Model &model, const grd_view &frame, int32_t slot) {
    const grd_cut_options options = cut_options(model);
    const grd_status status = cut_frame(model.info.cut, &frame, selection_.slots(), count(), {GRD_FLOAT32, false, 0},
                                        x_.floats() + slot * frame_floats_, &options);
    if (status != GRD_OK) fail_cut(status, frame, model.info.cut);
}

void Work::infer(const Model &model, int32_t slot, int32_t frames) {
    const int64_t channels = model.info.cut.channels, from = int64_t{slot} * count();
    const int32_t patches = frames * count();
    for (int32_t done = 0, n = 0; done < patches; done += n) {
        n = next_batch(patches - done, model.batch_limit);
        const grd_view x = part(x_, channels, from + done, n), x_hat = yielded(model, from + done, n);
        char message[1024] = "";
        const grd_status status = model.backend->engine_infer(model.engine, &x, &x_hat, message, sizeof(message));
        message[sizeof(message) - 1] = '\0';
        if (status != GRD_OK)
            fail(status, text("inference of patches %d to %d failed: %s", done, done + n - 1,
                              message[0] != '\0' ? message : "no reason given"));
    }
}

/* Patches [first, last) of a slot, which all have a mask or all have none. */
void Work::score_some(const Model &model, int32_t slot, bool heatmap, int32_t first, int32_t last) {
    const grd_cut_params &cut = model.info.cut;
    const int64_t from = int64_t{slot} * count() + first, n = last - first;
    const grd_view x = part(x_, cut.channels, from, n), x_hat = yielded(model, from, n);
    grd_score_params params = model.score_params();
    params.pool = pool_;
    params.workspace = score_workspace_.data();
    params.workspace_bytes = score_workspace_.size();
    grd_view roi = {};
    if (const uint8_t *mask = selection_.mask(first)) {
        roi = dense_view(const_cast<uint8_t *>(mask), n, 1, cut.patch_h, cut.patch_w); /* never written */
        roi.dtype = GRD_UINT8;
        params.roi = &roi;
    }
    grd_score_outputs outputs = {};
    outputs.struct_size = sizeof(outputs);
    outputs.phi = phi_.floats() + first;
    outputs.phi_local = phi_local_.floats() + first;
    grd_view heatmaps = {};
    if (heatmap) {
        heatmaps = part(heatmaps_, 1, first, n);
        outputs.heatmap = &heatmaps;
    }
    const grd_status status = grd_score_patches(&params, &x, &x_hat, &outputs);
    if (status != GRD_OK)
        fail(status, text("patches of %dx%dx%d cannot be scored (%s)", cut.channels, cut.patch_h, cut.patch_w,
                          grd_status_name(status)));
}

/* The scores that the graph gave. Source: docs/design/methods.md; grd_edge/heads.py is the readable definition. */
void Work::take_scores(const Model &model, int32_t slot) {
    const bool masked = selection_.any_mask();
    const int64_t px = patch_h_ * patch_w_;
    float *score = static_cast<float *>(yielded(model, int64_t{slot} * count(), count()).data);
    for (int32_t i = 0; i < count(); ++i, score += model.output_floats()) {
        float *map = score + patch_w_;
        const uint8_t *mask = selection_.mask(i);
        const float largest = mask != nullptr ? largest_inside(map, mask, px) : largest_value(map, px);
        phi_.floats()[i] = masked ? largest : *score;
        phi_local_.floats()[i] = largest;
    }
}

void Work::score(const Model &model, int32_t slot, bool heatmap) {
    if (model.scores_itself()) return take_scores(model, slot);
    for (int32_t first = 0, last = 0; first < count(); first = last) {
        const bool masked = selection_.mask(first) != nullptr;
        while (last < count() && (selection_.mask(last) != nullptr) == masked) ++last;
        score_some(model, slot, heatmap, first, last);
    }
}

void Work::run_on_device(const Model &model, const grd_view &frame, bool heatmap, float *x_hat) {
    const grd_status checked = check_frame(model.info.cut, &frame, GRD_SPACE_HOST);
    if (checked != GRD_OK) fail_cut(checked, frame, model.info.cut);
    indices_.clear();
    masks_.clear();
    bool masked = false;
    for (int32_t i = 0; i < count(); ++i) {
        indices_.push_back(selection_.patch(i).index);
        masks_.push_back(selection_.mask(i));
        masked = masked || selection_.mask(i) != nullptr;
    }
    grd_frame_work work = {};
    work.struct_size = sizeof(work);
    work.count = count();
    work.frame = &frame;
    work.grid = &grid_;
    work.indices = indices_.data();
    work.masks = masked ? masks_.data() : nullptr;
    work.phi = phi_.floats();
    work.phi_local = phi_local_.floats();
    work.heatmaps = heatmap ? heatmaps_.floats() : nullptr;
    work.x_hat = x_hat;
    char message[1024] = "";
    const grd_status status = model.backend->frame_inspect(model.frames, &work, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    if (status != GRD_OK)
        fail(status, text("inspection of %d patches failed: %s", work.count,
                          message[0] != '\0' ? message : "no reason given"));
}

void Work::stitch(const Model &model, int32_t slot, const grd_view &map) {
    grd_view maps = part(heatmaps_, 1, 0, count());
    if (model.scores_itself()) { /* where the graph left them */
        maps.data = static_cast<float *>(yielded(model, int64_t{slot} * count(), count()).data) + patch_w_;
        const int64_t row = patch_w_ * static_cast<int64_t>(sizeof(float)), patch = row * model.output_h;
        const int64_t strides[4] = {patch, patch, row, sizeof(float)};
        std::copy(strides, strides + 4, maps.stride_bytes);
    }
    const grd_cut_options options = cut_options(model);
    const grd_status status = grd::stitch(model.info.cut, grid_, selection_.slots(), maps, map, &options);
    if (status != GRD_OK)
        fail(status, text("the heatmap cannot be stitched (%s); check its strides", grd_status_name(status)));
}

void Work::decide(const Model &model, grd_result *result) {
    const grd_bundle_info &info = model.info;
    const float *phi = phi_.floats(), *phi_local = phi_local_.floats();
    const float *deciding = info.decides_local ? phi_local : phi;
    float *margins = margins_.floats();
    int32_t defective = 0;
    for (int32_t i = 0; i < count(); ++i) {
        const SelectedPatch &chosen = selection_.patch(i);
        const float threshold = info.has_decision ? model.regions[static_cast<size_t>(chosen.region)].threshold : 0;
        const bool bad = info.has_decision && !(deciding[i] < threshold); /* true for NaN */
        margins[i] = deciding[i] - threshold; /* 0 only for equal operands, so its sign is the decision */
        defective += bad ? 1 : 0;
        if (result->patches == nullptr) continue;
        grd_patch_result patch = {};
        patch.y_px = chosen.y_px;
        patch.x_px = chosen.x_px;
        patch.region = chosen.region;
        patch.decision = !info.has_decision ? GRD_UNDECIDED : bad ? GRD_DEFECTIVE : GRD_GOOD;
        patch.phi = phi[i];
        patch.phi_local = phi_local[i];
        result->patches[i] = patch;
    }
    const bool several = model.regions.size() > 1;
    const int32_t k = info.has_decision ? info.k : 1;
    result->score = product_score(several ? margins : deciding, count(), std::min(k, count()), sorted_.floats());
    result->threshold = several ? 0 : info.threshold;
    result->patch_count = count();
    result->defective_count = defective;
    /* Fewer patches than k could never reject: such a frame alone is not enough to call a product good. */
    result->decision = !info.has_decision || count() < k ? GRD_UNDECIDED
                       : defective >= k                  ? GRD_DEFECTIVE
                                                         : GRD_GOOD;
}

} // namespace grd
