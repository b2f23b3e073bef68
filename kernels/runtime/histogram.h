/* histogram.h - latencies counted by many threads without a lock. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Buckets are 32 per power of two, so that a percentile, which is told as its bucket's upper end, is at most 1 / 32 too
 * large; the worst is kept as it is. */
#ifndef GRD_HISTOGRAM_H
#define GRD_HISTOGRAM_H

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "grd_edge.h"

namespace grd {

class Histogram {
public:
    void add(int64_t ns) {
        const uint64_t value = ns > 0 ? static_cast<uint64_t>(ns) : 0;
        buckets_[bucket_of(value)].fetch_add(1, std::memory_order_relaxed);
        uint64_t worst = worst_.load(std::memory_order_relaxed);
        while (value > worst && !worst_.compare_exchange_weak(worst, value, std::memory_order_relaxed)) {}
    }

    grd_latency latency() const {
        std::array<uint64_t, kBuckets> counts;
        uint64_t total = 0;
        for (size_t i = 0; i < kBuckets; ++i) total += counts[i] = buckets_[i].load(std::memory_order_relaxed);
        grd_latency out = {};
        out.count = static_cast<int64_t>(total);
        if (total == 0) return out;
        const double worst = static_cast<double>(worst_.load(std::memory_order_relaxed));
        out.worst_ms = worst * 1e-6;
        const auto percentile = [&](double share) {
            const uint64_t rank = static_cast<uint64_t>(std::ceil(share * static_cast<double>(total)));
            uint64_t below = 0;
            size_t i = 0;
            while (i + 1 < kBuckets && (below += counts[i]) < rank) ++i;
            return std::min(static_cast<double>(end_of(i)), worst) * 1e-6;
        };
        out.p50_ms = percentile(0.5);
        out.p95_ms = percentile(0.95);
        out.p99_ms = percentile(0.99);
        out.p999_ms = percentile(0.999);
        return out;
    }

    static constexpr size_t bucket_of(uint64_t value) {
        if (value < kPerOctave) return static_cast<size_t>(value);
        const int shift = 63 - __builtin_clzll(value) - kBits;
        return static_cast<size_t>((static_cast<uint64_t>(shift) + 1) * kPerOctave + (value >> shift) - kPerOctave);
    }
    /* The largest value of a bucket. */
    static constexpr uint64_t end_of(size_t bucket) {
        if (bucket < kPerOctave) return bucket;
        const uint64_t shift = bucket / kPerOctave - 1, within = bucket % kPerOctave + kPerOctave;
        return ((within + 1) << shift) - 1;
    }

    static constexpr int kBits = 5;
    static constexpr uint64_t kPerOctave = uint64_t{1} << kBits;
    static constexpr size_t kBuckets = (64 - kBits + 1) * kPerOctave;

private:
    std::array<std::atomic<uint64_t>, kBuckets> buckets_{};
    std::atomic<uint64_t> worst_{0};
};

} // namespace grd
#endif
