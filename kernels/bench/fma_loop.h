/* fma_loop.h - see fma_loop.cpp.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BENCH_FMA_LOOP_H
#define GRD_BENCH_FMA_LOOP_H

#include <cstdint>

constexpr int64_t kChains = 12, kLanes = 16;

/* rounds x kChains x kLanes FMAs in chains that do not wait for each other; their sum, kLanes floats. */
extern "C" void fma_loop(float *out, int64_t rounds);

#endif
