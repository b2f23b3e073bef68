/* fuzz_python.c - the mutations and the ONNX checker as a library, for tests/native/test_fuzz.py.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "mutate.h"
#include "onnx_check.h"

#define EXPORT __attribute__((visibility("default")))

/* Writes case `index` at `folder`; what must become of it. *what names the change. */
EXPORT int grd_fuzz_write(uint64_t seed, uint64_t index, const char *folder, const char **what) {
    static fuzz_case one;
    const int expected = fuzz_mutate(seed, index, &one, what);
    fuzz_case_write(&one, folder);
    return expected;
}

/* Writes the case that `bytes` holds. */
EXPORT void grd_fuzz_write_bytes(const void *bytes, size_t size, const char *folder) {
    static fuzz_case one;
    fuzz_case_parse(&one, bytes, size);
    fuzz_case_write(&one, folder);
}

/* Case `index` as bytes, to keep it in corpus/; its size, and as much as fits in `out`. */
EXPORT size_t grd_fuzz_bytes(uint64_t seed, uint64_t index, char *out, size_t room) {
    static fuzz_case one;
    static fuzz_text whole;
    const char *what;
    fuzz_mutate(seed, index, &one, &what);
    fuzz_case_bytes(&one, &whole);
    memcpy(out, whole.data, whole.size < room ? whole.size : room);
    return whole.size;
}

EXPORT int grd_fuzz_onnx_self_contained(const void *bytes, size_t size) { return grd_onnx_self_contained(bytes, size); }
