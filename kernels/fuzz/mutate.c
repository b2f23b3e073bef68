/* mutate.c - the changes. Those of the description are sealed again, so that only the rule that they break stands
 * between them and acceptance.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "mutate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_format.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

typedef struct document {
    const char *name, *template_text;
    const fuzz_slot *slots;
    size_t slot_count;
    int section;
} document;

static const document kDocuments[] = {
    {"bundle.json", kBundleTemplate, kBundleSlots, COUNT(kBundleSlots), FUZZ_BUNDLE},
    {"decision.json", kDecisionTemplate, kDecisionSlots, COUNT(kDecisionSlots), FUZZ_DECISION},
};

/* splitmix64: the same numbers everywhere. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t below(uint64_t *state, size_t count) { return (size_t)(next_random(state) % count); }

/* One entry of a list that | separates, into a buffer of its own. */
static char *choose(uint64_t *state, const char *list) {
    size_t count = 1;
    for (const char *at = list; *at != '\0'; ++at) count += *at == '|';
    for (size_t left = below(state, count); left > 0; --left) list = strchr(list, '|') + 1;
    const size_t length = strcspn(list, "|");
    char *entry = malloc(length + 1);
    memcpy(entry, list, length);
    entry[length] = '\0';
    return entry;
}

/* What each byte of a template is. Values and strings count as one thing. */
enum { PLAIN, STRUCTURE, INSIDE };

static unsigned char *classified(const fuzz_text *text) {
    unsigned char *kind = calloc(text->size + 1, 1);
    char closer = '\0';
    for (size_t i = 0; i < text->size; ++i) {
        const char c = text->data[i];
        if (closer != '\0') {
            kind[i] = c == closer && closer == '"' ? STRUCTURE : INSIDE;
            if (c == closer) closer = '\0';
        } else if (strchr("{}[],:\"", c) != NULL) {
            kind[i] = STRUCTURE;
            if (c == '"') closer = '"';
        } else if (c == '<' || c == '@') {
            kind[i] = INSIDE;
            closer = c == '<' ? '>' : '@';
        }
    }
    return kind;
}

static size_t random_place(uint64_t *state, const fuzz_text *text, const unsigned char *kind, int wanted) {
    size_t at = below(state, text->size);
    while (kind[at] != wanted) at = (at + 1) % text->size;
    return at;
}

/* A member of an object: from its key's quote to the end of its value. */
typedef struct member {
    size_t begin, key_end, end, object; /* object: the brace that opens it */
} member;

static member random_member(uint64_t *state, const fuzz_text *text, const unsigned char *kind) {
    member found = {0, 0, 0, 0};
    for (size_t begin = below(state, text->size);; begin = (begin + 1) % text->size) {
        if (text->data[begin] != '"' || kind[begin] != STRUCTURE || kind[begin + 1] != INSIDE) continue;
        size_t end = begin + 1;
        while (kind[end] == INSIDE) ++end;
        if (text->data[end + 1] != ':') continue;
        found.begin = begin;
        found.key_end = end;
        break;
    }
    int depth = 0;
    for (found.end = found.key_end + 2; found.end < text->size; ++found.end) {
        if (kind[found.end] != STRUCTURE) continue;
        const char c = text->data[found.end];
        if (depth == 0 && (c == ',' || c == '}')) break;
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
    }
    depth = 0;
    for (found.object = found.begin; depth >= 0; --found.object) {
        if (kind[found.object] != STRUCTURE) continue;
        const char c = text->data[found.object];
        depth += c == '}' || c == ']';
        depth -= c == '{' || c == '[';
        if (depth < 0) break;
    }
    return found;
}

static void remove_member(fuzz_text *text, member one) {
    if (text->data[one.end] == ',') {
        fuzz_splice(text, one.begin, one.end + 1 - one.begin, "", 0);
        return;
    }
    size_t begin = one.begin;
    while (begin > one.object + 1 && text->data[begin] != ',') --begin;
    fuzz_splice(text, begin, one.end - begin, "", 0);
}

/* Puts `value` where `place` stands, if it does. */
static void put(fuzz_text *text, const char *place, const char *value) {
    const char *at = strstr(text->data, place);
    if (at != NULL) fuzz_splice(text, (size_t)(at - text->data), strlen(place), value, strlen(value));
}

static void put_one_of(uint64_t *state, fuzz_text *text, const char *place, const char *list) {
    char *value = choose(state, list);
    put(text, place, value);
    free(value);
}

/* Every <slot> gets its valid value, but slot `changed` (SIZE_MAX: none) gets `value`. */
static void fill(fuzz_text *text, const document *doc, size_t changed, const char *value) {
    for (size_t i = 0; i < doc->slot_count; ++i) {
        char name[40];
        snprintf(name, sizeof name, "<%s>", doc->slots[i].name);
        put(text, name, i == changed ? value : doc->slots[i].valid);
    }
}

/* ------------------------------------------------------------------ changes of a template, before it is filled */

static void break_key(uint64_t *state, fuzz_text *text, const unsigned char *kind) {
    static const char letters[] = "abcxyzABCXYZ019_- ";
    const member one = random_member(state, text, kind);
    const size_t length = one.key_end - one.begin - 1, at = one.begin + 1 + below(state, length);
    char letter = letters[below(state, sizeof letters - 1)];
    const size_t how = below(state, 3);
    if (letter == text->data[at]) letter = '~';
    fuzz_splice(text, at, how != 0, &letter, how != 1);
}

static void break_structure(uint64_t *state, fuzz_text *text, const unsigned char *kind) {
    const size_t at = random_place(state, text, kind, STRUCTURE);
    if (below(state, 2) == 0 || text->data[at] == '"') {
        fuzz_splice(text, at, 1, "", 0);
    } else {
        const char more = "{}[],:"[below(state, 6)];
        fuzz_splice(text, at + below(state, 2), 0, &more, 1);
    }
}

static void double_member(uint64_t *state, fuzz_text *text, const unsigned char *kind) {
    const member one = random_member(state, text, kind);
    fuzz_text copy = {0};
    fuzz_splice(&copy, 0, 0, text->data + one.begin, one.end - one.begin);
    fuzz_splice(&copy, copy.size, 0, ", ", 2);
    fuzz_splice(text, one.begin, 0, copy.data, copy.size);
    free(copy.data);
}

static void move_member(uint64_t *state, fuzz_text *text, const unsigned char *kind) {
    const member one = random_member(state, text, kind);
    const size_t after_brace = one.object + 1, gap = strspn(text->data + after_brace, " \n");
    if (after_brace + gap == one.begin) return; /* it is the first one */
    fuzz_text copy = {0};
    fuzz_splice(&copy, 0, 0, text->data + one.begin, one.end - one.begin);
    fuzz_splice(&copy, copy.size, 0, ", ", 2);
    remove_member(text, one);
    fuzz_splice(text, after_brace, 0, copy.data, copy.size);
    free(copy.data);
}

static void add_unknown(uint64_t *state, fuzz_text *text, const unsigned char *kind) {
    const member one = random_member(state, text, kind);
    char *extra = choose(state, "\"x\": 1, |\"\": null, |\"comment\": \"x\", |\"Schema\": 1, |\"seal \": [], |\"_\": {}, ");
    fuzz_splice(text, one.begin, 0, extra, strlen(extra));
    free(extra);
}

static void list_bad_name(uint64_t *state, fuzz_case *out) {
    fuzz_text *text = &out->section[FUZZ_BUNDLE], *commands = &out->section[FUZZ_COMMANDS];
    char *name = choose(state, kBadNames), line[700];
    const char *slot = strstr(text->data, "<more_files>");
    snprintf(line, sizeof line, ", \"%s\": " FUZZ_ENTRY, name);
    fuzz_splice(text, (size_t)(slot - text->data), 0, line, strlen(line));
    for (const char *at = strchr(name, '/'); at != NULL && name[0] != '/'; at = strchr(at + 1, '/')) {
        snprintf(line, sizeof line, "folder %.*s\n", (int)(at - name), name);
        fuzz_splice(commands, commands->size, 0, line, strlen(line));
    }
    snprintf(line, sizeof line, "file %s", name);
    fuzz_splice(commands, commands->size, 0, line, strlen(line));
    free(name);
}

/* A value of another type than the key takes; NULL when the slot is no value. */
static const char *of_other_type(uint64_t *state, const fuzz_slot *slot) {
    static const struct {
        char kind;
        const char *value;
    } pool[] = {{'s', "\"1\""}, {'o', "{}"}, {'o', "{\"a\": 1}"}, {'a', "[]"}, {'a', "[1]"}, {'b', "true"}, {'b', "false"},
                {'n', "-1.5"}, {'x', "NaN"}, {'x', "1e999"}, {'x', ""}, {'x', "nul"}, {'z', "null"}};
    const size_t start = below(state, COUNT(pool));
    for (size_t i = 0; i < COUNT(pool) && slot->kind != 't'; ++i) {
        const size_t at = (start + i) % COUNT(pool);
        const int nullable = strcmp(slot->valid, "null") == 0 && pool[at].kind == 'z';
        if (pool[at].kind != slot->kind && !nullable) return pool[at].value;
    }
    return NULL;
}

/* ----------------------------------------------------------------------------------------------- the sequence */

static const char *refuse(uint64_t *state, fuzz_case *out) {
    /* What a change needs the whole decision for would be lost on a bundle without one, so all cases here have one. */
    const document *doc = &kDocuments[below(state, 3) == 0];
    fuzz_text *text = &out->section[doc->section];
    unsigned char *kind = classified(text);
    const size_t slot = below(state, doc->slot_count);
    const char *what = NULL;
    char *value = NULL, line[80];
    switch (below(state, 18)) {
    case 0:
        break_key(state, text, kind);
        what = "key changed";
        break;
    case 1:
        remove_member(text, random_member(state, text, kind));
        what = "member removed";
        break;
    case 2:
        double_member(state, text, kind);
        what = "member doubled";
        break;
    case 3:
        add_unknown(state, text, kind);
        what = "unknown key";
        break;
    case 4:
        break_structure(state, text, kind);
        what = "syntax";
        break;
    case 5:
        list_bad_name(state, out);
        what = "name of a file";
        break;
    case 6:
        value = choose(state, kBadCommands);
        fuzz_set(&out->section[FUZZ_COMMANDS], value);
        what = "folder";
        break;
    case 7:
    case 8: {
        static const char *const files[] = {"bundle.json", "decision.json", "models/fp32.onnx", "engines/cpu-int8.bin"};
        static const char *const verbs[] = {"flip", "flip", "cut", "insert"};
        const char *file = files[below(state, 4)], *verb = verbs[below(state, 4)];
        snprintf(line, sizeof line, "%s %s\t%u %u", verb, file, (unsigned)below(state, 1u << 20),
                 (unsigned)below(state, 256));
        fuzz_set(&out->section[FUZZ_COMMANDS], line);
        what = "bytes without a new seal";
        break;
    }
    case 9:
    case 10: {
        const char *other = of_other_type(state, &doc->slots[slot]);
        if (other == NULL) break;
        fill(text, doc, slot, other);
        what = "type of a value";
        break;
    }
    case 11:
        if (below(state, 2) == 0) {
            put_one_of(state, &out->section[FUZZ_BUNDLE], "<roi>", kBadRoi);
        } else {
            put(&out->section[FUZZ_BUNDLE], "<roi>", FUZZ_ROI);
            value = choose(state, kBadMasks);
            fuzz_set(&out->section[FUZZ_MODEL], value);
        }
        what = "mask of interest";
        break;
    case 12: {
        const int frame = below(state, 2) == 0;
        put_one_of(state, &out->section[FUZZ_DECISION], "<frame>", frame ? kBadFrames : FUZZ_FRAME);
        put_one_of(state, &out->section[FUZZ_DECISION], "<areas>", frame ? FUZZ_AREAS : kBadAreas);
        what = "areas";
        break;
    }
    default:
        break;
    }
    if (what == NULL) {
        size_t at = slot;
        while (doc->slots[at].bad[0] == '\0') at = (at + 1) % doc->slot_count;
        free(value);
        value = choose(state, doc->slots[at].bad);
        fill(text, doc, at, value);
        what = doc->slots[at].name;
    }
    free(value);
    free(kind);
    return what;
}

static const char *accept(uint64_t *state, fuzz_case *out) {
    const document *doc = &kDocuments[below(state, 3) == 0];
    fuzz_text *text = &out->section[doc->section];
    unsigned char *kind = classified(text);
    const char *what = "valid value";
    switch (below(state, 5)) {
    case 0:
        move_member(state, text, kind);
        what = "member moved";
        break;
    case 1:
        fuzz_splice(text, random_place(state, text, kind, PLAIN), 0, &" \n\t\r"[below(state, 4)], 1);
        what = "white space";
        break;
    case 2:
        fuzz_set(&out->section[FUZZ_DECISION], "");
        what = "no decision";
        break;
    default: {
        size_t at = below(state, doc->slot_count);
        while (doc->slots[at].also[0] == '\0') at = (at + 1) % doc->slot_count;
        char *value = choose(state, doc->slots[at].also);
        fill(text, doc, at, value);
        what = doc->slots[at].name;
        free(value);
    }
    }
    free(kind);
    return what;
}

static const char *either(uint64_t *state, fuzz_case *out) {
    const document *doc = &kDocuments[below(state, 3) == 0];
    fuzz_text *text = &out->section[doc->section];
    fill(text, doc, SIZE_MAX, NULL);
    for (size_t edits = 1 + below(state, 3); edits > 0 && text->size > 1; --edits) {
        const size_t at = below(state, text->size);
        const fuzz_slot *slot = &doc->slots[below(state, doc->slot_count)];
        char *value = choose(state, below(state, 2) == 0 ? slot->bad : slot->also);
        char byte = (char)below(state, 256);
        switch (below(state, 5)) {
        case 0:
            fuzz_splice(text, at, 1, &byte, 1);
            break;
        case 1:
            fuzz_splice(text, at, 0, &byte, 1);
            break;
        case 2:
            fuzz_splice(text, at, 1, "", 0);
            break;
        case 3:
            byte = (char)('0' + below(state, 10));
            fuzz_splice(text, at + strcspn(text->data + at, "0123456789") % (text->size - at), 1, &byte, 1);
            break;
        default:
            fuzz_splice(text, at, below(state, 2) == 0 ? 0 : 1, value, strlen(value));
        }
        free(value);
    }
    return "random edits";
}

int fuzz_mutate(uint64_t seed, uint64_t index, fuzz_case *out, const char **what) {
    uint64_t state = seed * 0xd1342543de82ef95u + index;
    next_random(&state);
    for (size_t i = 0; i < COUNT(kDocuments); ++i)
        fuzz_set(&out->section[kDocuments[i].section], kDocuments[i].template_text);
    fuzz_set(&out->section[FUZZ_COMMANDS], "");
    const int with_roi = below(&state, 4) == 0, with_areas = below(&state, 3) == 0;
    char *model = choose(&state, with_roi ? kMasks : kModels);
    fuzz_set(&out->section[FUZZ_MODEL], model);
    free(model);
    const uint64_t turn = index % 8;
    const int expected = turn == 6 ? FUZZ_ACCEPTED : turn == 7 ? FUZZ_EITHER : FUZZ_REFUSED;
    *what = turn == 6 ? accept(&state, out) : turn == 7 ? either(&state, out) : refuse(&state, out);
    put(&out->section[FUZZ_BUNDLE], "<roi>", with_roi ? FUZZ_ROI : "");
    put(&out->section[FUZZ_DECISION], "<frame>", with_areas ? FUZZ_FRAME : "");
    put(&out->section[FUZZ_DECISION], "<areas>", with_areas ? FUZZ_AREAS : "");
    if (out->section[FUZZ_DECISION].size > 0) fill(&out->section[FUZZ_DECISION], &kDocuments[1], SIZE_MAX, NULL);
    fill(&out->section[FUZZ_BUNDLE], &kDocuments[0], SIZE_MAX, NULL);
    return expected;
}
