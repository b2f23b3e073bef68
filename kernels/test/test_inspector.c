/* test_inspector.c - frames to decisions, with a backend that needs no engine.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Bundles are those of bundle_writer.h: patches of 12x12, threshold 1/16. The engine "gain=0.5" halves patches, so
 * a black patch scores 0 and a bright one scores high. */
#define _XOPEN_SOURCE 700
#include "bundle_writer.h"

#include <math.h>

#include "check.h"
#include "grd_edge.h"

enum { PATCH = 12, ROWS = 2, COLS = 3, H = ROWS * PATCH, W = COLS * PATCH, COUNT = ROWS * COLS, GUARD = 16 };

static uint8_t frame_pixels[H * W * 3];

/* A black frame with texture in the cells whose bit is set. */
static grd_view make_frame(unsigned cells, int64_t c) {
    for (int64_t i = 0; i < H * W * c; ++i) {
        const int64_t y = i / c / W, x = i / c % W;
        const int textured = cells >> (y / PATCH * COLS + x / PATCH) & 1;
        frame_pixels[i] = (uint8_t)(textured ? 100 + (y * 31 + x * 17) % 150 : 0);
    }
    return grd_view_of_frame(frame_pixels, GRD_UINT8, H, W, c, 0);
}

static uint8_t mask_pixels[H * W];

/* A mask of the cells whose bit is set. */
static grd_view make_mask(unsigned cells) {
    for (int i = 0; i < H * W; ++i) mask_pixels[i] = cells >> (i / W / PATCH * COLS + i % W / PATCH) & 1 ? 200 : 0;
    return grd_view_of_frame(mask_pixels, GRD_UINT8, H, W, 1, 0);
}

static grd_inspector_params params_of(int batch_limit) {
    grd_inspector_params params = {0};
    params.struct_size = sizeof params;
    params.batch_limit = batch_limit;
    params.backend_dir = getenv("GRD_TEST_BACKENDS");
    return params;
}

/* Opens the scratch bundle and an inspector on it; both must be closed, whatever comes back. */
static grd_status open_both(const grd_inspector_params *params, grd_bundle **bundle, grd_inspector **inspector) {
    const grd_status status = grd_bundle_open(bundle_path(), bundle);
    CHECK_THAT(status == GRD_OK, ("%s", grd_bundle_message(*bundle)));
    *inspector = NULL;
    return grd_inspector_open(*bundle, params, inspector);
}

static grd_status inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result,
                          grd_patch_result *patches) {
    memset(result, 0, sizeof *result);
    result->struct_size = sizeof *result;
    result->patches = patches;
    result->patch_capacity = patches != NULL ? COUNT : 0;
    return grd_inspector_inspect(inspector, frame, result);
}

/* One frame through a bundle with this engine and this k: decision, defective patches, and how the score ends. */
static void check_decision(const char *engine, const char *k, unsigned cells, int decision, int defective, int nan) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_result result;
    grd_patch_result patches[COUNT];
    float sorted[COUNT];
    const grd_view frame = make_frame(cells, 1);
    write_bundle(engine, NULL, NULL, kDecisionJson, "\"k\": 1", k);
    const grd_inspector_params params = params_of(4);
    const grd_status opened = open_both(&params, &bundle, &inspector);
    CHECK_THAT(opened == GRD_OK, ("%s", grd_inspector_message(inspector)));
    const grd_status status = inspect(inspector, &frame, &result, patches);
    CHECK_THAT(status == GRD_OK, ("%s", grd_inspector_message(inspector)));
    CHECK_THAT(
        result.decision == decision && result.defective_count == defective && result.patch_count == COUNT,
        ("%s %s cells %x: decision %d of %d defective", engine, k, cells, result.decision, result.defective_count));
    CHECK(result.threshold == 0.0625f);
    CHECK(result.cut_ms >= 0 && result.infer_ms >= 0 && result.score_ms >= 0 &&
          result.total_ms >= result.cut_ms + result.infer_ms + result.score_ms);
    int counted = 0;
    for (int i = 0; i < COUNT; ++i) {
        CHECK(patches[i].y_px == i / COLS * PATCH && patches[i].x_px == i % COLS * PATCH && patches[i].region == 0);
        CHECK(patches[i].decision == (patches[i].phi < 0.0625f ? GRD_GOOD : GRD_DEFECTIVE));
        counted += patches[i].decision == GRD_DEFECTIVE;
        sorted[i] = patches[i].phi;
        for (int j = i; j > 0 && sorted[j] > sorted[j - 1]; --j) {
            const float swapped = sorted[j];
            sorted[j] = sorted[j - 1];
            sorted[j - 1] = swapped;
        }
    }
    CHECK(counted == defective);
    if (nan)
        CHECK(isnan(result.score));
    else
        CHECK(result.score == sorted[atoi(k + 5) - 1]);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

static void check_decisions(void) {
    check_decision("gain=0.5", "\"k\": 1", 0x00, GRD_GOOD, 0, 0);
    check_decision("gain=0.5", "\"k\": 1", 0x10, GRD_DEFECTIVE, 1, 0);
    check_decision("gain=0.5", "\"k\": 2", 0x10, GRD_GOOD, 1, 0);
    check_decision("gain=0.5", "\"k\": 2", 0x11, GRD_DEFECTIVE, 2, 0);
    check_decision("gain=0.5", "\"k\": 6", 0x3f, GRD_DEFECTIVE, 6, 0);
    check_decision("gain=0.5", "\"k\": 6", 0x1f, GRD_GOOD, 5, 0);
    check_decision("gain=1.0", "\"k\": 1", 0x3f, GRD_GOOD, 0, 0);
    /* NaN is never good; a NaN patch counts as one defective patch. */
    check_decision("nan=3", "\"k\": 1", 0x00, GRD_DEFECTIVE, 1, 1);
    check_decision("nan=3", "\"k\": 2", 0x00, GRD_GOOD, 1, 1);
    check_decision("nan=3", "\"k\": 2", 0x01, GRD_GOOD, 1, 1);
    check_decision("nan", "\"k\": 6", 0x00, GRD_DEFECTIVE, 6, 1);
}

/* Scores depend on neither batches nor threads; heatmap and x_hat are what the engine makes them; nothing else is written. */
static void check_outputs(void) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_result result;
    grd_patch_result patches[COUNT + 1], first[COUNT];
    float heat[GUARD + H * (W + 3) + GUARD], x_hat[GUARD + COUNT * PATCH * PATCH + GUARD];
    const grd_view frame = make_frame(0x2a, 1);
    static const int limits[] = {1, 2, 4, 5, 6, 16, 1024}, threads[] = {1, 2, 3, 8, 9, 64, 0};
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    for (size_t l = 0; l < sizeof limits / sizeof limits[0]; ++l) {
        grd_inspector_params params = params_of(limits[l]);
        params.threads = threads[l];
        CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
        CHECK(strcmp(grd_inspector_engine_version(inspector), "identity 1") == 0);
        memset(patches, 0x5a, sizeof patches);
        for (size_t i = 0; i < sizeof heat / sizeof heat[0]; ++i) heat[i] = -7;
        for (size_t i = 0; i < sizeof x_hat / sizeof x_hat[0]; ++i) x_hat[i] = -7;
        grd_view heat_view = {heat + GUARD, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, H, W}, {0, 0, (W + 3) * 4, 4}};
        grd_view x_hat_view = {x_hat + GUARD, GRD_FLOAT32, GRD_SPACE_HOST, {COUNT, 1, PATCH, PATCH}, {0, 0, 0, 0}};
        memset(&result, 0, sizeof result);
        result.struct_size = sizeof result;
        result.patches = patches;
        result.patch_capacity = COUNT;
        result.heatmap = &heat_view;
        result.x_hat = &x_hat_view;
        CHECK_THAT(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK,
                   ("%s", grd_inspector_message(inspector)));
        int wrong = 0;
        for (int y = 0; y < H; ++y)
            for (int x = 0; x < W + 3; ++x) {
                const float want = x < W ? (float)frame_pixels[y * W + x] / 255.0f : -7;
                const float got = heat[GUARD + y * (W + 3) + x];
                const int patch = y / PATCH * COLS + x / PATCH, at = (y % PATCH) * PATCH + x % PATCH;
                wrong += x < W ? fabsf(got - 0.5f * want) > 1e-6f : got != want;
                wrong += x < W && x_hat[GUARD + patch * PATCH * PATCH + at] != 0.5f * want;
            }
        for (int i = 0; i < GUARD; ++i)
            wrong += heat[i] != -7 || heat[GUARD + H * (W + 3) + i] != -7 || x_hat[i] != -7 ||
                     x_hat[GUARD + COUNT * PATCH * PATCH + i] != -7;
        for (size_t i = 0; i < sizeof patches[0]; ++i) wrong += ((unsigned char *)&patches[COUNT])[i] != 0x5a;
        CHECK_THAT(wrong == 0, ("batch limit %d, %d threads: %d values", limits[l], threads[l], wrong));
        if (l == 0) memcpy(first, patches, sizeof first);
        CHECK(memcmp(first, patches, sizeof first) == 0);
        grd_inspector_close(inspector);
        grd_bundle_close(bundle);
    }
}

/* A mask and regions: what is inspected, in which order, by which threshold; nothing else is written. */
static void check_masks_and_regions(void) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_result result;
    grd_patch_result all[COUNT], patches[COUNT];
    float heat[H * W], x_hat[COUNT * PATCH * PATCH];
    grd_view heat_view = {heat, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, H, W}, {0, 0, 0, 0}};
    grd_view x_hat_view = {x_hat, GRD_FLOAT32, GRD_SPACE_HOST, {COUNT, 1, PATCH, PATCH}, {0, 0, 0, 0}};
    grd_inspector_params params = params_of(2);
    const grd_view frame = make_frame(0x3f, 1);
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, all) == GRD_OK);
    for (unsigned cells = 1; cells < 0x40; ++cells) {
        grd_view roi = make_mask(cells);
        memset(&result, 0, sizeof result);
        memset(patches, 0x5a, sizeof patches);
        for (size_t i = 0; i < sizeof x_hat / sizeof x_hat[0]; ++i) x_hat[i] = -7;
        result.struct_size = sizeof result;
        result.patches = patches;
        result.patch_capacity = COUNT;
        result.heatmap = &heat_view;
        result.x_hat = &x_hat_view;
        result.roi = &roi;
        CHECK_THAT(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK,
                   ("%s", grd_inspector_message(inspector)));
        int32_t at = 0;
        int wrong = 0;
        for (int i = 0; i < COUNT; ++i) {
            const int wanted = cells >> i & 1;
            if (wanted) wrong += memcmp(&patches[at++], &all[i], sizeof all[i]) != 0;
            for (int p = 0; p < PATCH * PATCH; ++p) {
                const int y = i / COLS * PATCH + p / PATCH, x = i % COLS * PATCH + p % PATCH;
                const float value = (float)frame_pixels[y * W + x] / 255.0f;
                wrong += fabsf(heat[y * W + x] - (wanted ? 0.5f * value : 0)) > 1e-6f;
                wrong += wanted && x_hat[(at - 1) * PATCH * PATCH + p] != 0.5f * value;
            }
        }
        for (int32_t i = at * PATCH * PATCH; i < COUNT * PATCH * PATCH; ++i) wrong += x_hat[i] != -7;
        CHECK_THAT(wrong == 0 && result.patch_count == at, ("mask %x: %d values, %d patches", cells, wrong, (int)at));
        CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && memcmp(patches, all, sizeof all) == 0);
    }
    /* A mask of any strides; pixels of no interest count for nothing, whatever they are. */
    uint8_t wide[H * W * 2];
    memset(wide, 0, sizeof wide);
    for (int y = 2; y < 9; ++y)
        for (int x = 3; x < 8; ++x) wide[(y * W + x) * 2] = 1;
    grd_view roi = {wide, GRD_UINT8, GRD_SPACE_HOST, {1, 1, H, W}, {0, 0, W * 2, 2}};
    float before = 0;
    for (int round = 0; round < 2; ++round) {
        memset(&result, 0, sizeof result);
        result.struct_size = sizeof result;
        result.patches = patches;
        result.patch_capacity = 1;
        result.roi = &roi;
        CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK && result.patch_count == 1);
        CHECK(patches[0].phi > 0 && (round == 0 || patches[0].phi == before));
        before = patches[0].phi;
        frame_pixels[0] ^= 0xff, frame_pixels[10 * W + 9] ^= 0xff;
    }
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    /* The bundle's own mask of 3x2 px: frames of another size are refused, unless the caller brings a mask. */
    char digits[65], listed[256];
    digest_of("P5\n3 2\n255\n\1\1\1\1\1\1", 17, digits);
    snprintf(listed, sizeof listed,
             "\"roi\": \"roi.pgm\", \"files\": {\"roi.pgm\": {\"sha256\": \"%s\", \"bytes\": 17}, ", digits);
    write_bundle("gain=0.5", "\"files\": {", listed, NULL, NULL, NULL);
    write_file(bundle_path(), "roi.pgm", "P5\n3 2\n255\n\1\1\1\1\1\1", 17);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_ERR_FRAME_SIZE);
    CHECK(strstr(grd_inspector_message(inspector), "24x36") != NULL && strstr(grd_inspector_message(inspector), "2x3"));
    roi = make_mask(1);
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    result.roi = &roi;
    CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK && result.patch_count == 1);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    /* Regions: the middle column belongs to none, the rest to the first that holds its center. */
    static const char regions[] =
        "\"frame_px\": [24, 36], "
        "\"regions\": [{\"name\": \"left\", \"threshold\": 0.0625, \"areas\": [[0, 0, 24, 18]]},"
        " {\"name\": \"corner\", \"threshold\": 2, \"areas\": [[18, 30, 1, 1], [0, 0, 7, 7]]}]";
    static const int expected[3][2] = {{0, 0}, {3, 0}, {5, 1}};
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, "\"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625}]",
                 regions);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && result.patch_count == 3);
    for (int i = 0; i < 3; ++i)
        CHECK(patches[i].y_px == all[expected[i][0]].y_px && patches[i].x_px == all[expected[i][0]].x_px &&
              patches[i].region == expected[i][1] && patches[i].decision == (i < 2 ? GRD_DEFECTIVE : GRD_GOOD));
    const float larger = patches[0].phi > patches[1].phi ? patches[0].phi : patches[1].phi;
    CHECK(result.threshold == 0 && result.score == larger - 0.0625f && result.defective_count == 2);
    const grd_view smaller = grd_view_of_frame(frame_pixels, GRD_UINT8, H, W - 1, 1, W);
    CHECK(inspect(inspector, &smaller, &result, patches) == GRD_ERR_FRAME_SIZE);
    roi = make_mask(0x12); /* the middle column, which is in no region */
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    result.roi = &roi;
    CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_ERR_FRAME_SIZE);
    CHECK(strstr(grd_inspector_message(inspector), "no patch to inspect") != NULL);
    grd_inspector_close(inspector);
    params.undecided = 1; /* thresholds and regions left out */
    CHECK(grd_inspector_open(bundle, &params, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && result.patch_count == COUNT);
    CHECK(result.decision == GRD_UNDECIDED && isnan(result.threshold) && patches[5].region == 0);
    CHECK(inspect(inspector, &smaller, &result, patches) == GRD_OK);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

/* A backend that does whole frames gives the very bits of one that does not, whatever is asked. */
static void check_frames_against_host(void) {
    enum { KINDS = 6, LARGEST = 50 * 61 };
    static const char *const backends[] = {"identity", "first_release", "frames"};
    static const char *const cuts[] = {
        "\"scale_px\": null, \"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12",
        "\"scale_px\": 31, \"patch_h\": 13, \"patch_w\": 17, \"stride_y\": 7, \"stride_x\": 11",
    };
    static uint8_t pixels[LARGEST * 3], mask[LARGEST];
    static float heat[3][LARGEST], x_hat[3][100 * 13 * 17];
    static grd_patch_result patches[3][100];
    grd_result results[3];
    for (int i = 0; i < LARGEST * 3; ++i) pixels[i] = (uint8_t)(i * 37 + i / 7 * 11);
    for (int i = 0; i < LARGEST; ++i) mask[i] = (i / 61 / 5 + i % 61 / 9) % 3 == 0;
    for (int kind = 0; kind < KINDS; ++kind) {
        const int cut = kind % 2, c = kind == 3 ? 3 : 1, masked = kind >= 2;
        const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, 50, 61, c, 0);
        const grd_view roi = grd_view_of_frame(mask, GRD_UINT8, 50, 61, 1, 0);
        for (int b = 0; b < 3; ++b) {
            grd_bundle *bundle;
            grd_inspector *inspector;
            grd_inspector_params params = params_of(3);
            grd_grid grid = {0};
            char named[256], geometry[256];
            params.undecided = kind == 4;
            snprintf(named, sizeof named, "\"backend\": \"%s\"", backends[b]);
            snprintf(geometry, sizeof geometry, "%s, \"channels\": %d", cuts[cut], c);
            char *text = replaced(kBundleJson, "\"backend\": \"" TEST_BACKEND "\"", named);
            text = replace(text, "\"scale_px\": null, \"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, "
                                 "\"stride_x\": 12,\n  \"channels\": 1", geometry);
            write_bundle_of(text, kind == 5 ? "nan=3" : "gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
            free(text);
            const grd_status opened = open_both(&params, &bundle, &inspector);
            CHECK_THAT(opened == GRD_OK, ("%s", grd_inspector_message(inspector)));
            grid.struct_size = sizeof grid;
            CHECK(grd_inspector_grid(inspector, 50, 61, &grid) == GRD_OK && grid.count <= 100);
            const int64_t ph = cut ? 13 : 12, pw = cut ? 17 : 12;
            grd_view heat_view = {heat[b], GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, grid.scaled_h, grid.scaled_w}, {0}};
            grd_view x_hat_view = {x_hat[b], GRD_FLOAT32, GRD_SPACE_HOST, {grid.count, c, ph, pw}, {0}};
            memset(x_hat[b], 0x5a, sizeof x_hat[b]);
            memset(heat[b], 0x5a, sizeof heat[b]);
            memset(patches[b], 0x5a, sizeof patches[b]);
            memset(&results[b], 0, sizeof results[b]);
            results[b].struct_size = sizeof results[b];
            results[b].patches = patches[b];
            results[b].patch_capacity = 1;
            results[b].heatmap = &heat_view;
            results[b].x_hat = c == 1 ? &x_hat_view : NULL;
            results[b].roi = masked ? &roi : NULL;
            CHECK(grd_inspector_inspect(inspector, &frame, &results[b]) == GRD_ERR_BUFFER);
            results[b].patch_capacity = grid.count;
            CHECK_THAT(grd_inspector_inspect(inspector, &frame, &results[b]) == GRD_OK,
                       ("%s", grd_inspector_message(inspector)));
            CHECK(results[b].total_ms >= results[b].cut_ms + results[b].infer_ms + results[b].score_ms);
            CHECK(b == 2 ? results[b].cut_ms == 0 : results[b].cut_ms > 0);
            grd_inspector_close(inspector);
            grd_bundle_close(bundle);
        }
        for (int b = 1; b < 3; ++b) {
            CHECK(memcmp(heat[b], heat[0], sizeof heat[0]) == 0 && memcmp(x_hat[b], x_hat[0], sizeof x_hat[0]) == 0);
            CHECK_THAT(memcmp(patches[b], patches[0], sizeof patches[0]) == 0, ("kind %d: %s", kind, backends[b]));
            CHECK(results[b].decision == results[0].decision && results[b].patch_count == results[0].patch_count &&
                  results[b].defective_count == results[0].defective_count &&
                  memcmp(&results[b].score, &results[0].score, sizeof(float)) == 0);
        }
    }

    /* It may leave frames to the library, fail on them, and is not asked when a variant is forced. */
    static const struct {
        const char *engine, *variant;
        grd_status expected;
    } cases[] = {{"no frames", NULL, GRD_OK}, {"refuse frames", NULL, GRD_ERR_DEVICE}, {"refuse frames", "scalar", GRD_OK}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        grd_bundle *bundle;
        grd_inspector *inspector;
        grd_inspector_params params = params_of(0);
        grd_result result;
        const grd_view frame = make_frame(0x3f, 1);
        params.variant = cases[i].variant;
        write_bundle(cases[i].engine, "\"backend\": \"" TEST_BACKEND "\"", "\"backend\": \"frames\"", NULL, NULL, NULL);
        const grd_status status = open_both(&params, &bundle, &inspector);
        CHECK_THAT(status == cases[i].expected, ("%s", grd_inspector_message(inspector)));
        if (status == GRD_OK) CHECK(inspect(inspector, &frame, &result, NULL) == GRD_OK && result.cut_ms > 0);
        else CHECK(strstr(grd_inspector_message(inspector), "told to refuse frames") != NULL);
        grd_inspector_close(inspector);
        grd_bundle_close(bundle);
    }
}

/* Bundles of other shapes: no thresholds, phi_local, color, reflection, scaling. */
static void check_variations(void) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_result result;
    grd_patch_result patches[COUNT];
    grd_inspector_params params = params_of(0);
    grd_view frame = make_frame(0x04, 1);
    write_bundle("gain=0.5", NULL, NULL, NULL, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK);
    CHECK(result.decision == GRD_UNDECIDED && result.defective_count == 0 && isnan(result.threshold));
    CHECK(result.score == patches[2].phi && patches[2].decision == GRD_UNDECIDED);
    CHECK(inspect(inspector, &frame, &result, NULL) == GRD_OK); /* patches may be left out */
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    write_bundle("gain=0.5", "\"phi\"", "\"phi_local\"", kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK);
    CHECK(result.decision == GRD_DEFECTIVE && result.score == patches[2].phi_local);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    write_bundle("gain=0.5", "\"channels\": 1", "\"channels\": 3", kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_ERR_FRAME_CHANNELS);
    CHECK(strstr(grd_inspector_message(inspector), "RGB") != NULL);
    frame = make_frame(0x04, 3);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && result.decision == GRD_DEFECTIVE);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    write_bundle("gain=0.5", "\"error\"", "\"reflect\"", kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    float heat[5 * 7];
    grd_view heat_view = {heat, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, 5, 7}, {0, 0, 0, 0}};
    frame = make_frame(0x3f, 1);
    frame.extent[2] = 5, frame.extent[3] = 7;
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    result.heatmap = &heat_view;
    CHECK(grd_inspector_inspect(inspector, &frame, &result) == GRD_OK && result.patch_count == 1);
    int wrong = 0;
    for (int i = 0; i < 35; ++i)
        wrong += fabsf(heat[i] - 0.5f * (float)frame_pixels[i / 7 * W + i % 7] / 255.0f) > 1e-6f;
    CHECK(wrong == 0);
    frame = make_frame(0x3f, 1); /* larger than before: buffers grow */
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && result.defective_count == COUNT);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    write_bundle("gain=0.5", "\"scale_px\": null", "\"scale_px\": 13", kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK && result.patch_count == 4);
    CHECK(patches[3].y_px == 1 && patches[3].x_px == 8);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

/* Calls that must be refused, with a sentence, and with nothing written. */
static void check_inspect_errors(void) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_patch_result patches[COUNT];
    float values[COUNT * PATCH * PATCH];
    const grd_inspector_params params = params_of(0);
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(grd_inspector_message(inspector)[0] == '\0');
    const grd_view heat_view = {values, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, H, W}, {0, 0, 0, 0}};
    const grd_view x_hat_view = {values, GRD_FLOAT32, GRD_SPACE_HOST, {COUNT, 1, PATCH, PATCH}, {0, 0, 0, 0}};
    memset(patches, 0x5a, sizeof patches);
    memset(values, 0x5a, sizeof values);

#define WITH(change, expected) \
    do { \
        grd_view frame = make_frame(0x3f, 1), heat = heat_view, x_hat = x_hat_view, roi = make_mask(0x3f); \
        grd_result result; \
        memset(&result, 0, sizeof result); \
        result.struct_size = sizeof result; \
        result.decision = -5; \
        result.patches = patches; \
        result.patch_capacity = COUNT; \
        result.heatmap = &heat; \
        result.x_hat = &x_hat; \
        result.roi = &roi; \
        change; \
        const grd_status status = grd_inspector_inspect(inspector, &frame, &result); \
        CHECK_THAT(status == (expected), (#change ": %s", grd_status_name(status))); \
        CHECK_THAT(grd_inspector_message(inspector)[0] != '\0', (#change)); \
        CHECK(result.decision == -5 && result.patch_count == 0); \
    } while (0)
    WITH(frame.data = NULL, GRD_ERR_ARGUMENT);
    WITH(frame.dtype = GRD_FLOAT32, GRD_ERR_DTYPE);
    WITH(frame.space = 2, GRD_ERR_SPACE);
    WITH(frame.extent[0] = 2, GRD_ERR_SHAPE);
    WITH(frame.extent[1] = 2, GRD_ERR_FRAME_CHANNELS);
    WITH(frame.extent[2] = 0, GRD_ERR_SHAPE);
    WITH((frame.extent[2] = PATCH - 1, heat.extent[2] = PATCH - 1), GRD_ERR_FRAME_SIZE);
    WITH(result.struct_size = 0, GRD_ERR_STRUCT_SIZE);
    WITH(result.struct_size = sizeof result - 1, GRD_ERR_STRUCT_SIZE);
    WITH(result.patch_capacity = COUNT - 1, GRD_ERR_BUFFER);
    WITH(heat.data = NULL, GRD_ERR_ARGUMENT);
    WITH(heat.dtype = GRD_FLOAT16, GRD_ERR_DTYPE);
    WITH(heat.space = 1, GRD_ERR_SPACE);
    WITH(heat.extent[2] = H + 1, GRD_ERR_SHAPE);
    WITH(x_hat.data = NULL, GRD_ERR_ARGUMENT);
    WITH(x_hat.dtype = GRD_UINT8, GRD_ERR_DTYPE);
    WITH(x_hat.extent[0] = COUNT - 1, GRD_ERR_SHAPE);
    WITH(x_hat.stride_bytes[3] = 8, GRD_ERR_STRIDE);
    WITH(roi.data = NULL, GRD_ERR_ARGUMENT);
    WITH(roi.dtype = GRD_UINT16, GRD_ERR_DTYPE);
    WITH(roi.space = 1, GRD_ERR_SPACE);
    WITH(roi.extent[0] = 2, GRD_ERR_SHAPE);
    WITH(roi.extent[1] = 3, GRD_ERR_SHAPE);
    WITH(roi.extent[2] = H - 1, GRD_ERR_FRAME_SIZE);
    WITH(roi.extent[3] = W + 1, GRD_ERR_FRAME_SIZE);
    WITH(memset(mask_pixels, 0, sizeof mask_pixels), GRD_ERR_FRAME_SIZE); /* nothing to inspect */
#undef WITH
    int untouched = 1;
    for (size_t i = 0; i < sizeof patches; ++i) untouched = untouched && ((unsigned char *)patches)[i] == 0x5a;
    for (size_t i = 0; i < sizeof values; ++i) untouched = untouched && ((unsigned char *)values)[i] == 0x5a;
    CHECK(untouched);

    const grd_view frame = make_frame(0, 1);
    grd_result result;
    grd_grid grid = {0};
    CHECK(grd_inspector_inspect(inspector, NULL, &result) == GRD_ERR_ARGUMENT);
    CHECK(grd_inspector_inspect(inspector, &frame, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_inspector_inspect(NULL, &frame, &result) == GRD_ERR_ARGUMENT);
    CHECK(grd_inspector_grid(inspector, H, W, &grid) == GRD_ERR_STRUCT_SIZE);
    grid.struct_size = sizeof grid;
    CHECK(grd_inspector_grid(inspector, H, W, &grid) == GRD_OK && grid.count == COUNT &&
          grid.struct_size == sizeof grid);
    CHECK(grd_inspector_grid(inspector, 3, W, &grid) == GRD_ERR_FRAME_SIZE && grid.count == COUNT);
    CHECK(strstr(grd_inspector_message(inspector), "3x36") != NULL);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK); /* an inspector survives its errors */
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    make_frame((1u << COUNT) - 1, 1); /* the pixels of `frame`: now every patch is textured, so none is rebuilt */
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, "\"k\": 1", "\"k\": 7");
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_OK); /* it could never be rejected, so it is not good */
    CHECK(result.decision == GRD_UNDECIDED && result.defective_count == COUNT && patches[0].decision == GRD_DEFECTIVE);
    for (int i = 0; i < COUNT; ++i) CHECK(result.score <= patches[i].phi); /* the least, for want of a seventh */
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);

    write_bundle("fail", NULL, NULL, kDecisionJson, NULL, NULL);
    CHECK(open_both(&params, &bundle, &inspector) == GRD_OK);
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_ERR_ENGINE_RUN);
    CHECK(strstr(grd_inspector_message(inspector), "told to fail") != NULL);
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

static void check_refused(const grd_inspector_params *params, grd_status expected, const char *what) {
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_result result;
    grd_patch_result patches[COUNT];
    const grd_view frame = make_frame(0, 1);
    const grd_status status = open_both(params, &bundle, &inspector);
    CHECK_THAT(status == expected, ("%s: %s (%s)", what, grd_status_name(status), grd_inspector_message(inspector)));
    CHECK_THAT(inspector != NULL && grd_inspector_message(inspector)[0] != '\0', ("%s: no message", what));
    CHECK(inspect(inspector, &frame, &result, patches) == GRD_ERR_ARGUMENT);
    CHECK(grd_inspector_engine_version(inspector)[0] == '\0');
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
}

static void check_open_errors(void) {
    static const struct {
        const char *from, *to;
        grd_status expected;
    } edits[] = {
        {"\"backend\": \"" TEST_BACKEND "\"", "\"backend\": \"absent\"", GRD_ERR_BACKEND_MISSING},
        {"\"backend\": \"" TEST_BACKEND "\"", "\"backend\": \"other_abi\"", GRD_ERR_BACKEND_ABI},
        {"\"backend\": \"" TEST_BACKEND "\"", "\"backend\": \"no_table\"", GRD_ERR_BACKEND_ABI},
        {"\"backend\": \"" TEST_BACKEND "\"", "\"backend\": \"broken\"", GRD_ERR_BACKEND_LIBRARY},
        {"\"format\": \"identity\"", "\"format\": \"onnx\"", GRD_ERR_ENGINE_OPEN},
        {"{\"cpu\": \"fp32\"}", "{}", GRD_ERR_BUNDLE_ENGINE},
    };
    grd_inspector_params params = params_of(0);
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; ++i) {
        write_bundle("gain=0.5", edits[i].from, edits[i].to, NULL, NULL, NULL);
        check_refused(&params, edits[i].expected, edits[i].to);
    }
    write_bundle("refuse", NULL, NULL, NULL, NULL, NULL);
    check_refused(&params, GRD_ERR_ENGINE_MISMATCH, "refuse");

    write_bundle("gain=0.5", NULL, NULL, NULL, NULL, NULL);
#define WITH(field, value, expected) \
    do { \
        grd_inspector_params bad = params; \
        bad.field = value; \
        check_refused(&bad, expected, #field " = " #value); \
    } while (0)
    WITH(struct_size, 0, GRD_ERR_STRUCT_SIZE);
    WITH(struct_size, sizeof bad - 1, GRD_ERR_STRUCT_SIZE);
    WITH(threads, -1, GRD_ERR_ARGUMENT);
    WITH(batch_limit, -1, GRD_ERR_ARGUMENT);
    WITH(batch_limit, 1025, GRD_ERR_ARGUMENT);
    WITH(undecided, 2, GRD_ERR_ARGUMENT);
    WITH(target, "rtx", GRD_ERR_BUNDLE_ENGINE);
    WITH(precision, "int8", GRD_ERR_BUNDLE_ENGINE);
    WITH(precision, "", GRD_ERR_BUNDLE_ENGINE);
    WITH(backend_dir, "/nowhere", GRD_ERR_BACKEND_MISSING);
    WITH(backend_dir, NULL, GRD_ERR_BACKEND_MISSING); /* not beside the library */
    WITH(variant, "fastest", GRD_ERR_VARIANT);
#undef WITH
    grd_bundle *bundle;
    grd_inspector *inspector = NULL;
    CHECK(grd_inspector_open(NULL, &params, &inspector) == GRD_ERR_ARGUMENT && inspector != NULL);
    grd_inspector_close(inspector);
    CHECK(grd_bundle_open("/nowhere", &bundle) == GRD_ERR_BUNDLE_MISSING);
    CHECK(grd_inspector_open(bundle, &params, &inspector) == GRD_ERR_ARGUMENT &&
          grd_inspector_message(inspector)[0] != '\0');
    grd_inspector_close(inspector);
    CHECK(grd_inspector_open(bundle, &params, NULL) == GRD_ERR_ARGUMENT);
    grd_bundle_close(bundle);
}

int main(void) {
    if (getenv("GRD_TEST_BACKENDS") == NULL) {
        printf("GRD_TEST_BACKENDS is not set; run this test with ctest\n");
        return 1;
    }
    check_decisions();
    check_outputs();
    check_masks_and_regions();
    check_frames_against_host();
    check_variations();
    check_inspect_errors();
    check_open_errors();
    remove_tree(scratch_folder());
    return checks_report();
}
