/* variants.cpp - the kernel variants of this build, and the choice among them.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "variants.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "grd_edge.h"

namespace grd {
namespace {

#if defined(__x86_64__)
/* Clang 14 does not know the name in __builtin_cpu_supports. */
[[maybe_unused]] bool cpu_has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

/* Whether the tests' CUDA variant runs: compiled for CPUs with FMA, since fmaf by calls takes ten times as long. */
[[maybe_unused]] bool cpu_fuses() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

struct Entry {
    const char *name;
    bool (*supported)();
};

/* Asked once: in a virtual machine the CPU's answer takes microseconds. */
#define GRD_VARIANT(name, supported_expression)                                \
    bool supported_##name() {                                                  \
        static const bool supported = static_cast<bool>(supported_expression); \
        return supported;                                                      \
    }
#include "variants.inc"
#undef GRD_VARIANT

constexpr Entry kEntries[] = {
#define GRD_VARIANT(name, supported_expression) {#name, supported_##name},
#include "variants.inc"
#undef GRD_VARIANT
};

int32_t index_of(const char *name) {
    for (int32_t i = 0; i < kVariantCount; ++i)
        if (std::strcmp(kEntries[i].name, name) == 0) return i;
    return -1;
}

} // namespace

int32_t variant_index(const char *forced) {
    const char *name = forced;
    if (name == nullptr) {
        name = std::getenv("GRD_FORCE_VARIANT");
        if (name != nullptr && *name == '\0') name = nullptr; /* set but empty: not set */
    }
    if (name != nullptr) {
        const int32_t index = index_of(name);
        return index >= 0 && kEntries[index].supported() ? index : -1;
    }
    int32_t index = kVariantCount - 1;
    while (index > 0 && !kEntries[index].supported()) --index;
    return index;
}

const char *variant_name(int32_t index) { return kEntries[index].name; }

} // namespace grd

const char *grd_variant_name(int32_t index) {
    return index >= 0 && index < grd::kVariantCount ? grd::variant_name(index) : nullptr;
}

int32_t grd_variant_supported(const char *name) {
    const int32_t index = name != nullptr ? grd::index_of(name) : -1;
    return index >= 0 && grd::kEntries[index].supported();
}

const char *grd_variant_active(const char *forced) {
    const int32_t index = grd::variant_index(forced);
    return index >= 0 ? grd::variant_name(index) : nullptr;
}
