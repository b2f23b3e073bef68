/* fake_tensorrt.cpp - a library with TensorRT's interface: x_hat = gain * x, or with one row more in out_shape the scores
 * of score_map_case.h, on the fake CUDA runtime.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine file is 64 bytes of header and then words "key=value": gain, in and out (float, half, int8), shape (1x12x12),
 * out_shape, profile (1:8:64), sides (2), scratch (bytes), fail (a step that fails: read, context, shape, enqueue,
 * capture). FAKE_TENSORRT_VERSION is the library's version, "11.1.0.5". */
#include <NvInferRuntime.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../half.h"
#include "../score_map_case.h"
#include "fake_cuda.h"
#include "stubs.h"

using namespace nvinfer1;

namespace {

std::atomic<ILogger *> logger;

void complain(const char *what) { logger.load()->log(ILogger::Severity::kERROR, what); }

using Words = std::map<std::string, std::string>;

Dims dims_of(const std::string &text, int64_t n) {
    Dims dims = {};
    dims.nbDims = 1;
    dims.d[0] = n;
    for (const char *at = text.c_str(); *at != '\0' && dims.nbDims < 8;) {
        char *end;
        dims.d[dims.nbDims++] = std::strtol(at, &end, 10);
        at = *end == 'x' ? end + 1 : end;
    }
    return dims;
}

struct Engine; /* below */

struct Context final : IExecutionContext, stub::VExecutionContext {
    explicit Context(Engine *of) : engine(of) { mImpl = this; }
    IExecutionContext *getPImpl() noexcept override { return this; }
    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override { return changed(profile == 0); }
    bool setInputShape(char const *name, Dims const &dims) noexcept override;
    bool setTensorAddress(char const *name, void *data) noexcept override {
        (std::strcmp(name, "x") == 0 ? x : x_hat) = data;
        return changed(true);
    }
    void setDeviceMemoryV2(void *memory, int64_t size) noexcept override {
        scratch = memory, scratch_bytes = size;
        changed(true);
    }
    bool enqueueV3(cudaStream_t stream) noexcept override;
    /* Whatever is done to a context spoils the graphs that were captured from it. */
    bool changed(bool good) {
        ++*changes;
        return good;
    }

    Engine *engine;
    int64_t batch = 0;
    void *x = nullptr, *x_hat = nullptr, *scratch = nullptr;
    int64_t scratch_bytes = -1;
    std::shared_ptr<int> changes = std::make_shared<int>(0);
};

#ifdef TRT_MAJOR_RTX
struct Memory final : IHostMemory, stub::VHostMemory {
    explicit Memory(std::string bytes) : held(std::move(bytes)) { mImpl = this; }
    void *data() const noexcept override { return const_cast<char *>(held.data()); }
    std::size_t size() const noexcept override { return held.size(); }
    std::string held;
};

struct Cache final : IRuntimeCache, stub::VRuntimeCache {
    Cache() { mImpl = this; }
    IHostMemory *serialize() const noexcept override { return new Memory(held); }
    bool deserialize(void const *blob, std::size_t size) noexcept override {
        held.assign(static_cast<const char *>(blob), size);
        return true;
    }
    std::string held = "kernels:";
};

struct Config final : IRuntimeConfig, stub::VRuntimeConfig {
    Config() { mImpl = this; }
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy) noexcept override {}
    IRuntimeCache *createRuntimeCache() const noexcept override { return new Cache; }
    bool setRuntimeCache(IRuntimeCache const &given) noexcept override {
        cache = const_cast<Cache *>(static_cast<const Cache *>(&given));
        return true;
    }
    void setDynamicShapesKernelSpecializationStrategy(
        DynamicShapesKernelSpecializationStrategy given) noexcept override {
        eager = given == DynamicShapesKernelSpecializationStrategy::kEAGER;
    }
    Cache *cache = nullptr;
    bool eager = false;
};
#endif

struct Engine final : ICudaEngine, stub::VCudaEngine {
    explicit Engine(Words given) : words(std::move(given)) { mImpl = this; }
    ICudaEngine *getPImpl() noexcept override { return this; }
    bool fails(const char *step) {
        if (words["fail"] != step) return false;
        complain((std::string("told to fail at ") + step).c_str());
        return true;
    }
    IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) std::abort();
        return fails("context") ? nullptr : new Context(this);
    }
#ifdef TRT_MAJOR_RTX
    IRuntimeConfig *createRuntimeConfig() noexcept override { return new Config; }
    IExecutionContext *createExecutionContextWithRuntimeConfig(IRuntimeConfig *config) noexcept override {
        auto *ours = static_cast<Config *>(config);
        if (ours->cache == nullptr || !ours->eager) std::abort();
        ours->cache->held += "k";
        return fails("context") ? nullptr : new Context(this);
    }
#endif
    Dims getTensorShape(char const *name) const noexcept override {
        return dims_of(words.at(std::strcmp(name, "x") == 0 ? "shape" : "out_shape"), -1);
    }
    DataType getTensorDataType(char const *name) const noexcept override {
        const std::string &type = words.at(std::strcmp(name, "x") == 0 ? "in" : "out");
        return type == "half" ? DataType::kHALF : type == "float" ? DataType::kFLOAT : DataType::kINT8;
    }
    TensorIOMode getTensorIOMode(char const *name) const noexcept override {
        return std::strcmp(name, "x") == 0 ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    TensorFormat getTensorFormat(char const *) const noexcept override {
        return words.at("format") == "linear" ? TensorFormat::kLINEAR : TensorFormat::kCHW32;
    }
    Dims getProfileShape(char const *, int32_t, OptProfileSelector which) const noexcept override {
        long long range[3] = {};
        std::sscanf(words.at("profile").c_str(), "%lld:%lld:%lld", &range[0], &range[1], &range[2]);
        return dims_of(words.at("shape"), range[static_cast<int>(which)]);
    }
    int32_t getNbIOTensors() const noexcept override { return std::atoi(words.at("sides").c_str()); }
    char const *getIOTensorName(int32_t index) const noexcept override {
        return index == 0 ? "x_hat" : words.at("outputs") == "2" ? "y" : "x"; /* not in the order one may expect */
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { return std::atoll(words.at("scratch").c_str()); }

    Words words;
};

bool Context::setInputShape(char const *, Dims const &dims) noexcept {
    if (engine->fails("shape") && dims.d[0] < 3) return false;
    batch = dims.d[0];
    return changed(true);
}

bool Context::enqueueV3(cudaStream_t stream) noexcept {
    if (engine->fails("enqueue") || (fake_cuda_is_capturing(stream) && engine->fails("capture"))) return false;
    if (batch < 1 || x == nullptr || x_hat == nullptr || scratch_bytes != engine->getDeviceMemorySizeV2()) return false;
    const Dims shape = engine->getTensorShape("x");
    const int64_t h = shape.d[2], w = shape.d[3];
    const size_t patch = static_cast<size_t>(shape.d[1] * h * w), batches = static_cast<size_t>(batch);
    const bool score_map = engine->getTensorShape("x_hat").d[2] == h + 1;
    const size_t made = score_map ? static_cast<size_t>((h + 1) * w) : patch;
    const bool half_in = engine->words["in"] == "half", half_out = engine->words["out"] == "half";
    const float gain = static_cast<float>(std::atof(engine->words["gain"].c_str()));
    const int captured = *changes;
    fake_cuda_submit(stream, [=, changes = changes, x = x, x_hat = x_hat, scratch = scratch, bytes = scratch_bytes] {
        if (*changes != captured) std::abort();
        if (bytes > 0) std::memset(scratch, 0x77, static_cast<size_t>(bytes));
        std::vector<float> in(patch), out(made);
        for (size_t n = 0; n < batches; ++n) {
            for (size_t i = 0; i < patch; ++i)
                in[i] = half_in ? grd::float_from_half(static_cast<uint16_t *>(x)[n * patch + i])
                                : static_cast<float *>(x)[n * patch + i];
            if (score_map) write_score_map(in.data(), out.data(), h, w, gain);
            for (size_t i = 0; i < patch && !score_map; ++i) out[i] = gain * in[i];
            for (size_t i = 0; i < made; ++i)
                if (half_out) static_cast<uint16_t *>(x_hat)[n * made + i] = grd::half_from_float(out[i]);
                else static_cast<float *>(x_hat)[n * made + i] = out[i];
        }
    });
    return true;
}

struct Runtime final : IRuntime, stub::VRuntime {
    Runtime() { mImpl = this; }
    IRuntime *getPImpl() noexcept override { return this; }
#ifdef TRT_MAJOR_RTX
    int64_t getEngineHeaderSize() const noexcept override { return 64; }
    EngineValidity getEngineValidity(void const *blob, int64_t, uint64_t *diagnostics) const noexcept override {
        *diagnostics = static_cast<const char *>(blob)[60] != 0
                           ? static_cast<uint64_t>(EngineInvalidityDiagnostics::kVERSION_MISMATCH)
                           : 0;
        if (*diagnostics != 0) complain("told that it is invalid");
        return *diagnostics != 0 ? EngineValidity::kINVALID : EngineValidity::kVALID;
    }
#endif
    ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override {
        Words words = {{"gain", "1"},      {"in", "float"},       {"out", "float"},     {"shape", "1x12x12"},
                       {"sides", "2"},     {"profile", "1:8:64"}, {"scratch", "100"},   {"format", "linear"},
                       {"outputs", "1"},   {"fail", ""},          {"out_shape", ""}};
        std::string text(static_cast<const char *>(blob) + 64, size - 64);
        for (char *rest = &text[0], *word; (word = strtok_r(rest, " ", &rest)) != nullptr;)
            if (char *equals = std::strchr(word, '=')) words[std::string(word, equals)] = equals + 1;
        if (words["out_shape"].empty()) words["out_shape"] = words["shape"];
        std::unique_ptr<Engine> engine(new Engine(words));
        return engine->fails("read") ? nullptr : engine.release();
    }
};

int version(int part) {
    const char *text = std::getenv("FAKE_TENSORRT_VERSION");
    int parts[4] = {};
    if (text != nullptr) std::sscanf(text, "%d.%d.%d.%d", &parts[0], &parts[1], &parts[2], &parts[3]);
    return parts[part];
}

} // namespace

/* Declared by the headers, with default visibility. */
void *createInferRuntime_INTERNAL(void *given, int32_t) noexcept {
    logger = static_cast<ILogger *>(given);
    if (std::getenv("FAKE_TENSORRT_REFUSES") != nullptr) {
        complain("told\nnot to\tstart");
        return nullptr;
    }
    return new Runtime;
}
int32_t getInferLibMajorVersion() noexcept { return version(0); }
int32_t getInferLibMinorVersion() noexcept { return version(1); }
int32_t getInferLibPatchVersion() noexcept { return version(2); }
int32_t getInferLibBuildVersion() noexcept { return version(3); }
