/* graph_cache.h - CUDA graphs of work that is repeated: captured once, replayed afterwards. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A small state machine over a table of functions, so that it is tested where there is no device. */
#ifndef GRD_GRAPH_CACHE_H
#define GRD_GRAPH_CACHE_H

#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

namespace grd {

/* The CUDA calls that it needs, on opaque handles; results are error codes, 0 = success. */
struct GraphCalls {
    int (*synchronize)(void *stream);
    int (*begin_capture)(void *stream);
    int (*end_capture)(void *stream, void **graph);
    int (*instantiate)(void **executable, void *graph);
    int (*launch)(void *executable, void *stream);
    void (*destroy_graph)(void *graph);
    void (*destroy_executable)(void *executable);
    const char *(*words)(int error); /* and forgets the error, which later calls would return again */
};

enum class GraphState {
    kNever,    /* the work has not run: it may still load code, which cannot be captured */
    kWarm,     /* it has run, and is captured when it is wanted next */
    kCaptured, /* it is replayed */
    kRefused   /* it is enqueued each time; `reason` says why */
};

class GraphCache {
public:
    /* Keys are 0 to size - 1. off: why nothing is to be captured; "" captures. */
    GraphCache(const GraphCalls &calls, size_t size, const std::string &off = "");
    ~GraphCache() { invalidate(); }
    GraphCache(const GraphCache &) = delete;
    GraphCache &operator=(const GraphCache &) = delete;

    /* Enqueues the work of this key on the stream, by its graph where there is one. enqueue(stream) enqueues it by hand
     * and throws Failure when it cannot, which passes, unless the work can run without its graph. */
    template <class Enqueue> void run(size_t key, void *stream, Enqueue &&enqueue) {
        using Work = std::remove_reference_t<Enqueue>;
        run_with(key, stream, [](void *work, void *on) { (*static_cast<Work *>(work))(on); }, &enqueue);
    }
    /* Forgets what was captured: addresses or arguments in it are no longer right. */
    void invalidate();

    GraphState state(size_t key) const { return entries_[key].state; }
    const std::string &reason(size_t key) const { return entries_[key].reason; }

private:
    struct Entry {
        GraphState state = GraphState::kNever;
        void *executable = nullptr;
        std::string reason;
    };
    using ByHand = void (*)(void *work, void *stream);

    void run_with(size_t key, void *stream, ByHand enqueue, void *work);
    void capture(Entry *entry, void *stream, ByHand enqueue, void *work);
    void refuse(Entry *entry, const char *call, int error);

    GraphCalls calls_;
    std::vector<Entry> entries_;
};

} // namespace grd
#endif
