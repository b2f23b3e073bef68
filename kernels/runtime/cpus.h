/* cpus.h - how many threads are of use to the caller. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_CPUS_H
#define GRD_CPUS_H

#include <cstdint>

#include <sched.h>

namespace grd {

/* CPUs that the calling thread may run on; 0 when the system does not tell. */
inline int32_t allowed_cpus() {
    cpu_set_t set;
    return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
}

} // namespace grd
#endif
