/* fuzz_onnx.c - any bytes as an ONNX model.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "fuzz_targets.h"
#include "onnx_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const int found = grd_onnx_self_contained(data, size);
    if (found < GRD_ONNX_UNREADABLE || found > GRD_ONNX_SELF_CONTAINED) abort();
    return 0;
}
