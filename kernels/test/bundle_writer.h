/* bundle_writer.h - writes bundles for tests, right ones and wrong ones. Follows docs/bundle.md, not the reader.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Define _XOPEN_SOURCE 700 before the first include. */
#ifndef GRD_BUNDLE_WRITER_H
#define GRD_BUNDLE_WRITER_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sha256.h"

#ifndef TEST_BACKEND
#define TEST_BACKEND "identity"
#endif

#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

/* @ENGINE@ and @BYTES@ stand for hash and size of the engine file, @BUNDLE@ for the seal of bundle.json. */
static const char kBundleJson[] =
    "{\n"
    " \"schema\": 1,\n"
    " \"name\": \"test\",\n"
    " \"head\": \"reconstruction\",\n"
    " \"files\": {\"models/fp32.onnx\": {\"sha256\": \"@ENGINE@\", \"bytes\": @BYTES@}},\n"
    " \"geometry\": {\"scale_px\": null, \"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12,\n"
    "  \"channels\": 1, \"padding\": \"error\"},\n"
    " \"score\": {\"decides\": \"phi\", \"window\": \"gaussian\", \"local_window_px\": 21},\n"
    " \"precision\": {\"chosen\": {\"cpu\": \"fp32\"}, \"tried\": [{\"a\": 1}], \"why\": \"only one\"},\n"
    " \"engines\": [{\"target\": \"cpu\", \"precision\": \"fp32\", \"backend\": \"" TEST_BACKEND "\",\n"
    "  \"file\": \"models/fp32.onnx\", \"format\": \"identity\", \"fingerprint\": {}}],\n"
    " \"provenance\": {},\n"
    " \"seal\": \"" ZEROS "\"\n"
    "}\n";

static const char kDecisionJson[] =
    "{\"schema\": 1, \"bundle\": \"@BUNDLE@\", \"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625}],\n"
    " \"k\": 1, \"run_agreement\": 0.7, \"fit\": {\"method\": \"good_only\"}, \"seal\": \"" ZEROS "\"}\n";

/* New string: text with every `from` replaced by `to`; a plain copy when from is "". */
static char *replaced(const char *text, const char *from, const char *to) {
    const size_t from_length = strlen(from), to_length = strlen(to);
    char *out = malloc(strlen(text) * (to_length + 1) + to_length + 1), *end = out;
    const char *hit;
    while (from_length > 0 && (hit = strstr(text, from)) != NULL) {
        memcpy(end, text, (size_t)(hit - text));
        end += hit - text;
        memcpy(end, to, to_length);
        end += to_length;
        text = hit + from_length;
    }
    strcpy(end, text);
    return out;
}

/* The same, freeing the text. */
static char *replace(char *text, const char *from, const char *to) {
    char *out = replaced(text, from, to);
    free(text);
    return out;
}

static void digest_of(const void *data, size_t count, char digits[65]) {
    grd_sha256 hash;
    grd_sha256_begin(&hash);
    grd_sha256_add(&hash, data, count);
    grd_sha256_end(&hash, digits);
}

/* Puts the seal where the first 64 zeros stand, and copies it to digits. */
static char *sealed(char *text, char digits[65]) {
    digest_of(text, strlen(text), digits);
    char *at = strstr(text, ZEROS);
    if (at != NULL) memcpy(at, digits, 64);
    return text;
}

static void write_file(const char *folder, const char *name, const void *data, size_t count) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, count, file) != count || fclose(file) != 0) {
        perror(path);
        exit(2);
    }
}

static void make_folder(const char *folder, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (mkdir(path, 0777) != 0) {
        perror(path);
        exit(2);
    }
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *walk) {
    (void)found;
    (void)kind;
    (void)walk;
    return remove(path);
}

static void remove_tree(const char *folder) { nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

/* A scratch folder of this run; "/b.grdb" below it is where bundles go. */
static const char *scratch_folder(void) {
    static char folder[] = "/tmp/grd_test_XXXXXX";
    static int made = 0;
    if (!made && mkdtemp(folder) == NULL) {
        perror(folder);
        exit(2);
    }
    made = 1;
    return folder;
}

static const char *bundle_path(void) {
    static char path[64];
    snprintf(path, sizeof path, "%s/b.grdb", scratch_folder());
    return path;
}

/* A bundle of this bundle.json, whose engine file holds these bytes; one edit each to the texts before they are sealed (from
 * NULL: none). decision NULL: no decision.json. */
static void write_bundle_bytes(const char *json, const void *engine, size_t engine_bytes, const char *from, const char *to,
                               const char *decision, const char *decision_from, const char *decision_to) {
    char digits[65], count[32];
    const char *folder = bundle_path();
    remove_tree(folder);
    make_folder(scratch_folder(), "b.grdb");
    make_folder(folder, "models");
    write_file(folder, "models/fp32.onnx", engine, engine_bytes);
    digest_of(engine, engine_bytes, digits);
    snprintf(count, sizeof count, "%zu", engine_bytes);
    char *text = replaced(json, "", "");
    if (from != NULL) text = replace(text, from, to);
    text = sealed(replace(replace(text, "@ENGINE@", digits), "@BYTES@", count), digits);
    write_file(folder, "bundle.json", text, strlen(text));
    free(text);
    if (decision == NULL) return;
    text = replaced(decision, "@BUNDLE@", digits);
    if (decision_from != NULL) text = replace(text, decision_from, decision_to);
    text = sealed(text, digits);
    write_file(folder, "decision.json", text, strlen(text));
    free(text);
}

static inline void write_bundle_of(const char *json, const char *engine, const char *from, const char *to,
                                   const char *decision, const char *decision_from, const char *decision_to) {
    write_bundle_bytes(json, engine, strlen(engine), from, to, decision, decision_from, decision_to);
}

static inline void write_bundle(const char *engine, const char *from, const char *to, const char *decision,
                                const char *decision_from, const char *decision_to) {
    write_bundle_of(kBundleJson, engine, from, to, decision, decision_from, decision_to);
}

#endif
