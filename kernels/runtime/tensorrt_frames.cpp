/* tensorrt_frames.cpp - whole frames on the device.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The frame is copied once, with the first batch; each batch is one CUDA graph: patches are cut as FLOAT32, which is what
 * is scored on the host, too, and for an engine that takes FLOAT16 once more in that type. */
#include "tensorrt_frames.h"

#include <cstring>

#include "../views.h"
#include "batches.h"

namespace grd {

TensorRtFrames::TensorRtFrames(TensorRtEngine *engine, const grd_frame_desc &desc)
    : engine_(*engine), desc_(desc), patch_px_(static_cast<size_t>(desc.cut.patch_h) * static_cast<size_t>(desc.cut.patch_w)) {}

TensorRtFrames *TensorRtFrames::open(TensorRtEngine *engine, const grd_frame_desc &desc) {
    if (engine->x_hat().each != engine->x().each) {
        engine->add_note("frames cut and scored on the host (the engine yields no reconstructions)");
        return nullptr;
    }
    engine->enter();
    std::unique_ptr<TensorRtFrames> frames(new TensorRtFrames(engine, desc));
    const size_t limit = static_cast<size_t>(engine->batch_limit());
    const Batch largest = {0, engine->batch_limit(), false, false, false, false};
    frames->workspace_bytes_ = cuda::score_workspace_bytes(frames->score_of(largest));
    if (frames->workspace_bytes_ == 0) {
        engine->add_note("frames cut and scored on the host (the CUDA kernels do not take this score)");
        return nullptr;
    }
    frames->reserve(&frames->indices_, limit * sizeof(int32_t));
    frames->reserve(&frames->scores_, limit * 2 * sizeof(float));
    if (engine->x().dtype != GRD_FLOAT32) frames->x_.reserve(engine->x().values(limit) * sizeof(float));
    frames->workspace_.reserve(frames->workspace_bytes_);
    check_cuda(cudaMemsetAsync(frames->workspace_.data(), 0, frames->workspace_bytes_, engine->stream()),
               "cudaMemsetAsync");
    engine->synchronize();
    frames->graphs_ = engine->make_graphs(kVariants);
    return frames.release();
}

/* What moved is no longer where graphs look for it. */
void TensorRtFrames::reserve(Pair *pair, size_t bytes) {
    const bool moved = pair->host.reserve(bytes) | pair->device.reserve(bytes);
    if (moved && graphs_ != nullptr) graphs_->invalidate();
}

void TensorRtFrames::copy_in(const Pair &pair, size_t bytes) const {
    check_cuda(cudaMemcpyAsync(pair.device.data(), pair.host.data(), bytes, cudaMemcpyHostToDevice, engine_.stream()),
               "cudaMemcpyAsync");
}

void TensorRtFrames::copy_out(const Pair &pair, size_t bytes) const {
    check_cuda(cudaMemcpyAsync(pair.host.data(), pair.device.data(), bytes, cudaMemcpyDeviceToHost, engine_.stream()),
               "cudaMemcpyAsync");
}

/* Copies the frame to page-locked memory, pixels side by side whatever its strides. */
void TensorRtFrames::take_frame(const grd_frame_work &work) {
    const grd_view &frame = *work.frame;
    const int64_t c = frame.extent[1], h = frame.extent[2], w = frame.extent[3];
    const size_t item = frame.dtype == GRD_UINT8 ? 1 : 2;
    const bool same = cut_.dtype == frame.dtype && cut_.h == h && cut_.w == w && cut_.c == c;
    int64_t stride[4];
    strides_of(frame, false, stride);
    frame_bytes_ = static_cast<size_t>(c * h * w) * item;
    reserve(&frame_, frame_bytes_);
    if (!same) graphs_->invalidate();
    const auto *from = static_cast<const uint8_t *>(frame.data);
    auto *to = frame_.host.as<uint8_t>();
    const int64_t pixel = c * static_cast<int64_t>(item);
    const bool rows = stride[3] == pixel && (c == 1 || stride[1] == static_cast<int64_t>(item));
    for (int64_t y = 0; y < h; ++y, to += w * pixel) {
        const uint8_t *row = from + y * stride[2];
        if (rows) {
            std::memcpy(to, row, static_cast<size_t>(w * pixel));
            continue;
        }
        uint8_t *at = to;
        for (int64_t x = 0; x < w; ++x)
            for (int64_t k = 0; k < c; ++k, at += item) std::memcpy(at, row + x * stride[3] + k * stride[1], item);
    }
    cut_.frame = frame_.device.data();
    cut_.dtype = frame.dtype;
    cut_.h = static_cast<int32_t>(h), cut_.w = static_cast<int32_t>(w), cut_.c = static_cast<int32_t>(c);
    cut_.row_stride_bytes = w * pixel, cut_.pixel_stride_bytes = pixel;
    cut_.channel_stride_bytes = static_cast<int64_t>(item);
    cut_.cut = desc_.cut;
    cut_.grid = *work.grid;
    cut_.indices = indices_.device.as<int32_t>();
}

cuda::ScorePatches TensorRtFrames::score_of(const Batch &batch) const {
    cuda::ScorePatches score = {};
    const bool same = engine_.x().dtype == GRD_FLOAT32;
    score.x = same ? engine_.x().device.data() : x_.data();
    score.x_dtype = GRD_FLOAT32;
    score.x_hat = engine_.x_hat().device.data();
    score.x_hat_dtype = engine_.x_hat().dtype;
    score.n = batch.n, score.c = desc_.cut.channels, score.h = desc_.cut.patch_h, score.w = desc_.cut.patch_w;
    score.window = desc_.window, score.local_window_px = desc_.local_window_px;
    score.phi = scores_.device.as<float>();
    score.phi_local = score.phi + batch.n; /* beside it: one copy back */
    score.heatmap = batch.heatmaps ? heatmaps_.device.data() : nullptr;
    score.heatmap_dtype = GRD_FLOAT32;
    score.roi = batch.masked ? masks_.device.as<uint8_t>() : nullptr;
    score.roi_n = batch.n;
    score.workspace = workspace_.data();
    score.workspace_bytes = workspace_bytes_;
    return score;
}

void TensorRtFrames::stage(const grd_frame_work &work, const Batch &batch) {
    const size_t n = static_cast<size_t>(batch.n);
    std::memcpy(indices_.host.data(), work.indices + batch.first, n * sizeof(int32_t));
    for (size_t i = 0; batch.masked && i < n; ++i) {
        const uint8_t *mask = work.masks[static_cast<size_t>(batch.first) + i];
        uint8_t *to = masks_.host.as<uint8_t>() + i * patch_px_;
        if (mask != nullptr) std::memcpy(to, mask, patch_px_);
        else std::memset(to, 1, patch_px_);
    }
}

void TensorRtFrames::enqueue(const Batch &batch, int32_t lane) const {
    const size_t n = static_cast<size_t>(batch.n);
    cudaStream_t stream = engine_.stream();
    copy_in(indices_, n * sizeof(int32_t));
    if (batch.uploads) copy_in(frame_, frame_bytes_);
    if (batch.masked) copy_in(masks_, n * patch_px_);
    cuda::CutPatches cut = cut_;
    const cuda::ScorePatches score = score_of(batch);
    cut.count = batch.n;
    cut.patches = const_cast<void *>(score.x);
    cut.patches_dtype = GRD_FLOAT32;
    check_cuda(cuda::launch_cut(cut, stream), "cutting");
    if (engine_.x().dtype != GRD_FLOAT32) {
        cut.patches = engine_.x().device.data();
        cut.patches_dtype = engine_.x().dtype;
        check_cuda(cuda::launch_cut(cut, stream), "cutting");
    }
    engine_.enqueue(lane);
    check_cuda(cuda::launch_score(score, stream), "scoring");
    copy_out(scores_, n * 2 * sizeof(float));
    if (batch.heatmaps) copy_out(heatmaps_, n * patch_px_ * sizeof(float));
    const EngineSide &x_hat = engine_.x_hat();
    if (batch.x_hat)
        check_cuda(cudaMemcpyAsync(x_hat.staging.data(), x_hat.device.data(), x_hat.bytes(n),
                                   cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
}

void TensorRtFrames::collect(const grd_frame_work &work, const Batch &batch) const {
    const size_t n = static_cast<size_t>(batch.n), first = static_cast<size_t>(batch.first);
    const float *scores = scores_.host.as<float>();
    std::memcpy(work.phi + first, scores, n * sizeof(float));
    std::memcpy(work.phi_local + first, scores + n, n * sizeof(float));
    if (batch.heatmaps)
        std::memcpy(work.heatmaps + first * patch_px_, heatmaps_.host.data(), n * patch_px_ * sizeof(float));
    const EngineSide &x_hat = engine_.x_hat();
    if (batch.x_hat) x_hat.unstage(work.x_hat + x_hat.values(first), x_hat.values(n));
}

void TensorRtFrames::inspect(const grd_frame_work &work) {
    engine_.enter();
    const size_t limit = static_cast<size_t>(engine_.batch_limit());
    if (work.masks != nullptr) reserve(&masks_, limit * patch_px_);
    if (work.heatmaps != nullptr) reserve(&heatmaps_, limit * patch_px_ * sizeof(float));
    take_frame(work);
    Batch batch = {0, 0, true, false, work.heatmaps != nullptr, work.x_hat != nullptr};
    for (; batch.first < work.count; batch.first += batch.n, batch.uploads = false) {
        batch.n = next_batch(work.count - batch.first, engine_.batch_limit());
        batch.masked = false;
        for (int32_t i = 0; work.masks != nullptr && i < batch.n; ++i)
            batch.masked = batch.masked || work.masks[batch.first + i] != nullptr;
        stage(work, batch);
        const int32_t lane = engine_.lane_of(batch.n);
        const size_t variant = (batch.uploads ? 1 : 0) | (batch.masked ? 2 : 0) | (batch.heatmaps ? 4 : 0) |
                               (batch.x_hat ? 8 : 0);
        engine_.run(graphs_.get(), lane, static_cast<size_t>(lane) * kVariants + variant,
                    [&](void *) { enqueue(batch, lane); });
        collect(work, batch);
    }
}

} // namespace grd
