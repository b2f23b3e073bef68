/* sha256.h - SHA-256 (FIPS 180-4). Usable from C, so that tests seal bundles with the same code.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SHA256_H
#define GRD_SHA256_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct grd_sha256 {
    uint32_t state[8];
    uint64_t byte_count;
    uint8_t block[64];
} grd_sha256;

void grd_sha256_begin(grd_sha256 *hash);
void grd_sha256_add(grd_sha256 *hash, const void *data, size_t byte_count);
/* 64 lower-case hex digits and a NUL. */
void grd_sha256_end(grd_sha256 *hash, char digits[65]);

#ifdef __cplusplus
}
#endif
#endif
