/* count_instructions.c - one call of a kernel for tests/native/test_instructions.py, which counts its instructions.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   count_instructions score|cut     variant: GRD_FORCE_VARIANT */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"

enum { kSide = 256, kFrame = 300 };

static grd_view view_of(void *data, int32_t dtype, int64_t n, int64_t side) {
    grd_view view;
    memset(&view, 0, sizeof view);
    view.data = data, view.dtype = dtype;
    view.extent[0] = n, view.extent[1] = 1, view.extent[2] = view.extent[3] = side;
    return view;
}

/* One 256x256 FP32 patch: phi, phi_local, heatmap. */
static grd_status score(void) {
    static float x[kSide * kSide], x_hat[kSide * kSide], heat[kSide * kSide], phi, phi_local;
    uint32_t state = 1;
    for (int i = 0; i < kSide * kSide; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) / 16777216.0f;
        x_hat[i] = 0.9f * x[i] + 0.02f;
    }
    const grd_view map = view_of(heat, GRD_FLOAT32, 1, kSide);
    const grd_view views[] = {view_of(x, GRD_FLOAT32, 1, kSide), view_of(x_hat, GRD_FLOAT32, 1, kSide)};
    const grd_score_outputs outputs = {sizeof outputs, 0, &phi, &phi_local, NULL, NULL, &map, NULL};
    return grd_score_patches(NULL, &views[0], &views[1], &outputs);
}

/* A 300x300 UINT8 frame into 4 patches of 256x256 FP32. */
static grd_status cut(void) {
    static uint8_t frame[kFrame * kFrame];
    static float patches[4 * kSide * kSide];
    const grd_cut_params params = {sizeof params, 0, kSide, kSide, kSide, kSide, 1, GRD_PADDING_ERROR};
    for (int i = 0; i < kFrame * kFrame; i++) frame[i] = (uint8_t)(i * 7);
    const grd_view from = view_of(frame, GRD_UINT8, 1, kFrame), to = view_of(patches, GRD_FLOAT32, 4, kSide);
    return grd_cut_frame(&params, &from, &to, NULL);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    const grd_status status = strcmp(argv[1], "score") == 0 ? score() : cut();
    if (status != GRD_OK) fprintf(stderr, "%s\n", grd_status_name(status));
    return status == GRD_OK ? 0 : 1;
}
