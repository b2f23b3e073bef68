/* test_header.c - the public header is plain C99, and what it pins stays pinned.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "grd_edge.h"

#include <string.h>

#include "check.h"

static void check_pinned_values(void) {
    CHECK(GRD_OK == 0);
    CHECK(GRD_ERR_ARGUMENT == 10 && GRD_ERR_BUFFER == 17);
    CHECK(GRD_ERR_BUNDLE_MISSING == 20 && GRD_ERR_BUNDLE_ENGINE == 25);
    CHECK(GRD_ERR_BACKEND_MISSING == 30 && GRD_ERR_DEVICE == 36);
    CHECK(GRD_ERR_FRAME_SIZE == 40 && GRD_ERR_FRAME_CHANNELS == 41);
    CHECK(GRD_ERR_MEMORY == 50 && GRD_ERR_IO == 51 && GRD_ERR_THREAD == 52 && GRD_ERR_INTERNAL == 90);
    CHECK(GRD_ERR_STREAM_FULL == 60 && GRD_ERR_STREAM_EMPTY == 61 && GRD_ERR_STREAM_TIMEOUT == 62);
    CHECK(GRD_GOOD == 0 && GRD_DEFECTIVE == 1 && GRD_UNDECIDED == 2 && GRD_INCONSISTENT == 3 && GRD_NOT_INSPECTED == 4);
    CHECK(GRD_SCORED == 1 && GRD_LATE == 2 && GRD_DROPPED == 3 && GRD_FAILED == 4);
    CHECK(GRD_OVERLOAD_BLOCK == 0 && GRD_OVERLOAD_DROP_OLDEST == 1 && GRD_OVERLOAD_DROP_NEWEST == 2);
    CHECK(GRD_HEAD_RECONSTRUCTION == 0 && GRD_HEAD_SCORE_MAP == 1);
    CHECK(GRD_UINT8 == 1 && GRD_UINT16 == 2 && GRD_FLOAT16 == 3 && GRD_FLOAT32 == 4 &&
          GRD_INT8 == 5);
}

/* Layouts that other languages declare by hand (64-bit pointers). */
static void check_layouts(void) {
    if (sizeof(void *) != 8) return;
    CHECK(sizeof(grd_view) == 80);
    CHECK(sizeof(grd_score_params) == 56);
    CHECK(sizeof(grd_score_outputs) == 56);
    CHECK(sizeof(grd_cut_params) == 32);
    CHECK(sizeof(grd_grid) == 24);
    CHECK(sizeof(grd_cut_options) == 40);
    CHECK(sizeof(grd_bundle_info) == 96 && offsetof(grd_bundle_info, head) == 88); /* first release */
    CHECK(sizeof(grd_inspector_params) == 56);
    CHECK(sizeof(grd_patch_result) == 24);
    CHECK(sizeof(grd_result) == 96);
    CHECK(sizeof(grd_latency) == 48 && sizeof(grd_stream_stats) == 384);
    CHECK(sizeof(grd_stream_result) == 408 && sizeof(grd_stream_params) == 120 && sizeof(grd_stream_frame) == 232);
    CHECK(sizeof(grd_engine_desc) == 112 && offsetof(grd_engine_desc, library_version) == 64); /* first release */
    CHECK(offsetof(grd_engine_desc, output_c) == 96);
    CHECK(sizeof(grd_backend) == 72 && offsetof(grd_backend, frame_open) == 48);
    CHECK(sizeof(grd_frame_desc) == 44 && sizeof(grd_frame_work) == 72);
}

static void check_versions(void) {
    char text[32];
    sprintf(text, "%d.%d.%d", GRD_VERSION_MAJOR, GRD_VERSION_MINOR, GRD_VERSION_PATCH);
    CHECK(strcmp(grd_version_string(), text) == 0);
    CHECK(grd_version() == GRD_VERSION_MAJOR * 10000 + GRD_VERSION_MINOR * 100 + GRD_VERSION_PATCH);
}

static void check_names(void) {
    int named = 0;
    for (grd_status status = -5; status < 200; ++status) {
        const char *name = grd_status_name(status);
        const int known = strcmp(name, "GRD_ERR_UNKNOWN") != 0;
        named += known;
        CHECK(strncmp(name, "GRD_", 4) == 0);
        if (status < 0) CHECK(!known);
    }
    CHECK(named == 31);
    CHECK(strcmp(grd_status_name(GRD_OK), "GRD_OK") == 0);
    CHECK(strcmp(grd_status_name(GRD_ERR_BUNDLE_HASH), "GRD_ERR_BUNDLE_HASH") == 0);
}

static void check_frame_views(void) {
    const unsigned char pixels[24] = {0};
    grd_view view = grd_view_of_frame(pixels, GRD_UINT8, 2, 4, 3, 0);
    CHECK(view.data == pixels && view.dtype == GRD_UINT8 && view.space == GRD_SPACE_HOST);
    CHECK(view.extent[0] == 1 && view.extent[1] == 3 && view.extent[2] == 2 && view.extent[3] == 4);
    CHECK(view.stride_bytes[1] == 1 && view.stride_bytes[2] == 12 && view.stride_bytes[3] == 3);
    view = grd_view_of_frame(pixels, GRD_UINT16, 2, 4, 1, 10);
    CHECK(view.stride_bytes[1] == 2 && view.stride_bytes[2] == 10 && view.stride_bytes[3] == 2);
}

int main(void) {
    check_pinned_values();
    check_layouts();
    check_versions();
    check_names();
    check_frame_views();
    return checks_report();
}
