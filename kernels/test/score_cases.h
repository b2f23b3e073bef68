/* score_cases.h - images, views and the definition of the scores, for the tests of the scoring section of grd_edge.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_SCORE_CASES_H
#define GRD_SCORE_CASES_H

#include <stddef.h>
#include <stdint.h>

#include "grd_edge.h"

#define CHECK_SAYS(condition, ...) CHECK_THAT(condition, (__VA_ARGS__))

float uniform(void); /* [0, 1) in 24 bits, the same everywhere */
float *floats(size_t count);
int same_bits(const void *a, const void *b, size_t bytes);

grd_view dense_view(const void *data, int64_t n, int64_t c, int64_t h, int64_t w); /* FLOAT32 */
grd_view strided_view(const void *data, const int64_t *extent, int64_t n, int64_t c, int64_t y, int64_t x);
grd_score_params params_for(const char *variant);

typedef struct scores {
    float phi, phi_local, residual_min, residual_max;
} scores;
grd_score_outputs outputs_of(scores *s, const grd_view *heatmap);

/* binary16 by its definition, apart from the library's conversions. */
double half_value(uint16_t half);
uint16_t half_nearest(double value); /* ties to even */
float half_precision(float v);

/* Pixels of GRD_UINT8 (clipped to [0, 1]), GRD_FLOAT16 and GRD_FLOAT32 at any address. */
size_t size_of(int32_t dtype);
void store_pixel(void *at, int32_t dtype, float value);
float load_pixel(const void *at, int32_t dtype);

/* SSIM as the textbook writes it: float64, all 121 taps, two-pass variances, x and x^ apart. It shares no formula with
 * the kernels. roi: h x w, or NULL; all NaN when it is empty. */
typedef struct definition {
    double phi, phi_local, residual_min, residual_max;
} definition;
definition reference(int box, int local, const float *x, const float *y, const uint8_t *roi, int channels, int h,
                     int w);

enum {
    RANDOM, NOISY, HALF, FLAT_HALF, FLAT_LEVELS, NEARLY_FLAT, SATURATED, BINARY, OPPOSITE, IDENTICAL, STEP,
    TWO_STEPS, SQUARE, CHECKER, GRADIENT, SMOOTH, TEXTURE, ONE_HOT, FAMILIES
};
extern const char *const kFamilyNames[FAMILIES];
void make_pair(int family, float level, int channels, int h, int w, float *x, float *y);

#endif
