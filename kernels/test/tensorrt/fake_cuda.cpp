/* fake_cuda.cpp - a CUDA runtime in host memory.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "fake_cuda.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
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
    bool capturing = false, capturing_for_all = false;
    std::atomic<int> users{0};
};

std::mutex mutex; /* of the device */
struct Device {
    int major = 8, minor = 9, count = 1;
    std::string failing;
    int after = 0, error = 0;
    std::map<std::string, int> calls;
    std::map<void *, size_t> blocks;
    int handles = 0, damage = 0, captures_for_all = 0;
    int delay_us = 0;
    double pair_s = 0; /* 0: streams are not paired */
    int pairs = 0, alone = 0;
    const Stream *first = nullptr; /* of a pair, waiting for the other */
} device;
std::condition_variable paired;
thread_local cudaError_t last = cudaSuccess;
thread_local int captures_here = 0;

using Lock = std::unique_lock<std::mutex>;

cudaError_t called(const char *name) {
    const Lock lock(mutex);
    ++device.calls[name];
    if (device.failing == name && device.after-- == 0) {
        device.failing.clear();
        return last = static_cast<cudaError_t>(device.error);
    }
    return cudaSuccess;
}

void count_handles(int more) {
    const Lock lock(mutex);
    device.handles += more;
}

/* What CUDA prohibits while this thread captures, or another does for all threads. */
void require_no_capture() {
    if (captures_here > 0 || device.captures_for_all > 0) std::abort();
}

cudaError_t allocate(const char *name, void **out, size_t bytes) {
    if (const cudaError_t error = called(name)) return error;
    auto *block = static_cast<unsigned char *>(std::malloc(bytes + 2 * kGuard));
    std::memset(block, kGuardByte, bytes + 2 * kGuard); /* never zeros, as on a device */
    const Lock lock(mutex);
    require_no_capture();
    *out = block + kGuard;
    device.blocks[*out] = bytes;
    return cudaSuccess;
}

cudaError_t release(const char *name, void *data) {
    if (const cudaError_t error = called(name)) return error;
    if (data == nullptr) return cudaSuccess;
    const Lock lock(mutex);
    require_no_capture();
    const auto found = device.blocks.find(data);
    if (found == device.blocks.end()) std::abort();
    auto *block = static_cast<unsigned char *>(data) - kGuard;
    for (size_t i = 0; i < kGuard; ++i)
        device.damage += (block[i] != kGuardByte) + (block[kGuard + found->second + i] != kGuardByte);
    device.blocks.erase(found);
    std::free(block);
    return cudaSuccess;
}

/* A stream during a call. CUDA's may be used by several threads, those of the backends by one at a time. */
class Use {
public:
    explicit Use(void *stream) : stream_(static_cast<Stream *>(stream)) {
        if (stream == nullptr) std::abort(); /* the default stream would wait for others */
        if (stream_->users.fetch_add(1) != 0) std::abort();
    }
    ~Use() { stream_->users.fetch_sub(1); }
    Use(const Use &) = delete;
    Stream *operator->() const { return stream_; }
    const Stream *get() const { return stream_; }

private:
    Stream *stream_;
};

/* Returns when another stream has work, too, or none came in time. */
void meet_another(const Stream *stream) {
    Lock lock(mutex);
    if (device.pair_s <= 0) return;
    if (device.first != nullptr) {
        device.first = nullptr;
        ++device.pairs;
        paired.notify_all();
        return;
    }
    device.first = stream;
    const std::chrono::duration<double> most(device.pair_s);
    if (paired.wait_for(lock, most, [stream] { return device.first != stream; })) return;
    device.first = nullptr;
    ++device.alone;
}

void do_work(const Stream *stream, const Steps &steps) {
    if (steps.empty()) return;
    meet_another(stream);
    int delay_us;
    {
        const Lock lock(mutex);
        delay_us = device.delay_us;
    }
    if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    for (const Step &step : steps) step.run(step.argument.get());
}

} // namespace

int fake_cuda_called(const char *call) { return static_cast<int>(called(call)); }
void fake_cuda_device(int major, int minor, int count) {
    const Lock lock(mutex);
    device.major = major, device.minor = minor, device.count = count;
}
void fake_cuda_fail(const char *call, int after, int error) {
    const Lock lock(mutex);
    device.failing = call != nullptr ? call : "";
    device.after = after;
    device.error = error;
}
void fake_cuda_delay(int us) {
    const Lock lock(mutex);
    device.delay_us = us;
}
void fake_cuda_pair(double most_s) {
    const Lock lock(mutex);
    device.pair_s = most_s;
    device.pairs = device.alone = 0;
}
int fake_cuda_pairs() {
    const Lock lock(mutex);
    return device.pairs;
}
int fake_cuda_alone() {
    const Lock lock(mutex);
    return device.alone;
}
int fake_cuda_calls(const char *call) {
    const Lock lock(mutex);
    return device.calls[call];
}
void fake_cuda_reset() {
    const Lock lock(mutex);
    device.calls.clear();
}
int fake_cuda_live() {
    const Lock lock(mutex);
    return static_cast<int>(device.blocks.size()) + device.handles;
}
int fake_cuda_damage() {
    const Lock lock(mutex);
    return device.damage;
}
int fake_cuda_is_capturing(void *stream) { return Use(stream)->capturing; }
void fake_cuda_submit(void *stream, void (*work)(void *), void *argument, void (*release)(void *)) {
    const Use on(stream);
    (on->capturing ? on->captured : on->waiting).push_back({work, Work(argument, release)});
}

/* The part of cuda_runtime_api.h that the backends call. */

cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
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
    count_handles(1);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    { const Use last_one(stream); }
    delete reinterpret_cast<Stream *>(stream);
    count_handles(-1);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Use on(stream);
    if (on->capturing) std::abort();
    Steps steps;
    steps.swap(on->waiting);
    if (const cudaError_t error = called("cudaStreamSynchronize")) return error; /* the work is lost */
    do_work(on.get(), steps);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (const cudaError_t error = called("cudaStreamBeginCapture")) return error;
    const Use on(stream);
    on->capturing = true;
    on->capturing_for_all = mode == cudaStreamCaptureModeGlobal;
    ++captures_here;
    const Lock lock(mutex);
    device.captures_for_all += on->capturing_for_all;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    const Use on(stream);
    if (captures_here-- < 1) std::abort(); /* another thread began it */
    on->capturing = false;
    {
        const Lock lock(mutex);
        device.captures_for_all -= on->capturing_for_all;
    }
    Steps steps;
    steps.swap(on->captured);
    if (const cudaError_t error = called("cudaStreamEndCapture")) return error;
    *graph = reinterpret_cast<cudaGraph_t>(new Steps(steps));
    count_handles(1);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    if (const cudaError_t error = called("cudaGraphInstantiate")) return error;
    *executable = reinterpret_cast<cudaGraphExec_t>(new Steps(*reinterpret_cast<Steps *>(graph)));
    count_handles(1);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (const cudaError_t error = called("cudaGraphLaunch")) return error;
    const Use on(stream);
    for (const Step &step : *reinterpret_cast<Steps *>(executable)) on->waiting.push_back(step);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Steps *>(graph);
    count_handles(-1);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Steps *>(executable);
    count_handles(-1);
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
