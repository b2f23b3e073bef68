/* test_cuda_blocks.cpp - what the CUDA variant does across patches and launches, on the host: strips and batches change no
 * bit, counters end as they began, one workspace serves launches of any size, masks may be empty or whole.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "score/score_emulated.h"

using namespace grd::score;

namespace {

struct Figures {
    std::vector<float> phi, phi_local, least, largest, heat;
    bool operator==(const Figures &other) const {
        const auto same = [](const std::vector<float> &a, const std::vector<float> &b) {
            return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
        };
        return same(phi, other.phi) && same(phi_local, other.phi_local) && same(least, other.least) &&
               same(largest, other.largest) && same(heat, other.heat);
    }
};

/* n patches of c x h x w floats; masks: one for each, or NULL. The workspace is as the launch before has left it. */
Figures score(const float *x, const float *x_hat, const uint8_t *masks, int n, int c, int h, int w, bool box, int local,
              int strips, std::vector<char> *workspace) {
    Figures out = {std::vector<float>(static_cast<size_t>(n)), std::vector<float>(static_cast<size_t>(n)),
                   std::vector<float>(static_cast<size_t>(n)), std::vector<float>(static_cast<size_t>(n)),
                   std::vector<float>(static_cast<size_t>(n * h * w))};
    const int64_t row = w * 4, plane = h * row, image = c * plane;
    Launch job = {};
    job.phi = out.phi.data(), job.phi_local = out.phi_local.data();
    job.residual_min = out.least.data(), job.residual_max = out.largest.data();
    job.scores = 1;
    CHECK(shape_launch(&job, c, h, w, box, local));
    job.x = {reinterpret_cast<const char *>(x), image, plane, row, 4, GRD_FLOAT32};
    job.x_hat = {reinterpret_cast<const char *>(x_hat), image, plane, row, 4, GRD_FLOAT32};
    job.heatmap = {reinterpret_cast<char *>(out.heat.data()), plane, plane, row, 4, GRD_FLOAT32};
    if (masks) job.roi = {reinterpret_cast<const char *>(masks), h * w, h * w, w, 1, GRD_UINT8};
    const size_t bytes = launch_bytes(job, box, n);
    if (workspace->size() < bytes) workspace->resize(bytes, static_cast<char>(0xff));
    split_launch(&job, box, strips);
    CHECK(lay_out_launch(&job, box, n, workspace->data()) <= bytes);
    run_launch(job, box, n);
    int left = 0;
    for (size_t i = 0; i < kCounterBytes; i++) left += (*workspace)[i] != 0;
    CHECK_THAT(left == 0, ("%d bytes of counters are left", left));
    return out;
}

void check_launches(int c, int h, int w, bool box, int local, std::vector<char> *workspace) {
    constexpr int kN = 3;
    const size_t plane = static_cast<size_t>(h * w), image = plane * static_cast<size_t>(c);
    std::vector<float> x(kN * image), x_hat(kN * image);
    std::vector<uint8_t> masks(kN * plane); /* empty, whole, half */
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = static_cast<float>(i * 2654435761u % 1009) / 1009.0f;
        x_hat[i] = x[i] * 0.9f + static_cast<float>(i * 40503u % 97) / 970.0f;
    }
    for (size_t i = plane; i < masks.size(); i++) masks[i] = i < 2 * plane || i % static_cast<size_t>(w) < static_cast<size_t>(w / 2);
    const auto run = [&](int first, int n, const uint8_t *roi, int strips) {
        const size_t at = static_cast<size_t>(first);
        return score(&x[at * image], &x_hat[at * image], roi ? roi + at * plane : nullptr, n, c, h, w, box, local, strips,
                     workspace);
    };
    const Figures all = run(0, kN, nullptr, 1), masked = run(0, kN, masks.data(), 1);
    for (int strips = 2; strips < 12; strips += 3) {
        CHECK_THAT(run(0, kN, nullptr, strips) == all, ("%dx%dx%d: %d strips", c, h, w, strips));
        const Figures again = run(0, kN, masks.data(), strips);
        CHECK_THAT(std::isnan(again.phi[0]) && again.phi[2] == masked.phi[2] && again.phi_local[2] == masked.phi_local[2],
                   ("%dx%dx%d: %d strips, masked", c, h, w, strips));
    }
    for (int i = kN - 1; i >= 0; i--) {
        const Figures alone = run(i, 1, nullptr, 1 + i);
        CHECK_THAT(alone.phi[0] == all.phi[static_cast<size_t>(i)] && alone.phi_local[0] == all.phi_local[static_cast<size_t>(i)],
                   ("%dx%dx%d: patch %d alone", c, h, w, i));
    }
    CHECK(std::isnan(masked.phi[0]) && std::isnan(masked.phi_local[0]) && std::isnan(masked.least[0]) &&
          std::isnan(masked.largest[0]));
    for (size_t i = 0; i < plane; i++)
        if (masked.heat[i] != 0) CHECK(!"the heatmap of an empty mask is 0");
    CHECK(masked.phi[1] == all.phi[1] && masked.phi_local[1] == all.phi_local[1] && masked.least[1] == all.least[1] &&
          masked.largest[1] == all.largest[1]);
    CHECK(std::memcmp(&masked.heat[plane], &all.heat[plane], plane * sizeof(float)) == 0);
}

} // namespace

int main() {
    std::vector<char> workspace(kCounterBytes, 0); /* zeroed once; never again */
    check_launches(1, 256, 256, false, 21, &workspace);
    check_launches(1, 11, 11, false, 21, &workspace);
    check_launches(3, 65, 33, false, 21, &workspace);
    check_launches(1, 150, 65, false, 32, &workspace);
    check_launches(1, 150, 65, false, 1, &workspace);
    check_launches(1, 150, 65, false, 33, &workspace);
    check_launches(1, 63, 600, false, 21, &workspace);
    check_launches(2, 31, 17, true, 21, &workspace);
    check_launches(1, 40, 500, true, 7, &workspace);
    return checks_report();
}
