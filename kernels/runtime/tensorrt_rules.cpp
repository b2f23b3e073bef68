/* tensorrt_rules.cpp - whether an engine file of TensorRT can run here.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source, files: NVIDIA's trtexec prints bytes 24 to 27 as the version of a plan; a TensorRT-RTX 1.7 engine begins with
 * "vtrt", holds its own size in bytes 16 to 23, and its library refuses any other size. Source, versions: "Engine
 * Compatibility" in the manuals of TensorRT 11.1 and TensorRT-RTX 1.7. */
#include "tensorrt_rules.h"

#include <cstdlib>
#include <cstring>

#include "failure.h"

namespace grd {
namespace {

constexpr size_t kHeaderBytes = 64;
constexpr size_t kMagicAt = 0, kSizeAt = 16, kVersionAt = 24;

/* Whether a list of words joined by spaces holds the word. */
bool holds(const char *words, const std::string &word) {
    for (const char *at = words; at != nullptr && *at != '\0';) {
        const size_t length = std::strcspn(at, " ");
        if (word.compare(0, std::string::npos, at, length) == 0) return true;
        at += length + (at[length] == ' ' ? 1 : 0);
    }
    return false;
}

/* Target that builds for a device. */
std::string target_of(TensorRtKind kind, int major, int minor) {
    if (kind == TensorRtKind::kRtx)
        return major >= 10                 ? "rtx-blackwell"
               : major == 8 && minor == 9 ? "rtx-ada"
               : major == 8               ? "rtx-ampere"
               : major == 7               ? "rtx-turing"
                                          : "rtx";
    const bool thor = (major == 11 && minor == 0) || (major == 10 && minor == 1); /* 10.1 before CUDA 13 */
    return major == 8 && minor == 7 ? "jetson-orin" : thor ? "jetson-thor" : "trt";
}

} // namespace

const char *product_of(TensorRtKind kind) { return kind == TensorRtKind::kRtx ? "TensorRT-RTX" : "TensorRT"; }

std::string rebuild_for(const std::string &target) {
    return "; rebuild it: grd-edge build engine BUNDLE --target " + target;
}

std::string TensorRtVersion::text() const {
    std::string out;
    for (int i = 0; i < parts; ++i) out += (i > 0 ? "." : "") + std::to_string(part[i]);
    return out;
}

TensorRtVersion version_from_text(const char *text) {
    TensorRtVersion out;
    for (const char *at = text; at != nullptr && out.parts < 4 && *at >= '0' && *at <= '9';) {
        char *end = nullptr;
        const long value = std::strtol(at, &end, 10);
        if (value > 99999) break;
        out.part[out.parts++] = static_cast<int>(value);
        if (*end == '\0') return out;
        if (*end != '.') break;
        at = end + 1;
    }
    return TensorRtVersion();
}

TensorRtVersion check_engine_file(TensorRtKind kind, const void *bytes, size_t byte_count) {
    const auto *file = static_cast<const uint8_t *>(bytes);
    const std::string product = product_of(kind);
    if (bytes == nullptr || byte_count < kHeaderBytes)
        fail(GRD_ERR_ENGINE_OPEN, text("the engine file has %zu bytes, which is no ", byte_count) + product +
                                      " engine; build it again: grd-edge build engine");
    const bool is_engine = std::memcmp(file + kMagicAt + 1, "trt", 3) == 0;
    const bool is_rtx = is_engine && file[kMagicAt] == 'v';
    if (!is_engine || is_rtx != (kind == TensorRtKind::kRtx))
        fail(GRD_ERR_ENGINE_OPEN, std::string("the engine file is ") +
                                      (!is_engine ? "no TensorRT engine"
                                       : is_rtx   ? "an engine of TensorRT-RTX"
                                                  : "an engine of classic TensorRT") +
                                      ", expected one of " + product + "; build it again: grd-edge build engine");
    uint64_t size = 0;
    for (size_t i = 8; i-- > 0;) size = size << 8 | file[kSizeAt + i];
    if (kind == TensorRtKind::kRtx && size != byte_count)
        fail(GRD_ERR_ENGINE_OPEN, text("the engine file has %zu bytes but its header says %llu, so it was cut or mixed "
                                       "up; build it again: grd-edge build engine",
                                       byte_count, static_cast<unsigned long long>(size)));
    TensorRtVersion version;
    for (; version.parts < 4; ++version.parts)
        version.part[version.parts] = file[kVersionAt + static_cast<size_t>(version.parts)];
    return version;
}

void check_engine_version(TensorRtKind kind, const grd_engine_desc &desc, const TensorRtVersion &built,
                          const TensorRtVersion &running) {
    const TensorRtVersion said = version_from_text(desc.library_version);
    const TensorRtVersion &of_engine = said.parts > 0 ? said : built;
    /* Engines run with their own release (three numbers; the fourth is the build), and those of TensorRT with later ones
     * where they were built for that. As in grd_edge/engine/fingerprint.py. */
    constexpr int counting = 3;
    int order = 0;
    for (int i = 0; i < counting && i < of_engine.parts && i < running.parts && order == 0; ++i) order = running.part[i] - of_engine.part[i];
    const bool version_compatible = kind == TensorRtKind::kClassic && holds(desc.compatibility, "version");
    if (order == 0 || (version_compatible && order > 0)) return;
    const std::string product = product_of(kind);
    fail(GRD_ERR_ENGINE_MISMATCH, "the engine was built with " + product + " " + of_engine.text() + ", this machine has " +
                                      product + " " + running.text() +
                                      rebuild_for(desc.target != nullptr             ? desc.target
                                                  : kind == TensorRtKind::kRtx ? "rtx"
                                                                                     : "trt"));
}

void check_engine_device(TensorRtKind kind, const grd_engine_desc &desc, int major, int minor,
                         const std::string &device) {
    const char *capabilities = desc.compute_capabilities;
    const std::string here = std::to_string(major) + "." + std::to_string(minor);
    if (capabilities == nullptr || holds(capabilities, here)) return;
    if (kind == TensorRtKind::kClassic && holds(desc.compatibility, "ampere+") && major >= 8) return;
    fail(GRD_ERR_ENGINE_MISMATCH, "the engine was built for compute capability " + std::string(capabilities) +
                                      ", this machine's " + device + " has " + here +
                                      rebuild_for(target_of(kind, major, minor)));
}

} // namespace grd
