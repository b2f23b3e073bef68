/* engine_thread.h - one thread that does all of an engine's work, whoever asks for it. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_ENGINE_THREAD_H
#define GRD_ENGINE_THREAD_H

#include <condition_variable>
#include <csignal>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "failure.h"

namespace grd {

/* For one caller at a time. It runs on the CPUs of the thread that made it, and takes no signals. */
class EngineThread {
public:
    EngineThread() {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* threads begin with their maker's */
        try {
            thread_ = std::thread([this] { live(); });
        } catch (const std::system_error &error) {
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            fail(GRD_ERR_THREAD, std::string("the system gave no thread (") + error.what() + "); raise its limit");
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    ~EngineThread() {
        hand_over(nullptr, nullptr);
        thread_.join();
    }
    EngineThread(const EngineThread &) = delete;
    EngineThread &operator=(const EngineThread &) = delete;

    /* Does it there, and waits; throws what it throws. */
    template <class Task> void run(Task &&task) {
        hand_over([](void *known) { (*static_cast<std::remove_reference_t<Task> *>(known))(); }, &task);
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

private:
    using Call = void (*)(void *);

    void hand_over(Call call, void *task) {
        std::unique_lock<std::mutex> lock(mutex_);
        call_ = call;
        task_ = task;
        waits_ = true;
        changed_.notify_one();
        done_.wait(lock, [&] { return !waits_; });
    }

    void live() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (bool more = true; more;) {
            changed_.wait(lock, [&] { return waits_; });
            more = call_ != nullptr;
            lock.unlock();
            try {
                if (more) call_(task_);
            } catch (...) {
                error_ = std::current_exception();
            }
            lock.lock();
            waits_ = false;
            done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_, done_;
    bool waits_ = false; /* a task, or the end */
    Call call_ = nullptr;
    void *task_ = nullptr;
    std::exception_ptr error_;
    std::thread thread_;
};

} // namespace grd
#endif
