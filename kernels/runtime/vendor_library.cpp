/* vendor_library.cpp - finding and opening the vendor's library of a backend.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "vendor_library.h"

#include <dirent.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "failure.h"

namespace grd {
namespace {

constexpr int kMode = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;

/* The newest <name> or <name>.<digits> in a folder; "" when there is none. */
std::string library_in(const std::string &folder, const VendorLibrary &wanted) {
    std::string best;
    for (const char *wanted_name : wanted.names) {
        if (wanted_name == nullptr) break;
        DIR *stream = ::opendir(folder.c_str());
        if (stream == nullptr) return best;
        const size_t length = std::strlen(wanted_name);
        while (const dirent *entry = ::readdir(stream)) {
            const char *name = entry->d_name;
            if (std::strncmp(name, wanted_name, length) != 0) continue;
            const char *rest = name + length;
            const bool versioned = rest[0] == '.' && rest[1] != '\0' && rest[std::strspn(rest, ".0123456789")] == '\0';
            if (rest[0] != '\0' && !versioned) continue;
            if (best.empty() || ::strverscmp(name, best.c_str()) > 0) best = name;
        }
        ::closedir(stream);
        if (!best.empty()) return folder + "/" + best;
    }
    return best;
}

std::string own_folder() {
    static const char anchor = 0;
    Dl_info info = {};
    if (::dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr) return ".";
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

void *opened(const std::string &path, const VendorLibrary &wanted) {
    void *library = ::dlopen(path.c_str(), kMode);
    if (library != nullptr) return library;
    const char *error = ::dlerror();
    fail(GRD_ERR_BACKEND_LIBRARY, path + " does not load (" + (error != nullptr ? error : "no reason given") +
                                      "); reinstall " + wanted.product);
}

} // namespace

void *open_vendor_library(const VendorLibrary &wanted, const char *vendor_dir) {
    const char *first = wanted.names[0];
    const char *named = vendor_dir != nullptr && vendor_dir[0] != '\0' ? vendor_dir : std::getenv("GRD_VENDOR_DIR");
    if (named != nullptr && named[0] != '\0') {
        const std::string path = library_in(named, wanted);
        if (path.empty())
            fail(GRD_ERR_BACKEND_LIBRARY, std::string("folder ") + named + " holds no " + first +
                                              "; name the folder of " + wanted.product + "'s libraries, such as " +
                                              wanted.folder);
        return opened(path, wanted);
    }
    const std::string beside = library_in(own_folder(), wanted);
    if (!beside.empty()) return opened(beside, wanted);
    for (const char *name : wanted.names) {
        void *library = name != nullptr ? ::dlopen(name, kMode) : nullptr;
        if (library != nullptr) return library;
    }
    /* The plain name is part of development packages only; look for a versioned one where the loader looks. */
    const char *paths = std::getenv("LD_LIBRARY_PATH");
    for (std::string rest = paths != nullptr ? paths : ""; !rest.empty();) {
        const size_t colon = rest.find(':');
        const std::string path = library_in(rest.substr(0, colon), wanted);
        if (!path.empty()) return opened(path, wanted);
        rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
    }
    fail(GRD_ERR_BACKEND_LIBRARY, std::string(first) + " was not found; install " + wanted.product +
                                      " and pass vendor_dir, or set GRD_VENDOR_DIR, to the folder of its libraries, "
                                      "such as " +
                                      wanted.folder);
}

std::string one_line(const char *said) {
    std::string out;
    for (const char *c = said; *c != '\0'; ++c) {
        const char printed = static_cast<unsigned char>(*c) < 0x20 ? ' ' : *c;
        if (printed != ' ' || (!out.empty() && out.back() != ' ')) out += printed;
    }
    while (!out.empty() && out.back() == ' ') out.pop_back();
    return out.size() > 600 ? out.substr(0, 600) + "..." : out;
}

} // namespace grd
