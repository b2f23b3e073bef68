/* fuzz_sha256.c - a digest does not depend on how its bytes arrive.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "fuzz_targets.h"
#include "sha256.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    grd_sha256 whole, parts;
    char expected[65], found[65];
    grd_sha256_begin(&whole);
    grd_sha256_add(&whole, data, size);
    grd_sha256_end(&whole, expected);
    grd_sha256_begin(&parts);
    for (size_t at = 0; at < size;) {
        const size_t wanted = (size_t)data[at] + (data[at] % 3 == 0 ? 64 : 0), left = size - at;
        const size_t part = wanted == 0 ? 1 : wanted < left ? wanted : left;
        grd_sha256_add(&parts, data + at, part);
        at += part;
    }
    grd_sha256_end(&parts, found);
    if (strcmp(expected, found) != 0) abort();
    return 0;
}
