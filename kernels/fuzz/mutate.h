/* mutate.h - changes of a valid bundle, of which it is known beforehand whether a reader must refuse them.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_MUTATE_H
#define GRD_MUTATE_H

#include "fuzz_case.h"

/* What must become of a case. FUZZ_EITHER: unknown, but all readers must say the same. */
enum { FUZZ_REFUSED, FUZZ_ACCEPTED, FUZZ_EITHER };

/* Case number `index` of the sequence that `seed` names: the same on every machine. Returns what must become of it
 * and names the change in *what. Of 8 cases, 6 are to be refused, 1 is to be accepted, 1 is either. */
int fuzz_mutate(uint64_t seed, uint64_t index, fuzz_case *out, const char **what);

#endif
