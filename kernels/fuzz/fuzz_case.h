/* fuzz_case.h - a bundle folder as bytes, so that a fuzzer can change it and a file can keep it.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A case is four sections with lines of four = between them: bundle.json, decision.json (empty: there is none),
 * commands, the bytes of both listed files. In the JSON sections stand for what a change must not break by itself:
 *   @SHA@ @BYTES@      hash and size of the listed files       @BUNDLE@           seal of bundle.json
 *   64 zeros           the seal                                @NUL@              a zero byte
 *   @N*TEXT@           TEXT, N times                           @engines:N@ @regions:N@    N further ones
 * Commands change the folder when everything is written, one a line; PATH lies below the folder:
 *   file PATH | empty PATH | folder PATH | pipe PATH | remove PATH | link PATH KIND | away PATH
 *   flip PATH AT BIT | cut PATH AT | size PATH BYTES | insert PATH AT BYTE
 * A tab, not a space, ends PATH where numbers follow; AT wraps at the end of the file. */
#ifndef GRD_FUZZ_CASE_H
#define GRD_FUZZ_CASE_H

#include <stddef.h>
#include <stdint.h>

#define GRD_FUZZ_ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

/* Bytes that grow; always followed by a NUL that is not counted. */
typedef struct fuzz_text {
    char *data;
    size_t size, room;
} fuzz_text;

enum { FUZZ_BUNDLE, FUZZ_DECISION, FUZZ_COMMANDS, FUZZ_MODEL, FUZZ_SECTIONS };

typedef struct fuzz_case {
    fuzz_text section[FUZZ_SECTIONS];
} fuzz_case;

/* Replaces `cut` bytes at `at` by `size` bytes of `data`. */
void fuzz_splice(fuzz_text *text, size_t at, size_t cut, const char *data, size_t size);
void fuzz_set(fuzz_text *text, const char *value);
void fuzz_case_free(fuzz_case *one);

void fuzz_case_parse(fuzz_case *one, const void *bytes, size_t size);
/* The case as bytes, in `out`. */
void fuzz_case_bytes(const fuzz_case *one, fuzz_text *out);

/* A folder of this process in memory where the system has such a place; removed when the process ends. */
const char *fuzz_scratch(void);
/* Removes what is at `folder` and writes the bundle there. Exits the process when the disk is full. */
void fuzz_case_write(const fuzz_case *one, const char *folder);

#endif
