/* bench_score.cpp - every scoring variant of this CPU against its limits, all in turn in one process.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   bench_score [h w c rounds]        256 256 1 400
 *
 * One thread, FP32, phi + phi_local + heatmap. The limits are the larger of two times, both measured between the
 * variants: 4 maps x 2 passes x 11 taps of fused multiply-adds at the rate of a loop that does nothing else, and a copy
 * of as many bytes as a patch's pixels, its reconstruction's and its heatmap's. Minima, in ms.
 */
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "fma_loop.h"
#include "grd_edge.h"

namespace {

constexpr int64_t kFmaRounds = 20000;

double time_ms(const std::function<void()> &run) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

grd_view view_of(float *data, int64_t c, int64_t h, int64_t w) {
    grd_view view = {};
    view.data = data;
    view.dtype = GRD_FLOAT32;
    view.extent[0] = 1, view.extent[1] = c, view.extent[2] = h, view.extent[3] = w;
    return view;
}

struct Contender {
    std::string name;
    std::function<void()> run;
    double best_ms = HUGE_VAL;
    float phi = 0, phi_local = 0;
    std::vector<char> workspace;
    grd_score_params params = {};
    grd_score_outputs outputs = {};
};

} // namespace

int main(int argc, char **argv) {
    const int64_t h = argc > 1 ? std::atoll(argv[1]) : 256, w = argc > 2 ? std::atoll(argv[2]) : 256;
    const int64_t c = argc > 3 ? std::atoll(argv[3]) : 1, rounds = argc > 4 ? std::atoll(argv[4]) : 400;
    if (h < 11 || w < 11 || c < 1 || rounds < 1 || h > 8192 || w > 8192 || c > 64) {
        std::fprintf(stderr, "bench_score: sizes are 11 to 8192 px and 1 to 64 channels; bench_score [h w c rounds]\n");
        return 2;
    }
    const size_t plane = static_cast<size_t>(h * w), image = plane * static_cast<size_t>(c);
    std::vector<float> x(image), x_hat(image), heatmap(plane);
    std::vector<char> copy_from((2 * image + plane) * sizeof(float) / 2), copy_to(copy_from.size());
    for (size_t i = 0; i < image; ++i) {
        x[i] = static_cast<float>(i * 2654435761u % 4096) / 4096;
        x_hat[i] = 0.95f * x[i] + 0.01f;
    }
    grd_view vx = view_of(x.data(), c, h, w), vy = view_of(x_hat.data(), c, h, w), vh = view_of(heatmap.data(), 1, h, w);

    std::vector<Contender> contenders(2);
    float sink[kLanes];
    contenders[0].name = "fma", contenders[0].run = [&] { fma_loop(sink, kFmaRounds); };
    contenders[1].name = "copy", contenders[1].run = [&] {
        std::memcpy(copy_to.data(), copy_from.data(), copy_from.size()); /* reads and writes: twice its bytes */
    };
    for (int32_t v = 0; const char *name = grd_variant_name(v); ++v)
        if (grd_variant_supported(name)) contenders.emplace_back().name = name;
    for (size_t i = 2; i < contenders.size(); ++i) {
        Contender &one = contenders[i];
        one.params.struct_size = sizeof one.params;
        one.params.variant = one.name.c_str();
        one.workspace.resize(grd_score_workspace_bytes(&one.params, c, h, w));
        one.params.workspace = one.workspace.data(), one.params.workspace_bytes = one.workspace.size();
        one.outputs.struct_size = sizeof one.outputs;
        one.outputs.phi = &one.phi, one.outputs.phi_local = &one.phi_local, one.outputs.heatmap = &vh;
        one.run = [&one, &vx, &vy] {
            if (grd_score_patches(&one.params, &vx, &vy, &one.outputs) != GRD_OK) std::abort();
        };
        one.run();
        const Contender &first = contenders[2];
        if (!(std::fabs(one.phi - first.phi) <= 2e-6f && std::fabs(one.phi_local - first.phi_local) <= 2e-6f)) {
            std::fprintf(stderr, "bench_score: %s scores %g, %g and %s %g, %g; a wrong result is not timed\n",
                         one.name.c_str(), one.phi, one.phi_local, first.name.c_str(), first.phi, first.phi_local);
            return 3;
        }
    }
    for (int64_t round = 0; round < rounds; ++round)
        for (Contender &one : contenders) one.best_ms = std::min(one.best_ms, time_ms(one.run));

    const double fma_rate = kFmaRounds * kChains * kLanes / contenders[0].best_ms; /* a ms */
    const double fmas = 4.0 * 2 * 11 * static_cast<double>((h - 10) * (w - 10) * c);
    const double fma_ms = fmas / fma_rate, limit_ms = std::max(fma_ms, contenders[1].best_ms);
    std::printf("%lldx%lldx%lld: %.1f GFMA/s, so %.4f ms; copy of %zu bytes %.4f ms\n", static_cast<long long>(h),
                static_cast<long long>(w), static_cast<long long>(c), fma_rate / 1e6, fma_ms, 2 * copy_from.size(),
                contenders[1].best_ms);
    for (size_t i = 2; i < contenders.size(); ++i)
        std::printf("%-8s %9.4f ms  %6.1f %% of the limit\n", contenders[i].name.c_str(), contenders[i].best_ms,
                    100 * limit_ms / contenders[i].best_ms);
    return std::isnan(sink[0]) ? 4 : 0;
}
