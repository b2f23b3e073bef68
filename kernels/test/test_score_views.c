/* test_score_views.c - scores do not depend on layout, alignment, batch, workspace or the choice of outputs, nor on
 * the neighbors of a patch that is not finite; nothing outside the outputs is written.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200112L /* unsetenv */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"
#include "score_cases.h"

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
    grd_score_outputs outputs = {sizeof outputs, 0, columns[0], columns[1], columns[2], columns[3], &vh, NULL};
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
            const grd_score_outputs outputs = {sizeof outputs, 0, column[0], column[1], column[2], column[3], NULL, NULL};
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
    const grd_score_outputs first = {sizeof first, 0, clean[0], clean[1], clean[2], clean[3], NULL, NULL};
    const grd_score_outputs second = {sizeof second, 0, got[0], got[1], got[2], got[3], NULL, NULL};
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
                                       k == 2 ? got[2] : NULL, k == 3 ? got[3] : NULL, NULL, NULL};
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

static void check_output_choice(const char *variant, int h, int w) {
    const size_t pixels = (size_t)(h * w), bytes = pixels * sizeof(float);
    float *x = floats(pixels), *y = floats(pixels), *heat = floats(pixels), *heat_all = floats(pixels);
    make_pair(NOISY, 0.5f, 1, h, w, x, y);
    const grd_view vx = dense_view(x, 1, 1, h, w), vy = dense_view(y, 1, 1, h, w);
    const grd_view vh = dense_view(heat, 1, 1, h, w), va = dense_view(heat_all, 1, 1, h, w);
    grd_score_params params = params_for(variant);
    for (int local = 0; local <= 33; local += 33) {
        scores all, some;
        params.local_window_px = local;
        grd_score_outputs outputs = outputs_of(&all, &va);
        CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s", variant);
        for (int mask = 0; mask < 32; mask++) {
            memset(&some, 0xA5, sizeof some);
            memset(heat, 0xA5, bytes);
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
            if (mask & 16) CHECK_SAYS(same_bits(heat, heat_all, bytes), "%s mask %d heatmap", variant, mask);
        }
    }
    free(x), free(y), free(heat), free(heat_all);
}

int main(void) {
    unsetenv("GRD_FORCE_VARIANT");
    for (int v = 0; grd_variant_name(v); v++) {
        static const int sizes[][3] = {{1, 11, 11}, {3, 11, 17}, {1, 18, 65},  {1, 13, 117},
                                       {2, 33, 31}, {3, 40, 75}, {3, 19, 161}, {1, 20, 256}};
        const char *name = grd_variant_name(v);
        if (!grd_variant_supported(name)) continue;
        check_output_choice(name, 37, 41);
        check_output_choice(name, 27, 131);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            check_layouts(name, sizes[i][0], sizes[i][1], sizes[i][2]);
            for (int box = 0; box < 2; box++) {
                check_workspace_and_batch(name, box, sizes[i][0], sizes[i][1], sizes[i][2]);
                if (i < 5) check_not_finite(name, box, sizes[i][0], sizes[i][1], sizes[i][2]);
            }
        }
    }
    return checks_report();
}
