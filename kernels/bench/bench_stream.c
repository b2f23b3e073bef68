/* bench_stream.c - what a stream costs a frame, and what it saves many. Prints JSON.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   bench_stream latency [frames]              frames of one patch through a backend that only copies: time from submission
 *                                              to the result in the consumer's hands, less the median of inspecting the
 *                                              same frame by a plain call; both alternate in one process. Finds the backend
 *                                              in the folder that GRD_TEST_BACKENDS names.
 *   bench_stream throughput BUNDLE [rounds]    frames of one patch: a stream with a batch limit of 8 against a loop of
 *                                              plain calls; rounds alternate. GRD_VENDOR_DIR as for every program. */
#define _XOPEN_SOURCE 700
#define TEST_BACKEND "identity"
#include "stream_case.h"

enum { MOST = 200000, AHEAD = 64 };

static double direct_us[MOST], stream_us[MOST];

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double percentile(double *values, int count, double share) {
    qsort(values, (size_t)count, sizeof *values, compare);
    const int at = (int)(share * count);
    return values[at < count ? at : count - 1];
}

/* The message's function is called whether or not there is one: not in the same expression as an open. */
static void ensure(grd_status status, const char *message) {
    if (status == GRD_OK) return;
    fprintf(stderr, "%s: %s\n", grd_status_name(status), message);
    exit(1);
}

static double inspect_us(grd_inspector *inspector, const grd_view *view) {
    grd_result result;
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    const double began = now_ms();
    ensure(grd_inspector_inspect(inspector, view, &result), grd_inspector_message(inspector));
    return 1e3 * (now_ms() - began);
}

/* ---------------------------------------------------------------- latency */

typedef struct consumer {
    grd_stream *stream;
    int frames;
    int taken; /* the producer waits for it, asleep */
    const double *submitted_ms;
} consumer;

static void take_one(consumer *self, int i) {
    grd_stream_result result = no_result();
    ensure(grd_stream_wait(self->stream, &result, -1), grd_stream_message(self->stream));
    stream_us[i] = 1e3 * (now_ms() - self->submitted_ms[i]);
    __atomic_store_n(&self->taken, i + 1, __ATOMIC_RELEASE);
}

static void *consume(void *data) {
    consumer *self = data;
    for (int i = 0; i < self->frames; ++i) take_one(self, i);
    return NULL;
}

static void race_latency(const grd_bundle *bundle, int frames, int two_threads, int workers, double spin_us,
                         const char *separator) {
    static double submitted_ms[MOST];
    grd_stream_params params = params_of_stream();
    grd_inspector *inspector;
    const grd_view whole = textured(), view = grd_view_of_frame(whole.data, GRD_UINT8, PATCH, PATCH, 1, W);
    params.threads = workers;
    params.frame_h = params.frame_w = PATCH, params.frame_c = 1;
    params.spin_us = spin_us;
    grd_status status = grd_inspector_open(bundle, params.inspector, &inspector);
    ensure(status, grd_inspector_message(inspector));
    grd_stream *stream;
    status = grd_stream_open(bundle, &params, &stream);
    ensure(status, grd_stream_message(stream));
    consumer taking = {stream, frames, 0, submitted_ms};
    pthread_t thread;
    if (two_threads && pthread_create(&thread, NULL, consume, &taking) != 0) exit(1);
    for (int i = 0; i < frames; ++i) {
        const grd_stream_frame frame = frame_of(i, view);
        direct_us[i] = inspect_us(inspector, &view);
        submitted_ms[i] = now_ms();
        ensure(grd_stream_submit(stream, &frame), grd_stream_message(stream));
        if (!two_threads) take_one(&taking, i);
        while (__atomic_load_n(&taking.taken, __ATOMIC_ACQUIRE) <= i) sleep_ms(0.05);
    }
    if (two_threads) pthread_join(thread, NULL);
    const double direct = percentile(direct_us, frames, 0.5);
    printf("  {\"callers\": %d, \"threads\": %d, \"spin_us\": %g, \"frames\": %d, \"direct_p50_us\": %.2f, \"added_p50_us\": %.2f, "
           "\"added_p99_us\": %.2f, \"added_p999_us\": %.2f}%s\n",
           1 + two_threads, workers, spin_us, frames, direct, percentile(stream_us, frames, 0.5) - direct,
           percentile(stream_us, frames, 0.99) - direct, percentile(stream_us, frames, 0.999) - direct, separator);
    grd_stream_close(stream);
    grd_inspector_close(inspector);
}

static void latency(int frames) {
    backend_folder(); /* says what is missing before anything is printed */
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    printf("{\"latency\": [\n");
    for (int kind = 0; kind < 8; ++kind)
        race_latency(bundle, frames, kind >> 2, 1 + (kind >> 1 & 1), kind & 1 ? 200 : 0, kind < 7 ? "," : "");
    printf("]}\n");
    grd_bundle_close(bundle);
    remove_tree(scratch_folder());
}

/* ---------------------------------------------------------------- throughput */

/* Frames a second through the stream, all but a few of them submitted ahead. */
static double stream_rate(grd_stream *stream, const grd_view *views, int frames, int64_t *shared) {
    const double began = now_ms();
    int taken = 0;
    for (int i = 0; taken < frames; ) {
        grd_stream_result result = no_result();
        if (i < frames && i - taken < AHEAD) {
            const grd_stream_frame frame = frame_of(i, views[i % 8]);
            ensure(grd_stream_submit(stream, &frame), grd_stream_message(stream));
            ++i;
            if (grd_stream_poll(stream, &result) != GRD_OK) continue;
        } else {
            ensure(grd_stream_wait(stream, &result, -1), grd_stream_message(stream));
        }
        if (result.status != GRD_OK) ensure(result.status, result.message);
        *shared += result.batch_frames;
        ++taken;
    }
    return frames / (now_ms() - began) * 1e3;
}

static void throughput(const char *path, int rounds) {
    static const struct {
        int engines, engine_threads;
    } kinds[] = {{1, 0}, {2, 1}};
    enum { KINDS = 2, FRAMES = 64, ROUNDS = 400 };
    static double direct[ROUNDS], rates[KINDS][ROUNDS], ratios[KINDS][ROUNDS];
    grd_bundle *bundle;
    grd_inspector *inspector;
    grd_stream *streams[KINDS];
    grd_bundle_info info = {0};
    grd_view views[8];
    int64_t shared[KINDS] = {0};
    if (rounds > ROUNDS) rounds = ROUNDS;
    grd_status status = grd_bundle_open(path, &bundle);
    ensure(status, grd_bundle_message(bundle));
    info.struct_size = sizeof info;
    ensure(grd_bundle_get_info(bundle, &info), grd_bundle_message(bundle));
    const int64_t h = info.cut.patch_h, w = info.cut.patch_w, c = info.cut.channels;
    const size_t bytes = (size_t)(h * w * c);
    uint8_t *pixels = malloc(bytes * 8);
    if (pixels == NULL) exit(1);
    uint32_t state = 1;
    for (size_t i = 0; i < bytes * 8; ++i) pixels[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
    for (int i = 0; i < 8; ++i) views[i] = grd_view_of_frame(pixels + bytes * (size_t)i, GRD_UINT8, h, w, c, 0);
    for (int kind = 0; kind < KINDS; ++kind) {
        grd_inspector_params engine = {0};
        grd_stream_params params = {0};
        engine.struct_size = sizeof engine;
        engine.batch_limit = 8;
        engine.threads = kinds[kind].engine_threads;
        params.struct_size = sizeof params;
        params.inspector = &engine;
        params.engines = kinds[kind].engines;
        params.queue_depth = AHEAD;
        params.frame_h = h, params.frame_w = w, params.frame_c = (int32_t)c;
        status = grd_stream_open(bundle, &params, &streams[kind]);
        ensure(status, grd_stream_message(streams[kind]));
    }
    status = grd_inspector_open(bundle, NULL, &inspector);
    ensure(status, grd_inspector_message(inspector));
    for (int round = -2; round < rounds; ++round) { /* two to warm up */
        double rate[KINDS];
        const double began = now_ms();
        for (int i = 0; i < FRAMES; ++i) inspect_us(inspector, &views[i % 8]);
        const double single = FRAMES / (now_ms() - began) * 1e3;
        for (int kind = 0; kind < KINDS; ++kind) {
            if (round == 0) shared[kind] = 0;
            rate[kind] = stream_rate(streams[kind], views, FRAMES, &shared[kind]);
        }
        if (round < 0) continue;
        direct[round] = single;
        for (int kind = 0; kind < KINDS; ++kind) rates[kind][round] = rate[kind], ratios[kind][round] = rate[kind] / single;
    }
    printf("{\"engine\": \"%s\", \"patch\": [%d, %d, %d], \"rounds\": %d, \"frames_per_round\": %d, \"calls_per_s\": %.1f,\n"
           " \"streams\": [\n",
           grd_inspector_engine_version(inspector), (int)c, (int)h, (int)w, rounds, FRAMES, percentile(direct, rounds, 0.5));
    for (int kind = 0; kind < KINDS; ++kind) {
        printf("  {\"engines\": %d, \"engine_threads\": %d, \"frames_per_s\": %.1f, \"ratio_p50\": %.3f, \"ratio_best\": %.3f, "
               "\"batch_frames\": %.2f}%s\n",
               kinds[kind].engines, kinds[kind].engine_threads, percentile(rates[kind], rounds, 0.5),
               percentile(ratios[kind], rounds, 0.5), percentile(rates[kind], rounds, 1) / percentile(direct, rounds, 1),
               (double)shared[kind] / ((double)rounds * FRAMES), kind + 1 < KINDS ? "," : "");
        grd_stream_close(streams[kind]);
    }
    printf("]}\n");
    grd_inspector_close(inspector);
    grd_bundle_close(bundle);
    free(pixels);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "latency") == 0) {
        const int frames = argc > 2 ? atoi(argv[2]) : 10000;
        latency(frames < 1 ? 1 : frames > MOST ? MOST : frames);
    } else if (argc > 2 && strcmp(argv[1], "throughput") == 0) {
        throughput(argv[2], argc > 3 ? atoi(argv[3]) : 20);
    } else {
        fprintf(stderr, "usage: bench_stream latency [frames] | bench_stream throughput BUNDLE [rounds]\n");
        return 2;
    }
    return checks_failed == 0 ? 0 : 1;
}
