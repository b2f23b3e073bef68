/* model.h - an open engine of a bundle, with what decides about its patches. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_MODEL_H
#define GRD_MODEL_H

#include <string>
#include <vector>

#include "bundle.h"
#include "grd_edge.h"

namespace grd {

/* Nothing in it belongs to a frame: what is const may be used by several threads, engine and frames by one at a time. */
struct Model {
    std::string variant;        /* of the kernels; "" when none is forced */
    std::string engine_version; /* as read_engine_version last found it */
    grd_bundle_info info = {};
    int32_t batch_limit = 0;
    const grd_backend *backend = nullptr;
    void *engine = nullptr;
    void *frames = nullptr; /* of a backend that does whole frames on its device */
    std::vector<Region> regions; /* none while nothing is decided */
    int32_t frame_h = 0, frame_w = 0; /* of the areas; 0 when there are none */
    Mask roi;                         /* the bundle's */
    size_t score_workspace_bytes = 0;
    int32_t output_c = 0, output_h = 0, output_w = 0; /* of what the graph yields of a patch */

    Model() = default;
    ~Model();
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    /* Once. The bundle must stay open as long. Throws Failure. */
    void open(const grd_bundle *bundle, const grd_inspector_params *params);
    /* Backends add to it when something becomes known later. */
    void read_engine_version();

    /* The graph yields scores, not a reconstruction to score. */
    bool scores_itself() const { return info.head == GRD_HEAD_SCORE_MAP; }
    int64_t output_floats() const { return int64_t{output_c} * output_h * output_w; }
    /* Parameters of the kernels, but for the workspace. */
    grd_score_params score_params() const;
    grd_cut_options cut_options() const;

private:
    void open_engine(const grd_bundle &bundle, const grd_inspector_params &params);
    void open_frames();
};

} // namespace grd
#endif
