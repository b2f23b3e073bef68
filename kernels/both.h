/* both.h - functions for the host and, where nvcc compiles them, for devices. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BOTH_H
#define GRD_BOTH_H

#if defined(__CUDACC__)
#define GRD_BOTH static __host__ __device__ inline
#else
#define GRD_BOTH static inline
#endif

#endif
