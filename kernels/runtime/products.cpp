/* products.cpp - decisions about products and runs.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "products.h"

namespace grd {

template <class Record>
Book<Record>::Book(int32_t capacity)
    : pages_(static_cast<size_t>(capacity)), buckets_(static_cast<size_t>(capacity) * 2, -1) {
    for (int32_t i = 0; i < capacity; ++i) {
        page(i).next = free_;
        free_ = i;
    }
}

template <class Record> size_t Book<Record>::bucket_of(int64_t number) const {
    /* Consecutive numbers go to different buckets, and so do multiples of any step. */
    const uint64_t mixed = static_cast<uint64_t>(number) * 0x9e3779b97f4a7c15u;
    return static_cast<size_t>((mixed >> 32) % buckets_.size());
}

template <class Record> Record *Book<Record>::open(int64_t number, bool *forgot) {
    *forgot = false;
    for (int32_t i = buckets_[bucket_of(number)]; i >= 0; i = page(i).next)
        if (page(i).number == number) return &page(i).record;
    if (free_ < 0) {
        *forgot = true;
        close(page(oldest_).number);
    }
    const int32_t i = free_;
    Page &fresh = page(i);
    free_ = fresh.next;
    fresh.record = Record();
    fresh.number = number;
    int32_t &bucket = buckets_[bucket_of(number)];
    fresh.next = bucket;
    bucket = i;
    fresh.older = youngest_;
    fresh.younger = -1;
    if (youngest_ >= 0) page(youngest_).younger = i;
    else oldest_ = i;
    youngest_ = i;
    return &fresh.record;
}

template <class Record> void Book<Record>::close(int64_t number) {
    int32_t *link = &buckets_[bucket_of(number)];
    while (*link >= 0 && page(*link).number != number) link = &page(*link).next;
    if (*link < 0) return;
    const int32_t i = *link;
    Page &closed = page(i);
    *link = closed.next;
    (closed.older >= 0 ? page(closed.older).younger : oldest_) = closed.younger;
    (closed.younger >= 0 ? page(closed.younger).older : youngest_) = closed.older;
    closed.next = free_;
    free_ = i;
}

template class Book<ProductRecord>;
template class Book<RunRecord>;

namespace {

int32_t decision_of(const ProductRecord &product, int32_t k) {
    const bool can_tell = !product.undecided && product.patches >= k;
    if (can_tell && product.defective >= k) return GRD_DEFECTIVE;
    if (product.missing > 0) return GRD_NOT_INSPECTED;
    return can_tell ? GRD_GOOD : GRD_UNDECIDED;
}

int32_t decision_of(const RunRecord &run, double agreement) {
    if (run.undecided) return GRD_UNDECIDED;
    const double products = run.products;
    if (run.good / products >= agreement) return GRD_GOOD;
    return run.defective / products >= agreement ? GRD_DEFECTIVE : GRD_INCONSISTENT;
}

} // namespace

void Products::add(const grd_stream_frame &frame, const grd_bundle_info &info, grd_stream_result *result) {
    const bool alone = frame.product_frames <= 1;
    bool forgot = false;
    ProductRecord single;
    ProductRecord *product = alone ? &single : products_.open(frame.product, &forgot);
    forgotten_ += forgot ? 1 : 0;
    const bool inspected = result->outcome == GRD_SCORED || result->outcome == GRD_LATE;
    ++product->frames;
    product->missing += inspected ? 0 : 1;
    product->defective += result->defective_count;
    product->patches += result->patch_count;
    product->undecided = product->undecided || (inspected && !info.has_decision);
    result->product_frames = product->frames;
    result->product_missing = product->missing;
    result->product_defective_count = product->defective;
    if (!alone && product->frames < frame.product_frames) return;
    result->product_complete = 1;
    result->product_decision = decision_of(*product, info.has_decision ? info.k : 1);
    if (!alone) products_.close(frame.product);
    if (frame.run_products > 0) add_to_run(frame, info, result);
}

void Products::add_to_run(const grd_stream_frame &frame, const grd_bundle_info &info, grd_stream_result *result) {
    bool forgot = false;
    RunRecord *run = runs_.open(frame.run, &forgot);
    forgotten_ += forgot ? 1 : 0;
    ++run->products;
    run->good += result->product_decision == GRD_GOOD ? 1 : 0;
    run->defective += result->product_decision == GRD_DEFECTIVE ? 1 : 0;
    run->undecided = run->undecided || result->product_decision == GRD_UNDECIDED;
    result->run_products = run->products;
    result->run_defective = run->defective;
    if (run->products < frame.run_products) return;
    result->run_complete = 1;
    result->run_decision = decision_of(*run, info.run_agreement);
    runs_.close(frame.run);
}

} // namespace grd
