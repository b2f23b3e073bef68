/* mutate_main.c - opens mutated bundles and compares with what must become of them.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   mutate_bundle COUNT [SEED [FIRST]]
 * Prints how many were refused and accepted; a case that went wrong is printed whole, and the exit status is 1. */
#include <stdio.h>
#include <stdlib.h>

#include "grd_edge.h"
#include "mutate.h"

int main(int argc, char **argv) {
    const unsigned long long count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    const unsigned long long seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const unsigned long long first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    static const char *const names[] = {"refused", "accepted", "either"};
    unsigned long long found[3][2] = {{0}};
    unsigned long long wrong = 0;
    fuzz_case one = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/b.grdb", fuzz_scratch());
    for (unsigned long long index = first; index < first + count; ++index) {
        const char *what = "";
        const int expected = fuzz_mutate(seed, index, &one, &what);
        fuzz_case_write(&one, path);
        grd_bundle *bundle = NULL;
        const int accepted = grd_bundle_open(path, &bundle) == GRD_OK;
        ++found[expected][accepted];
        if (expected != FUZZ_EITHER && accepted != (expected == FUZZ_ACCEPTED) && ++wrong <= 5) {
            fuzz_text whole = {0};
            fuzz_case_bytes(&one, &whole);
            printf("case %llu (%s) must be %s: %s\n%.4000s\n", index, what, names[expected],
                   accepted ? "accepted" : grd_bundle_message(bundle), whole.data);
            free(whole.data);
        }
        grd_bundle_close(bundle);
    }
    fuzz_case_free(&one);
    for (int i = 0; i < 3; ++i)
        printf("%s: %llu refused, %llu accepted\n", names[i], found[i][0], found[i][1]);
    printf("%llu wrong\n", wrong);
    return wrong > 0;
}
