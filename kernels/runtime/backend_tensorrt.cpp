/* backend_tensorrt.cpp - runs engines of TensorRT and, compiled with GRD_TENSORRT_RTX, of TensorRT-RTX.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The vendor's library is opened at run time (tensorrt_api.h). The CUDA runtime is linked statically: it finds the driver
 * by itself, works beside the vendor's own copy, as both use the device's primary context, and leaves nothing to find at
 * the line; a libcudart.so of the right major version would be one more thing to install there. */
#include "backend_entries.h"
#include "tensorrt_engine.h"
#if defined(GRD_TENSORRT_FRAMES) /* where the CUDA kernels are compiled, too */
#include "tensorrt_frames.h"
#endif

namespace grd {
namespace {

using Entries = BackendEntries<TensorRtEngine>;

constexpr const char *kName = kTensorRtKind == TensorRtKind::kRtx ? "tensorrt_rtx" : "tensorrt";

#if defined(GRD_TENSORRT_FRAMES)
grd_status frame_open(void *engine, const grd_frame_desc *desc, void **frames, char *message, size_t message_bytes) {
    return told(message, message_bytes, [&]() -> grd_status {
        if (engine == nullptr || desc == nullptr || frames == nullptr || desc->struct_size < sizeof(grd_frame_desc))
            fail(GRD_ERR_ARGUMENT, "frame_open needs an engine, a grd_frame_desc and a place for the frames");
        *frames = TensorRtFrames::open(static_cast<TensorRtEngine *>(engine), *desc);
        return GRD_OK;
    });
}

grd_status frame_inspect(void *frames, const grd_frame_work *work, char *message, size_t message_bytes) {
    return told(message, message_bytes, [&]() -> grd_status {
        if (frames == nullptr || work == nullptr || work->struct_size < sizeof(grd_frame_work))
            fail(GRD_ERR_ARGUMENT, "frame_inspect needs frames and a grd_frame_work");
        static_cast<TensorRtFrames *>(frames)->inspect(*work);
        return GRD_OK;
    });
}

void frame_close(void *frames) { delete static_cast<TensorRtFrames *>(frames); }
#else
constexpr decltype(grd_backend::frame_open) frame_open = nullptr;
constexpr decltype(grd_backend::frame_inspect) frame_inspect = nullptr;
constexpr decltype(grd_backend::frame_close) frame_close = nullptr;
#endif

} // namespace
} // namespace grd

extern "C" GRD_API const grd_backend *grd_backend_table(void) {
    using grd::Entries;
    static const grd_backend table = {sizeof(grd_backend),
                                      GRD_BACKEND_ABI,
                                      grd::kName,
                                      Entries::engine_open,
                                      Entries::engine_infer,
                                      Entries::engine_version,
                                      Entries::engine_close,
                                      grd::frame_open,
                                      grd::frame_inspect,
                                      grd::frame_close};
    return &table;
}
