/* charge.h - a bundle in charge of a stream's frames: its engines, the memory of what is under way, and how many frames
 * share engine calls. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_CHARGE_H
#define GRD_CHARGE_H

#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"
#include "work.h"

namespace grd {

/* Which numbers of frames may share engine calls, and what that costs. */
class Sharing {
public:
    /* At most four sizes are used, since backends prepare an engine for each: 1, and the largest, its half and quarter. */
    static constexpr int32_t kSizes = 4;

    /* batch_frames 0 = as many as batch_limit patches allow. */
    void set_limits(int32_t batch_limit, int32_t batch_frames);
    /* Numbers of frames of so many patches, rising from 1; returns how many. */
    int32_t sizes(int32_t count, int32_t out[kSizes]) const;
    /* An inference of so many patches took so long. */
    void measured(int64_t patches, double ms);
    /* What it usually takes. 0 = not known. */
    double usual_ms(int64_t patches) const { return cost(patches).usual_ms; }
    /* The same to compare sizes by: less, the longer the size was not tried, so that one which was unlucky once, while the
     * machine did something else, gets another chance. */
    double hoped_ms(int64_t patches) const;

private:
    struct Cost {
        double usual_ms = 0;
        int64_t measured_at = 0;
    };
    /* Larger numbers are those of frames that share with none. */
    const Cost &cost(int64_t patches) const {
        return costs_[static_cast<size_t>(patches < batch_limit_ ? patches : batch_limit_ + 1)];
    }

    int32_t batch_limit_ = 1, batch_frames_ = 1;
    int64_t measurements_ = 0;
    std::vector<Cost> costs_;
};

struct ChargeSettings {
    int32_t engines = 1, groups = 2;
    int32_t batch_frames = 0; /* 0: as many as the batch limit allows */
    bool heatmaps = false;
    int64_t frame_h = 0, frame_w = 0; /* 0: any */
    int32_t frame_c = 0;
};

class Charge {
public:
    /* Opens and prepares everything. The bundle must stay open as long. Throws Failure. */
    Charge(const grd_bundle *bundle, const grd_inspector_params *params, const ChargeSettings &settings, int32_t number);

    const Model &model(int32_t engine) const { return *models_[static_cast<size_t>(engine)]; }
    Model &model(int32_t engine) { return *models_[static_cast<size_t>(engine)]; }
    Work &work(int32_t group) { return *works_[static_cast<size_t>(group)]; }
    const grd_bundle_info &info() const { return model(0).info; }
    bool on_device() const { return model(0).frames != nullptr; }
    int32_t number() const { return number_; }
    /* Patches of a frame of this size, or somewhat more; 0 when it cannot be cut. */
    int32_t patches_of(int64_t frame_h, int64_t frame_w) const;

    Sharing sharing;

private:
    void warm_up(const ChargeSettings &settings);

    std::vector<std::unique_ptr<Model>> models_;
    std::vector<std::unique_ptr<Work>> works_;
    int32_t number_, count_ = 0;
    int64_t frame_h_, frame_w_;
};

} // namespace grd
#endif
