/* products.h - what the frames of a stream say about products, and products about runs. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source: docs/method.md, section 7; grd_edge/products.py is the readable definition. */
#ifndef GRD_PRODUCTS_H
#define GRD_PRODUCTS_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "grd_edge.h"

namespace grd {

/* Records by number, a fixed count of them; one more takes the place of the oldest. Nothing is allocated after it is made. */
template <class Record> class Book {
public:
    explicit Book(int32_t capacity);

    /* The record of this number, a fresh one when there is none; then *forgot says whether it cost another. */
    Record *open(int64_t number, bool *forgot);
    /* Removes it. */
    void close(int64_t number);

private:
    struct Page {
        Record record = {};
        int64_t number = 0;
        int32_t next = -1;                 /* in its bucket, or among the free ones */
        int32_t older = -1, younger = -1;
    };

    size_t bucket_of(int64_t number) const;
    Page &page(int32_t i) { return pages_[static_cast<size_t>(i)]; }

    std::vector<Page> pages_;
    std::vector<int32_t> buckets_;
    int32_t free_ = -1, oldest_ = -1, youngest_ = -1;
};

struct ProductRecord {
    int32_t frames = 0, missing = 0, defective = 0;
    int64_t patches = 0;
    bool undecided = false; /* a frame of it came from a bundle without thresholds */
};

struct RunRecord {
    int32_t products = 0, good = 0, defective = 0;
    bool undecided = false;
};

class Products {
public:
    explicit Products(int32_t open_products) : products_(open_products), runs_(open_products) {}

    /* Takes in a frame that comes back: outcome, decision and counts of *result are set, and the members about product and
     * run are filled. info: of the bundle that inspected it. */
    void add(const grd_stream_frame &frame, const grd_bundle_info &info, grd_stream_result *result);
    int64_t forgotten() const { return forgotten_; }

private:
    void add_to_run(const grd_stream_frame &frame, const grd_bundle_info &info, grd_stream_result *result);

    Book<ProductRecord> products_;
    Book<RunRecord> runs_;
    int64_t forgotten_ = 0;
};

} // namespace grd
#endif
