/* inspector.h - what the parts of the inspector share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_INSPECTOR_H
#define GRD_INSPECTOR_H

#include <chrono>
#include <string>
#include <vector>

#include "backend.h"
#include "buffer.h"
#include "bundle.h"
#include "grd_edge.h"
#include "selection.h"

struct grd_inspector {
    mutable std::string message; /* also of calls that change nothing else */
    std::string variant;
    std::string engine_version;
    grd_bundle_info info = {};
    int32_t batch_limit = 0;
    const grd_backend *backend = nullptr;
    void *engine = nullptr;
    void *frames = nullptr; /* of a backend that does whole frames on its device */
    std::vector<grd::Region> regions; /* none while nothing is decided */
    int32_t frame_h = 0, frame_w = 0; /* of the areas; 0 when there are none */
    grd::Mask roi;                    /* the bundle's */
    grd::Selection selection;
    int64_t selected_h = 0, selected_w = 0; /* frame that the selection was made for, by the bundle's mask; else 0 */
    grd::Buffer cut_workspace, score_workspace, x, x_hat, phi, phi_local, margins, sorted, heatmaps;

    std::vector<int32_t> indices;       /* of the selected patches, for such a backend */
    std::vector<const uint8_t *> masks; /* of the same */

    ~grd_inspector() {
        if (frames != nullptr) backend->frame_close(frames);
        if (engine != nullptr) backend->engine_close(engine);
    }

    grd_score_params score_params() const {
        grd_score_params params = {};
        params.struct_size = sizeof(params);
        params.window = info.window;
        params.local_window_px = info.local_window_px;
        params.variant = variant.empty() ? nullptr : variant.c_str();
        params.workspace = score_workspace.data();
        params.workspace_bytes = score_workspace.size();
        return params;
    }

    grd_cut_options cut_options() const {
        grd_cut_options options = {};
        options.struct_size = sizeof(options);
        options.variant = variant.empty() ? nullptr : variant.c_str();
        options.workspace = cut_workspace.data();
        options.workspace_bytes = cut_workspace.size();
        return options;
    }
};

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

inline grd_view dense_view(void *data, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view = {};
    view.data = data;
    view.dtype = GRD_FLOAT32;
    view.space = GRD_SPACE_HOST;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

/* inspector_run.cpp. Scores of the selected patches, and on request heatmaps and reconstructions; times of the stages.
 * Throws Failure. */
void run_frame(grd_inspector *inspector, const grd_view &frame, const grd_grid &grid, grd_result *result);

/* frame_checks.cpp. Throw Failure. */

/* What a failed cut has to say. */
[[noreturn]] void fail_cut(grd_status status, const grd_view &frame, const grd_cut_params &cut);
/* The mask that the caller sets, else the bundle's; of the frame's size. */
Mask mask_of_frame(const grd_inspector &inspector, const grd_view &frame, const grd_view *roi);
/* Whether the caller's outputs take what was selected. */
void check_result(const grd_inspector &inspector, const grd_grid &grid, const grd_result &result);

} // namespace grd
#endif
