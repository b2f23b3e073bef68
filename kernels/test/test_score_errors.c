/* test_score_errors.c - arguments of the scoring section that are refused, and which variant runs.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200112L /* setenv */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"
#include "score_cases.h"

static const char *const kListed[] = {
#define GRD_VARIANT(name, supported) #name,
#include "variants.inc"
#undef GRD_VARIANT
};
enum { kListedCount = sizeof kListed / sizeof kListed[0] };

typedef struct call {
    grd_score_params params;
    grd_view x, x_hat, heatmap, roi;
    grd_score_outputs outputs;
    scores s;
    float pixels[2][20 * 20], heat[20 * 20];
    uint8_t mask[20 * 20];
} call;

static void fresh_call(call *c) {
    memset(c, 0, sizeof *c);
    make_pair(NOISY, 0.5f, 1, 20, 20, c->pixels[0], c->pixels[1]);
    c->params = params_for(NULL);
    c->x = dense_view(c->pixels[0], 1, 1, 20, 20);
    c->x_hat = dense_view(c->pixels[1], 1, 1, 20, 20);
    c->heatmap = dense_view(c->heat, 1, 1, 20, 20);
    memset(c->mask, 1, sizeof c->mask);
    c->roi = dense_view(c->mask, 1, 1, 20, 20);
    c->roi.dtype = GRD_UINT8;
    memset(&c->s, 0xA5, sizeof c->s);
    memset(c->heat, 0xA5, sizeof c->heat);
    c->outputs = outputs_of(&c->s, &c->heatmap);
}

/* The call must give `expected` and, unless that is GRD_OK, leave every output as it was. */
static void expect(call *c, grd_status expected, const char *what) {
    scores before;
    float heat[20 * 20];
    memset(&before, 0xA5, sizeof before);
    memset(heat, 0xA5, sizeof heat);
    const grd_status status = grd_score_patches(&c->params, &c->x, &c->x_hat, &c->outputs);
    CHECK_SAYS(status == expected, "%s: %d for %d", what, status, expected);
    if (status != GRD_OK)
        CHECK_SAYS(same_bits(&before, &c->s, sizeof before) && same_bits(heat, c->heat, sizeof heat),
                   "%s: outputs touched", what);
}

#define EXPECT(status, change)      \
    do {                            \
        call c;                     \
        fresh_call(&c);             \
        change;                     \
        expect(&c, status, #change); \
    } while (0)

static void check_errors(void) {
    call base;
    unsigned char small[64];
    fresh_call(&base);
    CHECK_SAYS(grd_score_patches(&base.params, NULL, &base.x_hat, &base.outputs) == GRD_ERR_ARGUMENT, "x NULL");
    CHECK_SAYS(grd_score_patches(&base.params, &base.x, NULL, &base.outputs) == GRD_ERR_ARGUMENT, "x_hat NULL");
    CHECK_SAYS(grd_score_patches(&base.params, &base.x, &base.x_hat, NULL) == GRD_ERR_ARGUMENT, "outputs NULL");
    CHECK_SAYS(grd_score_patches(NULL, &base.x, &base.x_hat, &base.outputs) == GRD_OK, "params NULL");

    EXPECT(GRD_OK, (void)0);
    EXPECT(GRD_ERR_ARGUMENT, c.x.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.x_hat.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.heatmap.data = NULL);
    EXPECT(GRD_ERR_ARGUMENT, c.params.window = 2);
    EXPECT(GRD_ERR_ARGUMENT, c.params.window = -1);
    EXPECT(GRD_ERR_ARGUMENT, c.params.local_window_px = -1);
    EXPECT(GRD_ERR_ARGUMENT, c.params.heatmap_scale = -1);
    EXPECT(GRD_ERR_ARGUMENT, c.params.heatmap_scale = INFINITY);
    EXPECT(GRD_ERR_ARGUMENT, c.params.heatmap_scale = NAN);

    EXPECT(GRD_ERR_STRUCT_SIZE, c.params.struct_size = 0);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.params.struct_size = sizeof c.params - 1);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.outputs.struct_size = 0);
    EXPECT(GRD_ERR_STRUCT_SIZE, c.outputs.struct_size = sizeof c.outputs - 1);
    EXPECT(GRD_OK, c.params.struct_size = sizeof c.params + 64); /* a newer caller */
    EXPECT(GRD_OK, c.outputs.struct_size = sizeof c.outputs + 64);

    EXPECT(GRD_ERR_DTYPE, c.x.dtype = GRD_UINT16);
    EXPECT(GRD_ERR_DTYPE, c.x_hat.dtype = GRD_UINT8);
    EXPECT(GRD_ERR_DTYPE, c.heatmap.dtype = GRD_UINT16);
    EXPECT(GRD_ERR_DTYPE, c.x.dtype = 0);
    EXPECT(GRD_ERR_SPACE, c.x.space = 1);
    EXPECT(GRD_ERR_SPACE, c.x_hat.space = -1);
    EXPECT(GRD_ERR_SPACE, c.heatmap.space = 1);

    for (int axis = 0; axis < 4; axis++) {
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = 0);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = -1);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] = c.x_hat.extent[axis] = INT64_MAX);
        EXPECT(GRD_ERR_SHAPE, c.x.extent[axis] += 1);
        EXPECT(GRD_ERR_SHAPE, c.heatmap.extent[axis] += 1);
    }
    EXPECT(GRD_ERR_SHAPE, c.x.extent[2] = c.x_hat.extent[2] = c.heatmap.extent[2] = 10);
    EXPECT(GRD_ERR_SHAPE, c.x.extent[3] = c.x_hat.extent[3] = c.heatmap.extent[3] = 10);
    EXPECT(GRD_OK, (c.params.window = GRD_WINDOW_BOX,
                    c.x.extent[2] = c.x_hat.extent[2] = c.heatmap.extent[2] = 10));
    EXPECT(GRD_ERR_SHAPE, c.x.extent[2] = c.x.extent[3] = c.x_hat.extent[2] = c.x_hat.extent[3] = 1 << 23);

    EXPECT(GRD_ERR_STRIDE, c.x.stride_bytes[2] = INT64_MAX / 2);
    EXPECT(GRD_ERR_STRIDE, c.x_hat.stride_bytes[3] = INT64_MIN);
    EXPECT(GRD_ERR_STRIDE, c.heatmap.stride_bytes[2] = 80); /* the others 0: all columns in one place */
    EXPECT(GRD_ERR_STRIDE, (c.heatmap.stride_bytes[2] = 80, c.heatmap.stride_bytes[3] = -2));
    EXPECT(GRD_OK, c.x.stride_bytes[2] = 80); /* inputs may repeat pixels */

    for (int32_t dtype = 0; dtype <= 5; dtype++) {
        const int real = dtype == GRD_FLOAT16 || dtype == GRD_FLOAT32, bytes = dtype == GRD_UINT8;
        EXPECT(real || bytes ? GRD_OK : GRD_ERR_DTYPE, c.x.dtype = dtype);
        EXPECT(real ? GRD_OK : GRD_ERR_DTYPE, c.x_hat.dtype = dtype);
        EXPECT(real || bytes ? GRD_OK : GRD_ERR_DTYPE, c.heatmap.dtype = dtype);
        EXPECT(bytes ? GRD_OK : GRD_ERR_DTYPE, (c.params.roi = &c.roi, c.roi.dtype = dtype));
    }
    EXPECT(GRD_ERR_STRIDE, (c.heatmap.dtype = GRD_FLOAT16, c.heatmap.stride_bytes[2] = 80,
                            c.heatmap.stride_bytes[3] = 1)); /* pixels of two bytes */

    EXPECT(GRD_OK, c.params.roi = &c.roi);
    EXPECT(GRD_ERR_ARGUMENT, (c.params.roi = &c.roi, c.roi.data = NULL));
    EXPECT(GRD_ERR_SPACE, (c.params.roi = &c.roi, c.roi.space = 1));
    for (int axis = 0; axis < 4; axis++) {
        EXPECT(GRD_ERR_SHAPE, (c.params.roi = &c.roi, c.roi.extent[axis] += 1));
        EXPECT(GRD_ERR_SHAPE, (c.params.roi = &c.roi, c.roi.extent[axis] = 0));
        if (axis > 1) EXPECT(GRD_ERR_SHAPE, (c.params.roi = &c.roi, c.roi.extent[axis] -= 1));
    }
    EXPECT(GRD_ERR_STRIDE, (c.params.roi = &c.roi, c.roi.stride_bytes[3] = INT64_MIN));
    EXPECT(GRD_OK, (c.params.roi = &c.roi, c.roi.stride_bytes[2] = 20)); /* masks may repeat pixels */

    EXPECT(GRD_ERR_VARIANT, c.params.variant = "abacus");
    EXPECT(GRD_ERR_VARIANT, c.params.variant = "");
    EXPECT(GRD_ERR_BUFFER, (c.params.workspace = small, c.params.workspace_bytes = 0));
    EXPECT(GRD_ERR_BUFFER, (c.params.workspace = small, c.params.workspace_bytes = sizeof small));

    grd_score_params params = params_for(NULL);
    CHECK_SAYS(grd_score_workspace_bytes(NULL, 1, 256, 256) == grd_score_workspace_bytes(&params, 1, 256, 256),
               "params NULL are the defaults");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 10, 11) == 0, "too small");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 0, 11, 11) == 0, "no channel");
    CHECK_SAYS(grd_score_workspace_bytes(&params, -1, 11, 11) == 0, "negative");
    CHECK_SAYS(grd_score_workspace_bytes(&params, INT64_MAX, INT64_MAX, INT64_MAX) == 0, "overflow");
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, INT64_MAX / 2, 11) == 0, "overflow");
    params.window = GRD_WINDOW_BOX;
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 1, 1) > 0, "box takes one pixel");
    params.struct_size = 3;
    CHECK_SAYS(grd_score_workspace_bytes(&params, 1, 64, 64) == 0, "struct_size");
}

static void check_variants(void) {
    grd_score_params params = params_for(NULL);
    int count = 0;
    const char *fastest = NULL;
    for (; grd_variant_name(count); count++) {
        const char *name = grd_variant_name(count);
        const int listed = count < kListedCount && strcmp(name, kListed[count]) == 0;
        CHECK_SAYS(listed, "%s is not variant %d of the list", name, count);
        if (grd_variant_supported(name)) fastest = name;
    }
    CHECK_SAYS(count == kListedCount, "%d variants, %d listed", count, (int)kListedCount);
    CHECK_SAYS(grd_variant_name(-1) == NULL && grd_variant_name(count + 1) == NULL, "past the end");
    CHECK_SAYS(strcmp(grd_variant_name(0), "scalar") == 0, "scalar comes first");
    CHECK_SAYS(grd_variant_supported("scalar") == 1, "scalar always runs");
    CHECK_SAYS(grd_variant_supported("abacus") == 0 && grd_variant_supported(NULL) == 0, "unknown");

    unsetenv("GRD_FORCE_VARIANT");
    CHECK_SAYS(grd_variant_active(NULL) == fastest, "the fastest is the default");
    setenv("GRD_FORCE_VARIANT", "", 1);
    CHECK_SAYS(grd_variant_active(NULL) == fastest, "empty forces nothing");
    setenv("GRD_FORCE_VARIANT", "scalar", 1);
    CHECK_SAYS(strcmp(grd_variant_active(NULL), "scalar") == 0, "environment");
    params.variant = fastest;
    CHECK_SAYS(grd_variant_active(params.variant) == fastest, "params come before the environment");
    setenv("GRD_FORCE_VARIANT", "abacus", 1);
    CHECK_SAYS(grd_variant_active(NULL) == NULL, "unknown in the environment");
    EXPECT(GRD_ERR_VARIANT, c.params.variant = NULL);
    EXPECT(GRD_OK, c.params.variant = "scalar");

    /* What the environment forces is what runs: the same bits as when the call forces it. */
    for (int v = 0; v < count; v++) {
        call by_call, by_environment;
        const char *name = grd_variant_name(v);
        if (!grd_variant_supported(name)) {
            EXPECT(GRD_ERR_VARIANT, c.params.variant = name);
            continue;
        }
        fresh_call(&by_call);
        by_environment = by_call;
        by_environment.x.data = by_environment.pixels[0], by_environment.x_hat.data = by_environment.pixels[1];
        by_environment.heatmap.data = by_environment.heat;
        by_environment.outputs = outputs_of(&by_environment.s, &by_environment.heatmap);
        by_call.params.variant = name;
        setenv("GRD_FORCE_VARIANT", name, 1);
        expect(&by_call, GRD_OK, name);
        expect(&by_environment, GRD_OK, name);
        CHECK_SAYS(same_bits(&by_call.s, &by_environment.s, sizeof by_call.s), "%s forced twice", name);
    }
    unsetenv("GRD_FORCE_VARIANT");
}

int main(void) {
    check_variants();
    check_errors();
    return checks_report();
}
