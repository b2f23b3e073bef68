/* stream_work.cpp - what the threads of a stream do with the frames of a group: cut, infer, score.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstdio>

#include "failure.h"
#include "stream.h"

namespace grd {

/* The text is cut to what the result holds. */
void Stream::fail_frame(Frame *frame, grd_status status, const char *message) {
    frame->fits = false;
    frame->result.status = status;
    std::snprintf(frame->result.message, sizeof(frame->result.message), "%s", message);
}

/* Whether a step of a frame succeeded; if not, the frame has failed. */
template <class Step> bool Stream::attempt(Frame *frame, Step &&step) {
    std::string message;
    const grd_status status = guarded(&message, [&]() -> grd_status {
        step();
        return GRD_OK;
    });
    if (status != GRD_OK) fail_frame(frame, status, message.c_str());
    return status == GRD_OK;
}

/* frames: of the group, all of which need room before the first is cut. */
bool Stream::cut_one(Charge *charge, Work *work, int32_t frames, Frame *frame, int32_t slot) {
    const Model &model = charge->model(0);
    return attempt(frame, [&] {
        const grd_stream_frame &given = frame->given;
        const int64_t *extent = given.view.extent;
        if (params_.frame_h > 0 &&
            (extent[2] != params_.frame_h || extent[3] != params_.frame_w || extent[1] != params_.frame_c))
            fail(GRD_ERR_FRAME_SIZE,
                 text("the frame is %lldx%lldx%lld but the stream was opened for %lldx%lldx%d; give frames of that size, "
                      "or open it for any size",
                      static_cast<long long>(extent[2]), static_cast<long long>(extent[3]),
                      static_cast<long long>(extent[1]), static_cast<long long>(params_.frame_h),
                      static_cast<long long>(params_.frame_w), params_.frame_c));
        work->prepare(model, given.view, nullptr);
        grd_result wanted = {};
        wanted.patches = given.patches;
        wanted.patch_capacity = given.patch_capacity;
        wanted.heatmap = given.heatmap.data != nullptr ? &given.heatmap : nullptr;
        work->check_result(model, wanted);
        work->reserve(model, frames, charge_settings_.heatmaps);
        if (!charge->on_device()) work->cut(model, given.view, slot);
    });
}

/* All frames of a group have the same size, so that the first prepares the work for all. */
void Stream::cut(int32_t group) {
    Charge &charge = charge_of(group);
    Work &work = work_of(group);
    const int32_t size = ledger_.group_size(group);
    int32_t fit = 0;
    Stopwatch stage;
    for (int32_t i = 0; i < size; ++i) {
        Frame &each = frame(ledger_.member(group, i));
        each.slot = fit;
        each.fits = cut_one(&charge, &work, size, &each, fit);
        fit += each.fits ? 1 : 0;
    }
    const double ms = stage.lap_ms();
    for (int32_t i = 0; i < size; ++i) {
        Frame &each = frame(ledger_.member(group, i));
        each.result.cut_ms = charge.on_device() ? 0 : ms;
        each.result.batch_frames = fit;
    }
}

/* From the engine to the outputs. */
void Stream::infer(Lock &lock, const Job &job) {
    Charge &charge = charge_of(job.group);
    Model &model = charge.model(job.engine);
    Work &work = work_of(job.group);
    const int32_t size = ledger_.group_size(job.group);
    int32_t fit = 0;
    Frame *only = nullptr; /* one of those that fit */
    for (int32_t i = 0; i < size; ++i) {
        Frame &each = frame(ledger_.member(job.group, i));
        if (!each.fits) continue;
        only = &each;
        ++fit;
    }
    Stopwatch stage;
    std::string message;
    bool measures = fit == size; /* else it is not one of the sizes that are compared */
    if (charge.on_device()) {
        attempt(only, [&] { work.run_on_device(model, only->given.view, only->given.heatmap.data != nullptr, nullptr); });
    } else if (fit == 1) {
        attempt(only, [&] { work.infer(model, 0, 1); });
    } else if (guarded(&message, [&] { return infer_together(charge, &work, job.engine, fit), GRD_OK; }) != GRD_OK) {
        infer_apart(model, &work, job.group);
        measures = false;
    }
    const double ms = stage.lap_ms();

    lock.lock();
    ledger_.infer_done(job.group);
    ++batches_;
    model.read_engine_version();
    if (measures && only->fits) charge.sharing.measured(int64_t{fit} * work.count(), ms);
    unlock_and_wake(lock);

    stage.lap_ms();
    double score_ms = 0;
    for (int32_t i = 0; i < size; ++i) {
        Frame &each = frame(ledger_.member(job.group, i));
        each.result.infer_ms = ms;
        if (each.fits) score(charge.model(0), &work, &each);
        each.result.score_ms = score_ms += stage.lap_ms();
    }
    lock.lock();
}

/* In sizes that the engine was prepared for: where frames did not fit, fewer are left than were chosen. */
void Stream::infer_together(const Charge &charge, Work *work, int32_t engine, int32_t frames) {
    int32_t sizes[Sharing::kSizes];
    int32_t kind = charge.sharing.sizes(work->count(), sizes) - 1;
    for (int32_t slot = 0; slot < frames; slot += sizes[kind]) {
        while (sizes[kind] > frames - slot) --kind;
        work->infer(charge.model(engine), slot, sizes[kind]);
    }
}

/* What one frame may have caused must not fail those that shared its batch. */
void Stream::infer_apart(const Model &model, Work *work, int32_t group) {
    for (int32_t i = 0; i < ledger_.group_size(group); ++i) {
        Frame &each = frame(ledger_.member(group, i));
        if (each.fits) attempt(&each, [&] { work->infer(model, each.slot, 1); });
    }
}

void Stream::score(const Model &model, Work *work, Frame *frame) {
    attempt(frame, [&] {
        const grd_view *heatmap = frame->given.heatmap.data != nullptr ? &frame->given.heatmap : nullptr;
        if (model.frames == nullptr) work->score(model, frame->slot, heatmap != nullptr);
        if (heatmap != nullptr) work->stitch(model, frame->slot, *heatmap);
        grd_result decided = {};
        decided.patches = frame->given.patches;
        work->decide(model, &decided);
        frame->result.decision = decided.decision;
        frame->result.patch_count = decided.patch_count;
        frame->result.defective_count = decided.defective_count;
        frame->result.score = decided.score;
        frame->result.threshold = decided.threshold;
    });
}

} // namespace grd
