/* test_histogram.cpp - percentiles against sorted values, and counts that several threads add.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "histogram.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

using grd::Histogram;

static void check_buckets() {
    uint64_t previous_end = 0;
    for (size_t i = 1; i < Histogram::kBuckets; ++i) {
        const uint64_t end = Histogram::end_of(i);
        CHECK_THAT(Histogram::bucket_of(previous_end + 1) == i && Histogram::bucket_of(end) == i, ("bucket %zu", i));
        CHECK_THAT(end - previous_end <= std::max<uint64_t>(1, end / 32 + 1), ("bucket %zu is too wide", i));
        previous_end = end;
    }
    CHECK(previous_end == ~uint64_t{0});
}

static void check_percentiles(size_t count, double spread) {
    std::mt19937_64 random(count);
    std::lognormal_distribution<double> times(10, spread);
    const auto histogram = std::make_unique<Histogram>();
    std::vector<int64_t> all;
    for (size_t i = 0; i < count; ++i) {
        all.push_back(static_cast<int64_t>(times(random)));
        histogram->add(all.back());
    }
    std::sort(all.begin(), all.end());
    const grd_latency found = histogram->latency();
    CHECK(found.count == static_cast<int64_t>(count));
    CHECK(found.worst_ms == static_cast<double>(all.back()) * 1e-6);
    const auto exact = [&](double share) {
        const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(count)));
        return static_cast<double>(all[rank - 1]) * 1e-6;
    };
    const double told[] = {found.p50_ms, found.p95_ms, found.p99_ms, found.p999_ms}, shares[] = {0.5, 0.95, 0.99, 0.999};
    for (int i = 0; i < 4; ++i) {
        const double least = exact(shares[i]);
        CHECK_THAT(told[i] >= least && told[i] <= least * 1.032 + 1e-6,
                   ("%g of %zu: %.9g, exact %.9g", shares[i], count, told[i], least));
    }
}

int main() {
    check_buckets();
    const auto empty = std::make_unique<Histogram>();
    CHECK(empty->latency().count == 0 && empty->latency().worst_ms == 0 && empty->latency().p999_ms == 0);
    for (const size_t count : {1, 2, 3, 7, 10, 100, 1001, 20000})
        for (const double spread : {0.0, 0.5, 3.0}) check_percentiles(count, spread);
    const auto shared = std::make_unique<Histogram>();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            for (int k = 0; k < 20000; ++k) shared->add(k * 4 + i);
        });
    for (std::thread &thread : threads) thread.join();
    CHECK(shared->latency().count == 80000);
    CHECK(shared->latency().worst_ms == 79999e-6);
    empty->add(-5); /* a clock that went back */
    CHECK(empty->latency().count == 1 && empty->latency().worst_ms == 0);
    return checks_report();
}
