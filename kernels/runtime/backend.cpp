/* backend.cpp - finding and loading the library that runs an engine.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstddef>

#include "failure.h"

namespace grd {
namespace {

std::string own_folder() {
    Dl_info info = {};
    if (::dladdr(reinterpret_cast<const void *>(&grd_version), &info) == 0 || info.dli_fname == nullptr)
        fail(GRD_ERR_BACKEND_MISSING, "the folder of the grd_edge library cannot be told; pass backend_dir");
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

const char *loader_error() {
    const char *error = ::dlerror();
    return error != nullptr ? error : "no reason given";
}

} // namespace

const grd_backend *backend_by_name(const std::string &name, const char *folder) {
    /* Callers bring names from bundles: nothing that could lead out of the folder. */
    if (name.empty() || name.size() > 64 ||
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") != std::string::npos)
        fail(GRD_ERR_BACKEND_MISSING, "backend " + quoted(name) + " is not a name of a-z, 0-9 and _");
    const std::string where = folder != nullptr && folder[0] != '\0' ? folder : own_folder();
    const std::string path = where + "/libgrd_backend_" + name + ".so";
    if (::access(path.c_str(), F_OK) != 0)
        fail(GRD_ERR_BACKEND_MISSING,
             path + " was not found, the bundle's engine needs it; install the backend or pass backend_dir");
    void *library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        fail(GRD_ERR_BACKEND_LIBRARY, path + " does not load (" + loader_error() + "); reinstall the backend");
    const auto table_of = reinterpret_cast<grd_backend_table_fn>(::dlsym(library, "grd_backend_table"));
    if (table_of == nullptr)
        fail(GRD_ERR_BACKEND_ABI, path + " exports no grd_backend_table; it is not a backend of grd-edge");
    const grd_backend *table = table_of();
    if (table == nullptr) fail(GRD_ERR_BACKEND_ABI, path + " returned no table; reinstall the backend");
    if (table->abi != GRD_BACKEND_ABI)
        fail(GRD_ERR_BACKEND_ABI,
             text("%s speaks version %u of the backend table, expected %u; install backend and library of one release",
                  path.c_str(), table->abi, static_cast<unsigned>(GRD_BACKEND_ABI)));
    if (table->struct_size < offsetof(grd_backend, frame_open) || table->engine_open == nullptr || table->engine_infer == nullptr ||
        table->engine_version == nullptr || table->engine_close == nullptr)
        fail(GRD_ERR_BACKEND_ABI, path + " gives an incomplete table; reinstall the backend");
    return table;
}

} // namespace grd
