/* test_pool.c - pools of threads: scores do not depend on them, and they may be opened, used and closed at any time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "grd_edge.h"

enum { kN = 37, kSide = 24 };

static float x[kN][kSide * kSide], x_hat[kN][kSide * kSide];

static void make_patches(void) {
    uint32_t state = 7;
    for (int n = 0; n < kN; n++)
        for (int i = 0; i < kSide * kSide; i++) {
            state = state * 1664525u + 1013904223u;
            x[n][i] = (float)(state >> 8) / 16777216.0f;
            x_hat[n][i] = 0.9f * x[n][i] + 0.01f * (float)n / kN;
        }
}

typedef struct scores {
    float phi[kN], phi_local[kN], heatmap[kN][kSide * kSide];
} scores;

static void score(grd_pool *pool, const char *variant, int64_t count, int own_workspace, scores *out) {
    grd_view views[3];
    memset(views, 0, sizeof views);
    memset(out, 0, sizeof *out);
    void *data[3] = {x, x_hat, out->heatmap};
    for (int i = 0; i < 3; i++) {
        views[i].data = data[i], views[i].dtype = GRD_FLOAT32;
        views[i].extent[0] = count, views[i].extent[1] = 1, views[i].extent[2] = views[i].extent[3] = kSide;
    }
    grd_score_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.variant = variant;
    params.pool = pool;
    params.workspace_bytes = grd_score_workspace_bytes(&params, 1, kSide, kSide);
    params.workspace = own_workspace ? malloc(params.workspace_bytes) : NULL;
    const grd_score_outputs outputs = {sizeof outputs, 0,    out->phi,  out->phi_local,
                                       NULL,           NULL, &views[2], NULL};
    CHECK(grd_score_patches(&params, &views[0], &views[1], &outputs) == GRD_OK);
    free(params.workspace);
}

static void check_threads(const char *variant) {
    static scores alone, shared;
    static const int threads[] = {1, 2, 3, 4, 16};
    static const int64_t counts[] = {1, 2, 3, kN};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        score(NULL, variant, counts[c], 0, &alone);
        for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
            grd_pool *pool = NULL;
            CHECK(grd_pool_open(threads[t], &pool) == GRD_OK && pool != NULL);
            for (int round = 0; round < 20; round++) {
                score(pool, variant, counts[c], round % 2, &shared);
                CHECK(memcmp(&alone, &shared, sizeof alone) == 0);
            }
            grd_pool_close(pool);
        }
    }
}

static void check_arguments(void) {
    grd_pool *pool = (grd_pool *)&pool;
    CHECK(grd_pool_open(1, NULL) == GRD_ERR_ARGUMENT);
    CHECK(grd_pool_open(0, &pool) == GRD_ERR_ARGUMENT && pool == NULL);
    CHECK(grd_pool_open(-1, &pool) == GRD_ERR_ARGUMENT);
    CHECK(grd_pool_open(1025, &pool) == GRD_ERR_ARGUMENT);
    grd_pool_close(NULL);
    for (int i = 0; i < 50; i++) { /* closed before its threads have begun */
        CHECK(grd_pool_open(3, &pool) == GRD_OK);
        grd_pool_close(pool);
    }
    /* Its workspace grows with the threads; one that is too small is refused. */
    grd_score_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    const size_t one = grd_score_workspace_bytes(&params, 1, kSide, kSide);
    CHECK(grd_pool_open(4, &pool) == GRD_OK);
    params.pool = pool;
    const size_t four = grd_score_workspace_bytes(&params, 1, kSide, kSide);
    CHECK(one > 0 && four > 3 * (one - 64) && four < 4 * one);
    grd_pool_close(pool);
}

int main(void) {
    make_patches();
    check_arguments();
    for (int v = 0; grd_variant_name(v); v++)
        if (grd_variant_supported(grd_variant_name(v))) check_threads(grd_variant_name(v));
    return checks_report();
}
