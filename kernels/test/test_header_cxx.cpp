// test_header_cxx.cpp - the public header from C++: linkage, and the layouts that C sees.
//
// SPDX-License-Identifier: Apache-2.0
#include "grd_edge.h"

#include <type_traits>

#include "check.h"

int main() {
    CHECK(std::is_standard_layout<grd_view>::value && std::is_trivial<grd_view>::value);
    CHECK(std::is_standard_layout<grd_result>::value && std::is_trivial<grd_result>::value);
    CHECK(grd_version() >= 0);
    grd_backend_table_fn table = nullptr;
    CHECK(table == nullptr);
    grd_bundle_close(nullptr);
    grd_inspector_close(nullptr);
    CHECK(grd_bundle_message(nullptr)[0] == '\0');
    CHECK(grd_inspector_message(nullptr)[0] == '\0');
    return checks_report();
}
