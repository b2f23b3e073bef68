/* test_sha256.c - SHA-256 against published vectors, and independent of how the input is split.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "sha256.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

static void digest(const void *data, size_t count, size_t part, char digits[65]) {
    grd_sha256 hash;
    const unsigned char *from = data;
    grd_sha256_begin(&hash);
    while (count > 0) {
        const size_t n = count < part ? count : part;
        grd_sha256_add(&hash, from, n);
        from += n;
        count -= n;
    }
    grd_sha256_end(&hash, digits);
}

/* Source: FIPS 180-4 examples and the NIST test vectors. */
static void check_vectors(void) {
    static const struct {
        const char *text, *digits;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqr"
         "stu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    char digits[65];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        digest(cases[i].text, strlen(cases[i].text), 1000, digits);
        CHECK_THAT(strcmp(digits, cases[i].digits) == 0, ("\"%s\" gives %s", cases[i].text, digits));
    }
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    digest(million, 1000000, 1000000, digits);
    CHECK(strcmp(digits, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0") == 0);
    digest(million, 1000000, 4093, digits);
    CHECK(strcmp(digits, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0") == 0);
    free(million);
}

static void check_splits(void) {
    unsigned char data[200];
    for (size_t i = 0; i < sizeof data; ++i) data[i] = (unsigned char)(i * 7 + 1);
    for (size_t count = 0; count <= sizeof data; ++count) {
        char whole[65], split[65];
        int same = 1;
        digest(data, count, sizeof data, whole);
        for (size_t part = 1; part <= 130; part += part < 4 || part > 60 ? 1 : 7) {
            digest(data, count, part, split);
            same = same && strcmp(whole, split) == 0;
        }
        CHECK_THAT(same, ("%zu bytes depend on how they are split", count));
    }
}

int main(void) {
    check_vectors();
    check_splits();
    return checks_report();
}
