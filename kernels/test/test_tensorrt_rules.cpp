/* test_tensorrt_rules.cpp - engine files, versions and devices that fit, and the sentence for those that do not.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "failure.h"
#include "tensorrt_rules.h"

namespace {

using grd::TensorRtKind;
using grd::TensorRtVersion;

constexpr TensorRtKind kClassic = TensorRtKind::kClassic, kRtx = TensorRtKind::kRtx;

/* "" when it fits, else the sentence. */
std::string refusal(grd_status expected, const std::function<void()> &check) {
    try {
        check();
        return "";
    } catch (const grd::Failure &failure) {
        CHECK_THAT(failure.status == expected, ("%s", grd_status_name(failure.status)));
        CHECK(failure.message.find('\n') == std::string::npos);
        return failure.message;
    }
}

bool holds(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

std::vector<uint8_t> engine_file(const char *magic, size_t bytes, size_t said) {
    std::vector<uint8_t> file(bytes, 0xa5);
    if (bytes >= 28) {
        std::memcpy(file.data(), magic, 4);
        for (size_t i = 0; i < 8; ++i) file[16 + i] = static_cast<uint8_t>(said >> (8 * i));
        const uint8_t version[4] = {1, 7, 1, 116};
        std::memcpy(&file[24], version, 4);
    }
    return file;
}

std::string file_refusal(TensorRtKind kind, const std::vector<uint8_t> &file) {
    return refusal(GRD_ERR_ENGINE_OPEN, [&] { grd::check_engine_file(kind, file.data(), file.size()); });
}

void check_files() {
    const auto file = engine_file("vtrt", 65, 65);
    CHECK(grd::check_engine_file(kRtx, file.data(), file.size()).text() == "1.7.1.116");
    CHECK(file_refusal(kClassic, engine_file("ftrt", 64, 1)).empty()); /* its size is the library's business */
    CHECK(file_refusal(kClassic, engine_file("ptrt", 4096, 1)).empty());
    for (size_t bytes : {0, 1, 27, 28, 63})
        for (TensorRtKind kind : {kClassic, kRtx})
            CHECK(holds(file_refusal(kind, engine_file("vtrt", bytes, bytes)), (std::to_string(bytes) + " bytes").c_str()));
    CHECK(holds(file_refusal(kRtx, engine_file("vtrt", 64, 65)), "has 64 bytes but its header says 65"));
    CHECK(holds(file_refusal(kRtx, engine_file("vtrt", 66, 65)), "has 66 bytes but its header says 65"));
    CHECK(holds(file_refusal(kRtx, engine_file("ftrt", 64, 64)), "classic TensorRT, expected one of TensorRT-RTX"));
    CHECK(holds(file_refusal(kClassic, engine_file("vtrt", 64, 64)), "TensorRT-RTX, expected one of TensorRT;"));
    CHECK(holds(file_refusal(kRtx, engine_file("\x08\x07\x12\x07", 64, 64)), "no TensorRT engine")); /* ONNX */
    CHECK(!refusal(GRD_ERR_ENGINE_OPEN, [] { grd::check_engine_file(kRtx, nullptr, 100); }).empty());
}

void check_version_texts() {
    for (const char *good : {"1.7.1.116", "10.3", "11", "0.0.0.0"}) CHECK(grd::version_from_text(good).text() == good);
    for (const char *bad : {"", "x", "1.", ".1", "1..2", "1.2.3.4.5", "1.-2", "1.2 ", "100000.1", "99999999999999999999"})
        CHECK_THAT(grd::version_from_text(bad).parts == 0, ("%s", bad));
    CHECK(grd::version_from_text(nullptr).parts == 0);
}

void check_versions() {
    static const struct {
        TensorRtKind kind;
        const char *built, *running, *compatibility;
        bool fits;
    } cases[] = {
        {kRtx, "1.7.1.116", "1.7.1.116", "none", true},
        {kRtx, "1.7.1.116", "1.7.1.117", nullptr, true},
        {kRtx, "1.7.1.116", "1.7.2.1", nullptr, false},
        {kRtx, "1.7.1.116", "1.8.0.1", "version", false},
        {kRtx, "1.7.1.116", "1.6.1.1", nullptr, false},
        {kClassic, "10.3.0.26", "10.3.0.30", "none", true},
        {kClassic, "10.3.0.26", "10.3.1", "none", false},
        {kClassic, "10.3.0.26", "10.3.1", "version", true},
        {kClassic, "10.3", "10.3.0", nullptr, true},
        {kClassic, "10.3.0.26", "10.4.0", "none", false},
        {kClassic, "10.3.0.26", "10.4.0", "version", true},
        {kClassic, "10.3.0.26", "11.0.0", "version ampere+", true},
        {kClassic, "10.3.0.26", "10.2.0", "version", false},
        {kClassic, "11.0.0", "10.16.0", "version", false},
        {kClassic, "10.3.0.26", "10.4.0", "versions", false},
    };
    for (const auto &one : cases)
        for (bool said : {true, false}) { /* by the bundle, by the file alone */
            grd_engine_desc desc = {};
            desc.library_version = said ? one.built : nullptr;
            desc.compatibility = one.compatibility;
            desc.target = "a-target";
            const TensorRtVersion built = grd::version_from_text(said ? "9.9.9.9" : one.built);
            const std::string message = refusal(GRD_ERR_ENGINE_MISMATCH, [&] {
                grd::check_engine_version(one.kind, desc, built, grd::version_from_text(one.running));
            });
            CHECK_THAT(message.empty() == one.fits, ("%s with %s: %s", one.built, one.running, message.c_str()));
            CHECK(one.fits || (holds(message, one.built) && holds(message, one.running) &&
                               holds(message, "grd-edge build engine BUNDLE --target a-target")));
        }
    grd_engine_desc desc = {};
    const std::string message = refusal(GRD_ERR_ENGINE_MISMATCH, [&] {
        grd::check_engine_version(kRtx, desc, grd::version_from_text("1.6.0.1"), grd::version_from_text("1.7.1.116"));
    });
    CHECK(holds(message, "--target rtx"));
}

void check_devices() {
    static const struct {
        TensorRtKind kind;
        const char *capabilities, *compatibility;
        int major, minor;
        const char *target; /* NULL: fits */
    } cases[] = {
        {kRtx, "8.9", "none", 8, 9, nullptr},
        {kRtx, "8.0 8.6 8.9 12.0", "none", 12, 0, nullptr},
        {kRtx, "8.0 8.6 8.9 12.0", "none", 8, 6, nullptr},
        {kRtx, nullptr, nullptr, 3, 0, nullptr},
        {kRtx, "8.9", "none", 8, 6, "rtx-ampere"},
        {kRtx, "18.9 8.99", "none", 8, 9, "rtx-ada"},
        {kRtx, "8.9", "ampere+", 12, 0, "rtx-blackwell"},
        {kRtx, "8.9", "none", 7, 5, "rtx-turing"},
        {kRtx, "8.9", "none", 9, 0, "rtx"},
        {kClassic, "8.7", "none", 8, 7, nullptr},
        {kClassic, "8.6", "ampere+", 9, 0, nullptr},
        {kClassic, "8.6", "version ampere+", 8, 7, nullptr},
        {kClassic, "8.6", "ampere+", 7, 5, "trt"},
        {kClassic, "8.6", "same_compute_capability", 8, 7, "jetson-orin"},
        {kClassic, "8.7", "none", 11, 0, "jetson-thor"},
        {kClassic, "8.7", "none", 10, 1, "jetson-thor"},
        {kClassic, "", "none", 8, 6, "trt"},
    };
    for (const auto &one : cases) {
        grd_engine_desc desc = {};
        desc.compute_capabilities = one.capabilities;
        desc.compatibility = one.compatibility;
        const std::string message = refusal(GRD_ERR_ENGINE_MISMATCH, [&] {
            grd::check_engine_device(one.kind, desc, one.major, one.minor, "Some GPU");
        });
        const std::string here = std::to_string(one.major) + "." + std::to_string(one.minor);
        CHECK_THAT(message.empty() == (one.target == nullptr), ("%s: %s", here.c_str(), message.c_str()));
        if (one.target == nullptr || message.empty()) continue;
        const std::string command = std::string("--target ") + one.target;
        CHECK_THAT(message.size() > command.size() && message.rfind(command) == message.size() - command.size(),
                   ("%s", message.c_str()));
        CHECK(holds(message, one.capabilities) && holds(message, ("Some GPU has " + here).c_str()));
    }
}

} // namespace

int main() {
    check_files();
    check_version_texts();
    check_versions();
    check_devices();
    return checks_report();
}
