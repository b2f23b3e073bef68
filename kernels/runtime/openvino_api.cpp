/* openvino_api.cpp - finding and opening OpenVINO's C library.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "openvino_api.h"

#include <dirent.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "failure.h"

namespace grd {
namespace {

constexpr const char *kLibrary = "libopenvino_c.so";
/* Element types were renumbered before this release; its numbers are compiled in. */
constexpr int kOldestYear = 2026;

/* The newest libopenvino_c.so or libopenvino_c.so.<digits> in a folder; "" when there is none. */
std::string library_in(const std::string &folder) {
    std::string best;
    DIR *stream = ::opendir(folder.c_str());
    if (stream == nullptr) return best;
    const size_t length = std::strlen(kLibrary);
    while (const dirent *entry = ::readdir(stream)) {
        const char *name = entry->d_name;
        if (std::strncmp(name, kLibrary, length) != 0) continue;
        const char *rest = name + length;
        const bool versioned = rest[0] == '.' && rest[1] != '\0' && rest[std::strspn(rest, ".0123456789")] == '\0';
        if (rest[0] != '\0' && !versioned) continue;
        if (best.empty() || ::strverscmp(name, best.c_str()) > 0) best = name;
    }
    ::closedir(stream);
    return best.empty() ? best : folder + "/" + best;
}

std::string own_folder() {
    static const char anchor = 0;
    Dl_info info = {};
    if (::dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr) return ".";
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

void *opened(const std::string &path) {
    /* NODELETE: its threads and exit handlers do not survive unloading. */
    void *library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library != nullptr) return library;
    const char *error = ::dlerror();
    fail(GRD_ERR_BACKEND_LIBRARY,
         path + " does not load (" + (error != nullptr ? error : "no reason given") + "); reinstall OpenVINO");
}

void *found_library(const char *vendor_dir) {
    const char *named = vendor_dir != nullptr && vendor_dir[0] != '\0' ? vendor_dir : std::getenv("GRD_VENDOR_DIR");
    if (named != nullptr && named[0] != '\0') {
        const std::string path = library_in(named);
        if (path.empty())
            fail(GRD_ERR_BACKEND_LIBRARY,
                 std::string("folder ") + named + " holds no " + kLibrary +
                     "; name the folder of OpenVINO's libraries, such as site-packages/openvino/libs");
        return opened(path);
    }
    const std::string beside = library_in(own_folder());
    if (!beside.empty()) return opened(beside);
    if (void *library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
    /* The plain name is part of development packages only; look for a versioned one where the loader looks. */
    const char *paths = std::getenv("LD_LIBRARY_PATH");
    for (std::string rest = paths != nullptr ? paths : ""; !rest.empty();) {
        const size_t colon = rest.find(':');
        const std::string path = library_in(rest.substr(0, colon));
        if (!path.empty()) return opened(path);
        rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
    }
    fail(GRD_ERR_BACKEND_LIBRARY,
         std::string(kLibrary) + " was not found; install OpenVINO and pass vendor_dir, or set GRD_VENDOR_DIR, to the "
                                 "folder of its libraries, such as site-packages/openvino/libs");
}

} // namespace

OpenVinoApi::OpenVinoApi(const char *vendor_dir) {
    void *library = found_library(vendor_dir);
#define GRD_LOAD(name) \
    name = reinterpret_cast<decltype(name)>(::dlsym(library, #name)); \
    if (name == nullptr) \
        fail(GRD_ERR_BACKEND_LIBRARY, "OpenVINO's C library lacks " #name "; install OpenVINO 2026.0 or newer");
    GRD_OPENVINO_FUNCTIONS(GRD_LOAD)
#undef GRD_LOAD
    ov_version_t version = {};
    if (ov_get_openvino_version(&version) == OK && version.buildNumber != nullptr) version_ = version.buildNumber;
    ov_version_free(&version);
    if (std::atoi(version_.c_str()) < kOldestYear)
        fail(GRD_ERR_BACKEND_LIBRARY,
             text("OpenVINO %s was found, expected %d.0 or newer; install a newer one", version_.c_str(), kOldestYear));
}

std::string OpenVinoApi::last_error(ov_status_e status) const {
    const char *said = ov_get_last_err_msg();
    std::string line = said != nullptr ? said : "";
    ov_free(said);
    if (line.empty()) {
        const char *name = ov_get_error_info(status);
        line = name != nullptr ? name : "no reason given";
    }
    std::string out;
    for (const char c : line) {
        const char printed = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
        if (printed != ' ' || (!out.empty() && out.back() != ' ')) out += printed;
    }
    while (!out.empty() && out.back() == ' ') out.pop_back();
    return out.size() > 600 ? out.substr(0, 600) + "..." : out;
}

} // namespace grd
