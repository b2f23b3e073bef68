/* backend_faults.h - what tests know of backend_faults.c: which patches it spoils, what it did, and its gates.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BACKEND_FAULTS_H
#define GRD_BACKEND_FAULTS_H

#include "grd_edge.h"

enum { FAULT_NONE = 0, FAULT_NAN = 1, FAULT_WRONG = 2 };
enum { FAULT_GATES = 4 };

/* Since the process began, of all engines. */
typedef struct faults_counts {
    int64_t opened, refused, closed;
    int64_t calls, patches;        /* of engine_infer */
    int64_t errors, stalls, nans, wrongs;
    int64_t batches;               /* calls with more than one patch */
    int64_t largest;               /* patches in one */
} faults_counts;

GRD_API faults_counts faults_read(void);
/* Engines with "gate=N" in their text wait at the beginning of engine_infer while gate N is shut. */
GRD_API void faults_shut(int32_t gate, int32_t shut);
/* Lets one call through a gate that is shut: one that waits there, or the next to come. */
GRD_API void faults_pass(int32_t gate);
/* Calls that wait there. */
GRD_API int32_t faults_held(int32_t gate);

/* In [0, 1), the same for the same numbers. */
static inline double fault_chance(uint64_t seed, uint64_t kind, uint64_t number) {
    uint64_t z = (seed * 1000003u + kind) * 0x9e3779b97f4a7c15u + number;
    for (int i = 0; i < 2; ++i) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) / 9007199254740992.0;
}

/* What happens to a patch whose first four pixels are the bytes of this tag, lowest first. It does not depend on who
 * comes before it or beside it, so that tests can tell what has to come out. */
static inline int fault_of_tag(uint64_t seed, double nan, double wrong, uint32_t tag) {
    const double chance = fault_chance(seed, 0, tag);
    return chance < nan ? FAULT_NAN : chance < nan + wrong ? FAULT_WRONG : FAULT_NONE;
}

#endif
