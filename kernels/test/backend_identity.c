/* backend_identity.c - a backend without an engine: x_hat = x * gain, or the scores of score_map_case.h. For tests, and as
 * a template for own backends.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine file is text: "gain=0.5", "fail" (inference fails), "refuse" (opening fails), "nan" (every patch is
 * NaN), "nan=3" (only the fourth patch of the engine's life is) or "nan px=3" (only its last value is).
 *
 * With IDENTITY_FRAMES it also does whole frames, by the kernels of the library; "no frames" then means that it leaves
 * them to the library after all, and "refuse frames" that it fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"
#include "score_map_case.h"

#ifndef IDENTITY_SIZE
#define IDENTITY_SIZE sizeof(grd_backend)
#endif
#ifndef IDENTITY_ABI
#define IDENTITY_ABI GRD_BACKEND_ABI
#endif

typedef struct identity_engine {
    int64_t c, h, w, batch_limit;
    int64_t yielded[3]; /* extents of what is made of a patch */
    int score_map;
    float gain;
    int fails, nan_px;
    long nan_from, nan_to; /* patches, counted from opening */
    long seen;
    int frames; /* 1: does whole frames, -1: refuses */
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
    self->score_map = wants_score_map(desc);
    self->yielded[0] = self->score_map ? 1 : self->c;
    self->yielded[1] = self->score_map ? 1 + self->h : self->h;
    self->yielded[2] = self->w;
    self->gain = strncmp(text, "gain=", 5) == 0 ? (float)atof(text + 5) : 1.0f;
    self->fails = strcmp(text, "fail") == 0;
    self->frames = strcmp(text, "no frames") == 0 ? 0 : strcmp(text, "refuse frames") == 0 ? -1 : 1;
    if (strcmp(text, "nan") == 0) self->nan_to = 1L << 30;
    self->nan_px = strncmp(text, "nan px=", 7) == 0;
    if (self->nan_px || strncmp(text, "nan=", 4) == 0) {
        self->nan_from = atol(strchr(text, '=') + 1);
        self->nan_to = self->nan_from + 1;
    }
    *engine = self;
    return GRD_OK;
}

static grd_status identity_infer(void *engine, const grd_view *x, const grd_view *x_hat, char *message,
                                 size_t message_bytes) {
    identity_engine *self = engine;
    const int64_t n = x->extent[0], patch = self->c * self->h * self->w;
    const int64_t made = self->yielded[0] * self->yielded[1] * self->yielded[2];
    if (self->fails) return told(GRD_ERR_ENGINE_RUN, "told to fail", message, message_bytes);
    for (int i = 0; i < 4; ++i)
        if (x->stride_bytes[i] != 0 || x_hat->stride_bytes[i] != 0 || x_hat->extent[i] != (i == 0 ? n : self->yielded[i - 1]))
            return told(GRD_ERR_ENGINE_RUN, "views are not dense and alike", message, message_bytes);
    if (n < 1 || n > self->batch_limit || x->extent[1] != self->c || x->extent[2] != self->h ||
        x->extent[3] != self->w || x->dtype != GRD_FLOAT32 || x_hat->dtype != GRD_FLOAT32)
        return told(GRD_ERR_ENGINE_RUN, "views are not what was promised", message, message_bytes);
    for (int64_t i = 0; i < n; ++i, ++self->seen) {
        const float *from = (const float *)x->data + i * patch;
        float *to = (float *)x_hat->data + i * made;
        const int is_nan = self->seen >= self->nan_from && self->seen < self->nan_to;
        if (self->score_map) write_score_map(from, to, self->h, self->w, self->gain);
        else
            for (int64_t k = 0; k < patch; ++k) to[k] = from[k] * self->gain;
        if (is_nan && self->nan_px) memset(to + made - 1, 0xff, sizeof *to);
        else if (is_nan) memset(to, 0xff, (size_t)made * sizeof *to);
    }
    return GRD_OK;
}

static const char *identity_version(void *engine) {
    (void)engine;
    return "identity 1";
}

#ifdef IDENTITY_FRAMES
typedef struct identity_frames {
    identity_engine *engine;
    grd_frame_desc desc;
} identity_frames;

static grd_status frames_open(void *engine, const grd_frame_desc *desc, void **frames, char *message,
                              size_t message_bytes) {
    identity_engine *self = engine;
    *frames = NULL;
    if (self->frames < 0) return told(GRD_ERR_DEVICE, "told to refuse frames", message, message_bytes);
    if (self->frames == 0) return GRD_OK;
    identity_frames *opened = calloc(1, sizeof *opened);
    if (opened == NULL) return told(GRD_ERR_MEMORY, "out of memory", message, message_bytes);
    opened->engine = self;
    opened->desc = *desc;
    *frames = opened;
    return GRD_OK;
}

static grd_view patches_view(float *data, int64_t n, int64_t c, const grd_cut_params *cut) {
    grd_view view = {0};
    view.data = data;
    view.dtype = GRD_FLOAT32;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = cut->patch_h, view.extent[3] = cut->patch_w;
    return view;
}

/* Patch i alone, x and x_hat of it given. */
static grd_status score_one(const grd_frame_desc *desc, const grd_frame_work *work, int32_t i, const grd_view *x,
                            const grd_view *x_hat) {
    const int64_t px = (int64_t)desc->cut.patch_h * desc->cut.patch_w;
    grd_score_params params = {0};
    grd_score_outputs outputs = {0};
    grd_view roi = *x, heatmap = *x;
    params.struct_size = sizeof params;
    params.window = desc->window;
    params.local_window_px = desc->local_window_px;
    outputs.struct_size = sizeof outputs;
    outputs.phi = work->phi + i;
    outputs.phi_local = work->phi_local + i;
    roi.extent[1] = heatmap.extent[1] = 1;
    if (work->masks != NULL && work->masks[i] != NULL) {
        roi.data = (void *)work->masks[i];
        roi.dtype = GRD_UINT8;
        params.roi = &roi;
    }
    if (work->heatmaps != NULL) {
        heatmap.data = work->heatmaps + i * px;
        outputs.heatmap = &heatmap;
    }
    return grd_score_patches(&params, x, x_hat, &outputs);
}

static grd_status frames_inspect(void *frames, const grd_frame_work *work, char *message, size_t message_bytes) {
    const identity_frames *self = frames;
    const grd_cut_params *cut = &self->desc.cut;
    const size_t floats = (size_t)cut->channels * cut->patch_h * cut->patch_w;
    float *x = malloc(((size_t)work->grid->count + 1) * floats * sizeof *x), *x_hat = x + work->grid->count * floats;
    const grd_view all = patches_view(x, work->grid->count, cut->channels, cut);
    grd_status status = grd_cut_frame(cut, work->frame, &all, NULL);
    for (int32_t i = 0; status == GRD_OK && i < work->count; ++i) {
        const grd_view one = patches_view(x + work->indices[i] * floats, 1, cut->channels, cut);
        const grd_view one_hat = patches_view(x_hat, 1, cut->channels, cut);
        status = identity_infer(self->engine, &one, &one_hat, message, message_bytes);
        if (status == GRD_OK) status = score_one(&self->desc, work, i, &one, &one_hat);
        if (work->x_hat != NULL) memcpy(work->x_hat + i * floats, x_hat, floats * sizeof *x_hat);
    }
    free(x);
    return status;
}
#endif

GRD_API const grd_backend *grd_backend_table(void);
GRD_API const grd_backend *grd_backend_table(void) {
    static const grd_backend table = {.struct_size = IDENTITY_SIZE,
                                      .abi = IDENTITY_ABI,
                                      .name = "identity",
                                      .engine_open = identity_open,
                                      .engine_infer = identity_infer,
                                      .engine_version = identity_version,
                                      .engine_close = free,
#ifdef IDENTITY_FRAMES
                                      .frame_open = frames_open,
                                      .frame_inspect = frames_inspect,
                                      .frame_close = free,
#endif
    };
    return &table;
}
