/* test_score_map.c - bundles whose graph scores patches itself, against a plain definition.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Bundles are those of bundle_writer.h with another head; what their engines yield is in score_map_case.h. Built twice:
 * with a backend for patches, and with one that does whole frames, which must not be asked to. */
#define _XOPEN_SOURCE 700
#include "bundle_writer.h"

#include <math.h>

#include "check.h"
#include "grd_edge.h"
#include "score_map_case.h"

enum { H = 50, W = 61, MOST = 32, SIDE = 17, GUARD = 16, SCALED = 64 };

#define HEAD "\"head\": \"reconstruction\"", "\"head\": \"score_map\""
#define TILES "\"scale_px\": null, \"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12"
#define OVERLAP "\"scale_px\": 31, \"patch_h\": 13, \"patch_w\": 17, \"stride_y\": 7, \"stride_x\": 11"

static uint8_t pixels[H * W * 3], mask[H * W];
static float heat[GUARD + SCALED * SCALED + GUARD];

/* What must come out of a frame. */
typedef struct expected {
    grd_grid grid;
    int32_t count;
    grd_patch_result patches[MOST];
    float heat[SCALED * SCALED];
} expected;

static int of_interest(const grd_grid *grid, int64_t h, int64_t w, int32_t y, int32_t x) {
    if (y >= grid->scaled_h || x >= grid->scaled_w) return 0;
    return mask[(2 * y + 1) * h / (2 * grid->scaled_h) * w + (2 * x + 1) * w / (2 * grid->scaled_w)] != 0;
}

static float larger(float a, float b) { return isnan(a) || isnan(b) ? NAN : a > b ? a : b; }

/* gain as the engine's; nan: number of the inspected patch whose last value is NaN, -1: none. */
static void expect(const grd_cut_params *cut, const grd_view *frame, int masked, float gain, int nan, expected *out) {
    static float x[MOST * 3 * SIDE * SIDE], y[(SIDE + 1) * SIDE];
    static double sums[SCALED * SCALED], counts[SCALED * SCALED];
    const int64_t h = frame->extent[2], w = frame->extent[3], ph = cut->patch_h, pw = cut->patch_w;
    int cuts_a_patch = 0;
    memset(out, 0, sizeof *out);
    memset(sums, 0, sizeof sums);
    memset(counts, 0, sizeof counts);
    out->grid.struct_size = sizeof out->grid;
    CHECK(grd_cut_grid(cut, h, w, &out->grid) == GRD_OK && out->grid.count <= MOST);
    const grd_view all = {x, GRD_FLOAT32, GRD_SPACE_HOST, {out->grid.count, cut->channels, ph, pw}, {0, 0, 0, 0}};
    CHECK(grd_cut_frame(cut, frame, &all, NULL) == GRD_OK);
    for (int pass = 0; pass < 2; ++pass) { /* the first tells what the mask leaves out */
        out->count = 0;
        for (int32_t i = 0; i < out->grid.count; ++i) {
            grd_patch_result *patch = &out->patches[out->count];
            int32_t top, left;
            int64_t inside = 0;
            float inside_max = -INFINITY, largest = -INFINITY;
            CHECK(grd_cut_position(cut, &out->grid, i, &top, &left) == GRD_OK);
            write_score_map(x + i * cut->channels * ph * pw, y, ph, pw, gain);
            if (out->count == nan) y[(1 + ph) * pw - 1] = NAN;
            for (int64_t p = 0; p < ph * pw; ++p) {
                const int32_t at_y = top + (int32_t)(p / pw), at_x = left + (int32_t)(p % pw);
                const int counts_here = !masked || of_interest(&out->grid, h, w, at_y, at_x);
                inside += counts_here;
                largest = larger(largest, y[pw + p]);
                if (counts_here) inside_max = larger(inside_max, y[pw + p]);
            }
            if (inside == 0) continue;
            cuts_a_patch |= inside < ph * pw;
            ++out->count;
            if (pass == 0) continue;
            patch->y_px = top, patch->x_px = left;
            patch->phi = cuts_a_patch ? inside_max : y[0];
            patch->phi_local = cuts_a_patch ? inside_max : largest;
            for (int64_t p = 0; p < ph * pw; ++p) {
                const int32_t at_y = top + (int32_t)(p / pw), at_x = left + (int32_t)(p % pw);
                if (at_y >= out->grid.scaled_h || at_x >= out->grid.scaled_w) continue; /* padding */
                const int counts_here = !masked || of_interest(&out->grid, h, w, at_y, at_x);
                sums[at_y * SCALED + at_x] += counts_here ? y[pw + p] : 0;
                counts[at_y * SCALED + at_x] += 1;
            }
        }
    }
    for (int i = 0; i < SCALED * SCALED; ++i) out->heat[i] = counts[i] > 0 ? (float)(sums[i] / counts[i]) : 0;
}

static int same(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

static grd_inspector *opened(grd_bundle **bundle, int batch_limit) {
    grd_inspector_params params = {0};
    grd_inspector *inspector;
    params.struct_size = sizeof params;
    params.batch_limit = batch_limit;
    params.backend_dir = getenv("GRD_TEST_BACKENDS");
    CHECK_THAT(grd_bundle_open(bundle_path(), bundle) == GRD_OK, ("%s", grd_bundle_message(*bundle)));
    const grd_status status = grd_inspector_open(*bundle, &params, &inspector);
    CHECK_THAT(status == GRD_OK, ("%s", grd_inspector_message(inspector)));
    return inspector;
}

static void write_score_map_bundle(const char *cut, int channels, const char *engine, const char *decides) {
    char geometry[256], deciding[64];
    snprintf(geometry, sizeof geometry, "%s,\n  \"channels\": %d", cut, channels);
    snprintf(deciding, sizeof deciding, "\"decides\": \"%s\"", decides);
    char *text = replaced(kBundleJson, HEAD);
    text = replace(text, TILES ",\n  \"channels\": 1", geometry);
    text = replace(text, "\"error\"", "\"reflect\"");
    text = replace(text, "\"decides\": \"phi\"", deciding);
    write_bundle_of(text, engine, NULL, NULL, kDecisionJson, "0.0625", "0.25");
    free(text);
}

/* The frame through a bundle, in batches of every kind; nothing is written that was not asked for. */
static void check_frame(const char *what, const char *engine, const char *cut, const char *decides,
                        const grd_view *frame, int masked, float gain, int nan) {
    static const int limits[] = {1, 5, 32};
    static expected want;
    const int local = strcmp(decides, "phi_local") == 0;
    write_score_map_bundle(cut, (int)frame->extent[1], engine, decides);
    for (size_t l = 0; l < sizeof limits / sizeof limits[0]; ++l) {
        grd_bundle *bundle;
        grd_inspector *inspector = opened(&bundle, limits[l]);
        grd_bundle_info info = {0};
        grd_patch_result patches[MOST];
        grd_result result = {0};
        info.struct_size = sizeof info;
        CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK && info.head == GRD_HEAD_SCORE_MAP);
        expect(&info.cut, frame, masked, gain, nan, &want);
        const grd_view roi = grd_view_of_frame(mask, GRD_UINT8, frame->extent[2], frame->extent[3], 1, 0);
        grd_view heat_view = {heat + GUARD, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, want.grid.scaled_h, want.grid.scaled_w}, {0}};
        heat_view.stride_bytes[2] = SCALED * sizeof *heat, heat_view.stride_bytes[3] = sizeof *heat;
        for (size_t i = 0; i < sizeof heat / sizeof heat[0]; ++i) heat[i] = -7;
        memset(patches, 0x5a, sizeof patches);
        result.struct_size = sizeof result;
        result.patches = patches;
        result.patch_capacity = MOST;
        result.roi = masked ? &roi : NULL;
        for (int round = 0; round < 2 && nan < 0; ++round) { /* with and without, the scores are the same */
            result.heatmap = round == 0 ? NULL : &heat_view;
            CHECK_THAT(grd_inspector_inspect(inspector, frame, &result) == GRD_OK, ("%s", grd_inspector_message(inspector)));
        }
        result.heatmap = &heat_view;
        if (nan >= 0) /* the engine counts patches from its opening */
            CHECK_THAT(grd_inspector_inspect(inspector, frame, &result) == GRD_OK, ("%s", grd_inspector_message(inspector)));
        int wrong = 0, defective = 0, is_nan = 0;
        float top = -INFINITY;
        for (int32_t i = 0; i < want.count; ++i) {
            const grd_patch_result *got = &patches[i], *patch = &want.patches[i];
            const float deciding = local ? patch->phi_local : patch->phi;
            wrong += got->y_px != patch->y_px || got->x_px != patch->x_px || got->region != 0;
            wrong += !same(got->phi, patch->phi) || !same(got->phi_local, patch->phi_local);
            wrong += got->decision != (deciding < 0.25f ? GRD_GOOD : GRD_DEFECTIVE);
            defective += !(deciding < 0.25f);
            is_nan |= isnan(deciding);
            if (deciding > top) top = deciding;
        }
        for (int y = 0; y < want.grid.scaled_h; ++y)
            for (int x = 0; x < SCALED; ++x)
                wrong += !same(heat[GUARD + y * SCALED + x], x < want.grid.scaled_w ? want.heat[y * SCALED + x] : -7);
        for (int i = 0; i < GUARD; ++i) wrong += heat[i] != -7;
        CHECK_THAT(wrong == 0 && result.patch_count == want.count, ("%s, batches of %d: %d values", what, limits[l], wrong));
        CHECK(result.defective_count == defective && result.decision == (defective > 0 ? GRD_DEFECTIVE : GRD_GOOD));
        CHECK(result.threshold == 0.25f && same(result.score, is_nan ? NAN : top));
        CHECK(result.cut_ms > 0); /* by the library */
        grd_inspector_close(inspector);
        grd_bundle_close(bundle);
    }
}

static void set_mask(int kind, int64_t h, int64_t w) {
    for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x)
            mask[y * w + x] = kind == 0   ? 3                                 /* everything */
                              : kind == 1 ? (y / 12 + x / 12) % 2 == 0        /* tiles as they are */
                              : kind == 2 ? (y / 5 + x / 9) % 3 == 0          /* parts of all */
                                          : y / 2 == 10 && x / 2 == 15;       /* hardly anything */
}

static void check_frames(void) {
    static const char *const masks[] = {"no mask", "whole mask", "tiles", "parts", "hardly anything"};
    for (int i = 0; i < H * W * 3; ++i) pixels[i] = (uint8_t)(i * 37 + i / 7 * 11);
    for (int kind = -1; kind < 4; ++kind) {
        const int masked = kind >= 0;
        const grd_view tiles = grd_view_of_frame(pixels, GRD_UINT8, 24, 36, 1, 0);
        set_mask(kind, 24, 36);
        check_frame(masks[kind + 1], "gain=0.5", TILES, "phi", &tiles, masked, 0.5f, -1);
        check_frame(masks[kind + 1], "nan px=1", TILES, "phi", &tiles, masked, 1, 1);
        check_frame(masks[kind + 1], "nan px=1", TILES, "phi_local", &tiles, masked, 1, 1);
        for (int c = 1; c <= 3; c += 2) {
            const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, H, W, c, 0);
            set_mask(kind, H, W);
            check_frame(masks[kind + 1], "gain=0.5", OVERLAP, "phi", &frame, masked, 0.5f, -1);
            check_frame(masks[kind + 1], "gain=0.1", OVERLAP, "phi_local", &frame, masked, 0.1f, -1);
        }
        const grd_view small = grd_view_of_frame(pixels, GRD_UINT8, 7, 9, 1, 0); /* grown by reflection */
        set_mask(kind < 3 ? kind : 0, 7, 9);
        check_frame("small", "gain=-0.5", TILES, "phi_local", &small, masked, -0.5f, -1);
    }
}

/* Reconstructions cannot be had; the inspector goes on. */
static void check_refusals(void) {
    grd_bundle *bundle;
    float values[24 * 36];
    grd_view view = {values, GRD_FLOAT32, GRD_SPACE_HOST, {6, 1, 12, 12}, {0, 0, 0, 0}};
    const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, 24, 36, 1, 0);
    write_score_map_bundle(TILES, 1, "gain=0.5", "phi");
    grd_inspector *inspector = opened(&bundle, 4);
    grd_result result = {0};
    result.struct_size = sizeof result;
    result.decision = -5;
    result.x_hat = &view;
    CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_ERR_ARGUMENT && result.decision == -5);
    CHECK(strstr(grd_inspector_message(inspector), "no reconstructions") != NULL);
    result.x_hat = NULL;
    CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK && result.patch_count == 6);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

int main(void) {
    if (getenv("GRD_TEST_BACKENDS") == NULL) {
        printf("GRD_TEST_BACKENDS is not set; run this test with ctest\n");
        return 1;
    }
    check_frames();
    check_refusals();
    remove_tree(scratch_folder());
    return checks_report();
}
