/* fuzz_bundle.c - any bytes as a bundle folder: opened or refused with one sentence, never worse.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_case.h"
#include "fuzz_targets.h"
#include "grd_edge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static fuzz_case one;
    char path[128];
    snprintf(path, sizeof path, "%s/b.grdb", fuzz_scratch());
    fuzz_case_parse(&one, data, size);
    fuzz_case_write(&one, path);
    grd_bundle *bundle = NULL;
    const grd_status status = grd_bundle_open(path, &bundle);
    const char *message = grd_bundle_message(bundle);
    if ((status == GRD_OK) != (message[0] == '\0') || strchr(message, '\n') != NULL) abort();
    grd_bundle_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    if ((grd_bundle_get_info(bundle, &info) == GRD_OK) != (status == GRD_OK)) abort();
    if (status == GRD_OK && (info.cut.patch_h < 11 || info.cut.stride_y < 1 || info.cut.stride_y > info.cut.patch_h))
        abort();
    for (int32_t i = 0; i < info.engine_count; ++i)
        if (grd_bundle_engine_target(bundle, i) == NULL) abort();
    grd_bundle_close(bundle);
    return 0;
}
