/* test_onnx_check.c - models that point outside of themselves are found wherever they hide it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "onnx_check.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

/* A protobuf message, built from the inside out. */
typedef struct message {
    unsigned char bytes[2000];
    size_t count;
} message;

static message of(const char *bytes, size_t count) {
    message m = {{0}, count};
    memcpy(m.bytes, bytes, count);
    return m;
}

/* The message as a field of another one, behind a field that does not matter. */
static message wrapped(message inner, unsigned field) {
    message m = of("\x98\x06\x01", 3); /* field 99, a number */
    m.bytes[m.count++] = (unsigned char)((field << 3 | 2) & 0x7f) | (field > 15 ? 0x80 : 0);
    if (field > 15) m.bytes[m.count++] = (unsigned char)(field >> 4);
    m.bytes[m.count++] = (unsigned char)((inner.count & 0x7f) | 0x80);
    m.bytes[m.count++] = (unsigned char)(inner.count >> 7);
    memcpy(m.bytes + m.count, inner.bytes, inner.count);
    m.count += inner.count;
    return m;
}

static int checked(message m) {
    unsigned char *exact = malloc(m.count > 0 ? m.count : 1); /* so that a sanitizer sees every step too far */
    memcpy(exact, m.bytes, m.count);
    const int result = grd_onnx_self_contained(exact, m.count);
    free(exact);
    return result;
}

int main(void) {
    /* fields from the tensor up to the model, 0 = end */
    static const unsigned paths[][8] = {
        {5, 7},              /* initializer of the graph */
        {5, 5, 1, 7},        /* constant: attribute of a node */
        {10, 5, 1, 7},       /* list of tensors in an attribute */
        {5, 6, 5, 1, 7},     /* initializer of a branch */
        {5, 11, 5, 1, 7},    /* ... of a list of graphs */
        {1, 15, 7},          /* sparse initializer, values */
        {2, 22, 5, 1, 7},    /* sparse attribute, indices */
        {1, 23, 5, 1, 7},
        {5, 5, 7, 25},       /* constant in a function */
        {5, 11, 25},         /* default of a function's attribute */
        {5, 1, 20},          /* training graphs */
        {5, 2, 20},
    };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; ++i) {
        message inside = of("\x08\x03\x10\x01\x4a\x03" "abc", 9); /* dims, data_type, raw_data */
        message location = of("\x08\x03\x70\x01", 4);
        message entries = of("\x08\x03\x6a\x04\x0a\x02xy", 8);
        message explicit_default = of("\x08\x03\x70\x00", 4);
        for (int k = 0; k < 8 && paths[i][k] != 0; ++k) {
            inside = wrapped(inside, paths[i][k]);
            location = wrapped(location, paths[i][k]);
            entries = wrapped(entries, paths[i][k]);
            explicit_default = wrapped(explicit_default, paths[i][k]);
        }
        CHECK(checked(inside) == GRD_ONNX_SELF_CONTAINED);
        CHECK(checked(explicit_default) == GRD_ONNX_SELF_CONTAINED);
        CHECK_THAT(checked(location) == GRD_ONNX_EXTERNAL, ("path %zu: data_location", i));
        CHECK_THAT(checked(entries) == GRD_ONNX_EXTERNAL, ("path %zu: external_data", i));
        for (size_t count = 0; count < inside.count; ++count) {
            message cut = inside;
            cut.count = count;
            CHECK(checked(cut) != GRD_ONNX_EXTERNAL);
        }
    }
    CHECK(checked(of("", 0)) == GRD_ONNX_UNREADABLE);
    CHECK(checked(of("not onnx", 8)) == GRD_ONNX_UNREADABLE);
    CHECK(checked(of("\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11)) == GRD_ONNX_UNREADABLE);
    CHECK(checked(of("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12)) == GRD_ONNX_UNREADABLE);
    message deep = of("", 0);
    for (int k = 0; k < 120; ++k) deep = wrapped(deep, k % 3 == 0 ? 6 : k % 3 == 1 ? 5 : 1);
    CHECK(checked(wrapped(deep, 7)) == GRD_ONNX_UNREADABLE);
    return checks_report();
}
