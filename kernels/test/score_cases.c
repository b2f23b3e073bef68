/* score_cases.c - see score_cases.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "score_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------- utilities */

static uint32_t random_state = 1;
float uniform(void) { /* [0, 1) in 24 bits, the same everywhere */
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / 16777216.0f;
}

float half_precision(float v) { return (float)half_value(half_nearest(v)); }

float *floats(size_t count) {
    float *at = malloc(count * sizeof *at);
    if (!at) abort();
    return at;
}

int same_bits(const void *a, const void *b, size_t bytes) { return memcmp(a, b, bytes) == 0; }

grd_view dense_view(const void *data, int64_t n, int64_t c, int64_t h, int64_t w) {
    grd_view view;
    memset(&view, 0, sizeof view);
    view.data = (void *)data;
    view.dtype = GRD_FLOAT32;
    view.space = GRD_SPACE_HOST;
    view.extent[0] = n, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

grd_view strided_view(const void *data, const int64_t *extent, int64_t n, int64_t c, int64_t y, int64_t x) {
    grd_view view = dense_view(data, extent[0], extent[1], extent[2], extent[3]);
    view.stride_bytes[0] = n, view.stride_bytes[1] = c, view.stride_bytes[2] = y, view.stride_bytes[3] = x;
    return view;
}

grd_score_params params_for(const char *variant) {
    grd_score_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.variant = variant;
    return params;
}

grd_score_outputs outputs_of(scores *s, const grd_view *heatmap) {
    grd_score_outputs outputs;
    memset(&outputs, 0, sizeof outputs);
    outputs.struct_size = sizeof outputs;
    outputs.phi = &s->phi;
    outputs.phi_local = &s->phi_local;
    outputs.residual_min = &s->residual_min;
    outputs.residual_max = &s->residual_max;
    outputs.heatmap = heatmap;
    return outputs;
}

/* -------------------------------------------------------------------------------------------- types */

size_t size_of(int32_t dtype) { return dtype == GRD_FLOAT32 ? 4 : dtype == GRD_UINT8 ? 1 : 2; }

double half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double magnitude = exponent == 31  ? (fraction ? NAN : HUGE_VAL)
                             : exponent == 0 ? ldexp(fraction, -24)
                                             : ldexp(1024 + fraction, exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

uint16_t half_nearest(double value) {
    const double magnitude = fabs(value);
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    int exponent = 0;
    if (isnan(value)) return 0x7e00;
    if (magnitude >= 65520) return (uint16_t)(sign | 0x7c00);
    frexp(magnitude, &exponent); /* magnitude < 2^exponent */
    if (magnitude < ldexp(1, -14)) exponent = -13;
    const int steps = (int)rint(ldexp(magnitude, 11 - exponent)); /* of the last bit; 2048 carries by itself */
    return (uint16_t)(sign | (uint16_t)(steps + ((exponent + 13) << 10)));
}

void store_pixel(void *at, int32_t dtype, float value) {
    const float clipped = value > 0 ? (value < 1 ? value : 1) : 0;
    const uint8_t byte = (uint8_t)(clipped * 255 + 0.5f);
    const uint16_t half = half_nearest(value);
    if (dtype == GRD_UINT8) memcpy(at, &byte, 1);
    else if (dtype == GRD_FLOAT16) memcpy(at, &half, 2);
    else memcpy(at, &value, 4);
}

float load_pixel(const void *at, int32_t dtype) {
    uint16_t half;
    float value;
    if (dtype == GRD_UINT8) return (float)*(const uint8_t *)at / 255.0f;
    if (dtype == GRD_FLOAT16) {
        memcpy(&half, at, 2);
        return (float)half_value(half);
    }
    memcpy(&value, at, 4);
    return value;
}

/* ------------------------------------------------------------------------------------ the definition */

static double reference_at(int box, const double *x, const double *y, int h, int w, int row, int col) {
    double taps[11], sum = 0, mean_x = 0, mean_y = 0, var_x = 0, var_y = 0, cov = 0;
    for (int k = 0; k < 11; k++) sum += taps[k] = box ? 1.0 : exp(-(k - 5) * (k - 5) / (2 * 1.5 * 1.5));
    for (int k = 0; k < 11; k++) taps[k] /= sum;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 11; i++) {
            for (int j = 0; j < 11; j++) {
                const int r = row + i, c = col + j, inside = r >= 0 && r < h && c >= 0 && c < w;
                const double a = inside ? x[r * w + c] : 0, b = inside ? y[r * w + c] : 0;
                const double t = taps[i] * taps[j];
                if (pass == 0) {
                    mean_x += t * a;
                    mean_y += t * b;
                } else {
                    var_x += t * (a - mean_x) * (a - mean_x);
                    var_y += t * (b - mean_y) * (b - mean_y);
                    cov += t * (a - mean_x) * (b - mean_y);
                }
            }
        }
    }
    const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
    const double l = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1);
    return 1 - l * ((2 * cov + c2) / (var_x + var_y + c2));
}

/* Whether the window at a position of the map holds a pixel of interest. */
static int window_holds(const uint8_t *roi, int h, int w, int row, int col) {
    if (!roi) return 1;
    for (int r = row < 0 ? 0 : row; r < row + 11 && r < h; r++)
        for (int q = col < 0 ? 0 : col; q < col + 11 && q < w; q++)
            if (roi[r * w + q]) return 1;
    return 0;
}

static void residual_range(const double *x, const double *y, const uint8_t *roi, int channels, int plane,
                           definition *out) {
    out->residual_min = HUGE_VAL, out->residual_max = 0;
    for (int i = 0; i < plane; i++) {
        double sum = 0;
        if (roi && !roi[i]) continue;
        for (int c = 0; c < channels; c++) sum += fabs(x[c * plane + i] - y[c * plane + i]) / channels;
        if (sum < out->residual_min) out->residual_min = sum;
        if (sum > out->residual_max) out->residual_max = sum;
    }
}

definition reference(int box, int local, const float *x, const float *y, const uint8_t *roi, int channels, int h,
                     int w) {
    const int map_h = box ? h : h - 10, map_w = box ? w : w - 10, shift = box ? -5 : 0, plane = h * w;
    const size_t count = (size_t)(channels * plane);
    double *map = calloc((size_t)(map_h * map_w), sizeof *map), *a = malloc(count * sizeof *a);
    double *b = malloc(count * sizeof *b);
    definition out = {0, 0, 0, 0};
    int positions = 0;
    if (!map || !a || !b) abort();
    for (size_t i = 0; i < count; i++) {
        const int wanted = !roi || roi[i % (size_t)plane];
        a[i] = wanted ? x[i] : 0, b[i] = wanted ? y[i] : 0;
    }
    for (int r = 0; r < map_h; r++) {
        for (int q = 0; q < map_w; q++) {
            positions += window_holds(roi, h, w, r + shift, q + shift);
            for (int c = 0; c < channels; c++)
                map[r * map_w + q] +=
                    reference_at(box, a + c * plane, b + c * plane, h, w, r + shift, q + shift) / channels;
        }
    }
    for (int i = 0; i < map_h * map_w && positions > 0; i++) out.phi += map[i] / positions;
    if (local > map_h) local = map_h;
    if (local > map_w) local = map_w;
    for (int r = 0; r + local <= map_h; r++) {
        for (int q = 0; q + local <= map_w; q++) {
            double sum = 0;
            for (int i = 0; i < local; i++)
                for (int j = 0; j < local; j++) sum += map[(r + i) * map_w + q + j];
            if (sum / (local * local) > out.phi_local) out.phi_local = sum / (local * local);
        }
    }
    residual_range(a, b, roi, channels, plane, &out);
    if (positions == 0) out = (definition){NAN, NAN, NAN, NAN};
    free(map), free(a), free(b);
    return out;
}

/* ------------------------------------------------------------------------------------ image families */

const char *const kFamilyNames[FAMILIES] = {
    "random",   "noisy copy", "binary16 copy", "flat, binary16", "flat, two levels", "nearly flat",
    "saturated", "binary",    "opposite",      "identical",      "steps",            "random steps",
    "dark square", "checkerboard", "gradient", "smooth",         "texture",          "one-hot"};

void make_pair(int family, float level, int channels, int h, int w, float *x, float *y) {
    float u[6];
    for (int i = 0; i < 6; i++) u[i] = uniform();
    const int edge = 1 + (int)(u[4] * (float)(w - 1));
    for (int c = 0; c < channels; c++) {
        for (int r = 0; r < h; r++) {
            for (int q = 0; q < w; q++) {
                const int i = (c * h + r) * w + q;
                const float n = uniform(), m = uniform();
                const int in_square = r > h / 5 && r < h * 4 / 5 && q > w / 5 && q < w * 4 / 5, left = q < w / 2;
                const float phase = 0.1f * (u[0] * (float)r + u[1] * (float)q), fr = (float)r, fq = (float)q;
                switch (family) {
                case RANDOM: x[i] = n, y[i] = m; break;
                case NOISY: x[i] = n, y[i] = n + 0.05f * (m - 0.5f); break;
                case HALF: x[i] = n, y[i] = half_precision(n); break;
                case FLAT_HALF: x[i] = level, y[i] = half_precision(level); break;
                case FLAT_LEVELS: x[i] = level, y[i] = 1 - level * level; break;
                case NEARLY_FLAT: x[i] = level + 1e-4f * n, y[i] = level + 1e-4f * m; break;
                case SATURATED: x[i] = level < 0.5f ? 0 : 1, y[i] = fabsf(x[i] - 2e-3f * n); break;
                case BINARY: x[i] = n < 0.5f, y[i] = m < 0.5f; break;
                case OPPOSITE: x[i] = n < 0.5f, y[i] = 1 - x[i]; break;
                case IDENTICAL: x[i] = n, y[i] = n; break;
                case STEP:
                    x[i] = left ? level : 1 - level;
                    y[i] = q < w / 2 + 3 ? 0.8f * level : 1 - level;
                    break;
                case TWO_STEPS: x[i] = q < edge ? u[0] : u[1], y[i] = q < edge ? u[2] : u[3]; break;
                case SQUARE: x[i] = in_square ? 0.1f : level, y[i] = in_square ? 0.5f : level; break;
                case CHECKER:
                    x[i] = (r / 3 + q / 3) % 2 ? level : 0.3f;
                    y[i] = (r / 4 + q / 4) % 2 ? level : 0.3f;
                    break;
                case GRADIENT: x[i] = (fr + fq) / (float)(h + w), y[i] = x[i] * x[i]; break;
                case SMOOTH:
                    x[i] = 0.5f + 0.4f * sinf(phase);
                    y[i] = 0.5f + 0.4f * sinf(phase + u[2]) * u[3];
                    break;
                case TEXTURE:
                    x[i] = 0.5f + 0.4f * sinf(0.7f * fq) * cosf(0.3f * fr);
                    y[i] = 0.9f * x[i] + 0.02f * n;
                    break;
                default: x[i] = r == h / 2 && q == w / 2, y[i] = 0; break;
                }
            }
        }
    }
}
