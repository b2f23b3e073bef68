/* inspector.cpp - one frame in, one decision out: cut, infer, score, decide.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "../patchify/patchify.h"
#include "failure.h"
#include "inspector.h"

namespace grd {
namespace {

grd_grid grid_of_frame(const grd_inspector &inspector, const grd_view &frame) {
    grd_grid grid = {};
    grid.struct_size = sizeof(grid);
    const grd_status status = grd_cut_grid(&inspector.info.cut, frame.extent[2], frame.extent[3], &grid);
    if (status != GRD_OK) fail_cut(status, frame, inspector.info.cut);
    return grid;
}

void check_open_params(const grd_inspector_params &params) {
    if (params.struct_size < sizeof(grd_inspector_params))
        fail(GRD_ERR_STRUCT_SIZE,
             text("params.struct_size is %u, expected at least %zu", params.struct_size, sizeof(grd_inspector_params)));
    if (params.threads < 0 || params.threads > 4096)
        fail(GRD_ERR_ARGUMENT, text("threads is %d, expected 0 (all cores) to 4096", params.threads));
    if (params.batch_limit < 0 || params.batch_limit > 1024)
        fail(GRD_ERR_ARGUMENT, text("batch_limit is %d, expected 1 to 1024, or 0 for 16", params.batch_limit));
    if (params.undecided != 0 && params.undecided != 1)
        fail(GRD_ERR_ARGUMENT, text("params.undecided is %d, expected 0 or 1", params.undecided));
}

const Engine &chosen_engine(const grd_bundle &bundle, const grd_inspector_params &params) {
    const std::string target = params.target != nullptr ? params.target : "cpu";
    std::string precision = params.precision != nullptr ? params.precision : "";
    const auto chosen = bundle.description.chosen.find(target);
    const bool choice_missing = params.precision == nullptr && chosen == bundle.description.chosen.end();
    if (params.precision == nullptr && !choice_missing) precision = chosen->second;
    std::string held;
    for (const Engine &engine : bundle.description.engines) {
        if (engine.target == target && engine.precision == precision) return engine;
        held += (held.empty() ? "" : ", ") + engine.target + " " + engine.precision;
    }
    fail(GRD_ERR_BUNDLE_ENGINE,
         "bundle " + bundle.path + " holds no engine for target " + quoted(target) +
             (choice_missing ? " and chooses no precision for it" : " and precision " + quoted(precision)) +
             "; it holds: " + (held.empty() ? "none" : held));
}

/* Backends add to it when something becomes known later. */
void read_engine_version(grd_inspector *inspector) {
    const char *version = inspector->backend->engine_version(inspector->engine);
    inspector->engine_version = version != nullptr ? version : "";
}

void open_engine(const grd_bundle &bundle, const grd_inspector_params &params, grd_inspector *inspector) {
    const Engine &engine = chosen_engine(bundle, params);
    inspector->backend = backend_by_name(engine.backend, params.backend_dir);
    const Bytes &bytes = bundle.kept_bytes.at(engine.file);
    grd_engine_desc desc = {};
    desc.struct_size = sizeof(desc);
    desc.threads = params.threads;
    desc.batch_limit = inspector->batch_limit;
    desc.channels = inspector->info.cut.channels;
    desc.patch_h = inspector->info.cut.patch_h;
    desc.patch_w = inspector->info.cut.patch_w;
    desc.bytes = bytes.data.get();
    desc.byte_count = bytes.count;
    desc.format = engine.format.c_str();
    desc.precision = engine.precision.c_str();
    desc.vendor_dir = params.vendor_dir;
    const auto known = [](const std::string &text) { return text.empty() ? nullptr : text.c_str(); };
    desc.library_version = known(engine.version);
    desc.compute_capabilities = known(engine.capabilities);
    desc.compatibility = known(engine.compatibility);
    desc.target = engine.target.c_str();
    char message[1024] = "";
    void *opened = nullptr;
    const grd_status status = inspector->backend->engine_open(&desc, &opened, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    const std::string what =
        "bundle " + bundle.path + ": engine " + engine.target + " " + engine.precision + " (" + engine.file + "): ";
    if (status != GRD_OK)
        fail(status, what + (message[0] != '\0' ? message : "the backend refused it without a reason"));
    if (opened == nullptr) fail(GRD_ERR_ENGINE_OPEN, what + "the backend gave no engine; reinstall it");
    inspector->engine = opened;
    read_engine_version(inspector);
}

/* Whole frames on the engine's device, where the backend does them. A kernel variant that was forced is the host's. */
void open_frames(grd_inspector *inspector) {
    const grd_backend &backend = *inspector->backend;
    const bool does = backend.struct_size >= sizeof(grd_backend) && backend.frame_open != nullptr &&
                      backend.frame_inspect != nullptr && backend.frame_close != nullptr;
    if (!does || !inspector->variant.empty() || std::getenv("GRD_FORCE_VARIANT") != nullptr) return;
    grd_frame_desc desc = {};
    desc.struct_size = sizeof(desc);
    desc.window = inspector->info.window;
    desc.local_window_px = inspector->info.local_window_px;
    desc.cut = inspector->info.cut;
    char message[1024] = "";
    const grd_status status =
        backend.frame_open(inspector->engine, &desc, &inspector->frames, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    if (status == GRD_OK) return;
    inspector->frames = nullptr;
    fail(status, std::string("whole frames on the device: ") + (message[0] != '\0' ? message : "no reason given"));
}

void stitch_heatmaps(const grd_inspector &inspector, const grd_grid &grid, const grd_view &map) {
    const grd_cut_params &cut = inspector.info.cut;
    const Selection &selection = inspector.selection;
    const grd_view maps = dense_view(inspector.heatmaps.floats(), selection.count(), 1, cut.patch_h, cut.patch_w);
    const grd_cut_options options = inspector.cut_options();
    const grd_status status = stitch(cut, grid, selection.slots(), maps, map, &options);
    if (status != GRD_OK)
        fail(status, text("the heatmap cannot be stitched (%s); check its strides", grd_status_name(status)));
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

/* Made once for frames of one size, unless the caller brings a mask. */
void select_patches(grd_inspector *inspector, const grd_grid &grid, const grd_view &frame, const grd_view *roi) {
    const int64_t h = frame.extent[2], w = frame.extent[3];
    if (inspector->frame_h != 0 && (h != inspector->frame_h || w != inspector->frame_w))
        fail(GRD_ERR_FRAME_SIZE,
             text("the frame is %lldx%lld px but the regions were drawn on frames of %dx%d px; use frames of that "
                  "size, or draw the regions again",
                  static_cast<long long>(h), static_cast<long long>(w), inspector->frame_h, inspector->frame_w));
    const Mask mask = mask_of_frame(*inspector, frame, roi);
    if (roi == nullptr && inspector->selected_h == h && inspector->selected_w == w) return;
    inspector->selected_h = inspector->selected_w = 0; /* until it is complete */
    inspector->selection.choose(inspector->info.cut, grid, h, w, inspector->regions, mask);
    if (roi == nullptr) inspector->selected_h = h, inspector->selected_w = w;
}

void decide(grd_inspector *inspector, grd_result *result) {
    const grd_bundle_info &info = inspector->info;
    const std::vector<Region> &regions = inspector->regions;
    const int32_t count = inspector->selection.count();
    const float *phi = inspector->phi.floats(), *phi_local = inspector->phi_local.floats();
    const float *deciding = info.decides_local ? phi_local : phi;
    float *margins = inspector->margins.floats();
    int32_t defective = 0;
    for (int32_t i = 0; i < count; ++i) {
        const SelectedPatch &chosen = inspector->selection.patch(i);
        const float threshold = info.has_decision ? regions[static_cast<size_t>(chosen.region)].threshold : 0;
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
    const bool several = regions.size() > 1;
    const int32_t k = info.has_decision ? info.k : 1;
    result->score =
        product_score(several ? margins : deciding, count, std::min(k, count), inspector->sorted.floats());
    result->threshold = several ? 0 : info.threshold;
    result->patch_count = count;
    result->defective_count = defective;
    /* Fewer patches than k could never reject: such a frame alone is not enough to call a product good. */
    result->decision = !info.has_decision || count < k ? GRD_UNDECIDED
                       : defective >= k                ? GRD_DEFECTIVE
                                                       : GRD_GOOD;
}

grd_status inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result) {
    if (inspector->engine == nullptr)
        fail(GRD_ERR_ARGUMENT, "this inspector did not open; read the message of grd_inspector_open");
    if (frame == nullptr || result == nullptr) fail(GRD_ERR_ARGUMENT, "frame and result must not be NULL");
    if (result->struct_size < sizeof(grd_result))
        fail(GRD_ERR_STRUCT_SIZE,
             text("result.struct_size is %u, expected at least %zu", result->struct_size, sizeof(grd_result)));
    Stopwatch total, stage;
    const grd_cut_params &cut = inspector->info.cut;
    const grd_grid grid = grid_of_frame(*inspector, *frame);
    select_patches(inspector, grid, *frame, result->roi);
    check_result(*inspector, grid, *result);

    const size_t count = static_cast<size_t>(inspector->selection.count()), floats = sizeof(float);
    const size_t patch_px = static_cast<size_t>(cut.patch_h) * static_cast<size_t>(cut.patch_w);
    for (Buffer *scores : {&inspector->phi, &inspector->phi_local, &inspector->margins, &inspector->sorted})
        scores->reserve(count * floats);
    if (result->heatmap != nullptr) inspector->heatmaps.reserve(count * patch_px * floats);

    grd_result timed = *result; /* the caller's is untouched until nothing can fail any more */
    run_frame(inspector, *frame, grid, &timed);
    read_engine_version(inspector);
    stage.lap_ms();
    if (result->heatmap != nullptr) {
        inspector->cut_workspace.reserve(grd_cut_workspace_bytes(&cut, frame->extent[2], frame->extent[3]));
        stitch_heatmaps(*inspector, grid, *result->heatmap);
    }
    timed.score_ms += stage.lap_ms();
    decide(inspector, result);
    result->cut_ms = timed.cut_ms;
    result->infer_ms = timed.infer_ms;
    result->score_ms = timed.score_ms;
    result->total_ms = total.lap_ms();
    return GRD_OK;
}

} // namespace
} // namespace grd

grd_status grd_inspector_open(const grd_bundle *bundle, const grd_inspector_params *params, grd_inspector **out) {
    if (out == nullptr) return GRD_ERR_ARGUMENT;
    *out = nullptr;
    grd_inspector *inspector = new (std::nothrow) grd_inspector();
    if (inspector == nullptr) return GRD_ERR_MEMORY;
    *out = inspector;
    return grd::guarded(&inspector->message, [&]() -> grd_status {
        if (bundle == nullptr || !bundle->verified)
            grd::fail(GRD_ERR_ARGUMENT, "the bundle is not open; check the status of grd_bundle_open");
        grd_inspector_params used = {};
        used.struct_size = sizeof(used);
        if (params != nullptr) {
            grd::check_open_params(*params);
            used = *params;
        }
        inspector->info = bundle->description.info;
        inspector->roi = bundle->roi;
        if (used.undecided) {
            inspector->info.has_decision = inspector->info.k = inspector->info.region_count = 0;
            inspector->info.threshold = std::numeric_limits<float>::quiet_NaN();
        } else {
            inspector->regions = bundle->description.regions;
            inspector->frame_h = bundle->description.frame_h;
            inspector->frame_w = bundle->description.frame_w;
        }
        inspector->batch_limit = used.batch_limit > 0 ? used.batch_limit : 16;
        inspector->variant = used.variant != nullptr ? used.variant : "";
        const grd_score_params scoring = inspector->score_params();
        if (grd_variant_active(scoring.variant) == nullptr) {
            const char *forced = std::getenv("GRD_FORCE_VARIANT");
            const char *name = scoring.variant != nullptr ? scoring.variant : forced != nullptr ? forced : "";
            grd::fail(GRD_ERR_VARIANT, std::string("kernel variant ") + grd::quoted(name) +
                                           (scoring.variant != nullptr ? "" : " of GRD_FORCE_VARIANT") +
                                           " is unknown or not supported by this CPU; leave it out to use the fastest");
        }
        const grd_cut_params &cut = inspector->info.cut;
        const size_t workspace = grd_score_workspace_bytes(&scoring, cut.channels, cut.patch_h, cut.patch_w);
        if (workspace == 0)
            grd::fail(GRD_ERR_SHAPE, grd::text("patches of %dx%d cannot be scored, the window needs at least 11x11; "
                                               "rebuild the bundle with larger patches",
                                               cut.patch_h, cut.patch_w));
        inspector->score_workspace.reserve(workspace);
        grd::open_engine(*bundle, used, inspector);
        grd::open_frames(inspector);
        return GRD_OK;
    });
}

void grd_inspector_close(grd_inspector *inspector) { delete inspector; }

const char *grd_inspector_message(const grd_inspector *inspector) {
    return inspector == nullptr ? "" : inspector->message.c_str();
}

const char *grd_inspector_engine_version(const grd_inspector *inspector) {
    return inspector == nullptr ? "" : inspector->engine_version.c_str();
}

grd_status grd_inspector_grid(const grd_inspector *inspector, int64_t frame_h, int64_t frame_w, grd_grid *out) {
    if (inspector == nullptr) return GRD_ERR_ARGUMENT;
    return grd::guarded(&inspector->message, [&]() -> grd_status {
        if (inspector->engine == nullptr || out == nullptr)
            grd::fail(GRD_ERR_ARGUMENT, "grd_inspector_grid needs an open inspector and a grid");
        if (out->struct_size < sizeof(grd_grid))
            grd::fail(GRD_ERR_STRUCT_SIZE,
                      grd::text("grid.struct_size is %u, expected at least %zu", out->struct_size, sizeof(grd_grid)));
        const uint32_t struct_size = out->struct_size;
        const grd_view frame = grd_view_of_frame(nullptr, GRD_UINT8, frame_h, frame_w, inspector->info.cut.channels, 1);
        *out = grd::grid_of_frame(*inspector, frame);
        out->struct_size = struct_size;
        return GRD_OK;
    });
}

grd_status grd_inspector_inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result) {
    if (inspector == nullptr) return GRD_ERR_ARGUMENT;
    return grd::guarded(&inspector->message, [&] { return grd::inspect(inspector, frame, result); });
}
