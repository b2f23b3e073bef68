/* patchify.cpp - frames to patches: checks, geometry, and the order in which rows are made and handed out.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A frame is walked once, row by row. Each row of the scaled frame is made in a buffer that stays in cache and is
 * copied from there into every patch that shows it, so a scaled frame is never stored and overlaps cost a copy
 * only. Columns are summed before rows are: that pass reads contiguous memory and vectorises. */
#include "patchify.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace grd {
namespace {

constexpr size_t kAlign = 64;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

grd_status check_params(const grd_cut_params *params) {
    if (params == nullptr) return GRD_ERR_ARGUMENT;
    if (params->struct_size < sizeof(grd_cut_params)) return GRD_ERR_STRUCT_SIZE;
    if (params->scale_px < 0 || params->scale_px > kMaxSidePx) return GRD_ERR_ARGUMENT;
    for (int32_t extent : {params->patch_h, params->patch_w, params->stride_y, params->stride_x})
        if (extent < 1 || extent > kMaxSidePx) return GRD_ERR_ARGUMENT;
    /* A stride above the patch would leave pixels that nobody inspects. */
    if (params->stride_y > params->patch_h || params->stride_x > params->patch_w) return GRD_ERR_ARGUMENT;
    if (params->channels != 1 && params->channels != 3) return GRD_ERR_ARGUMENT;
    if (params->padding != GRD_PADDING_ERROR && params->padding != GRD_PADDING_REFLECT) return GRD_ERR_ARGUMENT;
    return GRD_OK;
}

int64_t count_along(int64_t extent, int64_t patch, int64_t stride) {
    return extent <= patch ? 1 : (extent - patch + stride - 1) / stride + 1;
}

grd_status grid_of(const grd_cut_params &cut, int64_t h, int64_t w, grd_grid *out) {
    if (h < 1 || w < 1 || h > kMaxSidePx || w > kMaxSidePx) return GRD_ERR_SHAPE;
    int64_t scaled_h = h, scaled_w = w;
    if (cut.scale_px > 0) {
        const int64_t shorter = h < w ? h : w;
        scaled_h = h == shorter ? cut.scale_px : (2 * h * cut.scale_px + shorter) / (2 * shorter);
        scaled_w = w == shorter ? cut.scale_px : (2 * w * cut.scale_px + shorter) / (2 * shorter);
        if (scaled_h > kMaxSidePx || scaled_w > kMaxSidePx) return GRD_ERR_SHAPE;
    }
    if (cut.padding == GRD_PADDING_ERROR && (scaled_h < cut.patch_h || scaled_w < cut.patch_w))
        return GRD_ERR_FRAME_SIZE;
    const int64_t rows = count_along(scaled_h, cut.patch_h, cut.stride_y);
    const int64_t cols = count_along(scaled_w, cut.patch_w, cut.stride_x);
    if (rows * cols > INT32_MAX) return GRD_ERR_SHAPE;
    out->scaled_h = static_cast<int32_t>(scaled_h);
    out->scaled_w = static_cast<int32_t>(scaled_w);
    out->rows = static_cast<int32_t>(rows);
    out->cols = static_cast<int32_t>(cols);
    out->count = static_cast<int32_t>(rows * cols);
    return GRD_OK;
}

/* Scratch of one call. Sized for UINT16 frames of three channels, so that the size depends on extents only. */
struct Scratch {
    uint8_t *gathered; /* a row whose pixels are not contiguous in the frame */
    uint32_t *sums;    /* column sums */
    float *mixed;      /* weighted column sums, interleaved */
    float *line;       /* the same, in planes of frame_w */
    Tap *taps;         /* along x */
    float *row;        /* a row of the scaled frame, in planes of row_px */
    int64_t row_px;
};

size_t lay_out(const grd_cut_params &cut, const grd_grid &grid, int64_t frame_w, uint8_t *base, Scratch *out) {
    size_t used = 0;
    const auto take = [&](size_t bytes) {
        const size_t at = used;
        used += aligned(bytes);
        return base == nullptr ? nullptr : base + at;
    };
    const size_t w = static_cast<size_t>(frame_w), channels = static_cast<size_t>(cut.channels);
    out->row_px = grid.scaled_w > cut.patch_w ? grid.scaled_w : cut.patch_w;
    out->gathered = take(w * 3 * sizeof(uint16_t));
    out->row = reinterpret_cast<float *>(take(static_cast<size_t>(out->row_px) * channels * sizeof(float)));
    if (cut.scale_px > 0) {
        out->sums = reinterpret_cast<uint32_t *>(take(w * 3 * sizeof(uint32_t)));
        out->mixed = reinterpret_cast<float *>(take(w * 3 * sizeof(float)));
        out->line = reinterpret_cast<float *>(take(w * channels * sizeof(float)));
        out->taps = reinterpret_cast<Tap *>(take(static_cast<size_t>(grid.scaled_w) * sizeof(Tap)));
    }
    return used;
}

/* Rows of a frame as contiguous interleaved pixels: where they lie already, else gathered. */
template <class T> class Rows {
public:
    Rows(const grd_view &frame, uint8_t *gathered) : base_(static_cast<const uint8_t *>(frame.data)) {
        const int64_t c = frame.extent[1], h = frame.extent[2], w = frame.extent[3], bytes = sizeof(T);
        const int64_t *stride = frame.stride_bytes;
        const bool dense = stride[0] == 0 && stride[1] == 0 && stride[2] == 0 && stride[3] == 0;
        c_ = static_cast<int>(c);
        w_ = w;
        stride_c_ = dense ? h * w * bytes : stride[1];
        stride_y_ = dense ? w * bytes : stride[2];
        stride_x_ = dense ? bytes : stride[3];
        const bool whole_pixels = c == 1 || stride_c_ == bytes;
        const bool touching = w == 1 || stride_x_ == c * bytes;
        const bool even = reinterpret_cast<uintptr_t>(base_) % sizeof(T) == 0 && stride_y_ % bytes == 0;
        direct_ = whole_pixels && touching && even;
        gathered_ = reinterpret_cast<T *>(gathered);
    }

    const T *row(int64_t y) const {
        const uint8_t *from = base_ + y * stride_y_;
        if (direct_) return reinterpret_cast<const T *>(from);
        for (int c = 0; c < c_; ++c)
            for (int64_t x = 0; x < w_; ++x)
                std::memcpy(gathered_ + x * c_ + c, from + c * stride_c_ + x * stride_x_, sizeof(T));
        return gathered_;
    }

private:
    const uint8_t *base_;
    T *gathered_;
    int64_t w_, stride_c_, stride_y_, stride_x_;
    int c_;
    bool direct_;
};

/* Copies row y of the scaled frame into the patches that show it and are wanted. */
void hand_out(const grd_cut_params &cut, const grd_grid &grid, const Scratch &scratch, int32_t y, const int32_t *slots,
              float *patches) {
    const int64_t patch_px = static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    const size_t bytes = static_cast<size_t>(cut.patch_w) * sizeof(float);
    const int32_t first = y > cut.patch_h ? (y - cut.patch_h) / cut.stride_y : 0;
    for (int32_t r = first; r < grid.rows; ++r) {
        const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
        if (top > y) break;
        if (y - top >= cut.patch_h) continue;
        for (int32_t c = 0; c < grid.cols; ++c) {
            const int64_t index = static_cast<int64_t>(r) * grid.cols + c, slot = slots != nullptr ? slots[index] : index;
            if (slot < 0) continue;
            const float *from = scratch.row + position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
            float *to =
                patches + slot * cut.channels * patch_px + static_cast<int64_t>(y - top) * cut.patch_w;
            for (int32_t k = 0; k < cut.channels; ++k) std::memcpy(to + k * patch_px, from + k * scratch.row_px, bytes);
        }
    }
}

template <class T>
void cut_rows(const grd_cut_params &cut, const grd_grid &grid, const grd_view &frame, const Scratch &s,
              const int32_t *slots, int32_t count, float *patches) {
    const Rows<T> rows(frame, s.gathered);
    const int c_in = static_cast<int>(frame.extent[1]);
    const int64_t h = frame.extent[2], w = frame.extent[3];
    const bool scaled = grid.scaled_h != h || grid.scaled_w != w;
    if (scaled)
        for (int32_t x = 0; x < grid.scaled_w; ++x) s.taps[x] = tap_of(x, w, grid.scaled_w);
    const double full = sizeof(T) == 1 ? 255.0 : 65535.0;
    const double scale = static_cast<double>(grid.scaled_h) * grid.scaled_w / (static_cast<double>(h) * w * full);

    for (int32_t y = 0; y < grid.scaled_h; ++y) {
        if (!scaled) {
            row_to_line(rows.row(y), w, c_in, cut.channels, s.row, s.row_px);
        } else {
            const Tap tap = tap_of(y, h, grid.scaled_h);
            const int64_t n = w * c_in;
            weigh_row(rows.row(tap.first), n, tap.f0, false, s.mixed);
            if (tap.whole > 0) {
                std::memset(s.sums, 0, static_cast<size_t>(n) * sizeof(uint32_t));
                for (int32_t i = 0; i < tap.whole; ++i) add_row(rows.row(tap.first + 1 + i), n, s.sums);
                add_sums(s.sums, n, s.mixed);
            }
            if (tap.whole >= 0) weigh_row(rows.row(tap.first + 1 + tap.whole), n, tap.f1, true, s.mixed);
            const float *line = s.mixed;
            if (c_in == 3) {
                split_line(s.mixed, w, c_in, cut.channels, s.line, w);
                line = s.line;
            }
            for (int k = 0; k < cut.channels; ++k)
                shrink_line(line + k * w, s.taps, grid.scaled_w, scale, s.row + k * s.row_px);
        }
        for (int k = 0; k < cut.channels; ++k)
            for (int32_t x = grid.scaled_w; x < cut.patch_w; ++x)
                s.row[k * s.row_px + x] = s.row[k * s.row_px + reflected_px(x, grid.scaled_w)];
        hand_out(cut, grid, s, y, slots, patches);
    }

    /* Rows below a frame that is lower than a patch. Then there is one row of patches. */
    const int64_t patch_px = static_cast<int64_t>(cut.patch_h) * cut.patch_w;
    for (int64_t plane = 0; plane < static_cast<int64_t>(count) * cut.channels; ++plane)
        for (int32_t y = grid.scaled_h; y < cut.patch_h; ++y) {
            float *patch = patches + plane * patch_px;
            std::memcpy(patch + static_cast<int64_t>(y) * cut.patch_w,
                        patch + static_cast<int64_t>(reflected_px(y, grid.scaled_h)) * cut.patch_w,
                        static_cast<size_t>(cut.patch_w) * sizeof(float));
        }
}

grd_status check_frame(const grd_cut_params &cut, const grd_view *frame) {
    if (frame == nullptr || frame->data == nullptr) return GRD_ERR_ARGUMENT;
    if (frame->dtype != GRD_UINT8 && frame->dtype != GRD_UINT16) return GRD_ERR_DTYPE;
    if (frame->space != GRD_SPACE_HOST) return GRD_ERR_SPACE;
    if (frame->extent[0] != 1) return GRD_ERR_SHAPE;
    const int64_t c = frame->extent[1];
    if (c < 1) return GRD_ERR_SHAPE;
    if ((c != 1 && c != 3) || (c == 1 && cut.channels == 3)) return GRD_ERR_FRAME_CHANNELS;
    return GRD_OK;
}

grd_status check_patches(const grd_cut_params &cut, const grd_grid &grid, const grd_view *patches) {
    if (patches == nullptr || patches->data == nullptr) return GRD_ERR_ARGUMENT;
    if (reinterpret_cast<uintptr_t>(patches->data) % alignof(float) != 0) return GRD_ERR_ARGUMENT;
    if (patches->dtype != GRD_FLOAT32) return GRD_ERR_DTYPE;
    if (patches->space != GRD_SPACE_HOST) return GRD_ERR_SPACE;
    const int64_t want[4] = {grid.count, cut.channels, cut.patch_h, cut.patch_w};
    int64_t dense[4] = {0, 0, 0, sizeof(float)};
    for (int i = 2; i >= 0; --i) dense[i] = dense[i + 1] * want[i + 1];
    const int64_t *stride = patches->stride_bytes;
    const bool unset = stride[0] == 0 && stride[1] == 0 && stride[2] == 0 && stride[3] == 0;
    for (int i = 0; i < 4; ++i)
        if (patches->extent[i] != want[i]) return GRD_ERR_SHAPE;
    for (int i = 0; i < 4; ++i)
        if (!unset && want[i] > 1 && stride[i] != dense[i]) return GRD_ERR_STRIDE;
    return GRD_OK;
}

} // namespace

grd_status cut_frame(const grd_cut_params &cut, const grd_view *frame, const int32_t *slots, int32_t count,
                     float *patches, void *workspace, size_t workspace_bytes) {
    if (const grd_status status = check_frame(cut, frame)) return status;
    const int64_t h = frame->extent[2], w = frame->extent[3];
    grd_grid grid = {};
    if (const grd_status status = grid_of(cut, h, w, &grid)) return status;
    const size_t bytes = grd_cut_workspace_bytes(&cut, h, w);
    if (workspace != nullptr && workspace_bytes < bytes) return GRD_ERR_BUFFER;
    void *own = workspace == nullptr ? std::malloc(bytes) : nullptr;
    if (workspace == nullptr && own == nullptr) return GRD_ERR_MEMORY;
    uint8_t *base = static_cast<uint8_t *>(workspace == nullptr ? own : workspace);
    base += (kAlign - reinterpret_cast<uintptr_t>(base) % kAlign) % kAlign;
    Scratch scratch = {};
    lay_out(cut, grid, w, base, &scratch);
    if (frame->dtype == GRD_UINT8)
        cut_rows<uint8_t>(cut, grid, *frame, scratch, slots, count, patches);
    else
        cut_rows<uint16_t>(cut, grid, *frame, scratch, slots, count, patches);
    std::free(own);
    return GRD_OK;
}

} // namespace grd

grd_status grd_cut_grid(const grd_cut_params *params, int64_t frame_h, int64_t frame_w, grd_grid *out) {
    if (const grd_status status = grd::check_params(params)) return status;
    if (out == nullptr) return GRD_ERR_ARGUMENT;
    if (out->struct_size < sizeof(grd_grid)) return GRD_ERR_STRUCT_SIZE;
    return grd::grid_of(*params, frame_h, frame_w, out);
}

grd_status grd_cut_position(const grd_cut_params *params, const grd_grid *grid, int32_t index, int32_t *y_px,
                            int32_t *x_px) {
    if (const grd_status status = grd::check_params(params)) return status;
    if (grid == nullptr || y_px == nullptr || x_px == nullptr) return GRD_ERR_ARGUMENT;
    if (grid->struct_size < sizeof(grd_grid)) return GRD_ERR_STRUCT_SIZE;
    if (grid->cols < 1 || index < 0 || index >= grid->count) return GRD_ERR_ARGUMENT;
    *y_px = grd::position_px(index / grid->cols, params->stride_y, params->patch_h, grid->scaled_h);
    *x_px = grd::position_px(index % grid->cols, params->stride_x, params->patch_w, grid->scaled_w);
    return GRD_OK;
}

size_t grd_cut_workspace_bytes(const grd_cut_params *params, int64_t frame_h, int64_t frame_w) {
    grd_grid grid = {};
    grd::Scratch scratch = {};
    if (grd::check_params(params) != GRD_OK) return 0;
    if (grd::grid_of(*params, frame_h, frame_w, &grid) != GRD_OK) return 0;
    return grd::lay_out(*params, grid, frame_w, nullptr, &scratch) + grd::kAlign - 1; /* any alignment will do */
}

grd_status grd_cut_frame(const grd_cut_params *params, const grd_view *frame, const grd_view *patches, void *workspace,
                         size_t workspace_bytes) {
    if (const grd_status status = grd::check_params(params)) return status;
    if (const grd_status status = grd::check_frame(*params, frame)) return status;
    grd_grid grid = {};
    if (const grd_status status = grd::grid_of(*params, frame->extent[2], frame->extent[3], &grid)) return status;
    if (const grd_status status = grd::check_patches(*params, grid, patches)) return status;
    float *out = static_cast<float *>(patches->data);
    return grd::cut_frame(*params, frame, nullptr, grid.count, out, workspace, workspace_bytes);
}
