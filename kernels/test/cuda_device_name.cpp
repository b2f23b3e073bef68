/* cuda_device_name.cpp - prints the CUDA device that the tests would run on; exit status 1 and one sentence without.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstdio>

#include <cuda_runtime_api.h>

int main() {
    cudaDeviceProp device;
    const cudaError_t error = cudaGetDeviceProperties(&device, 0);
    if (error != cudaSuccess) {
        std::fprintf(stderr, "no CUDA device answers (%s); run this on a machine with an NVIDIA GPU and its driver\n",
                     cudaGetErrorString(error));
        return 1;
    }
    std::printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
    return 0;
}
