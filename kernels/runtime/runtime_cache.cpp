/* runtime_cache.cpp - where kernels that TensorRT-RTX compiled for a device are kept.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "runtime_cache.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sha256.h"

namespace grd {

RuntimeCacheFile::RuntimeCacheFile(const void *engine, size_t engine_bytes, const std::string &name) {
    const char *folder = std::getenv("GRD_RUNTIME_CACHE");
    if (folder == nullptr || folder[0] == '\0') return;
    grd_sha256 hash;
    char digits[65];
    grd_sha256_begin(&hash);
    grd_sha256_add(&hash, engine, engine_bytes);
    grd_sha256_end(&hash, digits);
    folder_ = folder;
    path_ = folder_ + "/" + std::string(digits, 16) + "-" + name + ".cache";
}

std::vector<char> RuntimeCacheFile::read() const {
    std::vector<char> out;
    std::FILE *file = wanted() ? std::fopen(path_.c_str(), "rb") : nullptr;
    if (file == nullptr) return out;
    char block[1 << 16];
    for (size_t got; (got = std::fread(block, 1, sizeof block, file)) > 0;) out.insert(out.end(), block, block + got);
    if (std::ferror(file)) out.clear();
    std::fclose(file);
    return out;
}

std::string RuntimeCacheFile::write(const void *data, size_t bytes) const {
    if (!wanted()) return "";
    std::string temporary = folder_ + "/.cache.XXXXXX";
    const int fd = ::mkstemp(&temporary[0]);
    std::FILE *file = fd >= 0 ? ::fdopen(fd, "wb") : nullptr;
    bool good = file != nullptr && std::fwrite(data, 1, bytes, file) == bytes;
    if (file != nullptr) good = std::fclose(file) == 0 && good;
    good = good && std::rename(temporary.c_str(), path_.c_str()) == 0;
    if (good) return "";
    const std::string reason = path_ + ": " + std::strerror(errno);
    if (file == nullptr && fd >= 0) ::close(fd);
    if (fd >= 0) ::unlink(temporary.c_str());
    return reason;
}

} // namespace grd
