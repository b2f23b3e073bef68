/* fuzz_kernels.c - any arguments to the kernel-level calls of grd_edge.h: scoring, grids, pools.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The first bytes choose a valid call, the pairs that follow (field, value) change it. Whether the changed call must be
 * taken is decided here, from the header's text. A taken one runs over buffers of exactly its views' reach, so that a
 * sanitizer sees every step beside them; a refused one has next to no memory behind its views, must report an argument
 * error and leave every output as it was. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_targets.h"
#include "grd_edge.h"

#define REQUIRE(condition) \
    do { \
        if (!(condition)) abort(); \
    } while (0)

enum { kLargestPixels = 800, kLargestBytes = 1 << 16, kUntouched = 0xA5 };

/* ------------------------------------------------------------------------------------------- input */

typedef struct reader {
    const uint8_t *at;
    size_t left;
} reader;

static uint8_t next(reader *in) { /* 0 past the end */
    if (in->left == 0) return 0;
    --in->left;
    return *in->at++;
}

static int64_t value_of(uint8_t byte) {
    static const int64_t kOdd[] = {
        INT64_MAX, INT64_MIN, INT64_MIN + 1, INT64_MAX / 2, INT32_MAX, INT32_MIN, (int64_t)1 << 32,
        ((int64_t)1 << 32) + 11, 1 << 24, (1 << 24) + 1, 4096, 4097, 65536, 65537, 256, 257, -256, -4096,
        (int64_t)1 << 61, -((int64_t)1 << 40)};
    if (byte < 192) return (int64_t)byte - 64;
    return kOdd[byte % (sizeof kOdd / sizeof kOdd[0])];
}

/* -------------------------------------------------------------------------------------------- views */

static int64_t bytes_of(int32_t dtype) { return dtype == GRD_FLOAT32 ? 4 : dtype == GRD_UINT8 ? 1 : 2; }

/* Layouts of a valid view; strides in bytes, with gaps between rows. */
static void lay_out(grd_view *view, uint8_t layout) {
    const int64_t pixel = bytes_of(view->dtype), *e = view->extent;
    int64_t *s = view->stride_bytes;
    memset(s, 0, 4 * sizeof *s);
    switch (layout % 6) {
    case 1: /* channels last */
        s[1] = pixel, s[3] = pixel * e[1], s[2] = s[3] * e[3], s[0] = s[2] * e[2];
        break;
    case 2: /* an odd number of bytes between rows */
        s[3] = pixel, s[2] = pixel * e[3] + 3, s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    case 3: /* from the last pixel backward */
        s[3] = -pixel, s[2] = s[3] * e[3], s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    case 4: /* transposed */
        s[2] = pixel, s[3] = pixel * e[2], s[1] = s[3] * e[3], s[0] = s[1] * e[1];
        break;
    case 5: /* every third pixel */
        s[3] = 3 * pixel, s[2] = s[3] * e[3], s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    default: break;
    }
}

static int is_dense(const grd_view *view) {
    const int64_t *s = view->stride_bytes;
    return s[0] == 0 && s[1] == 0 && s[2] == 0 && s[3] == 0;
}

/* From the first to the last byte of a view with extents >= 1, and how far the first one lies before `data`. In double:
 * views near the limit of 62 bits are not run, whichever side they are on. */
static double reach_of(const grd_view *view, double *before) {
    const double pixel = (double)bytes_of(view->dtype);
    double reach = 0, step = pixel;
    *before = 0;
    for (int axis = 3; axis >= 0; --axis) {
        const double stride = is_dense(view) ? step : (double)view->stride_bytes[axis];
        const double span = stride * ((double)view->extent[axis] - 1);
        if (span < 0) *before -= span;
        reach += fabs(span);
        step *= (double)view->extent[axis];
    }
    return reach + pixel;
}

enum { REFUSE, SKIP, TAKE };

static int least(int a, int b) { return a < b ? a : b; }

/* dtypes: a bit for each that the call takes. */
static int verdict_of_view(const grd_view *view, uint32_t dtypes, int is_output) {
    double before;
    if (view->data == NULL || view->space != GRD_SPACE_HOST) return REFUSE;
    if (view->dtype < 1 || view->dtype > GRD_FLOAT32 || !(dtypes >> view->dtype & 1u)) return REFUSE;
    for (int axis = 0; axis < 4; ++axis)
        if (view->extent[axis] < 1) return REFUSE;
    for (int axis = 0; axis < 4; ++axis) {
        const int64_t stride = view->stride_bytes[axis], pixel = bytes_of(view->dtype);
        if (stride == INT64_MIN) return REFUSE;
        const int overlaps = view->extent[axis] > 1 && stride > -pixel && stride < pixel;
        if (is_output && !is_dense(view) && overlaps) return REFUSE;
    }
    const double reach = reach_of(view, &before);
    return reach > 0x1p62 * 1.01 ? REFUSE : reach > kLargestBytes ? SKIP : TAKE;
}

static int same_extents(const grd_view *view, int64_t n, int64_t c, const grd_view *like) {
    const int64_t *e = view->extent;
    return e[0] == n && e[1] == c && e[2] == like->extent[2] && e[3] == like->extent[3];
}

/* ---------------------------------------------------------------------------------------- one call */

typedef struct block {
    uint8_t *bytes;
    size_t size;
} block;

static block allocated(size_t size, int content, uint32_t seed) {
    block out = {malloc(size > 0 ? size : 1), size};
    if (out.bytes == NULL) exit(1);
    memset(out.bytes, content, size);
    for (size_t i = 0; seed != 0 && i < size; ++i) {
        seed = seed * 1664525u + 1013904223u;
        out.bytes[i] = (uint8_t)(seed >> 24);
    }
    return out;
}

static void require_untouched(block one) {
    for (size_t i = 0; i < one.size; ++i) REQUIRE(one.bytes[i] == kUntouched);
}

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

static const char *variant_of(uint8_t byte) {
    static const char *const kUnknown[] = {"", "scala", "scalar ", "AVX2", "abacus"};
    if (byte < 64) return NULL;
    if (byte >= 240) return kUnknown[byte % 5];
    int count = 0;
    while (grd_variant_name(count) != NULL) ++count;
    return grd_variant_name(byte % count);
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
        grd_view *view = &out->view[field / 12];
        const int part = field % 12;
        if (part < 4) view->extent[part] = value;
        else if (part < 8) view->stride_bytes[part - 4] = value;
        else if (part == 8) view->dtype = (int32_t)value;
        else if (part == 9) view->space = (int32_t)value;
        else if (part == 10) view->data = &view->data; /* stands for NULL until memory is handed out */
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

/* A structure that is as long as it says, the members that we know first. */
static void *of_stated_size(const void *known, size_t known_size, uint32_t stated, block *out) {
    *out = allocated(stated < 4 ? 4 : stated > 4096 ? 4096 : stated, 0xFF, 0);
    memcpy(out->bytes, known, known_size < out->size ? known_size : out->size);
    return out->bytes;
}

static void require_figures(const call *one, const block *figures) {
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

/* ----------------------------------------------------------------------------------- grids and pools */

static void cut(reader *in) {
    grd_cut_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.channels = 1;
    params.patch_h = 1 + next(in), params.patch_w = 1 + next(in);
    params.stride_y = 1 + next(in) % params.patch_h, params.stride_x = 1 + next(in) % params.patch_w;
    params.scale_px = next(in), params.padding = next(in) & 1;
    int64_t frame[2] = {1 + 5 * next(in), 1 + 5 * next(in)};
    grd_grid grid, before;
    memset(&grid, kUntouched, sizeof grid);
    grid.struct_size = sizeof grid;
    while (in->left > 0) {
        int32_t *const fields[] = {&params.scale_px, &params.patch_h,  &params.patch_w, &params.stride_y,
                                   &params.stride_x, &params.channels, &params.padding};
        const uint8_t field = next(in) % 11;
        const int64_t value = value_of(next(in));
        if (field < 7) *fields[field] = (int32_t)value;
        else if (field < 9) frame[field - 7] = value;
        else if (field == 9) params.struct_size = (uint32_t)value;
        else grid.struct_size = (uint32_t)value;
    }
    before = grid;
    const grd_status status = grd_cut_grid(&params, frame[0], frame[1], &grid);
    const size_t bytes = grd_cut_workspace_bytes(&params, frame[0], frame[1]);
    int32_t y = -1, x = -1;
    if (status != GRD_OK) {
        REQUIRE((status >= 10 && status <= 13) || status == GRD_ERR_FRAME_SIZE);
        REQUIRE(memcmp(&before, &grid, sizeof grid) == 0);
        REQUIRE(bytes == 0 || grid.struct_size < sizeof grid);
        grid.rows = grid.cols = grid.count = 7; /* positions of a grid that is not one */
        if (grd_cut_position(&params, &grid, 3, &y, &x) != GRD_OK) REQUIRE(y == -1 && x == -1);
        return;
    }
    REQUIRE(bytes > 0 && grid.rows >= 1 && grid.cols >= 1 && grid.count == grid.rows * grid.cols);
    const int32_t end_y = grid.scaled_h > params.patch_h ? grid.scaled_h - params.patch_h : 0;
    const int32_t end_x = grid.scaled_w > params.patch_w ? grid.scaled_w - params.patch_w : 0;
    REQUIRE(grd_cut_position(&params, &grid, 0, &y, &x) == GRD_OK && y == 0 && x == 0);
    REQUIRE(grd_cut_position(&params, &grid, grid.count - 1, &y, &x) == GRD_OK && y == end_y && x == end_x);
    y = x = -1;
    REQUIRE(grd_cut_position(&params, &grid, grid.count, &y, &x) == GRD_ERR_ARGUMENT);
    REQUIRE(grd_cut_position(&params, &grid, -1, &y, &x) == GRD_ERR_ARGUMENT && y == -1 && x == -1);
}

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
    } else if (kind >= 192) {
        cut(&in);
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
