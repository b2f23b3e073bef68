/* test_stream.c - frames through a stream: what comes back, what is refused.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Built twice: with a backend for patches, and with one that does whole frames. */
#define _GNU_SOURCE
#include "stream_case.h"

#include <dirent.h>
#include <math.h>
#include <sched.h>

enum { FRAMES = 9, SIDE_H = 50, SIDE_W = 61, PIXELS = SIDE_H * SIDE_W, PITCH = SIDE_W + 3, MOST = 100 };

static int by_patches(void) { return strcmp(TEST_BACKEND, "faults") == 0; }

/* A frame, what an inspector says of it, and room for what the stream says. */
typedef struct sample {
    uint8_t pixels[PIXELS * 3];
    grd_view view;
    grd_grid grid;
    grd_result want;
    grd_patch_result want_patches[MOST], patches[MOST];
    float want_heat[SIDE_H * PITCH], heat[SIDE_H * PITCH];
} sample;

static sample samples[FRAMES];

static grd_view heat_view(const sample *of, const float *heat) {
    grd_view view = {(void *)heat, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, of->grid.scaled_h, of->grid.scaled_w}, {0}};
    view.stride_bytes[2] = PITCH * sizeof *heat;
    view.stride_bytes[3] = sizeof *heat;
    return view;
}

/* Frames of these sizes in turn, inspected one by one. */
static void prepare_samples(const grd_bundle *bundle, const int64_t (*sizes)[2], int size_count, int64_t c) {
    const grd_stream_params params = params_of_stream();
    grd_inspector *inspector;
    CHECK(grd_inspector_open(bundle, params.inspector, &inspector) == GRD_OK);
    for (int i = 0; i < FRAMES; ++i) {
        sample *each = &samples[i];
        memset(each, 0x5a, sizeof *each);
        for (int k = 0; k < PIXELS * 3; ++k) each->pixels[k] = (uint8_t)(1 + k * (37 + i * 3) + k / 7 * (11 + i));
        if (i == 4) memset(each->pixels, 9, sizeof each->pixels);
        each->view = grd_view_of_frame(each->pixels, GRD_UINT8, sizes[i % size_count][0], sizes[i % size_count][1], c, 0);
        each->grid.struct_size = sizeof each->grid;
        CHECK(grd_inspector_grid(inspector, each->view.extent[2], each->view.extent[3], &each->grid) == GRD_OK);
        const grd_view heat = heat_view(each, each->want_heat);
        memset(&each->want, 0, sizeof each->want);
        each->want.struct_size = sizeof each->want;
        each->want.patches = each->want_patches;
        each->want.patch_capacity = MOST;
        each->want.heatmap = &heat;
        CHECK_THAT(grd_inspector_inspect(inspector, &each->view, &each->want) == GRD_OK,
                   ("%s", grd_inspector_message(inspector)));
    }
    grd_inspector_close(inspector);
}

static void check_against_inspector(const grd_bundle *bundle, const grd_stream_params *params, const char *what) {
    grd_stream *stream = opened_stream(bundle, params);
    int users[FRAMES], defective = 0, wrong = 0;
    for (int round = 0; round < 2; ++round) {
        for (int i = 0; i < FRAMES; ++i) {
            grd_stream_frame frame = frame_of(i * 10, samples[i].view);
            memset(samples[i].patches, 0x5a, sizeof samples[i].patches);
            memset(samples[i].heat, 0x5a, sizeof samples[i].heat);
            frame.user = &users[i];
            frame.product = i * 100, frame.run = i * 1000;
            if (i != 2) frame.patches = samples[i].patches, frame.patch_capacity = MOST;
            if (params->heatmaps && i != 3) frame.heatmap = heat_view(&samples[i], samples[i].heat);
            CHECK_THAT(grd_stream_submit(stream, &frame) == GRD_OK, ("%s", grd_stream_message(stream)));
        }
        for (int i = 0; i < FRAMES; ++i) {
            const grd_stream_result got = expect(stream, i * 10, GRD_SCORED);
            const sample *each = &samples[i];
            wrong += got.status != GRD_OK || got.generation != 0 || got.user != &users[i] || got.message[0] != '\0';
            wrong += got.product != i * 100 || got.run != i * 1000;
            wrong += got.decision != each->want.decision || got.patch_count != each->want.patch_count ||
                     got.defective_count != each->want.defective_count ||
                     memcmp(&got.score, &each->want.score, sizeof got.score) != 0 ||
                     memcmp(&got.threshold, &each->want.threshold, sizeof got.threshold) != 0;
            wrong += i != 2 && memcmp(each->patches, each->want_patches, sizeof each->patches) != 0;
            wrong += params->heatmaps && i != 3 && memcmp(each->heat, each->want_heat, sizeof each->heat) != 0;
            wrong += got.product_complete != 1 || got.product_decision != got.decision || got.product_frames != 1 ||
                     got.product_missing != 0 || got.run_complete != 0;
            wrong += !(got.queue_ms >= 0 && got.cut_ms >= 0 && got.infer_ms >= 0 && got.score_ms >= 0 &&
                       got.total_ms >= got.queue_ms && got.batch_frames >= 1);
            defective += got.decision == GRD_DEFECTIVE;
        }
    }
    CHECK_THAT(wrong == 0, ("%s: %d values", what, wrong));
    expect_nothing(stream);
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.submitted == 2 * FRAMES && stats.scored == 2 * FRAMES && stats.defective == defective);
    CHECK(stats.total.count == 2 * FRAMES && stats.total.p50_ms <= stats.total.p99_ms && stats.total.worst_ms > 0 &&
          stats.total.p999_ms <= stats.total.worst_ms && stats.uptime_s > 0 && stats.batches > 0);
    grd_stream_close(stream);
}

static const char kTiles[] = "\"scale_px\": null, \"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12,\n  "
                             "\"channels\": 1";

/* What a stream says of frames is what an inspector says of them, bit for bit. */
static void check_results(void) {
    static const int64_t any[][2] = {{24, 36}, {SIDE_H, SIDE_W}, {12, 12}, {13, 40}}, one[][2] = {{SIDE_H, SIDE_W}};
    static const char *const kinds[] = {"tiles", "overlap", "mask", "color", "undecided", "nan", "regions", "score map", "score map, mask"};
    static const struct {
        int engines, threads, batch_frames, heatmaps, announced, spin_us;
    } cases[] = {{1, 1, 0, 1, 1, 0}, {1, 2, 3, 1, 0, 20}, {2, 3, 0, 0, 1, 0}, {2, 4, 1, 1, 1, 50}};
    for (int kind = 0; kind < 9; ++kind) {
        const int masked = kind == 2 || kind == 8;
        const int64_t c = kind == 3 || kind == 7 ? 3 : 1;
        char digits[65], listed[256], pgm[16 + PIXELS];
        const int header = sprintf(pgm, "P5\n%d %d\n255\n", SIDE_W, SIDE_H);
        for (int i = 0; i < PIXELS; ++i) pgm[header + i] = (i / SIDE_W / 5 + i % SIDE_W / 9) % 3 == 0;
        digest_of(pgm, (size_t)(header + PIXELS), digits);
        snprintf(listed, sizeof listed,
                 "\"roi\": \"roi.pgm\", \"files\": {\"roi.pgm\": {\"sha256\": \"%s\", \"bytes\": %d}, ", digits,
                 header + PIXELS);
        char *text = replaced(kBundleJson, masked ? "\"files\": {" : "", listed);
        if (kind >= 7) text = replace(text, "\"head\": \"reconstruction\"", "\"head\": \"score_map\"");
        if (kind > 0)
            text = replace(text, kTiles,
                           c == 3 ? "\"scale_px\": 31, \"patch_h\": 13, \"patch_w\": 17, \"stride_y\": 7, \"stride_x\": 11, \"channels\": 3"
                                  : "\"scale_px\": 31, \"patch_h\": 13, \"patch_w\": 17, \"stride_y\": 7, \"stride_x\": 11, \"channels\": 1");
        static const char regions[] = "\"frame_px\": [50, 61], \"regions\": "
                                      "[{\"name\": \"left\", \"threshold\": 0.0625, \"areas\": [[0, 0, 50, 30]]},"
                                      " {\"name\": \"corner\", \"threshold\": 2, \"areas\": [[30, 30, 20, 31]]}]";
        write_bundle_of(text, kind != 5 ? "gain=0.5" : by_patches() ? "nan=1" : "nan", NULL, NULL,
                        kind == 4 ? NULL : kDecisionJson,
                        kind == 6 ? "\"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625}]" : NULL, regions);
        free(text);
        if (masked) write_file(bundle_path(), "roi.pgm", pgm, (size_t)(header + PIXELS));
        grd_bundle *bundle = opened_bundle();
        const int of_any_size = kind < 2 || kind == 7;
        prepare_samples(bundle, of_any_size ? any : one, of_any_size ? 4 : 1, c);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
            grd_stream_params params = params_of_stream();
            params.engines = cases[i].engines;
            params.threads = cases[i].threads;
            params.batch_frames = cases[i].batch_frames;
            params.heatmaps = cases[i].heatmaps;
            params.spin_us = cases[i].spin_us;
            if (cases[i].announced && !of_any_size)
                params.frame_h = SIDE_H, params.frame_w = SIDE_W, params.frame_c = (int32_t)c;
            check_against_inspector(bundle, &params, kinds[kind]);
        }
        grd_bundle_close(bundle);
    }
}

/* Frames that wait share engine calls where a call is dear, and are told apart again. */
static void check_batches(void) {
    static const int64_t sizes[][2] = {{24, 36}};
    grd_bundle *bundle = bundle_of("gain=0.5 call_us=1000", NULL, NULL);
    prepare_samples(bundle, sizes, 1, 1);
    for (int limit = 0; limit <= 3; ++limit) {
        grd_stream_params params = params_of_stream();
        params.batch_frames = limit;
        params.queue_depth = FRAMES + 1;
        params.frame_h = 24, params.frame_w = 36, params.frame_c = 1;
        grd_inspector_params inspector = *params.inspector;
        inspector.batch_limit = 8 * COUNT;
        params.inspector = &inspector;
        grd_stream *stream = opened_stream(bundle, &params);
        int wrong = 0, most = 0;
        for (int round = 0; round < 3; ++round) {
            for (int i = 0; i < FRAMES; ++i) {
                grd_stream_frame frame = frame_of(i, samples[i].view);
                memset(samples[i].patches, 0x5a, sizeof samples[i].patches);
                frame.patches = samples[i].patches;
                frame.patch_capacity = MOST;
                if (i == 5) frame.patch_capacity = 1; /* one that fails leaves the others alone */
                CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
            }
            for (int i = 0; i < FRAMES; ++i) {
                const grd_stream_result got = expect(stream, i, i == 5 ? GRD_FAILED : GRD_SCORED);
                if (got.batch_frames > most) most = got.batch_frames;
                if (i == 5) continue;
                wrong += memcmp(&got.score, &samples[i].want.score, sizeof got.score) != 0 ||
                         memcmp(samples[i].patches, samples[i].want_patches, sizeof samples[i].patches) != 0;
            }
        }
        CHECK_THAT(wrong == 0, ("batch_frames %d: %d frames", limit, wrong));
        if (by_patches()) CHECK_THAT(limit == 0 ? most > 1 : most == limit, ("batch_frames %d: %d at most", limit, most));
        CHECK(stats_of(stream).scored == 3 * (FRAMES - 1) && stats_of(stream).failed == 3);
        grd_stream_close(stream);
    }
    grd_bundle_close(bundle);
}

/* A frame waits for company as long as it may, and no longer than its deadline or a flush allows. */
static void check_batch_wait(void) {
    grd_bundle *bundle = bundle_of("gain=0.5 call_us=1000", NULL, NULL);
    grd_stream_params params = params_of_stream();
    grd_inspector_params inspector = *params.inspector;
    inspector.batch_limit = 2 * COUNT;
    params.inspector = &inspector;
    params.frame_h = H, params.frame_w = W, params.frame_c = 1;
    params.batch_wait_ms = 60e3;
    grd_stream *stream = opened_stream(bundle, &params);
    for (int64_t id = 0; id < 2; ++id) {
        expect_nothing(stream);
        CHECK(submit(stream, id) == GRD_OK);
        if (id == 0) sleep_ms(20);
    }
    for (int64_t id = 0; id < 2; ++id) CHECK(expect(stream, id, GRD_SCORED).batch_frames == 2);
    CHECK(submit(stream, 2) == GRD_OK);
    sleep_ms(20);
    expect_nothing(stream);
    CHECK(grd_stream_flush(stream, -1) == GRD_OK);
    CHECK(expect(stream, 2, GRD_SCORED).batch_frames == 1);
    grd_stream_frame frame = frame_of(3, textured());
    frame.deadline_ms = 500;
    const double began_ms = now_ms();
    CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
    const grd_stream_result kept = expect(stream, 3, GRD_SCORED);
    CHECK(kept.total_ms <= 500 && now_ms() - began_ms >= 250);
    CHECK(submit(stream, 4) == GRD_OK); /* closing does not wait, either */
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* Frames that cannot be inspected come back as failed, in order, and the stream goes on. */
static void check_failed_frames(void) {
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    for (int announced = 0; announced < 2; ++announced) {
        grd_stream_params params = params_of_stream();
        grd_patch_result patches[COUNT];
        float heat[H * W];
        int64_t id = 0, failed = 0;
        params.heatmaps = 1;
        if (announced) params.frame_h = H, params.frame_w = W, params.frame_c = 1;
        grd_stream *stream = opened_stream(bundle, &params);
        memset(patches, 0x5a, sizeof patches);
        memset(heat, 0x5a, sizeof heat);
#define WITH(change, expected) \
    do { \
        grd_stream_frame frame = frame_of(id, textured()); \
        frame.patches = patches; \
        frame.patch_capacity = COUNT; \
        frame.heatmap.data = heat; \
        frame.heatmap.dtype = GRD_FLOAT32; \
        frame.heatmap.extent[0] = frame.heatmap.extent[1] = 1; \
        frame.heatmap.extent[2] = H, frame.heatmap.extent[3] = W; \
        change; \
        CHECK_THAT(grd_stream_submit(stream, &frame) == GRD_OK, (#change ": %s", grd_stream_message(stream))); \
        const grd_stream_result result = expect(stream, id++, GRD_FAILED); \
        CHECK_THAT(result.status == (expected), (#change ": %s", grd_status_name(result.status))); \
        CHECK_THAT(result.message[0] != '\0' && result.message[255] == '\0', (#change)); \
        CHECK(result.decision == GRD_NOT_INSPECTED && result.patch_count == 0 && isnan(result.score) && \
              isnan(result.threshold)); \
        CHECK(result.product_complete == 1 && result.product_decision == GRD_NOT_INSPECTED); \
        ++failed; \
    } while (0)
        const int size = GRD_ERR_FRAME_SIZE;
        WITH(frame.view.extent[2] = PATCH - 1, size);
        WITH((frame.view.extent[2] = PATCH, frame.heatmap.extent[3] = W - 1), announced ? size : GRD_ERR_SHAPE);
        WITH(frame.view.extent[1] = 2, announced ? size : GRD_ERR_FRAME_CHANNELS);
        WITH(frame.view.extent[0] = 2, GRD_ERR_SHAPE);
        WITH(frame.view.dtype = GRD_FLOAT32, GRD_ERR_DTYPE);
        WITH(frame.view.data = NULL, GRD_ERR_ARGUMENT);
        WITH(frame.view.space = 7, GRD_ERR_SPACE);
        WITH(frame.patch_capacity = COUNT - 1, GRD_ERR_BUFFER);
        WITH(frame.heatmap.extent[2] = H + 1, GRD_ERR_SHAPE);
        WITH(frame.heatmap.dtype = GRD_UINT8, GRD_ERR_DTYPE);
#undef WITH
        int untouched = 1;
        for (size_t i = 0; i < sizeof patches; ++i) untouched = untouched && ((unsigned char *)patches)[i] == 0x5a;
        for (size_t i = 0; i < sizeof heat; ++i) untouched = untouched && ((unsigned char *)heat)[i] == 0x5a;
        CHECK(untouched);
        CHECK(submit(stream, id) == GRD_OK);
        CHECK(expect(stream, id, GRD_SCORED).decision == GRD_DEFECTIVE);
        CHECK(stats_of(stream).failed == failed && stats_of(stream).scored == 1 && stats_of(stream).total.count == 1);
        grd_stream_close(stream);
    }
    grd_bundle_close(bundle);
    if (!by_patches()) return; /* the others fail when they are prepared, too */
    bundle = bundle_of("errors=1", NULL, NULL);
    grd_stream_params params = params_of_stream();
    grd_stream *stream = opened_stream(bundle, &params);
    for (int64_t id = 0; id < 20; ++id) CHECK(submit(stream, id) == GRD_OK);
    for (int64_t id = 0; id < 20; ++id) {
        const grd_stream_result result = expect(stream, id, GRD_FAILED);
        CHECK(result.status == GRD_ERR_ENGINE_RUN && strstr(result.message, "told to fail") != NULL);
    }
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* Calls that are refused, with a sentence, and change nothing. */
static void check_arguments(void) {
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    const grd_stream_params params = params_of_stream();
    grd_stream *stream = opened_stream(bundle, &params);
    grd_stream_result result = no_result();
    grd_stream_stats stats = {0};
    grd_grid grid = {0};
    grd_stream_frame frame = frame_of(0, textured());
#define REFUSED(call, expected) CHECK_THAT((call) == (expected) && grd_stream_message(stream)[0] != '\0', (#call))
    REFUSED(grd_stream_submit(stream, NULL), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_submit(NULL, &frame), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_poll(stream, NULL), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_poll(NULL, &result), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_wait(stream, NULL, 0), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_wait(NULL, &result, 0), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_wait(stream, &result, NAN), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_flush(NULL, 0), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_flush(stream, NAN), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_swap(NULL, bundle), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_swap(stream, NULL), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_get_stats(stream, NULL), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_get_stats(NULL, &stats), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_get_stats(stream, &stats), GRD_ERR_STRUCT_SIZE);
    REFUSED(grd_stream_grid(stream, H, W, NULL), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_grid(NULL, H, W, &grid), GRD_ERR_ARGUMENT);
    REFUSED(grd_stream_grid(stream, H, W, &grid), GRD_ERR_STRUCT_SIZE);
    grid.struct_size = sizeof grid;
    REFUSED(grd_stream_grid(stream, 3, W, &grid), GRD_ERR_FRAME_SIZE);
    frame.struct_size = 0;
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_STRUCT_SIZE);
    frame.struct_size = sizeof frame - 1;
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_STRUCT_SIZE);
    result.struct_size = sizeof result - 1;
    REFUSED(grd_stream_poll(stream, &result), GRD_ERR_STRUCT_SIZE);
    frame = frame_of(0, textured());
    frame.product_frames = -1;
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_ARGUMENT);
    frame = frame_of(0, textured());
    frame.run_products = -1;
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_ARGUMENT);
    frame = frame_of(0, textured());
    frame.deadline_ms = NAN;
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_ARGUMENT);
    frame = frame_of(0, textured());
    frame.heatmap = frame.view; /* the stream was opened without */
    REFUSED(grd_stream_submit(stream, &frame), GRD_ERR_ARGUMENT);
#undef REFUSED
    CHECK(grd_stream_engine_version(NULL)[0] == '\0');
    CHECK(strcmp(grd_stream_engine_version(stream), by_patches() ? "faults 1" : "identity 1") == 0);
    CHECK(grd_stream_grid(stream, H, W, &grid) == GRD_OK && grid.count == COUNT && grid.struct_size == sizeof grid);
    CHECK(stats_of(stream).submitted == 0 && stats_of(stream).refused == 0);
    result = no_result();
    result.struct_size += 8; /* of a newer header */
    CHECK(grd_stream_poll(stream, &result) == GRD_ERR_STREAM_EMPTY);
    CHECK(submit(stream, 5) == GRD_OK && grd_stream_wait(stream, &result, -1) == GRD_OK);
    CHECK(result.id == 5 && result.struct_size == sizeof result + 8);
    grd_stream_close(stream);
    grd_stream_close(NULL);
    grd_bundle_close(bundle);
}

static void check_refused(const grd_bundle *bundle, const grd_stream_params *params, grd_status expected,
                          const char *what) {
    grd_stream *stream = NULL;
    grd_stream_result result = no_result();
    const grd_status status = grd_stream_open(bundle, params, &stream);
    CHECK_THAT(status == expected, ("%s: %s (%s)", what, grd_status_name(status), grd_stream_message(stream)));
    CHECK_THAT(stream != NULL && grd_stream_message(stream)[0] != '\0', ("%s: no message", what));
    if (status == GRD_OK) return;
    CHECK(submit(stream, 0) == GRD_ERR_ARGUMENT && grd_stream_poll(stream, &result) == GRD_ERR_ARGUMENT);
    CHECK(grd_stream_flush(stream, -1) == GRD_ERR_ARGUMENT && grd_stream_swap(stream, bundle) == GRD_ERR_ARGUMENT);
    CHECK(grd_stream_engine_version(stream)[0] == '\0');
    grd_stream_close(stream);
}

static void check_open_errors(void) {
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    const grd_stream_params params = params_of_stream();
    int32_t cpus[2] = {0, -1};
#define WITH(change, expected) \
    do { \
        grd_stream_params bad = params; \
        grd_inspector_params inspector = *params.inspector; \
        bad.inspector = &inspector; \
        change; \
        check_refused(bundle, &bad, expected, #change); \
    } while (0)
    WITH(bad.struct_size = 0, GRD_ERR_STRUCT_SIZE);
    WITH(bad.struct_size = sizeof bad - 1, GRD_ERR_STRUCT_SIZE);
    WITH(bad.queue_depth = -1, GRD_ERR_ARGUMENT);
    WITH(bad.queue_depth = 65537, GRD_ERR_ARGUMENT);
    WITH(bad.capacity = -1, GRD_ERR_ARGUMENT);
    WITH(bad.capacity = 8, GRD_ERR_ARGUMENT); /* not more than the default queue_depth */
    WITH(bad.capacity = 1048577, GRD_ERR_ARGUMENT);
    WITH(bad.overload = -1, GRD_ERR_ARGUMENT);
    WITH(bad.overload = 3, GRD_ERR_ARGUMENT);
    WITH(bad.engines = -1, GRD_ERR_ARGUMENT);
    WITH(bad.engines = 17, GRD_ERR_ARGUMENT);
    WITH(bad.threads = -1, GRD_ERR_ARGUMENT);
    WITH(bad.threads = 65, GRD_ERR_ARGUMENT);
    WITH(bad.batch_frames = -1, GRD_ERR_ARGUMENT);
    WITH(bad.batch_frames = 1025, GRD_ERR_ARGUMENT);
    WITH(bad.heatmaps = 2, GRD_ERR_ARGUMENT);
    WITH(bad.heatmaps = -1, GRD_ERR_ARGUMENT);
    WITH((bad.frame_h = 24, bad.frame_w = 36), GRD_ERR_ARGUMENT);
    WITH((bad.frame_h = -24, bad.frame_w = 36, bad.frame_c = 1), GRD_ERR_ARGUMENT);
    WITH((bad.frame_h = 11, bad.frame_w = 36, bad.frame_c = 1), GRD_ERR_FRAME_SIZE);
    WITH((bad.frame_h = 24, bad.frame_w = 36, bad.frame_c = 2), GRD_ERR_ARGUMENT);
    WITH(bad.open_products = -1, GRD_ERR_ARGUMENT);
    WITH(bad.open_products = 65537, GRD_ERR_ARGUMENT);
    WITH(bad.deadline_ms = NAN, GRD_ERR_ARGUMENT);
    WITH(bad.deadline_ms = -1, GRD_ERR_ARGUMENT);
    WITH(bad.batch_wait_ms = -1, GRD_ERR_ARGUMENT);
    WITH(bad.batch_wait_ms = INFINITY, GRD_ERR_ARGUMENT);
    WITH(bad.spin_us = -1, GRD_ERR_ARGUMENT);
    WITH(bad.cpu_count = 1, GRD_ERR_ARGUMENT); /* and cpus is NULL */
    WITH((bad.cpus = cpus, bad.cpu_count = -1), GRD_ERR_ARGUMENT);
    WITH((bad.cpus = cpus, bad.cpu_count = 2), GRD_ERR_ARGUMENT);
    WITH((bad.cpus = cpus, bad.cpu_count = 1, cpus[0] = 1023), GRD_ERR_ARGUMENT); /* no machine of ours has it */
    WITH((inspector.struct_size = 0), GRD_ERR_STRUCT_SIZE);
    WITH(inspector.threads = -1, GRD_ERR_ARGUMENT);
    WITH(inspector.batch_limit = 1025, GRD_ERR_ARGUMENT);
    WITH(inspector.target = "rtx", GRD_ERR_BUNDLE_ENGINE);
    WITH(inspector.precision = "int8", GRD_ERR_BUNDLE_ENGINE);
    WITH(inspector.backend_dir = "/nowhere", GRD_ERR_BACKEND_MISSING);
    WITH(inspector.variant = "fastest", GRD_ERR_VARIANT);
#undef WITH
    check_refused(NULL, &params, GRD_ERR_ARGUMENT, "no bundle");
    CHECK(grd_stream_open(bundle, &params, NULL) == GRD_ERR_ARGUMENT);
    check_refused(bundle, NULL, GRD_ERR_BACKEND_MISSING, "defaults"); /* our backends are not beside the library */
    grd_bundle_close(bundle);
    CHECK(grd_bundle_open("/nowhere", &bundle) == GRD_ERR_BUNDLE_MISSING);
    check_refused(bundle, &params, GRD_ERR_ARGUMENT, "a bundle that did not open");
    grd_bundle_close(bundle);
    bundle = bundle_of(by_patches() ? "refuse=1" : "refuse", NULL, NULL);
    check_refused(bundle, &params, GRD_ERR_ENGINE_MISMATCH, "refuse");
    grd_bundle_close(bundle);
}

/* Threads of this process that may run on CPU `cpu` alone. */
static int threads_on(int cpu) {
    int found = 0;
    DIR *folder = opendir("/proc/self/task");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        cpu_set_t set;
        const int id = atoi(entry->d_name);
        if (id > 0 && sched_getaffinity(id, sizeof set, &set) == 0) found += CPU_COUNT(&set) == 1 && CPU_ISSET(cpu, &set);
    }
    if (folder != NULL) closedir(folder);
    return found;
}

static void check_pinning(void) {
    cpu_set_t mine, after;
    int32_t cpu = 0;
    CHECK(sched_getaffinity(0, sizeof mine, &mine) == 0);
    if (CPU_COUNT(&mine) < 2) return; /* every thread is on the one CPU */
    while (!CPU_ISSET(cpu, &mine)) ++cpu;
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.threads = 3;
    params.cpus = &cpu;
    params.cpu_count = 1;
    const int before = threads_on(cpu);
    grd_stream *stream = opened_stream(bundle, &params);
    cpu = 1023; /* the stream keeps its own */
    CHECK(submit(stream, 0) == GRD_OK);
    expect(stream, 0, GRD_SCORED);
    for (cpu = 0; !CPU_ISSET(cpu, &mine);) ++cpu;
    WAIT_UNTIL(threads_on(cpu) == before + 3);
    CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&mine, &after)); /* the caller's are its own */
    CHECK(grd_stream_swap(stream, bundle) == GRD_OK);
    WAIT_UNTIL(threads_on(cpu) == before + 3); /* those that have ended may be listed a little longer */
    grd_stream_close(stream);
    WAIT_UNTIL(threads_on(cpu) == before);
    grd_bundle_close(bundle);
}

int main(void) {
    watch(240);
    check_results();
    check_batches();
    if (by_patches()) check_batch_wait(); /* those that do whole frames share nothing */
    check_failed_frames();
    check_arguments();
    check_open_errors();
    check_pinning();
    remove_tree(scratch_folder());
    return checks_report();
}
