/* score_checks.h - what every entry point for scoring asks of its arguments, on the host and on devices. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_CHECKS_H
#define GRD_SCORE_CHECKS_H

#include "score/score_internal.h"

namespace grd::score {

/* A call after its checks. */
struct CheckedCall {
    grd_score_params params;
    grd_score_outputs outputs;
    const grd_view *x, *x_hat;
    Job job;
    int64_t x_stride[4], x_hat_stride[4], roi_stride[4], heatmap_stride[4];
};

/* The caller's parameters in our length; NULL = defaults. */
grd_status read_params(const grd_score_params *given, grd_score_params *out);

/* False when patches of this size are not taken. */
bool job_from_size(const grd_score_params &params, int64_t c, int64_t h, int64_t w, Job *out);

/* Everything but the variant and the workspace. Views must be in `space`. */
grd_status check_score(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                       const grd_score_outputs *outputs, int32_t space, CheckedCall *call);

} // namespace grd::score
#endif
