/* tensorrt_test.h - a backend on fakes: loading it, engines for it, and batches through them.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * TEST_BACKENDS is the folder of the backend, TEST_VENDOR that of the fake library; TEST_VERSION its version. Define
 * _XOPEN_SOURCE 700 before the first include. */
#ifndef TENSORRT_TEST_H
#define TENSORRT_TEST_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "engine_file.h"
#include "fake_cuda.h"
#include "grd_edge.h"

enum { C = 1, H = 12, W = 12, PATCH = C * H * W, LIMIT = 20, GUARD = 16, OUT_OF_MEMORY = 2, INVALID_VALUE = 1 };

static const grd_backend *backend;
static char message[1024];

static unsigned char file[ENGINE_FILE_BYTES];
static size_t file_bytes;

static grd_engine_desc make_desc(const char *words) {
    grd_engine_desc desc = {0};
    file_bytes = make_engine_file(words, file);
    desc.struct_size = sizeof desc;
    desc.batch_limit = LIMIT;
    desc.channels = C;
    desc.patch_h = H;
    desc.patch_w = W;
    desc.bytes = file;
    desc.byte_count = file_bytes;
    desc.format = FORMAT;
    desc.precision = "fp16";
    desc.vendor_dir = TEST_VENDOR;
    desc.library_version = TEST_VERSION;
    desc.compute_capabilities = "8.6 8.9";
    desc.compatibility = "none";
    desc.target = "the-target";
    return desc;
}

static grd_status open_engine(const grd_engine_desc *desc, void **engine) {
    message[0] = '\0';
    *engine = NULL;
    return backend->engine_open(desc, engine, message, sizeof message);
}

/* n patches through the engine: what they became is right, and nothing else is written. */
static grd_status run(void *engine, int n, float gain, float tolerance) {
    static float x[LIMIT * PATCH], x_hat[GUARD + LIMIT * PATCH + GUARD];
    for (int i = 0; i < n * PATCH; ++i) x[i] = (float)((i * 37 + n) % 256) / 255.0f;
    for (size_t i = 0; i < sizeof x_hat / sizeof x_hat[0]; ++i) x_hat[i] = -7;
    const grd_view in = {x, GRD_FLOAT32, GRD_SPACE_HOST, {n, C, H, W}, {0}};
    const grd_view out = {x_hat + GUARD, GRD_FLOAT32, GRD_SPACE_HOST, {n, C, H, W}, {0}};
    const grd_status status = backend->engine_infer(engine, &in, &out, message, sizeof message);
    int wrong = 0;
    for (int i = 0; i < n * PATCH && status == GRD_OK; ++i) {
        const float off = x_hat[GUARD + i] - gain * x[i];
        wrong += !(off <= tolerance && off >= -tolerance);
    }
    for (int i = 0; i < GUARD; ++i) wrong += x_hat[i] != -7 || x_hat[GUARD + n * PATCH + i] != -7;
    CHECK_THAT(wrong == 0, ("%d patches: %d values", n, wrong));
    return status;
}

static void close_engine(void *engine) {
    backend->engine_close(engine);
    CHECK_THAT(fake_cuda_live() == 0, ("%d things live on", fake_cuda_live()));
    CHECK(fake_cuda_damage() == 0);
}

static int load_backend(void) {
    setenv("FAKE_TENSORRT_VERSION", TEST_VERSION, 1);
    void *library = dlopen(TEST_BACKENDS "/libgrd_backend_" KIND ".so", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        printf("%s\n", dlerror());
        return 0;
    }
    grd_backend_table_fn table_of;
    *(void **)&table_of = dlsym(library, "grd_backend_table");
    backend = table_of();
    return 1;
}

#endif
