/* openvino_api.cpp - opening OpenVINO's C library.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "openvino_api.h"

#include <dlfcn.h>

#include <cstdlib>

#include "failure.h"
#include "vendor_library.h"

namespace grd {
namespace {

/* Element types were renumbered before this release; its numbers are compiled in. */
constexpr int kOldestYear = 2026;

} // namespace

OpenVinoApi::OpenVinoApi(const char *vendor_dir) {
    void *library =
        open_vendor_library({"OpenVINO", "site-packages/openvino/libs", {"libopenvino_c.so", nullptr}}, vendor_dir);
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
    return one_line(line.c_str());
}

} // namespace grd
