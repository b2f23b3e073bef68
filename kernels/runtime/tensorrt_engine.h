/* tensorrt_engine.h - an engine of TensorRT with its device memory, a context per batch size, and their CUDA graphs. Not
 * public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_TENSORRT_ENGINE_H
#define GRD_TENSORRT_ENGINE_H

#include <array>
#include <memory>
#include <string>

#include "cuda_memory.h"
#include "graph_cache.h"
#include "grd_edge.h"
#include "runtime_cache.h"
#include "tensorrt_api.h"

namespace grd {

/* Batch sizes that get a context and graphs of their own; further sizes share one context and are enqueued by hand. What
 * is done to a context after its work was captured would spoil the graph, so no two sizes may share one. */
constexpr int32_t kLanes = 16;

/* A dense side of the engine: N,C,H,W on the device and page-locked. */
struct EngineSide {
    std::string name;
    int32_t dtype = 0; /* GRD_FLOAT32 or GRD_FLOAT16 */
    std::array<int64_t, 3> each; /* C, H, W of a patch, or of what is made of it */
    CudaBuffer device{false}, staging{true};

    size_t values(size_t patches) const { return patches * static_cast<size_t>(each[0] * each[1] * each[2]); }
    size_t bytes(size_t patches) const { return values(patches) * (dtype == GRD_FLOAT16 ? 2 : 4); }
    /* values at the beginning of `staging`, from and to FLOAT32 */
    void stage(const float *values, size_t count) const;
    void unstage(float *values, size_t count) const;
};

class TensorRtEngine {
public:
    explicit TensorRtEngine(const grd_engine_desc &desc);
    ~TensorRtEngine();
    TensorRtEngine(const TensorRtEngine &) = delete;
    TensorRtEngine &operator=(const TensorRtEngine &) = delete;

    void open(const grd_engine_desc &desc);
    void infer(const grd_view &x, const grd_view &x_hat);
    const char *version() const { return version_.c_str(); }

    /* For whole frames, tensorrt_frames.cpp. */
    int32_t batch_limit() const { return static_cast<int32_t>(batch_limit_); }
    const EngineSide &x() const { return x_; }
    const EngineSide &x_hat() const { return x_hat_; }
    cudaStream_t stream() const { return stream_; }
    /* The calling thread works on the engine's device from here on. */
    void enter() const { check_cuda(cudaSetDevice(device_), "cudaSetDevice", GRD_ERR_DEVICE); }
    /* Context for batches of n, made when the size is first seen; kLanes for the one that sizes share. */
    int32_t lane_of(int32_t n);
    void enqueue(int32_t lane) const;
    void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
    /* Runs the work of key = lane * variants + variant by its graph, or by hand; then waits. When part of it cannot be
     * enqueued, it waits for the rest, which would else still use buffers that the caller may free. */
    template <class Enqueue> void run(GraphCache *graphs, int32_t lane, size_t key, Enqueue &&enqueue) {
        try {
            if (lane == kLanes) {
                enqueue(static_cast<void *>(stream_));
            } else {
                const GraphState before = graphs->state(key);
                graphs->run(key, stream_, enqueue);
                if (graphs->state(key) != before) tell(*graphs, key, lanes_[static_cast<size_t>(lane)].batch);
            }
        } catch (...) {
            cudaStreamSynchronize(stream_);
            cudaGetLastError(); /* the first failure is told, and later calls would return this one */
            throw;
        }
        synchronize();
    }
    std::unique_ptr<GraphCache> make_graphs(size_t variants) const;
    /* Adds to the text of version(). */
    void add_note(const std::string &note);

private:
    struct Lane {
        int32_t batch = 0;
        std::unique_ptr<nvinfer1::IExecutionContext> context;
    };

    void choose_device(const grd_engine_desc &desc);
    void read(const grd_engine_desc &desc);
    void check_validity(const grd_engine_desc &desc) const;
    void check_side(const char *what, EngineSide *side) const;
    void check_profile(const grd_engine_desc &desc) const;
    void configure(const grd_engine_desc &desc);
    void save_cache();
    void prepare(Lane *lane, int32_t n) const;
    void set_batch(Lane *lane, int32_t n) const;
    void run_batch(int32_t n);
    void tell(const GraphCache &graphs, size_t key, int32_t batch);

    TensorRtApi api_;
    int64_t batch_limit_;
    int device_ = 0;
    std::string version_;
    EngineSide x_, x_hat_;
    CudaBuffer scratch_{false}; /* of the contexts, which run one at a time */
    size_t scratch_bytes_ = 0;
    cudaStream_t stream_ = nullptr;
    /* In the order of their making; contexts go first. */
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#if GRD_TENSORRT_RTX_API
    std::unique_ptr<RuntimeCacheFile> cache_file_;
    size_t cached_bytes_ = 0;
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
#endif
    std::array<Lane, kLanes + 1> lanes_;
    std::unique_ptr<GraphCache> graphs_;
};

} // namespace grd
#endif
