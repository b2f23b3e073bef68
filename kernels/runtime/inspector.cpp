/* inspector.cpp - one frame in, one decision out: cut, infer, score, decide.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "cpus.h"
#include "failure.h"
#include "model.h"
#include "work.h"

struct PoolCloser {
    void operator()(grd_pool *pool) const { grd_pool_close(pool); }
};

struct grd_inspector {
    mutable std::string message; /* also of calls that change nothing else */
    bool opened = false;
    grd::Model model;
    std::unique_ptr<grd_pool, PoolCloser> pool; /* none where one thread scores */
    grd::Work work;
};

namespace grd {
namespace {

/* As many threads to score with as the engine has, which wait meanwhile. */
void open_pool(grd_inspector *inspector, const grd_inspector_params *params) {
    constexpr int32_t kMostThreads = 8; /* on some tens of patches more cost what they save */
    const Model &model = inspector->model;
    if (model.frames != nullptr || model.scores_itself()) return;
    const int32_t asked = params != nullptr ? params->threads : 0;
    const int32_t threads = std::min(asked > 0 ? asked : allowed_cpus(), kMostThreads);
    if (threads < 2) return;
    grd_pool *pool = nullptr;
    const grd_status status = grd_pool_open(threads, &pool);
    if (status != GRD_OK)
        fail(status, text("%d threads to score with cannot be started; open with fewer threads", threads));
    inspector->pool.reset(pool);
    inspector->work.share_scoring(pool);
}

/* Scores of the frame that was prepared, and times of the stages. */
void run_on_host(grd_inspector *inspector, const grd_view &frame, grd_result *result) {
    const Model &model = inspector->model;
    Work &work = inspector->work;
    Stopwatch stage;
    work.cut(model, frame, 0);
    result->cut_ms = stage.lap_ms();
    work.infer(model, 0, 1);
    if (result->x_hat != nullptr) std::memcpy(result->x_hat->data, work.x_hat(0), work.frame_bytes());
    result->infer_ms = stage.lap_ms();
    work.score(model, 0, result->heatmap != nullptr);
    result->score_ms = stage.lap_ms();
}

void run_on_device(grd_inspector *inspector, const grd_view &frame, grd_result *result) {
    Stopwatch stage;
    float *x_hat = result->x_hat != nullptr ? static_cast<float *>(result->x_hat->data) : nullptr;
    inspector->work.run_on_device(inspector->model, frame, result->heatmap != nullptr, x_hat);
    result->cut_ms = result->score_ms = 0;
    result->infer_ms = stage.lap_ms();
}

grd_status inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result) {
    if (!inspector->opened)
        fail(GRD_ERR_ARGUMENT, "this inspector did not open; read the message of grd_inspector_open");
    if (frame == nullptr || result == nullptr) fail(GRD_ERR_ARGUMENT, "frame and result must not be NULL");
    if (result->struct_size < sizeof(grd_result))
        fail(GRD_ERR_STRUCT_SIZE,
             text("result.struct_size is %u, expected at least %zu", result->struct_size, sizeof(grd_result)));
    Stopwatch total, stage;
    Model &model = inspector->model;
    Work &work = inspector->work;
    work.prepare(model, *frame, result->roi);
    work.check_result(model, *result);
    work.reserve(model, 1, result->heatmap != nullptr);

    grd_result timed = *result; /* the caller's is untouched until nothing can fail any more */
    if (model.frames != nullptr) run_on_device(inspector, *frame, &timed);
    else run_on_host(inspector, *frame, &timed);
    model.read_engine_version();
    stage.lap_ms();
    if (result->heatmap != nullptr) work.stitch(model, 0, *result->heatmap);
    timed.score_ms += stage.lap_ms();
    work.decide(model, result);
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
        inspector->model.open(bundle, params);
        grd::open_pool(inspector, params);
        inspector->opened = true;
        return GRD_OK;
    });
}

void grd_inspector_close(grd_inspector *inspector) { delete inspector; }

const char *grd_inspector_message(const grd_inspector *inspector) {
    return inspector == nullptr ? "" : inspector->message.c_str();
}

const char *grd_inspector_engine_version(const grd_inspector *inspector) {
    return inspector == nullptr ? "" : inspector->model.engine_version.c_str();
}

grd_status grd_inspector_grid(const grd_inspector *inspector, int64_t frame_h, int64_t frame_w, grd_grid *out) {
    if (inspector == nullptr) return GRD_ERR_ARGUMENT;
    return grd::guarded(&inspector->message, [&]() -> grd_status {
        if (!inspector->opened || out == nullptr)
            grd::fail(GRD_ERR_ARGUMENT, "grd_inspector_grid needs an open inspector and a grid");
        grd::grid_of_size(inspector->model, frame_h, frame_w, out);
        return GRD_OK;
    });
}

grd_status grd_inspector_inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result) {
    if (inspector == nullptr) return GRD_ERR_ARGUMENT;
    return grd::guarded(&inspector->message, [&] { return grd::inspect(inspector, frame, result); });
}
