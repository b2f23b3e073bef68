/* fuzz_kernels.c - any arguments to the kernel-level calls of grd_edge.h: scoring and pools here, cutting in
 * fuzz_cuts.c.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The first bytes choose a valid call, the pairs that follow (field, value) change it. Whether the changed call must be
 * taken is decided here, from the header's text. A taken one runs over buffers of exactly its views' reach, so that a
 * sanitizer sees every step beside them; a refused one has next to no memory behind its views, must report an argument
 * error and leave every output as it was. */
#include <stddef.h>

#include "fuzz_call.h"

/* ---------------------------------------------------------------------------------------- one call */

enum { X, X_HAT, HEATMAP, ROI, VIEWS };

typedef struct call {
    grd_score_params params;
    grd_score_outputs outputs;
    grd_view view[VIEWS];
    uint8_t wanted; /* bits: phi, phi_local, residual_min, residual_max, heatmap, variant */
    uint8_t given;  /* bits: params missing, x missing, x_hat missing, outputs missing, roi */
    uint8_t space;  /* kind of workspace */
    uint32_t seed;
} call;

static grd_pool *shared_pool(void) {
    static grd_pool *pool;
    if (pool == NULL && grd_pool_open(2, &pool) != GRD_OK) exit(1);
    return pool;
}

static void read_call(reader *in, call *out) {
    static const int32_t kDtypes[] = {GRD_FLOAT32, GRD_UINT8, GRD_FLOAT16};
    memset(out, 0, sizeof *out);
    const uint8_t sizes = next(in), kinds = next(in);
    const int64_t extent[4] = {1 + (sizes & 1), 1 + (sizes >> 1) % 3, 11 + next(in) % 7, 11 + next(in) % 7};
    out->params.struct_size = sizeof out->params;
    out->outputs.struct_size = sizeof out->outputs;
    out->params.window = kinds & 1 ? GRD_WINDOW_BOX : GRD_WINDOW_GAUSSIAN;
    out->params.local_window_px = (kinds >> 1 & 1) * 5;
    out->params.variant = variant_of(next(in));
    if (kinds >> 2 == 63) out->params.pool = shared_pool();
    for (int i = 0; i < VIEWS; ++i) {
        const uint8_t layout = next(in);
        memcpy(out->view[i].extent, extent, sizeof extent);
        out->view[i].dtype = i == ROI ? GRD_UINT8 : i == X_HAT ? kDtypes[layout / 6 % 2 * 2] : kDtypes[layout / 6 % 3];
        if (i >= HEATMAP) out->view[i].extent[1] = 1;
        if (i == ROI && layout >= 128) out->view[i].extent[0] = 1;
        lay_out(&out->view[i], layout);
    }
    out->wanted = next(in);
    out->given = next(in) & 16;
    out->space = next(in);
    out->seed = next(in);
}

/* Changes one field; what does not name one changes nothing. */
static void change(call *out, uint8_t field, uint8_t byte) {
    static const float kScales[] = {1, 0, -0.0f, 1e-30f, 1e30f, -1, INFINITY, -INFINITY, NAN, 254.5f};
    const int64_t value = value_of(byte);
    if (field < 48) {
        change_view(&out->view[field / kViewParts], field % kViewParts, value);
        return;
    }
    if (field < 52) { /* an extent of all views alike */
        for (int i = 0; i < VIEWS; ++i)
            if (field != 49 || i < HEATMAP) out->view[i].extent[field - 48] = value;
        return;
    }
    switch (field) {
    case 52: out->params.struct_size = (uint32_t)value; break;
    case 53: out->outputs.struct_size = (uint32_t)value; break;
    case 54: out->params.window = (int32_t)value; break;
    case 55: out->params.local_window_px = (int32_t)value; break;
    case 56: out->params.heatmap_scale = kScales[byte % (sizeof kScales / sizeof kScales[0])]; break;
    case 57: out->given ^= byte & 15; break;
    default: break;
    }
}

static int verdict_of_params(const grd_score_params *params) {
    if (params->struct_size < offsetof(grd_score_params, workspace_bytes) + sizeof(size_t)) return REFUSE;
    if (params->window != GRD_WINDOW_GAUSSIAN && params->window != GRD_WINDOW_BOX) return REFUSE;
    if (params->local_window_px < 0) return REFUSE;
    return isfinite(params->heatmap_scale) && params->heatmap_scale >= 0 ? TAKE : REFUSE;
}

static int same_extents(const grd_view *view, int64_t n, int64_t c, const grd_view *like) {
    const int64_t *e = view->extent;
    return e[0] == n && e[1] == c && e[2] == like->extent[2] && e[3] == like->extent[3];
}

static int verdict_of_call(const call *one) {
    const uint32_t halves = 1u << GRD_FLOAT16, floats = 1u << GRD_FLOAT32, bytes = 1u << GRD_UINT8;
    const grd_view *x = &one->view[X];
    if (one->given & 14) return REFUSE;
    if (one->outputs.struct_size < offsetof(grd_score_outputs, variant) + sizeof(void *)) return REFUSE;
    const int has_params = !(one->given & 1);
    if (has_params && verdict_of_params(&one->params) == REFUSE) return REFUSE;
    if (has_params && one->params.variant != NULL && !grd_variant_supported(one->params.variant)) return REFUSE;
    int verdict = verdict_of_view(x, bytes | halves | floats, 0);
    verdict = least(verdict, verdict_of_view(&one->view[X_HAT], halves | floats, 0));
    if (verdict == REFUSE || !same_extents(&one->view[X_HAT], x->extent[0], x->extent[1], x)) return REFUSE;
    const int64_t smallest = has_params && one->params.window == GRD_WINDOW_BOX ? 1 : 11;
    for (int axis = 2; axis < 4; ++axis)
        if (x->extent[axis] < smallest || x->extent[axis] > 1 << 24) return REFUSE;
    if (x->extent[1] > 4096) return REFUSE;
    if (one->wanted & 16) {
        if (!same_extents(&one->view[HEATMAP], x->extent[0], 1, x)) return REFUSE;
        verdict = least(verdict, verdict_of_view(&one->view[HEATMAP], bytes | halves | floats, 1));
    }
    if (has_params && one->given & 16) {
        const grd_view *roi = &one->view[ROI];
        if (!same_extents(roi, 1, 1, x) && !same_extents(roi, x->extent[0], 1, x)) return REFUSE;
        verdict = least(verdict, verdict_of_view(roi, bytes, 0));
    }
    double pixels = 1;
    for (int axis = 0; axis < 4; ++axis) pixels *= (double)x->extent[axis];
    return least(verdict, pixels > kLargestPixels ? SKIP : TAKE);
}

UNTRACED static void require_figures(const call *one, const block *figures) {
    for (int i = 0; i < 4; ++i)
        for (size_t n = 0; n < figures[i].size / sizeof(float) && one->wanted >> i & 1; ++n) {
            float value;
            memcpy(&value, figures[i].bytes + n * sizeof value, sizeof value);
            REQUIRE(isnan(value) || (value >= 0 && (i > 1 || value <= 2.00001f)));
        }
}

static void score(call *one) {
    grd_score_params *params = &one->params;
    grd_score_outputs *outputs = &one->outputs;
    block memory[VIEWS], figures[4], space = {NULL, 0}, sized[2];
    for (int i = 0; i < VIEWS; ++i) one->view[i].data = one->view[i].data == NULL ? one : NULL;
    int verdict = verdict_of_call(one);
    if (verdict == SKIP) return;
    for (int i = 0; i < VIEWS; ++i) {
        double before = 0;
        const int used[VIEWS] = {1, 1, one->wanted & 16, (one->given & 17) == 16};
        const size_t size = verdict == TAKE && used[i] ? (size_t)reach_of(&one->view[i], &before) : 1;
        memory[i] = allocated(size, i == HEATMAP ? kUntouched : 0x3c, i == HEATMAP ? 0 : one->seed * (uint32_t)(i + 1));
        if (one->view[i].data != NULL) one->view[i].data = memory[i].bytes + (size_t)before;
    }
    const size_t count = verdict == TAKE ? (size_t)one->view[X].extent[0] : 1;
    for (int i = 0; i < 4; ++i) figures[i] = allocated(count * sizeof(float), kUntouched, 0);
    float **const wanted[4] = {&outputs->phi, &outputs->phi_local, &outputs->residual_min, &outputs->residual_max};
    for (int i = 0; i < 4; ++i) *wanted[i] = one->wanted >> i & 1 ? (float *)(void *)figures[i].bytes : NULL;
    const char *ran = NULL;
    outputs->heatmap = one->wanted & 16 ? &one->view[HEATMAP] : NULL;
    outputs->variant = one->wanted & 32 ? &ran : NULL;
    params->roi = one->given & 16 ? &one->view[ROI] : NULL;
    const int64_t *extent = one->view[X].extent;
    const size_t needed = grd_score_workspace_bytes(params, extent[1], extent[2], extent[3]);
    REQUIRE(needed == 0 || (one->given & 1) || verdict_of_params(params) == TAKE);
    const int kind = one->space % 5; /* of workspace: none, enough, unaligned, one byte, one byte less than enough */
    if (kind > 0) {
        const size_t shift = kind == 2 ? 7 : 0, stated = kind == 3 ? 1 : needed - (kind == 4 && needed > 0);
        space = allocated(verdict == TAKE ? stated + shift : 1, 0xFF, 0);
        params->workspace = space.bytes + (verdict == TAKE ? shift : 0);
        params->workspace_bytes = stated;
        if (kind == 3 && !(one->given & 1)) verdict = REFUSE;
    }
    const void *given = of_stated_size(params, sizeof *params, params->struct_size, &sized[0]);
    const void *into = of_stated_size(outputs, sizeof *outputs, outputs->struct_size, &sized[1]);
    const grd_status status =
        grd_score_patches(one->given & 1 ? NULL : given, one->given & 2 ? NULL : &one->view[X],
                          one->given & 4 ? NULL : &one->view[X_HAT], one->given & 8 ? NULL : into);
    /* One byte less may do: what is asked for is enough for every dtype. */
    const int spared = verdict == TAKE && kind == 4 && status == GRD_ERR_BUFFER;
    if (verdict == TAKE && !spared) {
        REQUIRE(status == GRD_OK);
        require_figures(one, figures);
        const char *forced = one->given & 1 ? NULL : params->variant;
        if (ran != NULL) REQUIRE(strcmp(ran, "scalar") == 0 || strcmp(ran, grd_variant_active(forced)) == 0);
        REQUIRE((ran != NULL) == ((one->wanted & 32) != 0));
    } else {
        REQUIRE(status >= 10 && status <= 19 && ran == NULL);
        for (int i = 0; i < 4; ++i) require_untouched(figures[i]);
        require_untouched(memory[HEATMAP]);
    }
    for (int i = 0; i < VIEWS; ++i) free(memory[i].bytes);
    for (int i = 0; i < 4; ++i) free(figures[i].bytes);
    free(space.bytes), free(sized[0].bytes), free(sized[1].bytes);
}

/* ------------------------------------------------------------------------------------------- pools */

static void open_pool(reader *in) {
    const int32_t threads = (int32_t)value_of(next(in));
    grd_pool *pool = NULL;
    if (threads > 2 && threads <= 1024) return; /* valid, and too slow for here */
    const grd_status status = grd_pool_open(threads, &pool);
    REQUIRE(status == (threads < 1 || threads > 1024 ? GRD_ERR_ARGUMENT : GRD_OK));
    REQUIRE((pool != NULL) == (status == GRD_OK));
    grd_pool_close(pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    reader in = {data, size};
    const uint8_t kind = next(&in);
    if (kind >= 254) {
        open_pool(&in);
    } else if (kind >= 240) {
        fuzz_grid(&in);
    } else if (kind >= 192) {
        fuzz_cutting(&in, kind >= 216);
    } else {
        call one;
        read_call(&in, &one);
        while (in.left > 0) {
            const uint8_t field = next(&in);
            change(&one, field % 58, next(&in));
        }
        score(&one);
    }
    return 0;
}
