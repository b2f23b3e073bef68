/* test_score_types.c - uint8 and binary16 inputs, heatmaps of every type, and masks of interest: against the definition
 * on the values as stored, in every layout, for every variant this CPU runs.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200112L /* unsetenv */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"
#include "score_cases.h"

enum { kPairs = 6, kGuard = 64 };
static const int32_t kX[kPairs] = {GRD_UINT8, GRD_UINT8, GRD_FLOAT16, GRD_FLOAT16, GRD_FLOAT32, GRD_FLOAT32};
static const int32_t kXHat[kPairs] = {GRD_FLOAT16, GRD_FLOAT32, GRD_FLOAT16, GRD_FLOAT32, GRD_FLOAT16, GRD_FLOAT32};
static const int32_t kTypes[] = {GRD_UINT8, GRD_FLOAT16, GRD_FLOAT32}; /* of heatmaps */

/* Dense pixels of one type. */
static void *stored(const float *values, size_t count, int32_t dtype) {
    char *out = malloc(count * size_of(dtype));
    if (!out) abort();
    for (size_t i = 0; i < count; i++) store_pixel(out + i * size_of(dtype), dtype, values[i]);
    return out;
}

static grd_view typed_view(const void *data, int32_t dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view = dense_view(data, n, c, h, w);
    view.dtype = dtype;
    return view;
}

/* A batch of N patches with buffers of its own. */
typedef struct batch {
    int n, c, h, w;
    grd_view x, x_hat, heat;
    float *columns[4]; /* phi, phi_local, residual_min, residual_max */
    const char *ran;
} batch;

static batch batch_of(const float *x, const float *y, int pair, int32_t heat, int n, int c, int h, int w) {
    batch out;
    const size_t plane = (size_t)(h * w), count = (size_t)(n * c) * plane;
    out.n = n, out.c = c, out.h = h, out.w = w, out.ran = NULL;
    out.x = typed_view(stored(x, count, kX[pair]), kX[pair], n, c, h, w);
    out.x_hat = typed_view(stored(y, count, kXHat[pair]), kXHat[pair], n, c, h, w);
    out.heat = typed_view(malloc((size_t)n * plane * 4), heat, n, 1, h, w);
    for (int i = 0; i < 4; i++) out.columns[i] = floats((size_t)n);
    return out;
}

static void free_batch(batch *one) {
    free(one->x.data), free(one->x_hat.data), free(one->heat.data);
    for (int i = 0; i < 4; i++) free(one->columns[i]);
}

static void run(batch *one, const grd_score_params *params) {
    const grd_score_outputs outputs = {sizeof outputs,  0,           one->columns[0], one->columns[1], one->columns[2],
                                       one->columns[3], &one->heat, &one->ran};
    CHECK_SAYS(grd_score_patches(params, &one->x, &one->x_hat, &outputs) == GRD_OK, "%s", params->variant);
    const int box = params->window == GRD_WINDOW_BOX, takes_box = strncmp(params->variant, "cuda", 4) == 0;
    const char *expected = box && !takes_box ? "scalar" : params->variant;
    CHECK_SAYS(strcmp(one->ran, expected) == 0, "%s ran in place of %s", one->ran, expected);
}

static const float *unpacked(const grd_view *view, float *out) {
    const int64_t count = view->extent[0] * view->extent[1] * view->extent[2] * view->extent[3];
    const size_t size = size_of(view->dtype);
    for (int64_t i = 0; i < count; i++) out[i] = load_pixel((const char *)view->data + (size_t)i * size, view->dtype);
    return out;
}

/* Each patch of a dense batch against the definition; roi: a dense mask for each, or NULL. */
static void check_batch(const batch *one, int box, const uint8_t *roi, float scale, const char *what) {
    const int plane = one->h * one->w, image = one->c * plane;
    float *x = floats((size_t)(one->n * image)), *y = floats((size_t)(one->n * image));
    unpacked(&one->x, x), unpacked(&one->x_hat, y);
    for (int n = 0; n < one->n; n++) {
        const uint8_t *mask = roi ? roi + n * plane : NULL;
        const definition truth = reference(box, 21, x + n * image, y + n * image, mask, one->c, one->h, one->w);
        const double exact[4] = {truth.phi, truth.phi_local, truth.residual_min, truth.residual_max};
        for (int k = 0; k < 4; k++)
            CHECK_SAYS(isnan(exact[k]) ? isnan(one->columns[k][n]) : fabs(one->columns[k][n] - exact[k]) <= 1e-6,
                       "%s, %s, types %d %d, %dx%dx%d: figure %d is %.9g for %.9g", one->ran, what, one->x.dtype,
                       one->x_hat.dtype, one->c, one->h, one->w, k, one->columns[k][n], exact[k]);
        double worst = 0; /* in units of the heatmap's own rounding */
        for (int i = 0; i < plane; i++) {
            const size_t size = size_of(one->heat.dtype);
            const char *at = (const char *)one->heat.data + (size_t)(n * plane + i) * size;
            double sum = 0, got = load_pixel(at, one->heat.dtype), allowed = 1.5e-7;
            for (int c = 0; c < one->c && (!mask || mask[i]); c++) {
                const int at_pixel = n * image + c * plane + i;
                sum += fabs((double)x[at_pixel] - y[at_pixel]) / one->c;
            }
            if (one->heat.dtype == GRD_FLOAT16) allowed += sum < 0x1p-14 ? 0x1p-25 : sum * 0x1p-11;
            if (one->heat.dtype == GRD_UINT8) {
                got = *(const uint8_t *)at, sum *= scale, allowed = 0.5 + scale * 1.5e-7;
                if (sum > 255) sum = 255;
            }
            if (fabs(got - sum) / allowed > worst) worst = fabs(got - sum) / allowed;
        }
        CHECK_SAYS(worst <= 1, "%s, %s: heatmap of type %d off by %g of its rounding", one->ran, what, one->heat.dtype,
                   worst);
    }
    free(x), free(y);
}

static void check_types(const char *variant) {
    static const int heights[] = {11, 12, 15, 16, 17, 31, 33, 63, 65, 12, 14};
    static const int widths[] = {11, 12, 15, 16, 17, 31, 33, 63, 65, 181, 263}; /* the last are wide for avx512 */
    enum { kSizes = sizeof widths / sizeof *widths };
    for (int family = 0; family < FAMILIES; family++) {
        for (int i = 0; i < kSizes * kPairs; i++) {
            const int pair = i / kSizes, h = heights[i % kSizes], w = widths[i % kSizes], c = 1 + (i + family) % 3;
            const int box = i % 5 == 4;
            if (h * w * c > 3600 && (family + pair) % 6 != 0) continue; /* the definition takes its time */
            const size_t count = (size_t)(c * h * w);
            float *x = floats(count), *y = floats(count);
            make_pair(family, (float)(i % 7) / 7, c, h, w, x, y);
            batch one = batch_of(x, y, pair, kTypes[(i + family) % 3], 1, c, h, w);
            grd_score_params params = params_for(variant);
            params.window = box, params.heatmap_scale = i % 2 ? 700 : 0;
            run(&one, &params);
            check_batch(&one, box, NULL, i % 2 ? 700 : 255, kFamilyNames[family]);
            if (family == IDENTICAL && kX[pair] == kXHat[pair])
                CHECK_SAYS(one.columns[0][0] == 0 && one.columns[1][0] == 0 && one.columns[3][0] == 0, "%s", variant);
            free_batch(&one), free(x), free(y);
        }
    }
}

/* uint8 x is the float that the cutter makes of it, bit for bit, also beside float16 x_hat. */
static void check_bytes_are_floats(const char *variant) {
    enum { kSide = 33, kCount = 2 * 3 * kSide * kSide };
    static float x[kCount], y[kCount];
    make_pair(NOISY, 0.5f, 6, kSide, kSide, x, y);
    for (int pair = 0; pair < 2; pair++) {
        batch bytes = batch_of(x, y, pair, GRD_FLOAT32, 2, 3, kSide, kSide);
        batch values = batch_of(unpacked(&bytes.x, x), y, pair + 4, GRD_FLOAT32, 2, 3, kSide, kSide);
        grd_score_params params = params_for(variant);
        run(&bytes, &params);
        params.variant = bytes.ran;
        run(&values, &params);
        CHECK_SAYS(strcmp(bytes.ran, values.ran) == 0, "%s", variant);
        for (int k = 0; k < 4; k++) CHECK_SAYS(same_bits(bytes.columns[k], values.columns[k], 8), "%s %d", variant, k);
        CHECK_SAYS(same_bits(bytes.heat.data, values.heat.data, 4 * 2 * kSide * kSide), "%s heatmap", variant);
        free_batch(&bytes), free_batch(&values);
    }
}

/* ---------------------------------------------------------------------------------------- conversions */

/* Every binary16 as an input, on either side; those that are not finite spoil the patch. */
static void check_halves_in(const char *variant) {
    enum { kH = 248, kW = 256 };
    static uint16_t halves[kH * kW];
    static float other[kH * kW], heat[kH * kW];
    grd_score_params params = params_for(variant);
    for (int i = 0; i < kH * kW; i++) halves[i] = (uint16_t)(i % 2 << 15 | i / 2);
    for (int side = 0; side < 4; side++) { /* x or x_hat; against 0, against 1 for the sign */
        scores s;
        for (int i = 0; i < kH * kW; i++) other[i] = (float)(side / 2);
        const grd_view vh = typed_view(halves, GRD_FLOAT16, 1, 1, kH, kW), vo = dense_view(other, 1, 1, kH, kW);
        const grd_view map = dense_view(heat, 1, 1, kH, kW);
        const grd_score_outputs outputs = outputs_of(&s, &map);
        CHECK(grd_score_patches(&params, side % 2 ? &vo : &vh, side % 2 ? &vh : &vo, &outputs) == GRD_OK);
        int wrong = 0;
        for (int i = 0; i < kH * kW; i++) wrong += heat[i] != (float)fabs(half_value(halves[i]) - side / 2);
        CHECK_SAYS(wrong == 0, "%s reads %d binary16 wrongly", variant, wrong);
    }
    for (int i = 0x7c00; i < 0x10000; i = i == 0x7fff ? 0xfc00 : i + 1) {
        uint16_t x[11 * 11] = {0};
        scores s;
        x[i % 121] = (uint16_t)i;
        const grd_view view = typed_view(x, GRD_FLOAT16, 1, 1, 11, 11), zero = dense_view(other, 1, 1, 11, 11);
        const grd_score_outputs outputs = outputs_of(&s, NULL);
        CHECK(grd_score_patches(&params, &view, &zero, &outputs) == GRD_OK);
        CHECK_SAYS(isnan(s.phi) && isnan(s.phi_local) && isnan(s.residual_min), "%s takes %x", variant, i);
    }
}

/* Residuals at and beside every midpoint of two binary16, written as binary16. */
static void check_halves_out(const char *variant) {
    enum { kH = 372, kW = 256 }; /* 3 x 31744 values, the last midpoint that of 65504 and 65536 */
    static float x[kH * kW], zero[kH * kW];
    static uint16_t heat[kH * kW];
    for (int i = 0; i < 31744; i++) {
        const double next = i < 31743 ? half_value((uint16_t)(i + 1)) : 65536;
        const float middle = (float)((half_value((uint16_t)i) + next) / 2);
        x[3 * i] = nextafterf(middle, 0), x[3 * i + 1] = middle, x[3 * i + 2] = nextafterf(middle, 1e6f);
    }
    scores s;
    const grd_view vx = dense_view(x, 1, 1, kH, kW), vz = dense_view(zero, 1, 1, kH, kW);
    const grd_view map = typed_view(heat, GRD_FLOAT16, 1, 1, kH, kW);
    const grd_score_params params = params_for(variant);
    const grd_score_outputs outputs = outputs_of(&s, &map);
    CHECK(grd_score_patches(&params, &vx, &vz, &outputs) == GRD_OK);
    int wrong = 0;
    for (int i = 0; i < kH * kW; i++) wrong += heat[i] != half_nearest(x[i]);
    CHECK_SAYS(wrong == 0, "%s rounds %d residuals wrongly to binary16", variant, wrong);
}

/* Halves go to even, and what is too large becomes 255. */
static void check_bytes_out(const char *variant) {
    enum { kH = 33, kW = 31 };
    static float x[kH * kW], zero[kH * kW];
    static uint8_t heat[kH * kW];
    static const float scales[] = {1, 2, 0.5f, 1024};
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < kH * kW; i++) x[i] = (float)i * 0.25f / scales[k] * (i % 2 ? 1.0f : -1.0f);
        scores s;
        const grd_view vx = dense_view(x, 1, 1, kH, kW), vz = dense_view(zero, 1, 1, kH, kW);
        const grd_view map = typed_view(heat, GRD_UINT8, 1, 1, kH, kW);
        grd_score_params params = params_for(variant);
        const grd_score_outputs outputs = outputs_of(&s, &map);
        params.heatmap_scale = scales[k];
        x[kH * kW - 1] = 1e6f;
        CHECK(grd_score_patches(&params, &vx, &vz, &outputs) == GRD_OK);
        int wrong = 0;
        for (int i = 0; i < kH * kW; i++) {
            const double whole = rint(fabs((double)x[i]) * scales[k]);
            wrong += heat[i] != (whole < 255 ? whole : 255);
        }
        CHECK_SAYS(wrong == 0, "%s rounds %d residuals wrongly to uint8", variant, wrong);
    }
}

/* -------------------------------------------------------------------------------------------- masks */

enum { HALF_OF_IT, FEW, CORNER, MIDDLE, LAST, BORDER, BLOCK, STRIPES, ALL, NONE, MASKS };
static const char *const kMaskNames[MASKS] = {"random mask", "few pixels", "first pixel", "middle pixel", "last pixel",
                                              "border",      "block",      "stripes",     "all ones",     "empty mask"};

static void make_mask(int kind, int h, int w, uint8_t *out) {
    for (int r = 0; r < h; r++) {
        for (int q = 0; q < w; q++) {
            const float u = uniform();
            const int edge = r == 0 || q == 0 || r == h - 1 || q == w - 1, middle = r == h / 2 && q == w / 2;
            const int in_block = r > h / 3 && r < h * 2 / 3 && q > w / 4 && q < w / 2;
            const int wanted[MASKS] = {u < 0.5f, u < 0.01f, r + q == 0, middle, r == h - 1 && q == w - 1,
                                       edge,     in_block,  q % 16 < 2, 1,      0};
            out[r * w + q] = wanted[kind] ? (uint8_t)(1 + 254 * (int)(u * 2)) : 0; /* 1 or 255 */
        }
    }
}

/* A batch under masks: the definition; what lies outside does not matter; a shared mask is one for each. */
static void check_masked(const char *variant, int kind, int pair, int box, int c, int h, int w) {
    enum { kN = 3 };
    const size_t plane = (size_t)(h * w), count = kN * (size_t)c * plane;
    float *x = floats(count), *y = floats(count);
    uint8_t *masks = malloc(kN * plane);
    if (!masks) abort();
    make_pair(kind % 2 ? RANDOM : NOISY, 0.5f, kN * c, h, w, x, y);
    for (int n = 0; n < kN; n++) make_mask(n == 1 ? kind : (kind + n) % MASKS, h, w, masks + (size_t)n * plane);
    const grd_view each = typed_view(masks, GRD_UINT8, kN, 1, h, w);
    const grd_view one = typed_view(masks + plane, GRD_UINT8, 1, 1, h, w);
    const int32_t heat = kTypes[(kind + pair) % 3];
    batch clean = batch_of(x, y, pair, heat, kN, c, h, w);
    for (size_t i = 0; i < count; i++) { /* outside: anything that the types hold */
        if (masks[i / ((size_t)c * plane) * plane + i % plane]) continue;
        x[i] = i % 3 ? NAN : 3e38f, y[i] = i % 3 ? 0.25f : INFINITY;
    }
    batch soiled = batch_of(x, y, pair, heat, kN, c, h, w);
    grd_score_params params = params_for(variant);
    params.window = box, params.roi = &each;
    run(&clean, &params), run(&soiled, &params);
    check_batch(&clean, box, masks, 255, kMaskNames[kind]);
    for (int k = 0; k < 4; k++)
        CHECK_SAYS(same_bits(clean.columns[k], soiled.columns[k], kN * sizeof(float)),
                   "%s, %s: figure %d depends on pixels outside", clean.ran, kMaskNames[kind], k);
    CHECK_SAYS(same_bits(clean.heat.data, soiled.heat.data, kN * plane * size_of(heat)),
               "%s, %s: the heatmap depends on pixels outside", clean.ran, kMaskNames[kind]);

    params.roi = &one; /* the mask of patch 1 for all of them */
    run(&soiled, &params);
    for (int k = 0; k < 4; k++)
        CHECK_SAYS(same_bits(clean.columns[k] + 1, soiled.columns[k] + 1, sizeof(float)), "%s shared mask", clean.ran);
    if (kind == ALL) {
        batch unmasked = batch_of(x, y, pair, heat, kN, c, h, w);
        params.roi = NULL, params.variant = soiled.ran;
        run(&unmasked, &params);
        for (int k = 0; k < 4; k++)
            CHECK_SAYS(same_bits(unmasked.columns[k], soiled.columns[k], kN * sizeof(float)), "%s ones", soiled.ran);
        const size_t map_bytes = plane * size_of(heat); /* of patch 1: others may hold NaN */
        CHECK_SAYS(same_bits((char *)unmasked.heat.data + map_bytes, (char *)soiled.heat.data + map_bytes, map_bytes),
                   "%s ones, heatmap", soiled.ran);
        free_batch(&unmasked);
    }
    free_batch(&clean), free_batch(&soiled), free(x), free(y), free(masks);
}

static void check_masks(const char *variant) {
    static const int sizes[][2] = {{11, 11}, {12, 31}, {15, 16}, {17, 33}, {33, 17}, {11, 63}, {40, 65}, {13, 181}};
    for (int kind = 0; kind < MASKS; kind++)
        for (int i = 0; i < 16; i++)
            check_masked(variant, kind, (i + kind) % kPairs, i % 5 == 3, i % 3 == 2 ? 3 : 1, sizes[i % 8][0],
                         sizes[i % 8][1]);
}

/* ------------------------------------------------------------------------------------------- layouts */

/* Strides in pixels and the first pixel, for an image of c x h x w. */
typedef struct layout {
    const char *name;
    int64_t n, c, y, x, first;
} layout;

/* Bytes of a view in some layout, `shift` bytes off; the rest is kUntouched. */
enum { kUntouched = 0xA5 };
static char *spread(const grd_view *dense, const layout *at, int shift, size_t pixels, grd_view *view) {
    const int64_t *e = dense->extent, size = (int64_t)size_of(dense->dtype);
    char *block = malloc(pixels * (size_t)size + 2 * kGuard), *first = block + kGuard + shift + at->first * size;
    if (!block) abort();
    memset(block, kUntouched, pixels * (size_t)size + 2 * kGuard);
    for (int64_t n = 0, i = 0; n < e[0]; n++)
        for (int64_t c = 0; c < e[1]; c++)
            for (int64_t r = 0; r < e[2]; r++)
                for (int64_t q = 0; q < e[3]; q++, i++)
                    memcpy(first + (n * at->n + c * at->c + r * at->y + q * at->x) * size,
                           (const char *)dense->data + i * size, (size_t)size);
    *view = strided_view(first, e, at->n * size, at->c * size, at->y * size, at->x * size);
    view->dtype = dense->dtype;
    return block;
}

static void check_layouts(const char *variant, int pair, int32_t heat, int masked, int c, int h, int w) {
    enum { kN = 2 };
    const int64_t plane = (int64_t)h * w, image = c * plane, pad = 5;
    const layout layouts[] = {
        {"channels last", image, 1, (int64_t)w * c, c, 0},
        {"padded rows", c * h * (w + pad), h * (w + pad), w + pad, 1, 0},
        {"turned round", image, plane, -(int64_t)w, -1, plane - 1},
        {"transposed", image, plane, 1, h, 0},
        {"every third pixel", 3 * image, 3 * plane, 3 * (int64_t)w, 3, 1},
    };
    const size_t room = (size_t)(3 * kN * c * h * (w + pad));
    float *x = floats((size_t)(kN * image)), *y = floats((size_t)(kN * image));
    uint8_t *masks = malloc((size_t)(kN * plane));
    if (!masks) abort();
    make_pair(RANDOM, 0.5f, c * kN, h, w, x, y);
    for (int n = 0; n < kN; n++) make_mask(HALF_OF_IT, h, w, masks + n * plane);
    const grd_view roi = typed_view(masks, GRD_UINT8, kN, 1, h, w);
    grd_score_params params = params_for(variant);
    params.roi = masked ? &roi : NULL;
    batch dense = batch_of(x, y, pair, heat, kN, c, h, w);
    run(&dense, &params);
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        batch other = dense;
        grd_view mask = roi, map;
        const int shift = 1 + 2 * (int)l; /* no pixel of two or four bytes lies even */
        char *blocks[4] = {spread(&dense.x, &layouts[l], shift, room, &other.x),
                           spread(&dense.x_hat, &layouts[(l + 1) % 5], shift, room, &other.x_hat),
                           spread(&dense.heat, &layouts[l], shift, room, &map),
                           spread(&roi, &layouts[(l + 2) % 5], shift, room, &mask)};
        const size_t size = room * size_of(heat) + 2 * kGuard;
        char *expected = malloc(size);
        if (!expected) abort();
        memcpy(expected, blocks[2], size); /* the heatmap spread out, and nothing else */
        const int64_t *step = map.stride_bytes;
        for (int64_t n = 0; n < kN; n++)
            for (int64_t r = 0; r < h; r++)
                for (int64_t q = 0; q < w; q++)
                    memset((char *)map.data + n * step[0] + r * step[2] + q * step[3], 0x5A, size_of(heat));
        other.heat = map;
        for (int k = 0; k < 4; k++) other.columns[k] = floats(kN);
        params.roi = masked ? &mask : NULL;
        run(&other, &params);
        CHECK_SAYS(same_bits(expected, blocks[2], size), "%s %s types %d %d %d: heatmap or what lies beside it",
                   variant, layouts[l].name, dense.x.dtype, dense.x_hat.dtype, heat);
        for (int k = 0; k < 4; k++) {
            CHECK_SAYS(same_bits(dense.columns[k], other.columns[k], kN * sizeof(float)), "%s %s types %d %d figure %d",
                       variant, layouts[l].name, dense.x.dtype, dense.x_hat.dtype, k);
            free(other.columns[k]), free(blocks[k]);
        }
        free(expected);
    }
    free_batch(&dense), free(x), free(y), free(masks);
}

int main(void) {
    unsetenv("GRD_FORCE_VARIANT");
    for (int v = 0; grd_variant_name(v); v++) {
        const char *name = grd_variant_name(v);
        if (!grd_variant_supported(name)) continue;
        check_types(name);
        check_bytes_are_floats(name);
        check_halves_in(name);
        check_halves_out(name);
        check_bytes_out(name);
        check_masks(name);
        for (int i = 0; i < 2 * 3 * kPairs; i++) {
            const int32_t heat = kTypes[i / kPairs % 3];
            check_layouts(name, i % kPairs, heat, i / (3 * kPairs), 1 + i % 3, 11 + 7 * (i % 5), 11 + i);
            check_layouts(name, i % kPairs, heat, i / (3 * kPairs), 1 + i % 3, 12, 177 + 5 * i);
        }
    }
    return checks_report();
}
