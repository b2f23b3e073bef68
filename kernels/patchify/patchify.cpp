/* patchify.cpp - frames to patches: the order in which rows are made and handed out.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A frame is walked row by row. Without scaling, each piece of a row is converted straight into its patch.
 * With scaling, each row of the scaled frame is made once, in a buffer that stays in cache, and copied from there into
 * every patch that shows it, so a scaled frame is never stored. Columns are summed before rows are: that pass reads
 * contiguous memory. */
#include "patchify.h"

#include <cstdlib>
#include <cstring>

#include "patchify_kernels.h"
#include "variants.h"
#include "views.h"

namespace grd {
namespace patchify {

const Kernels *const kKernels[] = {
#define GRD_VARIANT(name, supported) &kernels_##name,
#include "variants.inc"
#undef GRD_VARIANT
};

} // namespace patchify

namespace {

using patchify::Format;
using patchify::Kernels;
using patchify::RowKernels;
using patchify::Tap;

size_t aligned(size_t bytes) { return (bytes + kCutAlign - 1) / kCutAlign * kCutAlign; }

/* Interval [i * n_in / n_out, (i + 1) * n_in / n_out), in integer arithmetic. */
Tap tap_of(int64_t i, int64_t n_in, int64_t n_out) {
    const int64_t begin = i * n_in, end = begin + n_in; /* in units of 1 / n_out pixel */
    const int64_t first = begin / n_out, last = (end - 1) / n_out;
    Tap tap;
    tap.first = static_cast<int32_t>(first);
    tap.whole = static_cast<int32_t>(last - first - 1);
    const int64_t covered = last > first ? (first + 1) * n_out - begin : n_in;
    tap.f0 = static_cast<float>(static_cast<double>(covered) / static_cast<double>(n_out));
    tap.f1 = static_cast<float>(static_cast<double>(end - last * n_out) / static_cast<double>(n_out));
    return tap;
}

/* Scratch of one call. Sized for UINT16 frames of three channels and FLOAT32 patches, so that the size depends on
 * extents only. */
struct Scratch {
    uint8_t *gathered; /* a row whose pixels are not contiguous in the frame */
    uint32_t *sums;    /* column sums */
    float *mixed;      /* weighted column sums, interleaved */
    float *line;       /* the same, in planes of frame_w */
    Tap *taps;         /* along x */
    float *values;     /* a row of the scaled frame, in the order of the patches, planes of row_px */
    uint8_t *row;      /* the same in the type of the patches */
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
    if (cut.scale_px > 0) {
        const size_t row_floats = static_cast<size_t>(out->row_px) * channels;
        out->sums = reinterpret_cast<uint32_t *>(take(w * 3 * sizeof(uint32_t)));
        out->mixed = reinterpret_cast<float *>(take(w * 3 * sizeof(float)));
        out->line = reinterpret_cast<float *>(take(w * channels * sizeof(float)));
        out->taps = reinterpret_cast<Tap *>(take(static_cast<size_t>(grid.scaled_w) * sizeof(Tap)));
        out->values = reinterpret_cast<float *>(take(row_floats * sizeof(float)));
        out->row = take(row_floats * sizeof(uint16_t)); /* FLOAT32 rows are `values` */
    }
    return used;
}

/* Rows of a frame as contiguous interleaved pixels: where they lie already, else gathered. */
template <class T> class Rows {
public:
    Rows(const grd_view &frame, uint8_t *gathered) : base_(static_cast<const uint8_t *>(frame.data)) {
        const int64_t c = frame.extent[1], w = frame.extent[3], bytes = sizeof(T);
        int64_t stride[4];
        strides_of(frame, false, stride);
        c_ = static_cast<int>(c);
        w_ = w;
        stride_c_ = stride[1], stride_y_ = stride[2], stride_x_ = stride[3];
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

/* The patches of a call, and the kernels that fill them. */
struct Target {
    const grd_cut_params &cut;
    const grd_grid &grid;
    const int32_t *slots; /* see cut_frame */
    int32_t count;
    Format format;
    const Kernels &kernels;
    uint8_t *patches;
    int64_t planes, pixel_bytes; /* pixel: its elements in one plane */
    int64_t row_bytes, plane_bytes, patch_bytes;

    /* Patch `index` of the grid; NULL when it is not wanted. */
    uint8_t *patch(int64_t index) const {
        const int64_t slot = slots != nullptr ? slots[index] : index;
        return slot < 0 ? nullptr : patches + slot * patch_bytes;
    }
};

template <class T> const RowKernels<T> &row_kernels(const Kernels &kernels);
template <> const RowKernels<uint8_t> &row_kernels(const Kernels &kernels) { return kernels.bytes; }
template <> const RowKernels<uint16_t> &row_kernels(const Kernels &kernels) { return kernels.words; }

/* Reflection of a row of n pixels to patch_w of them. */
void pad_row(const Target &to, int64_t n, uint8_t *row) {
    for (int32_t x = static_cast<int32_t>(n); x < to.cut.patch_w; ++x)
        std::memcpy(row + x * to.pixel_bytes, row + reflected_px(x, static_cast<int32_t>(n)) * to.pixel_bytes,
                    static_cast<size_t>(to.pixel_bytes));
}

/* Without scaling: each piece of a row straight into its patch. */
template <class T> void cut_pixels(const Rows<T> &rows, const Target &to) {
    const grd_cut_params &cut = to.cut;
    const grd_grid &grid = to.grid;
    const int32_t h = grid.scaled_h < cut.patch_h ? grid.scaled_h : cut.patch_h;
    const int32_t w = grid.scaled_w < cut.patch_w ? grid.scaled_w : cut.patch_w;
    const auto convert = row_kernels<T>(to.kernels).convert;
    for (int32_t r = 0; r < grid.rows; ++r) {
        const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
        for (int32_t y = 0; y < h; ++y) {
            const T *pixels = rows.row(top + y);
            for (int32_t c = 0; c < grid.cols; ++c) {
                uint8_t *patch = to.patch(static_cast<int64_t>(r) * grid.cols + c);
                if (patch == nullptr) continue;
                const int64_t left = position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
                uint8_t *row = patch + y * to.row_bytes;
                convert(to.format, pixels + left * to.format.c_in, w, row, to.plane_bytes);
                for (int64_t k = 0; w < cut.patch_w && k < to.planes; ++k) pad_row(to, w, row + k * to.plane_bytes);
            }
        }
    }
}

/* Copies row y of the scaled frame, in planes of row_bytes, into the patches that show it and are wanted. */
void hand_out(const Target &to, int32_t y, const uint8_t *row, int64_t row_bytes) {
    const grd_cut_params &cut = to.cut;
    const grd_grid &grid = to.grid;
    const int32_t first = y > cut.patch_h ? (y - cut.patch_h) / cut.stride_y : 0;
    for (int32_t r = first; r < grid.rows; ++r) {
        const int32_t top = position_px(r, cut.stride_y, cut.patch_h, grid.scaled_h);
        if (top > y) break;
        if (y - top >= cut.patch_h) continue;
        for (int32_t c = 0; c < grid.cols; ++c) {
            uint8_t *patch = to.patch(static_cast<int64_t>(r) * grid.cols + c);
            if (patch == nullptr) continue;
            const int64_t left = position_px(c, cut.stride_x, cut.patch_w, grid.scaled_w);
            for (int64_t k = 0; k < to.planes; ++k)
                std::memcpy(patch + k * to.plane_bytes + (y - top) * to.row_bytes,
                            row + k * row_bytes + left * to.pixel_bytes, static_cast<size_t>(to.row_bytes));
        }
    }
}

/* With scaling. */
template <class T> void cut_scaled(const grd_view &frame, const Rows<T> &rows, const Target &to, const Scratch &s) {
    const grd_grid &grid = to.grid;
    const Kernels &kernels = to.kernels;
    const RowKernels<T> &of_rows = row_kernels<T>(kernels);
    const int c_in = to.format.c_in, c_out = to.format.c_out;
    const int64_t h = frame.extent[2], w = frame.extent[3], n = w * c_in;
    for (int32_t x = 0; x < grid.scaled_w; ++x) s.taps[x] = tap_of(x, w, grid.scaled_w);
    const double full = sizeof(T) == 1 ? 255.0 : 65535.0;
    const double scale = static_cast<double>(grid.scaled_h) * grid.scaled_w / (static_cast<double>(h) * w * full);
    const bool floats = to.format.dtype == GRD_FLOAT32;
    uint8_t *row = floats ? reinterpret_cast<uint8_t *>(s.values) : s.row;
    const int64_t row_bytes = s.row_px * to.pixel_bytes;
    const int64_t step = to.format.interleaved ? c_out : 1, plane_px = to.format.interleaved ? 1 : s.row_px;

    for (int32_t y = 0; y < grid.scaled_h; ++y) {
        const Tap tap = tap_of(y, h, grid.scaled_h);
        of_rows.weigh_row(rows.row(tap.first), n, tap.f0, false, s.mixed);
        if (tap.whole > 0) {
            std::memset(s.sums, 0, static_cast<size_t>(n) * sizeof(uint32_t));
            for (int32_t i = 0; i < tap.whole; ++i) of_rows.add_row(rows.row(tap.first + 1 + i), n, s.sums);
            kernels.add_sums(s.sums, n, s.mixed);
        }
        if (tap.whole >= 0) of_rows.weigh_row(rows.row(tap.first + 1 + tap.whole), n, tap.f1, true, s.mixed);
        const float *line = s.mixed;
        if (c_in == 3) {
            kernels.split_line(s.mixed, w, c_in, c_out, s.line, w);
            line = s.line;
        }
        for (int k = 0; k < c_out; ++k)
            kernels.shrink_line(line + k * w, s.taps, grid.scaled_w, scale, s.values + k * plane_px, step);
        for (int64_t k = 0; k < to.planes; ++k) {
            if (!floats)
                kernels.store_line(to.format, s.values + k * s.row_px, grid.scaled_w * step, row + k * row_bytes);
            pad_row(to, grid.scaled_w, row + k * row_bytes);
        }
        hand_out(to, y, row, row_bytes);
    }
}

/* Reflection of rows, where the frame is lower than a patch. */
void pad_patches(const Target &to) {
    for (int64_t plane = 0; plane < to.count * to.planes; ++plane) {
        uint8_t *rows = to.patches + plane * to.plane_bytes;
        for (int32_t y = to.grid.scaled_h; y < to.cut.patch_h; ++y)
            std::memcpy(rows + y * to.row_bytes, rows + reflected_px(y, to.grid.scaled_h) * to.row_bytes,
                        static_cast<size_t>(to.row_bytes));
    }
}

template <class T> void cut_rows(const grd_view &frame, const Target &to, const Scratch &scratch) {
    const Rows<T> rows(frame, scratch.gathered);
    if (to.grid.scaled_h == frame.extent[2] && to.grid.scaled_w == frame.extent[3]) cut_pixels(rows, to);
    else cut_scaled(frame, rows, to, scratch);
    pad_patches(to);
}

size_t cut_workspace_bytes(const grd_cut_params &cut, const grd_grid &grid, int64_t frame_w) {
    Scratch scratch = {};
    const size_t cutting = lay_out(cut, grid, frame_w, nullptr, &scratch), stitching = stitch_bytes(cut, grid);
    return (cutting > stitching ? cutting : stitching) + kCutAlign - 1;
}

} // namespace

grd_status read_cut_options(const grd_cut_options *given, grd_cut_options *out, int32_t *variant) {
    *out = {};
    if (given != nullptr) {
        if (given->struct_size < sizeof(grd_cut_options)) return GRD_ERR_STRUCT_SIZE;
        *out = *given;
    }
    *variant = variant_index(out->variant);
    return *variant < 0 ? GRD_ERR_VARIANT : GRD_OK;
}

grd_status CutWorkspace::open(const grd_cut_options &options, size_t bytes) {
    if (options.workspace != nullptr && options.workspace_bytes < bytes) return GRD_ERR_BUFFER;
    if (options.workspace == nullptr) own_ = std::malloc(bytes);
    base = static_cast<uint8_t *>(options.workspace != nullptr ? options.workspace : own_);
    if (base == nullptr) return GRD_ERR_MEMORY;
    base += (kCutAlign - reinterpret_cast<uintptr_t>(base) % kCutAlign) % kCutAlign;
    return GRD_OK;
}

CutWorkspace::~CutWorkspace() { std::free(own_); }

grd_status cut_frame(const grd_cut_params &cut, const grd_view *frame, const int32_t *slots, int32_t count,
                     const PatchType &type, void *patches, const grd_cut_options *options) {
    if (const grd_status status = check_frame(cut, frame, GRD_SPACE_HOST)) return status;
    const int64_t w = frame->extent[3];
    grd_grid grid = {};
    if (const grd_status status = grid_of(cut, frame->extent[2], w, &grid)) return status;
    if (const grd_status status = check_type(type)) return status;
    grd_cut_options used;
    int32_t variant = 0;
    if (const grd_status status = read_cut_options(options, &used, &variant)) return status;
    CutWorkspace workspace;
    if (const grd_status status = workspace.open(used, cut_workspace_bytes(cut, grid, w))) return status;
    Scratch scratch = {};
    lay_out(cut, grid, w, workspace.base, &scratch);

    const int c_in = static_cast<int>(frame->extent[1]), c_out = cut.channels;
    const int64_t pixel_bytes = dtype_bytes(type.dtype) * (type.interleaved ? c_out : 1);
    const int64_t row_bytes = cut.patch_w * pixel_bytes, plane_bytes = cut.patch_h * row_bytes;
    const int64_t planes = type.interleaved ? 1 : c_out;
    const Target target = {cut,
                           grid,
                           slots,
                           count,
                           {c_in, c_out, type.interleaved, type.dtype, type.input_scale},
                           *patchify::kKernels[variant],
                           static_cast<uint8_t *>(patches),
                           planes,
                           pixel_bytes,
                           row_bytes,
                           plane_bytes,
                           planes * plane_bytes};
    if (target.kernels.cut != nullptr) target.kernels.cut({*frame, cut, grid, target.format, patches});
    else if (frame->dtype == GRD_UINT8) cut_rows<uint8_t>(*frame, target, scratch);
    else cut_rows<uint16_t>(*frame, target, scratch);
    if (used.ran != nullptr) *used.ran = variant_name(variant);
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
    if (grd::check_params(params) != GRD_OK) return 0;
    if (grd::grid_of(*params, frame_h, frame_w, &grid) != GRD_OK) return 0;
    return grd::cut_workspace_bytes(*params, grid, frame_w);
}

grd_status grd_cut_frame(const grd_cut_params *params, const grd_view *frame, const grd_view *patches,
                         const grd_cut_options *options) {
    if (const grd_status status = grd::check_params(params)) return status;
    if (const grd_status status = grd::check_frame(*params, frame, GRD_SPACE_HOST)) return status;
    if (options != nullptr && options->struct_size < sizeof(grd_cut_options)) return GRD_ERR_STRUCT_SIZE;
    grd_grid grid = {};
    grd::PatchType type = {};
    if (const grd_status status = grd::grid_of(*params, frame->extent[2], frame->extent[3], &grid)) return status;
    if (const grd_status status = grd::read_patches(*params, grid.count, patches, GRD_SPACE_HOST, &type)) return status;
    type.input_scale = options != nullptr ? options->input_scale : 0;
    return grd::cut_frame(*params, frame, nullptr, grid.count, type, patches->data, options);
}
