/* test_patchify.c - cutting and stitching against their definitions in double precision, written independently below;
 * every variant against the same bits.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200112L /* setenv */

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

static int64_t item_bytes(int dtype) { return dtype == GRD_FLOAT32 ? 4 : dtype == GRD_FLOAT16 ? 2 : 1; }

/* A variant of this build that this CPU runs; NULL past the end. */
static const char *runnable(int index) {
    for (int v = 0; grd_variant_name(v) != NULL; ++v)
        if (grd_variant_supported(grd_variant_name(v)) && index-- == 0) return grd_variant_name(v);
    return NULL;
}

static grd_cut_options options_for(const char *variant) {
    grd_cut_options options = {sizeof(grd_cut_options), 0, variant, NULL, NULL, 0};
    return options;
}

/* What a value in [0, 1] is in another type, as an integer of the same bits. */
static int element_of(float value, int dtype, float input_scale) {
    if (dtype == GRD_INT8) {
        const float steps = nearbyintf(value / input_scale);
        return steps < 127 ? (int)steps : 127;
    }
    int exponent = -14;
    while (exponent < 0 && value >= ldexpf(1, exponent + 1)) ++exponent;
    const int mantissa = (int)nearbyint(ldexp(value, 10 - exponent)); /* 1024 is the next power of two, or 2^-14 */
    return ((exponent + 14) << 10) + mantissa;
}

static grd_view patches_view(void *data, int dtype, int nhwc, const grd_cut_params *cut, int count) {
    const int64_t item = item_bytes(dtype), c = cut->channels, h = cut->patch_h, w = cut->patch_w;
    grd_view view = {data, dtype, 0, {count, c, h, w}, {0, 0, 0, 0}};
    if (nhwc) {
        view.stride_bytes[0] = c * h * w * item;
        view.stride_bytes[1] = item;
        view.stride_bytes[2] = w * c * item;
        view.stride_bytes[3] = c * item;
    }
    return view;
}

static int guards_hold(const uint8_t *memory, size_t bytes, size_t before) {
    int hold = 1;
    for (size_t i = 0; i < before; ++i) hold = hold && memory[i] == 0xa5;
    for (size_t i = 0; i < GUARD; ++i) hold = hold && memory[before + bytes + i] == 0xa5;
    return hold;
}

static uint8_t *guarded_memory(size_t bytes) {
    uint8_t *memory = malloc(bytes + 3 * GUARD);
    memset(memory, 0xa5, bytes + 3 * GUARD);
    return memory;
}

/* One variant, type and layout: `right` are the elements as FLOAT32, NCHW. */
static void check_type(const grd_cut_params *cut, const grd_view *view, int count, const float *right,
                       const char *variant, int dtype, int nhwc, float input_scale) {
    const int64_t item = item_bytes(dtype), c = cut->channels, plane = (int64_t)cut->patch_h * cut->patch_w;
    const size_t bytes = (size_t)(count * c * plane * item), before = GUARD + (size_t)item; /* aligned to no vector */
    uint8_t *memory = guarded_memory(bytes), *out = memory + before;
    const grd_view patches = patches_view(out, dtype, nhwc, cut, count);
    grd_cut_options options = options_for(variant);
    const char *ran = NULL;
    options.input_scale = input_scale;
    options.ran = &ran;
    CHECK(grd_cut_frame(cut, view, &patches, &options) == GRD_OK);
    CHECK_THAT(ran != NULL && strcmp(ran, variant) == 0, ("%s ran, not %s", ran != NULL ? ran : "none", variant));
    CHECK_THAT(guards_hold(memory, bytes, before), ("%s dtype %d: written outside", variant, dtype));
    int64_t wrong = 0;
    for (int64_t n = 0; n < count; ++n)
        for (int64_t k = 0; k < c; ++k)
            for (int64_t i = 0; i < plane; ++i) {
                const float value = right[(n * c + k) * plane + i];
                const uint8_t *at = out + item * (nhwc ? (n * plane + i) * c + k : (n * c + k) * plane + i);
                int16_t half;
                if (dtype == GRD_FLOAT32) wrong += memcmp(at, &value, sizeof value) != 0;
                if (dtype == GRD_INT8) wrong += *(const int8_t *)at != element_of(value, dtype, input_scale);
                memcpy(&half, at, dtype == GRD_FLOAT16 ? 2 : 0);
                if (dtype == GRD_FLOAT16) wrong += half != element_of(value, dtype, 0);
            }
    CHECK_THAT(wrong == 0, ("%s: %dx%d of %d channels, scale %d, dtype %d to %d%s: %d elements differ", variant,
                            (int)view->extent[2], (int)view->extent[3], (int)view->extent[1], cut->scale_px,
                            view->dtype, dtype, nhwc ? " NHWC" : "", (int)wrong));
    free(memory);
}

/* Every type and layout, or one that is drawn, in every variant. */
static void check_types(const grd_cut_params *cut, const grd_view *view, int count, const float *right, int all) {
    static const int dtypes[] = {GRD_FLOAT32, GRD_FLOAT16, GRD_INT8};
    static const float scales[] = {1 / 127.0f, 2 / 255.0f, 0.003f, 1.7f, 1e-30f};
    const unsigned drawn = random_bits() % 6;
    for (int v = 0; runnable(v) != NULL; ++v)
        for (unsigned t = 0; t < 6; ++t)
            if (all || t == drawn)
                check_type(cut, view, count, right, runnable(v), dtypes[t / 2], t % 2, scales[random_bits() % 5]);
}

static void check_cut(const grd_cut_params *cut, const grd_view *view, int with_workspace, int all_types) {
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
    uint8_t *memory = guarded_memory(bytes), *scratch = guarded_memory(scratch_bytes);
    float *out = (float *)(memory + GUARD);
    const grd_view patches = patches_view(out, GRD_FLOAT32, 0, cut, grid.count);
    grd_cut_options options = options_for("scalar");
    options.workspace = with_workspace ? scratch + GUARD + 1 : NULL; /* any alignment will do */
    options.workspace_bytes = with_workspace ? scratch_bytes : 0;
    CHECK(grd_cut_frame(cut, view, &patches, &options) == GRD_OK);
    CHECK_THAT(guards_hold(memory, bytes, GUARD) && guards_hold(scratch, scratch_bytes, with_workspace ? GUARD + 1 : 0),
               ("%dx%d: written outside", (int)h, (int)w));

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
                    if (cut->scale_px == 0 && c == cut->channels && got != (double)(float)want) worst = 8;
                }
        }
        free(scaled);
        free(plane);
    }
    CHECK(misplaced == 0);
    CHECK_THAT(worst <= 1e-6, ("%dx%dx%d dtype %d scale %d patch %dx%d: off by %g", (int)h, (int)w, (int)c, view->dtype,
                               cut->scale_px, cut->patch_h, cut->patch_w, worst));
    check_types(cut, view, grid.count, out, all_types);
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
                check_cut(&cut, &f.view, round % 2, 0);
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
                        check_cut(&cut, &f.view, s % 2, 1);
                        free(f.memory);
                    }
}

/* Long sums: a white frame stays exactly white, and 16-bit column sums reach the top of 32 bits. */
static void check_extremes(void) {
    frame f = make_frame(GRD_UINT16, 65536, 2, 1, INTERLEAVED, 1);
    grd_cut_params cut = params_of(1, 256, 1, 200, 1, 1);
    check_cut(&cut, &f.view, 0, 0);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 2, 65536, 1, 0);
    cut = params_of(1, 1, 256, 1, 200, 1);
    check_cut(&cut, &f.view, 1, 0);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 300, 200, 1, 0);
    cut = params_of(7, 7, 7, 7, 7, 1);
    check_cut(&cut, &f.view, 1, 0);
    f.view = grd_view_of_frame(f.memory, GRD_UINT16, 65536, 1, 1, 0);
    cut = params_of(0, 65536, 1, 1, 1, 1);
    grd_view patches = {0};
    float *out = malloc(65536 * sizeof *out);
    patches.data = out;
    patches.dtype = GRD_FLOAT32;
    patches.extent[0] = patches.extent[1] = patches.extent[3] = 1;
    patches.extent[2] = 65536;
    CHECK(grd_cut_frame(&cut, &f.view, &patches, NULL) == GRD_OK);
    CHECK(out[0] == 1.0f && out[65535] == 1.0f);
    free(out);
    free(f.memory);
}

/* Every value of both types of pixels is divided with one rounding. */
static void check_every_value(void) {
    static uint16_t words[65536];
    static uint8_t bytes[256];
    static float out[65536];
    for (int i = 0; i < 65536; ++i) words[i] = (uint16_t)i;
    for (int i = 0; i < 256; ++i) bytes[i] = (uint8_t)i;
    for (int v = 0; runnable(v) != NULL; ++v)
        for (int dtype = GRD_UINT8; dtype <= GRD_UINT16; ++dtype) {
            const int side = dtype == GRD_UINT8 ? 16 : 256, count = side * side;
            const grd_cut_params cut = params_of(0, side, side, side, side, 1);
            const grd_view frame = grd_view_of_frame(dtype == GRD_UINT8 ? (void *)bytes : (void *)words, dtype, side,
                                                     side, 1, 0);
            const grd_view patches = patches_view(out, GRD_FLOAT32, 0, &cut, 1);
            const grd_cut_options options = options_for(runnable(v));
            CHECK(grd_cut_frame(&cut, &frame, &patches, &options) == GRD_OK);
            int wrong = 0;
            for (int i = 0; i < count; ++i) wrong += out[i] != (float)((double)i / (count - 1));
            CHECK_THAT(wrong == 0, ("%s: %d of %d values", runnable(v), wrong, count));
        }
}

/* Memory layouts of maps and patches to stitch. */
enum { DENSE, STRETCHED, SCORES, MAPS };

static float stored_value(const uint8_t *at, int dtype) {
    float value;
    if (dtype == GRD_UINT8) return *at;
    if (dtype == GRD_FLOAT32) return memcpy(&value, at, sizeof value), value;
    uint16_t half; /* normal, positive */
    memcpy(&half, at, sizeof half);
    return (float)ldexp(1024 + (half & 1023), (half >> 10) - 25);
}

static void check_stitch(const grd_cut_params *cut, int64_t h, int64_t w, int dtype, int layout) {
    grd_grid grid = {0};
    grid.struct_size = sizeof grid;
    CHECK(grd_cut_grid(cut, h, w, &grid) == GRD_OK);
    const int64_t sh = grid.scaled_h, sw = grid.scaled_w, ph = cut->patch_h, pw = cut->patch_w;
    const int64_t item = dtype == GRD_UINT8 ? 1 : dtype == GRD_FLOAT16 ? 2 : 4, step = layout == STRETCHED ? 3 : 1;
    grd_view patches = {NULL, dtype, 0, {grid.count, 1, ph, pw}, {0, 0, 0, 0}};
    const int64_t stride_x = layout == SCORES ? 0 : item * step;
    const int64_t stride_y = layout == SCORES ? 0 : pw * stride_x + step - 1;
    const int64_t stride_n = layout == SCORES ? item : ph * stride_y;
    if (layout != DENSE) {
        patches.stride_bytes[0] = stride_n;
        patches.stride_bytes[2] = stride_y;
        patches.stride_bytes[3] = stride_x;
    }
    uint8_t *values = malloc((size_t)(grid.count * stride_n + 8));
    patches.data = values;
    for (int64_t n = 0; n < grid.count; ++n)
        for (int64_t y = 0; y < ph; ++y)
            for (int64_t x = 0; x < pw; ++x) {
                const float value = (float)random_bits() * 0x1p-24f;
                const uint16_t half = (uint16_t)(1024 + random_bits() % 29000);
                uint8_t *at = values + n * stride_n + y * stride_y + x * stride_x;
                if (dtype == GRD_UINT8) *at = (uint8_t)random_bits();
                if (dtype == GRD_FLOAT16) memcpy(at, &half, sizeof half);
                if (dtype == GRD_FLOAT32) memcpy(at, &value, sizeof value);
            }
    double *sums = calloc((size_t)(sh * sw), sizeof *sums), *counts = calloc((size_t)(sh * sw), sizeof *counts);
    for (int32_t n = 0; n < grid.count; ++n) {
        int32_t top = 0, left = 0;
        CHECK(grd_cut_position(cut, &grid, n, &top, &left) == GRD_OK);
        for (int64_t y = 0; y < ph && top + y < sh; ++y)
            for (int64_t x = 0; x < pw && left + x < sw; ++x) {
                const uint8_t *at = values + n * stride_n + y * stride_y + x * stride_x;
                sums[(top + y) * sw + left + x] += stored_value(at, dtype);
                counts[(top + y) * sw + left + x] += 1;
            }
    }

    const size_t scratch_bytes = grd_cut_workspace_bytes(cut, h, w);
    for (int v = 0; runnable(v) != NULL; ++v) {
        grd_view map = {NULL, GRD_FLOAT32, 0, {1, 1, sh, sw}, {0, 0, 0, 0}};
        const int64_t map_x = 4 * step, map_y = sw * map_x + step - 1;
        if (step > 1) map.stride_bytes[2] = map_y, map.stride_bytes[3] = map_x;
        const size_t bytes = (size_t)(sh * map_y);
        uint8_t *memory = guarded_memory(bytes), *scratch = guarded_memory(scratch_bytes);
        map.data = memory + GUARD + (step > 1);
        grd_cut_options options = options_for(runnable(v));
        const char *ran = NULL;
        options.ran = &ran;
        options.workspace = v % 2 ? scratch + GUARD + 1 : NULL;
        options.workspace_bytes = v % 2 ? scratch_bytes : 0;
        CHECK(grd_stitch_frame(cut, h, w, &patches, &map, &options) == GRD_OK);
        CHECK(ran != NULL && strcmp(ran, runnable(v)) == 0);
        CHECK(guards_hold(memory, bytes, GUARD + (step > 1)));
        CHECK(guards_hold(scratch, scratch_bytes, v % 2 ? GUARD + 1 : 0));
        int wrong = 0;
        for (int64_t y = 0; y < sh; ++y)
            for (int64_t x = 0; x < sw; ++x) {
                const float found = stored_value((uint8_t *)map.data + y * map_y + x * map_x, GRD_FLOAT32);
                wrong += found != (float)(sums[y * sw + x] / counts[y * sw + x]);
            }
        CHECK_THAT(wrong == 0, ("%s: %dx%d dtype %d layout %d: %d pixels of the map", runnable(v), (int)h, (int)w,
                                dtype, layout, wrong));
        free(scratch);
        free(memory);
    }
    free(counts);
    free(sums);
    free(values);
}

static void check_stitching(void) {
    static const int dtypes[] = {GRD_FLOAT32, GRD_FLOAT16, GRD_UINT8};
    for (int i = 0; i < SIZES; ++i)
        for (int j = 0; j < SIZES; ++j)
            for (int round = 0; round < 3; ++round) {
                const int ph = kSizes[random_bits() % SIZES], pw = kSizes[random_bits() % SIZES];
                const int scale = random_bits() % 2 ? 0 : 1 + (int)(random_bits() % 40);
                const grd_cut_params cut = params_of(scale, ph, pw, 1 + (int)(random_bits() % (unsigned)ph),
                                                     1 + (int)(random_bits() % (unsigned)pw), 1);
                check_stitch(&cut, kSizes[i], kSizes[j], dtypes[round], (int)(random_bits() % MAPS));
            }
}

/* Nothing may be written; scores that are NaN stay with their patches. */
static void check_stitching_errors(void) {
    const grd_cut_params cut = params_of(0, 4, 4, 4, 4, 3);
    float values[6] = {0, 1, NAN, 3, 4, 5}, out[8 * 12];
    const grd_view good = {values, GRD_FLOAT32, 0, {6, 1, 4, 4}, {sizeof(float), 0, 0, 0}};
    const grd_view good_map = {out, GRD_FLOAT32, 0, {1, 1, 8, 12}, {0, 0, 0, 0}};
    memset(out, 0xa5, sizeof out);
#define WITH(which, change, expected) \
    do { \
        grd_view view = good, map = good_map; \
        grd_cut_params params = cut; \
        grd_cut_options options = options_for(NULL); \
        which.change; \
        CHECK_THAT(grd_stitch_frame(&params, 8, 12, &view, &map, &options) == (expected), (#which "." #change)); \
    } while (0)
    WITH(params, struct_size = 0, GRD_ERR_STRUCT_SIZE);
    WITH(params, patch_h = 0, GRD_ERR_ARGUMENT);
    WITH(params, patch_h = 5, GRD_ERR_SHAPE);
    WITH(view, data = NULL, GRD_ERR_ARGUMENT);
    WITH(view, dtype = GRD_UINT16, GRD_ERR_DTYPE);
    WITH(view, dtype = GRD_INT8, GRD_ERR_DTYPE);
    WITH(view, space = 1, GRD_ERR_SPACE);
    WITH(view, extent[0] = 5, GRD_ERR_SHAPE);
    WITH(view, extent[1] = 3, GRD_ERR_SHAPE);
    WITH(view, stride_bytes[0] = INT64_MAX, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[1] = INT64_MIN, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[3] = INT64_MIN + 1, GRD_ERR_STRIDE);
    WITH(map, data = NULL, GRD_ERR_ARGUMENT);
    WITH(map, dtype = GRD_FLOAT16, GRD_ERR_DTYPE);
    WITH(map, extent[3] = 11, GRD_ERR_SHAPE);
    WITH(map, stride_bytes[2] = 48, GRD_ERR_STRIDE); /* and 0 along x */
    WITH(options, struct_size = 4, GRD_ERR_STRUCT_SIZE);
    WITH(options, variant = "abacus", GRD_ERR_VARIANT);
    WITH(options, workspace = values, GRD_ERR_BUFFER);
#undef WITH
    CHECK(grd_stitch_frame(NULL, 8, 12, &good, &good_map, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_stitch_frame(&cut, 8, 12, NULL, &good_map, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_stitch_frame(&cut, 8, 12, &good, NULL, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_stitch_frame(&cut, 0, 12, &good, &good_map, NULL) == GRD_ERR_SHAPE);
    int untouched = 1;
    for (size_t i = 0; i < sizeof out; ++i) untouched = untouched && ((uint8_t *)out)[i] == 0xa5;
    CHECK(untouched);
    CHECK(grd_stitch_frame(&cut, 8, 12, &good, &good_map, NULL) == GRD_OK);
    CHECK(out[0] == 0 && out[4] == 1 && isnan(out[8]) && out[4 * 12] == 3 && out[95] == 5);

    /* Strides of axes with one pixel lead nowhere, however large. */
    const grd_cut_params narrow = params_of(0, 2, 1, 2, 1, 1);
    const grd_view column = {values, GRD_FLOAT32, 0, {1, 1, 2, 1}, {0, 0, sizeof(float), INT64_MAX}};
    const grd_view column_map = {out, GRD_FLOAT32, 0, {1, 1, 2, 1}, {0, 0, sizeof(float), INT64_MAX}};
    CHECK(grd_stitch_frame(&narrow, 2, 1, &column, &column_map, NULL) == GRD_OK && out[0] == 0 && out[1] == 1);
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
        CHECK(grd_cut_frame(&bad, &f.view, &patches, NULL) == (expected)); \
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
    CHECK(grd_cut_frame(&color, &f.view, &patches, NULL) == GRD_ERR_FRAME_CHANNELS);
    CHECK(grd_cut_frame(NULL, &f.view, &patches, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_frame(&good, NULL, &patches, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_cut_frame(&good, &f.view, NULL, NULL) == GRD_ERR_ARGUMENT);

#define WITH(which, change, expected) \
    do { \
        grd_view view = f.view, to = patches; \
        which.change; \
        CHECK_THAT(grd_cut_frame(&good, &view, &to, NULL) == (expected), (#which "." #change)); \
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
    WITH(view, extent[2] = INT64_MIN, GRD_ERR_SHAPE);
    WITH(view, stride_bytes[0] = INT64_MIN, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[1] = INT64_MIN, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[2] = INT64_MIN, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[2] = INT64_MAX, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[3] = INT64_MIN, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[3] = INT64_MIN + 1, GRD_ERR_STRIDE);
    WITH(view, stride_bytes[3] = INT64_MAX / 29, GRD_ERR_STRIDE); /* no product of it overflows, the limit is 62 bits */
    WITH(to, data = NULL, GRD_ERR_ARGUMENT);
    WITH(to, data = (char *)out + 1, GRD_ERR_ARGUMENT);
    WITH(to, dtype = GRD_UINT8, GRD_ERR_DTYPE);
    WITH(to, dtype = GRD_UINT16, GRD_ERR_DTYPE);
    WITH(to, dtype = GRD_INT8, GRD_ERR_ARGUMENT); /* without input_scale */
    WITH(to, space = 7, GRD_ERR_SPACE);
    WITH(to, extent[0] = 5, GRD_ERR_SHAPE);
    WITH(to, extent[1] = 3, GRD_ERR_SHAPE);
    WITH(to, extent[3] = 11, GRD_ERR_SHAPE);
    WITH(to, stride_bytes[2] = 44, GRD_ERR_STRIDE);
#undef WITH
    const size_t bytes = grd_cut_workspace_bytes(&good, 20, 30);
    CHECK(bytes > 0 && bytes <= sizeof scratch);
    const char *ran = "none";
#define WITH(change, expected) \
    do { \
        grd_cut_options options = {sizeof options, 1, NULL, &ran, scratch, bytes}; \
        grd_view to = patches; \
        to.dtype = GRD_INT8; \
        options.change; \
        CHECK_THAT(grd_cut_frame(&good, &f.view, &to, &options) == (expected), ("options." #change)); \
    } while (0)
    WITH(struct_size = 0, GRD_ERR_STRUCT_SIZE);
    WITH(struct_size = sizeof options - 1, GRD_ERR_STRUCT_SIZE);
    WITH(input_scale = 0, GRD_ERR_ARGUMENT);
    WITH(input_scale = -1, GRD_ERR_ARGUMENT);
    WITH(input_scale = INFINITY, GRD_ERR_ARGUMENT);
    WITH(input_scale = NAN, GRD_ERR_ARGUMENT);
    WITH(variant = "abacus", GRD_ERR_VARIANT);
    WITH(workspace_bytes = bytes - 1, GRD_ERR_BUFFER);
    setenv("GRD_FORCE_VARIANT", "abacus", 1);
    WITH(variant = NULL, GRD_ERR_VARIANT);
    unsetenv("GRD_FORCE_VARIANT");
#undef WITH
    CHECK(strcmp(ran, "none") == 0);
    int untouched = 1;
    for (size_t i = 0; i < sizeof out; ++i) untouched = untouched && ((uint8_t *)out)[i] == 0xa5;
    CHECK(untouched);

    patches.stride_bytes[0] = 400, patches.stride_bytes[1] = 400, patches.stride_bytes[2] = 40,
    patches.stride_bytes[3] = 4;
    const grd_cut_options plain = {sizeof plain, 0, NULL, &ran, scratch, bytes};
    CHECK(grd_cut_frame(&good, &rgb.view, &patches, &plain) == GRD_OK); /* dense strides may be spelled out */
    CHECK(strcmp(ran, grd_variant_active(NULL)) == 0);
    f.view.stride_bytes[0] = f.view.stride_bytes[1] = INT64_MAX; /* of axes with one pixel: they lead nowhere */
    CHECK(grd_cut_frame(&good, &f.view, &patches, &plain) == GRD_OK);
    free(f.memory);
    free(rgb.memory);
}

int main(void) {
    unsetenv("GRD_FORCE_VARIANT");
    check_awkward_sizes();
    check_layouts();
    check_extremes();
    check_every_value();
    check_errors();
    check_stitching();
    check_stitching_errors();
    return checks_report();
}
