/* runtime_cache.h - where kernels that TensorRT-RTX compiled for a device are kept. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_RUNTIME_CACHE_H
#define GRD_RUNTIME_CACHE_H

#include <cstddef>
#include <string>
#include <vector>

namespace grd {

/* A file in the folder that GRD_RUNTIME_CACHE names; without that, nothing is read or written. Its content is for the
 * vendor's library to judge: it checks that device, driver and version fit. */
class RuntimeCacheFile {
public:
    /* name: what else than the engine it depends on, of letters, digits, - and . */
    RuntimeCacheFile(const void *engine, size_t engine_bytes, const std::string &name);

    bool wanted() const { return !path_.empty(); }
    const std::string &path() const { return path_; }
    /* Empty when there is none. */
    std::vector<char> read() const;
    /* Replaces the file in one step; "" or why it could not. */
    std::string write(const void *data, size_t bytes) const;

private:
    std::string folder_, path_;
};

} // namespace grd
#endif
