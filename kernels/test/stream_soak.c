/* stream_soak.c - many frames through one stream: memory stays flat, and every count is exact.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   stream_soak [frames] [bundle folder [threads of its engine]]
 *
 * Without a bundle, one with a backend that needs no engine. Frames are of one patch; one thread submits them, another
 * takes the results. Some are too small, some miss their deadlines, and products stay incomplete. */
#define _XOPEN_SOURCE 700
#define TEST_BACKEND "identity"
#include "stream_case.h"

enum { BUFFERS = 64, PER_PRODUCT = 3, PER_RUN = 4, FAILS_EACH = 97, LATE_EACH = 13, MISSING_EACH = 1000 };

static struct {
    grd_stream *stream;
    int64_t frames, h, w, c;
    uint8_t *pixels;
    grd_patch_result patches[BUFFERS][1];
    float *heats[BUFFERS];
} all;

static int64_t resident_bytes(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1) exit(2);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static int fails(int64_t id) { return id % FAILS_EACH == 5; }
static int is_missing(int64_t product) { return product % MISSING_EACH == 7; } /* its last frame never comes */

static void *produce(void *wrong) {
    for (int64_t id = 0; id < all.frames; ++id) {
        const int64_t product = id / PER_PRODUCT;
        grd_stream_frame frame = frame_of(id, grd_view_of_frame(all.pixels + id % 251, GRD_UINT8, all.h, all.w, all.c, 0));
        frame.product = product, frame.product_frames = PER_PRODUCT + is_missing(product);
        frame.run = product / PER_RUN, frame.run_products = PER_RUN;
        frame.deadline_ms = id % LATE_EACH == 0 ? 1e-6 : 0;
        frame.patches = all.patches[id % BUFFERS];
        frame.patch_capacity = 1;
        const grd_view heat = {all.heats[id % BUFFERS], GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, all.h, all.w}, {0}};
        if (id % 2 == 0) frame.heatmap = heat;
        if (fails(id)) frame.view.extent[2] -= 1;
        *(int64_t *)wrong += grd_stream_submit(all.stream, &frame) != GRD_OK;
    }
    return NULL;
}

static void run(const grd_bundle *bundle, grd_stream_params params) {
    grd_bundle_info info = {0};
    info.struct_size = sizeof info;
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK);
    all.h = info.cut.patch_h, all.w = info.cut.patch_w, all.c = info.cut.channels;
    const size_t pixels = (size_t)(all.h * all.w * all.c) + 251;
    all.pixels = malloc(pixels);
    for (size_t i = 0; i < pixels; ++i) all.pixels[i] = (uint8_t)(i * 31 + i / 9);
    for (int i = 0; i < BUFFERS; ++i) all.heats[i] = calloc((size_t)(all.h * all.w), sizeof(float));
    params.frame_h = all.h, params.frame_w = all.w, params.frame_c = (int32_t)all.c;
    params.threads = 2;
    params.heatmaps = 1;
    params.queue_depth = 16;
    params.capacity = BUFFERS - 1; /* so that no buffer is given twice */
    const double opening_ms = now_ms();
    all.stream = opened_stream(bundle, &params);
    const double began_ms = now_ms();
    int64_t wrong = 0, wrong_in_producer = 0, outcomes[5] = {0}, products = 0, runs = 0;
    int64_t begin_bytes = 0, most_bytes = 0;
    const int64_t warm = all.frames / 10;
    pthread_t producer;
    CHECK(pthread_create(&producer, NULL, produce, &wrong_in_producer) == 0);
    for (int64_t id = 0; id < all.frames; ++id) {
        grd_stream_result got = no_result();
        wrong += grd_stream_wait(all.stream, &got, 60e3) != GRD_OK || got.id != id;
        ++outcomes[got.outcome];
        products += got.product_complete;
        runs += got.run_complete;
        wrong += fails(id) != (got.outcome == GRD_FAILED);
        if (id % 256 == 0) watch(60);
        if (id < warm || id % 64 != 0) continue;
        const int64_t bytes = resident_bytes();
        if (begin_bytes == 0) begin_bytes = bytes;
        if (bytes > most_bytes) most_bytes = bytes;
    }
    pthread_join(producer, NULL);
    const double seconds = (now_ms() - began_ms) / 1e3;
    int64_t want_failed = 0, want_late = 0, want_products = 0, want_runs = 0;
    for (int64_t id = 0; id < all.frames; ++id) {
        want_failed += fails(id);
        want_late += !fails(id) && id % LATE_EACH == 0;
        if (id % PER_PRODUCT != PER_PRODUCT - 1) continue;
        want_products += !is_missing(id / PER_PRODUCT);
        if (id / PER_PRODUCT % PER_RUN != PER_RUN - 1) continue;
        int complete = 1;
        for (int64_t i = 0; i < PER_RUN; ++i) complete = complete && !is_missing(id / PER_PRODUCT - i);
        want_runs += complete;
    }
    CHECK_THAT(wrong + wrong_in_producer == 0, ("%ld results", (long)(wrong + wrong_in_producer)));
    const grd_stream_stats stats = stats_of(all.stream);
    CHECK(stats.submitted == all.frames && stats.in_flight == 0 && stats.ready == 0 && stats.dropped == 0);
    CHECK(stats.failed == want_failed && stats.late == want_late && stats.scored == all.frames - want_failed - want_late);
    CHECK(outcomes[GRD_FAILED] == stats.failed && outcomes[GRD_LATE] == stats.late && outcomes[GRD_SCORED] == stats.scored);
    CHECK(stats.patches == all.frames - want_failed && stats.total.count == all.frames - want_failed);
    CHECK_THAT(products == want_products && runs == want_runs, ("%ld products, %ld runs", (long)products, (long)runs));
    CHECK_THAT(most_bytes - begin_bytes < 1 << 20, ("resident memory grew by %ld bytes", (long)(most_bytes - begin_bytes)));
    printf("%ld frames in %.1f s (open: %.1f s), %s: %.0f frames/s; resident %.1f MiB after %ld frames, %.2f MiB more at "
           "most\n",
           (long)all.frames, seconds, (began_ms - opening_ms) / 1e3, grd_stream_engine_version(all.stream),
           (double)all.frames / seconds, (double)begin_bytes / 1048576, (long)warm,
           (double)(most_bytes - begin_bytes) / 1048576);
    grd_stream_close(all.stream);
    for (int i = 0; i < BUFFERS; ++i) free(all.heats[i]);
    free(all.pixels);
}

int main(int argc, char **argv) {
    all.frames = argc > 1 ? atol(argv[1]) : 50000;
    if (argc > 2) {
        grd_inspector_params inspector = {0};
        grd_stream_params params = {0};
        grd_bundle *bundle;
        inspector.struct_size = sizeof inspector;
        inspector.threads = argc > 3 ? atoi(argv[3]) : 0;
        params.struct_size = sizeof params;
        params.inspector = &inspector;
        const grd_status status = grd_bundle_open(argv[2], &bundle);
        CHECK_THAT(status == GRD_OK, ("%s", grd_bundle_message(bundle)));
        if (status == GRD_OK) run(bundle, params);
        grd_bundle_close(bundle);
    } else {
        grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
        run(bundle, params_of_stream());
        grd_bundle_close(bundle);
        remove_tree(scratch_folder());
    }
    return checks_report();
}
