/* stream.cpp - the threads of a stream: who does what next, who waits for whom.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <system_error>

#include <pthread.h>

#include "failure.h"

namespace grd {
namespace {

std::chrono::steady_clock::time_point time_of(int64_t ns) {
    return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(ns));
}

double ms_of(int64_t ns) { return static_cast<double>(ns) / kNsPerMs; }

void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/* The calling thread, and what it starts, to these CPUs; 0 or the system's error. */
int pin(const std::vector<int32_t> &cpus) {
    if (cpus.empty()) return 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int32_t cpu : cpus) CPU_SET(static_cast<size_t>(cpu), &set);
    return ::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set);
}

/* Runs work in a thread of its own on these CPUs, so that the threads of vendors' libraries stay there, too. */
template <class Task> void run_pinned(const std::vector<int32_t> &cpus, Task &&task) {
    if (cpus.empty()) return task();
    std::exception_ptr error;
    std::thread([&] {
        try {
            if (const int refused = pin(cpus))
                fail(GRD_ERR_ARGUMENT,
                     text("params.cpus names no CPU that this process may use (%s)", std::strerror(refused)));
            task();
        } catch (...) {
            error = std::current_exception();
        }
    }).join();
    if (error) std::rethrow_exception(error);
}

Wakes one_worker() {
    Wakes wakes;
    wakes.worker = true;
    return wakes;
}

Wakes all_workers() {
    Wakes wakes;
    wakes.workers = true;
    return wakes;
}

Ledger::Settings ledger_settings(const grd_stream_params &params) {
    Ledger::Settings settings = {};
    settings.queue_depth = params.queue_depth;
    settings.capacity = params.capacity;
    settings.overload = static_cast<Overload>(params.overload);
    settings.engines = params.engines;
    settings.groups = params.threads;
    const int32_t limit = params.inspector->batch_limit > 0 ? params.inspector->batch_limit : 16;
    settings.group_frames = params.batch_frames > 0 ? std::min(limit, params.batch_frames) : limit;
    return settings;
}

} // namespace

int64_t later(int64_t ns, double ms) {
    return ms > 0 && ms * kNsPerMs < 9e18 - static_cast<double>(ns) ? ns + static_cast<int64_t>(ms * kNsPerMs) : kForever;
}

int64_t steady_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

Stream::Stream(const grd_bundle *bundle, const grd_stream_params &params)
    : params_(params), ledger_(ledger_settings(params)), frames_(static_cast<size_t>(params.capacity)),
      products_(params.open_products), opened_ns_(steady_ns()) {
    if (params.cpus != nullptr) cpus_.assign(params.cpus, params.cpus + params.cpu_count);
    params_.cpus = cpus_.data();
    inspector_params_ = *params.inspector;
    const auto keep = [](std::string *kept, const char **pointer) {
        if (*pointer == nullptr) return;
        *kept = *pointer;
        *pointer = kept->c_str();
    };
    keep(&target_, &inspector_params_.target);
    keep(&precision_, &inspector_params_.precision);
    keep(&backend_dir_, &inspector_params_.backend_dir);
    keep(&vendor_dir_, &inspector_params_.vendor_dir);
    keep(&variant_, &inspector_params_.variant);
    params_.inspector = &inspector_params_;
    charge_settings_.engines = params.engines;
    charge_settings_.groups = params.threads;
    charge_settings_.batch_frames = params.batch_frames;
    charge_settings_.heatmaps = params.heatmaps != 0;
    charge_settings_.frame_h = params.frame_h;
    charge_settings_.frame_w = params.frame_w;
    charge_settings_.frame_c = params.frame_c;
    charges_[0] = opened_charge(bundle, 0);
    begin();
}

Stream::~Stream() { end(); }

std::unique_ptr<Charge> Stream::opened_charge(const grd_bundle *bundle, int32_t number) const {
    std::unique_ptr<Charge> charge;
    run_pinned(cpus_, [&] {
        charge = std::make_unique<Charge>(bundle, &inspector_params_, charge_settings_, number);
    });
    return charge;
}

void Stream::begin() {
    threads_.reserve(static_cast<size_t>(params_.threads));
    try {
        for (int32_t i = 0; i < params_.threads; ++i)
            threads_.emplace_back([this] {
                pin(cpus_);
                ::pthread_setname_np(::pthread_self(), "grd-stream");
                live();
            });
    } catch (const std::system_error &error) {
        end();
        fail(GRD_ERR_THREAD, std::string("the system gave no thread (") + error.what() + "); use fewer, or raise its limit");
    }
}

/* What waits is dropped, what is under way ends. */
void Stream::end() {
    Lock lock(mutex_);
    ledger_.stop();
    const int64_t now = steady_ns();
    for (int32_t entry; (entry = ledger_.drop_waiting()) != kNone;) come_back(entry, now);
    unlock_and_wake(lock);
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
}

/* ---------------------------------------------------------------- sleeping and waking */

void Stream::ring(const Wakes &wakes) {
    const auto one = [](Bell *bell) {
        bell->rung.fetch_add(1, std::memory_order_release);
        bell->condition.notify_one();
    };
    const auto all = [](Bell *bell) {
        bell->rung.fetch_add(1, std::memory_order_release);
        bell->condition.notify_all();
    };
    if (wakes.workers) all(&work_);
    else if (wakes.worker) one(&work_);
    if (wakes.producer) all(&room_);
    if (wakes.consumer) all(&result_);
    if (wakes.idler) all(&idle_);
}

/* A thread that is woken while the mutex is held would only wait for it. */
void Stream::unlock_and_wake(Lock &lock) {
    const Wakes wakes = ledger_.wakes();
    lock.unlock();
    ring(wakes);
}

/* Whoever has watched must look again before sleeping: a step may have been made whose bell rings only now. */
void Stream::sleep(Lock &lock, Bell *bell, int64_t until_ns, bool *watched) {
    ring(ledger_.wakes());
    if (params_.spin_us > 0 && !*watched) {
        const uint32_t seen = bell->rung.load(std::memory_order_relaxed);
        lock.unlock();
        const int64_t end = std::min(until_ns, steady_ns() + static_cast<int64_t>(params_.spin_us * 1e3));
        *watched = true;
        while (*watched && steady_ns() < end) {
            for (int i = 0; i < 16 && *watched; ++i) {
                pause_cpu();
                *watched = bell->rung.load(std::memory_order_acquire) == seen;
            }
            if (*watched) std::this_thread::yield(); /* whoever rings may be waiting for this very CPU */
        }
        lock.lock();
        return;
    }
    *watched = false;
    if (until_ns == kForever) bell->condition.wait(lock);
    else bell->condition.wait_until(lock, time_of(until_ns));
}

/* ---------------------------------------------------------------- callers */

grd_status Stream::submit(const grd_stream_frame &given) {
    const int64_t now = steady_ns();
    Lock lock(mutex_);
    int32_t entry = kNone, dropped = kNone;
    const bool may_wait = !delivering_ || deliverer_ != std::this_thread::get_id();
    Admission admission;
    bool watched = false;
    while ((admission = ledger_.admit(may_wait, &entry, &dropped)) == Admission::wait)
        sleep(lock, &room_, kForever, &watched);
    if (admission == Admission::refused) {
        unlock_and_wake(lock);
        return GRD_ERR_STREAM_FULL;
    }
    Frame &taken = frame(entry);
    taken.given = given;
    taken.submitted_ns = taken.begun_ns = now;
    taken.deadline_ns = later(now, given.deadline_ms != 0 ? given.deadline_ms : params_.deadline_ms);
    taken.fits = false;
    taken.result = {};
    taken.result.struct_size = sizeof(taken.result);
    if (dropped != kNone) come_back(dropped, now);
    const bool tell = dropped != kNone && params_.on_result != nullptr;
    unlock_and_wake(lock);
    if (tell) ring(one_worker()); /* which hands it to the callback */
    return GRD_OK;
}

grd_status Stream::wait(grd_stream_result *result, int64_t timeout_ns) {
    Lock lock(mutex_);
    int32_t entry = ledger_.take();
    if (entry == kNone && timeout_ns == 0) return GRD_ERR_STREAM_TIMEOUT;
    if (entry == kNone) {
        const int64_t until = timeout_ns < 0 ? kForever : steady_ns() + timeout_ns;
        bool watched = false;
        while ((entry = ledger_.take()) == kNone) {
            if (until != kForever && steady_ns() >= until) return GRD_ERR_STREAM_TIMEOUT;
            sleep(lock, &result_, until, &watched);
        }
    }
    const uint32_t struct_size = result->struct_size;
    *result = frame(entry).result;
    result->struct_size = struct_size;
    ledger_.release(entry);
    unlock_and_wake(lock);
    return GRD_OK;
}

grd_status Stream::flush(int64_t timeout_ns) {
    Lock lock(mutex_);
    const int64_t until = timeout_ns < 0 ? kForever : steady_ns() + timeout_ns;
    const auto idle = [&] {
        const Counts &counts = ledger_.counts();
        if (counts.waiting + counts.working > 0) return false;
        return params_.on_result == nullptr || (counts.ready == 0 && !delivering_);
    };
    ++flushing_;
    if (!idle()) ring(all_workers()); /* none waits for more frames to share a batch */
    grd_status status = GRD_OK;
    bool watched = false;
    while (!idle()) {
        if (until != kForever && steady_ns() >= until) {
            status = GRD_ERR_STREAM_TIMEOUT;
            break;
        }
        sleep(lock, &idle_, until, &watched);
    }
    --flushing_;
    return status;
}

void Stream::swap(const grd_bundle *bundle) {
    const std::lock_guard<std::mutex> one_at_a_time(swap_mutex_);
    std::unique_ptr<Charge> fresh = opened_charge(bundle, charges_[ledger_.charge()]->number() + 1);
    std::unique_ptr<Charge> old;
    {
        Lock lock(mutex_);
        const int32_t ends = ledger_.charge();
        charges_[1 - ends] = std::move(fresh);
        ledger_.hand_over();
        bool watched = false;
        while (ledger_.in_flight(ends) > 0) sleep(lock, &idle_, kForever, &watched);
        old = std::move(charges_[ends]);
    }
}

void Stream::get_stats(grd_stream_stats *out) const {
    grd_stream_stats stats = {};
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const Counts &counts = ledger_.counts();
        stats.generation = charges_[ledger_.charge()]->number();
        stats.submitted = counts.submitted;
        stats.scored = counts.scored;
        stats.late = counts.late;
        stats.dropped = counts.dropped;
        stats.failed = counts.failed;
        stats.in_flight = counts.waiting + counts.working;
        stats.waiting = counts.waiting;
        stats.ready = counts.ready;
        stats.refused = counts.refused;
        stats.good = good_;
        stats.defective = defective_;
        stats.undecided = undecided_;
        stats.products_closed = products_.forgotten();
        stats.batches = batches_;
        stats.patches = patches_;
        const int64_t now = steady_ns();
        int64_t oldest = now;
        for (const int32_t entry : {ledger_.oldest_working(), ledger_.first_waiting()})
            if (entry != kNone) oldest = std::min(oldest, frames_[static_cast<size_t>(entry)].submitted_ns);
        stats.oldest_ms = ms_of(now - oldest);
        stats.uptime_s = ms_of(now - opened_ns_) * 1e-3;
    }
    stats.queue = queue_ns_.latency();
    stats.cut = cut_ns_.latency();
    stats.infer = infer_ns_.latency();
    stats.score = score_ns_.latency();
    stats.total = total_ns_.latency();
    stats.struct_size = out->struct_size;
    *out = stats;
}

std::string Stream::engine_version() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return charges_[ledger_.charge()]->model(0).engine_version;
}

void Stream::grid(int64_t frame_h, int64_t frame_w, grd_grid *out) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    grid_of_size(charges_[ledger_.charge()]->model(0), frame_h, frame_w, out);
}

/* ---------------------------------------------------------------- threads of the stream */

void Stream::live() {
    Lock lock(mutex_);
    for (;;) {
        const Job job = next_job(lock);
        if (job.kind == Job::Kind::none) return unlock_and_wake(lock); /* the last one's work let the others leave, too */
        if (job.kind == Job::Kind::cut) {
            const int64_t now = steady_ns();
            for (int32_t i = 0; i < ledger_.group_size(job.group); ++i)
                frame(ledger_.member(job.group, i)).begun_ns = now;
            unlock_and_wake(lock);
            cut(job.group);
            lock.lock();
            bool any = false;
            for (int32_t i = 0; i < ledger_.group_size(job.group); ++i)
                any = any || frame(ledger_.member(job.group, i)).fits;
            if (any) {
                ledger_.cut_done(job.group);
                continue;
            }
            ledger_.cut_failed(job.group);
        } else {
            unlock_and_wake(lock);
            infer(lock, job);
        }
        publish(lock, job.group);
    }
}

/* Sleeps until there is one; Kind::none: leave. */
Job Stream::next_job(Lock &lock) {
    for (bool watched = false;;) {
        if (params_.on_result != nullptr && ledger_.counts().ready > 0 && !delivering_) deliver(lock);
        const Job inference = ledger_.next_inference();
        if (inference.kind != Job::Kind::none) return inference;
        int64_t until = kForever;
        if (ledger_.can_cut()) {
            const int32_t frames = frames_to_cut(steady_ns(), &until);
            if (frames > 0) return ledger_.next_cut(frames);
        }
        if (ledger_.ended()) return Job();
        sleep(lock, &work_, until, &watched);
    }
}

/* The group is scored, or failed. The results of those before it, and its own where none is missing, become ready. */
void Stream::publish(Lock &lock, int32_t done) {
    const int64_t now = steady_ns();
    ledger_.score_done(done);
    for (int32_t group; (group = ledger_.publishable()) != kNone;) {
        for (int32_t i = 0; i < ledger_.group_size(group); ++i) {
            const int32_t entry = ledger_.member(group, i);
            const bool in_time = now <= frame(entry).deadline_ns;
            ledger_.settle(entry, !frame(entry).fits ? Outcome::failed : in_time ? Outcome::scored : Outcome::late);
            come_back(entry, now);
        }
        ledger_.publish(group);
    }
    if (params_.on_result != nullptr) deliver(lock);
}

/* Completes the result of a frame whose outcome is known; under the mutex. */
void Stream::come_back(int32_t entry, int64_t now_ns) {
    Frame &back = frame(entry);
    grd_stream_result &result = back.result;
    const Charge &charge = *charges_[ledger_.charge_of_entry(entry)];
    const Outcome outcome = ledger_.outcome(entry);
    result.outcome = static_cast<int32_t>(outcome);
    result.generation = charge.number();
    result.id = back.given.id;
    result.product = back.given.product;
    result.run = back.given.run;
    result.user = back.given.user;
    result.total_ms = ms_of(now_ns - back.submitted_ns);
    if (outcome == Outcome::scored || outcome == Outcome::late) {
        result.queue_ms = ms_of(back.begun_ns - back.submitted_ns);
        const std::pair<Histogram *, double> times[] = {{&queue_ns_, result.queue_ms},
                                                        {&cut_ns_, result.cut_ms},
                                                        {&infer_ns_, result.infer_ms},
                                                        {&score_ns_, result.score_ms},
                                                        {&total_ns_, result.total_ms}};
        for (const auto &[histogram, ms] : times) histogram->add(static_cast<int64_t>(ms * kNsPerMs));
        ++(result.decision == GRD_GOOD ? good_ : result.decision == GRD_DEFECTIVE ? defective_ : undecided_);
        patches_ += result.patch_count;
    } else {
        result.decision = GRD_NOT_INSPECTED;
        result.score = result.threshold = std::numeric_limits<float>::quiet_NaN();
        result.patch_count = result.defective_count = 0;
    }
    products_.add(back.given, charge.info(), &result);
}

/* Hands results to the callback, one thread at a time; whoever comes meanwhile leaves its own to that one. */
void Stream::deliver(Lock &lock) {
    if (delivering_) return;
    delivering_ = true;
    deliverer_ = std::this_thread::get_id();
    for (int32_t entry; (entry = ledger_.take()) != kNone;) {
        const grd_stream_result result = frame(entry).result;
        ledger_.pass_on();
        unlock_and_wake(lock);
        params_.on_result(params_.context, &result);
        lock.lock();
        ledger_.release(entry);
    }
    delivering_ = false;
    idle_.rung.fetch_add(1, std::memory_order_release);
    idle_.condition.notify_all();
}

} // namespace grd
