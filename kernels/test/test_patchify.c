/* test_patchify.c - the cutter against its definition in double precision, written independently below.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"

#define GUARD 64 /* bytes on both sides of what the library writes */

static const int kSizes[] = {1, 2, 3, 7, 10, 11, 12, 15, 16, 17, 31, 33, 63, 65};
enum { SIZES = sizeof kSizes / sizeof kSizes[0] };

static uint32_t random_state = 1;
static uint32_t random_bits(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

/* A frame in some memory layout. */
typedef struct frame {
    grd_view view;
    uint8_t *memory;
} frame;

enum { INTERLEAVED, PADDED_ROWS, PLANAR_DENSE, PLANAR_STRIDED, FLIPPED, ODD_ADDRESS, LAYOUTS };

static frame make_frame(int dtype, int64_t h, int64_t w, int64_t c, int layout, int white) {
    frame f;
    const int64_t item = dtype == GRD_UINT8 ? 1 : 2, bytes = h * (w * c * item + 6) + 8;
    f.memory = malloc((size_t)bytes);
    for (int64_t i = 0; i < bytes; ++i) f.memory[i] = white ? 255 : (uint8_t)random_bits();
    f.view = grd_view_of_frame(f.memory, dtype, h, w, c, layout == PADDED_ROWS ? w * c * item + 6 : 0);
    if (layout == ODD_ADDRESS) f.view.data = f.memory + 1;
    if (layout == PLANAR_DENSE) memset(f.view.stride_bytes, 0, sizeof f.view.stride_bytes);
    if (layout == PLANAR_STRIDED) {
        f.view.stride_bytes[1] = h * w * item;
        f.view.stride_bytes[2] = w * item;
        f.view.stride_bytes[3] = item;
    }
    if (layout == FLIPPED) {
        f.view.data = f.memory + (h * w - 1) * c * item;
        f.view.stride_bytes[2] = -f.view.stride_bytes[2];
        f.view.stride_bytes[3] = -f.view.stride_bytes[3];
    }
    return f;
}

static double pixel(const grd_view *v, int64_t c, int64_t y, int64_t x) {
    const int64_t item = v->dtype == GRD_UINT8 ? 1 : 2, *s = v->stride_bytes;
    const int dense = s[1] == 0 && s[2] == 0 && s[3] == 0;
    const uint8_t *at = (const uint8_t *)v->data;
    if (dense)
        at += ((c * v->extent[2] + y) * v->extent[3] + x) * item;
    else
        at += c * s[1] + y * s[2] + x * s[3];
    uint16_t wide = 0;
    if (item == 1) return *at / 255.0;
    memcpy(&wide, at, 2);
    return wide / 65535.0;
}

/* Weight of input pixel k in output pixel i of area resampling. */
static double weight(int64_t i, int64_t k, int64_t n_in, int64_t n_out) {
    const double ratio = (double)n_in / (double)n_out;
    const double begin = fmax((double)i * ratio, (double)k), end = fmin((double)(i + 1) * ratio, (double)(k + 1));
    return end > begin ? (end - begin) / ratio : 0.0;
}

static double *resampled(const double *from, int64_t h, int64_t w, int64_t to_h, int64_t to_w) {
    double *mid = calloc((size_t)(to_h * w), sizeof *mid), *to = calloc((size_t)(to_h * to_w), sizeof *to);
    for (int64_t i = 0; i < to_h; ++i)
        for (int64_t k = i * h / to_h; k < h && k <= (i + 1) * h / to_h; ++k) {
            const double share = weight(i, k, h, to_h);
            for (int64_t x = 0; share > 0 && x < w; ++x) mid[i * w + x] += share * from[k * w + x];
        }
    for (int64_t j = 0; j < to_w; ++j)
        for (int64_t k = j * w / to_w; k < w && k <= (j + 1) * w / to_w; ++k) {
            const double share = weight(j, k, w, to_w);
            for (int64_t i = 0; share > 0 && i < to_h; ++i) to[i * to_w + j] += share * mid[i * w + k];
        }
    free(mid);
    return to;
}

/* Walks back and forth between the ends, one step at a time. */
static int64_t mirrored(int64_t i, int64_t n) {
    int64_t at = 0, step = 1;
    for (int64_t k = 0; k < i; ++k) {
        if (n == 1) return 0;
        if (at + step < 0 || at + step >= n) step = -step;
        at += step;
    }
    return at;
}

static int64_t positions(int64_t extent, int64_t patch, int64_t stride, int64_t *out) {
    int64_t n = 0;
    if (extent < patch) extent = patch;
    for (int64_t at = 0; at + patch < extent; at += stride) out[n++] = at;
    out[n++] = extent - patch;
    return n;
}

static void check_cut(const grd_cut_params *cut, const grd_view *view, int with_workspace) {
    const int64_t h = view->extent[2], w = view->extent[3], c = view->extent[1];
    const int64_t shorter = h < w ? h : w;
    int64_t sh = h, sw = w;
    if (cut->scale_px > 0) {
        sh = (int64_t)floor((double)h * cut->scale_px / (double)shorter + 0.5);
        sw = (int64_t)floor((double)w * cut->scale_px / (double)shorter + 0.5);
    }
    static int64_t tops[65536], lefts[65536];
    const int64_t rows = positions(sh, cut->patch_h, cut->stride_y, tops);
    const int64_t cols = positions(sw, cut->patch_w, cut->stride_x, lefts);

    grd_grid grid = {0};
    grid.struct_size = sizeof grid;
    CHECK(grd_cut_grid(cut, h, w, &grid) == GRD_OK);
    CHECK_THAT(grid.scaled_h == sh && grid.scaled_w == sw && grid.rows == rows && grid.cols == cols &&
                   grid.count == rows * cols,
               ("%dx%d scale %d: grid %dx%d of %dx%d, expected %dx%d of %dx%d", (int)h, (int)w, cut->scale_px,
                grid.rows, grid.cols, grid.scaled_h, grid.scaled_w, (int)rows, (int)cols, (int)sh, (int)sw));
    if (grid.count != rows * cols) return;

    const size_t bytes = (size_t)(grid.count * cut->channels * cut->patch_h * cut->patch_w) * sizeof(float);
    const size_t scratch_bytes = grd_cut_workspace_bytes(cut, h, w);
    uint8_t *memory = malloc(bytes + 2 * GUARD), *scratch = malloc(scratch_bytes + 2 * GUARD);
    memset(memory, 0xa5, bytes + 2 * GUARD);
    memset(scratch, 0xa5, scratch_bytes + 2 * GUARD);
    float *out = (float *)(memory + GUARD);
    grd_view patches = {0};
    patches.data = out;
    patches.dtype = GRD_FLOAT32;
    patches.extent[0] = grid.count;
    patches.extent[1] = cut->channels;
    patches.extent[2] = cut->patch_h;
    patches.extent[3] = cut->patch_w;
    void *workspace = with_workspace ? scratch + GUARD + 1 : NULL; /* any alignment will do */
    CHECK(grd_cut_frame(cut, view, &patches, workspace, workspace != NULL ? scratch_bytes : 0) == GRD_OK);
    int guarded = 1;
    for (int i = 0; i < GUARD; ++i) guarded = guarded && memory[i] == 0xa5 && memory[GUARD + bytes + (size_t)i] == 0xa5;
    for (int i = 0; i < GUARD - 1; ++i)
        guarded = guarded && scratch[i] == 0xa5 && scratch[GUARD + 1 + scratch_bytes + (size_t)i] == 0xa5;
    CHECK_THAT(guarded, ("%dx%d: written outside", (int)h, (int)w));

    double worst = 0;
    int32_t misplaced = 0;
    for (int k = 0; k < cut->channels; ++k) {
        double *plane = malloc((size_t)(h * w) * sizeof *plane);
        for (int64_t y = 0; y < h; ++y)
            for (int64_t x = 0; x < w; ++x)
                plane[y * w + x] =
                    c == 3 && cut->channels == 1
                        ? 0.299 * pixel(view, 0, y, x) + 0.587 * pixel(view, 1, y, x) + 0.114 * pixel(view, 2, y, x)
                        : pixel(view, k, y, x);
        double *scaled = resampled(plane, h, w, sh, sw);
        for (int32_t i = 0; i < grid.count; ++i) {
            const int64_t top = tops[i / cols], left = lefts[i % cols];
            int32_t y_px = -1, x_px = -1;
            misplaced += grd_cut_position(cut, &grid, i, &y_px, &x_px) != GRD_OK || y_px != top || x_px != left;
            for (int64_t y = 0; y < cut->patch_h; ++y)
                for (int64_t x = 0; x < cut->patch_w; ++x) {
                    const double want = scaled[mirrored(top + y, sh) * sw + mirrored(left + x, sw)];
                    const double got =
                        (double)out[(((int64_t)i * cut->channels + k) * cut->patch_h + y) * cut->patch_w + x];
                    if (!(fabs(got - want) <= worst)) worst = fabs(got - want);
                    if (!(got >= 0 && got <= 1)) worst = 9;
                }
        }
        free(scaled);
        free(plane);
    }
    CHECK(misplaced == 0);
    CHECK_THAT(worst <= 1e-6, ("%dx%dx%d dtype %d scale %d patch %dx%d: off by %g", (int)h, (int)w, (int)c, view->dtype,
                               cut->scale_px, cut->patch_h, cut->patch_w, worst));
    free(scratch);
    free(memory);
}

static grd_cut_params params_of(int scale, int ph, int pw, int sy, int sx, int channels) {
    grd_cut_params cut = {sizeof(grd_cut_params), scale, ph, pw, sy, sx, channels, GRD_PADDING_REFLECT};
    return cut;
}

/* Every pair of awkward extents, with the other choices drawn. */
static void check_awkward_sizes(void) {
    for (int i = 0; i < SIZES; ++i)
        for (int j = 0; j < SIZES; ++j)
            for (int round = 0; round < 6; ++round) {
                const int c = random_bits() % 2 ? 3 : 1, shorter = kSizes[i < j ? i : j];
                const int dtype = round % 2 ? GRD_UINT16 : GRD_UINT8;
                frame f =
                    make_frame(dtype, kSizes[i], kSizes[j], c, (int)(random_bits() % LAYOUTS), random_bits() % 8 == 0);
                const int ph = kSizes[random_bits() % SIZES], pw = kSizes[random_bits() % SIZES];
                grd_cut_params cut =
                    params_of(round % 3 == 0 ? 0 : 1 + (int)(random_bits() % (unsigned)(2 * shorter)), ph, pw,
                              1 + (int)(random_bits() % (unsigned)ph), 1 + (int)(random_bits() % (unsigned)pw),
                              c == 3 && random_bits() % 2 ? 3 : 1);
                check_cut(&cut, &f.view, round % 2);
                free(f.memory);
            }
}

/* Every layout and dtype, at native resolution and both directions of scaling. */
static void check_layouts(void) {
    static const int scales[] = {0, 9, 21, 40};
    for (int layout = 0; layout < LAYOUTS; ++layout)
        for (int dtype = GRD_UINT8; dtype <= GRD_UINT16; ++dtype)
            for (int c = 1; c <= 3; c += 2)
                for (int channels = 1; channels <= c; channels += 2)
                    for (int s = 0; s < 4; ++s) {
                        frame f = make_frame(dtype, 21, 35, c, layout, 0);
                        grd_cut_params cut = params_of(scales[s], 8, 9, 5, 7, channels);
                        check_cut(&cut, &f.view, s % 2);
                        free(f.memory);
                    }
}

/* Long sums: a white frame stays exactly white, and 16-bit column sums reach the top of 32 bits. */
static void check_extremes(void) {
    frame f = make_frame(GRD_UINT16, 65536, 2, 1, INTERLEAVED, 1);
    grd_cut_params cut = params_of(1, 256, 1, 200, 1, 1);
    check_cut(&cut, &f.view, 0);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 2, 65536, 1, 0);
    cut = params_of(1, 1, 256, 1, 200, 1);
    check_cut(&cut, &f.view, 1);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 300, 200, 1, 0);
    cut = params_of(7, 7, 7, 7, 7, 1);
    check_cut(&cut, &f.view, 1);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 65536, 1, 1, 0);
    cut = params_of(0, 65536, 1, 1, 1, 1);
    grd_view patches = {0};
    float *out = malloc(65536 * sizeof *out);
    patches.data = out;
    patches.dtype = GRD_FLOAT32;
    patches.extent[0] = patches.extent[1] = patches.extent[3] = 1;
    patches.extent[2] = 65536;
    CHECK(grd_cut_frame(&cut, &f.view, &patches, NULL, 0) == GRD_OK);
    CHECK(out[0] == 1.0f && out[65535] == 1.0f);
    free(out);
    free(f.memory);
}

/* Each call with one thing wrong; nothing may be written. */
static void check_errors(void) {
    frame f = make_frame(GRD_UINT8, 20, 30, 1, INTERLEAVED, 0);
    frame rgb = make_frame(GRD_UINT8, 20, 30, 3, INTERLEAVED, 0);
    const grd_cut_params good = {sizeof(grd_cut_params), 0, 10, 10, 10, 10, 1, GRD_PADDING_ERROR};
    grd_grid grid = {0};
    float out[6 * 100];
    uint8_t scratch[8192];
    int32_t y = -1, x = -1;
    grd_view patches = {0};
    patches.data = out;
    patches.dtype = GRD_FLOAT32;
    patches.extent[0] = 6, patches.extent[1] = 1, patches.extent[2] = 10, patches.extent[3] = 10;
    memset(out, 0xa5, sizeof out);

    grid.struct_size = sizeof grid;
    CHECK(grd_cut_grid(NULL, 20, 30, &grid) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_grid(&good, 20, 30, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_grid(&good, 0, 30, &grid) == GRD_ERR_SHAPE);
    CHECK(grd_cut_grid(&good, 20, -1, &grid) == GRD_ERR_SHAPE);
    CHECK(grd_cut_grid(&good, 20, 65537, &grid) == GRD_ERR_SHAPE);
    CHECK(grd_cut_grid(&good, 20, INT64_MAX, &grid) == GRD_ERR_SHAPE);
    CHECK(grd_cut_grid(&good, 9, 30, &grid) == GRD_ERR_FRAME_SIZE);
    CHECK(grd_cut_grid(&good, 20, 9, &grid) == GRD_ERR_FRAME_SIZE);
    CHECK(grid.count == 0); /* untouched so far */
    grid.struct_size = 0;
    CHECK(grd_cut_grid(&good, 20, 30, &grid) == GRD_ERR_STRUCT_SIZE);
    grid.struct_size = sizeof grid;
    CHECK(grd_cut_grid(&good, 20, 30, &grid) == GRD_OK && grid.count == 6);

    CHECK(grd_cut_position(&good, &grid, 6, &y, &x) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_position(&good, &grid, -1, &y, &x) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_position(&good, NULL, 0, &y, &x) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_position(&good, &grid, 0, NULL, &x) == GRD_ERR_ARGUMENT);
    CHECK(y == -1 && x == -1);

#define WITH(field, value, expected) \
    do { \
        grd_cut_params bad = good; \
        bad.field = value; \
        CHECK(grd_cut_frame(&bad, &f.view, &patches, NULL, 0) == (expected)); \
        CHECK(grd_cut_workspace_bytes(&bad, 20, 30) == 0); \
    } while (0)
    WITH(struct_size, 0, GRD_ERR_STRUCT_SIZE);
    WITH(struct_size, sizeof(grd_cut_params) - 1, GRD_ERR_STRUCT_SIZE);
    WITH(scale_px, -1, GRD_ERR_ARGUMENT);
    WITH(scale_px, 65537, GRD_ERR_ARGUMENT);
    WITH(scale_px, 65536, GRD_ERR_SHAPE);
    WITH(patch_h, 0, GRD_ERR_ARGUMENT);
    WITH(patch_w, -3, GRD_ERR_ARGUMENT);
    WITH(patch_w, 65537, GRD_ERR_ARGUMENT);
    WITH(stride_y, 0, GRD_ERR_ARGUMENT);
    WITH(stride_x, INT32_MIN, GRD_ERR_ARGUMENT);
    WITH(stride_y, 11, GRD_ERR_ARGUMENT); /* rows that no patch shows */
    WITH(stride_x, 11, GRD_ERR_ARGUMENT);
    WITH(channels, 2, GRD_ERR_ARGUMENT);
    WITH(padding, 2, GRD_ERR_ARGUMENT);
    WITH(patch_h, 21, GRD_ERR_FRAME_SIZE);
    WITH(scale_px, 9, GRD_ERR_FRAME_SIZE);
#undef WITH
    grd_cut_params color = good;
    color.channels = 3;
    CHECK(grd_cut_frame(&color, &f.view, &patches, NULL, 0) == GRD_ERR_FRAME_CHANNELS);
    CHECK(grd_cut_frame(NULL, &f.view, &patches, NULL, 0) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_frame(&good, NULL, &patches, NULL, 0) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_frame(&good, &f.view, NULL, NULL, 0) == GRD_ERR_ARGUMENT);

#define WITH(which, change, expected) \
    do { \
        grd_view view = f.view, to = patches; \
        which.change; \
        CHECK_THAT(grd_cut_frame(&good, &view, &to, NULL, 0) == (expected), (#which "." #change)); \
    } while (0)
    WITH(view, data = NULL, GRD_ERR_ARGUMENT);
    WITH(view, dtype = GRD_FLOAT32, GRD_ERR_DTYPE);
    WITH(view, dtype = 0, GRD_ERR_DTYPE);
    WITH(view, space = 1, GRD_ERR_SPACE);
    WITH(view, extent[0] = 2, GRD_ERR_SHAPE);
    WITH(view, extent[1] = 0, GRD_ERR_SHAPE);
    WITH(view, extent[1] = 2, GRD_ERR_FRAME_CHANNELS);
    WITH(view, extent[1] = 4, GRD_ERR_FRAME_CHANNELS);
    WITH(view, extent[2] = 0, GRD_ERR_SHAPE);
    WITH(view, extent[3] = -5, GRD_ERR_SHAPE);
    WITH(to, data = NULL, GRD_ERR_ARGUMENT);
    WITH(to, data = (char *)out + 1, GRD_ERR_ARGUMENT);
    WITH(to, dtype = GRD_UINT8, GRD_ERR_DTYPE);
    WITH(to, space = 7, GRD_ERR_SPACE);
    WITH(to, extent[0] = 5, GRD_ERR_SHAPE);
    WITH(to, extent[1] = 3, GRD_ERR_SHAPE);
    WITH(to, extent[3] = 11, GRD_ERR_SHAPE);
    WITH(to, stride_bytes[2] = 44, GRD_ERR_STRIDE);
#undef WITH
    const size_t bytes = grd_cut_workspace_bytes(&good, 20, 30);
    CHECK(bytes > 0 && bytes <= sizeof scratch);
    CHECK(grd_cut_frame(&good, &f.view, &patches, scratch, bytes - 1) == GRD_ERR_BUFFER);
    int untouched = 1;
    for (size_t i = 0; i < sizeof out; ++i) untouched = untouched && ((uint8_t *)out)[i] == 0xa5;
    CHECK(untouched);

    patches.stride_bytes[0] = 400, patches.stride_bytes[1] = 400, patches.stride_bytes[2] = 40,
    patches.stride_bytes[3] = 4;
    CHECK(grd_cut_frame(&good, &rgb.view, &patches, scratch, bytes) == GRD_OK); /* dense strides may be spelled out */
    free(f.memory);
    free(rgb.memory);
}

int main(void) {
    check_awkward_sizes();
    check_layouts();
    check_extremes();
    check_errors();
    return checks_report();
}
