/* test_score.c - scores against their definition (score_cases.h), for every variant this CPU runs.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Last line: "N passed, N failed"; exit status 1 when any failed. */
#define _POSIX_C_SOURCE 200112L /* unsetenv */

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "grd_edge.h"
#include "score_cases.h"

enum { kVariants = 8 }; /* at most; test_score_errors.c compares the names with the list */

static double worst_phi[kVariants][FAMILIES], worst_local[kVariants][FAMILIES];

static void check_accuracy_at(int family, float level, int box, int local, int channels, int h, int w) {
    const size_t count = (size_t)(channels * h * w);
    float *x = floats(count), *y = floats(count), *heat = floats((size_t)(h * w));
    make_pair(family, level, channels, h, w, x, y);
    const definition truth = reference(box, local ? local : 21, x, y, NULL, channels, h, w);
    for (int v = 0; grd_variant_name(v); v++) {
        const char *name = grd_variant_name(v);
        if (!grd_variant_supported(name)) continue;
        const grd_view vx = dense_view(x, 1, channels, h, w), vy = dense_view(y, 1, channels, h, w);
        const grd_view vh = dense_view(heat, 1, 1, h, w);
        grd_score_params params = params_for(name);
        scores s;
        const grd_score_outputs outputs = outputs_of(&s, &vh);
        params.window = box ? GRD_WINDOW_BOX : GRD_WINDOW_GAUSSIAN;
        params.local_window_px = local;
        const grd_status status = grd_score_patches(&params, &vx, &vy, &outputs);
        CHECK_SAYS(status == GRD_OK, "%s", grd_variant_name(v));
        const double error = fabs(s.phi - truth.phi), error_local = fabs(s.phi_local - truth.phi_local);
        CHECK_SAYS(error <= 1e-6 && error_local <= 1e-6,
                   "%s %s %g box %d local %d %dx%dx%d: phi %.9g for %.9g, phi_local %.9g for %.9g", name,
                   kFamilyNames[family], level, box, local, channels, h, w, s.phi, truth.phi, s.phi_local,
                   truth.phi_local);
        if (error > worst_phi[v][family]) worst_phi[v][family] = error;
        if (error_local > worst_local[v][family]) worst_local[v][family] = error_local;
        CHECK_SAYS(s.phi >= 0 && s.phi <= 2.000001f, "%s phi %.9g", name, s.phi);
        CHECK_SAYS(s.phi_local >= 0 && s.phi_local <= 2.000001f, "%s phi_local %.9g", name, s.phi_local);
        if (family == IDENTICAL)
            CHECK_SAYS(s.phi == 0 && s.phi_local == 0 && s.residual_max == 0, "%s identical: %.9g %.9g", name, s.phi,
                       s.phi_local);

        float least = FLT_MAX, largest = 0;
        double worst = 0;
        for (int i = 0; i < h * w; i++) {
            double sum = 0;
            for (int c = 0; c < channels; c++) sum += fabs((double)x[c * h * w + i] - y[c * h * w + i]) / channels;
            if (fabs(sum - heat[i]) > worst) worst = fabs(sum - heat[i]);
            if (heat[i] < least) least = heat[i];
            if (heat[i] > largest) largest = heat[i];
        }
        CHECK_SAYS(worst <= 1.5e-7, "%s heatmap off by %g", name, worst);
        CHECK_SAYS(s.residual_min == least && s.residual_max == largest, "%s residual range", name);
    }
    free(x), free(y), free(heat);
}

static void check_accuracy(void) {
    static const int sizes[][2] = {{11, 11}, {12, 12}, {15, 15}, {16, 16}, {17, 17}, {18, 18}, {19, 23}, {31, 31},
                                   {33, 33}, {63, 63}, {65, 65}, {11, 40}, {100, 13}, {11, 112}, {12, 113},
                                   {19, 127}, {20, 144}, {11, 160}, {27, 161}, {13, 256}, {18, 257}, {11, 530}};
    static const float levels[] = {0, 0.1f, 0.3f, 0.5f, 0.7f, 0.9f, 1};
    for (int family = 0; family < FAMILIES; family++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            check_accuracy_at(family, levels[(i + 5) % 7], 0, 0, 1 + (int)(i + (size_t)family) % 3, sizes[i][0],
                              sizes[i][1]);
    for (int family = 0; family < FAMILIES; family++)
        for (int i = 0; i < 7; i++) check_accuracy_at(family, levels[i], 0, 0, 1, 48, 50);
    for (int i = 0; i < 40; i++) check_accuracy_at(FLAT_HALF, uniform(), 0, 0, 1, 33, 35);
    for (int i = 0; i < 40; i++) check_accuracy_at(FLAT_LEVELS, uniform(), 0, 0, 1, 33, 35);
    for (int i = 0; i < 20; i++) check_accuracy_at(SQUARE, uniform(), 0, 0, 1, 64, 64);
    for (int i = 0; i < 20; i++) check_accuracy_at(STEP, uniform(), 0, 0, 1, 40, 64);
    /* Maps of one row and of one pixel: no average hides an error. */
    for (int i = 0; i < 400; i++) check_accuracy_at(i % FAMILIES, uniform(), 0, 0, 1, 11, i % 2 ? 40 : 11);
    for (int i = 0; i < 200; i++) check_accuracy_at(i % 2 ? TWO_STEPS : SMOOTH, uniform(), 0, 0, 1, 11, 40);
    for (int family = 0; family < FAMILIES; family++) check_accuracy_at(family, 0.9f, 0, 0, 1, 128, 128);

    static const int locals[] = {1, 2, 3, 4, 5, 7, 8, 20, 22, 31, 32, 33, 50, 1000};
    for (size_t i = 0; i < sizeof locals / sizeof locals[0]; i++) {
        check_accuracy_at(TEXTURE, 0.5f, 0, locals[i], 1, 60, 57);
        check_accuracy_at(FLAT_LEVELS, 0.7f, 0, locals[i], 2, 47, 60);
        check_accuracy_at(NOISY, 0.7f, 0, locals[i], 1, 47, 130);
        check_accuracy_at(TWO_STEPS, 0.7f, 0, locals[i], 1, 38, 257);
    }
    /* Either side of the largest window that the vector variants sum themselves. */
    check_accuracy_at(FLAT_LEVELS, 0.7f, 0, 256, 1, 266, 267);
    check_accuracy_at(NOISY, 0.7f, 0, 257, 1, 267, 268);

    static const int box_sizes[][2] = {{1, 1}, {1, 7}, {2, 3}, {10, 10}, {11, 11}, {12, 30}, {33, 17}};
    for (int family = 0; family < FAMILIES; family++)
        for (size_t i = 0; i < sizeof box_sizes / sizeof box_sizes[0]; i++)
            check_accuracy_at(family, levels[i], 1, 0, 1 + (int)i % 3, box_sizes[i][0], box_sizes[i][1]);
}

/* Steps along x that forms relative to the patch mean missed by more than 1e-6, and the worst ones of the present form
 * in a search over 126 000. */
static void check_steps(void) {
    static const struct {
        int h, w, edge, edge_hat, end; /* where x, x^ and both take their next levels */
        float x[3], x_hat[3];
    } cases[] = {
        {40, 200, 118, 118, 200, {0.895f, 0.00116f}, {0.966f, 0.0403f}},
        {22, 216, 176, 176, 179, {0.950817466f, 0, 0}, {0.449095041f, 0.0204719231f, 0.0161169134f}},
        {11, 276, 269, 84, 276, {0.751595557f, 0.760032058f}, {0.937191248f, 1}},
        {11, 253, 110, 113, 116, {0.892369211f, 0.844835103f, 0.693541288f},
         {0.888974011f, 0.873981059f, 0.905659616f}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        const int h = cases[k].h, w = cases[k].w;
        float *x = floats((size_t)(h * w)), *y = floats((size_t)(h * w));
        for (int i = 0; i < h * w; i++) {
            const int at = i % w, ended = at >= cases[k].end;
            x[i] = cases[k].x[ended ? 2 : at >= cases[k].edge];
            y[i] = cases[k].x_hat[ended ? 2 : at >= cases[k].edge_hat];
        }
        const definition truth = reference(0, 21, x, y, NULL, 1, h, w);
        for (int v = 0; grd_variant_name(v); v++) {
            const char *name = grd_variant_name(v);
            if (!grd_variant_supported(name)) continue;
            const grd_view vx = dense_view(x, 1, 1, h, w), vy = dense_view(y, 1, 1, h, w);
            const grd_score_params params = params_for(name);
            scores s;
            const grd_score_outputs outputs = outputs_of(&s, NULL);
            CHECK_SAYS(grd_score_patches(&params, &vx, &vy, &outputs) == GRD_OK, "%s", name);
            CHECK_SAYS(fabs(s.phi - truth.phi) <= 1e-6 && fabs(s.phi_local - truth.phi_local) <= 1e-6,
                       "%s steps %dx%d: phi %.9g for %.9g, phi_local %.9g for %.9g", name, h, w, s.phi, truth.phi,
                       s.phi_local, truth.phi_local);
        }
        free(x), free(y);
    }
}

int main(void) {
    unsetenv("GRD_FORCE_VARIANT");
    check_accuracy();
    check_steps();

    printf("%-18s", "worst error");
    for (int v = 0; grd_variant_name(v); v++) printf("%22s", grd_variant_name(v));
    printf("\n%-18s", "");
    for (int v = 0; grd_variant_name(v); v++) printf("%12s%10s", "phi", "phi_local");
    for (int family = 0; family < FAMILIES; family++) {
        printf("\n%-18s", kFamilyNames[family]);
        for (int v = 0; grd_variant_name(v); v++)
            printf("%12.1e%10.1e", worst_phi[v][family], worst_local[v][family]);
    }
    printf("\n");
    return checks_report();
}
