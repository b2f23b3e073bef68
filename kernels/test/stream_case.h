/* stream_case.h - what the programs about streams share: a bundle, a stream on it, frames to submit.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Bundles are those of bundle_writer.h: patches of 12x12, threshold 1/16, with an engine of backend_faults.c. Define
 * _XOPEN_SOURCE 700 before the first include. */
#ifndef GRD_STREAM_CASE_H
#define GRD_STREAM_CASE_H

#ifndef TEST_BACKEND
#define TEST_BACKEND "faults"
#endif
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "bundle_writer.h"
#include "check.h"
#include "grd_edge.h"

enum { PATCH = 12, ROWS = 2, COLS = 3, H = ROWS * PATCH, W = COLS * PATCH, COUNT = ROWS * COLS };

static inline double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

static inline void sleep_ms(double ms) {
    const struct timespec time = {(time_t)(ms / 1e3), (long)(1e6 * (ms - 1e3 * (double)(time_t)(ms / 1e3)))};
    nanosleep(&time, NULL);
}

/* Until the condition holds, or 20 seconds have passed. */
#define WAIT_UNTIL(condition) \
    do { \
        const double began_ms = now_ms(); \
        while (!(condition) && now_ms() - began_ms < 20e3) sleep_ms(0.2); \
        CHECK(condition); \
    } while (0)

static void bark(int signal) {
    static const char said[] = "watchdog: nothing moved for too long\n";
    (void)signal;
    if (write(1, said, sizeof said - 1) < 0) _exit(3);
    abort();
}

/* Ends the program when it is not called again within so many seconds. */
static inline void watch(unsigned seconds) {
    signal(SIGALRM, bark);
    alarm(seconds);
}

static inline const char *backend_folder(void) {
    const char *folder = getenv("GRD_TEST_BACKENDS");
    if (folder == NULL) {
        printf("GRD_TEST_BACKENDS is not set; run this test with ctest\n");
        exit(1);
    }
    return folder;
}

/* One thread each for the engine and the stream, and nothing waits for company: who does what is known. */
static inline grd_stream_params params_of_stream(void) {
    static grd_inspector_params inspector;
    grd_stream_params params;
    memset(&inspector, 0, sizeof inspector);
    memset(&params, 0, sizeof params);
    inspector.struct_size = sizeof inspector;
    inspector.threads = 1;
    inspector.backend_dir = backend_folder();
    params.struct_size = sizeof params;
    params.threads = 1;
    params.inspector = &inspector;
    return params;
}

static inline grd_bundle *opened_bundle(void) {
    grd_bundle *bundle;
    const grd_status status = grd_bundle_open(bundle_path(), &bundle);
    CHECK_THAT(status == GRD_OK, ("%s", grd_bundle_message(bundle)));
    return bundle;
}

/* A bundle with this engine, which stays readable when the next one is written; an edit to decision.json, if any. */
static inline grd_bundle *bundle_of(const char *engine, const char *from, const char *to) {
    write_bundle(engine, NULL, NULL, kDecisionJson, from, to);
    return opened_bundle();
}

static inline grd_stream *opened_stream(const grd_bundle *bundle, const grd_stream_params *params) {
    grd_stream *stream;
    const grd_status status = grd_stream_open(bundle, params, &stream);
    CHECK_THAT(status == GRD_OK, ("%s: %s", grd_status_name(status), grd_stream_message(stream)));
    return stream;
}

static inline grd_stream_frame frame_of(int64_t id, grd_view view) {
    grd_stream_frame frame;
    memset(&frame, 0, sizeof frame);
    frame.struct_size = sizeof frame;
    frame.id = frame.product = id;
    frame.view = view;
    return frame;
}

/* A textured frame of H x W that no fault spares; the same memory for all. */
static inline grd_view textured(void) {
    static uint8_t pixels[H * W];
    for (int i = 0; i < H * W; ++i) {
        const uint8_t value = (uint8_t)(100 + (i / W * 31 + i % W * 17) % 150);
        if (pixels[i] != value) pixels[i] = value; /* frames under way are only read */
    }
    return grd_view_of_frame(pixels, GRD_UINT8, H, W, 1, 0);
}

static inline grd_status submit(grd_stream *stream, int64_t id) {
    const grd_stream_frame frame = frame_of(id, textured());
    return grd_stream_submit(stream, &frame);
}

static inline grd_stream_result no_result(void) {
    grd_stream_result result;
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    return result;
}

static inline grd_stream_stats stats_of(const grd_stream *stream) {
    grd_stream_stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    CHECK(grd_stream_get_stats(stream, &stats) == GRD_OK);
    CHECK(stats.submitted == stats.scored + stats.late + stats.dropped + stats.failed + stats.in_flight);
    return stats;
}

/* The next result, which must be that of frame id with this outcome. */
static inline grd_stream_result expect(grd_stream *stream, int64_t id, int32_t outcome) {
    grd_stream_result result = no_result();
    const grd_status status = grd_stream_wait(stream, &result, 20e3);
    CHECK_THAT(status == GRD_OK, ("frame %d: %s", (int)id, grd_status_name(status)));
    CHECK_THAT(result.id == id && result.outcome == outcome,
               ("frame %d, outcome %d; expected frame %d, outcome %d: %s", (int)result.id, (int)result.outcome, (int)id,
                (int)outcome, result.message));
    return result;
}

static inline void expect_nothing(grd_stream *stream) {
    grd_stream_result result = no_result();
    CHECK(grd_stream_poll(stream, &result) == GRD_ERR_STREAM_EMPTY);
}

#endif
