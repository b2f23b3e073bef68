/* tensorrt_frames.h - whole frames on the device: cut, infer and score on the engine's stream, one copy back. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_TENSORRT_FRAMES_H
#define GRD_TENSORRT_FRAMES_H

#include "../cuda/launch.h"
#include "tensorrt_engine.h"

namespace grd {

class TensorRtFrames {
public:
    /* nullptr when the kernels do not take such frames. Throws Failure. */
    static TensorRtFrames *open(TensorRtEngine *engine, const grd_frame_desc &desc);

    void inspect(const grd_frame_work &work);

private:
    /* Memory of the host, page-locked, and of the device, copied from one to the other. */
    struct Pair {
        CudaBuffer host{true}, device{false};
    };
    /* A batch: patches [first, first + n) of the work, and what is done beside it. */
    struct Batch {
        int32_t first, n;
        bool uploads, masked, heatmaps, x_hat; /* make the variant of the graph */
    };
    static constexpr size_t kVariants = 16;

    TensorRtFrames(TensorRtEngine *engine, const grd_frame_desc &desc);
    cuda::ScorePatches score_of(const Batch &batch) const;
    void take_frame(const grd_frame_work &work);
    void stage(const grd_frame_work &work, const Batch &batch);
    void enqueue(const Batch &batch, int32_t lane) const;
    void collect(const grd_frame_work &work, const Batch &batch) const;
    void reserve(Pair *pair, size_t bytes);
    void copy_in(const Pair &pair, size_t bytes) const;
    void copy_out(const Pair &pair, size_t bytes) const;

    TensorRtEngine &engine_;
    grd_frame_desc desc_;
    size_t patch_px_;
    cuda::CutPatches cut_ = {}; /* of the frame that is there */
    size_t frame_bytes_ = 0;
    Pair frame_, indices_, masks_, scores_, heatmaps_;
    CudaBuffer x_{false};       /* FLOAT32 patches to score, where the engine takes others */
    CudaBuffer workspace_{false};
    size_t workspace_bytes_ = 0;
    std::unique_ptr<GraphCache> graphs_;
};

} // namespace grd
#endif
