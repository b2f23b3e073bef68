/* backend_tensorrt.cpp - runs engines of TensorRT and, compiled with GRD_TENSORRT_RTX, of TensorRT-RTX.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The vendor's library is opened at run time (tensorrt_api.h). The CUDA runtime is linked statically: it finds the driver
 * by itself, works beside the vendor's own copy, as both use the device's primary context, and leaves nothing to find at
 * the line; a libcudart.so of the right major version would be one more thing to install there. */
#include "backend_entries.h"
#include "tensorrt_engine.h"

namespace grd {
namespace {

using Entries = BackendEntries<TensorRtEngine>;

constexpr const char *kName = kTensorRtKind == TensorRtKind::kRtx ? "tensorrt_rtx" : "tensorrt";

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
                                      nullptr,
                                      nullptr,
                                      nullptr};
    return &table;
}
