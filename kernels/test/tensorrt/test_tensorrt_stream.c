/* test_tensorrt_stream.c - streams on the TensorRT backends on fakes: two engines side by side, nothing allocated or captured
 * once the stream is open, and whatever fails costs its own frame alone.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Patches are 12x12 at strides of 7 and 11: frames of 50x61 have 42, which are three batches; those of 12x23 have 2. */
#define _XOPEN_SOURCE 700
#include "engine_file.h"

#define TEST_BACKEND KIND
#include "stream_case.h"

#include "fake_cuda.h"

enum { FRAMES = 200, KINDS = 7, MOST = 42, BATCHES = 3, LARGE_H = 50, LARGE_W = 61, SMALL_H = 12, SMALL_W = 23 };
enum { OUT_OF_MEMORY = 2, INVALID_VALUE = 1, WATCHDOG_S = 60 };

/* What comes back of a frame. */
typedef struct answer {
    grd_patch_result patches[MOST];
    float heatmap[LARGE_H * LARGE_W];
    float score;
    int32_t decision;
} answer;

static const double kPair_s = 0.02;

static uint8_t pixels[KINDS][LARGE_H * LARGE_W]; /* frame id shows pixels[id % KINDS] */
static answer wanted[2][KINDS];                  /* by generation */
static answer got[FRAMES];

static grd_view frame_view(int64_t id, int small) {
    return grd_view_of_frame(pixels[id % KINDS], GRD_UINT8, small ? SMALL_H : LARGE_H, small ? SMALL_W : LARGE_W, 1, 0);
}

static grd_view heatmap_view(float *data, int small) {
    const grd_view view = {
        data, GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, small ? SMALL_H : LARGE_H, small ? SMALL_W : LARGE_W}, {0}};
    return view;
}

static grd_bundle *engine_bundle(const char *words, const char *threshold) {
    unsigned char file[ENGINE_FILE_BYTES];
    const size_t bytes = make_engine_file(words, file);
    char *json = replaced(kBundleJson, "\"stride_y\": 12, \"stride_x\": 12", "\"stride_y\": 7, \"stride_x\": 11");
    if (strstr(words, "out_shape=") != NULL) json = replace(json, "\"reconstruction\"", "\"score_map\"");
    write_bundle_bytes(json, file, bytes, "\"format\": \"identity\"", "\"format\": \"" FORMAT "\"", kDecisionJson, "0.0625",
                       threshold);
    free(json);
    return opened_bundle();
}

/* What the backend without frames makes of them, one at a time: wanted[generation]; the one under test gives the same bits. */
static void inspect_alone(const grd_bundle *bundle, int generation, int small) {
    const char *const folders[] = {TEST_HOST, backend_folder()};
    for (int f = 0; f < 2; ++f) {
        grd_inspector_params params = {0};
        grd_inspector *inspector;
        params.struct_size = sizeof params;
        params.backend_dir = folders[f];
        CHECK(grd_inspector_open(bundle, &params, &inspector) == GRD_OK);
        for (int kind = 0; kind < KINDS; ++kind) {
            static answer fresh;
            const grd_view view = frame_view(kind, small), heatmap = heatmap_view(fresh.heatmap, small);
            grd_result result = {0};
            memset(&fresh, 0, sizeof fresh);
            result.struct_size = sizeof result;
            result.patches = fresh.patches;
            result.patch_capacity = MOST;
            result.heatmap = &heatmap;
            CHECK_THAT(grd_inspector_inspect(inspector, &view, &result) == GRD_OK, ("%s", grd_inspector_message(inspector)));
            fresh.score = result.score;
            fresh.decision = result.decision;
            if (f == 0) wanted[generation][kind] = fresh;
            CHECK(memcmp(&wanted[generation][kind], &fresh, sizeof fresh) == 0);
        }
        grd_inspector_close(inspector);
    }
    CHECK(fake_cuda_live() == 0);
}

/* A stream of so many engines for frames of one size, which share no batches. */
static grd_stream_params params_with(int engines, int small) {
    grd_stream_params params = params_of_stream();
    params.engines = engines;
    params.threads = 0;
    params.batch_frames = 1;
    params.capacity = FRAMES + params.queue_depth + 1;
    params.frame_h = small ? SMALL_H : LARGE_H;
    params.frame_w = small ? SMALL_W : LARGE_W;
    params.frame_c = 1;
    return params;
}

/* Frame id < FRAMES; every other one with its heatmap, where there are some. */
static grd_stream_frame frame_with(int64_t id, int small, int heatmaps) {
    grd_stream_frame frame = frame_of(id, frame_view(id, small));
    memset(&got[id], 0, sizeof got[id]);
    frame.patches = got[id].patches;
    frame.patch_capacity = MOST;
    if (heatmaps && id % 2) frame.heatmap = heatmap_view(got[id].heatmap, small);
    return frame;
}

static void submit_some(grd_stream *stream, int64_t first, int64_t last, int small, int heatmaps) {
    for (int64_t id = first; id < last; ++id) {
        const grd_stream_frame frame = frame_with(id, small, heatmaps);
        CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
    }
}

/* A frame that was scored shows the very bits of the inspector. */
static void check_answer(const grd_stream_result *result, int heatmaps) {
    const answer *want = &wanted[result->generation % 2][result->id % KINDS], *have = &got[result->id];
    int wrong = memcmp(want->patches, have->patches, sizeof want->patches) != 0;
    wrong += memcmp(&want->score, &result->score, sizeof want->score) != 0 || want->decision != result->decision;
    if (heatmaps && result->id % 2) wrong += memcmp(want->heatmap, have->heatmap, sizeof want->heatmap) != 0;
    CHECK_THAT(wrong == 0, ("frame %d of generation %d is wrong", (int)result->id, (int)result->generation));
}

/* Frames of these numbers come back in their order, scored right or failed; returns how many failed. */
static int take_some(grd_stream *stream, int64_t first, int64_t last, int heatmaps) {
    int failed = 0;
    for (int64_t id = first; id < last; ++id) {
        grd_stream_result result = no_result();
        CHECK(grd_stream_wait(stream, &result, 20e3) == GRD_OK && result.id == id);
        if (result.outcome == GRD_SCORED) check_answer(&result, heatmaps);
        else CHECK_THAT(result.outcome == GRD_FAILED && result.status != GRD_OK && result.message[0] != '\0',
                        ("frame %d: outcome %d", (int)id, (int)result.outcome));
        failed += result.outcome == GRD_FAILED;
    }
    return failed;
}

static void close_both(grd_stream *stream, grd_bundle *bundle) {
    grd_stream_close(stream);
    grd_bundle_close(bundle);
    CHECK_THAT(fake_cuda_live() == 0, ("%d things live on", fake_cuda_live()));
    CHECK(fake_cuda_damage() == 0);
}

/* Since the last fake_cuda_reset only graphs were launched, so many, and waited for. */
static void check_only_launched(int launches) {
    static const char *const others[] = {"cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost", "cudaStreamCreate",
                                         "cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaMemcpyAsync", "launch_cut"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; ++i)
        CHECK_THAT(fake_cuda_calls(others[i]) == 0, ("%d calls of %s", fake_cuda_calls(others[i]), others[i]));
    CHECK_THAT(fake_cuda_calls("cudaGraphLaunch") == launches && fake_cuda_calls("cudaStreamSynchronize") == launches,
               ("%d launches, expected %d", fake_cuda_calls("cudaGraphLaunch"), launches));
}

static void check_scores(int engines, int heatmaps, const char *words) {
    grd_bundle *bundle = engine_bundle(words, "0.0625");
    inspect_alone(bundle, 0, 0);
    grd_stream_params params = params_with(engines, 0);
    params.heatmaps = heatmaps;
    grd_stream *stream = opened_stream(bundle, &params);
    CHECK(strstr(grd_stream_engine_version(stream), "no CUDA graph") == NULL);
    fake_cuda_reset();
    fake_cuda_pair(kPair_s * (engines > 1)); /* one engine's work waits for the other to have some, too */
    submit_some(stream, 0, FRAMES, 0, heatmaps);
    CHECK(take_some(stream, 0, FRAMES, heatmaps) == 0);
    check_only_launched(FRAMES * BATCHES);
    /* Most of them: a thread that the system stops while it cuts holds the frames behind it back. */
    const int pairs = fake_cuda_pairs(), alone = fake_cuda_alone();
    if (engines > 1)
        CHECK_THAT(2 * pairs + alone == FRAMES * BATCHES && alone < pairs, ("%d pairs, %d alone", pairs, alone));
    fake_cuda_pair(0);
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.scored == FRAMES && stats.patches == FRAMES * MOST && stats.batches == FRAMES);
    close_both(stream, bundle);
}

/* Small frames share batches, some of which do not come to the engine: only sizes that were prepared are used. */
static void check_shared_batches(int engines) {
    grd_bundle *bundle = engine_bundle("gain=0.5", "0.0625");
    inspect_alone(bundle, 0, 1);
    grd_stream_params params = params_with(engines, 1);
    params.batch_frames = 0;
    params.queue_depth = 32;
    params.capacity = FRAMES + params.queue_depth + 1;
    fake_cuda_delay(300); /* so that a batch of many is the cheapest */
    grd_stream *stream = opened_stream(bundle, &params);
    fake_cuda_reset();
    int bad = 0;
    for (int64_t id = 0; id < FRAMES; ++id) {
        grd_stream_frame frame = frame_with(id, 1, 0);
        if (id % 5 == 3) frame.patch_capacity = 1;
        bad += id % 5 == 3;
        CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
    }
    CHECK(take_some(stream, 0, FRAMES, 0) == bad);
    fake_cuda_delay(0);
    const int launches = fake_cuda_calls("cudaGraphLaunch");
    check_only_launched(launches);
    const grd_stream_stats stats = stats_of(stream);
    CHECK_THAT(stats.scored == FRAMES - bad && launches <= FRAMES - bad, ("%d launches", launches));
    if (strcmp(backend_folder(), TEST_HOST) == 0) CHECK_THAT(launches < FRAMES / 2, ("%d launches", launches));
    close_both(stream, bundle);
}

static const char *const kCalls[] = {"cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize", "cudaMemcpyAsync",
                                     "launch_cut", "launch_score", "cudaMalloc", "cudaMallocHost",
                                     "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"};
enum { CALLS = sizeof kCalls / sizeof kCalls[0] };

static void fail_later(const char *call, int after) {
    fake_cuda_reset();
    fake_cuda_fail(call, after, strstr(call, "Malloc") != NULL ? OUT_OF_MEMORY : INVALID_VALUE);
}

/* Every call fails at some moment of a stream under load: at most one frame fails, and the others are right. */
static void check_failures(int graphs) {
    enum { ROUNDS = 4, EACH = 10 };
    setenv("GRD_NO_CUDA_GRAPH", graphs ? "0" : "1", 1);
    grd_bundle *bundle = engine_bundle("gain=0.5", "0.0625");
    inspect_alone(bundle, 0, 0);
    grd_stream_params params = params_with(2, 0);
    params.heatmaps = 1;
    grd_stream *stream = opened_stream(bundle, &params);
    int all_failed = 0, spent_once = 0, rounds = 0;
    unsigned state = 7;
    for (size_t c = 0; c < CALLS; ++c)
        for (int round = 0; round < ROUNDS; ++round, ++rounds) {
            state = state * 1103515245u + 12345u;
            const int after = (int)(state >> 16) % (EACH * BATCHES);
            fail_later(kCalls[c], after % (c == 0 ? EACH : EACH * BATCHES));
            submit_some(stream, 0, EACH, 0, 1);
            const int failed = take_some(stream, 0, EACH, 1);
            const int spent = fake_cuda_calls(kCalls[c]) > after % (c == 0 ? EACH : EACH * BATCHES);
            fake_cuda_fail(NULL, 0, 0);
            /* A graph that is not launched is enqueued by hand. */
            CHECK_THAT(failed == (spent && c != 1), ("%s after %d: %d failed", kCalls[c], after, failed));
            all_failed += failed;
            spent_once += spent;
        }
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.failed == all_failed && stats.scored == rounds * EACH - all_failed && stats.in_flight == 0);
    CHECK_THAT(spent_once >= ROUNDS * 2, ("%d failures", spent_once));
    close_both(stream, bundle);
}

/* The same at the first frames of sizes that were not announced, when memory is allocated and graphs are captured; and the
 * stream is closed behind the failure. */
static void check_first_frames(void) {
    enum { EACH = 6 };
    grd_bundle *bundle = engine_bundle("gain=0.5 in=half", "0.0625");
    inspect_alone(bundle, 0, 0);
    for (size_t c = 0; c < CALLS; ++c)
        for (int after = 0, spent = 1; spent && after < 40; after += 1 + after / 3) {
            const int count = after % 2 ? 1 : EACH;
            grd_stream_params params = params_with(2, 0);
            params.frame_h = params.frame_w = params.frame_c = 0;
            grd_stream *stream = opened_stream(bundle, &params);
            fail_later(kCalls[c], after);
            submit_some(stream, 0, count, 0, 0);
            const int failed = take_some(stream, 0, count, 0);
            spent = fake_cuda_calls(kCalls[c]) > after;
            CHECK_THAT(failed <= spent, ("%s after %d: %d failed", kCalls[c], after, failed));
            fake_cuda_fail(NULL, 0, 0);
            CHECK(stats_of(stream).failed == failed);
            if (after % 2 == 0) {
                submit_some(stream, EACH, 2 * EACH, 0, 0);
                CHECK(take_some(stream, EACH, 2 * EACH, 0) == 0);
            }
            grd_stream_close(stream);
            CHECK(fake_cuda_live() == 0 && fake_cuda_damage() == 0);
        }
    grd_bundle_close(bundle);
}

typedef struct producer {
    grd_stream *stream;
    int failed;
} producer;

static void *produce(void *data) {
    producer *self = data;
    for (int64_t id = 0; id < FRAMES; ++id) {
        const grd_stream_frame frame = frame_with(id, 0, 1);
        self->failed += grd_stream_submit(self->stream, &frame) != GRD_OK;
    }
    return NULL;
}

/* Bundles take turns while frames are under way: graphs of the new one are captured beside launches of the old one's. */
static void check_swaps(void) {
    static const char *const words[] = {"gain=0.5", "gain=0.25 in=half out=half"}, *const thresholds[] = {"0.0625", "0.5"};
    grd_bundle *bundles[2];
    for (int i = 0; i < 2; ++i) {
        bundles[i] = engine_bundle(words[i], thresholds[i]);
        inspect_alone(bundles[i], i, 0);
    }
    grd_stream_params params = params_with(2, 0);
    params.heatmaps = 1;
    fake_cuda_delay(200);
    grd_stream *stream = opened_stream(bundles[0], &params);
    const int live = fake_cuda_live();
    producer self = {stream, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, produce, &self) == 0);
    for (int swap = 1; swap <= 4; ++swap)
        CHECK_THAT(grd_stream_swap(stream, bundles[swap % 2]) == GRD_OK, ("%s", grd_stream_message(stream)));
    CHECK(pthread_join(thread, NULL) == 0 && self.failed == 0);
    CHECK(take_some(stream, 0, FRAMES, 1) == 0);
    CHECK_THAT(fake_cuda_live() == live, ("%d things live, %d did", fake_cuda_live(), live));
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.generation == 4 && stats.scored == FRAMES);
    /* One that does not open leaves the old one in charge, and nothing else. */
    grd_bundle *refused = engine_bundle("fail=enqueue", "0.0625");
    CHECK(grd_stream_swap(stream, refused) == GRD_ERR_ENGINE_RUN && fake_cuda_live() == live);
    fake_cuda_delay(0);
    submit_some(stream, 0, 4, 0, 1);
    CHECK(take_some(stream, 0, 4, 1) == 0);
    grd_stream_close(stream);
    CHECK(fake_cuda_live() == 0 && fake_cuda_damage() == 0);
    for (int i = 0; i < 2; ++i) grd_bundle_close(bundles[i]);
    grd_bundle_close(refused);
}

/* Closed with any number of frames under way, at any moment: what is in work ends, and so do the threads. */
static void check_closing(void) {
    grd_bundle *bundle = engine_bundle("gain=0.5", "0.0625");
    grd_stream_params params = params_with(2, 0);
    params.frame_h = params.frame_w = params.frame_c = 0;
    fake_cuda_delay(100);
    for (int i = 0; i < 48; ++i) {
        grd_stream *stream = opened_stream(bundle, &params);
        submit_some(stream, 0, i % 7, 0, 0);
        sleep_ms(i / 7 * 0.3);
        grd_stream_close(stream);
        CHECK(fake_cuda_live() == 0);
    }
    fake_cuda_delay(0);
    grd_bundle_close(bundle);
}

int main(void) {
    static const char *const folders[] = {TEST_HOST, TEST_FRAMES};
    for (int kind = 0; kind < KINDS; ++kind)
        for (int i = 0; i < LARGE_H * LARGE_W; ++i) pixels[kind][i] = (uint8_t)(i * 37 + (i + kind) / 7 * 11 + kind * 5);
    setvbuf(stdout, NULL, _IOLBF, 0); /* for what the watchdog would lose */
    setenv("FAKE_TENSORRT_VERSION", TEST_VERSION, 1);
    setenv("GRD_VENDOR_DIR", TEST_VENDOR, 1);
    for (int i = 0; i < 2; ++i) {
        watch(WATCHDOG_S);
        setenv("GRD_TEST_BACKENDS", folders[i], 1);
        for (int engines = 1; engines <= 2; ++engines) {
            for (int heatmaps = 0; heatmaps < 2; ++heatmaps) check_scores(engines, heatmaps, "gain=0.5");
            check_shared_batches(engines);
        }
        check_scores(2, 1, "gain=0.5 in=half out=half");
        check_scores(2, 1, "gain=0.5 out_shape=1x13x12");
        check_failures(1);
        check_failures(0);
        unsetenv("GRD_NO_CUDA_GRAPH");
        check_first_frames();
        check_swaps();
        check_closing();
    }
    remove_tree(scratch_folder());
    return checks_report();
}
