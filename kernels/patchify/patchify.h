/* patchify.h - what the parts of the cutter share. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_PATCHIFY_H
#define GRD_PATCHIFY_H

#include <cstddef>
#include <cstdint>

#include "both.h"
#include "grd_edge.h"

namespace grd {

/* Longest side of a frame, before and after the working scale. It keeps the column sums of UINT16 rows inside
 * 32 bits: 65536 * 65535 < 2^32. */
constexpr int64_t kMaxSidePx = 65536;

/* Where patch `index` of an axis begins; the last one shifts inward. */
GRD_BOTH int32_t position_px(int32_t index, int32_t stride, int32_t patch, int32_t extent) {
    const int64_t begin = static_cast<int64_t>(index) * stride;
    const int64_t limit = extent > patch ? extent - patch : 0;
    return static_cast<int32_t>(begin < limit ? begin : limit);
}

/* Index that position i >= n of an axis of n pixels repeats: reflection without the edge, as often as needed. */
GRD_BOTH int32_t reflected_px(int32_t i, int32_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (static_cast<int64_t>(n) - 1);
    const int64_t inside = i % period;
    return static_cast<int32_t>(inside < n ? inside : period - inside);
}

/* What the engine takes: see grd_cut_frame. */
struct PatchType {
    int32_t dtype;
    bool interleaved;  /* NHWC */
    float input_scale; /* of GRD_INT8 */
};

/* patchify_checks.cpp. Views must be in `space`. */
grd_status check_params(const grd_cut_params *params);
grd_status grid_of(const grd_cut_params &cut, int64_t h, int64_t w, grd_grid *out);
grd_status check_frame(const grd_cut_params &cut, const grd_view *frame, int32_t space);
/* Reads what the engine takes off the view of `count` patches; input_scale is the caller's to add. */
grd_status read_patches(const grd_cut_params &cut, int64_t count, const grd_view *patches, int32_t space, PatchType *out);
grd_status check_type(const PatchType &type);

/* options in our terms, NULL = defaults, and the variant that runs. */
grd_status read_cut_options(const grd_cut_options *given, grd_cut_options *out, int32_t *variant);

/* Scratch of one call: the caller's, else allocated. Aligned to kCutAlign. */
constexpr size_t kCutAlign = 64;
class CutWorkspace {
public:
    /* bytes: kCutAlign - 1 of them are slack. */
    grd_status open(const grd_cut_options &options, size_t bytes);
    ~CutWorkspace();
    uint8_t *base = nullptr;

private:
    void *own_ = nullptr;
};

/* grd_cut_frame for some of the patches: slots[i] is where patch i of the grid goes in `patches`, -1 for nowhere;
 * NULL: all, in order. `patches` holds `count` patches, as many as there are slots. */
grd_status cut_frame(const grd_cut_params &cut, const grd_view *frame, const int32_t *slots, int32_t count,
                     const PatchType &type, void *patches, const grd_cut_options *options);

/* stitch.cpp. grd_stitch_frame for the patches (N,1,patch_h,patch_w) in the places that slots gives, NULL as above; 0
 * where there is none. Dtypes and extents are checked already. */
grd_status stitch(const grd_cut_params &cut, const grd_grid &grid, const int32_t *slots, const grd_view &patches,
                  const grd_view &map, const grd_cut_options *options);
size_t stitch_bytes(const grd_cut_params &cut, const grd_grid &grid);

} // namespace grd
#endif
