/* backend_identity.c - a backend without an engine: x_hat = x * gain. For tests, and as a template for own backends.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine file is text: "gain=0.5", "fail" (inference fails), "refuse" (opening fails), "nan" (every patch is
 * NaN) or "nan=3" (only the fourth patch of the engine's life is). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"

#ifndef IDENTITY_ABI
#define IDENTITY_ABI GRD_BACKEND_ABI
#endif

typedef struct identity_engine {
    int64_t c, h, w, batch_limit;
    float gain;
    int fails;
    long nan_from, nan_to; /* patches, counted from opening */
    long seen;
} identity_engine;

static grd_status told(grd_status status, const char *said, char *message, size_t message_bytes) {
    if (message != NULL && message_bytes > 0) snprintf(message, message_bytes, "%s", said);
    return status;
}

static grd_status identity_open(const grd_engine_desc *desc, void **engine, char *message, size_t message_bytes) {
    char text[32] = "";
    if (strcmp(desc->format, "identity") != 0)
        return told(GRD_ERR_ENGINE_OPEN, "this backend takes format \"identity\" only", message, message_bytes);
    memcpy(text, desc->bytes, desc->byte_count < sizeof text - 1 ? desc->byte_count : sizeof text - 1);
    if (strcmp(text, "refuse") == 0) return told(GRD_ERR_ENGINE_MISMATCH, "told to refuse", message, message_bytes);
    identity_engine *self = calloc(1, sizeof *self);
    if (self == NULL) return told(GRD_ERR_MEMORY, "out of memory", message, message_bytes);
    self->c = desc->channels;
    self->h = desc->patch_h;
    self->w = desc->patch_w;
    self->batch_limit = desc->batch_limit;
    self->gain = strncmp(text, "gain=", 5) == 0 ? (float)atof(text + 5) : 1.0f;
    self->fails = strcmp(text, "fail") == 0;
    if (strcmp(text, "nan") == 0) self->nan_to = 1L << 30;
    if (strncmp(text, "nan=", 4) == 0) {
        self->nan_from = atol(text + 4);
        self->nan_to = self->nan_from + 1;
    }
    *engine = self;
    return GRD_OK;
}

static grd_status identity_infer(void *engine, const grd_view *x, const grd_view *x_hat, char *message,
                                 size_t message_bytes) {
    identity_engine *self = engine;
    const int64_t n = x->extent[0], patch = self->c * self->h * self->w;
    if (self->fails) return told(GRD_ERR_ENGINE_RUN, "told to fail", message, message_bytes);
    for (int i = 0; i < 4; ++i)
        if (x->stride_bytes[i] != 0 || x_hat->stride_bytes[i] != 0 || x->extent[i] != x_hat->extent[i])
            return told(GRD_ERR_ENGINE_RUN, "views are not dense and alike", message, message_bytes);
    if (n < 1 || n > self->batch_limit || x->extent[1] != self->c || x->extent[2] != self->h ||
        x->extent[3] != self->w || x->dtype != GRD_FLOAT32 || x_hat->dtype != GRD_FLOAT32)
        return told(GRD_ERR_ENGINE_RUN, "views are not what was promised", message, message_bytes);
    for (int64_t i = 0; i < n; ++i, ++self->seen) {
        const float *from = (const float *)x->data + i * patch;
        float *to = (float *)x_hat->data + i * patch;
        const int is_nan = self->seen >= self->nan_from && self->seen < self->nan_to;
        for (int64_t k = 0; k < patch; ++k) to[k] = from[k] * self->gain;
        if (is_nan) memset(to, 0xff, (size_t)patch * sizeof *to);
    }
    return GRD_OK;
}

static const char *identity_version(void *engine) {
    (void)engine;
    return "identity 1";
}

GRD_API const grd_backend *grd_backend_table(void);
GRD_API const grd_backend *grd_backend_table(void) {
    static const grd_backend table = {.struct_size = sizeof(grd_backend),
                                      .abi = IDENTITY_ABI,
                                      .name = "identity",
                                      .engine_open = identity_open,
                                      .engine_infer = identity_infer,
                                      .engine_version = identity_version,
                                      .engine_close = free};
    return &table;
}
