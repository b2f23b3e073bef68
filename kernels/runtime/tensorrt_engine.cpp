/* tensorrt_engine.cpp - an engine of TensorRT with its device memory, a context per batch size, and their CUDA graphs.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "tensorrt_engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../half.h"
#include "failure.h"
#include "vendor_library.h"

namespace grd {
namespace {

const GraphCalls kGraphCalls = {
    [](void *stream) { return static_cast<int>(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); },
    [](void *stream) {
        return static_cast<int>(
            cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal));
    },
    [](void *stream, void **graph) {
        return static_cast<int>(
            cudaStreamEndCapture(static_cast<cudaStream_t>(stream), reinterpret_cast<cudaGraph_t *>(graph)));
    },
    [](void **executable, void *graph) {
        return static_cast<int>(cudaGraphInstantiateWithFlags(reinterpret_cast<cudaGraphExec_t *>(executable),
                                                              static_cast<cudaGraph_t>(graph), 0));
    },
    [](void *executable, void *stream) {
        return static_cast<int>(
            cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable), static_cast<cudaStream_t>(stream)));
    },
    [](void *graph) { cudaGraphDestroy(static_cast<cudaGraph_t>(graph)); },
    [](void *executable) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable)); },
    [](int error) {
        cudaGetLastError();
        return cudaGetErrorString(static_cast<cudaError_t>(error));
    },
};

std::string text_of(const nvinfer1::Dims &dims) {
    std::string out;
    for (int32_t i = 0; i < dims.nbDims; ++i) out += (i > 0 ? "x" : "") + std::to_string(dims.d[i]);
    return out.empty() ? "a scalar" : out;
}

} // namespace

void EngineSide::stage(const float *values, size_t count) const {
    if (dtype == GRD_FLOAT32) {
        std::memcpy(staging.data(), values, count * sizeof(float));
        return;
    }
    for (size_t i = 0; i < count; ++i) staging.as<uint16_t>()[i] = half_from_float(values[i]);
}

void EngineSide::unstage(float *values, size_t count) const {
    if (dtype == GRD_FLOAT32) {
        std::memcpy(values, staging.data(), count * sizeof(float));
        return;
    }
    for (size_t i = 0; i < count; ++i) values[i] = float_from_half(staging.as<uint16_t>()[i]);
}

TensorRtEngine::TensorRtEngine(const grd_engine_desc &desc)
    : api_(desc.vendor_dir), batch_limit_(desc.batch_limit) {
    x_.each = {desc.channels, desc.patch_h, desc.patch_w};
    x_hat_.each = {desc.output_c, desc.output_h, desc.output_w};
}

TensorRtEngine::~TensorRtEngine() {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    try {
        save_cache();
    } catch (...) { /* the next run compiles again */
    }
    graphs_.reset();
    for (Lane &lane : lanes_) lane.context.reset();
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

/* The cheapest checks first, and all that can be known before the vendor's library works on the file. */
void TensorRtEngine::open(const grd_engine_desc &desc) {
    const std::string format = desc.format, wanted = kTensorRtKind == TensorRtKind::kRtx ? "tensorrt-rtx" : "tensorrt";
    if (format != wanted)
        fail(GRD_ERR_ENGINE_OPEN, "this backend takes format \"" + wanted + "\", this engine has " + quoted(format) +
                                      "; rebuild the bundle");
    const TensorRtVersion built = check_engine_file(kTensorRtKind, desc.bytes, desc.byte_count);
    check_engine_version(kTensorRtKind, desc, built, api_.version());
    choose_device(desc);
    read(desc);
    for (EngineSide *side : {&x_, &x_hat_}) {
        side->device.reserve(side->bytes(static_cast<size_t>(batch_limit_)));
        side->staging.reserve(side->bytes(static_cast<size_t>(batch_limit_)));
    }
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    configure(desc);
    graphs_ = make_graphs(1);
    if (!graphs_->reason(0).empty()) add_note("no CUDA graphs (" + graphs_->reason(0) + ")");
    /* An engine that does not run is told now, not at the first frame. */
    std::memset(x_.staging.data(), 0, x_.bytes(static_cast<size_t>(batch_limit_)));
    run_batch(static_cast<int32_t>(batch_limit_));
    save_cache();
}

void TensorRtEngine::choose_device(const grd_engine_desc &desc) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
    if (error == cudaSuccess) error = cudaGetDevice(&device_);
    if (error == cudaSuccess) error = cudaSetDevice(device_);
    if (error != cudaSuccess)
        fail(GRD_ERR_DEVICE,
             "the CUDA driver refused: " + cuda_words(error) +
                 text("; install an NVIDIA driver that knows CUDA %d.%d, on a machine with a device", CUDART_VERSION / 1000,
                      CUDART_VERSION % 1000 / 10));
    cudaDeviceProp device = {};
    check_cuda(cudaGetDeviceProperties(&device, device_), "cudaGetDeviceProperties", GRD_ERR_DEVICE);
    check_engine_device(kTensorRtKind, desc, device.major, device.minor, device.name);
    version_ = std::string(product_of(kTensorRtKind)) + " " + api_.version().text() + ", " + device.name +
               text(" (%d.%d)", device.major, device.minor);
}

void TensorRtEngine::read(const grd_engine_desc &desc) {
    TensorRtApi::listen();
    runtime_ = api_.create_runtime();
    if (runtime_ == nullptr)
        fail(GRD_ERR_BACKEND_LIBRARY, std::string(product_of(kTensorRtKind)) + " does not start: " + TensorRtApi::said());
    check_validity(desc);
    engine_.reset(runtime_->deserializeCudaEngine(desc.bytes, desc.byte_count));
    if (engine_ == nullptr)
        fail(GRD_ERR_ENGINE_OPEN, std::string(product_of(kTensorRtKind)) + " does not read the engine: " +
                                      TensorRtApi::said() + rebuild_for(desc.target != nullptr ? desc.target : "TARGET"));
    const int32_t sides = engine_->getNbIOTensors();
    for (int32_t i = 0; i < sides && sides == 2; ++i) {
        const char *name = engine_->getIOTensorName(i);
        const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        (input ? x_ : x_hat_).name = name;
    }
    if (x_.name.empty() || x_hat_.name.empty())
        fail(GRD_ERR_ENGINE_OPEN,
             text("the engine has %d inputs and outputs, expected one of each; export it with one of each", sides));
    check_side("input", &x_);
    check_side("output", &x_hat_);
    check_profile(desc);
}

/* What TensorRT-RTX says of the header, where it can be asked. */
void TensorRtEngine::check_validity(const grd_engine_desc &desc) const {
#if GRD_TENSORRT_RTX_API
    using Diagnostics = nvinfer1::EngineInvalidityDiagnostics;
    uint64_t found = 0;
    const auto validity =
        runtime_->getEngineValidity(desc.bytes, runtime_->getEngineHeaderSize(), &found);
    if (validity != nvinfer1::EngineValidity::kINVALID) return;
    static const struct {
        Diagnostics bit;
        grd_status status;
        const char *words;
    } reasons[] = {
        {Diagnostics::kCUDA_ERROR, GRD_ERR_DEVICE, "a CUDA error"},
        {Diagnostics::kOLD_CUDA_DRIVER, GRD_ERR_DEVICE, "a driver that is too old"},
        {Diagnostics::kOLD_CUDA_RUNTIME, GRD_ERR_DEVICE, "a CUDA runtime that is too old"},
        {Diagnostics::kVERSION_MISMATCH, GRD_ERR_ENGINE_MISMATCH, "another version of TensorRT-RTX"},
        {Diagnostics::kUNSUPPORTED_CC, GRD_ERR_ENGINE_MISMATCH, "a device that it was not built for"},
        {Diagnostics::kINSUFFICIENT_GPU_MEMORY, GRD_ERR_MEMORY, "too little memory on the device"},
        {Diagnostics::kMALFORMED_ENGINE, GRD_ERR_ENGINE_OPEN, "a malformed header"},
    };
    const std::string rebuild = rebuild_for(desc.target != nullptr ? desc.target : "rtx");
    for (const auto &reason : reasons)
        if ((found & static_cast<uint64_t>(reason.bit)) != 0)
            fail(reason.status, std::string("TensorRT-RTX refuses the engine for ") + reason.words + ": " +
                                    TensorRtApi::said() + rebuild);
    fail(GRD_ERR_ENGINE_OPEN, "TensorRT-RTX refuses the engine: " + TensorRtApi::said() + rebuild);
#else
    (void)desc; /* classic TensorRT is asked by reading the engine */
#endif
}

void TensorRtEngine::check_side(const char *what, EngineSide *side) const {
    const char *name = side->name.c_str();
    const nvinfer1::Dims shape = engine_->getTensorShape(name);
    bool fits = shape.nbDims == 4;
    for (size_t i = 0; i < 3 && fits; ++i) fits = shape.d[i + 1] == side->each[i];
    if (!fits)
        fail(GRD_ERR_SHAPE, text("the engine's %s %s is %s, expected N x %lld x %lld x %lld; rebuild the bundle", what,
                                 quoted(name).c_str(), text_of(shape).c_str(), static_cast<long long>(side->each[0]),
                                 static_cast<long long>(side->each[1]), static_cast<long long>(side->each[2])));
    const nvinfer1::DataType type = engine_->getTensorDataType(name);
    if (type != nvinfer1::DataType::kFLOAT && type != nvinfer1::DataType::kHALF)
        fail(GRD_ERR_ENGINE_OPEN, text("the engine's %s %s has data type %d, expected FLOAT or HALF; rebuild the bundle",
                                       what, quoted(name).c_str(), static_cast<int>(type)));
    if (engine_->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR)
        fail(GRD_ERR_ENGINE_OPEN, text("the engine's %s %s is not in linear format; rebuild the bundle", what,
                                       quoted(name).c_str()));
    side->dtype = type == nvinfer1::DataType::kHALF ? GRD_FLOAT16 : GRD_FLOAT32;
}

/* Batches of 1 to batch_limit patches come. */
void TensorRtEngine::check_profile(const grd_engine_desc &desc) const {
    const auto extent = [this](nvinfer1::OptProfileSelector which) {
        const nvinfer1::Dims shape = engine_->getProfileShape(x_.name.c_str(), 0, which);
        return shape.nbDims == 4 ? static_cast<long long>(shape.d[0]) : -1LL;
    };
    const long long least = extent(nvinfer1::OptProfileSelector::kMIN), best = extent(nvinfer1::OptProfileSelector::kOPT),
                    most = extent(nvinfer1::OptProfileSelector::kMAX);
    const long long wanted = static_cast<long long>(batch_limit_);
    if (least == 1 && wanted <= most) return;
    const std::string profile = text("the engine's profile is %lld:%lld:%lld patches", least, best, most);
    const std::string rebuild = rebuild_for(desc.target != nullptr ? desc.target : "TARGET") +
                                text(" --batch 1:%lld:%lld", wanted < 8 ? wanted : 8LL, wanted);
    if (least == 1)
        fail(GRD_ERR_SHAPE, profile + text(" but batches of up to %lld are wanted; lower batch_limit to %lld, or ", wanted,
                                           most) + rebuild.substr(2));
    fail(GRD_ERR_SHAPE, profile + ", which leaves out single patches" + rebuild);
}

void TensorRtEngine::configure(const grd_engine_desc &desc) {
    const int64_t bytes = engine_->getDeviceMemorySizeV2();
    scratch_bytes_ = bytes > 0 ? static_cast<size_t>(bytes) : 0;
    if (scratch_bytes_ > 0) scratch_.reserve(scratch_bytes_);
#if GRD_TENSORRT_RTX_API
    config_.reset(engine_->createRuntimeConfig());
    if (config_ != nullptr) cache_.reset(config_->createRuntimeCache());
    if (cache_ == nullptr)
        fail(GRD_ERR_ENGINE_OPEN, "TensorRT-RTX gives no runtime configuration and cache: " + TensorRtApi::said());
    config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
    /* Kernels for a size are compiled before it is captured: a graph would keep the stand-ins for ever. */
    config_->setDynamicShapesKernelSpecializationStrategy(
        nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "cudaDeviceGetAttribute");
    cache_file_.reset(new RuntimeCacheFile(desc.bytes, desc.byte_count,
                                           api_.version().text() + text("-%d.%d", major, minor)));
    const std::vector<char> kept = cache_file_->read();
    if (!kept.empty() && cache_->deserialize(kept.data(), kept.size())) cached_bytes_ = kept.size();
    if (!config_->setRuntimeCache(*cache_))
        fail(GRD_ERR_ENGINE_OPEN, "TensorRT-RTX does not take its runtime cache: " + TensorRtApi::said());
#else
    (void)desc;
#endif
}

/* Writes what was compiled since the file was read. */
void TensorRtEngine::save_cache() {
#if GRD_TENSORRT_RTX_API
    if (cache_ == nullptr || !cache_file_->wanted()) return;
    const std::unique_ptr<nvinfer1::IHostMemory> kept(cache_->serialize());
    if (kept == nullptr || kept->size() == cached_bytes_) return;
    const std::string reason = cache_file_->write(kept->data(), kept->size());
    if (reason.empty()) cached_bytes_ = kept->size();
    else add_note("runtime cache not written (" + reason + ")");
#endif
}

void TensorRtEngine::prepare(Lane *lane, int32_t n) const {
    TensorRtApi::listen();
#if GRD_TENSORRT_RTX_API
    lane->context.reset(engine_->createExecutionContext(config_.get()));
#else
    lane->context.reset(
        engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
#endif
    if (lane->context == nullptr)
        fail(GRD_ERR_ENGINE_RUN,
             std::string(product_of(kTensorRtKind)) + " gives no execution context: " + TensorRtApi::said());
    nvinfer1::IExecutionContext &context = *lane->context;
    context.setDeviceMemoryV2(scratch_.data(), static_cast<int64_t>(scratch_bytes_));
    if (!context.setOptimizationProfileAsync(0, stream_) ||
        !context.setTensorAddress(x_.name.c_str(), x_.device.data()) ||
        !context.setTensorAddress(x_hat_.name.c_str(), x_hat_.device.data()))
        fail(GRD_ERR_ENGINE_RUN,
             std::string(product_of(kTensorRtKind)) + " does not take the buffers: " + TensorRtApi::said());
    synchronize();
    set_batch(lane, n);
}

void TensorRtEngine::set_batch(Lane *lane, int32_t n) const {
    nvinfer1::Dims shape = {};
    shape.nbDims = 4;
    shape.d[0] = n;
    for (size_t i = 0; i < 3; ++i) shape.d[i + 1] = x_.each[i];
    TensorRtApi::listen();
    lane->batch = 0;
    if (!lane->context->setInputShape(x_.name.c_str(), shape))
        fail(GRD_ERR_ENGINE_RUN, text("%s does not take %d patches: ", product_of(kTensorRtKind), n) + TensorRtApi::said());
    lane->batch = n;
}

int32_t TensorRtEngine::lane_of(int32_t n) {
    for (int32_t i = 0; i < kLanes; ++i) {
        Lane &lane = lanes_[static_cast<size_t>(i)];
        if (lane.batch == n) return i;
        if (lane.batch != 0) continue;
        prepare(&lane, n);
        return i;
    }
    Lane &shared = lanes_[kLanes];
    if (shared.context == nullptr) {
        prepare(&shared, n);
        add_note(text("no CUDA graphs beyond %d batch sizes", kLanes));
    } else if (shared.batch != n) {
        set_batch(&shared, n);
    }
    return kLanes;
}

void TensorRtEngine::enqueue(int32_t lane) const {
    TensorRtApi::listen();
    if (!lanes_[static_cast<size_t>(lane)].context->enqueueV3(stream_))
        fail(GRD_ERR_ENGINE_RUN, std::string(product_of(kTensorRtKind)) + " does not run the engine: " + TensorRtApi::said());
}

std::unique_ptr<GraphCache> TensorRtEngine::make_graphs(size_t variants) const {
    const char *off = std::getenv("GRD_NO_CUDA_GRAPH");
    const bool is_off = off != nullptr && off[0] != '\0' && std::strcmp(off, "0") != 0;
    return std::unique_ptr<GraphCache>(
        new GraphCache(kGraphCalls, kLanes * variants, is_off ? "GRD_NO_CUDA_GRAPH is set" : ""));
}

void TensorRtEngine::add_note(const std::string &note) {
    if (version_.find(note) == std::string::npos) version_ += ", " + note;
}

/* Each size that runs without its graph is told, with the reason. */
void TensorRtEngine::tell(const GraphCache &graphs, size_t key, int32_t batch) {
    if (graphs.state(key) == GraphState::kRefused)
        add_note(text("no CUDA graph for batches of %d (", batch) + one_line(graphs.reason(key).c_str()) + ")");
}

void TensorRtEngine::run_batch(int32_t n) {
    const size_t patches = static_cast<size_t>(n);
    const int32_t lane = lane_of(n);
    run(graphs_.get(), lane, static_cast<size_t>(lane), [&](void *) {
        check_cuda(cudaMemcpyAsync(x_.device.data(), x_.staging.data(), x_.bytes(patches), cudaMemcpyHostToDevice, stream_),
                   "cudaMemcpyAsync");
        enqueue(lane);
        check_cuda(cudaMemcpyAsync(x_hat_.staging.data(), x_hat_.device.data(), x_hat_.bytes(patches),
                                   cudaMemcpyDeviceToHost, stream_),
                   "cudaMemcpyAsync");
    });
}

void TensorRtEngine::infer(const grd_view &x, const grd_view &x_hat) {
    const int64_t n = x.extent[0];
    for (const grd_view *view : {&x, &x_hat})
        if (view->extent[0] != n || n < 1 || n > batch_limit_ ||
            !std::equal(view->extent + 1, view->extent + 4, (view == &x ? x_ : x_hat_).each.begin()) ||
            view->dtype != GRD_FLOAT32 || view->space != GRD_SPACE_HOST)
            fail(GRD_ERR_SHAPE, text("a batch is %lldx%lldx%lldx%lld, expected 1 to %lld FLOAT32 patches of this engine's "
                                     "size in host memory",
                                     static_cast<long long>(view->extent[0]), static_cast<long long>(view->extent[1]),
                                     static_cast<long long>(view->extent[2]), static_cast<long long>(view->extent[3]),
                                     static_cast<long long>(batch_limit_)));
    enter();
    const size_t patches = static_cast<size_t>(n);
    x_.stage(static_cast<const float *>(x.data), x_.values(patches));
    run_batch(static_cast<int32_t>(n));
    x_hat_.unstage(static_cast<float *>(x_hat.data), x_hat_.values(patches));
}

} // namespace grd
