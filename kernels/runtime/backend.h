/* backend.h - finding and loading the library that runs an engine. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BACKEND_H
#define GRD_BACKEND_H

#include <string>

#include "grd_edge.h"

namespace grd {

/* Table of libgrd_backend_<name>.so in folder, or beside this library when folder is NULL. Valid until the process
 * ends: vendors' libraries keep threads and exit handlers, so nothing is ever unloaded. Throws Failure. */
const grd_backend *backend_by_name(const std::string &name, const char *folder);

} // namespace grd
#endif
