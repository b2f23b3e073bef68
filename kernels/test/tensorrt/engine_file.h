/* engine_file.h - engine files of the running kind and version, for fake_tensorrt.cpp.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * TEST_RTX is defined for TensorRT-RTX, TEST_VERSION is the version of the fake library. */
#ifndef ENGINE_FILE_H
#define ENGINE_FILE_H

#include <stdio.h>
#include <string.h>

#ifdef TEST_RTX
#define KIND "tensorrt_rtx"
#define FORMAT "tensorrt-rtx"
#define MAGIC "vtrt"
#else
#define KIND "tensorrt"
#define FORMAT "tensorrt"
#define MAGIC "ftrt"
#endif

enum { ENGINE_FILE_BYTES = 64 + 256 };

/* Returns how many bytes it has. */
static inline size_t make_engine_file(const char *words, unsigned char file[ENGINE_FILE_BYTES]) {
    int version[4] = {0};
    const size_t bytes = 64 + strlen(words);
    sscanf(TEST_VERSION, "%d.%d.%d.%d", &version[0], &version[1], &version[2], &version[3]);
    memset(file, 0, ENGINE_FILE_BYTES);
    memcpy(file, MAGIC, 4);
    for (int i = 0; i < 8; ++i) file[16 + i] = (unsigned char)(bytes >> (8 * i));
    for (int i = 0; i < 4; ++i) file[24 + i] = (unsigned char)version[i];
    file[60] = strstr(words, "invalid=version") != NULL; /* told by the header alone */
    memcpy(file + 64, words, strlen(words));
    return bytes;
}

#endif
