/* patchify_vector.h - pixels to elements of patches, for any vector type.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A variant defines a vector traits type V (see patchify_avx2.cpp) and takes vector_kernels<V>(). The loops of
 * patchify_loops.h serve it as well, compiled for its instruction set.
 *
 * x / d is computed as x * hi + (x * lo), hi + lo = 1 / d in twice the precision, the sum rounded once: equal to the
 * correctly rounded quotient for every pixel and every grey value of both frame types. */
#ifndef GRD_PATCHIFY_VECTOR_H
#define GRD_PATCHIFY_VECTOR_H

#include "patchify/patchify_loops.h"

namespace grd::patchify {
namespace { /* local to each variant's file: see patchify_kernels.h */

template <class V> class Vectors {
    using F = typename V::F;
    using I = typename V::I;
    static constexpr int64_t kLanes = V::kLanes;

    /* The integer x over d. */
    struct Quotient {
        F hi, lo;
        explicit Quotient(double d) {
            const float rounded = static_cast<float>(1.0 / d);
            hi = V::set(rounded);
            lo = V::set(static_cast<float>(1.0 / d - static_cast<double>(rounded)));
        }
        F of(I x) const {
            const F value = V::to_float(x);
            return V::fma(value, hi, V::mul(value, lo));
        }
    };

    static void store(const ToFloat &, uint8_t *out, F value) { V::store(out, value); }
    static void store(const ToHalf &, uint8_t *out, F value) { V::store_halves(out, value); }
    static void store(const ToInt8 &sink, uint8_t *out, F value) {
        V::store_rounded(out, V::min(V::div(value, V::set(sink.input_scale)), V::set(127.0f)));
    }

    /* block(x) for vectors that cover n elements; the last one overlaps the one before, so that nothing is read or
     * written past a row. rest(0, n) where a row is shorter than a vector. */
    template <class Block, class Rest> static void in_blocks(int64_t n, const Block &block, const Rest &rest) {
        if (n < kLanes) return rest(0, n);
        int64_t x = 0;
#pragma GCC unroll 4 /* measured: kernels/README.md */
        for (; x + kLanes <= n; x += kLanes) block(x);
        if (x < n) block(n - kLanes);
    }

    template <class Sink, class T> static void values(const Sink &sink, const T *from, int64_t n, uint8_t *out) {
        const Quotient unit(static_cast<double>(full_scale<T>()));
        in_blocks(
            n, [&](int64_t i) { store(sink, out + i * Sink::kBytes, unit.of(V::load(from + i))); },
            [&](int64_t begin, int64_t end) { store_values(sink, from, begin, end, out); });
    }

    template <class Sink, class T> static void grey(const Sink &sink, const T *row, int64_t w, uint8_t *out) {
        const Quotient unit(static_cast<double>(full_scale<T>()) * static_cast<double>(kGreyUnits));
        in_blocks(
            w,
            [&](int64_t x) { store(sink, out + x * Sink::kBytes, unit.of(V::load_grey(row + 3 * x))); },
            [&](int64_t begin, int64_t end) { store_grey(sink, row, begin, end, out); });
    }

    template <class Sink, class T>
    static void planes(const Sink &sink, const T *row, int64_t w, uint8_t *out, int64_t plane_bytes) {
        const Quotient unit(static_cast<double>(full_scale<T>()));
        in_blocks(
            w,
            [&](int64_t x) {
                I rgb[3];
                V::load3(row + 3 * x, rgb);
                for (int c = 0; c < 3; ++c)
                    store(sink, out + c * plane_bytes + x * Sink::kBytes, unit.of(rgb[c]));
            },
            [&](int64_t begin, int64_t end) { store_planes(sink, row, begin, end, out, plane_bytes); });
    }

  public:
    template <class T>
    static void convert(const Format &format, const T *row, int64_t w, uint8_t *out, int64_t plane_bytes) {
        with_sink(format, [&](const auto &sink) {
            if (format.c_in == format.c_out && (format.c_in == 1 || format.interleaved))
                values(sink, row, w * format.c_in, out);
            else if (format.c_out == 1) grey(sink, row, w, out);
            else planes(sink, row, w, out, plane_bytes);
        });
    }

    static void store_line(const Format &format, const float *line, int64_t n, uint8_t *out) {
        with_sink(format, [&](const auto &sink) {
            constexpr int64_t bytes = std::decay_t<decltype(sink)>::kBytes;
            in_blocks(
                n, [&](int64_t i) { store(sink, out + i * bytes, V::load(line + i)); },
                [&](int64_t begin, int64_t end) { store_values(sink, line, begin, end, out); });
        });
    }
};

template <class V> constexpr Kernels vector_kernels() {
    return {{Vectors<V>::template convert<uint8_t>, add_row<uint8_t>, weigh_row<uint8_t>},
            {Vectors<V>::template convert<uint16_t>, add_row<uint16_t>, weigh_row<uint16_t>},
            Vectors<V>::store_line,
            add_sums,
            split_line,
            shrink_line,
            add_values,
            divide};
}

} // namespace
} // namespace grd::patchify
#endif
