/* onnx_check.h - does an ONNX file keep all its weights inside? Usable from C, for its test.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_ONNX_CHECK_H
#define GRD_ONNX_CHECK_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { GRD_ONNX_UNREADABLE = -1, GRD_ONNX_EXTERNAL = 0, GRD_ONNX_SELF_CONTAINED = 1 };

/* Readers of ONNX follow a model's references to other files, which no bundle has verified; OpenVINO does so even
 * when the model comes from memory, relative to the working directory. Such a model must not be opened. */
int grd_onnx_self_contained(const void *bytes, size_t byte_count);

#ifdef __cplusplus
}
#endif
#endif
