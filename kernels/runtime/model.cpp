/* model.cpp - opening an engine of a bundle.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <cstdlib>
#include <limits>

#include "backend.h"
#include "failure.h"

namespace grd {
namespace {

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

} // namespace

Model::~Model() {
    if (frames != nullptr) backend->frame_close(frames);
    if (engine != nullptr) backend->engine_close(engine);
}

void Model::read_engine_version() {
    const char *version = backend->engine_version(engine);
    if (version == nullptr) version = "";
    if (engine_version != version) engine_version = version;
}

grd_score_params Model::score_params() const {
    grd_score_params params = {};
    params.struct_size = sizeof(params);
    params.window = info.window;
    params.local_window_px = info.local_window_px;
    params.variant = variant.empty() ? nullptr : variant.c_str();
    return params;
}

grd_cut_options Model::cut_options() const {
    grd_cut_options options = {};
    options.struct_size = sizeof(options);
    options.variant = variant.empty() ? nullptr : variant.c_str();
    return options;
}

void Model::open_engine(const grd_bundle &bundle, const grd_inspector_params &params) {
    const Engine &chosen = chosen_engine(bundle, params);
    backend = backend_by_name(chosen.backend, params.backend_dir);
    const Bytes &bytes = bundle.kept_bytes.at(chosen.file);
    grd_engine_desc desc = {};
    desc.struct_size = sizeof(desc);
    desc.threads = params.threads;
    desc.batch_limit = batch_limit;
    desc.channels = info.cut.channels;
    desc.patch_h = info.cut.patch_h;
    desc.patch_w = info.cut.patch_w;
    desc.bytes = bytes.data.get();
    desc.byte_count = bytes.count;
    desc.format = chosen.format.c_str();
    desc.precision = chosen.precision.c_str();
    desc.vendor_dir = params.vendor_dir;
    const auto known = [](const std::string &text) { return text.empty() ? nullptr : text.c_str(); };
    desc.library_version = known(chosen.version);
    desc.compute_capabilities = known(chosen.capabilities);
    desc.compatibility = known(chosen.compatibility);
    desc.target = chosen.target.c_str();
    desc.output_c = output_c;
    desc.output_h = output_h;
    desc.output_w = output_w;
    char message[1024] = "";
    void *opened = nullptr;
    const grd_status status = backend->engine_open(&desc, &opened, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    const std::string what =
        "bundle " + bundle.path + ": engine " + chosen.target + " " + chosen.precision + " (" + chosen.file + "): ";
    if (status != GRD_OK)
        fail(status, what + (message[0] != '\0' ? message : "the backend refused it without a reason"));
    if (opened == nullptr) fail(GRD_ERR_ENGINE_OPEN, what + "the backend gave no engine; reinstall it");
    engine = opened;
    read_engine_version();
}

/* Whole frames on the engine's device, where the backend does them. A kernel variant that was forced is the host's. */
void Model::open_frames() {
    const bool does = backend->struct_size >= sizeof(grd_backend) && backend->frame_open != nullptr &&
                      backend->frame_inspect != nullptr && backend->frame_close != nullptr;
    if (!does || scores_itself() || !variant.empty() || std::getenv("GRD_FORCE_VARIANT") != nullptr) return;
    grd_frame_desc desc = {};
    desc.struct_size = sizeof(desc);
    desc.window = info.window;
    desc.local_window_px = info.local_window_px;
    desc.cut = info.cut;
    char message[1024] = "";
    const grd_status status = backend->frame_open(engine, &desc, &frames, message, sizeof(message));
    message[sizeof(message) - 1] = '\0';
    if (status == GRD_OK) return;
    frames = nullptr;
    fail(status, std::string("whole frames on the device: ") + (message[0] != '\0' ? message : "no reason given"));
}

void Model::open(const grd_bundle *bundle, const grd_inspector_params *params) {
    if (bundle == nullptr || !bundle->verified)
        fail(GRD_ERR_ARGUMENT, "the bundle is not open; check the status of grd_bundle_open");
    grd_inspector_params used = {};
    used.struct_size = sizeof(used);
    if (params != nullptr) {
        check_open_params(*params);
        used = *params;
    }
    info = bundle->description.info;
    roi = bundle->roi;
    if (used.undecided) {
        info.has_decision = info.k = info.region_count = 0;
        info.threshold = std::numeric_limits<float>::quiet_NaN();
        info.run_agreement = 0;
    } else {
        regions = bundle->description.regions;
        frame_h = bundle->description.frame_h;
        frame_w = bundle->description.frame_w;
    }
    batch_limit = used.batch_limit > 0 ? used.batch_limit : 16;
    variant = used.variant != nullptr ? used.variant : "";
    const grd_score_params scoring = score_params();
    if (grd_variant_active(scoring.variant) == nullptr) {
        const char *forced = std::getenv("GRD_FORCE_VARIANT");
        const char *name = scoring.variant != nullptr ? scoring.variant : forced != nullptr ? forced : "";
        fail(GRD_ERR_VARIANT, std::string("kernel variant ") + quoted(name) +
                                  (scoring.variant != nullptr ? "" : " of GRD_FORCE_VARIANT") +
                                  " is unknown or not supported by this CPU; leave it out to use the fastest");
    }
    const grd_cut_params &cut = info.cut;
    output_c = scores_itself() ? 1 : cut.channels;
    output_h = scores_itself() ? 1 + cut.patch_h : cut.patch_h;
    output_w = cut.patch_w;
    score_workspace_bytes = grd_score_workspace_bytes(&scoring, cut.channels, cut.patch_h, cut.patch_w);
    if (score_workspace_bytes == 0)
        fail(GRD_ERR_SHAPE, text("patches of %dx%d cannot be scored, the window needs at least 11x11; rebuild the bundle "
                                 "with larger patches",
                                 cut.patch_h, cut.patch_w));
    open_engine(*bundle, used);
    open_frames();
}

} // namespace grd
