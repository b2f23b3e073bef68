/* inspector_run.cpp - cut, infer and score: by the library and a backend's engine, or all of it by the backend.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstring>

#include "../patchify/patchify.h"
#include "batches.h"
#include "failure.h"
#include "inspector.h"

namespace grd {
namespace {

void infer(grd_inspector *inspector, int32_t count) {
    const grd_cut_params &cut = inspector->info.cut;
    const int64_t patch_floats = static_cast<int64_t>(cut.channels) * cut.patch_h * cut.patch_w;
    for (int32_t done = 0, n = 0; done < count; done += n) {
        n = next_batch(count - done, inspector->batch_limit);
        const grd_view x =
            dense_view(inspector->x.floats() + done * patch_floats, n, cut.channels, cut.patch_h, cut.patch_w);
        const grd_view x_hat =
            dense_view(inspector->x_hat.floats() + done * patch_floats, n, cut.channels, cut.patch_h, cut.patch_w);
        char message[1024] = "";
        const grd_status status =
            inspector->backend->engine_infer(inspector->engine, &x, &x_hat, message, sizeof(message));
        message[sizeof(message) - 1] = '\0';
        if (status != GRD_OK)
            fail(status, text("inference of patches %d to %d failed: %s", done, done + n - 1,
                              message[0] != '\0' ? message : "no reason given"));
    }
}

/* Patches [first, last), which all have a mask or all have none. */
void score_some(grd_inspector *inspector, bool with_heatmap, int32_t first, int32_t last) {
    const grd_cut_params &cut = inspector->info.cut;
    const int64_t px = static_cast<int64_t>(cut.patch_h) * cut.patch_w, n = last - first;
    const auto part = [&](const Buffer &buffer, int64_t channels) {
        return dense_view(buffer.floats() + first * channels * px, n, channels, cut.patch_h, cut.patch_w);
    };
    const grd_view x = part(inspector->x, cut.channels), x_hat = part(inspector->x_hat, cut.channels);
    grd_score_params params = inspector->score_params();
    grd_view roi = {};
    if (const uint8_t *mask = inspector->selection.mask(first)) {
        roi = dense_view(const_cast<uint8_t *>(mask), n, 1, cut.patch_h, cut.patch_w); /* never written */
        roi.dtype = GRD_UINT8;
        params.roi = &roi;
    }
    grd_score_outputs outputs = {};
    outputs.struct_size = sizeof(outputs);
    outputs.phi = inspector->phi.floats() + first;
    outputs.phi_local = inspector->phi_local.floats() + first;
    grd_view heatmaps = {};
    if (with_heatmap) {
        heatmaps = part(inspector->heatmaps, 1);
        outputs.heatmap = &heatmaps;
    }
    const grd_status status = grd_score_patches(&params, &x, &x_hat, &outputs);
    if (status != GRD_OK)
        fail(status, text("patches of %dx%dx%d cannot be scored (%s)", cut.channels, cut.patch_h, cut.patch_w,
                          grd_status_name(status)));
}

void score(grd_inspector *inspector, bool with_heatmap) {
    const Selection &selection = inspector->selection;
    for (int32_t first = 0, last = 0; first < selection.count(); first = last) {
        const bool masked = selection.mask(first) != nullptr;
        while (last < selection.count() && (selection.mask(last) != nullptr) == masked) ++last;
        score_some(inspector, with_heatmap, first, last);
    }
}

void run_on_host(grd_inspector *inspector, const grd_view &frame, grd_result *result) {
    const grd_cut_params &cut = inspector->info.cut;
    const int32_t inspected = inspector->selection.count();
    const size_t patches_bytes = static_cast<size_t>(inspected) * static_cast<size_t>(cut.channels) *
                                 static_cast<size_t>(cut.patch_h) * static_cast<size_t>(cut.patch_w) * sizeof(float);
    Stopwatch stage;
    inspector->cut_workspace.reserve(grd_cut_workspace_bytes(&cut, frame.extent[2], frame.extent[3]));
    inspector->x.reserve(patches_bytes);
    inspector->x_hat.reserve(patches_bytes);
    const grd_cut_options options = inspector->cut_options();
    const grd_status status = cut_frame(cut, &frame, inspector->selection.slots(), inspected, {GRD_FLOAT32, false, 0},
                                        inspector->x.data(), &options);
    if (status != GRD_OK) fail_cut(status, frame, cut);
    result->cut_ms = stage.lap_ms();
    infer(inspector, inspected);
    if (result->x_hat != nullptr) std::memcpy(result->x_hat->data, inspector->x_hat.data(), patches_bytes);
    result->infer_ms = stage.lap_ms();
    score(inspector, result->heatmap != nullptr);
    result->score_ms = stage.lap_ms();
}

/* The same by the backend. */
void run_on_device(grd_inspector *inspector, const grd_view &frame, const grd_grid &grid, grd_result *result) {
    const grd_status checked = check_frame(inspector->info.cut, &frame, GRD_SPACE_HOST);
    if (checked != GRD_OK) fail_cut(checked, frame, inspector->info.cut);
    Stopwatch stage;
    const Selection &selection = inspector->selection;
    inspector->indices.clear();
    inspector->masks.clear();
    bool masked = false;
    for (int32_t i = 0; i < selection.count(); ++i) {
        inspector->indices.push_back(selection.patch(i).index);
        inspector->masks.push_back(selection.mask(i));
        masked = masked || selection.mask(i) != nullptr;
    }
    grd_frame_work work = {};
    work.struct_size = sizeof(work);
    work.count = selection.count();
    work.frame = &frame;
    work.grid = &grid;
    work.indices = inspector->indices.data();
    work.masks = masked ? inspector->masks.data() : nullptr;
    work.phi = inspector->phi.floats();
    work.phi_local = inspector->phi_local.floats();
    work.heatmaps = result->heatmap != nullptr ? inspector->heatmaps.floats() : nullptr;
    work.x_hat = result->x_hat != nullptr ? static_cast<float *>(result->x_hat->data) : nullptr;
    char message[1024] = "";
    const grd_status status = inspector->backend->frame_inspect(inspector->frames, &work, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    if (status != GRD_OK)
        fail(status, text("inspection of %d patches failed: %s", work.count,
                          message[0] != '\0' ? message : "no reason given"));
    result->cut_ms = result->score_ms = 0;
    result->infer_ms = stage.lap_ms();
}

} // namespace

void run_frame(grd_inspector *inspector, const grd_view &frame, const grd_grid &grid, grd_result *result) {
    if (inspector->frames != nullptr) run_on_device(inspector, frame, grid, result);
    else run_on_host(inspector, frame, result);
}

} // namespace grd
