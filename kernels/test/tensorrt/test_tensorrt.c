/* test_tensorrt.c - the TensorRT backends against a fake of the vendor's library and a fake CUDA runtime.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include "score_map_case.h"
#include "tensorrt_test.h"

static void check_types_and_batches(void) {
    static const char *const types[] = {"in=float out=float", "in=half out=float", "in=float out=half",
                                        "in=half out=half"};
    static const int sizes[] = {1, 2, 3, 7, 10, 11, 20};
    for (int t = 0; t < 4; ++t) {
        char words[128];
        void *engine;
        snprintf(words, sizeof words, "gain=0.5 %s", types[t]);
        const grd_engine_desc desc = make_desc(words);
        CHECK_THAT(open_engine(&desc, &engine) == GRD_OK, ("%s", message));
        memset(file, 0xff, sizeof file); /* the file is the caller's again */
        char expected[128];
        snprintf(expected, sizeof expected, "TensorRT%s %s, Fake GPU (8.9)", strcmp(KIND, "tensorrt") == 0 ? "" : "-RTX",
                 TEST_VERSION);
        CHECK_THAT(strcmp(backend->engine_version(engine), expected) == 0, ("%s", backend->engine_version(engine)));
        fake_cuda_reset();
        for (int round = 0; round < 3; ++round)
            for (int s = 0; s < 7; ++s)
                CHECK_THAT(run(engine, sizes[s], 0.5f, t == 0 ? 0 : 1e-3f) == GRD_OK, ("%s", message));
        /* 20 was captured at the opening; each other size at its first use. */
        CHECK(fake_cuda_calls("cudaStreamBeginCapture") == 6 && fake_cuda_calls("cudaGraphLaunch") == 15);
        CHECK(fake_cuda_calls("cudaMalloc") == 0 && fake_cuda_calls("cudaMallocHost") == 0);
        CHECK(strcmp(backend->engine_version(engine), expected) == 0);
        close_engine(engine);
    }
}

/* More sizes than contexts: the rest share one, without graphs, and this is told. */
static void check_many_sizes(void) {
    void *engine;
    const grd_engine_desc desc = make_desc("gain=0.25 scratch=0");
    CHECK(open_engine(&desc, &engine) == GRD_OK);
    fake_cuda_reset();
    for (int round = 0; round < 2; ++round)
        for (int n = 1; n <= LIMIT; ++n) CHECK(run(engine, n, 0.25f, 0) == GRD_OK);
    CHECK(fake_cuda_calls("cudaStreamBeginCapture") == 15 && fake_cuda_calls("cudaMalloc") == 0);
    CHECK_THAT(strstr(backend->engine_version(engine), ", no CUDA graphs beyond 16 batch sizes") != NULL,
               ("%s", backend->engine_version(engine)));
    close_engine(engine);
}

/* Without graphs all is the same, and the text says why there are none. */
static void check_without_graphs(void) {
    static const struct {
        const char *words, *off, *failing, *reason;
    } cases[] = {
        {"fail=capture", NULL, NULL, "does not run the engine: told to fail at capture"},
        {"", "1", NULL, "GRD_NO_CUDA_GRAPH is set"},
        {"", NULL, "cudaStreamBeginCapture", "cudaStreamBeginCapture: words of the driver"},
        {"", NULL, "cudaStreamEndCapture", "cudaStreamEndCapture: words of the driver"},
        {"", NULL, "cudaGraphInstantiate", "cudaGraphInstantiate: words of the driver"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        void *engine;
        const grd_engine_desc desc = make_desc(cases[i].words);
        if (cases[i].off != NULL) setenv("GRD_NO_CUDA_GRAPH", cases[i].off, 1);
        fake_cuda_fail(cases[i].failing, 0, INVALID_VALUE);
        CHECK_THAT(open_engine(&desc, &engine) == GRD_OK, ("%s", message));
        fake_cuda_reset();
        for (int round = 0; round < 3; ++round) CHECK(run(engine, LIMIT, 1, 0) == GRD_OK);
        CHECK(fake_cuda_calls("cudaGraphLaunch") == 0);
        const char *told = strstr(backend->engine_version(engine), "no CUDA graph");
        CHECK_THAT(told != NULL && strstr(told, cases[i].reason) != NULL, ("%s", backend->engine_version(engine)));
        unsetenv("GRD_NO_CUDA_GRAPH");
        close_engine(engine);
    }
    void *engine;
    const grd_engine_desc desc = make_desc("");
    CHECK(open_engine(&desc, &engine) == GRD_OK);
    fake_cuda_fail("cudaGraphLaunch", 1, INVALID_VALUE); /* later on */
    for (int round = 0; round < 4; ++round) CHECK(run(engine, LIMIT, 1, 0) == GRD_OK);
    CHECK(strstr(backend->engine_version(engine), "batches of 20 (cudaGraphLaunch: words of the driver)") != NULL);
    close_engine(engine);
}

/* Every CUDA call fails once at every place: a sentence, nothing leaks, and the next try works. */
static void check_cuda_failures(void) {
    static const char *const calls[] = {"cudaGetDeviceCount", "cudaGetDevice",    "cudaSetDevice",
                                        "cudaGetDeviceProperties", "cudaMalloc",  "cudaMallocHost",
                                        "cudaStreamCreate",   "cudaMemcpyAsync",  "cudaStreamSynchronize"};
    for (size_t c = 0; c < sizeof calls / sizeof calls[0]; ++c) {
        const int memory = strstr(calls[c], "Malloc") != NULL;
        int failures = 0;
        for (int after = 0;; ++after) {
            void *engine;
            const grd_engine_desc desc = make_desc("gain=0.5");
            fake_cuda_reset();
            fake_cuda_fail(calls[c], after, memory ? OUT_OF_MEMORY : INVALID_VALUE);
            grd_status status = open_engine(&desc, &engine);
            const int at_open = status != GRD_OK;
            if (!at_open) status = run(engine, 2, 0.5f, 0);
            const grd_status expected = memory ? GRD_ERR_MEMORY : c < 4 ? GRD_ERR_DEVICE : GRD_ERR_ENGINE_RUN;
            if (status != GRD_OK) {
                ++failures;
                CHECK_THAT(status == expected && strstr(message, "words of the driver") != NULL,
                           ("%s after %d: %d, %s", calls[c], after, (int)status, message));
            }
            const int spent = fake_cuda_calls(calls[c]) > after;
            fake_cuda_fail(NULL, 0, 0);
            if (at_open) {
                CHECK(engine == NULL && fake_cuda_live() == 0);
            } else {
                CHECK_THAT(run(engine, 2, 0.5f, 0) == GRD_OK, ("%s", message)); /* it survives */
                close_engine(engine);
            }
            if (!spent) break;
        }
        CHECK_THAT(failures > 0, ("%s never failed", calls[c]));
    }
}

/* What the engine yields of a patch may have other extents than the patch. */
static void check_score_maps(void) {
    enum { MADE = (H + 1) * W, N = 7 };
    static const char *const types[] = {"in=float out=float", "in=half out=half"};
    static float x[N * PATCH], y[GUARD + N * MADE + GUARD], want[MADE];
    for (int t = 0; t < 2; ++t) {
        char words[128];
        void *engine;
        snprintf(words, sizeof words, "gain=0.5 out_shape=1x13x12 %s", types[t]);
        grd_engine_desc desc = make_desc(words);
        CHECK(open_engine(&desc, &engine) == GRD_ERR_SHAPE && strstr(message, "is -1x1x13x12, expected N x 1 x 12 x 12"));
        desc.output_c = 1, desc.output_h = H + 1, desc.output_w = W;
        CHECK_THAT(open_engine(&desc, &engine) == GRD_OK, ("%s", message));
        const grd_view in = {x, GRD_FLOAT32, GRD_SPACE_HOST, {N, C, H, W}, {0}};
        grd_view out = {y + GUARD, GRD_FLOAT32, GRD_SPACE_HOST, {N, 1, H + 1, W}, {0}};
        for (int round = 0; round < 3; ++round) { /* by hand, captured, launched */
            int wrong = 0;
            for (int i = 0; i < N * PATCH; ++i) x[i] = (float)((i * 37 + round) % 256) / 255.0f;
            for (size_t i = 0; i < sizeof y / sizeof y[0]; ++i) y[i] = -7;
            CHECK_THAT(backend->engine_infer(engine, &in, &out, message, sizeof message) == GRD_OK, ("%s", message));
            for (int n = 0; n < N; ++n) {
                write_score_map(x + n * PATCH, want, H, W, 0.5f);
                for (int i = 0; i < MADE; ++i) {
                    const float off = y[GUARD + n * MADE + i] - want[i], allowed = t == 0 ? 0 : 1e-3f;
                    wrong += !(off <= allowed && off >= -allowed);
                }
            }
            for (int i = 0; i < GUARD; ++i) wrong += y[i] != -7 || y[GUARD + N * MADE + i] != -7;
            CHECK_THAT(wrong == 0, ("%s: %d values", words, wrong));
        }
        out.extent[2] = H;
        CHECK(backend->engine_infer(engine, &in, &out, message, sizeof message) == GRD_ERR_SHAPE);
        close_engine(engine);
    }
    void *engine;
    grd_engine_desc desc = make_desc("");
    desc.output_c = 1, desc.output_h = H + 1, desc.output_w = W;
    CHECK(open_engine(&desc, &engine) == GRD_ERR_SHAPE && strstr(message, "is -1x1x12x12, expected N x 1 x 13 x 12"));
    desc.struct_size = offsetof(grd_engine_desc, output_c); /* of a library that knows patches only */
    CHECK(open_engine(&desc, &engine) == GRD_OK);
    close_engine(engine);
}

static void check_refusals(void) {
    static const struct {
        const char *words;
        grd_status expected;
        const char *said;
    } engines[] = {
        {"fail=read", GRD_ERR_ENGINE_OPEN, "does not read the engine: told to fail at read; rebuild it: grd-edge build "
                                           "engine BUNDLE --target the-target"},
        {"fail=context", GRD_ERR_ENGINE_RUN, "gives no execution context: told to fail at context"},
        {"fail=enqueue", GRD_ERR_ENGINE_RUN, "does not run the engine: told to fail at enqueue"},
        {"sides=3", GRD_ERR_ENGINE_OPEN, "3 inputs and outputs"},
        {"sides=1", GRD_ERR_ENGINE_OPEN, "1 inputs and outputs"},
        {"outputs=2", GRD_ERR_ENGINE_OPEN, "expected one of each"},
        {"in=int8", GRD_ERR_ENGINE_OPEN, "input \"x\" has data type 2, expected FLOAT or HALF"},
        {"out=int8", GRD_ERR_ENGINE_OPEN, "output \"x_hat\" has data type 2"},
        {"format=other", GRD_ERR_ENGINE_OPEN, "not in linear format"},
        {"shape=3x12x12", GRD_ERR_SHAPE, "input \"x\" is -1x3x12x12, expected N x 1 x 12 x 12"},
        {"out_shape=1x12x13", GRD_ERR_SHAPE, "output \"x_hat\" is -1x1x12x13"},
        {"shape=1x12", GRD_ERR_SHAPE, "-1x1x12,"},
        {"profile=1:8:19", GRD_ERR_SHAPE, "profile is 1:8:19 patches but batches of up to 20 are wanted; lower "
                                          "batch_limit to 19, or rebuild it: grd-edge build engine BUNDLE --target "
                                          "the-target --batch 1:8:20"},
        {"profile=8:8:20", GRD_ERR_SHAPE, "8:8:20 patches, which leaves out single patches"},
#ifdef TEST_SDK
        {"invalid=version", GRD_ERR_ENGINE_MISMATCH, "another version of TensorRT-RTX: told that it is invalid"},
#endif
    };
    for (size_t i = 0; i < sizeof engines / sizeof engines[0]; ++i) {
        void *engine;
        const grd_engine_desc desc = make_desc(engines[i].words);
        const grd_status status = open_engine(&desc, &engine);
        CHECK_THAT(status == engines[i].expected && strstr(message, engines[i].said) != NULL,
                   ("%s: %d, %s", engines[i].words, (int)status, message));
        CHECK(engine == NULL && strchr(message, '\n') == NULL && fake_cuda_live() == 0);
    }

#define REFUSED(change, expected, piece) \
    do { \
        void *engine; \
        grd_engine_desc desc = make_desc(""); \
        change; \
        const grd_status status = open_engine(&desc, &engine); \
        CHECK_THAT(status == (expected) && strstr(message, piece) != NULL, \
                   (#change ": %d, %s", (int)status, message)); \
        CHECK(engine == NULL && strchr(message, '\n') == NULL && fake_cuda_live() == 0); \
    } while (0)
    REFUSED(desc.format = "onnx", GRD_ERR_ENGINE_OPEN, "this engine has \"onnx\"");
    REFUSED(desc.byte_count = 63, GRD_ERR_ENGINE_OPEN, "63 bytes");
    REFUSED(memset(file, 'x', 4), GRD_ERR_ENGINE_OPEN, "no TensorRT engine");
    REFUSED(file[0] ^= 'v' ^ 'f', GRD_ERR_ENGINE_OPEN, "expected one of TensorRT");
#ifdef TEST_RTX
    REFUSED(desc.byte_count += 1, GRD_ERR_ENGINE_OPEN, "its header says");
#endif
    REFUSED(desc.library_version = "9.9.9.9", GRD_ERR_ENGINE_MISMATCH, "9.9.9.9, this machine has");
    REFUSED((desc.library_version = NULL, file[24] = 9), GRD_ERR_ENGINE_MISMATCH, "--target the-target");
    REFUSED(desc.compute_capabilities = "7.5 8.6", GRD_ERR_ENGINE_MISMATCH,
            "built for compute capability 7.5 8.6, this machine's Fake GPU has 8.9");
    REFUSED(fake_cuda_device(8, 9, 0), GRD_ERR_DEVICE, "the CUDA driver refused: words of the driver");
    REFUSED(fake_cuda_device(12, 0, 1), GRD_ERR_ENGINE_MISMATCH, "has 12.0");
    fake_cuda_device(8, 9, 1);
    REFUSED(desc.vendor_dir = "/nowhere", GRD_ERR_BACKEND_LIBRARY, "folder /nowhere holds no lib");
    REFUSED(setenv("FAKE_TENSORRT_VERSION", "99.0.1.2", 1), GRD_ERR_BACKEND_LIBRARY, "99.0.1.2 was found");
    REFUSED(setenv("FAKE_TENSORRT_VERSION", "1.0.1.2", 1), GRD_ERR_BACKEND_LIBRARY, "1.0.1.2 was found");
    setenv("FAKE_TENSORRT_VERSION", TEST_VERSION, 1);
    REFUSED(setenv("FAKE_TENSORRT_REFUSES", "1", 1), GRD_ERR_BACKEND_LIBRARY, "does not start: told not to start");
    unsetenv("FAKE_TENSORRT_REFUSES");
    REFUSED(desc.struct_size = 4, GRD_ERR_ARGUMENT, "grd_engine_desc");
#undef REFUSED
    CHECK(backend->engine_open(NULL, NULL, message, sizeof message) == GRD_ERR_ARGUMENT);
    CHECK(strcmp(backend->engine_version(NULL), "") == 0);

    void *engine;
    grd_engine_desc desc = make_desc("fail=shape");
    desc.struct_size = offsetof(grd_engine_desc, library_version); /* of the first release, which said less */
    desc.compute_capabilities = desc.library_version = "9.9";
    CHECK_THAT(open_engine(&desc, &engine) == GRD_OK, ("%s", message));
    CHECK(run(engine, 2, 1, 0) == GRD_ERR_ENGINE_RUN && strstr(message, "does not take 2 patches: told to fail") != NULL);
    CHECK(run(engine, 3, 1, 0) == GRD_OK); /* it survives */
    float values[PATCH];
    const grd_view good = {values, GRD_FLOAT32, GRD_SPACE_HOST, {1, C, H, W}, {0}};
#define REFUSED(change, expected) \
    do { \
        grd_view x = good, x_hat = good; \
        change; \
        CHECK_THAT(backend->engine_infer(engine, &x, &x_hat, message, sizeof message) == (expected), (#change)); \
    } while (0)
    REFUSED((x.extent[0] = x_hat.extent[0] = 0), GRD_ERR_SHAPE);
    REFUSED((x.extent[0] = x_hat.extent[0] = LIMIT + 1), GRD_ERR_SHAPE);
    REFUSED(x.extent[0] = 2, GRD_ERR_SHAPE);
    REFUSED(x_hat.extent[1] = 3, GRD_ERR_SHAPE);
    REFUSED(x.extent[2] = 11, GRD_ERR_SHAPE);
    REFUSED(x.extent[3] = 13, GRD_ERR_SHAPE);
    REFUSED(x.dtype = GRD_FLOAT16, GRD_ERR_SHAPE);
    REFUSED(x_hat.space = 1, GRD_ERR_SHAPE);
#undef REFUSED
    CHECK(backend->engine_infer(engine, NULL, &good, message, sizeof message) == GRD_ERR_ARGUMENT);
    close_engine(engine);
}

#ifdef TEST_SDK
/* Kernels that were compiled are kept in the folder that the environment names, and read again. */
static void check_runtime_cache(void) {
    static char folder[] = "/tmp/grd_cache_XXXXXX";
    char command[128], listed[256] = "", bytes[64] = "";
    CHECK(mkdtemp(folder) != NULL);
    setenv("GRD_RUNTIME_CACHE", folder, 1);
    for (int round = 0; round < 2; ++round) {
        void *engine;
        const grd_engine_desc desc = make_desc("");
        CHECK(open_engine(&desc, &engine) == GRD_OK && run(engine, 2, 1, 0) == GRD_OK);
        close_engine(engine);
    }
    snprintf(command, sizeof command, "ls -A %s; cat %s/*", folder, folder);
    FILE *out = popen(command, "r");
    CHECK(fgets(listed, sizeof listed, out) != NULL && strstr(listed, "-" TEST_VERSION "-8.9.cache\n") != NULL);
    CHECK_THAT(fgets(bytes, sizeof bytes, out) != NULL && strcmp(bytes, "kernels:kkkk") == 0, ("%s", bytes));
    pclose(out);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    void *engine; /* no such folder: the engine works, and its text says what does not */
    const grd_engine_desc desc = make_desc("");
    CHECK(open_engine(&desc, &engine) == GRD_OK && run(engine, 2, 1, 0) == GRD_OK);
    CHECK(strstr(backend->engine_version(engine), ", runtime cache not written (/tmp/grd_cache_") != NULL);
    unsetenv("GRD_RUNTIME_CACHE");
    close_engine(engine);
}
#endif

int main(void) {
    if (!load_backend()) return 1;
    CHECK(backend->struct_size == sizeof *backend && backend->abi == GRD_BACKEND_ABI && strcmp(backend->name, KIND) == 0);
    check_types_and_batches();
    check_many_sizes();
    check_without_graphs();
    check_cuda_failures();
    check_score_maps();
    check_refusals();
#ifdef TEST_SDK
    check_runtime_cache();
#endif
    return checks_report();
}
