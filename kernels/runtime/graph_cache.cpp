/* graph_cache.cpp - CUDA graphs of work that is repeated.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "graph_cache.h"

#include "failure.h"

namespace grd {

GraphCache::GraphCache(const GraphCalls &calls, size_t size, const std::string &off) : calls_(calls), entries_(size) {
    if (off.empty()) return;
    for (Entry &entry : entries_) {
        entry.state = GraphState::kRefused;
        entry.reason = off;
    }
}

void GraphCache::refuse(Entry *entry, const char *call, int error) {
    entry->state = GraphState::kRefused;
    entry->reason = std::string(call) + ": " + calls_.words(error);
}

void GraphCache::run_with(size_t key, void *stream, ByHand enqueue, void *work) {
    Entry &entry = entries_[key];
    if (entry.state == GraphState::kNever) {
        enqueue(work, stream);
        if (const int error = calls_.synchronize(stream))
            fail(GRD_ERR_ENGINE_RUN, std::string("cudaStreamSynchronize: ") + calls_.words(error));
        entry.state = GraphState::kWarm;
        capture(&entry, stream, enqueue, work);
        return;
    }
    if (entry.state == GraphState::kWarm) capture(&entry, stream, enqueue, work);
    if (entry.state == GraphState::kCaptured) {
        const int error = calls_.launch(entry.executable, stream);
        if (error == 0) return;
        calls_.destroy_executable(entry.executable);
        entry.executable = nullptr;
        refuse(&entry, "cudaGraphLaunch", error);
    }
    enqueue(work, stream);
}

void GraphCache::capture(Entry *entry, void *stream, ByHand enqueue, void *work) {
    if (const int error = calls_.begin_capture(stream)) return refuse(entry, "cudaStreamBeginCapture", error);
    std::string failed;
    try {
        enqueue(work, stream);
    } catch (const Failure &failure) {
        failed = failure.message;
    }
    /* Ended whatever happened: else the stream would take no work any more. */
    void *graph = nullptr;
    int error = calls_.end_capture(stream, &graph);
    if (!failed.empty() || error != 0 || graph == nullptr) {
        if (graph != nullptr) calls_.destroy_graph(graph);
        refuse(entry, "cudaStreamEndCapture", error);
        if (!failed.empty()) entry->reason = failed;
        return;
    }
    void *executable = nullptr;
    error = calls_.instantiate(&executable, graph);
    calls_.destroy_graph(graph);
    if (error != 0) return refuse(entry, "cudaGraphInstantiate", error);
    entry->executable = executable;
    entry->state = GraphState::kCaptured;
}

void GraphCache::invalidate() {
    for (Entry &entry : entries_) {
        if (entry.state != GraphState::kCaptured) continue;
        calls_.destroy_executable(entry.executable);
        entry.executable = nullptr;
        entry.state = GraphState::kWarm;
    }
}

} // namespace grd
