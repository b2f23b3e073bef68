/* pnm.h - images of the examples: binary PGM or PPM (P5 or P6) of 8 bits, in place of a camera.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef PNM_H
#define PNM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct pnm_image {
    uint8_t *pixels; /* h rows of w pixels of c channels; kept from image to image, and grown where one needs more */
    size_t capacity;
    long h, w, c;
} pnm_image;

/* Reads the next number of the header, past blanks and comments; -1 when there is none. */
static long pnm_number(FILE *file) {
    int c = fgetc(file);
    long value = -1;
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = fgetc(file);
        c = fgetc(file);
    }
    for (; c >= '0' && c <= '9' && value < 100000; c = fgetc(file)) value = (value < 0 ? 0 : value * 10) + (c - '0');
    return value; /* the one blank that ends a number is consumed */
}

/* 1 when the file was read, 0 when it is no such image or memory ran out. */
static int pnm_read(const char *path, pnm_image *image) {
    int whole = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return 0;
    const int magic = fgetc(file) == 'P' ? fgetc(file) : 0;
    image->c = magic == '5' ? 1 : magic == '6' ? 3 : 0;
    image->w = pnm_number(file);
    image->h = pnm_number(file);
    if (image->c > 0 && pnm_number(file) == 255 && image->w > 0 && image->h > 0 && image->w <= 65536 &&
        image->h <= 65536) {
        const size_t bytes = (size_t)image->w * (size_t)image->h * (size_t)image->c;
        if (bytes > image->capacity) {
            free(image->pixels);
            image->pixels = (uint8_t *)malloc(bytes);
            image->capacity = image->pixels != NULL ? bytes : 0;
        }
        whole = bytes <= image->capacity && fread(image->pixels, 1, bytes, file) == bytes;
    }
    fclose(file);
    return whole;
}

#endif
