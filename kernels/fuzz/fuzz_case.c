/* fuzz_case.c - from a case to a folder.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include "fuzz_case.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sha256.h"

#define SEPARATOR "\n====\n"
#define LARGEST (4u << 20) /* what @N*TEXT@ may grow a document to */

static void stop(const char *what) {
    perror(what);
    exit(70);
}

void fuzz_splice(fuzz_text *text, size_t at, size_t cut, const char *data, size_t size) {
    const size_t wanted = text->size - cut + size + 1;
    if (wanted > text->room) {
        text->room = wanted + wanted / 2;
        text->data = realloc(text->data, text->room);
        if (text->data == NULL) stop("memory");
    }
    memmove(text->data + at + size, text->data + at + cut, text->size - at - cut);
    if (size > 0) memcpy(text->data + at, data, size);
    text->size = wanted - 1;
    text->data[text->size] = '\0';
}

void fuzz_set(fuzz_text *text, const char *value) { fuzz_splice(text, 0, text->size, value, strlen(value)); }

void fuzz_case_free(fuzz_case *one) {
    for (int i = 0; i < FUZZ_SECTIONS; ++i) free(one->section[i].data);
    memset(one, 0, sizeof *one);
}

static const char *find(const char *in, size_t size, const char *what) {
    const size_t length = strlen(what);
    for (const char *at = in, *end = in + size; (size_t)(end - at) >= length; ++at) {
        at = memchr(at, what[0], (size_t)(end - at) - length + 1);
        if (at == NULL) return NULL;
        if (memcmp(at, what, length) == 0) return at;
    }
    return NULL;
}

void fuzz_case_parse(fuzz_case *one, const void *bytes, size_t size) {
    const char *at = bytes != NULL ? bytes : "", *end = at + size;
    for (int i = 0; i < FUZZ_SECTIONS; ++i) {
        const char *stop_at = i + 1 < FUZZ_SECTIONS ? find(at, (size_t)(end - at), SEPARATOR) : NULL;
        if (stop_at == NULL) stop_at = end;
        fuzz_splice(&one->section[i], 0, one->section[i].size, at, (size_t)(stop_at - at));
        at = stop_at == end ? end : stop_at + strlen(SEPARATOR);
    }
}

void fuzz_case_bytes(const fuzz_case *one, fuzz_text *out) {
    fuzz_splice(out, 0, out->size, "", 0);
    for (int i = 0; i < FUZZ_SECTIONS; ++i) {
        if (i > 0) fuzz_splice(out, out->size, 0, SEPARATOR, strlen(SEPARATOR));
        fuzz_splice(out, out->size, 0, one->section[i].data, one->section[i].size);
    }
}

static void digest_of(const void *data, size_t size, char digits[65]) {
    grd_sha256 hash;
    grd_sha256_begin(&hash);
    grd_sha256_add(&hash, data, size);
    grd_sha256_end(&hash, digits);
}

static void replace_all(fuzz_text *text, const char *from, const char *to, size_t to_size) {
    const size_t from_size = strlen(from);
    size_t at = 0;
    const char *hit;
    while ((hit = find(text->data + at, text->size - at, from)) != NULL && text->size < LARGEST) {
        at = (size_t)(hit - text->data);
        fuzz_splice(text, at, from_size, to, to_size);
        at += to_size;
    }
}

/* @N*TEXT@, @engines:N@ and @regions:N@. */
static void expand_repeats(fuzz_text *text) {
    static const char *const entries[] = {
        ", {\"target\": \"cpu\", \"precision\": \"p%lu\", \"backend\": \"b\", \"file\": \"models/fp32.onnx\", "
        "\"format\": \"onnx\", \"fingerprint\": {}}",
        ", {\"name\": \"r%lu\", \"threshold\": 1}",
    };
    for (size_t at = 0; at < text->size;) {
        const char *begin = memchr(text->data + at, '@', text->size - at);
        if (begin == NULL) return;
        at = (size_t)(begin - text->data);
        const char *end = memchr(begin + 1, '@', text->size - at - 1);
        const char *entry = strncmp(begin, "@engines:", 9) == 0   ? entries[0]
                            : strncmp(begin, "@regions:", 9) == 0 ? entries[1]
                                                                  : NULL;
        const char *digits = begin + (entry != NULL ? 9 : 1);
        char *after = NULL;
        const unsigned long count = end != NULL ? strtoul(digits, &after, 10) : 0;
        if (end == NULL || after == digits || *after != (entry != NULL ? '@' : '*') || count > LARGEST) {
            ++at;
            continue;
        }
        const size_t cut = (size_t)(end + 1 - begin), unit = entry != NULL ? 200 : (size_t)(end - after - 1);
        if (count * unit > LARGEST) return;
        fuzz_text all = {malloc(count * unit + 1), 0, count * unit + 1};
        if (all.data == NULL) stop("memory");
        for (unsigned long i = 0; i < count; ++i) {
            if (entry != NULL) {
                all.size += (size_t)snprintf(all.data + all.size, unit, entry, i);
            } else {
                memcpy(all.data + all.size, after + 1, unit);
                all.size += unit;
            }
        }
        fuzz_splice(text, at, cut, all.data, all.size);
        at += all.size;
        free(all.data);
        if (text->size > LARGEST) return;
    }
}

static void resolve(fuzz_text *text, const fuzz_text *model, const char *bundle_seal, char seal[65]) {
    char digits[65], size[32];
    digest_of(model->data, model->size, digits);
    snprintf(size, sizeof size, "%zu", model->size);
    replace_all(text, "@SHA@", digits, 64);
    replace_all(text, "@BYTES@", size, strlen(size));
    if (bundle_seal != NULL) replace_all(text, "@BUNDLE@", bundle_seal, 64);
    replace_all(text, "@NUL@", "", 1);
    expand_repeats(text);
    digest_of(text->data, text->size, seal);
    replace_all(text, GRD_FUZZ_ZEROS, seal, 64);
}

static void write_at(int root, const char *path, const char *data, size_t size) {
    const int fd = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd < 0) return; /* a command put something else there */
    if (write(fd, data, size) != (ssize_t)size) stop("writing a case");
    close(fd);
}

static void edit(int root, const char *path, const char *verb, long at, long value) {
    const int fd = openat(root, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
    struct stat found;
    if (fd < 0) return;
    if (fstat(fd, &found) == 0 && S_ISREG(found.st_mode)) {
        const off_t place = found.st_size > 0 && at >= 0 ? at % found.st_size : 0;
        char bytes[1 << 12] = {0};
        if (strcmp(verb, "cut") == 0) {
            if (ftruncate(fd, place) != 0) stop("cutting a file");
        } else if (strcmp(verb, "size") == 0) {
            if (at >= 0 && at <= (long)LARGEST && ftruncate(fd, at) != 0) stop("resizing a file");
        } else if (strcmp(verb, "flip") == 0) {
            if (pread(fd, bytes, 1, place) == 1) {
                bytes[0] = (char)(bytes[0] ^ (1 << (value & 7)));
                if (pwrite(fd, bytes, 1, place) != 1) stop("flipping a bit");
            }
        } else {
            const ssize_t rest = pread(fd, bytes + 1, sizeof bytes - 1, place);
            bytes[0] = (char)value;
            if (rest >= 0 && pwrite(fd, bytes, (size_t)rest + 1, place) != rest + 1) stop("inserting a byte");
        }
    }
    close(fd);
}

/* Below the folder and through no link: commands must not reach beyond the scratch folder. */
static int is_inside(int root, const char *path) {
    char part[256];
    if (path[0] == '\0' || path[0] == '/' || strlen(path) >= sizeof part || strcmp(path, ".") == 0) return 0;
    for (const char *at = path; at != NULL; at = strchr(at, '/')) {
        at += *at == '/';
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0')) return 0;
        if (at == path) continue;
        struct stat found;
        snprintf(part, sizeof part, "%.*s", (int)(at - path - 1), path);
        if (fstatat(root, part, &found, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(found.st_mode)) return 0;
    }
    return 1;
}

static void run_command(int root, const char *line, const fuzz_text *model) {
    static const char *const targets[] = {"bundle.json", "../away", "nowhere", "/dev/zero", "fp32.onnx", "."};
    char verb[8], path[256];
    long at = 0, value = 0;
    const char *numbers = strchr(line, '\t');
    if (sscanf(line, "%7s %255[^\t\n]", verb, path) < 2 || !is_inside(root, path)) return;
    if (numbers != NULL) sscanf(numbers, "%ld %ld", &at, &value);
    if (strcmp(verb, "file") == 0) {
        write_at(root, path, model->data, model->size);
    } else if (strcmp(verb, "empty") == 0) {
        write_at(root, path, "", 0);
    } else if (strcmp(verb, "folder") == 0) {
        (void)!mkdirat(root, path, 0777);
    } else if (strcmp(verb, "pipe") == 0) {
        (void)!mkfifoat(root, path, 0666);
    } else if (strcmp(verb, "remove") == 0) {
        if (unlinkat(root, path, 0) != 0) (void)!unlinkat(root, path, AT_REMOVEDIR);
    } else if (strcmp(verb, "link") == 0) {
        (void)!symlinkat(targets[(unsigned long)at % (sizeof targets / sizeof targets[0])], root, path);
    } else if (strcmp(verb, "away") == 0) {
        (void)!renameat(root, path, root, "../away");
    } else if (strcmp(verb, "flip") == 0 || strcmp(verb, "cut") == 0 || strcmp(verb, "size") == 0 ||
               strcmp(verb, "insert") == 0) {
        edit(root, path, verb, at, value);
    }
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *walk) {
    (void)found;
    (void)kind;
    (void)walk;
    return remove(path);
}

static char scratch[64];

static void remove_scratch(void) { nftw(scratch, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

const char *fuzz_scratch(void) {
    if (scratch[0] != '\0') return scratch;
    snprintf(scratch, sizeof scratch, "%s/grd_fuzz_XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(scratch) == NULL) stop(scratch);
    atexit(remove_scratch);
    return scratch;
}

void fuzz_case_write(const fuzz_case *one, const char *folder) {
    char seal[65], path[512];
    fuzz_text bundle = {0}, decision = {0};
    const fuzz_text *model = &one->section[FUZZ_MODEL], *commands = &one->section[FUZZ_COMMANDS];
    snprintf(path, sizeof path, "%s/../away", folder);
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (mkdir(folder, 0777) != 0) stop(folder);
    const int root = open(folder, O_RDONLY | O_DIRECTORY);
    if (root < 0 || mkdirat(root, "models", 0777) != 0 || mkdirat(root, "engines", 0777) != 0) stop(folder);

    fuzz_splice(&bundle, 0, 0, one->section[FUZZ_BUNDLE].data, one->section[FUZZ_BUNDLE].size);
    resolve(&bundle, model, NULL, seal);
    fuzz_splice(&decision, 0, 0, one->section[FUZZ_DECISION].data, one->section[FUZZ_DECISION].size);
    write_at(root, "bundle.json", bundle.data, bundle.size);
    if (decision.size > 0) {
        char unused[65];
        resolve(&decision, model, seal, unused);
        write_at(root, "decision.json", decision.data, decision.size);
    }
    write_at(root, "models/fp32.onnx", model->data, model->size);
    write_at(root, "engines/cpu-int8.bin", model->data, model->size);
    for (const char *line = commands->data; line != NULL && *line != '\0';) {
        const char *next = strchr(line, '\n');
        fuzz_text one_line = {0};
        fuzz_splice(&one_line, 0, 0, line, next != NULL ? (size_t)(next - line) : strlen(line));
        run_command(root, one_line.data, model);
        free(one_line.data);
        line = next != NULL ? next + 1 : NULL;
    }
    close(root);
    free(bundle.data);
    free(decision.data);
}
