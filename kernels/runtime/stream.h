/* stream.h - the threads of a stream and what they share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The threads have no stages of their own: each does what is furthest on, so that a lone frame goes through all of them
 * in one thread, and frames overlap where there are more. Which frame is where is in the ledger; everything else of a
 * frame is touched by the one thread that works on its group, or under the mutex. */
#ifndef GRD_STREAM_H
#define GRD_STREAM_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>

#include "charge.h"
#include "grd_edge.h"
#include "histogram.h"
#include "ledger.h"
#include "products.h"

namespace grd {

/* Checked parameters, with defaults in place of 0. Throws Failure. */
grd_stream_params stream_params_of(const grd_stream_params *given);
/* Throws Failure; only what makes a frame impossible to take. */
void check_stream_frame(const grd_stream_params &params, const grd_stream_frame *frame);

class Stream {
public:
    /* params as stream_params_of gives them; what they point to must last for the call only. Throws Failure. */
    Stream(const grd_bundle *bundle, const grd_stream_params &params);
    ~Stream();
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    const grd_stream_params &params() const { return params_; }
    grd_status submit(const grd_stream_frame &frame);
    /* timeout_ns below 0: forever. */
    grd_status wait(grd_stream_result *result, int64_t timeout_ns);
    grd_status flush(int64_t timeout_ns);
    void swap(const grd_bundle *bundle);
    void get_stats(grd_stream_stats *out) const;
    std::string engine_version() const;
    void grid(int64_t frame_h, int64_t frame_w, grd_grid *out) const;

private:
    using Lock = std::unique_lock<std::mutex>;

    struct Frame {
        grd_stream_frame given;
        grd_stream_result result;
        int64_t submitted_ns, begun_ns, deadline_ns; /* on the steady clock; no deadline: the largest */
        bool fits; /* it went, or goes, to the engine */
        int32_t slot; /* in the Work of its group */
    };
    /* What threads sleep on. */
    struct Bell {
        std::condition_variable condition;
        std::atomic<uint32_t> rung{0};
    };

    /* stream.cpp */
    std::unique_ptr<Charge> opened_charge(const grd_bundle *bundle, int32_t number) const;
    void begin();
    void end();
    void live();
    Job next_job(Lock &lock);
    void unlock_and_wake(Lock &lock);
    void ring(const Wakes &wakes);
    /* Sleeps until the bell rings, or until a time; may return early. *watched is false at first, and kept between calls. */
    void sleep(Lock &lock, Bell *bell, int64_t until_ns, bool *watched);
    void publish(Lock &lock, int32_t group);
    void come_back(int32_t entry, int64_t now_ns);
    void deliver(Lock &lock);
    Frame &frame(int32_t entry) { return frames_[static_cast<size_t>(entry)]; }
    Charge &charge_of(int32_t group) const { return *charges_[static_cast<size_t>(ledger_.charge_of_group(group))]; }
    Work &work_of(int32_t group) const { return charge_of(group).work(group % params_.threads); }

    /* stream_batch.cpp */
    int32_t frames_to_cut(int64_t now_ns, int64_t *until_ns);

    /* stream_work.cpp; without the mutex, but where they say so */
    void cut(int32_t group);
    bool cut_one(Charge *charge, Work *work, int32_t frames, Frame *frame, int32_t slot);
    void infer(Lock &lock, const Job &job);
    static void infer_together(const Charge &charge, Work *work, int32_t engine, int32_t frames);
    void infer_apart(const Model &model, Work *work, int32_t group);
    void score(const Model &model, Work *work, Frame *frame);
    static void fail_frame(Frame *frame, grd_status status, const char *message);
    template <class Step> bool attempt(Frame *frame, Step &&step);

    grd_stream_params params_;
    std::vector<int32_t> cpus_;
    std::string target_, precision_, backend_dir_, vendor_dir_, variant_; /* behind inspector_params_ */
    grd_inspector_params inspector_params_ = {};
    ChargeSettings charge_settings_;

    mutable std::mutex mutex_;
    Bell work_, room_, result_, idle_;
    std::unique_ptr<Charge> charges_[kCharges];
    Ledger ledger_;
    std::vector<Frame> frames_; /* by entry */
    Products products_;
    int64_t good_ = 0, defective_ = 0, undecided_ = 0, batches_ = 0, patches_ = 0;
    int32_t flushing_ = 0; /* calls that want no frame to wait for others */
    bool delivering_ = false;
    std::thread::id deliverer_;
    std::mutex swap_mutex_;
    Histogram queue_ns_, cut_ns_, infer_ns_, score_ns_, total_ns_;
    int64_t opened_ns_ = 0;
    std::vector<std::thread> threads_;
};

constexpr int64_t kForever = std::numeric_limits<int64_t>::max();
constexpr double kNsPerMs = 1e6;
/* Now, on the steady clock. */
int64_t steady_ns();
/* So long after it; kForever for 0, for what is negative, and for what is beyond the clock. */
int64_t later(int64_t ns, double ms);

} // namespace grd
#endif
