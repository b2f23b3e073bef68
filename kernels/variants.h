/* variants.h - which kernel variant runs. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_VARIANTS_H
#define GRD_VARIANTS_H

#include <cstdint>

namespace grd {

/* Position in variants.inc, and in the table that each family of kernels makes from it. */
enum VariantIndex : int32_t {
#define GRD_VARIANT(name, supported) kVariant_##name,
#include "variants.inc"
#undef GRD_VARIANT
    kVariantCount
};

/* Of the variant that runs: the forced one (by the call, else by GRD_FORCE_VARIANT), else the fastest. -1 when the
 * forced one is unknown or not supported by this CPU: then nothing runs. */
int32_t variant_index(const char *forced);

/* Name of a variant; static. */
const char *variant_name(int32_t index);

} // namespace grd
#endif
