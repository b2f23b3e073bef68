/* test_products.cpp - decisions about products and runs from frames in any order.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "products.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "check.h"

using grd::Products;

static grd_bundle_info rule(int32_t k, double agreement, int32_t has_decision = 1) {
    grd_bundle_info info = {};
    info.k = k;
    info.run_agreement = agreement;
    info.has_decision = has_decision;
    return info;
}

static grd_stream_frame frame_of(int64_t product, int32_t frames, int64_t run = 0, int32_t products = 0) {
    grd_stream_frame frame = {};
    frame.product = product;
    frame.product_frames = frames;
    frame.run = run;
    frame.run_products = products;
    return frame;
}

/* A frame of 4 patches; defective below 0: it did not reach the engine. */
static grd_stream_result add(Products *products, const grd_stream_frame &frame, const grd_bundle_info &info, int defective) {
    grd_stream_result result = {};
    result.outcome = defective < 0 ? GRD_DROPPED : GRD_SCORED;
    result.decision = defective < 0 ? GRD_NOT_INSPECTED : defective >= info.k ? GRD_DEFECTIVE : GRD_GOOD;
    result.patch_count = defective < 0 ? 0 : 4;
    result.defective_count = defective < 0 ? 0 : defective;
    products->add(frame, info, &result);
    return result;
}

static void check_products() {
    Products products(4);
    const struct {
        int32_t k;
        std::vector<int> frames; /* defective patches */
        int32_t decision;
    } cases[] = {
        {1, {0}, GRD_GOOD},          {1, {1}, GRD_DEFECTIVE},       {1, {-1}, GRD_NOT_INSPECTED},
        {1, {0, 0}, GRD_GOOD},       {1, {0, 1}, GRD_DEFECTIVE},    {1, {0, -1}, GRD_NOT_INSPECTED},
        {1, {-1, 1}, GRD_DEFECTIVE}, {3, {1, 1, 1}, GRD_DEFECTIVE}, {3, {1, 1, 0}, GRD_GOOD},
        {3, {2, -1}, GRD_NOT_INSPECTED}, {5, {4}, GRD_UNDECIDED},   {5, {4, 1}, GRD_DEFECTIVE},
        {9, {4, 4}, GRD_UNDECIDED},  {5, {-1, -1}, GRD_NOT_INSPECTED},
    };
    int64_t number = 0;
    for (const auto &each : cases) {
        const auto count = static_cast<int32_t>(each.frames.size());
        int32_t defective = 0, missing = 0;
        ++number;
        for (int32_t i = 0; i < count; ++i) {
            const int said = each.frames[static_cast<size_t>(i)];
            const grd_stream_result result = add(&products, frame_of(number, count), rule(each.k, 0.7), said);
            defective += std::max(0, said);
            missing += said < 0 ? 1 : 0;
            CHECK(result.product_complete == (i == count - 1));
            CHECK(result.product_frames == i + 1 && result.product_missing == missing);
            CHECK(result.product_defective_count == defective);
            if (i == count - 1) CHECK_THAT(result.product_decision == each.decision, ("case %d", static_cast<int>(number)));
        }
    }
    CHECK(products.forgotten() == 0);
    /* Without thresholds nothing is good, and a frame that is missing stays missing. */
    CHECK(add(&products, frame_of(1, 0), rule(0, 0, 0), 0).product_decision == GRD_UNDECIDED);
    add(&products, frame_of(1, 2), rule(0, 0, 0), 0);
    CHECK(add(&products, frame_of(1, 2), rule(1, 0.7), 3).product_decision == GRD_UNDECIDED);
}

static void check_runs() {
    const struct {
        int good, defective, missing;
        double agreement;
        int32_t decision;
    } cases[] = {{7, 3, 0, 0.7, GRD_GOOD},         {3, 7, 0, 0.7, GRD_DEFECTIVE}, {6, 4, 0, 0.7, GRD_INCONSISTENT},
                 {7, 0, 3, 0.7, GRD_GOOD},         {6, 0, 4, 0.7, GRD_INCONSISTENT}, {0, 7, 3, 0.7, GRD_DEFECTIVE},
                 {3, 0, 0, 1.0, GRD_GOOD},         {2, 1, 0, 1.0, GRD_INCONSISTENT}, {1, 0, 0, 0.7, GRD_GOOD}};
    Products products(3);
    int64_t run = 100, product = 0;
    for (const auto &each : cases) {
        std::vector<int> said(static_cast<size_t>(each.good), 0);
        said.insert(said.end(), static_cast<size_t>(each.defective), 2);
        said.insert(said.end(), static_cast<size_t>(each.missing), -1);
        std::shuffle(said.begin(), said.end(), std::mt19937(7));
        const auto count = static_cast<int32_t>(said.size());
        ++run;
        for (int32_t i = 0; i < count; ++i) {
            const auto result =
                add(&products, frame_of(++product, 1, run, count), rule(1, each.agreement), said[static_cast<size_t>(i)]);
            CHECK(result.run_products == i + 1 && result.run_complete == (i == count - 1));
            if (result.run_complete) CHECK_THAT(result.run_decision == each.decision, ("run %d", static_cast<int>(run)));
        }
    }
    add(&products, frame_of(1, 1, 1, 2), rule(5, 0.7), 0); /* fewer patches than k */
    CHECK(add(&products, frame_of(2, 1, 1, 2), rule(1, 0.7), 0).run_decision == GRD_UNDECIDED);
}

/* Many at a time, mixed, against a map. */
static void check_mixed() {
    constexpr int kProducts = 500, kOpen = 37;
    Products products(kOpen);
    std::mt19937 random(3);
    std::map<int64_t, int> left;
    std::vector<int64_t> open;
    int64_t next = 0;
    int complete = 0;
    while (complete < kProducts) {
        if (static_cast<int>(open.size()) < kOpen && next < kProducts) {
            const int64_t number = (next % 2 != 0 ? -1 : 1) * next * 4096;
            ++next;
            left[number] = 3;
            open.push_back(number);
        }
        const size_t i = random() % open.size();
        const grd_stream_result result = add(&products, frame_of(open[i], 3), rule(1, 0.7), 0);
        --left[open[i]];
        CHECK(result.product_complete == (left[open[i]] == 0) && result.product_frames == 3 - left[open[i]]);
        if (!result.product_complete) continue;
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
        ++complete;
    }
    CHECK(products.forgotten() == 0);
}

/* The oldest makes room, and never completes. */
static void check_forgotten() {
    Products products(2);
    for (int64_t number = 1; number <= 3; ++number) add(&products, frame_of(number, 2), rule(1, 0.7), 0);
    CHECK(products.forgotten() == 1);
    CHECK(add(&products, frame_of(2, 2), rule(1, 0.7), 0).product_complete == 1);
    CHECK(add(&products, frame_of(3, 2), rule(1, 0.7), 0).product_complete == 1);
    const grd_stream_result late = add(&products, frame_of(1, 2), rule(1, 0.7), 0);
    CHECK(late.product_complete == 0 && late.product_frames == 1);
}

int main() {
    check_products();
    check_runs();
    check_mixed();
    check_forgotten();
    return checks_report();
}
