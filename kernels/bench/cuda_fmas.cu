/* cuda_fmas.cu - FMAs a second that the device does when it does nothing else: the floor of bench/gpu.py.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstdio>

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256, kRounds = 4000, kChains = 8, kEach = 8;

__global__ void fmas(float *out, float factor) {
    float v[kChains];
    for (int i = 0; i < kChains; i++) v[i] = static_cast<float>(threadIdx.x + i);
    for (int r = 0; r < kRounds; r++)
#pragma unroll
        for (int k = 0; k < kChains * kEach; k++) v[k % kChains] = fmaf(v[k % kChains], factor, 0.5f);
    float sum = 0;
    for (float value : v) sum += value;
    if (sum == 1.2345f) *out = sum; /* never; but the compiler does not know */
}

} // namespace

int main() {
    int processors = 0;
    cudaEvent_t begin, end;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0);
    cudaEventCreate(&begin), cudaEventCreate(&end);
    float least_ms = 1e9f;
    const int blocks = processors * 8;
    for (int i = 0; i < 30 && processors > 0; i++) {
        float ms = 0;
        cudaEventRecord(begin);
        fmas<<<blocks, kThreads>>>(nullptr, 0.999f);
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        if (ms > 0 && ms < least_ms) least_ms = ms;
    }
    if (const cudaError_t error = cudaGetLastError()) {
        std::fprintf(stderr, "no FMA was timed: %s\n", cudaGetErrorString(error));
        return 1;
    }
    std::printf("%.6e\n", static_cast<double>(blocks) * kThreads * kRounds * kChains * kEach / (least_ms * 1e-3));
    return 0;
}
