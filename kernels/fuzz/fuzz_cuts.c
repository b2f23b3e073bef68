/* fuzz_cuts.c - the part of fuzz_kernels.c for grids, cutting and stitching.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A call that is taken runs twice, the second time in the scalar variant: the bits must be the same. */
#include <stddef.h>

#include "fuzz_call.h"

enum { kLargestSide = 65536, kLargestElements = 2048, kParamFields = 7 };

static int32_t *field_of(grd_cut_params *params, int field) {
    int32_t *const fields[kParamFields] = {&params->scale_px, &params->patch_h,  &params->patch_w, &params->stride_y,
                                           &params->stride_x, &params->channels, &params->padding};
    return fields[field];
}

static int is_side(double px) { return px >= 1 && px <= kLargestSide; }

/* The grid of a frame as grd_cut_grid gives it, which must be one exactly where the header says so. */
static int verdict_of_grid(const grd_cut_params *cut, int64_t h, int64_t w, grd_grid *grid) {
    grd_cut_params known = *cut;
    known.struct_size = sizeof known;
    grid->struct_size = sizeof *grid;
    int taken = is_side((double)h) && is_side((double)w) && cut->scale_px >= 0 && cut->scale_px <= kLargestSide;
    taken = taken && is_side(cut->patch_h) && cut->stride_y >= 1 && cut->stride_y <= cut->patch_h;
    taken = taken && is_side(cut->patch_w) && cut->stride_x >= 1 && cut->stride_x <= cut->patch_w;
    taken = taken && (cut->channels == 1 || cut->channels == 3) && (cut->padding == 0 || cut->padding == 1);
    const double side = (double)(h < w ? h : w), to = cut->scale_px > 0 ? cut->scale_px : side;
    const double scaled_h = taken ? floor((double)h * to / side + 0.5) : 0;
    const double scaled_w = taken ? floor((double)w * to / side + 0.5) : 0;
    taken = taken && is_side(scaled_h) && is_side(scaled_w);
    taken = taken && (cut->padding == 1 || (scaled_h >= cut->patch_h && scaled_w >= cut->patch_w));
    if (taken) {
        const double rows = ceil(fmax(0, scaled_h - cut->patch_h) / cut->stride_y) + 1;
        const double cols = ceil(fmax(0, scaled_w - cut->patch_w) / cut->stride_x) + 1;
        taken = rows * cols <= INT32_MAX;
    }
    REQUIRE((grd_cut_grid(&known, h, w, grid) == GRD_OK) == taken);
    if (taken) REQUIRE((double)grid->scaled_h == scaled_h && (double)grid->scaled_w == scaled_w);
    return taken && cut->struct_size >= offsetof(grd_cut_params, padding) + sizeof(int32_t) ? TAKE : REFUSE;
}

void fuzz_grid(reader *in) {
    grd_cut_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.channels = 1;
    params.patch_h = 1 + next(in), params.patch_w = 1 + next(in);
    params.stride_y = 1 + next(in) % params.patch_h, params.stride_x = 1 + next(in) % params.patch_w;
    params.scale_px = next(in), params.padding = next(in) & 1;
    int64_t frame[2] = {1 + 5 * next(in), 1 + 5 * next(in)};
    grd_grid grid, before, right;
    memset(&grid, kUntouched, sizeof grid);
    grid.struct_size = sizeof grid;
    while (in->left > 0) {
        const uint8_t field = next(in) % (kParamFields + 4);
        const int64_t value = value_of(next(in));
        if (field < kParamFields) *field_of(&params, field) = (int32_t)value;
        else if (field < kParamFields + 2) frame[field - kParamFields] = value;
        else if (field == kParamFields + 2) params.struct_size = (uint32_t)value;
        else grid.struct_size = (uint32_t)value;
    }
    before = grid;
    const int verdict = grid.struct_size < sizeof grid ? REFUSE
                                                       : verdict_of_grid(&params, frame[0], frame[1], &right);
    const grd_status status = grd_cut_grid(&params, frame[0], frame[1], &grid);
    const size_t bytes = grd_cut_workspace_bytes(&params, frame[0], frame[1]);
    int32_t y = -1, x = -1;
    REQUIRE((status == GRD_OK) == (verdict == TAKE));
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

/* ---------------------------------------------------------------------------------- cutting, stitching */

typedef struct cutting {
    grd_cut_params params;
    grd_cut_options options;
    grd_view from, to; /* frame and patches; of stitching, patches and map */
    int64_t frame[2];  /* H, W; of cutting, those of `from` */
    int stitches;
    uint8_t given; /* bits: params missing, from missing, to missing, options missing, ran not wanted */
    uint8_t space; /* kind of workspace */
    uint8_t shift; /* of both memories: 2 bits each */
    uint32_t seed;
} cutting;

static void read_cutting(reader *in, cutting *out) {
    static const int32_t kPatches[] = {GRD_FLOAT32, GRD_FLOAT16, GRD_INT8}, kFrames[] = {GRD_UINT8, GRD_UINT16};
    static const int32_t kMaps[] = {GRD_FLOAT32, GRD_FLOAT16, GRD_UINT8};
    grd_cut_params *cut = &out->params;
    grd_grid grid;
    cut->struct_size = sizeof *cut;
    out->options.struct_size = sizeof out->options;
    out->options.input_scale = 1.0f / 127;
    const uint8_t sides = next(in), strides = next(in), scale = next(in), kinds = next(in);
    cut->patch_h = 1 + sides % 16, cut->patch_w = 1 + sides / 16;
    cut->stride_y = 1 + strides % 16 % cut->patch_h, cut->stride_x = 1 + strides / 16 % cut->patch_w;
    cut->scale_px = scale < 128 ? 0 : 1 + scale % 32;
    cut->channels = kinds & 1 ? 3 : 1, cut->padding = kinds >> 1 & 1;
    out->frame[0] = 1 + next(in) % 24, out->frame[1] = 1 + next(in) % 24;
    if (verdict_of_grid(cut, out->frame[0], out->frame[1], &grid) != TAKE)
        grid.count = grid.scaled_h = grid.scaled_w = 1; /* as good as any */
    const uint8_t from_layout = next(in), to_layout = next(in);
    const int64_t c = cut->channels == 3 || kinds & 4 ? 3 : 1, h = out->frame[0], w = out->frame[1];
    const grd_view frame = {NULL, kFrames[kinds >> 3 & 1], 0, {1, c, h, w}, {0, 0, 0, 0}};
    const grd_view patches = {NULL, kPatches[(kinds >> 4) % 3], 0, {grid.count, cut->channels, cut->patch_h,
                                                                    cut->patch_w}, {0, 0, 0, 0}};
    const grd_view maps = {NULL, kMaps[(kinds >> 4) % 3], 0, {grid.count, 1, cut->patch_h, cut->patch_w}, {0, 0, 0, 0}};
    const grd_view map = {NULL, GRD_FLOAT32, 0, {1, 1, grid.scaled_h, grid.scaled_w}, {0, 0, 0, 0}};
    out->from = out->stitches ? maps : frame;
    out->to = out->stitches ? map : patches;
    lay_out(&out->from, from_layout);
    if (out->stitches && from_layout >= 224) { /* scores */
        memset(out->from.stride_bytes, 0, sizeof out->from.stride_bytes);
        out->from.stride_bytes[0] = bytes_of(out->from.dtype);
    }
    if (out->stitches) lay_out(&out->to, to_layout);
    else if (to_layout % 3 > 0) dense_strides(&out->to, to_layout % 3 == 1, out->to.stride_bytes);
    out->options.variant = variant_of(next(in));
    out->given = next(in) & 16;
    out->space = next(in), out->shift = next(in), out->seed = next(in);
}

static void change(cutting *out, uint8_t field, uint8_t byte) {
    static const float kScales[] = {1, 0, -0.0f, 1e-45f, 1e30f, -1, INFINITY, -INFINITY, NAN, 0.01f};
    const int64_t value = value_of(byte);
    if (field < 2 * kViewParts) {
        change_view(field < kViewParts ? &out->from : &out->to, field % kViewParts, value);
    } else if (field < 2 * kViewParts + kParamFields) {
        *field_of(&out->params, field - 2 * kViewParts) = (int32_t)value;
    } else {
        switch (field - 2 * kViewParts - kParamFields) {
        case 0: out->params.struct_size = (uint32_t)value; break;
        case 1: out->options.struct_size = (uint32_t)value; break;
        case 2: out->options.input_scale = kScales[byte % (sizeof kScales / sizeof kScales[0])]; break;
        case 3: out->given ^= byte & 15; break;
        case 4: out->frame[0] = value; break;
        case 5: out->frame[1] = value; break;
        default: break;
        }
    }
}

static int has_extents(const grd_view *view, int64_t n, int64_t c, int64_t h, int64_t w) {
    const int64_t *e = view->extent;
    return e[0] == n && e[1] == c && e[2] == h && e[3] == w;
}

/* Of patches that are cut. Their alignment is that of their memory, which is chosen after this. */
static int verdict_of_patches(const cutting *one, const grd_grid *grid) {
    const grd_view *view = &one->to;
    const grd_cut_params *cut = &one->params;
    const int64_t *s = view->stride_bytes, pixel = bytes_of(view->dtype);
    if (view->data == NULL || view->space != GRD_SPACE_HOST) return REFUSE;
    if (view->dtype != GRD_FLOAT32 && view->dtype != GRD_FLOAT16 && view->dtype != GRD_INT8) return REFUSE;
    if (!has_extents(view, grid->count, cut->channels, cut->patch_h, cut->patch_w)) return REFUSE;
    int fits = is_dense(view);
    for (int interleaved = 0; interleaved < 2; ++interleaved) {
        int64_t dense[4];
        int same = 1;
        dense_strides(view, interleaved, dense);
        for (int axis = 0; axis < 4; ++axis) same = same && (view->extent[axis] == 1 || s[axis] == dense[axis]);
        fits = fits || same;
    }
    const float scale = one->given & 8 ? 0 : one->options.input_scale;
    if (view->dtype == GRD_INT8 && !(scale > 0 && isfinite(scale))) return REFUSE;
    return fits && (one->shift >> 2 & 3) % pixel == 0 ? TAKE : REFUSE;
}

static int verdict_of_cutting(const cutting *one, grd_grid *grid) {
    const uint32_t words = 1u << GRD_UINT16, halves = 1u << GRD_FLOAT16, floats = 1u << GRD_FLOAT32;
    const uint32_t bytes = 1u << GRD_UINT8;
    const grd_cut_params *cut = &one->params;
    if (one->given & 7) return REFUSE;
    if (!(one->given & 8)) {
        if (one->options.struct_size < offsetof(grd_cut_options, workspace_bytes) + sizeof(size_t)) return REFUSE;
        if (one->options.variant != NULL && !grd_variant_supported(one->options.variant)) return REFUSE;
    }
    if (verdict_of_grid(cut, one->frame[0], one->frame[1], grid) != TAKE) return REFUSE;
    int verdict = verdict_of_view(&one->from, one->stitches ? bytes | halves | floats : bytes | words, 0);
    if (verdict == REFUSE) return REFUSE;
    if (one->stitches) {
        if (!has_extents(&one->from, grid->count, 1, cut->patch_h, cut->patch_w)) return REFUSE;
        if (!has_extents(&one->to, 1, 1, grid->scaled_h, grid->scaled_w)) return REFUSE;
        verdict = least(verdict, verdict_of_view(&one->to, floats, 1));
    } else {
        const int64_t c = one->from.extent[1];
        if (one->from.extent[0] != 1 || (c != 1 && c != 3) || c < cut->channels) return REFUSE;
        verdict = least(verdict, verdict_of_patches(one, grid));
    }
    const double patch = (double)cut->patch_h * cut->patch_w * cut->channels;
    const double frame = (double)one->frame[0] * (double)one->frame[1] * 3;
    return least(verdict, fmax(patch * grid->count, frame) > kLargestElements ? SKIP : TAKE);
}

static grd_status call(const cutting *one, const grd_cut_params *params, const grd_view *to,
                       const grd_cut_options *options) {
    const grd_view *from = one->given & 2 ? NULL : &one->from, *into = one->given & 4 ? NULL : to;
    if (one->given & 1) params = NULL;
    if (one->given & 8) options = NULL;
    if (one->stitches) return grd_stitch_frame(params, one->frame[0], one->frame[1], from, into, options);
    return grd_cut_frame(params, from, into, options);
}

/* The values of a view, which it then leaves as untouched. */
UNTRACED static float *values_taken(const grd_view *view, size_t *count) {
    const int64_t *e = view->extent, pixel = bytes_of(view->dtype);
    int64_t dense[4];
    dense_strides(view, 0, dense);
    const int64_t *s = is_dense(view) ? dense : view->stride_bytes;
    float *values = calloc((size_t)(e[0] * e[1] * e[2] * e[3]), sizeof *values);
    if (values == NULL) exit(1);
    *count = 0;
    for (int pass = 0; pass < 2; ++pass)
        for (int64_t i = 0; i < e[0] * e[1] * e[2] * e[3]; ++i) {
            const int64_t x = i % e[3], y = i / e[3] % e[2], c = i / (e[3] * e[2]) % e[1], n = i / (e[3] * e[2] * e[1]);
            uint8_t *at = (uint8_t *)view->data + n * s[0] + c * s[1] + y * s[2] + x * s[3];
            if (pass == 0) memcpy(&values[(*count)++], at, (size_t)pixel);
            else memset(at, kUntouched, (size_t)pixel);
        }
    return values;
}

/* After a call that was taken: the same bits in the scalar variant, nothing written between the pixels. */
UNTRACED static void require_same(const cutting *one, block memory) {
    size_t count, again;
    grd_cut_options scalar;
    memset(&scalar, 0, sizeof scalar);
    scalar.struct_size = sizeof scalar, scalar.input_scale = one->options.input_scale, scalar.variant = "scalar";
    float *values = values_taken(&one->to, &count);
    require_untouched(memory);
    cutting plain = *one;
    plain.given = 0;
    REQUIRE(call(&plain, &plain.params, &plain.to, &scalar) == GRD_OK);
    float *right = values_taken(&one->to, &again);
    for (size_t i = 0; i < count; ++i) {
        if (one->stitches && isnan(values[i]) && isnan(right[i])) continue; /* of any bits */
        REQUIRE(memcmp(values + i, right + i, sizeof *values) == 0);
        if (!one->stitches && one->to.dtype == GRD_FLOAT32) REQUIRE(values[i] >= 0 && values[i] <= 1.000001f);
    }
    free(values), free(right);
}

static block memory_of(grd_view *view, int taken, size_t shift, int content, uint32_t seed) {
    double before = 0;
    const size_t size = taken ? (size_t)reach_of(view, &before) : 1;
    const block out = allocated(size + shift, content, seed);
    if (view->data != NULL) view->data = out.bytes + shift + (size_t)before;
    return out;
}

static void run(cutting *one) {
    block sized[2], space = {NULL, 0};
    grd_grid grid;
    if (!one->stitches) one->frame[0] = one->from.extent[2], one->frame[1] = one->from.extent[3];
    one->from.data = one->from.data == NULL ? one : NULL, one->to.data = one->to.data == NULL ? one : NULL;
    int verdict = verdict_of_cutting(one, &grid);
    if (verdict == SKIP) return;
    const block from = memory_of(&one->from, verdict == TAKE, one->shift & 3, 0x3c, one->seed);
    const block to = memory_of(&one->to, verdict == TAKE, one->shift >> 2 & 3, kUntouched, 0);
    const char *ran = NULL;
    grd_cut_options *options = &one->options;
    options->ran = one->given & 16 ? NULL : &ran;
    const size_t needed = grd_cut_workspace_bytes(&one->params, one->frame[0], one->frame[1]);
    REQUIRE(verdict != TAKE || needed > 0);
    const int kind = one->space % 5; /* of workspace: none, enough, unaligned, one byte, one byte less than enough */
    if (kind > 0) {
        const size_t shift = kind == 2 ? 7 : 0, stated = kind == 3 ? 1 : needed - (kind == 4 && needed > 0);
        space = allocated(verdict == TAKE ? stated + shift : 1, 0xFF, 0);
        options->workspace = space.bytes + (verdict == TAKE ? shift : 0);
        options->workspace_bytes = stated;
        if (kind == 3 && !(one->given & 8)) verdict = REFUSE;
    }
    const grd_cut_params *params = of_stated_size(&one->params, sizeof one->params, one->params.struct_size, &sized[0]);
    const void *given = of_stated_size(options, sizeof *options, options->struct_size, &sized[1]);
    const grd_status status = call(one, params, &one->to, given);
    /* One byte less may do: what is asked for is enough for both calls. */
    const int spared = verdict == TAKE && kind == 4 && status == GRD_ERR_BUFFER;
    if (verdict == TAKE && !spared) {
        REQUIRE(status == GRD_OK);
        REQUIRE((ran != NULL) == ((one->given & 24) == 0));
        if (ran != NULL) REQUIRE(strcmp(ran, grd_variant_active(options->variant)) == 0);
        require_same(one, to);
    } else {
        const int of_frame = status == GRD_ERR_FRAME_SIZE || status == GRD_ERR_FRAME_CHANNELS;
        REQUIRE(((status >= 10 && status <= 17) || of_frame) && ran == NULL);
        require_untouched(to);
    }
    free(from.bytes), free(to.bytes), free(space.bytes), free(sized[0].bytes), free(sized[1].bytes);
}

void fuzz_cutting(reader *in, int stitches) {
    cutting one;
    memset(&one, 0, sizeof one);
    one.stitches = stitches;
    read_cutting(in, &one);
    while (in->left > 0) {
        const uint8_t field = next(in);
        change(&one, field % (2 * kViewParts + kParamFields + 6), next(in));
    }
    run(&one);
}
