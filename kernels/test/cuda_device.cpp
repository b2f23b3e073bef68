/* cuda_device.cpp - the CUDA kernels as a variant over host memory, so that the tests of the CPU variants run on a device.
 * For tests only.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each call copies its arrays to guarded device memory, runs once, then again from a CUDA graph that was captured from the
 * same call, and compares the bits. Whatever does not hold ends the program. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda_runtime_api.h>

#include "patchify/patchify_kernels.h"
#include "score/score_internal.h"
#include "views.h"

namespace {

constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xa5;

[[noreturn]] void stop(const char *what, const char *why, int status) {
    std::fprintf(stderr, "%s: %s\n", what, why);
    std::exit(status);
}
void check(cudaError_t error, const char *what) {
    if (error != cudaSuccess) stop(what, cudaGetErrorString(error), 3);
}
void check(grd_status status) {
    if (status != GRD_OK) stop(grd_status_name(status), grd_cuda_message(), 3);
}

cudaStream_t the_stream() {
    static cudaStream_t stream = [] {
        cudaStream_t made;
        int devices = 0;
        const cudaError_t error = cudaGetDeviceCount(&devices);
        if (error != cudaSuccess || devices == 0) stop("no CUDA device answers", cudaGetErrorString(error), 77);
        check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream");
        return made;
    }();
    return stream;
}

/* Device memory between guards. It begins with kGuardByte, so that what the kernels do not write shows. */
class Guarded {
  public:
    explicit Guarded(size_t bytes) : bytes_(bytes) {
        the_stream();
        check(cudaMalloc(reinterpret_cast<void **>(&base_), bytes + 2 * kGuard), "cudaMalloc");
        check(cudaMemset(base_, kGuardByte, bytes + 2 * kGuard), "cudaMemset");
    }
    Guarded(const Guarded &) = delete;
    ~Guarded() {
        std::vector<unsigned char> all(bytes_ + 2 * kGuard);
        check(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost), "guards");
        for (size_t i = 0; i < kGuard; i++)
            if (all[i] != kGuardByte || all[kGuard + bytes_ + i] != kGuardByte) stop("guards", "written outside", 3);
        cudaFree(base_);
    }
    void *data() const { return base_ + kGuard; }
    void fill(const void *from, size_t bytes) const {
        check(cudaMemcpy(data(), from, bytes, cudaMemcpyHostToDevice), "copy in");
    }
    std::vector<char> read() const {
        std::vector<char> out(bytes_);
        check(cudaMemcpy(out.data(), data(), bytes_, cudaMemcpyDeviceToHost), "copy out");
        return out;
    }
    void wipe() const { check(cudaMemset(data(), kGuardByte, bytes_), "cudaMemset"); }

  private:
    char *base_ = nullptr;
    size_t bytes_;
};

/* call(stream), then a graph of it: 100 replays of the first calls, one of the others. */
template <class Call> void run_and_replay(const Call &call, std::initializer_list<const Guarded *> outputs) {
    const cudaStream_t stream = the_stream();
    static int calls = 0;
    static const char *const limit = std::getenv("GRD_TEST_CALLS"); /* under compute-sanitizer all would take hours */
    if (limit != nullptr && calls >= std::atoi(limit)) stop("stopped", "as many calls as GRD_TEST_CALLS says", 0);
    const int replays = calls++ < 20 ? 100 : 1;
    check(call(stream));
    check(cudaStreamSynchronize(stream), "kernel");
    std::vector<std::vector<char>> expected;
    for (const Guarded *output : outputs) expected.push_back(output->read());
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    check(call(stream));
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&replay, graph, 0), "graph");
    for (int i = 0; i < replays; i++) {
        for (const Guarded *output : outputs) output->wipe();
        check(cudaGraphLaunch(replay, stream), "replay");
        check(cudaStreamSynchronize(stream), "replay");
        size_t k = 0;
        for (const Guarded *output : outputs)
            if (output->read() != expected[k++]) stop("graph", "a replay gives other bits", 3);
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
}

grd_view device_view(const Guarded &memory, int32_t dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
    return {memory.data(), dtype, GRD_SPACE_CUDA, {n, c, h, w}, {0, 0, 0, 0}};
}

} // namespace

namespace grd::score {
namespace {

std::vector<char> dense(const Image &image, const Job &job, int32_t dtype, int64_t c) {
    const size_t item = static_cast<size_t>(dtype_bytes(dtype));
    std::vector<char> out(static_cast<size_t>(c * job.h * job.w) * item);
    char *to = out.data();
    for (int64_t k = 0; k < c; k++)
        for (int64_t y = 0; y < job.h; y++)
            for (int64_t x = 0; x < job.w; x++, to += item) std::memcpy(to, pixel_at(image, k, y, x), item);
    return out;
}

bool takes(const Job &job) { return job.local <= 256; }
size_t scratch_bytes(const Job &) { return 0; }

Result run(const Job &job, const Patch &patch, void *) {
    const std::vector<char> x = dense(patch.x, job, job.x_dtype, job.c);
    const std::vector<char> x_hat = dense(patch.x_hat, job, job.x_hat_dtype, job.c);
    const size_t heat_item = static_cast<size_t>(dtype_bytes(job.heatmap_dtype)), pixels = static_cast<size_t>(job.h * job.w);
    const Guarded device_x(x.size()), device_x_hat(x_hat.size()), device_heat(pixels * heat_item), device_roi(pixels);
    const Guarded figures(4 * sizeof(float));
    device_x.fill(x.data(), x.size()), device_x_hat.fill(x_hat.data(), x_hat.size());
    const grd_view vx = device_view(device_x, job.x_dtype, 1, job.c, job.h, job.w);
    const grd_view vx_hat = device_view(device_x_hat, job.x_hat_dtype, 1, job.c, job.h, job.w);
    const grd_view heat = device_view(device_heat, job.heatmap_dtype, 1, 1, job.h, job.w);
    const grd_view roi = device_view(device_roi, GRD_UINT8, 1, 1, job.h, job.w);
    if (patch.roi.data) {
        const Image mask = {reinterpret_cast<const char *>(patch.roi.data), 0, patch.roi.stride_y, patch.roi.stride_x};
        device_roi.fill(dense(mask, job, GRD_UINT8, 1).data(), pixels);
    }
    grd_score_params params = {};
    params.struct_size = sizeof params;
    params.window = job.box ? GRD_WINDOW_BOX : GRD_WINDOW_GAUSSIAN;
    params.local_window_px = static_cast<int32_t>(job.local);
    params.heatmap_scale = job.heatmap_scale;
    params.roi = patch.roi.data ? &roi : nullptr;
    params.workspace_bytes = grd_cuda_score_workspace_bytes(&params, 1, job.c, job.h, job.w);
    const Guarded workspace(params.workspace_bytes);
    params.workspace = workspace.data();
    check(cudaMemset(params.workspace, 0, 65536), "counters");
    float *at = static_cast<float *>(figures.data());
    const bool residual = job.want_residual;
    const grd_score_outputs outputs = {sizeof outputs, 0, job.want_phi ? at : nullptr, job.want_local ? at + 1 : nullptr,
                                       residual ? at + 2 : nullptr, residual ? at + 3 : nullptr,
                                       patch.heatmap ? &heat : nullptr, nullptr};
    run_and_replay([&](void *stream) { return grd_cuda_score_patches(&params, &vx, &vx_hat, &outputs, stream); },
                   {&figures, &device_heat});
    Result result;
    std::memcpy(&result, figures.read().data(), sizeof result);
    if (patch.heatmap) {
        const std::vector<char> map = device_heat.read();
        for (int64_t y = 0; y < job.h; y++)
            for (int64_t i = 0; i < job.w; i++)
                std::memcpy(patch.heatmap + y * patch.heatmap_stride_y + i * patch.heatmap_stride_x,
                            map.data() + static_cast<size_t>(y * job.w + i) * heat_item, heat_item);
    }
    return result;
}

} // namespace

const Variant variant_cuda_device = {takes, scratch_bytes, run};

} // namespace grd::score

namespace grd::patchify {
namespace {

/* The frame goes over as interleaved pixels with six bytes behind each row. */
void cut(const WholeCut &call) {
    const int64_t item = dtype_bytes(call.frame.dtype), c = call.frame.extent[1], h = call.frame.extent[2];
    const int64_t w = call.frame.extent[3], row = w * c * item + 6;
    int64_t stride[4];
    strides_of(call.frame, false, stride);
    std::vector<char> pixels(static_cast<size_t>(h * row));
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++)
            for (int64_t k = 0; k < c; k++)
                std::memcpy(pixels.data() + y * row + (x * c + k) * item,
                            static_cast<const char *>(call.frame.data) + k * stride[1] + y * stride[2] + x * stride[3],
                            static_cast<size_t>(item));
    const Guarded device_frame(pixels.size());
    device_frame.fill(pixels.data(), pixels.size());
    grd_view frame = grd_view_of_frame(device_frame.data(), call.frame.dtype, h, w, c, row);
    frame.space = GRD_SPACE_CUDA;
    const int64_t channels = call.format.c_out, out_item = dtype_bytes(call.format.dtype);
    const int64_t ph = call.cut.patch_h, pw = call.cut.patch_w, size = channels * ph * pw * out_item;
    const Guarded device_patches(static_cast<size_t>(call.grid.count * size));
    grd_view patches = device_view(device_patches, call.format.dtype, call.grid.count, channels, ph, pw);
    if (call.format.interleaved) {
        const int64_t strides[4] = {size, out_item, pw * channels * out_item, channels * out_item};
        std::memcpy(patches.stride_bytes, strides, sizeof strides);
    }
    grd_cut_options options = {};
    options.struct_size = sizeof options;
    options.input_scale = call.format.input_scale;
    run_and_replay(
        [&](void *stream) { return grd_cuda_cut_frame(&call.cut, &frame, nullptr, &patches, &options, stream); },
        {&device_patches});
    const std::vector<char> out = device_patches.read();
    std::memcpy(call.patches, out.data(), out.size());
}

} // namespace

const Kernels kernels_cuda_device = with_cut(kernels_scalar, cut); /* stitching is not done on devices */

} // namespace grd::patchify
