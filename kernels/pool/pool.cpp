/* pool.cpp - a fixed set of threads that sleep between calls.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Items are handed out by one counter, so a slow one delays nobody. Which thread does an item cannot matter: items
 * share nothing but read-only arguments. */
#include "pool/pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

struct grd_pool {
    std::mutex mutex;
    std::condition_variable begin, end;
    std::vector<std::thread> threads;
    /* The call at hand, guarded by the mutex. */
    uint64_t calls = 0; /* so far; a thread that has seen fewer may join the one that is open */
    bool open = false;  /* until the caller finds no more items */
    int32_t joined = 0; /* threads at work on it; those that wake too late do not keep the caller */
    bool closing = false;
    grd::PoolTask task = nullptr;
    void *context = nullptr;
    int64_t count = 0;
    std::atomic<int64_t> next{0};

    void work(int32_t worker) {
        for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(context, i, worker);
    }

    void live(int32_t worker) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            begin.wait(lock, [&] { return closing || (open && calls != seen); });
            if (closing) return;
            seen = calls;
            ++joined;
            lock.unlock();
            work(worker);
            lock.lock();
            if (--joined == 0) end.notify_one();
        }
    }

    void close() {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            closing = true;
        }
        begin.notify_all();
        for (std::thread &thread : threads) thread.join();
        threads.clear();
    }
};

namespace grd {

int32_t pool_threads(const grd_pool *pool) {
    return pool != nullptr ? static_cast<int32_t>(pool->threads.size()) + 1 : 1;
}

void pool_run(grd_pool *pool, int64_t count, PoolTask task, void *context) {
    if (pool == nullptr || pool->threads.empty() || count < 2) {
        for (int64_t i = 0; i < count; ++i) task(context, i, 0);
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(pool->mutex);
        pool->task = task, pool->context = context, pool->count = count;
        pool->next = 0;
        pool->open = true;
        ++pool->calls;
    }
    pool->begin.notify_all();
    pool->work(0);
    std::unique_lock<std::mutex> lock(pool->mutex);
    pool->open = false;
    pool->end.wait(lock, [&] { return pool->joined == 0; });
}

} // namespace grd

grd_status grd_pool_open(int32_t threads, grd_pool **out) {
    if (out == nullptr) return GRD_ERR_ARGUMENT;
    *out = nullptr;
    if (threads < 1 || threads > 1024) return GRD_ERR_ARGUMENT;
    grd_pool *pool = new (std::nothrow) grd_pool();
    if (pool == nullptr) return GRD_ERR_MEMORY;
    try {
        pool->threads.reserve(static_cast<size_t>(threads) - 1);
        for (int32_t i = 1; i < threads; ++i) pool->threads.emplace_back(&grd_pool::live, pool, i);
    } catch (const std::bad_alloc &) {
        grd_pool_close(pool);
        return GRD_ERR_MEMORY;
    } catch (const std::system_error &) {
        grd_pool_close(pool);
        return GRD_ERR_THREAD;
    }
    *out = pool;
    return GRD_OK;
}

void grd_pool_close(grd_pool *pool) {
    if (pool == nullptr) return;
    pool->close();
    delete pool;
}
