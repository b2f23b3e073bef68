/* standalone.c - stands in for libFuzzer where the compiler has none: runs a target over files and over changes of them.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   fuzz_<target> RUNS FILE...      RUNS changed inputs in all, the same on every machine */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_targets.h"

static uint64_t state = 1;

static size_t below(size_t count) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(state >> 33) % count;
}

/* Exactly as large as the input, so that a sanitizer sees every step too far. */
static void run(const uint8_t *data, size_t size) {
    uint8_t *exact = malloc(size > 0 ? size : 1);
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

int main(int argc, char **argv) {
    static uint8_t input[1 << 21], changed[sizeof input];
    const long runs = argc > 2 ? strtol(argv[1], NULL, 10) : -1;
    if (runs < 0) {
        fprintf(stderr, "usage: %s RUNS FILE...\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; ++i) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 2;
        }
        const size_t size = fread(input, 1, sizeof input - 8, file);
        fclose(file);
        run(input, size);
        for (long k = 0; k < runs / (argc - 2); ++k) {
            size_t now = size;
            memcpy(changed, input, size);
            for (size_t edits = 1 + below(4); edits > 0; --edits) {
                const size_t at = below(now + 1);
                switch (below(4)) {
                case 0:
                    now = at;
                    break;
                case 1:
                    if (now < sizeof changed) ++now;
                    memmove(changed + at + 1, changed + at, now - at - 1);
                    changed[at] = (uint8_t)below(256);
                    break;
                default:
                    if (at < now) changed[at] = (uint8_t)(below(2) == 0 ? changed[at] ^ (1u << below(8)) : below(256));
                }
            }
            run(changed, now);
        }
    }
    printf("%ld runs\n", runs);
    return 0;
}
