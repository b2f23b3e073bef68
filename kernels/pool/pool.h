/* pool.h - threads that share the patches of one call. Not public; the handle is grd_pool of grd_edge.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_POOL_H
#define GRD_POOL_H

#include <cstdint>

#include "grd_edge.h"

namespace grd {

/* Work item `index`, done by thread `worker` (0 is the caller; below pool_threads). Must not throw. */
using PoolTask = void (*)(void *context, int64_t index, int32_t worker);

/* Threads of a pool, the caller's included; 1 for NULL. */
int32_t pool_threads(const grd_pool *pool);

/* Runs items 0..count-1, each once and in no order, and returns when all are done. NULL: on the caller alone. */
void pool_run(grd_pool *pool, int64_t count, PoolTask task, void *context);

} // namespace grd
#endif
