/* portable.h - what device code needs to compile for the host, too. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The kernels are written as blocks of phases (see score/score_block.h). nvcc compiles them for devices; any C++ compiler
 * compiles the same text for the tests, which run the threads of a phase one after the other.
 *
 * Both sides round the same way: contraction is off (-fmad=false, -ffp-contract=off), and where a multiply-add is fused
 * it says fmaf. */
#ifndef GRD_CUDA_PORTABLE_H
#define GRD_CUDA_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "both.h"
#include "grd_edge.h"
#include "half.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define GRD_DEVICE __device__ __forceinline__
#define GRD_UNROLLED _Pragma("unroll")
#else
#define GRD_DEVICE inline
#define GRD_UNROLLED _Pragma("GCC unroll 16")
#endif

namespace grd::cuda {

/* Where the elements of a view lie; strides in bytes. */
struct Source {
    const char *data;
    int64_t stride_n, stride_c, stride_y, stride_x;
    int32_t dtype;
};

namespace { /* local to each file, as everything that is compiled with flags of its own */

/* The bits of a pixel, so that a load can be under way while other work goes on. On the host the address may be any. */
template <class T> GRD_DEVICE T load_as(const void *at) {
#if defined(__CUDACC__)
    return __ldg(static_cast<const T *>(at));
#else
    T value;
    memcpy(&value, at, sizeof value);
    return value;
#endif
}
template <class T> GRD_DEVICE void store_as(void *at, T value) {
#if defined(__CUDACC__)
    *static_cast<T *>(at) = value;
#else
    memcpy(at, &value, sizeof value);
#endif
}

GRD_DEVICE float float_of_bits(uint32_t bits) {
#if defined(__CUDACC__)
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}
GRD_DEVICE float float_of_half(uint32_t half) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
#else
    return float_from_half(static_cast<uint16_t>(half));
#endif
}
/* To nearest, ties to even. */
GRD_DEVICE uint16_t half_of_float(float value) {
#if defined(__CUDACC__)
    return __half_as_ushort(__float2half_rn(value));
#else
    return half_from_float(value);
#endif
}
/* To nearest, ties to even, as far as int32 goes; NaN is 0. */
GRD_DEVICE int32_t int_of_float(float value) {
#if defined(__CUDACC__)
    return __float2int_rn(value);
#else
    if (!(value < 2147483648.0f)) return value > 0 ? INT32_MAX : 0;
    return value < -2147483648.0f ? INT32_MIN : static_cast<int32_t>(lrintf(value));
#endif
}
/* 1 / value within one unit in the last place; 1e-37 < value < 1e37. The host errs on purpose as far as a device may. */
GRD_DEVICE float reciprocal(float value) {
#if defined(__CUDACC__)
    float guess;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(value));
    return guess;
#else
    const float exact = 1.0f / value;
    return nextafterf(exact, 0.0f);
#endif
}

} // namespace
} // namespace grd::cuda
#endif
