/* fuzz_call.h - what the targets of the kernel-level calls share: fields from bytes, views, memory behind them.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Whether a call must be taken is decided here and in the targets, from the header's text. */
#ifndef GRD_FUZZ_CALL_H
#define GRD_FUZZ_CALL_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_targets.h"
#include "grd_edge.h"

#define REQUIRE(condition) \
    do { \
        if (!(condition)) abort(); \
    } while (0)

/* Of our own loops over bytes: their comparisons tell libFuzzer nothing about the library and take most of its time. */
#if defined(__clang__)
#define UNTRACED __attribute__((noinline, no_sanitize("coverage")))
#else
#define UNTRACED
#endif

enum { kLargestPixels = 800, kLargestBytes = 1 << 16, kUntouched = 0xA5 };

/* ------------------------------------------------------------------------------------------- input */

typedef struct reader {
    const uint8_t *at;
    size_t left;
} reader;

static inline uint8_t next(reader *in) { /* 0 past the end */
    if (in->left == 0) return 0;
    --in->left;
    return *in->at++;
}

static inline int64_t value_of(uint8_t byte) {
    static const int64_t kOdd[] = {
        INT64_MAX, INT64_MIN, INT64_MIN + 1, INT64_MAX / 2, INT32_MAX, INT32_MIN, (int64_t)1 << 32,
        ((int64_t)1 << 32) + 11, 1 << 24, (1 << 24) + 1, 4096, 4097, 65536, 65537, 256, 257, -256, -4096,
        (int64_t)1 << 61, -((int64_t)1 << 40)};
    if (byte < 192) return (int64_t)byte - 64;
    return kOdd[byte % (sizeof kOdd / sizeof kOdd[0])];
}

/* -------------------------------------------------------------------------------------------- views */

static inline int64_t bytes_of(int32_t dtype) {
    return dtype == GRD_FLOAT32 ? 4 : dtype == GRD_UINT8 || dtype == GRD_INT8 ? 1 : 2;
}

/* Strides of a dense view, N,C,H,W or N,H,W,C. */
static inline void dense_strides(const grd_view *view, int interleaved, int64_t *s) {
    const int64_t pixel = bytes_of(view->dtype), *e = view->extent;
    if (interleaved) s[1] = pixel, s[3] = pixel * e[1], s[2] = s[3] * e[3], s[0] = s[2] * e[2];
    else s[3] = pixel, s[2] = pixel * e[3], s[1] = s[2] * e[2], s[0] = s[1] * e[1];
}

/* Layouts of a valid view; strides in bytes, with gaps between rows. */
static inline void lay_out(grd_view *view, uint8_t layout) {
    const int64_t pixel = bytes_of(view->dtype), *e = view->extent;
    int64_t *s = view->stride_bytes;
    memset(s, 0, 4 * sizeof *s);
    switch (layout % 6) {
    case 1: dense_strides(view, 1, s); break;
    case 2: /* an odd number of bytes between rows */
        s[3] = pixel, s[2] = pixel * e[3] + 3, s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    case 3: /* from the last pixel backward */
        s[3] = -pixel, s[2] = s[3] * e[3], s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    case 4: /* transposed */
        s[2] = pixel, s[3] = pixel * e[2], s[1] = s[3] * e[3], s[0] = s[1] * e[1];
        break;
    case 5: /* every third pixel */
        s[3] = 3 * pixel, s[2] = s[3] * e[3], s[1] = s[2] * e[2], s[0] = s[1] * e[1];
        break;
    default: break;
    }
}

static inline int is_dense(const grd_view *view) {
    const int64_t *s = view->stride_bytes;
    return s[0] == 0 && s[1] == 0 && s[2] == 0 && s[3] == 0;
}

/* From the first to the last byte of a view with extents >= 1, and how far the first one lies before `data`. In double:
 * views near the limit of 62 bits are not run, whichever side they are on. */
static inline double reach_of(const grd_view *view, double *before) {
    const double pixel = (double)bytes_of(view->dtype);
    double reach = 0, step = pixel;
    *before = 0;
    for (int axis = 3; axis >= 0; --axis) {
        const double stride = is_dense(view) ? step : (double)view->stride_bytes[axis];
        const double span = stride * ((double)view->extent[axis] - 1);
        if (span < 0) *before -= span;
        reach += fabs(span);
        step *= (double)view->extent[axis];
    }
    return reach + pixel;
}

enum { REFUSE, SKIP, TAKE };

static inline int least(int a, int b) { return a < b ? a : b; }

/* dtypes: a bit for each that the call takes. */
static inline int verdict_of_view(const grd_view *view, uint32_t dtypes, int is_output) {
    double before;
    if (view->data == NULL || view->space != GRD_SPACE_HOST) return REFUSE;
    if (view->dtype < 1 || view->dtype > GRD_INT8 || !(dtypes >> view->dtype & 1u)) return REFUSE;
    for (int axis = 0; axis < 4; ++axis)
        if (view->extent[axis] < 1) return REFUSE;
    for (int axis = 0; axis < 4; ++axis) {
        const int64_t stride = view->stride_bytes[axis], pixel = bytes_of(view->dtype);
        if (stride == INT64_MIN) return REFUSE;
        const int overlaps = view->extent[axis] > 1 && stride > -pixel && stride < pixel;
        if (is_output && !is_dense(view) && overlaps) return REFUSE;
    }
    const double reach = reach_of(view, &before);
    return reach > 0x1p62 * 1.01 ? REFUSE : reach > kLargestBytes ? SKIP : TAKE;
}

/* Changes one of kViewParts; what does not name one changes nothing. */
enum { kViewParts = 12 };
static inline void change_view(grd_view *view, int part, int64_t value) {
    if (part < 4) view->extent[part] = value;
    else if (part < 8) view->stride_bytes[part - 4] = value;
    else if (part == 8) view->dtype = (int32_t)value;
    else if (part == 9) view->space = (int32_t)value;
    else if (part == 10) view->data = &view->data; /* stands for NULL until memory is handed out */
}

/* ------------------------------------------------------------------------------------------ memory */

typedef struct block {
    uint8_t *bytes;
    size_t size;
} block;

UNTRACED static inline block allocated(size_t size, int content, uint32_t seed) {
    block out = {malloc(size > 0 ? size : 1), size};
    if (out.bytes == NULL) exit(1);
    memset(out.bytes, content, size);
    for (size_t i = 0; seed != 0 && i < size; ++i) {
        seed = seed * 1664525u + 1013904223u;
        out.bytes[i] = (uint8_t)(seed >> 24);
    }
    return out;
}

UNTRACED static inline void require_untouched(block one) {
    for (size_t i = 0; i < one.size; ++i) REQUIRE(one.bytes[i] == kUntouched);
}

/* A structure that is as long as it says, the members that we know first. */
static inline void *of_stated_size(const void *known, size_t known_size, uint32_t stated, block *out) {
    *out = allocated(stated < 4 ? 4 : stated > 4096 ? 4096 : stated, 0xFF, 0);
    memcpy(out->bytes, known, known_size < out->size ? known_size : out->size);
    return out->bytes;
}

static inline const char *variant_of(uint8_t byte) {
    static const char *const kUnknown[] = {"", "scala", "scalar ", "AVX2", "abacus"};
    if (byte < 64) return NULL;
    if (byte >= 240) return kUnknown[byte % 5];
    int count = 0;
    while (grd_variant_name(count) != NULL) ++count;
    return grd_variant_name(byte % count);
}

/* ----------------------------------------------------------------------------------------- targets */

/* fuzz_cuts.c */
void fuzz_grid(reader *in);
void fuzz_cutting(reader *in, int stitches);

#endif
