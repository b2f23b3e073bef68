/* fake_cuda.cpp - a CUDA runtime in host memory.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "fake_cuda.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa7;

using Work = std::shared_ptr<void>; /* what it is released with */
struct Step {
    void (*run)(void *);
    Work argument;
};
using Steps = std::vector<Step>;
struct Stream {
    Steps waiting, captured;
    bool capturing = false;
};

struct Device {
    int major = 8, minor = 9, count = 1;
    std::string failing;
    int after = 0, error = 0;
    std::map<std::string, int> calls;
    std::map<void *, size_t> blocks;
    int handles = 0, damage = 0, streams_capturing = 0;
    cudaError_t last = cudaSuccess;
} device;

cudaError_t called(const char *name) {
    ++device.calls[name];
    if (device.failing == name && device.after-- == 0) {
        device.failing.clear();
        return device.last = static_cast<cudaError_t>(device.error);
    }
    return cudaSuccess;
}

cudaError_t allocate(const char *name, void **out, size_t bytes) {
    if (const cudaError_t error = called(name)) return error;
    auto *block = static_cast<unsigned char *>(std::malloc(bytes + 2 * kGuard));
    std::memset(block, kGuardByte, bytes + 2 * kGuard); /* never zeros, as on a device */
    *out = block + kGuard;
    device.blocks[*out] = bytes;
    return cudaSuccess;
}

cudaError_t release(const char *name, void *data) {
    if (const cudaError_t error = called(name)) return error;
    if (data == nullptr) return cudaSuccess;
    const auto found = device.blocks.find(data);
    if (found == device.blocks.end()) std::abort();
    auto *block = static_cast<unsigned char *>(data) - kGuard;
    for (size_t i = 0; i < kGuard; ++i)
        device.damage += (block[i] != kGuardByte) + (block[kGuard + found->second + i] != kGuardByte);
    device.blocks.erase(found);
    std::free(block);
    return cudaSuccess;
}

Stream *stream_of(void *stream) {
    if (stream == nullptr) std::abort(); /* the default stream would wait for others */
    return static_cast<Stream *>(stream);
}

} // namespace

int fake_cuda_called(const char *call) { return static_cast<int>(called(call)); }
void fake_cuda_device(int major, int minor, int count) {
    device.major = major, device.minor = minor, device.count = count;
}
void fake_cuda_fail(const char *call, int after, int error) {
    device.failing = call != nullptr ? call : "";
    device.after = after;
    device.error = error;
}
int fake_cuda_calls(const char *call) { return device.calls[call]; }
void fake_cuda_reset() { device.calls.clear(); }
int fake_cuda_live() { return static_cast<int>(device.blocks.size()) + device.handles; }
int fake_cuda_damage() { return device.damage; }
int fake_cuda_is_capturing() { return device.streams_capturing; }
void fake_cuda_submit(void *stream, void (*work)(void *), void *argument, void (*release)(void *)) {
    Stream *on = stream_of(stream);
    (on->capturing ? on->captured : on->waiting).push_back({work, Work(argument, release)});
}

/* The part of cuda_runtime_api.h that the backends call. */

cudaError_t cudaGetLastError() {
    const cudaError_t last = device.last;
    device.last = cudaSuccess;
    return last;
}
const char *cudaGetErrorString(cudaError_t) { return "words of the driver"; }
const char *cudaGetErrorName(cudaError_t) { return "cudaErrorOfTheTest"; }

cudaError_t cudaMalloc(void **out, size_t bytes) { return allocate("cudaMalloc", out, bytes); }
cudaError_t cudaMallocHost(void **out, size_t bytes) { return allocate("cudaMallocHost", out, bytes); }
cudaError_t cudaFree(void *data) { return release("cudaFree", data); }
cudaError_t cudaFreeHost(void *data) { return release("cudaFreeHost", data); }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device.count;
    return called("cudaGetDeviceCount");
}
cudaError_t cudaGetDevice(int *number) {
    *number = 0;
    return called("cudaGetDevice");
}
cudaError_t cudaSetDevice(int) { return called("cudaSetDevice"); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
    *out = {};
    out->major = device.major, out->minor = device.minor;
    std::strcpy(out->name, "Fake GPU");
    return called("cudaGetDeviceProperties");
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? device.major : device.minor;
    return called("cudaDeviceGetAttribute");
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    if (const cudaError_t error = called("cudaStreamCreate")) return error;
    *out = reinterpret_cast<cudaStream_t>(new Stream);
    ++device.handles;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream_of(stream);
    --device.handles;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Stream *on = stream_of(stream);
    if (on->capturing) std::abort();
    Steps steps;
    steps.swap(on->waiting);
    if (const cudaError_t error = called("cudaStreamSynchronize")) return error; /* the work is lost */
    for (const Step &step : steps) step.run(step.argument.get());
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (const cudaError_t error = called("cudaStreamBeginCapture")) return error;
    stream_of(stream)->capturing = true;
    ++device.streams_capturing;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Stream *on = stream_of(stream);
    on->capturing = false;
    --device.streams_capturing;
    Steps steps;
    steps.swap(on->captured);
    if (const cudaError_t error = called("cudaStreamEndCapture")) return error;
    *graph = reinterpret_cast<cudaGraph_t>(new Steps(steps));
    ++device.handles;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    if (const cudaError_t error = called("cudaGraphInstantiate")) return error;
    *executable = reinterpret_cast<cudaGraphExec_t>(new Steps(*reinterpret_cast<Steps *>(graph)));
    ++device.handles;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (const cudaError_t error = called("cudaGraphLaunch")) return error;
    Stream *on = stream_of(stream);
    for (const Step &step : *reinterpret_cast<Steps *>(executable)) on->waiting.push_back(step);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Steps *>(graph);
    --device.handles;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Steps *>(executable);
    --device.handles;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    if (const cudaError_t error = called("cudaMemcpyAsync")) return error;
    fake_cuda_submit(stream, [=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    if (const cudaError_t error = called("cudaMemsetAsync")) return error;
    fake_cuda_submit(stream, [=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}
