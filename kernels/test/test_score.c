/* test_score.c - the scoring section of grd_edge.h against its definition, for every variant this CPU runs.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The reference is SSIM as the textbook writes it: float64, all 121 taps, two-pass variances, x and x^ apart.
 * It shares no formula with the kernels. Last line: "N passed, N failed"; exit status 1 when any failed.
 */
#define _POSIX_C_SOURCE 200112L /* setenv */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"

#define CHECK_SAYS(condition, ...) CHECK_THAT(condition, (__VA_ARGS__))

static const char *const kListed[] = {
#define GRD_SCORE_VARIANT(name, supported) #name,
#include "score/score_variants.inc"
#undef GRD_SCORE_VARIANT
};
enum { kListedCount = sizeof kListed / sizeof kListed[0] };

/* -------------------------------------------------------------------------------------- utilities */

static uint32_t random_state = 1;
static float uniform(void) { /* [0, 1) in 24 bits, the same everywhere */
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / 16777216.0f;
}

/* Rounded to the 11 significant bits of binary16 (Veltkamp's splitting). */
static float half_precision(float v) {
    volatile float scaled = v * 8193.0f;
    volatile float low = scaled - v;
    return scaled - low;
}

static float *floats(size_t count) {
    float *at = malloc(count * sizeof *at);
    if (!at) abort();
    return at;
}

static int same_bits(const void *a, const void *b, size_t bytes) { return memcmp(a, b, bytes) == 0; }

static grd_view dense_view(const void *data, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view;
    memset(&view, 0, sizeof view);
    view.data = (void *)data;
    view.dtype = GRD_FLOAT32;
    view.space = GRD_SPACE_HOST;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

static grd_view strided_view(const void *data, const int64_t *extent, int64_t n, int64_t c, int64_t y,
                             int64_t x) {
    grd_view view = dense_view(data, extent[0], extent[1], extent[2], extent[3]);
    view.stride_bytes[0] = n, view.stride_bytes[1] = c, view.stride_bytes[2] = y, view.stride_bytes[3] = x;
    return view;
}

static grd_score_params params_for(const char *variant) {
    grd_score_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.variant = variant;
    return params;
}

typedef struct scores {
    float phi, phi_local, residual_min, residual_max;
} scores;

static grd_score_outputs outputs_of(scores *s, const grd_view *heatmap) {
    grd_score_outputs outputs;
    memset(&outputs, 0, sizeof outputs);
    outputs.struct_size = sizeof outputs;
    outputs.phi = &s->phi;
    outputs.phi_local = &s->phi_local;
    outputs.residual_min = &s->residual_min;
    outputs.residual_max = &s->residual_max;
    outputs.heatmap = heatmap;
    return outputs;
}

/* ------------------------------------------------------------------------------------ the definition */

typedef struct definition {
    double phi, phi_local;
} definition;

static double reference_at(int box, const float *x, const float *y, int h, int w, int row, int col) {
    double taps[11], sum = 0, mean_x = 0, mean_y = 0, var_x = 0, var_y = 0, cov = 0;
    for (int k = 0; k < 11; k++) sum += taps[k] = box ? 1.0 : exp(-(k - 5) * (k - 5) / (2 * 1.5 * 1.5));
    for (int k = 0; k < 11; k++) taps[k] /= sum;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 11; i++) {
            for (int j = 0; j < 11; j++) {
                const int r = row + i, c = col + j, inside = r >= 0 && r < h && c >= 0 && c < w;
                const double a = inside ? x[r * w + c] : 0, b = inside ? y[r * w + c] : 0;
                const double t = taps[i] * taps[j];
                if (pass == 0) {
                    mean_x += t * a;
                    mean_y += t * b;
                } else {
                    var_x += t * (a - mean_x) * (a - mean_x);
                    var_y += t * (b - mean_y) * (b - mean_y);
                    cov += t * (a - mean_x) * (b - mean_y);
                }
            }
        }
    }
    const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
    const double l = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1);
    return 1 - l * ((2 * cov + c2) / (var_x + var_y + c2));
}

static definition reference(int box, int local, const float *x, const float *y, int channels, int h, int w) {
    const int map_h = box ? h : h - 10, map_w = box ? w : w - 10, shift = box ? -5 : 0;
    double *map = calloc((size_t)(map_h * map_w), sizeof *map);
    definition out = {0, 0};
    if (!map) abort();
    for (int c = 0; c < channels; c++)
        for (int r = 0; r < map_h; r++)
            for (int q = 0; q < map_w; q++)
                map[r * map_w + q] +=
                    reference_at(box, x + c * h * w, y + c * h * w, h, w, r + shift, q + shift) / channels;
    for (int i = 0; i < map_h * map_w; i++) out.phi += map[i] / (map_h * map_w);
    if (local > map_h) local = map_h;
    if (local > map_w) local = map_w;
    for (int r = 0; r + local <= map_h; r++) {
        for (int q = 0; q + local <= map_w; q++) {
            double sum = 0;
            for (int i = 0; i < local; i++)
                for (int j = 0; j < local; j++) sum += map[(r + i) * map_w + q + j];
            if (sum / (local * local) > out.phi_local) out.phi_local = sum / (local * local);
        }
    }
    free(map);
    return out;
}

/* ------------------------------------------------------------------------------------ image families */

enum {
    RANDOM, NOISY, HALF, FLAT_HALF, FLAT_LEVELS, NEARLY_FLAT, SATURATED, BINARY, OPPOSITE, IDENTICAL, STEP,
    TWO_STEPS, SQUARE, CHECKER, GRADIENT, SMOOTH, TEXTURE, ONE_HOT, FAMILIES
};
static const char *const kFamilyNames[FAMILIES] = {
    "random",   "noisy copy", "binary16 copy", "flat, binary16", "flat, two levels", "nearly flat",
    "saturated", "binary",    "opposite",      "identical",      "steps",            "random steps",
    "dark square", "checkerboard", "gradient", "smooth",         "texture",          "one-hot"};

static void make_pair(int family, float level, int channels, int h, int w, float *x, float *y) {
    float u[6];
    for (int i = 0; i < 6; i++) u[i] = uniform();
    const int edge = 1 + (int)(u[4] * (float)(w - 1));
    for (int c = 0; c < channels; c++) {
        for (int r = 0; r < h; r++) {
            for (int q = 0; q < w; q++) {
                const int i = (c * h + r) * w + q;
                const float n = uniform(), m = uniform();
                const int in_square = r > h / 5 && r < h * 4 / 5 && q > w / 5 && q < w * 4 / 5, left = q < w / 2;
                const float phase = 0.1f * (u[0] * (float)r + u[1] * (float)q), fr = (float)r, fq = (float)q;
                switch (family) {
                case RANDOM: x[i] = n, y[i] = m; break;
                case NOISY: x[i] = n, y[i] = n + 0.05f * (m - 0.5f); break;
                case HALF: x[i] = n, y[i] = half_precision(n); break;
                case FLAT_HALF: x[i] = level, y[i] = half_precision(level); break;
                case FLAT_LEVELS: x[i] = level, y[i] = 1 - level * level; break;
                case NEARLY_FLAT: x[i] = level + 1e-4f * n, y[i] = level + 1e-4f * m; break;
                case SATURATED: x[i] = level < 0.5f ? 0 : 1, y[i] = fabsf(x[i] - 2e-3f * n); break;
                case BINARY: x[i] = n < 0.5f, y[i] = m < 0.5f; break;
                case OPPOSITE: x[i] = n < 0.5f, y[i] = 1 - x[i]; break;
                case IDENTICAL: x[i] = n, y[i] = n; break;
                case STEP:
                    x[i] = left ? level : 1 - level;
                    y[i] = q < w / 2 + 3 ? 0.8f * level : 1 - level;
                    break;
                case TWO_STEPS: x[i] = q < edge ? u[0] : u[1], y[i] = q < edge ? u[2] : u[3]; break;
                case SQUARE: x[i] = in_square ? 0.1f : level, y[i] = in_square ? 0.5f : level; break;
                case CHECKER:
                    x[i] = (r / 3 + q / 3) % 2 ? level : 0.3f;
                    y[i] = (r / 4 + q / 4) % 2 ? level : 0.3f;
                    break;
                case GRADIENT: x[i] = (fr + fq) / (float)(h + w), y[i] = x[i] * x[i]; break;
                case SMOOTH:
                    x[i] = 0.5f + 0.4f * sinf(phase);
                    y[i] = 0.5f + 0.4f * sinf(phase + u[2]) * u[3];
                    break;
                case TEXTURE:
                    x[i] = 0.5f + 0.4f * sinf(0.7f * fq) * cosf(0.3f * fr);
                    y[i] = 0.9f * x[i] + 0.02f * n;
                    break;
                default: x[i] = r == h / 2 && q == w / 2, y[i] = 0; break;
                }
            }
        }
    }
}

static double worst_phi[kListedCount][FAMILIES], worst_local[kListedCount][FAMILIES];

static void check_accuracy_at(int family, float level, int box, int local, int channels, int h, int w) {
    const size_t count = (size_t)(channels * h * w);
    float *x = floats(count), *y = floats(count), *heat = floats((size_t)(h * w));
    make_pair(family, level, channels, h, w, x, y);
    const definition truth = reference(box, local ? local : 21, x, y, channels, h, w);
    for (int v = 0; grd_score_variant_name(v); v++) {
        const char *name = grd_score_variant_name(v);
        if (!grd_score_variant_supported(name)) continue;
        const grd_view vx = dense_view(x, 1, channels, h, w), vy = dense_view(y, 1, channels, h, w);
        const grd_view vh = dense_view(heat, 1, 1, h, w);
        grd_score_params params = params_for(name);
        scores s;
        const grd_score_outputs outputs = outputs_of(&s, &vh);
        params.window = box ? GRD_WINDOW_BOX : GRD_WINDOW_GAUSSIAN;
        params.local_window_px = local;
        const grd_status status = grd_score_patches(&params, &vx, &vy, &outputs);
        CHECK_SAYS(status == GRD_OK, "%s", grd_score_variant_name(v));
        const double error = fabs(s.phi - truth.phi), error_local = fabs(s.phi_local - truth.phi_local);
        CHECK_SAYS(error <= 1e-6 && error_local <= 1e-6,
                   "%s %s %g box %d local %d %dx%dx%d: phi %.9g for %.9g, phi_local %.9g for %.9g", name,
                   kFamilyNames[family], level, box, local, channels, h, w, s.phi, truth.phi, s.phi_local,
                   truth.phi_local);
        if (error > worst_phi[v][family]) worst_phi[v][family] = error;
        if (error_local > worst_local[v][family]) worst_local[v][family] = error_local;
        CHECK_SAYS(s.phi >= 0 && s.phi <= 2.000001f, "%s phi %.9g", name, s.phi);
        CHECK_SAYS(s.phi_local >= 0 && s.phi_local <= 2.000001f, "%s phi_local %.9g", name, s.phi_local);
        if (family == IDENTICAL)
            CHECK_SAYS(s.phi == 0 && s.phi_local == 0 && s.residual_max == 0, "%s identical: %.9g %.9g", name, s.phi,
                       s.phi_local);

        float least = FLT_MAX, largest = 0;
        double worst = 0;
        for (int i = 0; i < h * w; i++) {
            double sum = 0;
            for (int c = 0; c < channels; c++) sum += fabs((double)x[c * h * w + i] - y[c * h * w + i]) / channels;
            if (fabs(sum - heat[i]) > worst) worst = fabs(sum - heat[i]);
            if (heat[i] < least) least = heat[i];
            if (heat[i] > largest) largest = heat[i];
        }
        CHECK_SAYS(worst <= 1.5e-7, "%s heatmap off by %g", name, worst);
        CHECK_SAYS(s.residual_min == least && s.residual_max == largest, "%s residual range", name);
    }
    free(x), free(y), free(heat);
}

static void check_accuracy(void) {
    static const int sizes[][2] = {{11, 11}, {12, 12}, {15, 15}, {16, 16}, {17, 17}, {18, 18}, {19, 23}, {31, 31},
                                   {33, 33}, {63, 63}, {65, 65}, {11, 40}, {100, 13}};
    static const float levels[] = {0, 0.1f, 0.3f, 0.5f, 0.7f, 0.9f, 1};
    for (int family = 0; family < FAMILIES; family++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            check_accuracy_at(family, levels[(i + 5) % 7], 0, 0, 1 + (int)(i + (size_t)family) % 3, sizes[i][0],
                              sizes[i][1]);
    for (int family = 0; family < FAMILIES; family++)
        for (int i = 0; i < 7; i++) check_accuracy_at(family, levels[i], 0, 0, 1, 48, 50);
    for (int i = 0; i < 40; i++) check_accuracy_at(FLAT_HALF, uniform(), 0, 0, 1, 33, 35);
    for (int i = 0; i < 40; i++) check_accuracy_at(FLAT_LEVELS, uniform(), 0, 0, 1, 33, 35);
    for (int i = 0; i < 20; i++) check_accuracy_at(SQUARE, uniform(), 0, 0, 1, 64, 64);
    for (int i = 0; i < 20; i++) check_accuracy_at(STEP, uniform(), 0, 0, 1, 40, 64);
    /* Maps of one row and of one pixel: no average hides an error. */
    for (int i = 0; i < 400; i++) check_accuracy_at(i % FAMILIES, uniform(), 0, 0, 1, 11, i % 2 ? 40 : 11);
    for (int i = 0; i < 200; i++) check_accuracy_at(i % 2 ? TWO_STEPS : SMOOTH, uniform(), 0, 0, 1, 11, 40);
    for (int family = 0; family < FAMILIES; family++) check_accuracy_at(family, 0.9f, 0, 0, 1, 128, 128);

    static const int locals[] = {1, 2, 3, 4, 5, 7, 8, 20, 22, 31, 32, 33, 50, 1000};
    for (size_t i = 0; i < sizeof locals / sizeof locals[0]; i++) {
        check_accuracy_at(TEXTURE, 0.5f, 0, locals[i], 1, 60, 57);
        check_accuracy_at(FLAT_LEVELS, 0.7f, 0, locals[i], 2, 47, 60);
    }
    /* Either side of the largest window that the vector variants sum themselves. */
    check_accuracy_at(FLAT_LEVELS, 0.7f, 0, 256, 1, 266, 267);
    check_accuracy_at(NOISY, 0.7f, 0, 257, 1, 267, 268);

    static const int box_sizes[][2] = {{1, 1}, {1, 7}, {2, 3}, {10, 10}, {11, 11}, {12, 30}, {33, 17}};
    for (int family = 0; family < FAMILIES; family++)
        for (size_t i = 0; i < sizeof box_sizes / sizeof box_sizes[0]; i++)
            check_accuracy_at(family, levels[i], 1, 0, 1 + (int)i % 3, box_sizes[i][0], box_sizes[i][1]);
}

/* ------------------------------------------------------------------------- layouts, batches, guards */

enum { kGuard = 64 };

static int guards_whole(const unsigned char *block, size_t inner) {
    for (size_t i = 0; i < kGuard; i++)
        if (block[i] != 0xA5 || block[kGuard + inner + i] != 0xA5) return 0;
    return 1;
}

/* A layout: strides in elements for an image of c x h x w, and the element of pixel (0, 0, 0). */
typedef struct layout {
    const char *name;
    int64_t n, c, y, x, first;
} layout;

static void check_layouts(const char *variant, int channels, int h, int w) {
    enum { kN = 2 };
    const int64_t extent[4] = {kN, channels, h, w}, plane = (int64_t)h * w, image = channels * plane, pad = 5;
    const layout layouts[] = {
        {"dense", image, plane, w, 1, 0},
        {"channels last", image, 1, (int64_t)w * channels, channels, 0},
        {"padded rows", channels * h * (w + pad), h * (w + pad), w + pad, 1, 0},
        {"rows upward", image, plane, -(int64_t)w, 1, (h - 1) * (int64_t)w},
        {"mirrored", image, plane, w, -1, w - 1},
        {"transposed", image, plane, 1, h, 0},
        {"batch backward", -image, plane, w, 1, image},
    };
    const size_t room = (size_t)(kN * channels * h * (w + pad)) * sizeof(float);
    float *x = floats((size_t)(kN * image)), *y = floats((size_t)(kN * image));
    float *heat = floats((size_t)(kN * plane));
    unsigned char *bx = malloc(room + 8), *by = malloc(room + 8), *bh = malloc(room + 2 * kGuard + 8);
    const grd_view vx = dense_view(x, kN, channels, h, w), vy = dense_view(y, kN, channels, h, w);
    const grd_view vh = dense_view(heat, kN, 1, h, w);
    grd_score_params params = params_for(variant);
    scores expected[kN], got[kN];
    float columns[4][kN];
    grd_score_outputs outputs = {sizeof outputs, 0, columns[0], columns[1], columns[2], columns[3], &vh};
    if (!bx || !by || !bh) abort();
    make_pair(RANDOM, 0.5f, channels * kN, h, w, x, y);
    CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s", variant);
    for (int n = 0; n < kN; n++)
        expected[n] = (scores){columns[0][n], columns[1][n], columns[2][n], columns[3][n]};

    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        for (int shift = 0; shift < 8; shift += l ? 5 : 1) { /* bytes: also pointers that are not float-aligned */
            const layout *at = &layouts[l];
            for (int n = 0; n < kN; n++)
                for (int c = 0; c < channels; c++)
                    for (int r = 0; r < h; r++)
                        for (int q = 0; q < w; q++) {
                            const int64_t offset = n * at->n + c * at->c + r * at->y + q * at->x;
                            const int64_t to = (at->first + offset) * 4 + shift;
                            const int64_t from = n * image + c * plane + (int64_t)r * w + q;
                            memcpy(bx + to, x + from, 4);
                            memcpy(by + to, y + from, 4);
                        }
            const int64_t first = shift + at->first * 4, s[4] = {at->n * 4, at->c * 4, at->y * 4, at->x * 4};
            const grd_view sx = strided_view(bx + first, extent, s[0], s[1], s[2], s[3]);
            const grd_view sy = strided_view(by + first, extent, s[0], s[1], s[2], s[3]);
            /* The heatmap takes the same layout, as one channel of such an image. */
            memset(bh, 0xA5, room + 2 * kGuard + 8);
            const int64_t heat_extent[4] = {kN, 1, h, w};
            const grd_view sh = strided_view(bh + kGuard + first, heat_extent, s[0], s[1], s[2], s[3]);
            outputs.heatmap = &sh;
            CHECK_SAYS(grd_score_patches(&params, &sx, &sy, &outputs) == GRD_OK, "%s %s", variant, at->name);
            for (int n = 0; n < kN; n++)
                got[n] = (scores){columns[0][n], columns[1][n], columns[2][n], columns[3][n]};
            CHECK_SAYS(same_bits(expected, got, sizeof got), "%s %s %dx%dx%d shift %d", variant, at->name,
                       channels, h, w, shift);
            int heat_right = 1;
            for (int n = 0; n < kN; n++)
                for (int r = 0; r < h; r++)
                    for (int q = 0; q < w; q++) {
                        unsigned char *to = bh + kGuard + first + (n * at->n + r * at->y + q * at->x) * 4;
                        heat_right &= same_bits(to, heat + n * plane + (int64_t)r * w + q, 4);
                        memset(to, 0xA5, 4);
                    }
            CHECK_SAYS(heat_right, "%s %s heatmap", variant, at->name);
            int untouched = 1; /* with the pixels wiped, every byte must be as it was: guards, gaps, padding */
            for (size_t i = 0; i < room + 2 * kGuard + 8; i++) untouched &= bh[i] == 0xA5;
            CHECK_SAYS(untouched, "%s %s wrote beside the heatmap", variant, at->name);
        }
    }
    free(x), free(y), free(heat), free(bx), free(by), free(bh);
}

static void check_workspace_and_batch(const char *variant, int box, int channels, int h, int w) {
    enum { kN = 5 };
    const size_t image = (size_t)(channels * h * w);
    float *x = floats(kN * image), *y = floats(kN * image);
    grd_score_params params = params_for(variant);
    params.window = box;
    const size_t bytes = grd_score_workspace_bytes(&params, channels, h, w);
    unsigned char *block = malloc(bytes + 2 * kGuard + 64);
    unsigned char out[4][kGuard * 2 + kN * sizeof(float)];
    if (!block) abort();
    CHECK_SAYS(bytes > 0, "workspace size");
    for (int n = 0; n < kN; n++)
        make_pair(n % 2 ? NOISY : STEP, 0.2f, channels, h, w, x + (size_t)n * image, y + (size_t)n * image);
    for (int shift = 0; shift < 64; shift += 13) {
        for (int fill = 0; fill < 2; fill++) { /* NaN bits in the workspace must not matter */
            memset(block, 0xA5, bytes + 2 * kGuard + 64);
            memset(block + kGuard + shift, fill ? 0xFF : 0, bytes);
            memset(out, 0xA5, sizeof out);
            float *column[4];
            for (int i = 0; i < 4; i++) column[i] = (float *)(void *)(out[i] + kGuard);
            const grd_view vx = dense_view(x, kN, channels, h, w), vy = dense_view(y, kN, channels, h, w);
            const grd_score_outputs outputs = {sizeof outputs, 0, column[0], column[1], column[2], column[3], NULL};
            params.workspace = block + kGuard + shift;
            params.workspace_bytes = bytes;
            CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s", variant);
            CHECK_SAYS(guards_whole(block + shift, bytes), "%s workspace guards, shift %d", variant, shift);
            for (int i = 0; i < 4; i++)
                CHECK_SAYS(guards_whole(out[i], kN * sizeof(float)), "%s output guards", variant);
            params.workspace = NULL;
            for (int n = 0; n < kN; n++) { /* alone, backward in time, without workspace */
                const int k = kN - 1 - n;
                const grd_view px = dense_view(x + (size_t)k * image, 1, channels, h, w);
                const grd_view py = dense_view(y + (size_t)k * image, 1, channels, h, w);
                scores s;
                const grd_score_outputs alone = outputs_of(&s, NULL);
                CHECK_SAYS(grd_score_patches(&params, &px, &py, &alone) == GRD_OK, "%s", variant);
                const scores batch = {column[0][k], column[1][k], column[2][k], column[3][k]};
                CHECK_SAYS(same_bits(&s, &batch, sizeof s), "%s patch %d alone differs", variant, k);
            }
        }
    }
    free(x), free(y), free(block);
}

static void check_not_finite(const char *variant, int box, int channels, int h, int w) {
    enum { kN = 3 };
    const size_t image = (size_t)(channels * h * w);
    float *x = floats(kN * image), *y = floats(kN * image);
    float clean[4][kN], got[4][kN];
    grd_score_params params = params_for(variant);
    params.window = box;
    make_pair(NOISY, 0.5f, channels * kN, h, w, x, y);
    const grd_view vx = dense_view(x, kN, channels, h, w), vy = dense_view(y, kN, channels, h, w);
    const grd_score_outputs first = {sizeof first, 0, clean[0], clean[1], clean[2], clean[3], NULL};
    const grd_score_outputs second = {sizeof second, 0, got[0], got[1], got[2], got[3], NULL};
    CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &first) == GRD_OK, "%s", variant);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < h * w * channels; i += i % 7 + 1) {
        float *into = (i % 2 ? x : y) + image + i, *other = (i % 2 ? y : x) + image + i;
        const float saved = *into, saved_other = *other;
        *into = bad[i % 3];
        if (i % 5 == 0) *other = bad[i % 3]; /* Inf - Inf */
        CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &second) == GRD_OK, "%s", variant);
        for (int k = 0; k < 4; k++) {
            CHECK_SAYS(isnan(got[k][1]), "%s figure %d is %g, pixel %d of %dx%dx%d", variant, k, got[k][1], i,
                       channels, h, w);
            CHECK_SAYS(got[k][0] == clean[k][0] && got[k][2] == clean[k][2], "%s neighbors of a NaN patch", variant);
        }
        *into = saved, *other = saved_other;
    }
    /* One figure alone must know it too. */
    x[image + (size_t)(h * w / 2)] = NAN;
    for (int k = 0; k < 4; k++) {
        const grd_score_outputs one = {sizeof one, 0, k == 0 ? got[0] : NULL, k == 1 ? got[1] : NULL,
                                       k == 2 ? got[2] : NULL, k == 3 ? got[3] : NULL, NULL};
        memset(got, 0, sizeof got);
        CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &one) == GRD_OK, "%s", variant);
        CHECK_SAYS(isnan(got[k][1]) && got[k][0] == clean[k][0], "%s figure %d alone", variant, k);
    }
    /* Finite values whose squares leave FP32 may score NaN, but never good. */
    const float huge[] = {1e8f, 1e12f, 1e19f, 1e25f, 3e38f};
    for (int i = 0; i < 5; i++) {
        x[image + (size_t)(h * w / 2)] = huge[i];
        CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &second) == GRD_OK, "%s", variant);
        CHECK_SAYS(!(got[0][1] < clean[0][1]) && !(got[1][1] < clean[1][1]), "%s %g scores %g", variant, huge[i],
                   got[0][1]);
    }
    free(x), free(y);
}

static void check_output_choice(const char *variant) {
    enum { kH = 37, kW = 41 };
    float x[kH * kW], y[kH * kW], heat[kH * kW], heat_all[kH * kW];
    make_pair(NOISY, 0.5f, 1, kH, kW, x, y);
    const grd_view vx = dense_view(x, 1, 1, kH, kW), vy = dense_view(y, 1, 1, kH, kW);
    const grd_view vh = dense_view(heat, 1, 1, kH, kW), va = dense_view(heat_all, 1, 1, kH, kW);
    grd_score_params params = params_for(variant);
    for (int local = 0; local <= 33; local += 33) {
        scores all, some;
        params.local_window_px = local;
        grd_score_outputs outputs = outputs_of(&all, &va);
        CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s", variant);
        for (int mask = 0; mask < 32; mask++) {
            memset(&some, 0xA5, sizeof some);
            memset(heat, 0xA5, sizeof heat);
            const scores untouched = some;
            outputs = outputs_of(&some, mask & 16 ? &vh : NULL);
            if (!(mask & 1)) outputs.phi = NULL;
            if (!(mask & 2)) outputs.phi_local = NULL;
            if (!(mask & 4)) outputs.residual_min = NULL;
            if (!(mask & 8)) outputs.residual_max = NULL;
            CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s mask %d", variant, mask);
            scores wanted = untouched;
            if (mask & 1) wanted.phi = all.phi;
            if (mask & 2) wanted.phi_local = all.phi_local;
            if (mask & 4) wanted.residual_min = all.residual_min;
            if (mask & 8) wanted.residual_max = all.residual_max;
            CHECK_SAYS(same_bits(&some, &wanted, sizeof some), "%s mask %d", variant, mask);
            if (mask & 16) CHECK_SAYS(same_bits(heat, heat_all, sizeof heat), "%s mask %d heatmap", variant, mask);
        }
    }
}

/* ------------------------------------------------------------------------------------------- errors */

typedef struct call {
    grd_score_params params;
    grd_view x, x_hat, heatmap;
    grd_score_outputs outputs;
    scores s;
    float pixels[2][20 * 20], heat[20 * 20];
} call;

static void fresh_call(call *c) {
    memset(c, 0, sizeof *c);
    make_pair(NOISY, 0.5f, 1, 20, 20, c->pixels[0], c->pixels[1]);
    c->params = params_for(NULL);
    c->x = dense_view(c->pixels[0], 1, 1, 20, 20);
    c->x_hat = dense_view(c->pixels[1], 1, 1, 20, 20);
    c->heatmap = dense_view(c->heat, 1, 1, 20, 20);
    memset(&c->s, 0xA5, sizeof c->s);
    memset(c->heat, 0xA5, sizeof c->heat);
    c->outputs = outputs_of(&c->s, &c->heatmap);
}

/* The call must give `expected` and, unless that is GRD_OK, leave every output as it was. */
static void expect(call *c, grd_status expected, const char *what) {
    scores before;
    float heat[20 * 20];
    memset(&before, 0xA5, sizeof before);
    memset(heat, 0xA5, sizeof heat);
    const grd_status status = grd_score_patches(&c->params, &c->x, &c->x_hat, &c->outputs);
    CHECK_SAYS(status == expected, "%s: %d for %d", what, status, expected);
    if (status != GRD_OK)
        CHECK_SAYS(same_bits(&before, &c->s, sizeof before) && same_bits(heat, c->heat, sizeof heat),
                   "%s: outputs touched", what);
}

#define EXPECT(status, change)      \
    do {                            \
        call c;                     \
        fresh_call(&c);             \
        change;                     \
        expect(&c, status, #change); \
    } while (0)

static void check_errors(void) {
    call base;
    unsigned char small[64];
    fresh_call(&base);
    CHECK_SAYS(grd_score_patches(&base.params, NULL, &base.x_hat, &base.outputs) == GRD_ERR_ARGUMENT, "x NULL");
    CHECK_SAYS(grd_score_patches(&base.params, &base.x, NULL, &base.outputs) == GRD_ERR_ARGUMENT, "x_hat NULL");
    CHECK_SAYS(grd_score_patches(&base.params, &base.x, &base.x_hat, NULL) == GRD_ERR_ARGUMENT, "outputs NULL");
    CHECK_SAYS(grd_score_patches(NULL, &base.x, &base.x_hat, &base.outputs) == GRD_OK, "params NULL");

    EXPECT(GRD_OK, (void)0);
    EXPECT(GRD_ERR_ARGUMENT, c.x.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.x_hat.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.heatmap.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.params.window = 2);
    EXPECT(GRD_ERR_ARGUMENT, c.params.window = -1);
    EXPECT(GRD_ERR_ARGUMENT, c.params.local_window_px = -1);
    EXPECT(GRD_ERR_ARGUMENT, c.params.reserved = 1);

    EXPECT(GRD_ERR_STRUCT_SIZE, c.params.struct_size = 0);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.params.struct_size = sizeof c.params - 1);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.outputs.struct_size = 0);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.outputs.struct_size = sizeof c.outputs - 1);
    EXPECT(GRD_OK, c.params.struct_size = sizeof c.params + 64); /* a newer caller */
    EXPECT(GRD_OK, c.outputs.struct_size = sizeof c.outputs + 64);

    EXPECT(GRD_ERR_DTYPE, c.x.dtype = GRD_FLOAT16);
    EXPECT(GRD_ERR_DTYPE, c.x_hat.dtype = GRD_UINT8);
    EXPECT(GRD_ERR_DTYPE, c.heatmap.dtype = GRD_UINT16);
    EXPECT(GRD_ERR_DTYPE, c.x.dtype = 0);
    EXPECT(GRD_ERR_SPACE, c.x.space = 1);
    EXPECT(GRD_ERR_SPACE, c.x_hat.space = -1);
    EXPECT(GRD_ERR_SPACE, c.heatmap.space = 1);

    for (int axis = 0; axis < 4; axis++) {
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = 0);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = -1);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = INT64_MAX);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] += 1);
        EXPECT(GRD_ERR_SHAPE, c.heatmap.extent[axis] += 1);
    }
    EXPECT(GRD_ERR_SHAPE, c.x.extent[2] = c.x_hat.extent[2] = c.heatmap.extent[2] = 10);
    EXPECT(GRD_ERR_SHAPE, c.x.extent[3] = c.x_hat.extent[3] = c.heatmap.extent[3] = 10);
    EXPECT(GRD_OK, (c.params.window = GRD_WINDOW_BOX,
                    c.x.extent[2] = c.x_hat.extent[2] = c.heatmap.extent[2] = 10));
    EXPECT(GRD_ERR_SHAPE, c.x.extent[2] = c.x.extent[3] = c.x_hat.extent[2] = c.x_hat.extent[3] = 1 << 23);

    EXPECT(GRD_ERR_STRIDE, c.x.stride_bytes[2] = INT64_MAX / 2);
    EXPECT(GRD_ERR_STRIDE, c.x_hat.stride_bytes[3] = INT64_MIN);
    EXPECT(GRD_ERR_STRIDE, c.heatmap.stride_bytes[2] = 80); /* the others 0: all columns in one place */
    EXPECT(GRD_ERR_STRIDE, (c.heatmap.stride_bytes[2] = 80, c.heatmap.stride_bytes[3] = -2));
    EXPECT(GRD_OK, c.x.stride_bytes[2] = 80); /* inputs may repeat pixels */

    EXPECT(GRD_ERR_VARIANT, c.params.variant = "abacus");
    EXPECT(GRD_ERR_VARIANT, c.params.variant = "");
    EXPECT(GRD_ERR_BUFFER, (c.params.workspace = small, c.params.workspace_bytes = 0));
    EXPECT(GRD_ERR_BUFFER, (c.params.workspace = small, c.params.workspace_bytes = sizeof small));

    grd_score_params params = params_for(NULL);
    CHECK_SAYS(grd_score_workspace_bytes(NULL, 1, 256, 256) == grd_score_workspace_bytes(&params, 1, 256, 256),
               "params NULL are the defaults");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 10, 11) == 0, "too small");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 0, 11, 11) == 0, "no channel");
    CHECK_SAYS(grd_score_workspace_bytes(&params, -1, 11, 11) == 0, "negative");
    CHECK_SAYS(grd_score_workspace_bytes(&params, INT64_MAX, INT64_MAX, INT64_MAX) == 0, "overflow");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, INT64_MAX / 2, 11) == 0, "overflow");
    params.window = GRD_WINDOW_BOX;
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 1, 1) > 0, "box takes one pixel");
    params.struct_size = 3;
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 64, 64) == 0, "struct_size");
}

static void check_variants(void) {
    grd_score_params params = params_for(NULL);
    int count = 0;
    const char *fastest = NULL;
    for (; grd_score_variant_name(count); count++) {
        const char *name = grd_score_variant_name(count);
        const int listed = count < kListedCount && strcmp(name, kListed[count]) == 0;
        CHECK_SAYS(listed, "%s is not variant %d of the list", name, count);
        if (grd_score_variant_supported(name)) fastest = name;
    }
    CHECK_SAYS(count == kListedCount, "%d variants, %d listed", count, (int)kListedCount);
    CHECK_SAYS(grd_score_variant_name(-1) == NULL && grd_score_variant_name(count + 1) == NULL, "past the end");
    CHECK_SAYS(strcmp(grd_score_variant_name(0), "scalar") == 0, "scalar comes first");
    CHECK_SAYS(grd_score_variant_supported("scalar") == 1, "scalar always runs");
    CHECK_SAYS(grd_score_variant_supported("abacus") == 0 && grd_score_variant_supported(NULL) == 0, "unknown");

    unsetenv("GRD_FORCE_VARIANT");
    CHECK_SAYS(grd_score_variant_active(NULL) == fastest, "the fastest is the default");
    setenv("GRD_FORCE_VARIANT", "", 1);
    CHECK_SAYS(grd_score_variant_active(NULL) == fastest, "empty forces nothing");
    setenv("GRD_FORCE_VARIANT", "scalar", 1);
    CHECK_SAYS(strcmp(grd_score_variant_active(NULL), "scalar") == 0, "environment");
    params.variant = fastest;
    CHECK_SAYS(grd_score_variant_active(&params) == fastest, "params come before the environment");
    setenv("GRD_FORCE_VARIANT", "abacus", 1);
    CHECK_SAYS(grd_score_variant_active(NULL) == NULL, "unknown in the environment");
    EXPECT(GRD_ERR_VARIANT, c.params.variant = NULL);
    EXPECT(GRD_OK, c.params.variant = "scalar");

    /* What the environment forces is what runs: the same bits as when the call forces it. */
    for (int v = 0; v < count; v++) {
        call by_call, by_environment;
        const char *name = grd_score_variant_name(v);
        if (!grd_score_variant_supported(name)) {
            EXPECT(GRD_ERR_VARIANT, c.params.variant = name);
            continue;
        }
        fresh_call(&by_call);
        by_environment = by_call;
        by_environment.x.data = by_environment.pixels[0], by_environment.x_hat.data = by_environment.pixels[1];
        by_environment.heatmap.data = by_environment.heat;
        by_environment.outputs = outputs_of(&by_environment.s, &by_environment.heatmap);
        by_call.params.variant = name;
        setenv("GRD_FORCE_VARIANT", name, 1);
        expect(&by_call, GRD_OK, name);
        expect(&by_environment, GRD_OK, name);
        CHECK_SAYS(same_bits(&by_call.s, &by_environment.s, sizeof by_call.s), "%s forced twice", name);
    }
    unsetenv("GRD_FORCE_VARIANT");
    params.struct_size = 0;
    CHECK_SAYS(grd_score_variant_active(&params) == NULL, "struct_size");
}

int main(void) {
    unsetenv("GRD_FORCE_VARIANT");
    check_variants();
    check_errors();
    for (int v = 0; grd_score_variant_name(v); v++) {
        static const int sizes[][3] = {{1, 11, 11}, {3, 11, 17}, {1, 18, 65}, {2, 33, 31}, {3, 40, 75}};
        const char *name = grd_score_variant_name(v);
        if (!grd_score_variant_supported(name)) continue;
        check_output_choice(name);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            check_layouts(name, sizes[i][0], sizes[i][1], sizes[i][2]);
            for (int box = 0; box < 2; box++) {
                check_workspace_and_batch(name, box, sizes[i][0], sizes[i][1], sizes[i][2]);
                if (i < 4) check_not_finite(name, box, sizes[i][0], sizes[i][1], sizes[i][2]);
            }
        }
    }
    check_accuracy();

    printf("%-18s", "worst error");
    for (int v = 0; grd_score_variant_name(v); v++) printf("%22s", grd_score_variant_name(v));
    printf("\n%-18s", "");
    for (int v = 0; grd_score_variant_name(v); v++) printf("%12s%10s", "phi", "phi_local");
    for (int family = 0; family < FAMILIES; family++) {
        printf("\n%-18s", kFamilyNames[family]);
        for (int v = 0; grd_score_variant_name(v); v++)
            printf("%12.1e%10.1e", worst_phi[v][family], worst_local[v][family]);
    }
    printf("\n");
    return checks_report();
}
