/* test_stream_allocations.c - a stream that is open allocates nothing, and copies no frame.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The allocator's functions are defined here, so that every call of the library, of its threads and of the backend is
 * counted. */
#define _GNU_SOURCE
#define TEST_BACKEND "identity"
#include "stream_case.h"

#include <errno.h>
#include <malloc.h>
#include <sys/mman.h>

#define EXPORTED __attribute__((visibility("default")))

static int64_t calls, live_bytes; /* of allocation; allocated and not freed */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void *memory);

static void *counted(void *memory) {
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&live_bytes, (int64_t)malloc_usable_size(memory), __ATOMIC_RELAXED);
    return memory;
}

static void forget(void *memory) {
    __atomic_sub_fetch(&live_bytes, (int64_t)malloc_usable_size(memory), __ATOMIC_RELAXED);
}

EXPORTED void *malloc(size_t bytes) { return counted(__libc_malloc(bytes)); }
EXPORTED void *calloc(size_t count, size_t bytes) { return counted(__libc_calloc(count, bytes)); }
EXPORTED void *realloc(void *memory, size_t bytes) {
    forget(memory);
    return counted(__libc_realloc(memory, bytes));
}
EXPORTED void *memalign(size_t alignment, size_t bytes) { return counted(__libc_memalign(alignment, bytes)); }
EXPORTED void *aligned_alloc(size_t alignment, size_t bytes) { return counted(__libc_memalign(alignment, bytes)); }
EXPORTED int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    *memory = counted(__libc_memalign(alignment, bytes));
    return *memory != NULL ? 0 : ENOMEM;
}
EXPORTED void free(void *memory) {
    forget(memory);
    __libc_free(memory);
}

static int64_t calls_so_far(void) { return __atomic_load_n(&calls, __ATOMIC_RELAXED); }

static int64_t seen; /* results that the callback was given */

static void count_result(void *context, const grd_stream_result *result) {
    int64_t *wrong = context;
    *wrong += result->outcome != GRD_SCORED && result->outcome != GRD_DROPPED;
    __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
}

static void check_nothing_allocated(void) {
    enum { FRAMES = 3000, BUFFERS = 200 };
    static float heats[BUFFERS][H * W];
    static grd_patch_result patches[BUFFERS][COUNT];
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    for (int kind = 0; kind < 24; ++kind) {
        const int heatmaps = kind & 1, callback = kind >> 1 & 1, several = kind >> 2 & 1, policy = kind >> 3;
        int64_t wrong = 0, taken = 0;
        grd_stream_params params = params_of_stream();
        params.frame_h = H, params.frame_w = W, params.frame_c = 1;
        params.heatmaps = heatmaps;
        params.overload = policy;
        params.engines = 1 + several;
        params.threads = 1 + 2 * several;
        params.spin_us = several ? 20 : 0;
        params.on_result = callback ? count_result : NULL;
        params.context = &wrong;
        grd_stream_result result = no_result();
        grd_stream *stream = opened_stream(bundle, &params);
        seen = 0;
        const int64_t opened = calls_so_far();
        for (int64_t id = 0; id < FRAMES; ++id) {
            grd_stream_frame frame = frame_of(id, textured());
            frame.product = id / 3, frame.product_frames = 3;
            frame.run = id / 12, frame.run_products = 4;
            frame.patches = patches[id % BUFFERS];
            frame.patch_capacity = COUNT;
            const grd_view heat = {heats[id % BUFFERS], GRD_FLOAT32, GRD_SPACE_HOST, {1, 1, H, W}, {0}};
            if (heatmaps) frame.heatmap = heat;
            grd_status status;
            while ((status = grd_stream_submit(stream, &frame)) == GRD_ERR_STREAM_FULL) sleep_ms(0.1);
            wrong += status != GRD_OK;
            if (id % 3 == 0) continue;
            while (!callback && grd_stream_poll(stream, &result) == GRD_OK) ++taken;
            if (id % 100 == 1) wrong += stats_of(stream).submitted != id + 1;
            if (id % 500 == 1) wrong += grd_stream_flush(stream, -1) != GRD_OK;
        }
        wrong += grd_stream_flush(stream, 20e3) != GRD_OK;
        while (!callback && taken < FRAMES && grd_stream_wait(stream, &result, 20e3) == GRD_OK) ++taken;
        const int64_t allocated = calls_so_far() - opened;
        CHECK_THAT(allocated == 0, ("heatmaps %d, callback %d, several %d, policy %d: %ld allocations", heatmaps,
                                    callback, several, policy, (long)allocated));
        CHECK(wrong == 0 && (callback ? seen : taken) == FRAMES);
        grd_stream_close(stream);
    }
    grd_bundle_close(bundle);
}

/* That they are seen when there are some: opening allocates, and so does this backend with every frame. */
static void check_counting(void) {
    write_bundle("gain=0.5", "\"backend\": \"identity\"", "\"backend\": \"frames\"", kDecisionJson, NULL, NULL);
    grd_bundle *bundle = opened_bundle();
    const grd_stream_params params = params_of_stream();
    const int64_t before = calls_so_far();
    grd_stream *stream = opened_stream(bundle, &params);
    CHECK(calls_so_far() > before);
    for (int64_t id = 0; id < 100; ++id) {
        const int64_t so_far = calls_so_far();
        CHECK(submit(stream, id) == GRD_OK);
        expect(stream, id, GRD_SCORED);
        CHECK(calls_so_far() > so_far);
    }
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* Frames of 64 MiB, of which one patch of 256 KiB is inspected. The stream holds far less than one of them; and rows without
 * that patch cannot be read at all. */
static void check_nothing_copied(void) {
    enum { SIDE = 8192, LARGE = 256 };
    const size_t bytes = (size_t)SIDE * SIDE;
    uint8_t *pixels = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(pixels != MAP_FAILED);
    uint8_t *rows = pixels + (size_t)SIDE * LARGE * 3;
    CHECK(mprotect(rows, (size_t)SIDE * LARGE, PROT_READ | PROT_WRITE) == 0);
    for (int i = 0; i < SIDE * LARGE; i += 3) rows[i] = (uint8_t)i;
    CHECK(mprotect(rows, (size_t)SIDE * LARGE, PROT_READ) == 0);
    static const char area[] = "\"frame_px\": [8192, 8192], \"regions\": "
                               "[{\"name\": \"one\", \"threshold\": 0.0625, \"areas\": [[768, 512, 256, 256]]}]";
    write_bundle("gain=0.5", "\"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12",
                 "\"patch_h\": 256, \"patch_w\": 256, \"stride_y\": 256, \"stride_x\": 256", kDecisionJson,
                 "\"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625}]", area);
    grd_bundle *bundle = opened_bundle();
    grd_stream_params params = params_of_stream();
    params.threads = 2;
    params.batch_frames = 1;
    params.frame_h = params.frame_w = SIDE, params.frame_c = 1;
    const int64_t before = live_bytes;
    grd_stream *stream = opened_stream(bundle, &params);
    const int64_t opened = calls_so_far(), held = live_bytes - before;
    CHECK_THAT(held < (int64_t)bytes / 8, ("%ld bytes", (long)held));
    for (int64_t id = 0; id < 200; ++id) {
        const grd_stream_frame frame = frame_of(id, grd_view_of_frame(pixels, GRD_UINT8, SIDE, SIDE, 1, 0));
        CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
        const grd_stream_result result = expect(stream, id, GRD_SCORED);
        CHECK(result.patch_count == 1 && result.decision == GRD_DEFECTIVE);
    }
    CHECK(calls_so_far() == opened);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
    munmap(pixels, bytes);
}

int main(void) {
    watch(240);

    check_counting();
    check_nothing_allocated();
    check_nothing_copied();
    remove_tree(scratch_folder());
    return checks_report();
}
