/* fuzz_targets.h - what fuzz_*.c give to libFuzzer, to its stand-in and to the tests.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_FUZZ_TARGETS_H
#define GRD_FUZZ_TARGETS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
#endif
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
