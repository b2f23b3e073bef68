/* backend_openvino.cpp - runs ONNX models on the CPU with OpenVINO.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * OpenVINO's C header is used for types and prototypes only; the library is opened at run time (openvino_api.h).
 *
 * A model compiled for one batch size is faster than one compiled for any: 17 % at one patch, 3 to 5 % at 16
 * (128 px, base 16, 2 cores). So each batch size seen gets a model of its own, compiled when it is first seen, up to
 * kStaticSizes; further sizes share one dynamic model, which bounds memory and never stalls a line again. */
#include <array>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include "backend_entries.h"
#include "cpus.h"
#include "engine_thread.h"
#include "failure.h"
#include "grd_edge.h"
#include "onnx_check.h"
#include "openvino_api.h"

namespace grd {
namespace {

constexpr size_t kStaticSizes = 4;
constexpr int64_t kAnySize = -1;

/* A compiled model with its request. Tensors wrap the caller's buffers and are kept while those stay the same. */
struct Lane {
    int64_t size = 0; /* kAnySize: dynamic */
    ov_compiled_model_t *compiled = nullptr;
    ov_infer_request_t *request = nullptr;
    ov_tensor_t *x = nullptr, *x_hat = nullptr;
    const void *x_data = nullptr, *x_hat_data = nullptr;
    int64_t bound = 0; /* patches in the tensors */
};

class OpenVinoEngine {
public:
    explicit OpenVinoEngine(const grd_engine_desc &desc)
        : api_(desc.vendor_dir), patch_{desc.channels, desc.patch_h, desc.patch_w},
          output_{desc.output_c, desc.output_h, desc.output_w}, batch_limit_(desc.batch_limit) {}
    ~OpenVinoEngine();
    OpenVinoEngine(const OpenVinoEngine &) = delete;
    OpenVinoEngine &operator=(const OpenVinoEngine &) = delete;

    void open(const grd_engine_desc &desc);
    void infer(const grd_view &x, const grd_view &x_hat);
    const char *version() const { return version_.c_str(); }

private:
    void check(ov_status_e status, grd_status ours, const std::string &what) const;
    void read(const grd_engine_desc &desc);
    void check_port(bool input, int64_t batch) const;
    void reshape(int64_t batch);
    Lane &lane_of(int64_t batch);
    void compile(Lane *lane);
    void bind(Lane *lane, const grd_view &x, const grd_view &x_hat);
    void release(Lane *lane);

    OpenVinoApi api_;
    ov_core_t *core_ = nullptr;
    ov_model_t *model_ = nullptr;
    std::string version_, precision_, threads_;
    bool fuse_adds_ = false; /* into quantised convolutions */
    std::array<int64_t, 3> patch_, output_; /* C, H, W */
    int64_t batch_limit_;
    std::vector<Lane> lanes_;
};

/* CPUs that the calling thread may run on, when these are not all; else 0. OpenVINO knows those of the process only. */
int32_t restricted_cpus() {
    const int32_t count = allowed_cpus();
    return count < ::sysconf(_SC_NPROCESSORS_ONLN) ? count : 0;
}

void OpenVinoEngine::open(const grd_engine_desc &desc) {
    const std::string format = desc.format, precision = desc.precision;
    if (format != "onnx")
        fail(GRD_ERR_ENGINE_OPEN,
             "the openvino backend takes format \"onnx\", this engine has " + quoted(format) + "; rebuild the bundle");
    const bool quantised = precision == "int8" || precision == "int8-bf16";
    if (precision != "fp32" && precision != "bf16" && !quantised)
        fail(GRD_ERR_ENGINE_OPEN,
             "the openvino backend takes precision fp32, bf16, int8 or int8-bf16, this engine has " +
                 quoted(precision) + "; rebuild the bundle");
    /* What a quantised model leaves unquantised runs in FP32 or BF16 as asked. Never left to OpenVINO, which silently
     * takes BF16. */
    precision_ = precision == "bf16" || precision == "int8-bf16" ? "bf16" : "f32";
    /* Left to itself OpenVINO takes the additions of residual blocks for its snippets, away from the convolutions,
     * which do them on the way: base 16 then needs 19.7 ms instead of 18.8, base 32 49.9 instead of 47.8 (128 px,
     * batch 8, 2 cores with AVX-512 VNNI, OpenVINO 2026.4). The property is not a public one, so a release may refuse it. */
    fuse_adds_ = quantised;
    const int32_t threads = desc.threads > 0 ? desc.threads : restricted_cpus();
    threads_ = threads > 0 ? std::to_string(threads) : "";
    version_ = "OpenVINO " + api_.version();
    lanes_.reserve(kStaticSizes + 1);
    check(api_.ov_core_create(&core_), GRD_ERR_BACKEND_LIBRARY, "OpenVINO does not start");
    read(desc);
    lane_of(1); /* a model that does not compile is told now, not at the first frame */
}

OpenVinoEngine::~OpenVinoEngine() {
    for (Lane &lane : lanes_) release(&lane);
    if (model_ != nullptr) api_.ov_model_free(model_);
    if (core_ != nullptr) api_.ov_core_free(core_);
}

void OpenVinoEngine::release(Lane *lane) {
    if (lane->x != nullptr) api_.ov_tensor_free(lane->x);
    if (lane->x_hat != nullptr) api_.ov_tensor_free(lane->x_hat);
    if (lane->request != nullptr) api_.ov_infer_request_free(lane->request);
    if (lane->compiled != nullptr) api_.ov_compiled_model_free(lane->compiled);
    *lane = Lane();
}

void OpenVinoEngine::check(ov_status_e status, grd_status ours, const std::string &what) const {
    if (status != OK) fail(ours, what + ": " + api_.last_error(status));
}

void OpenVinoEngine::read(const grd_engine_desc &desc) {
    const int contained = grd_onnx_self_contained(desc.bytes, desc.byte_count);
    if (contained == GRD_ONNX_UNREADABLE)
        fail(GRD_ERR_ENGINE_OPEN, "the engine file is not an ONNX model; rebuild the bundle");
    if (contained == GRD_ONNX_EXTERNAL)
        fail(GRD_ERR_ENGINE_OPEN,
             "the model keeps weights in other files, which the bundle does not verify; export it as a single file");
    check(api_.ov_core_read_model_from_memory_buffer(core_, static_cast<const char *>(desc.bytes), desc.byte_count,
                                                     nullptr, &model_),
          GRD_ERR_ENGINE_OPEN, "OpenVINO does not read the model");
    size_t inputs = 0, outputs = 0;
    check(api_.ov_model_inputs_size(model_, &inputs), GRD_ERR_ENGINE_OPEN, "the model's inputs cannot be counted");
    check(api_.ov_model_outputs_size(model_, &outputs), GRD_ERR_ENGINE_OPEN, "the model's outputs cannot be counted");
    if (inputs != 1 || outputs != 1)
        fail(GRD_ERR_ENGINE_OPEN,
             text("the model has %zu inputs and %zu outputs, expected one each; export it with one of each", inputs,
                  outputs));
    check_port(true, kAnySize);
}

/* One port must be float32 N,C,H,W of a patch or of what is made of it. batch kAnySize: N must be free, the rest may be. */
void OpenVinoEngine::check_port(bool input, int64_t batch) const {
    const char *name = input ? "input" : "output";
    ov_output_const_port_t *port = nullptr;
    check(input ? api_.ov_model_const_input(model_, &port) : api_.ov_model_const_output(model_, &port),
          GRD_ERR_ENGINE_OPEN, std::string("the model's ") + name + " cannot be read");
    ov_element_type_e type = DYNAMIC;
    ov_partial_shape_t shape = {};
    const ov_status_e typed = api_.ov_port_get_element_type(port, &type);
    const ov_status_e shaped = api_.ov_port_get_partial_shape(port, &shape);
    api_.ov_output_const_port_free(port);
    std::string found = "?";
    bool fits = shaped == OK && shape.rank.min == 4 && shape.rank.max == 4;
    if (shaped == OK) {
        const char *printed = api_.ov_partial_shape_to_string(shape);
        if (printed != nullptr) found = printed;
        api_.ov_free(printed);
    }
    const std::array<int64_t, 3> &each = input ? patch_ : output_;
    const int64_t want[4] = {batch, each[0], each[1], each[2]};
    for (int i = 0; fits && i < 4; ++i) {
        const bool free_extent = shape.dims[i].min != shape.dims[i].max;
        fits = free_extent ? batch == kAnySize : shape.dims[i].min == want[i];
    }
    if (shaped == OK) api_.ov_partial_shape_free(&shape);
    const std::string n = batch == kAnySize ? "free batch" : std::to_string(batch);
    if (!fits)
        fail(GRD_ERR_ENGINE_OPEN, text("the model's %s is %s, expected %s x %lld x %lld x %lld; rebuild the bundle",
                                       name, found.c_str(), n.c_str(), static_cast<long long>(each[0]),
                                       static_cast<long long>(each[1]), static_cast<long long>(each[2])));
    if (typed != OK || type != F32)
        fail(GRD_ERR_ENGINE_OPEN, std::string("the model's ") + name + " is not float32; rebuild the bundle");
}

void OpenVinoEngine::reshape(int64_t batch) {
    ov_dimension_t dims[4] = {{batch, batch}};
    for (size_t i = 0; i < 3; ++i) dims[1 + i] = {patch_[i], patch_[i]};
    if (batch == kAnySize) dims[0] = {1, batch_limit_};
    ov_partial_shape_t shape = {};
    shape.rank = {4, 4};
    shape.dims = dims;
    check(api_.ov_model_reshape_single_input(model_, shape), GRD_ERR_ENGINE_OPEN,
          "the model does not take patches of this bundle's size");
    if (batch != kAnySize) check_port(false, batch);
}

void OpenVinoEngine::compile(Lane *lane) {
    reshape(lane->size);
    const char *more[6] = {}; /* what not every engine takes */
    size_t strings = 6;
    const auto add = [&](const char *property, const char *value) {
        more[strings - 6] = property;
        more[strings - 5] = value;
        strings += 2;
    };
    if (!threads_.empty()) {
        add("INFERENCE_NUM_THREADS", threads_.c_str());
        /* Left to itself OpenVINO pins threads to CPUs of its choice, the caller's, too: two engines of one thread each then
         * take turns on one (170 patches/s instead of 300, base 16, 128 px, int8-bf16, 2 cores, OpenVINO 2026.4). */
        add("ENABLE_CPU_PINNING", "NO");
    }
    if (fuse_adds_) add("SNIPPETS_MODE", "DISABLE");
    /* Pairs of property and value follow as the variable part of the signature; the count is that of strings. */
    const auto compiled = [&] {
        return api_.ov_core_compile_model(core_, model_, "CPU", strings, &lane->compiled, "PERFORMANCE_HINT", "LATENCY",
                                          "NUM_STREAMS", "1", "INFERENCE_PRECISION_HINT", precision_.c_str(), more[0],
                                          more[1], more[2], more[3], more[4], more[5]);
    };
    ov_status_e status = compiled();
    if (status != OK && fuse_adds_) {
        fuse_adds_ = false;
        strings -= 2;
        status = compiled();
    }
    check(status, GRD_ERR_ENGINE_OPEN, "OpenVINO does not compile the model");
    char *used = nullptr;
    check(api_.ov_compiled_model_get_property(lane->compiled, "INFERENCE_PRECISION_HINT", &used), GRD_ERR_ENGINE_OPEN,
          "OpenVINO does not tell the precision it uses");
    const std::string precision = used != nullptr ? used : "";
    api_.ov_free(used);
    if (precision != precision_)
        fail(GRD_ERR_DEVICE, "this CPU runs the model in " + quoted(precision) + ", the engine was measured in " +
                                 precision_ + "; choose another precision of the bundle");
    check(api_.ov_compiled_model_create_infer_request(lane->compiled, &lane->request), GRD_ERR_ENGINE_OPEN,
          "OpenVINO gives no infer request");
}

Lane &OpenVinoEngine::lane_of(int64_t batch) {
    for (Lane &lane : lanes_)
        if (lane.size == batch) return lane;
    for (Lane &lane : lanes_)
        if (lane.size == kAnySize) return lane;
    Lane lane;
    lane.size = lanes_.size() < kStaticSizes ? batch : kAnySize;
    try {
        compile(&lane);
    } catch (...) {
        release(&lane);
        throw;
    }
    lanes_.push_back(lane);
    return lanes_.back();
}

void OpenVinoEngine::bind(Lane *lane, const grd_view &x, const grd_view &x_hat) {
    const int64_t n = x.extent[0];
    const auto wrap = [&](const std::array<int64_t, 3> &each, void *data, const void **held, ov_tensor_t **tensor,
                          decltype(api_.ov_infer_request_set_input_tensor) set) {
        if (*tensor != nullptr && *held == data && lane->bound == n) return;
        int64_t dims[4] = {n, each[0], each[1], each[2]};
        const ov_shape_t shape = {4, dims};
        ov_tensor_t *fresh = nullptr;
        check(api_.ov_tensor_create_from_host_ptr(F32, shape, data, &fresh), GRD_ERR_ENGINE_RUN,
              "OpenVINO does not wrap the patches");
        if (*tensor != nullptr) api_.ov_tensor_free(*tensor);
        *tensor = fresh;
        *held = nullptr; /* until it is set */
        check(set(lane->request, fresh), GRD_ERR_ENGINE_RUN, "OpenVINO does not take the patches");
        *held = data;
    };
    wrap(patch_, x.data, &lane->x_data, &lane->x, api_.ov_infer_request_set_input_tensor);
    wrap(output_, x_hat.data, &lane->x_hat_data, &lane->x_hat, api_.ov_infer_request_set_output_tensor);
    lane->bound = n;
}

void OpenVinoEngine::infer(const grd_view &x, const grd_view &x_hat) {
    const int64_t n = x.extent[0];
    if (n < 1 || n > batch_limit_)
        fail(GRD_ERR_ENGINE_RUN, text("a batch has %lld patches, expected 1 to %lld", static_cast<long long>(n),
                                      static_cast<long long>(batch_limit_)));
    Lane &lane = lane_of(n);
    bind(&lane, x, x_hat);
    check(api_.ov_infer_request_infer(lane.request), GRD_ERR_ENGINE_RUN, "OpenVINO does not run the model");
}

/* The engine on a thread of its own. OpenVINO keeps memory by thread and engine: calls of an engine by several threads in
 * turn, in several batch sizes, took more of it without end (a kilobyte a call, OpenVINO 2026.4). Its CPU plugin also
 * replaces the signal stack of the thread that loads it, and frees its own on the thread that unloads it, so that a signal
 * to the first one would be handled on memory that is gone. */
class OpenVinoThread {
public:
    explicit OpenVinoThread(const grd_engine_desc &) {}
    ~OpenVinoThread() {
        thread_.run([&] { engine_.reset(); });
    }

    void open(const grd_engine_desc &desc) {
        thread_.run([&] {
            engine_ = std::make_unique<OpenVinoEngine>(desc);
            engine_->open(desc);
        });
    }
    void infer(const grd_view &x, const grd_view &x_hat) {
        thread_.run([&] { engine_->infer(x, x_hat); });
    }
    const char *version() const { return engine_->version(); }

private:
    EngineThread thread_;
    std::unique_ptr<OpenVinoEngine> engine_;
};

using Entries = BackendEntries<OpenVinoThread>;

} // namespace
} // namespace grd

extern "C" GRD_API const grd_backend *grd_backend_table(void) {
    using grd::Entries;
    static const grd_backend table = {sizeof(grd_backend),
                                      GRD_BACKEND_ABI,
                                      "openvino",
                                      Entries::engine_open,
                                      Entries::engine_infer,
                                      Entries::engine_version,
                                      Entries::engine_close,
                                      nullptr,
                                      nullptr,
                                      nullptr};
    return &table;
}
