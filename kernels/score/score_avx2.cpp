/* score_avx2.cpp - score_fused.h over AVX2 and FMA. Compiled with -mavx2 -mfma -mf16c.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "score/score_vector256.h"

namespace grd::score {
namespace {

using Pass = Fused<Vector256>;

bool takes(const Job &job) { return Pass::takes(job); }
size_t scratch_bytes(const Job &job) { return Pass::scratch_bytes(job); }
Result run(const Job &job, const Patch &patch, void *scratch) { return Pass(job, patch, scratch).run(); }

} // namespace

const Variant variant_avx2 = {takes, scratch_bytes, run};

} // namespace grd::score
