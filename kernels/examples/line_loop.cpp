/* line_loop.cpp - the same line as line_loop.c in C++17: a ring of frame buffers, results by callback.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   line_loop BUNDLE.grdb FOLDER [DEADLINE_MS]
 *
 * FOLDER, GRD_VENDOR_DIR and exit status as there. */
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "grd_edge.h"
#include "pnm.h"

namespace {

/* A frame and its memory, which is the stream's from grd_stream_submit until the result comes back. */
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { std::free(image.pixels); }

    pnm_image image = {};
    std::string path;
    bool taken = false;
};

/* Buffers in turn: frames come back in the order of their submission, so the next one is the one that is free first. */
class Ring {
  public:
    /* The next buffer, once its last frame is back. */
    Buffer &next() {
        std::unique_lock<std::mutex> lock(mutex_);
        Buffer &buffer = buffers_[at_];
        back_.wait(lock, [&] { return !buffer.taken; });
        return buffer;
    }
    void give(Buffer &buffer) {
        const std::lock_guard<std::mutex> lock(mutex_);
        buffer.taken = true;
        at_ = (at_ + 1) % buffers_.size();
    }
    void take_back(Buffer &buffer) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            buffer.taken = false;
        }
        back_.notify_one();
    }
    static constexpr int kSize = 8;

  private:
    std::mutex mutex_;
    std::condition_variable back_;
    std::array<Buffer, kSize> buffers_;
    size_t at_ = 0;
};

struct Unreadable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Close {
    void operator()(grd_bundle *bundle) const { grd_bundle_close(bundle); }
    void operator()(grd_stream *stream) const { grd_stream_close(stream); }
};

/* A line: its members are closed in the right order, the stream before the buffers and the bundle. */
class Line {
  public:
    /* first: an image of the size of all. */
    Line(const std::string &bundle, const std::string &first, double deadline_ms) {
        const pnm_image &image = read(first, ring_.next());

        grd_bundle *opened = nullptr;
        const grd_status found = grd_bundle_open(bundle.c_str(), &opened);
        bundle_.reset(opened); /* a handle also on failure: it holds the message */
        if (found != GRD_OK) throw std::runtime_error(grd_bundle_message(opened));
        grd_stream_params params = {};
        params.struct_size = sizeof params;
        params.queue_depth = Ring::kSize;
        params.frame_h = static_cast<int32_t>(image.h); /* so that engines and memory are ready, and no frame waits */
        params.frame_w = static_cast<int32_t>(image.w);
        params.frame_c = static_cast<int32_t>(image.c);
        params.deadline_ms = deadline_ms;
        params.on_result = [](void *self, const grd_stream_result *result) {
            static_cast<Line *>(self)->take(*result);
        };
        params.context = this;
        grd_stream *stream = nullptr;
        const grd_status started = grd_stream_open(opened, &params, &stream);
        stream_.reset(stream);
        check(started);
    }

    /* Throws Unreadable when it cannot be read. */
    void submit(const std::string &path) {
        Buffer &buffer = ring_.next();
        const pnm_image &image = read(path, buffer);
        grd_stream_frame frame = {};
        frame.struct_size = sizeof frame;
        frame.id = ++submitted_;
        frame.user = &buffer;
        frame.view = grd_view_of_frame(image.pixels, GRD_UINT8, image.h, image.w, image.c, 0);
        ring_.give(buffer);
        check(grd_stream_submit(stream_.get(), &frame));
    }

    /* Waits for all results; true when every frame was good. */
    bool finish() {
        check(grd_stream_flush(stream_.get(), -1));
        grd_stream_stats stats = {};
        stats.struct_size = sizeof stats;
        check(grd_stream_get_stats(stream_.get(), &stats));
        std::printf("%lld frames: %lld good, %lld defective, %lld undecided, %lld dropped, %lld failed; %lld late\n",
                    static_cast<long long>(stats.submitted), static_cast<long long>(stats.good),
                    static_cast<long long>(stats.defective), static_cast<long long>(stats.undecided),
                    static_cast<long long>(stats.dropped), static_cast<long long>(stats.failed),
                    static_cast<long long>(stats.late));
        std::printf("from frame to decision: p50 %.2f ms, p99 %.2f ms, worst %.2f ms\n", stats.total.p50_ms,
                    stats.total.p99_ms, stats.total.worst_ms);
        return rejected_ == 0;
    }

  private:
    static const pnm_image &read(const std::string &path, Buffer &into) {
        into.path = path;
        if (!pnm_read(path.c_str(), &into.image))
            throw Unreadable(path + " is not a readable 8-bit binary PGM or PPM file");
        return into.image;
    }

    /* On a thread of the stream, one result at a time. See `take` of line_loop.c for what is rejected. */
    void take(const grd_stream_result &result) {
        static const char *const decisions[] = {"good", "defective", "undecided", "inconsistent", "not inspected"};
        static const char *const outcomes[] = {"", "", ", late", ", dropped", ", failed: "};
        Buffer &buffer = *static_cast<Buffer *>(result.user);
        std::printf("%lld %s: %s, score %.6g, threshold %.6g, %.2f ms%s%s\n", static_cast<long long>(result.id),
                    buffer.path.c_str(), decisions[result.decision], static_cast<double>(result.score),
                    static_cast<double>(result.threshold), result.total_ms, outcomes[result.outcome], result.message);
        if (result.outcome != GRD_SCORED || result.decision != GRD_GOOD) rejected_ += 1;
        ring_.take_back(buffer);
    }

    void check(grd_status status) const {
        if (status != GRD_OK) throw std::runtime_error(grd_stream_message(stream_.get()));
    }

    std::unique_ptr<grd_bundle, Close> bundle_;
    Ring ring_;
    int rejected_ = 0; /* written by the callback, read after grd_stream_flush */
    int64_t submitted_ = 0;
    std::unique_ptr<grd_stream, Close> stream_;
};

} // namespace

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        std::fprintf(stderr, "usage: line_loop BUNDLE.grdb FOLDER [DEADLINE_MS]\n");
        return 1;
    }
    try {
        std::vector<std::filesystem::path> paths;
        for (const auto &entry : std::filesystem::directory_iterator(argv[2]))
            if (entry.path().extension() == ".pgm" || entry.path().extension() == ".ppm") paths.push_back(entry.path());
        if (paths.empty()) throw std::runtime_error(std::string(argv[2]) + " holds no .pgm or .ppm images");
        std::sort(paths.begin(), paths.end());
        Line line(argv[1], paths.front().string(), argc > 3 ? std::atof(argv[3]) : 0);
        bool all_read = true;
        for (const auto &path : paths) {
            try {
                line.submit(path.string());
            } catch (const Unreadable &error) {
                std::fprintf(stderr, "%s\n", error.what());
                all_read = false;
            }
        }
        const bool all_good = line.finish();
        return !all_read ? 1 : all_good ? 0 : 3;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
