/* stream_api.cpp - the C border of streams: checks, defaults, messages.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cmath>
#include <cstring>
#include <new>
#include <string>

#include "failure.h"
#include "stream.h"

struct grd_stream {
    std::unique_ptr<grd::Stream> stream; /* none: it did not open */
};

namespace grd {
namespace {

constexpr int32_t kQueueDepth = 8, kOpenProducts = 256;
constexpr int32_t kMostCpus = CPU_SETSIZE;

thread_local std::string t_message, t_version;

void check_range(const char *name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
        fail(GRD_ERR_ARGUMENT, text("params.%s is %lld, expected %lld to %lld", name, static_cast<long long>(value),
                                    static_cast<long long>(least), static_cast<long long>(most)));
}

void check_time(const char *name, double value) {
    if (!(value >= 0) || std::isinf(value))
        fail(GRD_ERR_ARGUMENT, text("params.%s is %g, expected 0 or more", name, value));
}

void check_frame_size(const grd_stream_params &params) {
    if (params.frame_h == 0 && params.frame_w == 0 && params.frame_c == 0) return;
    if (params.frame_h < 1 || params.frame_w < 1 || (params.frame_c != 1 && params.frame_c != 3) ||
        params.frame_h > 65536 || params.frame_w > 65536)
        fail(GRD_ERR_ARGUMENT,
             text("params.frame_h, frame_w and frame_c are %lld, %lld and %d, expected sides of 1 to 65536 px and 1 or 3 "
                  "channels, or 0 in all for frames of any size",
                  static_cast<long long>(params.frame_h), static_cast<long long>(params.frame_w), params.frame_c));
}

template <class Structure> void check_struct_size(const char *name, const Structure &structure) {
    if (structure.struct_size < sizeof(Structure))
        fail(GRD_ERR_STRUCT_SIZE,
             text("%s.struct_size is %u, expected at least %zu", name, structure.struct_size, sizeof(Structure)));
}

/* Whether a thread more than engines has something to do while they run. Where these take all cores it would only take
 * time from them: two engines of one thread each on two cores need 2.09 in place of 1.87 ms a frame (base 16, 128 px,
 * INT8, batches of 8, AMD EPYC, OpenVINO 2026.4). */
bool spare_thread(const grd_stream_params &params) {
    const char *target = params.inspector->target;
    return params.on_result != nullptr || (target != nullptr && std::strcmp(target, "cpu") != 0);
}

/* Runs a call of a stream; what it throws becomes the thread's message. */
template <class Work> grd_status called(const grd_stream *stream, Work &&work) {
    return guarded(&t_message, [&]() -> grd_status {
        if (stream == nullptr || stream->stream == nullptr)
            fail(GRD_ERR_ARGUMENT, "this stream did not open; read the message of grd_stream_open");
        return work(*stream->stream);
    });
}

/* Nanoseconds; below 0: forever. */
int64_t timeout_ns(double timeout_ms) {
    if (std::isnan(timeout_ms)) fail(GRD_ERR_ARGUMENT, "timeout_ms is not a number; give 0 or more, or below 0 for ever");
    return timeout_ms < 0 || timeout_ms > 1e12 ? -1 : static_cast<int64_t>(timeout_ms * 1e6);
}

} // namespace

grd_stream_params stream_params_of(const grd_stream_params *given) {
    static const grd_inspector_params defaults = [] {
        grd_inspector_params params = {};
        params.struct_size = sizeof(params);
        return params;
    }();
    grd_stream_params params = {};
    params.struct_size = sizeof(params);
    if (given != nullptr) {
        check_struct_size("params", *given);
        params = *given;
    }
    check_range("queue_depth", params.queue_depth, 0, 65536);
    check_range("overload", params.overload, GRD_OVERLOAD_BLOCK, GRD_OVERLOAD_DROP_NEWEST);
    check_range("engines", params.engines, 0, 16);
    check_range("threads", params.threads, 0, 64);
    check_range("batch_frames", params.batch_frames, 0, 1024);
    check_range("heatmaps", params.heatmaps, 0, 1);
    check_range("open_products", params.open_products, 0, 65536);
    check_range("cpu_count", params.cpu_count, 0, kMostCpus);
    check_time("deadline_ms", params.deadline_ms);
    check_time("batch_wait_ms", params.batch_wait_ms);
    check_time("spin_us", params.spin_us);
    check_frame_size(params);
    if (params.queue_depth == 0) params.queue_depth = kQueueDepth;
    if (params.capacity == 0) params.capacity = 4 * params.queue_depth + 64;
    check_range("capacity", params.capacity, int64_t{params.queue_depth} + 1, 1048576);
    if (params.engines == 0) params.engines = 1;
    if (params.open_products == 0) params.open_products = kOpenProducts;
    if (params.cpu_count > 0 && params.cpus == nullptr) fail(GRD_ERR_ARGUMENT, "params.cpus is NULL, and cpu_count is not 0");
    if (params.cpu_count == 0) params.cpus = nullptr;
    for (int64_t i = 0; i < params.cpu_count; ++i) check_range("cpus", params.cpus[i], 0, kMostCpus - 1);
    if (params.inspector == nullptr) params.inspector = &defaults;
    check_struct_size("params.inspector", *params.inspector);
    check_range("inspector.batch_limit", params.inspector->batch_limit, 0, 1024);
    if (params.threads == 0) params.threads = params.engines + (spare_thread(params) ? 1 : 0);
    check_range("threads", params.threads, params.engines, 64);
    return params;
}

void check_stream_frame(const grd_stream_params &params, const grd_stream_frame *frame) {
    if (frame == nullptr) fail(GRD_ERR_ARGUMENT, "frame must not be NULL");
    check_struct_size("frame", *frame);
    if (frame->product_frames < 0 || frame->run_products < 0)
        fail(GRD_ERR_ARGUMENT, text("frame.product_frames is %d and run_products %d, expected 0 or more",
                                    frame->product_frames, frame->run_products));
    if (std::isnan(frame->deadline_ms)) fail(GRD_ERR_ARGUMENT, "frame.deadline_ms is not a number");
    if (frame->heatmap.data != nullptr && params.heatmaps == 0)
        fail(GRD_ERR_ARGUMENT, "the frame brings a heatmap, but the stream was opened without; set params.heatmaps");
}

} // namespace grd

grd_status grd_stream_open(const grd_bundle *bundle, const grd_stream_params *params, grd_stream **out) {
    if (out == nullptr) return GRD_ERR_ARGUMENT;
    *out = new (std::nothrow) grd_stream();
    if (*out == nullptr) return GRD_ERR_MEMORY;
    return grd::guarded(&grd::t_message, [&]() -> grd_status {
        (*out)->stream = std::make_unique<grd::Stream>(bundle, grd::stream_params_of(params));
        return GRD_OK;
    });
}

void grd_stream_close(grd_stream *stream) { delete stream; }

const char *grd_stream_message(const grd_stream *) { return grd::t_message.c_str(); }

grd_status grd_stream_submit(grd_stream *stream, const grd_stream_frame *frame) {
    return grd::called(stream, [&](grd::Stream &open) {
        grd::check_stream_frame(open.params(), frame);
        return open.submit(*frame);
    });
}

grd_status grd_stream_poll(grd_stream *stream, grd_stream_result *result) {
    const grd_status status = grd_stream_wait(stream, result, 0);
    return status == GRD_ERR_STREAM_TIMEOUT ? GRD_ERR_STREAM_EMPTY : status;
}

grd_status grd_stream_wait(grd_stream *stream, grd_stream_result *result, double timeout_ms) {
    return grd::called(stream, [&](grd::Stream &open) {
        if (result == nullptr) grd::fail(GRD_ERR_ARGUMENT, "result must not be NULL");
        grd::check_struct_size("result", *result);
        if (open.params().on_result != nullptr)
            grd::fail(GRD_ERR_ARGUMENT, "results of this stream go to on_result; open it without to take them");
        return open.wait(result, grd::timeout_ns(timeout_ms));
    });
}

grd_status grd_stream_flush(grd_stream *stream, double timeout_ms) {
    return grd::called(stream, [&](grd::Stream &open) { return open.flush(grd::timeout_ns(timeout_ms)); });
}

grd_status grd_stream_swap(grd_stream *stream, const grd_bundle *bundle) {
    return grd::called(stream, [&](grd::Stream &open) {
        open.swap(bundle);
        return GRD_OK;
    });
}

grd_status grd_stream_get_stats(const grd_stream *stream, grd_stream_stats *out) {
    return grd::called(stream, [&](grd::Stream &open) {
        if (out == nullptr) grd::fail(GRD_ERR_ARGUMENT, "out must not be NULL");
        grd::check_struct_size("out", *out);
        open.get_stats(out);
        return GRD_OK;
    });
}

const char *grd_stream_engine_version(const grd_stream *stream) {
    grd::t_version.clear();
    grd::called(stream, [&](grd::Stream &open) {
        grd::t_version = open.engine_version();
        return GRD_OK;
    });
    return grd::t_version.c_str();
}

grd_status grd_stream_grid(const grd_stream *stream, int64_t frame_h, int64_t frame_w, grd_grid *out) {
    return grd::called(stream, [&](grd::Stream &open) {
        if (out == nullptr) grd::fail(GRD_ERR_ARGUMENT, "out must not be NULL");
        open.grid(frame_h, frame_w, out);
        return GRD_OK;
    });
}
