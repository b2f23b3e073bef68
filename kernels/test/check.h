/* check.h - the whole test framework: count, report, go on.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_CHECK_H
#define GRD_CHECK_H

#include <stdio.h>

static int checks_passed = 0;
static int checks_failed = 0;

/* Counts a check; CHECK(condition) names what failed, CHECK_THAT(condition, (printf arguments)) explains it. */
#define CHECK(condition) CHECK_THAT(condition, ("%s", #condition))
#define CHECK_THAT(condition, explanation) \
    do { \
        if (condition) { \
            ++checks_passed; \
        } else { \
            ++checks_failed; \
            printf("%s:%d: ", __FILE__, __LINE__); \
            printf explanation; \
            printf("\n"); \
        } \
    } while (0)

/* Last statement of main. */
static inline int checks_report(void) {
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed == 0 ? 0 : 1;
}

#endif
