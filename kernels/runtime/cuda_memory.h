/* cuda_memory.h - CUDA calls that throw Failure, and memory that only grows. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_CUDA_MEMORY_H
#define GRD_CUDA_MEMORY_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "failure.h"

namespace grd {

/* The runtime's words for an error, which it forgets: later calls would return it again. */
inline std::string cuda_words(cudaError_t error) {
    cudaGetLastError();
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

inline void check_cuda(cudaError_t error, const char *call, grd_status status = GRD_ERR_ENGINE_RUN) {
    if (error == cudaSuccess) return;
    if (error == cudaErrorMemoryAllocation)
        fail(GRD_ERR_MEMORY, std::string(call) + ": " + cuda_words(error) +
                                 "; close what else uses the device, or use a smaller batch");
    fail(status, std::string(call) + ": " + cuda_words(error));
}

/* Device memory, or page-locked memory of the host. */
class CudaBuffer {
public:
    explicit CudaBuffer(bool on_host) : on_host_(on_host) {}
    ~CudaBuffer() { release(); }
    CudaBuffer(const CudaBuffer &) = delete;
    CudaBuffer &operator=(const CudaBuffer &) = delete;

    /* Whether it moved. */
    bool reserve(size_t bytes) {
        if (bytes <= size_) return false;
        release();
        if (on_host_) check_cuda(cudaMallocHost(&data_, bytes), "cudaMallocHost");
        else check_cuda(cudaMalloc(&data_, bytes), "cudaMalloc");
        size_ = bytes;
        return true;
    }
    void *data() const { return data_; }
    template <class T> T *as() const { return static_cast<T *>(data_); }

private:
    void release() {
        if (data_ != nullptr) on_host_ ? cudaFreeHost(data_) : cudaFree(data_);
        data_ = nullptr;
        size_ = 0;
    }

    bool on_host_;
    void *data_ = nullptr;
    size_t size_ = 0;
};

} // namespace grd
#endif
