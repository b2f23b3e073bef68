/* buffer.h - the memory of an inspector. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BUFFER_H
#define GRD_BUFFER_H

#include <cstddef>
#include <cstdlib>
#include <new>

namespace grd {

/* Memory that only grows, aligned for vector loads. */
class Buffer {
public:
    Buffer() = default;
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void reserve(size_t bytes) {
        if (bytes <= size_) return;
        void *grown = nullptr;
        if (::posix_memalign(&grown, 64, bytes) != 0) throw std::bad_alloc();
        std::free(data_);
        data_ = grown;
        size_ = bytes;
    }
    float *floats() const { return static_cast<float *>(data_); }
    void *data() const { return data_; }
    size_t size() const { return size_; }

private:
    void *data_ = nullptr;
    size_t size_ = 0;
};

} // namespace grd
#endif
