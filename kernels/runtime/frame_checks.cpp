/* frame_checks.cpp - what can be wrong with a frame, its mask, and the outputs of an inspection.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "../patchify/patchify.h"
#include "failure.h"
#include "work.h"

namespace grd {
namespace {

/* Checks a view that the caller wants filled. */
void check_output(const grd_view &view, const char *name, int64_t n, int64_t c, int64_t h, int64_t w, bool dense) {
    if (view.data == nullptr)
        fail(GRD_ERR_ARGUMENT, text("result.%s has no data; pass NULL when it is not wanted", name));
    if (view.dtype != GRD_FLOAT32)
        fail(GRD_ERR_DTYPE, text("result.%s has dtype %d, expected FLOAT32", name, view.dtype));
    if (view.space != GRD_SPACE_HOST)
        fail(GRD_ERR_SPACE, text("result.%s lies in space %d, expected host memory", name, view.space));
    const int64_t want[4] = {n, c, h, w};
    const int64_t strides[4] = {c * h * w * 4, h * w * 4, w * 4, 4};
    bool unset = true;
    for (int i = 0; i < 4; ++i) unset = unset && view.stride_bytes[i] == 0;
    for (int i = 0; i < 4; ++i)
        /* Reconstructions may have room for more patches than are inspected. */
        if (dense && i == 0 ? view.extent[i] < want[i] : view.extent[i] != want[i])
            fail(GRD_ERR_SHAPE,
                 text("result.%s is %lldx%lldx%lldx%lld, expected %lldx%lldx%lldx%lld; ask grd_inspector_grid first",
                      name, static_cast<long long>(view.extent[0]), static_cast<long long>(view.extent[1]),
                      static_cast<long long>(view.extent[2]), static_cast<long long>(view.extent[3]),
                      static_cast<long long>(n), static_cast<long long>(c), static_cast<long long>(h),
                      static_cast<long long>(w)));
    for (int i = 0; dense && i < 4; ++i)
        if (!unset && want[i] > 1 && view.stride_bytes[i] != strides[i])
            fail(GRD_ERR_STRIDE, text("result.%s has strides, expected dense memory", name));
}

} // namespace

void fail_cut(grd_status status, const grd_view &frame, const grd_cut_params &cut) {
    const std::string size = text("frame %lldx%lldx%lld", static_cast<long long>(frame.extent[2]),
                                  static_cast<long long>(frame.extent[3]), static_cast<long long>(frame.extent[1]));
    switch (status) {
    case GRD_ERR_FRAME_SIZE:
        fail(status, size + text(" is smaller than a patch of %dx%d at working scale %d px; use larger frames, or a "
                                 "bundle with padding \"reflect\"",
                                 cut.patch_h, cut.patch_w, cut.scale_px));
    case GRD_ERR_FRAME_CHANNELS:
        fail(status, size + text(" has channels that this bundle cannot take, it works on %d; give frames of %s",
                                 cut.channels, cut.channels == 1 ? "1 channel or 3 (RGB)" : "3 channels (RGB)"));
    case GRD_ERR_SHAPE:
        fail(status, size + text(" of %lld images is not taken, expected one image with sides of 1 to %lld px before "
                                 "and after scaling",
                                 static_cast<long long>(frame.extent[0]), static_cast<long long>(kMaxSidePx)));
    case GRD_ERR_DTYPE:
        fail(status, size + text(" has dtype %d, expected UINT8 or UINT16", frame.dtype));
    case GRD_ERR_SPACE:
        fail(status, size + text(" lies in space %d, expected host memory", frame.space));
    case GRD_ERR_ARGUMENT:
        fail(status, size + " has no data; set view.data");
    default:
        fail(status, size + " cannot be cut (" + grd_status_name(status) + ")");
    }
}

Mask mask_of_frame(const Model &model, const grd_view &frame, const grd_view *roi) {
    const int64_t h = frame.extent[2], w = frame.extent[3];
    Mask mask = model.roi;
    if (roi != nullptr) {
        if (roi->data == nullptr) fail(GRD_ERR_ARGUMENT, "result.roi has no data; pass NULL for the bundle's mask");
        if (roi->dtype != GRD_UINT8) fail(GRD_ERR_DTYPE, text("result.roi has dtype %d, expected UINT8", roi->dtype));
        if (roi->space != GRD_SPACE_HOST)
            fail(GRD_ERR_SPACE, text("result.roi lies in space %d, expected host memory", roi->space));
        if (roi->extent[0] != 1 || roi->extent[1] != 1)
            fail(GRD_ERR_SHAPE, text("result.roi holds %lld images of %lld channels, expected one of one",
                                     static_cast<long long>(roi->extent[0]), static_cast<long long>(roi->extent[1])));
        bool dense = true;
        for (const int64_t stride : roi->stride_bytes) dense = dense && stride == 0;
        mask.pixels = static_cast<const uint8_t *>(roi->data);
        mask.h = roi->extent[2], mask.w = roi->extent[3];
        mask.stride_y = dense ? mask.w : roi->stride_bytes[2];
        mask.stride_x = dense ? 1 : roi->stride_bytes[3];
    }
    if (mask.pixels != nullptr && (mask.h != h || mask.w != w))
        fail(GRD_ERR_FRAME_SIZE,
             text("the frame is %lldx%lld px but the mask of interest is %lldx%lld px; use frames of that size, or "
                  "draw it again",
                  static_cast<long long>(h), static_cast<long long>(w), static_cast<long long>(mask.h),
                  static_cast<long long>(mask.w)));
    return mask;
}

void check_outputs(const Model &model, const grd_grid &grid, int32_t count, const grd_result &result) {
    const grd_cut_params &cut = model.info.cut;
    if (result.patches != nullptr && result.patch_capacity < count)
        fail(GRD_ERR_BUFFER, text("result.patches holds %lld, the frame has %d patches; ask grd_inspector_grid first",
                                  static_cast<long long>(result.patch_capacity), count));
    if (result.heatmap != nullptr) check_output(*result.heatmap, "heatmap", 1, 1, grid.scaled_h, grid.scaled_w, false);
    if (result.x_hat != nullptr && model.scores_itself())
        fail(GRD_ERR_ARGUMENT, "this bundle's graph yields scores and maps, no reconstructions; do not ask for x_hat");
    if (result.x_hat != nullptr)
        check_output(*result.x_hat, "x_hat", count, cut.channels, cut.patch_h, cut.patch_w, true);
}

} // namespace grd
