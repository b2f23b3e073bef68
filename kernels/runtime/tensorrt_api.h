/* tensorrt_api.h - TensorRT's library, classic or for RTX, opened at run time. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Two modules come from one source: GRD_TENSORRT_RTX is defined for TensorRT-RTX. Headers of TensorRT 10.3 and later
 * serve; all that differs between them stands here. Objects are used through the virtual functions behind the headers'
 * inline ones, so only the function that makes a runtime is looked up by name. */
#ifndef GRD_TENSORRT_API_H
#define GRD_TENSORRT_API_H

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "tensorrt_rules.h"

#if !defined(GRD_TENSORRT_RTX)
#define GRD_TENSORRT_MAJOR NV_TENSORRT_MAJOR /* of the library that the headers belong to */
#define GRD_TENSORRT_LEAST_MINOR 0
#define GRD_TENSORRT_RTX_API 0
#elif defined(TRT_MAJOR_RTX) /* the headers of the TensorRT-RTX SDK */
#define GRD_TENSORRT_MAJOR TRT_MAJOR_RTX
#define GRD_TENSORRT_LEAST_MINOR 3
#define GRD_TENSORRT_RTX_API 1
#elif NV_TENSORRT_MAJOR == 11
/* Headers of classic TensorRT: TensorRT-RTX 1.7 has their layout (checked with 11.0 and 11.1; not that of 10.16). What it
 * alone has, such as the runtime cache, is missing then. */
#define GRD_TENSORRT_MAJOR 1
#define GRD_TENSORRT_LEAST_MINOR 7
#define GRD_TENSORRT_RTX_API 0
#else
#error "TensorRT-RTX needs the headers of its SDK, or those of TensorRT 11"
#endif

namespace grd {

#if defined(GRD_TENSORRT_RTX)
constexpr TensorRtKind kTensorRtKind = TensorRtKind::kRtx;
#else
constexpr TensorRtKind kTensorRtKind = TensorRtKind::kClassic;
#endif

class TensorRtApi {
public:
    /* Finds and opens the library; it must be of the headers' major version. Throws Failure. */
    explicit TensorRtApi(const char *vendor_dir);

    const TensorRtVersion &version() const { return version_; }
    std::unique_ptr<nvinfer1::IRuntime> create_runtime() const;

    /* The library's first error on this thread since listen(), on one line; "no reason given" when it said nothing. */
    static void listen();
    static std::string said();

private:
    void *library_;
    TensorRtVersion version_;
};

} // namespace grd
#endif
