/* fma_loop.cpp - fused multiply-adds and nothing else: the rate that no kernel of this CPU exceeds.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Part of bench_score; grd_edge.bench.limits compiles it alone and calls it through ctypes. Needs -ffp-contract=fast. */
#include <cstdint>
#include <cstring>

#include "fma_loop.h"

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2,fma", "default")))
#endif
void fma_loop(float *out, int64_t rounds) {
    Vector chain[kChains], a, b;
    for (int i = 0; i < kLanes; ++i) a[i] = 0.999f, b[i] = 1e-3f;
    for (Vector &c : chain) c = b;
    for (int64_t round = 0; round < rounds; ++round)
        for (Vector &c : chain) c = c * a + b;
    for (int i = 1; i < kChains; ++i) chain[0] += chain[i];
    std::memcpy(out, &chain[0], sizeof chain[0]);
}
