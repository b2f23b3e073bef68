/* score_internal.h - what dispatch (score.cpp) and the scoring variants share.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Each variant is compiled with the flags of its own instruction set. Everything here is therefore a plain
 * type, a constant, or local to its file (`static`, unnamed namespace): of an inline function with external
 * linkage the linker keeps one copy, and that could be the one compiled for a newer CPU.
 */
#ifndef GRD_SCORE_INTERNAL_H
#define GRD_SCORE_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "grd_edge.h"
#include "half.h"

namespace grd::score {

/* The Gaussian window: exp(-k^2 / (2 * 1.5^2)) for k = -5..5, divided by its sum.
 * Source: docs/method.md section 5; the values are rounded to double from 40 digits. */
constexpr int kTaps = 11;
constexpr int kReach = kTaps / 2;
constexpr double kGaussian[kTaps] = {
    0.0010283800844791099, 0.007598758135239184, 0.03600077212843082, 0.10936068950970002,
    0.2130055377112537,    0.26601172486179436,  0.2130055377112537,  0.10936068950970002,
    0.03600077212843082,   0.007598758135239184, 0.0010283800844791099};

constexpr int32_t kDefaultLocal = 21; /* w of phi_local. Source: docs/method.md section 5 */

/* C1 = (K1 L)^2 and C2 = (K2 L)^2 with K1 = 0.01, K2 = 0.03, L = 1. Source: docs/method.md section 5. */
constexpr double kC1 = 0.01 * 0.01;
constexpr double kC2 = 0.03 * 0.03;

/* One call: the size and kind of its patches and what is wanted of them. */
struct Job {
    int64_t c, h, w;
    int64_t map_h, map_w; /* of the distance map: h - 10, w - 10 (Gaussian) or h, w (box) */
    int64_t local;        /* side of the phi_local window, already cut to the map */
    bool box;             /* 11x11 mean, zero padded, instead of the Gaussian */
    bool want_phi;
    bool want_local;
    bool want_residual;   /* residual_min, residual_max or the heatmap */
    int32_t x_dtype, x_hat_dtype, heatmap_dtype; /* GRD_UINT8, GRD_FLOAT16, GRD_FLOAT32 */
    float heatmap_scale;                         /* of a UINT8 heatmap */
};

/* One patch: where its pixels lie. Strides in bytes, any sign; pointers need no alignment. */
struct Image {
    const char *data;
    int64_t stride_c, stride_y, stride_x;
};
struct Mask {
    const uint8_t *data; /* nonzero = of interest; NULL = every pixel is */
    int64_t stride_y, stride_x;
};
struct Patch {
    Image x, x_hat;
    Mask roi;
    int64_t positions; /* of the map, over which phi is the mean: those whose window holds a pixel of interest */
    char *heatmap;     /* NULL = not wanted */
    int64_t heatmap_stride_y, heatmap_stride_x;
};

/* One patch's figures. Those that were not wanted are unspecified. */
struct Result {
    float phi, phi_local, residual_min, residual_max;
};

struct Variant {
    /* Whether it runs this job; otherwise `scalar` does, which runs every one. */
    bool (*takes)(const Job &job);
    /* Scratch for any patch of this job, in bytes. */
    size_t (*scratch_bytes)(const Job &job);
    /* scratch: scratch_bytes bytes, aligned to kAlign, contents unspecified. patch.roi is neither empty nor whole. */
    Result (*run)(const Job &job, const Patch &patch, void *scratch);
};

#define GRD_VARIANT(name, supported) extern const Variant variant_##name;
#include "variants.inc"
#undef GRD_VARIANT

/* Positions of the map whose window holds a pixel of interest: 0 when no pixel is. *whole: every pixel is. */
int64_t positions_of_interest(const Job &job, const Mask &roi, uint8_t *scratch, bool *whole);
size_t positions_scratch_bytes(const Job &job);

constexpr size_t kAlign = 64;

namespace {

/* Carves arrays out of a block; over a null block it only adds up their sizes. */
class Arena {
  public:
    explicit Arena(void *base) : base_(static_cast<char *>(base)) {}
    template <class T> T *take(int64_t count) {
        char *at = base_ ? base_ + used_ : nullptr;
        used_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
        return reinterpret_cast<T *>(at);
    }
    size_t used() const { return used_; }

  private:
    char *base_;
    size_t used_ = 0;
};

} // namespace

/* Views may start at any byte, so single pixels travel through memcpy (one move instruction). */
static inline float load_float(const char *at) {
    float value;
    memcpy(&value, at, sizeof value);
    return value;
}
static inline void store_float(char *at, float value) { memcpy(at, &value, sizeof value); }

static inline float load_pixel(const char *at, int32_t dtype) {
    if (dtype == GRD_FLOAT32) return load_float(at);
    if (dtype == GRD_UINT8) return static_cast<float>(*reinterpret_cast<const uint8_t *>(at)) / 255.0f;
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return float_from_half(half);
}

/* The heatmap's value of a residual >= 0. */
static inline void store_residual(const Job &job, char *at, float value) {
    if (job.heatmap_dtype == GRD_FLOAT32) return store_float(at, value);
    if (job.heatmap_dtype == GRD_FLOAT16) {
        const uint16_t half = half_from_float(value);
        memcpy(at, &half, sizeof half);
        return;
    }
    const float scaled = value * job.heatmap_scale;
    /* Adding 2^23 rounds to an integer, ties to even. NaN is 255: the patch is refused anyway. */
    const float whole = scaled < 255.0f ? (scaled + 8388608.0f) - 8388608.0f : 255.0f;
    *reinterpret_cast<uint8_t *>(at) = static_cast<uint8_t>(whole);
}

static inline const char *pixel_at(const Image &image, int64_t c, int64_t y, int64_t x) {
    return image.data + c * image.stride_c + y * image.stride_y + x * image.stride_x;
}
static inline bool of_interest(const Mask &roi, int64_t y, int64_t x) {
    return !roi.data || roi.data[y * roi.stride_y + x * roi.stride_x] != 0;
}

/* One channel, every row dense FLOAT32, no mask: the common patch, whose loops have no choices in them. */
static inline bool is_plain(const Job &job, const Patch &patch) {
    const int64_t dense = sizeof(float);
    const bool floats = job.x_dtype == GRD_FLOAT32 && job.x_hat_dtype == GRD_FLOAT32 &&
                        (!patch.heatmap || job.heatmap_dtype == GRD_FLOAT32);
    return floats && !patch.roi.data && job.c == 1 && patch.x.stride_x == dense && patch.x_hat.stride_x == dense &&
           (!patch.heatmap || patch.heatmap_stride_x == dense);
}

/* x / 255 = x high + x low, the sum rounded once: equal to the rounded quotient for every byte. */
constexpr float kByteHigh = 1.0f / 255.0f, kByteLow = static_cast<float>(1.0 / 255.0 - 1.0f / 255.0f);

} // namespace grd::score
#endif
