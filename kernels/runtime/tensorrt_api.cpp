/* tensorrt_api.cpp - TensorRT's library, classic or for RTX, opened at run time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "tensorrt_api.h"

#include <dlfcn.h>

#include <cstring>

#include "failure.h"
#include "vendor_library.h"

namespace grd {
namespace {

#define GRD_TEXT_OF(value) #value
#define GRD_TEXT(value) GRD_TEXT_OF(value)

#if defined(GRD_TENSORRT_RTX)
constexpr VendorLibrary kLibrary = {"TensorRT-RTX", "site-packages/tensorrt_rtx_libs",
                                    {"libtensorrt_rtx.so." GRD_TEXT(GRD_TENSORRT_MAJOR), "libtensorrt_rtx.so"}};
#else
constexpr VendorLibrary kLibrary = {"TensorRT", "site-packages/tensorrt_libs",
                                    {"libnvinfer.so." GRD_TEXT(GRD_TENSORRT_MAJOR), "libnvinfer.so"}};
#endif

thread_local char first_error[512] = "";

/* The library keeps the first logger that it is given, so this one lives as long as the process. */
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const nvinfer1::AsciiChar *message) noexcept override {
        if (severity > Severity::kERROR || first_error[0] != '\0') return;
        std::strncpy(first_error, message, sizeof first_error - 1);
    }
};

Logger &logger() {
    static Logger *const one = new Logger;
    return *one;
}

} // namespace

TensorRtApi::TensorRtApi(const char *vendor_dir) : library_(open_vendor_library(kLibrary, vendor_dir)) {
    for (const char *name : {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion",
                             "getInferLibBuildVersion"})
        if (const auto part = reinterpret_cast<int32_t (*)()>(::dlsym(library_, name)))
            version_.part[version_.parts++] = part();
    const bool fits = version_.part[0] == GRD_TENSORRT_MAJOR && version_.part[1] >= GRD_TENSORRT_LEAST_MINOR;
    if (!fits || ::dlsym(library_, "createInferRuntime_INTERNAL") == nullptr)
        fail(GRD_ERR_BACKEND_LIBRARY,
             text("%s %s was found, this backend was compiled for %d.%d and later of that major version; install that, "
                  "or a backend that was compiled with the headers of yours",
                  kLibrary.product, version_.parts > 0 ? version_.text().c_str() : "of no version", GRD_TENSORRT_MAJOR,
                  GRD_TENSORRT_LEAST_MINOR));
}

std::unique_ptr<nvinfer1::IRuntime> TensorRtApi::create_runtime() const {
    const auto create =
        reinterpret_cast<void *(*)(void *, int32_t)>(::dlsym(library_, "createInferRuntime_INTERNAL"));
#if defined(GRD_TENSORRT_RTX) && !GRD_TENSORRT_RTX_API
    const int32_t version = version_.part[0] * 10000 + version_.part[1] * 100 + version_.part[2];
#else
    const int32_t version = NV_TENSORRT_VERSION;
#endif
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime *>(create(&logger(), version)));
}

void TensorRtApi::listen() { first_error[0] = '\0'; }

std::string TensorRtApi::said() { return first_error[0] != '\0' ? one_line(first_error) : "no reason given"; }

} // namespace grd
