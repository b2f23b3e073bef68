/* test_frames.c - whole frames by the TensorRT backends on fakes: the very bits that the kernels of the host give.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include "tensorrt_test.h"

enum { FRAME_H = 50, FRAME_W = 61, MOST = 64, BIG_C = 3 };

static uint8_t pixels[FRAME_H * (FRAME_W + 5) * BIG_C * 2];
static uint8_t mask_bytes[MOST * PATCH];

typedef struct answer {
    float phi[GUARD + MOST + GUARD], phi_local[GUARD + MOST + GUARD];
    float heatmaps[GUARD + MOST * PATCH + GUARD], x_hat[GUARD + MOST * PATCH + GUARD];
} answer;

static grd_cut_params cut_of(int scale_px) {
    grd_cut_params cut = {sizeof cut, scale_px, H, W, 7, 11, C, GRD_PADDING_ERROR};
    return cut;
}

static grd_view view_of(void *data, int32_t dtype, int64_t n, int64_t c) {
    const grd_view view = {data, dtype, GRD_SPACE_HOST, {n, c, H, W}, {0}};
    return view;
}

/* What has to come out, patch by patch. */
static void expect(const grd_cut_params *cut, const grd_view *frame, const grd_grid *grid, const int32_t *indices,
                   const uint8_t *const *masks, int32_t count, float gain, answer *out) {
    static float x[MOST * PATCH], x_hat[PATCH];
    const grd_view all = view_of(x, GRD_FLOAT32, grid->count, C);
    CHECK(grd_cut_frame(cut, frame, &all, NULL) == GRD_OK);
    for (int32_t i = 0; i < count; ++i) {
        grd_score_params params = {0};
        grd_score_outputs outputs = {0};
        float *patch = x + indices[i] * PATCH;
        for (int k = 0; k < PATCH; ++k) x_hat[k] = out->x_hat[GUARD + i * PATCH + k] = gain * patch[k];
        const grd_view one = view_of(patch, GRD_FLOAT32, 1, C), one_hat = view_of(x_hat, GRD_FLOAT32, 1, C);
        const grd_view map = view_of(out->heatmaps + GUARD + i * PATCH, GRD_FLOAT32, 1, 1);
        const grd_view roi = view_of(mask_bytes + i * PATCH, GRD_UINT8, 1, 1);
        params.struct_size = sizeof params;
        params.local_window_px = 5;
        params.roi = masks != NULL && masks[i] != NULL ? &roi : NULL;
        outputs.struct_size = sizeof outputs;
        outputs.phi = out->phi + GUARD + i;
        outputs.phi_local = out->phi_local + GUARD + i;
        outputs.heatmap = &map;
        CHECK(grd_score_patches(&params, &one, &one_hat, &outputs) == GRD_OK);
    }
}

/* Values that differ beyond the tolerance; those outside [GUARD, GUARD + count) must be as they were. */
static int off(const float *got, const float *want, int count, int room, float tolerance) {
    int wrong = 0;
    for (int i = 0; i < room + 2 * GUARD; ++i) {
        const int inside = i >= GUARD && i < GUARD + count;
        const float difference = got[i] - (inside ? want[i] : -7);
        wrong += !(difference <= tolerance && difference >= -tolerance);
    }
    return wrong;
}

static void fill(answer *out) {
    for (size_t i = 0; i < sizeof *out / sizeof(float); ++i) ((float *)out)[i] = -7;
}

static grd_frame_desc frames_desc(int scale_px) {
    grd_frame_desc desc = {sizeof desc, GRD_WINDOW_GAUSSIAN, 5, cut_of(scale_px)};
    return desc;
}

enum { WITH_MASKS = 1, WITH_HEATMAPS = 2, WITH_X_HAT = 4, SOME = 8 };

/* One frame with these wishes; every other patch with SOME. */
static grd_status inspect(void *frames, int scale_px, const grd_view *frame, int wishes, float gain, float tolerance) {
    static answer got, want;
    const grd_cut_params cut = cut_of(scale_px);
    grd_grid grid = {0};
    int32_t indices[MOST], count = 0;
    const uint8_t *masks[MOST];
    grid.struct_size = sizeof grid;
    CHECK(grd_cut_grid(&cut, frame->extent[2], frame->extent[3], &grid) == GRD_OK && grid.count <= MOST);
    for (int32_t i = 0; i < grid.count; i += wishes & SOME ? 2 : 1) {
        masks[count] = count % 3 == 1 ? mask_bytes + count * PATCH : NULL;
        indices[count++] = i;
    }
    fill(&got);
    grd_frame_work work = {0};
    work.struct_size = sizeof work;
    work.count = count;
    work.frame = frame;
    work.grid = &grid;
    work.indices = indices;
    work.masks = wishes & WITH_MASKS ? masks : NULL;
    work.phi = got.phi + GUARD;
    work.phi_local = got.phi_local + GUARD;
    work.heatmaps = wishes & WITH_HEATMAPS ? got.heatmaps + GUARD : NULL;
    work.x_hat = wishes & WITH_X_HAT ? got.x_hat + GUARD : NULL;
    const grd_status status = backend->frame_inspect(frames, &work, message, sizeof message);
    if (status != GRD_OK) return status;
    expect(&cut, frame, &grid, indices, work.masks, count, gain, &want);
    const int wrong = off(got.phi, want.phi, count, MOST, tolerance) + off(got.phi_local, want.phi_local, count, MOST, tolerance);
    const int maps = off(got.heatmaps, want.heatmaps, wishes & WITH_HEATMAPS ? count * PATCH : 0, MOST * PATCH, tolerance);
    const int hats = off(got.x_hat, want.x_hat, wishes & WITH_X_HAT ? count * PATCH : 0, MOST * PATCH, tolerance);
    CHECK_THAT(wrong == 0 && maps == 0 && hats == 0, ("wishes %d: %d scores, %d of maps, %d of x_hat", wishes, wrong, maps, hats));
    return status;
}

static void *open_frames(void *engine, int scale_px) {
    void *frames = NULL;
    const grd_frame_desc desc = frames_desc(scale_px);
    CHECK_THAT(backend->frame_open(engine, &desc, &frames, message, sizeof message) == GRD_OK, ("%s", message));
    return frames;
}

static void check_frames(void) {
    static const struct {
        const char *words;
        float tolerance;
    } types[] = {{"gain=0.5", 0}, {"gain=0.5 in=half", 1e-3f}, {"gain=0.5 out=half", 1e-3f}, {"gain=0.5 in=half out=half", 1e-3f}};
    const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, FRAME_H, FRAME_W, C, 0);
    const grd_view smaller = grd_view_of_frame(pixels, GRD_UINT8, 31, 33, C, FRAME_W);
    const grd_view color = grd_view_of_frame(pixels, GRD_UINT8, FRAME_H, FRAME_W, 3, (FRAME_W + 5) * 3);
    const grd_view deep = grd_view_of_frame(pixels, GRD_UINT16, FRAME_H, FRAME_W, C, 0);
    const grd_view planar = {pixels, GRD_UINT8, GRD_SPACE_HOST, {1, 3, FRAME_H, FRAME_W}, {0}};
    const grd_view strided = {pixels + 7, GRD_UINT8, GRD_SPACE_HOST, {1, 3, FRAME_H, FRAME_W}, {0, 1, 2 * 3 * FRAME_W, 6}};
    for (size_t t = 0; t < sizeof types / sizeof types[0]; ++t) {
        void *engine;
        const grd_engine_desc desc = make_desc(types[t].words);
        CHECK_THAT(open_engine(&desc, &engine) == GRD_OK, ("%s", message));
        for (int scale_px = 0; scale_px <= 37; scale_px += 37) {
            void *frames = open_frames(engine, scale_px);
            const float tolerance = types[t].tolerance;
            for (int wishes = 0; wishes < 16; ++wishes)
                CHECK(inspect(frames, scale_px, &frame, wishes, 0.5f, tolerance) == GRD_OK);
            /* Seen before: nothing is allocated or captured any more, each batch is one launch, and the frame goes once. */
            fake_cuda_reset();
            pixels[99] ^= 0x55;
            CHECK(inspect(frames, scale_px, &frame, WITH_HEATMAPS, 0.5f, tolerance) == GRD_OK);
            const int batches = fake_cuda_calls("cudaGraphLaunch");
            CHECK_THAT(batches == (scale_px == 0 ? 3 : 1), ("%d batches", batches)); /* of 42 and 20 patches */
            CHECK(fake_cuda_calls("cudaMemcpyAsync") == 0 && fake_cuda_calls("cudaMalloc") == 0);
            CHECK(fake_cuda_calls("cudaMallocHost") == 0 && fake_cuda_calls("cudaStreamBeginCapture") == 0);
            const grd_view *const others[] = {&smaller, &frame, &color, &planar, &strided, &deep, &frame};
            for (size_t i = 0; i < sizeof others / sizeof others[0]; ++i)
                for (int round = 0; round < 2; ++round)
                    CHECK(inspect(frames, scale_px, others[i], WITH_X_HAT, 0.5f, tolerance) == GRD_OK);
            CHECK(run(engine, 3, 0.5f, tolerance) == GRD_OK); /* batches of the host still go */
            backend->frame_close(frames);
        }
        close_engine(engine);
    }
}

/* Without graphs, all the same; a score that the kernels do not take, and one of the engine's own, is left to the host. */
static void check_other_ways(void) {
    void *engine, *frames;
    const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, FRAME_H, FRAME_W, C, 0);
    const grd_engine_desc desc = make_desc("gain=0.5 fail=capture");
    CHECK(open_engine(&desc, &engine) == GRD_OK);
    frames = open_frames(engine, 0);
    for (int round = 0; round < 3; ++round) CHECK(inspect(frames, 0, &frame, WITH_MASKS, 0.5f, 0) == GRD_OK);
    CHECK(strstr(backend->engine_version(engine), "no CUDA graph for batches of") != NULL);
    backend->frame_close(frames);
    grd_frame_desc local = frames_desc(0);
    local.local_window_px = 300;
    frames = &local;
    CHECK(backend->frame_open(engine, &local, &frames, message, sizeof message) == GRD_OK && frames == NULL);
    CHECK(strstr(backend->engine_version(engine), "cut and scored on the host") != NULL);
    local.struct_size = 4;
    CHECK(backend->frame_open(engine, &local, &frames, message, sizeof message) == GRD_ERR_ARGUMENT);
    CHECK(backend->frame_inspect(NULL, NULL, message, sizeof message) == GRD_ERR_ARGUMENT);
    close_engine(engine);
    grd_engine_desc scores = make_desc("out_shape=1x13x12");
    scores.output_c = 1, scores.output_h = H + 1, scores.output_w = W;
    CHECK_THAT(open_engine(&scores, &engine) == GRD_OK, ("%s", message));
    CHECK(open_frames(engine, 0) == NULL);
    CHECK(strstr(backend->engine_version(engine), "on the host (the engine yields no reconstructions)") != NULL);
    close_engine(engine);
}

/* Every call fails once at every place: a sentence, and the next frame is right. */
static void check_failures(void) {
    static const char *const calls[] = {"cudaSetDevice", "cudaMalloc", "cudaMallocHost", "cudaMemsetAsync", "cudaMemcpyAsync",
                                        "cudaStreamSynchronize", "launch_cut", "launch_score", "cudaGraphLaunch"};
    const grd_view frame = grd_view_of_frame(pixels, GRD_UINT8, FRAME_H, FRAME_W, C, 0);
    for (size_t c = 0; c < sizeof calls / sizeof calls[0]; ++c)
        for (int after = 0, spent = 1; spent; ++after) {
            void *engine, *frames = NULL;
            const grd_engine_desc desc = make_desc("gain=0.5");
            const grd_frame_desc wanted = frames_desc(0);
            CHECK(open_engine(&desc, &engine) == GRD_OK);
            fake_cuda_reset();
            fake_cuda_fail(calls[c], after, strstr(calls[c], "Malloc") != NULL ? OUT_OF_MEMORY : INVALID_VALUE);
            grd_status status = backend->frame_open(engine, &wanted, &frames, message, sizeof message);
            for (int round = 0; round < 2 && status == GRD_OK; ++round) status = inspect(frames, 0, &frame, 7, 0.5f, 0);
            spent = fake_cuda_calls(calls[c]) > after;
            CHECK_THAT(status == GRD_OK || strstr(message, "words of the driver") != NULL, ("%s: %s", calls[c], message));
            fake_cuda_fail(NULL, 0, 0);
            if (frames == NULL) frames = open_frames(engine, 0);
            CHECK_THAT(inspect(frames, 0, &frame, 7, 0.5f, 0) == GRD_OK, ("%s after %d: %s", calls[c], after, message));
            backend->frame_close(frames);
            close_engine(engine);
        }
}

int main(void) {
    for (size_t i = 0; i < sizeof pixels; ++i) pixels[i] = (uint8_t)(i * 37 + i / 7 * 11);
    for (size_t i = 0; i < sizeof mask_bytes; ++i) mask_bytes[i] = (i / 5 + i / 31) % 3 == 0;
    setenv("GRD_FORCE_VARIANT", "scalar", 1); /* here and behind the fake alike */
    if (!load_backend()) return 1;
    check_frames();
    check_other_ways();
    check_failures();
    return checks_report();
}
