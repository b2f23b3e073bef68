/* inspect_frame.c - the smallest complete use of grd-edge: one image file in, one decision out.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   inspect_frame BUNDLE.grdb FRAME.pgm|FRAME.ppm [VENDOR_DIR]
 *
 * FRAME is a binary PGM or PPM (P5 or P6) of 8 bits. VENDOR_DIR holds the engine's vendor library, for instance
 * site-packages/openvino/libs; without it GRD_VENDOR_DIR and the loader's path are searched.
 * Exit status: 0 good, 1 error, 3 defective, 4 undecided (the bundle has no thresholds yet). */
#include <stdio.h>
#include <stdlib.h>

#include "grd_edge.h"
#include "pnm.h"

int main(int argc, char **argv) {
    static const char *const names[] = {"good", "defective", "undecided"};
    static const int exits[] = {0, 3, 4};
    pnm_image image = {0};
    int code = 1;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: inspect_frame BUNDLE.grdb FRAME.pgm|FRAME.ppm [VENDOR_DIR]\n");
        return 1;
    }
    grd_bundle *bundle = NULL;
    grd_inspector *inspector = NULL;
    grd_patch_result *patches = NULL;
    if (!pnm_read(argv[2], &image)) {
        fprintf(stderr, "%s is not a readable 8-bit binary PGM or PPM file\n", argv[2]);
        goto done;
    }

    /* 1. The bundle: every file in it is verified here. A handle carries the message of its failure. */
    if (grd_bundle_open(argv[1], &bundle) != GRD_OK) {
        fprintf(stderr, "%s\n", grd_bundle_message(bundle));
        goto done;
    }

    /* 2. The inspector: loads the engine. Zero-initialise, set struct_size, change what you need. */
    grd_inspector_params params = {0};
    params.struct_size = sizeof params;
    params.vendor_dir = argc > 3 ? argv[3] : NULL;
    if (grd_inspector_open(bundle, &params, &inspector) != GRD_OK) {
        fprintf(stderr, "%s\n", grd_inspector_message(inspector));
        goto done;
    }

    /* 3. How many patches does a frame of this size have? A line asks once, not per frame. */
    grd_grid grid = {0};
    grid.struct_size = sizeof grid;
    if (grd_inspector_grid(inspector, image.h, image.w, &grid) == GRD_OK)
        patches = calloc((size_t)grid.count, sizeof *patches);

    /* 4. The frame. Nothing is copied by making a view; a frame that does not fit is reported here. */
    const grd_view frame = grd_view_of_frame(image.pixels, GRD_UINT8, image.h, image.w, image.c, 0);
    grd_result result = {0};
    result.struct_size = sizeof result;
    result.patches = patches;
    result.patch_capacity = grid.count;
    if (grd_inspector_inspect(inspector, &frame, &result) != GRD_OK) {
        fprintf(stderr, "%s\n", grd_inspector_message(inspector));
        goto done;
    }

    /* 5. The decision. Whatever is not good must be rejected. */
    const int several = grd_bundle_region_name(bundle, 1) != NULL; /* then result.score is a margin */
    for (int32_t i = 0; patches != NULL && i < result.patch_count; ++i) {
        printf("patch %d y=%d x=%d phi=%.9g phi_local=%.9g %s", (int)i, (int)patches[i].y_px, (int)patches[i].x_px,
               (double)patches[i].phi, (double)patches[i].phi_local, names[patches[i].decision]);
        if (several)
            printf(" in %s, threshold=%.9g", grd_bundle_region_name(bundle, patches[i].region),
                   (double)grd_bundle_region_threshold(bundle, patches[i].region));
        printf("\n");
    }
    printf("engine: %s; cut %.2f ms, infer %.2f ms, score %.2f ms\n", grd_inspector_engine_version(inspector),
           result.cut_ms, result.infer_ms, result.score_ms);
    printf("decision: %s score=%.9g threshold=%.9g\n", names[result.decision], (double)result.score,
           (double)result.threshold);
    code = exits[result.decision];

done:
    free(patches);
    grd_inspector_close(inspector); /* before its bundle; NULL is fine */
    grd_bundle_close(bundle);
    free(image.pixels);
    return code;
}
