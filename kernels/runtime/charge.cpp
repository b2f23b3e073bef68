/* charge.cpp - a bundle in charge of a stream's frames.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "charge.h"

#include <algorithm>

namespace grd {

void Sharing::set_limits(int32_t batch_limit, int32_t batch_frames) {
    batch_limit_ = batch_limit;
    batch_frames_ = batch_frames > 0 ? batch_frames : batch_limit;
    costs_.assign(static_cast<size_t>(batch_limit) + 2, Cost());
}

int32_t Sharing::sizes(int32_t count, int32_t out[kSizes]) const {
    const int32_t largest = std::max(1, std::min(batch_frames_, batch_limit_ / std::max(1, count)));
    int32_t found = 0;
    out[found++] = 1;
    for (int32_t part = 4; part >= 1; part /= 2)
        if (largest / part > out[found - 1]) out[found++] = largest / part;
    return found;
}

void Sharing::measured(int64_t patches, double ms) {
    Cost &known = costs_[static_cast<size_t>(&cost(patches) - costs_.data())];
    known.usual_ms = known.usual_ms > 0 ? 0.9 * known.usual_ms + 0.1 * ms : ms;
    known.measured_at = ++measurements_;
}

double Sharing::hoped_ms(int64_t patches) const {
    const Cost &known = cost(patches);
    const double untried = static_cast<double>(measurements_ - known.measured_at);
    return known.usual_ms * (1 - std::min(0.5, 0.002 * untried));
}

Charge::Charge(const grd_bundle *bundle, const grd_inspector_params *params, const ChargeSettings &settings,
               int32_t number)
    : number_(number), frame_h_(settings.frame_h), frame_w_(settings.frame_w) {
    for (int32_t i = 0; i < settings.engines; ++i) {
        models_.push_back(std::make_unique<Model>());
        models_.back()->open(bundle, params);
    }
    for (int32_t i = 0; i < settings.groups; ++i) works_.push_back(std::make_unique<Work>());
    const Model &first = model(0);
    sharing.set_limits(first.batch_limit, on_device() ? 1 : settings.batch_frames);
    if (frame_h_ > 0) warm_up(settings);
}

int32_t Charge::patches_of(int64_t frame_h, int64_t frame_w) const {
    if (frame_h == frame_h_ && frame_w == frame_w_ && count_ > 0) return count_;
    grd_grid grid = {};
    grid.struct_size = sizeof(grid);
    return grd_cut_grid(&info().cut, frame_h, frame_w, &grid) == GRD_OK ? grid.count : 0;
}

/* Every stage of every group, and every batch size of every engine, with frames without content. */
void Charge::warm_up(const ChargeSettings &settings) {
    const size_t bytes = static_cast<size_t>(frame_h_ * frame_w_ * settings.frame_c);
    const std::vector<uint8_t> black(bytes);
    const grd_view frame = grd_view_of_frame(black.data(), GRD_UINT8, frame_h_, frame_w_, settings.frame_c, 0);
    int32_t sizes[Sharing::kSizes];
    constexpr int kRounds = 3; /* the first prepares, the better of the others counts */
    for (const std::unique_ptr<Work> &work : works_) {
        work->prepare(model(0), frame, nullptr);
        count_ = work->count();
        const int32_t kinds = sharing.sizes(count_, sizes);
        work->reserve(model(0), sizes[kinds - 1], settings.heatmaps);
        for (int32_t i = 0; !on_device() && i < sizes[kinds - 1]; ++i) work->cut(model(0), frame, i);
    }
    Work &work = *works_.front();
    const int32_t kinds = sharing.sizes(count_, sizes);
    for (const std::unique_ptr<Model> &each : models_)
        for (int32_t kind = 0; kind < kinds; ++kind) {
            double best_ms = 0;
            for (int round = 0; round < kRounds; ++round) {
                Stopwatch stage;
                if (on_device() && settings.heatmaps) work.run_on_device(*each, frame, true, nullptr);
                if (on_device()) work.run_on_device(*each, frame, false, nullptr);
                else work.infer(*each, 0, sizes[kind]);
                const double ms = stage.lap_ms();
                best_ms = round <= 1 ? ms : std::min(ms, best_ms);
            }
            sharing.measured(int64_t{sizes[kind]} * count_, best_ms);
        }
    for (const std::unique_ptr<Model> &each : models_) each->read_engine_version();
    if (on_device()) return;
    /* Reconstructions of the other groups were never written: any values will do, but for what slows arithmetic down. */
    work.score(model(0), 0, settings.heatmaps);
}

} // namespace grd
