/* score_cuda.h - scoring on CUDA devices for views of any layout. Not public; dense patches: cuda/launch.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_CUDA_H
#define GRD_SCORE_CUDA_H

#include "cuda/launch.h"
#include "cuda/portable.h"

namespace grd::cuda {

struct ScoreViews {
    Source x, x_hat, heatmap, roi; /* heatmap, roi: data NULL where there is none */
};

/* launch_score with the patches where the views say; the pointers of ScorePatches to them are not read. */
cudaError_t launch_score(const ScorePatches &score, const ScoreViews &views, cudaStream_t stream);

} // namespace grd::cuda
#endif
