/* test_bundle.c - every rule of docs/bundle.md, broken one at a time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include "bundle_writer.h"

#include <math.h>

#include "check.h"
#include "grd_edge.h"

/* Opens the scratch bundle; a failure must come with one sentence that names the bundle, and nothing else. */
static void check_open_at(const char *path, grd_status expected, const char *what) {
    grd_bundle *bundle = NULL;
    const grd_status status = grd_bundle_open(path, &bundle);
    const char *message = grd_bundle_message(bundle);
    CHECK_THAT(status == expected,
               ("%s: %s, expected %s (%s)", what, grd_status_name(status), grd_status_name(expected), message));
    CHECK_THAT((status == GRD_OK) == (message[0] == '\0'), ("%s: message \"%s\"", what, message));
    if (status != GRD_OK) {
        grd_bundle_info info = {0};
        info.struct_size = sizeof info;
        CHECK_THAT(strstr(message, path) != NULL && strchr(message, '\n') == NULL,
                   ("%s: message \"%s\"", what, message));
        CHECK(grd_bundle_get_info(bundle, &info) == GRD_ERR_ARGUMENT);
        CHECK(grd_bundle_engine_target(bundle, 0) == NULL);
    }
    grd_bundle_close(bundle);
}

static void check_open(grd_status expected, const char *what) { check_open_at(bundle_path(), expected, what); }

typedef struct edit {
    const char *from, *to;
    grd_status expected;
} edit;

#define BAD GRD_ERR_BUNDLE_MALFORMED
#define FILES "\"models/fp32.onnx\": {"
#define ENGINE_END "\"fingerprint\": {}}"
#define NAME64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define UMLAUT8 "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
#define UMLAUT64 UMLAUT8 UMLAUT8 UMLAUT8 UMLAUT8 UMLAUT8 UMLAUT8 UMLAUT8 UMLAUT8
#define REGIONS "\"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625}]"
#define ONE_AREA "\"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625, \"areas\": [[0, 0, 1, 1]]}]"
#define AREAS(list) \
    "\"frame_px\": [24, 36], \"regions\": [{\"name\": \"frame\", \"threshold\": 0.0625, \"areas\": " list "}]"
#define LISTED_MASK "\"roi\": \"%s\", \"files\": {\"%s\": {\"sha256\": \"%s\", \"bytes\": %zu}, "
#define DEEP10 "[[[[[[[[[[1]]]]]]]]]]"

static const edit kBundleEdits[] = {
    /* rule 1 */
    {"\"name\": \"test\"", "\"name\": \"test\", \"name\": \"test\"", BAD},
    {"\"patch_h\": 12", "\"patch_h\": 12, \"patch_h\": 12", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"a\": [{\"b\": 1, \"b\": 2}]}", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"a\": {\"x\": 1}, \"b\": {\"x\": 1}}", GRD_OK},
    {"\"provenance\": {}", "\"provenance\": {\"a\": " DEEP10 "}", GRD_OK},
    {"\"provenance\": {}", "\"provenance\": {\"a\": [[[[[" DEEP10 "]]]]]}", BAD},
    {"\"name\": \"test\"", "\"name\": \"t\xffst\"", BAD},
    {"\"name\": \"test\"", "\"name\": \"t\\u00e4st \xc3\xa4\"", GRD_OK},
    {"{\n \"schema\"", "\xef\xbb\xbf{\n \"schema\"", BAD},
    {"{\n \"schema\"", "[{\n \"schema\"", BAD},
    {"\"provenance\": {},", "\"provenance\": {}", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"a\": NaN}", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"a\": 1e999}", BAD},
    /* rule 2 */
    {"\"seal\"", "\"Seal\"", BAD},
    {ZEROS, ZEROS "0", BAD},
    {ZEROS, "zero", BAD},
    {"\"" ZEROS "\"", "5", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"a\": \"" ZEROS "\"}", GRD_ERR_BUNDLE_HASH}, /* seals the wrong zeros */
    /* rule 3 */
    {"\"schema\": 1", "\"schema\": 2", GRD_ERR_BUNDLE_SCHEMA},
    {"\"schema\": 1", "\"schema\": 2, \"new\": true", GRD_ERR_BUNDLE_SCHEMA},
    {"\"schema\": 1", "\"schema\": 9223372036854775807", GRD_ERR_BUNDLE_SCHEMA},
    {"\"schema\": 1", "\"schema\": 99999999999999999999", BAD},
    {"\"schema\": 1", "\"schema\": 0", BAD},
    {"\"schema\": 1", "\"schema\": -1", BAD},
    {"\"schema\": 1", "\"schema\": 1.0", BAD},
    {"\"schema\": 1", "\"schema\": \"1\"", BAD},
    {"\"schema\": 1", "\"schema\": true", BAD},
    {"\"schema\": 1,", "", BAD},
    /* rule 4: names; the file itself stays where it is */
    {FILES, "\"/models/fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"../fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"models/../fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"./fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"models//fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"models/\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"models/.fp32.onnx\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"a/b/c/d\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"a b\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"a\\\\b\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"a\\u0000b\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"\xc3\xa4\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"bundle.json\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, "\"decision.json\": {", GRD_ERR_BUNDLE_CONTENT},
    {FILES, FILES "\"x\": 1, ", BAD},
    {"\"bytes\": @BYTES@", "\"bytes\": 7", GRD_ERR_BUNDLE_HASH},
    {"\"bytes\": @BYTES@", "\"bytes\": -1", BAD},
    {"\"bytes\": @BYTES@", "\"bytes\": @BYTES@.0", BAD},
    {"\"bytes\": @BYTES@", "\"bytes\": \"@BYTES@\"", BAD},
    {"\"bytes\": @BYTES@", "\"Bytes\": @BYTES@", BAD},
    {"\"bytes\": @BYTES@", "\"bytes\": 99999999999999", GRD_ERR_BUNDLE_HASH},
    {"\"sha256\": \"@", "\"sha256\": \"0@", BAD},
    {"\"sha256\": \"@ENGINE@\"", "\"sha256\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
     GRD_ERR_BUNDLE_HASH},
    {"\"sha256\": \"@ENGINE@\"", "\"sha256\": \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"",
     BAD},
    {"{" FILES, "{\"missing.bin\": {\"sha256\": \"@ENGINE@\", \"bytes\": @BYTES@}, " FILES, GRD_ERR_BUNDLE_CONTENT},
    {"{" FILES, "{\"no/such/file\": {\"sha256\": \"@ENGINE@\", \"bytes\": @BYTES@}, " FILES, GRD_ERR_BUNDLE_CONTENT},
    {"{" FILES, "{\"models/fp32.onnx/below\": {\"sha256\": \"@ENGINE@\", \"bytes\": @BYTES@}, " FILES,
     GRD_ERR_BUNDLE_CONTENT},
    {"{" FILES, "{\"models\": {\"sha256\": \"@ENGINE@\", \"bytes\": @BYTES@}, " FILES, GRD_ERR_BUNDLE_CONTENT},
    /* rule 7 */
    {"\"name\": \"test\"", "\"name\": \"test\", \"x\": 1", BAD},
    {"\"scale_px\"", "\"x\": 1, \"scale_px\"", BAD},
    {"\"decides\"", "\"x\": 1, \"decides\"", BAD},
    {"\"chosen\"", "\"x\": 1, \"chosen\"", BAD},
    {"\"target\"", "\"x\": 1, \"target\"", BAD},
    {"\"provenance\": {}", "\"provenance\": {\"x\": {\"y\": [1, null]}}", GRD_OK},
    {"\"fingerprint\": {}", "\"fingerprint\": {\"x\": 1}", GRD_OK},
    {"[{\"a\": 1}]", "[{\"b\": [1.5, \"free\"]}, {}]", GRD_OK},
    /* the schema: presence and type of each key */
    {"\"name\"", "\"nome\"", BAD},
    {"\"name\": \"test\"", "\"name\": 3", BAD},
    {"\"name\": \"test\"", "\"name\": \"\"", BAD},
    {"\"reconstruction\"", "\"map\"", BAD},
    {"\"head\": \"reconstruction\",", "", BAD},
    {"\"scale_px\": null", "\"scale_px\": 32", GRD_OK},
    {"\"scale_px\": null", "\"scale_px\": 0", BAD},
    {"\"scale_px\": null", "\"scale_px\": 1.5", BAD},
    {"\"scale_px\": null", "\"scale_px\": 65537", BAD},
    {"\"scale_px\": null, ", "", BAD},
    {"\"patch_h\": 12", "\"patch_h\": 10", BAD},
    {"\"patch_w\": 12", "\"patch_w\": -12", BAD},
    {"\"patch_w\": 12", "\"patch_w\": 16385", BAD},
    {"\"patch_w\": 12", "\"patch_w\": 4294967308", BAD},
    {"\"patch_w\": 12", "\"patch_w\": \"12\"", BAD},
    {"\"stride_y\": 12", "\"stride_y\": 0", BAD},
    {"\"stride_y\": 12", "\"stride_y\": 1", GRD_OK},
    {"\"stride_x\": 12", "\"stride_x\": 13", BAD},
    {"\"channels\": 1", "\"channels\": 3", GRD_OK},
    {"\"channels\": 1", "\"channels\": 2", BAD},
    {"\"channels\": 1", "\"channels\": true", BAD},
    {"\"error\"", "\"reflect\"", GRD_OK},
    {"\"error\"", "\"zero\"", BAD},
    {"\"phi\"", "\"phi_local\"", GRD_OK},
    {"\"phi\"", "\"Phi\"", BAD},
    {"\"gaussian\"", "\"box\"", GRD_OK},
    {"\"gaussian\"", "null", BAD},
    {"\"local_window_px\": 21", "\"local_window_px\": 0", BAD},
    {"\"local_window_px\": 21", "\"local_window_px\": 1", GRD_OK},
    {"\"local_window_px\": 21", "\"local_window_px\": 16385", BAD},
    {"{\"cpu\": \"fp32\"}", "{}", GRD_OK},
    {"{\"cpu\": \"fp32\"}", "{\"cpu\": \"int8\"}", BAD},
    {"{\"cpu\": \"fp32\"}", "{\"rtx\": \"fp32\"}", BAD},
    {"{\"cpu\": \"fp32\"}", "{\"cpu\": 1}", BAD},
    {"{\"cpu\": \"fp32\"}", "[]", BAD},
    {"[{\"a\": 1}]", "{}", BAD},
    {"[{\"a\": 1}]", "[1]", BAD},
    {"\"only one\"", "1", BAD},
    {"\"target\": \"cpu\"", "\"target\": \"CPU\"", BAD},
    {"\"target\": \"cpu\"", "\"target\": \"\"", BAD},
    {"\"precision\": \"fp32\"", "\"precision\": 32", BAD},
    {"\"backend\": \"identity\"", "\"backend\": \"../identity\"", BAD},
    {"\"backend\": \"identity\"", "\"backend\": \"iden-tity\"", BAD},
    {"\"backend\": \"identity\"", "\"backend\": \"Identity\"", BAD},
    {"\"file\": \"models/fp32.onnx\"", "\"file\": \"models/other.onnx\"", BAD},
    {"\"format\": \"identity\"", "\"format\": null", BAD},
    {"\"fingerprint\": {}", "\"fingerprint\": []", BAD},
    {ENGINE_END, ENGINE_END ", 5", BAD},
    {ENGINE_END,
     ENGINE_END ", {\"target\": \"cpu\", \"precision\": \"fp32\", \"backend\": \"b\", \"file\": \"models/fp32.onnx\", "
                "\"format\": \"onnx\", " ENGINE_END,
     BAD},
    {ENGINE_END,
     ENGINE_END ", {\"target\": \"cpu\", \"precision\": \"int8\", \"backend\": \"b\", \"file\": \"models/fp32.onnx\", "
                "\"format\": \"onnx\", " ENGINE_END,
     GRD_OK},
    {"\"provenance\": {}", "\"provenance\": null", BAD},
    /* the mask of interest: a key of files; the engine's file is none */
    {"\"provenance\": {}", "\"provenance\": {}, \"roi\": \"roi.pgm\"", BAD},
    {"\"provenance\": {}", "\"provenance\": {}, \"roi\": null", BAD},
    {"\"provenance\": {}", "\"provenance\": {}, \"roi\": \"models/fp32.onnx\"", BAD},
};

static const edit kDecisionEdits[] = {
    {"\"k\": 1", "\"k\": 1, \"k\": 1", BAD},
    {"\"k\": 1", "\"k\": 1, \"x\": 1", BAD},
    {"\"k\": 1", "\"k\": 0", BAD},
    {"\"k\": 1", "\"k\": 1.0", BAD},
    {"\"k\": 1", "\"k\": 2147483648", BAD},
    {"\"k\": 1", "\"k\": 20", GRD_OK},
    {"\"schema\": 1", "\"schema\": 2", GRD_ERR_BUNDLE_SCHEMA},
    {"\"bundle\": \"", "\"bundle\": \"x", BAD},
    {"\"bundle\"", "\"bundel\"", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": 0.1", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": 0.10000000149011612", GRD_OK},
    {"\"threshold\": 0.0625", "\"threshold\": 1", GRD_OK},
    {"\"threshold\": 0.0625", "\"threshold\": -0.5", GRD_OK},
    {"\"threshold\": 0.0625", "\"threshold\": 1e300", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": 1e999", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": NaN", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": \"0.0625\"", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": null", BAD},
    {"\"threshold\": 0.0625", "\"threshold\": 0.0625, \"x\": 1", BAD},
    {"\"name\": \"frame\"", "\"name\": \"\"", BAD},
    {"\"name\": \"frame\"", "\"name\": 1", BAD},
    {"[{\"name\": \"frame\", \"threshold\": 0.0625}]", "[]", BAD},
    {"[{\"name\": \"frame\", \"threshold\": 0.0625}]", "{}", BAD},
    {"[{\"name\": \"frame\", \"threshold\": 0.0625}]",
     "[{\"name\": \"a\", \"threshold\": 0.0625}, {\"name\": \"b\", \"threshold\": 0.0625}]", GRD_OK},
    {"[{\"name\": \"frame\", \"threshold\": 0.0625}]",
     "[{\"name\": \"a\", \"threshold\": 0.0625}, {\"name\": \"a\", \"threshold\": 0.5}]", BAD},
    {"\"name\": \"frame\"", "\"name\": \"" NAME64 "\"", GRD_OK},
    {"\"name\": \"frame\"", "\"name\": \"" NAME64 "x\"", BAD},
    {"\"name\": \"frame\"", "\"name\": \"" UMLAUT64 "\"", GRD_OK}, /* characters, not bytes */
    {"\"name\": \"frame\"", "\"name\": \"" UMLAUT64 "x\"", BAD},
    {REGIONS, AREAS("[[0, 0, 24, 36]]"), GRD_OK},
    {REGIONS, AREAS("[[0, 0, 1, 1], [23, 35, 1, 1]]"), GRD_OK},
    {REGIONS, AREAS("[[0, 0, 24, 36]]") ", \"frame_px\": [24, 36]", BAD},
    {REGIONS, "\"frame_px\": [24, 36], " REGIONS, BAD},
    {REGIONS, "\"frame_px\": null, " REGIONS, BAD},
    {"0.0625}]", "0.0625, \"areas\": [[0, 0, 1, 1]]}]", BAD},
    {REGIONS, AREAS("[]"), BAD},
    {REGIONS, AREAS("null"), BAD},
    {REGIONS, AREAS("[[0, 0, 24]]"), BAD},
    {REGIONS, AREAS("[[0, 0, 24, 36, 0]]"), BAD},
    {REGIONS, AREAS("[[0, 0, 25, 36]]"), BAD},
    {REGIONS, AREAS("[[1, 0, 24, 36]]"), BAD},
    {REGIONS, AREAS("[[0, 36, 1, 1]]"), BAD},
    {REGIONS, AREAS("[[-1, 0, 1, 1]]"), BAD},
    {REGIONS, AREAS("[[0, 0, 0, 1]]"), BAD},
    {REGIONS, AREAS("[[0, 0, 1.0, 1]]"), BAD},
    {REGIONS, AREAS("[[0, 0, true, 1]]"), BAD},
    {REGIONS, "\"frame_px\": [24], " ONE_AREA, BAD},
    {REGIONS, "\"frame_px\": [0, 36], " ONE_AREA, BAD},
    {REGIONS, "\"frame_px\": [24, 65537], " ONE_AREA, BAD},
    {REGIONS, "\"frame_px\": [65536, 65536], " ONE_AREA, GRD_OK},
    {"\"run_agreement\": 0.7", "\"run_agreement\": 0.5", BAD},
    {"\"run_agreement\": 0.7", "\"run_agreement\": 1", GRD_OK},
    {"\"run_agreement\": 0.7", "\"run_agreement\": 1.01", BAD},
    {"\"run_agreement\": 0.7", "\"run_agreement\": \"0.7\"", BAD},
    {"{\"method\": \"good_only\"}", "{\"x\": {\"y\": 1}}", GRD_OK},
    {"{\"method\": \"good_only\"}", "[]", BAD},
    {"\"seal\"", "\"Seal\"", BAD},
    {ZEROS, ZEROS "00", BAD},
};

static void check_edits(void) {
    for (size_t i = 0; i < sizeof kBundleEdits / sizeof kBundleEdits[0]; ++i) {
        const edit *e = &kBundleEdits[i];
        CHECK_THAT(strstr(kBundleJson, e->from) != NULL, ("%s is not in the template", e->from));
        write_bundle("gain=0.5", e->from, e->to, kDecisionJson, NULL, NULL);
        check_open(e->expected, e->to);
    }
    for (size_t i = 0; i < sizeof kDecisionEdits / sizeof kDecisionEdits[0]; ++i) {
        const edit *e = &kDecisionEdits[i];
        CHECK_THAT(strstr(kDecisionJson, e->from) != NULL, ("%s is not in the template", e->from));
        write_bundle("gain=0.5", NULL, NULL, kDecisionJson, e->from, e->to);
        check_open(e->expected, e->to);
    }
    char other[65];
    digest_of("other", 5, other);
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    char *decision = replaced(kDecisionJson, "@BUNDLE@", other);
    sealed(decision, other);
    write_file(bundle_path(), "decision.json", decision, strlen(decision));
    check_open(GRD_ERR_BUNDLE_HASH, "thresholds of another model");
    free(decision);
}

/* Documents that are not even close, and changes after sealing. */
static void check_documents(void) {
    static const char *const texts[] = {"",      "{",   "[]",       "null", "5", "\"seal\"", "{}", "{\"schema\": 1}",
                                        "{} {}", "\0x", "// no\n{}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
        write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
        write_file(bundle_path(), "bundle.json", texts[i], strlen(texts[i]));
        check_open(BAD, texts[i]);
        write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
        write_file(bundle_path(), "decision.json", texts[i], strlen(texts[i]));
        check_open(BAD, texts[i]);
    }
    /* A nest that would overflow a recursive parser. */
    char *deep = malloc(1000001);
    memset(deep, '[', 1000000);
    deep[1000000] = '\0';
    write_file(bundle_path(), "bundle.json", deep, 1000000);
    check_open(BAD, "a million brackets");
    free(deep);

    char digits[65];
    for (int kind = 0; kind < 4; ++kind) {
        const size_t size = kind == 1 ? (1 << 20) + 1 : 1 << 20;
        write_bundle("gain=0.5", NULL, NULL, NULL, NULL, NULL);
        char count[8], *large = malloc(size + 1);
        digest_of("gain=0.5", 8, digits);
        snprintf(count, sizeof count, "%d", 8);
        char *text = replace(replace(replaced(kBundleJson, "", ""), "@ENGINE@", digits), "@BYTES@", count);
        memset(large, ' ', size);
        large[size] = '\0';
        memcpy(large, text, strlen(text));
        sealed(large, digits);
        if (kind == 2) memcpy(large + size - 70, digits, 64); /* the seal once more, outside of any string */
        if (kind == 3) large[size - 1] = '\n';
        write_file(bundle_path(), "bundle.json", large, size);
        check_open(kind == 0 ? GRD_OK : kind == 3 ? GRD_ERR_BUNDLE_HASH : BAD, "documents of 1 MiB");
        free(text);
        free(large);
    }
    /* The digits of the seal inside another string: valid JSON, but not the only occurrence. */
    write_bundle("gain=0.5", "\"provenance\": {}", "\"provenance\": {\"note\": \"@NOTE@\"}", NULL, NULL, NULL);
    char path[128], text[4096];
    snprintf(path, sizeof path, "%s/bundle.json", bundle_path());
    FILE *file = fopen(path, "rb");
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    memcpy(digits, strstr(text, "\"seal\": \"") + 9, 64);
    digits[64] = '\0';
    char *twice = replaced(text, "@NOTE@", digits);
    write_file(bundle_path(), "bundle.json", twice, strlen(twice));
    check_open(BAD, "the seal twice");
    free(twice);
}

static void check_engine_file(void) {
    write_bundle("gain=0.5", NULL, NULL, NULL, NULL, NULL);
    write_file(bundle_path(), "models/fp32.onnx", "gain=0.6", 8);
    check_open(GRD_ERR_BUNDLE_HASH, "one byte of the engine");
    write_file(bundle_path(), "models/fp32.onnx", "gain=0.55", 9);
    check_open(GRD_ERR_BUNDLE_HASH, "a longer engine");
    write_bundle("", NULL, NULL, NULL, NULL, NULL);
    check_open(GRD_OK, "an empty engine");
}

/* Replaces an entry of a good bundle by something else. */
static void put(const char *name, const char *target, const char *kind) {
    char path[256];
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    snprintf(path, sizeof path, "%s/%s", bundle_path(), name);
    remove_tree(path);
    int failed = 0;
    if (strcmp(kind, "link") == 0) failed = symlink(target, path);
    if (strcmp(kind, "folder") == 0) failed = mkdir(path, 0777);
    if (strcmp(kind, "pipe") == 0) failed = mkfifo(path, 0666);
    if (strcmp(kind, "file") == 0) write_file(bundle_path(), name, "x", 1);
    if (failed) perror(path);
}

static void check_folder(void) {
    static const struct {
        const char *name, *target, *kind;
        grd_status expected;
    } cases[] = {
        {"bundle.json", NULL, "nothing", GRD_ERR_BUNDLE_MISSING},
        {"bundle.json", "/dev/zero", "link", GRD_ERR_BUNDLE_CONTENT},
        {"bundle.json", "models/fp32.onnx", "link", GRD_ERR_BUNDLE_CONTENT},
        {"bundle.json", NULL, "folder", GRD_ERR_BUNDLE_CONTENT},
        {"bundle.json", NULL, "pipe", GRD_ERR_BUNDLE_CONTENT},
        {"decision.json", NULL, "nothing", GRD_OK},
        {"decision.json", "nowhere", "link", GRD_ERR_BUNDLE_CONTENT},
        {"decision.json", NULL, "folder", GRD_ERR_BUNDLE_CONTENT},
        {"decision.json", NULL, "pipe", GRD_ERR_BUNDLE_CONTENT},
        {"models/fp32.onnx", NULL, "nothing", GRD_ERR_BUNDLE_CONTENT},
        {"models/fp32.onnx", "../bundle.json", "link", GRD_ERR_BUNDLE_CONTENT},
        {"models/fp32.onnx", NULL, "folder", GRD_ERR_BUNDLE_CONTENT},
        {"models/fp32.onnx", NULL, "pipe", GRD_ERR_BUNDLE_CONTENT},
        {"models", NULL, "nothing", GRD_ERR_BUNDLE_CONTENT},
        {"models", "../outside", "link", GRD_ERR_BUNDLE_CONTENT},
        {"models", NULL, "pipe", GRD_ERR_BUNDLE_CONTENT},
        {"readme.txt", NULL, "file", GRD_ERR_BUNDLE_CONTENT},
        {".hidden", NULL, "file", GRD_ERR_BUNDLE_CONTENT},
        {"models/extra.onnx", NULL, "file", GRD_ERR_BUNDLE_CONTENT},
        {"models/bundle.json", NULL, "file", GRD_ERR_BUNDLE_CONTENT},
        {"engines", NULL, "folder", GRD_ERR_BUNDLE_CONTENT},
        {"models/deeper", NULL, "folder", GRD_ERR_BUNDLE_CONTENT},
        {"pipe", NULL, "pipe", GRD_ERR_BUNDLE_CONTENT},
        {"link", "/", "link", GRD_ERR_BUNDLE_CONTENT},
    };
    /* What the linked folder leads to is a perfect copy: only the link is wrong. */
    make_folder(scratch_folder(), "outside");
    write_file(scratch_folder(), "outside/fp32.onnx", "gain=0.5", 8);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        char what[128];
        put(cases[i].name, cases[i].target, cases[i].kind);
        snprintf(what, sizeof what, "%s as %s", cases[i].name, cases[i].kind);
        check_open(cases[i].expected, what);
    }
}

/* The mask of interest, a file of its own beside the engine's. */
static void check_masks(void) {
    static const struct {
        const char *bytes;
        size_t count;
        grd_status expected;
    } cases[] = {
        {"P5\n3 2\n255\n\0\1\2\3\4\377", 17, GRD_OK},
        {"P5\n3 2\n255\n\0\0\0\0\0\0", 17, GRD_OK}, /* such frames have no patch to inspect */
        {"P5\n3 2\n255\n\0\0\0\0\0", 16, BAD},
        {"P5\n3 2\n255\n\0\0\0\0\0\0\0", 18, BAD},
        {"P2\n3 2\n255\n\0\0\0\0\0\0", 17, BAD},
        {"P5 3 2\n255\n\0\0\0\0\0\0", 17, BAD},
        {"P5\n03 2\n255\n\0\0\0\0\0\0", 18, BAD},
        {"P5\n3 2\n65535\n\0\0\0\0\0\0", 19, BAD},
        {"P5\n3 2\n 255\n\0\0\0\0\0\0", 18, BAD},
        {"P5\n# by hand\n3 2\n255\n\0\0\0\0\0\0", 27, BAD},
        {"P5\n0 2\n255\n", 11, BAD},
        {"P5\n-3 2\n255\n\0\0\0\0\0\0", 18, BAD},
        {"P5\n65537 1\n255\n", 15, BAD},
        {"P5\n999999 1\n255\n", 16, BAD},
        {"P5\n3 2\n255", 10, BAD},
        {"P5\n3", 4, BAD},
        {"P5", 2, BAD},
        {"", 0, BAD},
    };
    char digits[65], listed[256], what[32];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        digest_of(cases[i].bytes, cases[i].count, digits);
        snprintf(listed, sizeof listed, LISTED_MASK, "roi.pgm", "roi.pgm", digits, cases[i].count);
        write_bundle("gain=0.5", "\"files\": {", listed, kDecisionJson, NULL, NULL);
        write_file(bundle_path(), "roi.pgm", cases[i].bytes, cases[i].count);
        snprintf(what, sizeof what, "mask %zu", i);
        check_open(cases[i].expected, what);
    }
    grd_bundle *bundle = NULL;
    grd_bundle_info info = {0};
    info.struct_size = sizeof info;
    digest_of(cases[0].bytes, cases[0].count, digits);
    snprintf(listed, sizeof listed, LISTED_MASK, "a/b.pgm", "a/b.pgm", digits, cases[0].count);
    write_bundle("gain=0.5", "\"files\": {", listed, NULL, NULL, NULL);
    make_folder(bundle_path(), "a");
    write_file(bundle_path(), "a/b.pgm", cases[0].bytes, cases[0].count);
    CHECK(grd_bundle_open(bundle_path(), &bundle) == GRD_OK && grd_bundle_get_info(bundle, &info) == GRD_OK);
    CHECK(info.roi_h == 2 && info.roi_w == 3 && info.region_count == 0);
    CHECK(grd_bundle_region_name(bundle, 0) == NULL && isnan(grd_bundle_region_threshold(bundle, 0)));
    grd_bundle_close(bundle);
}

static void check_regions(void) {
    grd_bundle *bundle = NULL;
    grd_bundle_info info = {0};
    info.struct_size = sizeof info;
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, REGIONS,
                 "\"regions\": [{\"name\": \"a\", \"threshold\": 0.5}, "
                 "{\"name\": \"\xc3\xa4\", \"threshold\": -0.25}]");
    CHECK(grd_bundle_open(bundle_path(), &bundle) == GRD_OK && grd_bundle_get_info(bundle, &info) == GRD_OK);
    CHECK(info.region_count == 2 && isnan(info.threshold) && info.has_decision == 1 && info.roi_h == 0);
    CHECK(strcmp(grd_bundle_region_name(bundle, 0), "a") == 0 && grd_bundle_region_threshold(bundle, 0) == 0.5f);
    CHECK(strcmp(grd_bundle_region_name(bundle, 1), "\xc3\xa4") == 0);
    CHECK(grd_bundle_region_threshold(bundle, 1) == -0.25f);
    CHECK(grd_bundle_region_name(bundle, 2) == NULL && isnan(grd_bundle_region_threshold(bundle, -1)));
    CHECK(grd_bundle_region_name(NULL, 0) == NULL && isnan(grd_bundle_region_threshold(NULL, 0)));
    grd_bundle_close(bundle);

    /* 64 regions of 64 areas are the most. */
    for (int extra = 0; extra < 3; ++extra) {
        const int regions = extra == 1 ? 65 : 64, areas = extra == 2 ? 65 : 64;
        char *text = malloc(1 << 18), *end = text + sprintf(text, "\"frame_px\": [9, 9], \"regions\": [");
        for (int r = 0; r < regions; ++r) {
            end += sprintf(end, "%s{\"name\": \"%d\", \"threshold\": 0, \"areas\": [", r > 0 ? ", " : "", r);
            for (int a = 0; a < areas; ++a) end += sprintf(end, "%s[0, 0, 9, 9]", a > 0 ? ", " : "");
            end += sprintf(end, "]}");
        }
        sprintf(end, "]");
        write_bundle("gain=0.5", NULL, NULL, kDecisionJson, REGIONS, text);
        check_open(extra == 0 ? GRD_OK : BAD, "the most regions");
        free(text);
    }
}

static void check_paths_and_info(void) {
    char path[128];
    grd_bundle *bundle = NULL;
    write_bundle("gain=0.5", NULL, NULL, kDecisionJson, NULL, NULL);
    check_open_at("/nowhere/at/all.grdb", GRD_ERR_BUNDLE_MISSING, "no folder");
    snprintf(path, sizeof path, "%s/bundle.json", bundle_path());
    check_open_at(path, GRD_ERR_BUNDLE_MISSING, "a file");
    check_open_at(scratch_folder(), GRD_ERR_BUNDLE_MISSING, "a folder that is no bundle");
    check_open_at("", GRD_ERR_ARGUMENT, "an empty path");
    snprintf(path, sizeof path, "%s/l.grdb", scratch_folder());
    CHECK(symlink("b.grdb", path) == 0);
    check_open_at(path, GRD_OK, "the bundle's own path may be a link");
    CHECK(grd_bundle_open(NULL, &bundle) == GRD_ERR_ARGUMENT && bundle != NULL &&
          grd_bundle_message(bundle)[0] != '\0');
    grd_bundle_close(bundle);
    CHECK(grd_bundle_open(bundle_path(), NULL) == GRD_ERR_ARGUMENT);

    CHECK(grd_bundle_open(bundle_path(), &bundle) == GRD_OK);
    grd_bundle_info info = {0};
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_ERR_STRUCT_SIZE);
    CHECK(grd_bundle_get_info(bundle, NULL) == GRD_ERR_ARGUMENT);
    info.struct_size = sizeof info;
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK);
    CHECK(info.struct_size == sizeof info && info.schema == 1 && info.cut.struct_size == sizeof info.cut);
    CHECK(info.head == GRD_HEAD_RECONSTRUCTION);
    info.head = -5;
    info.struct_size = offsetof(grd_bundle_info, head); /* of the first release: nothing behind it is written */
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK && info.head == -5 && info.run_agreement == 0.7);
    CHECK(info.struct_size == offsetof(grd_bundle_info, head));
    --info.struct_size;
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_ERR_STRUCT_SIZE);
    info.struct_size = sizeof info + 8; /* of a newer header */
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK && info.struct_size == sizeof info + 8);
    info.struct_size = sizeof info;
    CHECK(info.cut.scale_px == 0 && info.cut.patch_h == 12 && info.cut.stride_x == 12 && info.cut.channels == 1);
    CHECK(info.window == GRD_WINDOW_GAUSSIAN && info.local_window_px == 21 && info.decides_local == 0);
    CHECK(info.has_decision == 1 && info.k == 1 && info.threshold == 0.0625f && info.engine_count == 1);
    CHECK(info.region_count == 1 && info.roi_h == 0 && info.roi_w == 0);
    CHECK(strcmp(grd_bundle_region_name(bundle, 0), "frame") == 0 && grd_bundle_region_threshold(bundle, 0) == 0.0625f);
    CHECK(strcmp(grd_bundle_engine_target(bundle, 0), "cpu") == 0);
    CHECK(strcmp(grd_bundle_engine_precision(bundle, 0), "fp32") == 0);
    CHECK(grd_bundle_engine_target(bundle, 1) == NULL && grd_bundle_engine_precision(bundle, -1) == NULL);
    grd_bundle_close(bundle);

    write_bundle("gain=0.5", "\"padding\": \"error\"", "\"padding\": \"reflect\"", NULL, NULL, NULL);
    CHECK(grd_bundle_open(bundle_path(), &bundle) == GRD_OK);
    CHECK(grd_bundle_get_info(bundle, &info) == GRD_OK);
    CHECK(info.has_decision == 0 && isnan(info.threshold) && info.k == 0 && info.cut.padding == GRD_PADDING_REFLECT);
    grd_bundle_close(bundle);
}

int main(void) {
    check_paths_and_info();
    check_edits();
    check_masks();
    check_regions();
    check_documents();
    check_engine_file();
    check_folder();
    remove_tree(scratch_folder());
    return checks_report();
}
