/* test_graph_cache.cpp - capture and replay against calls that record what happens and fail where told to.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <string>
#include <vector>

#include "check.h"
#include "failure.h"
#include "graph_cache.h"

namespace {

using grd::GraphCache;
using grd::GraphState;

/* What happened, a letter each: S synchronize, B begin, E end, I instantiate, L launch, g graph destroyed, x executable
 * destroyed, w work that ran at once, c work that was captured. */
std::string happened;
std::string failing; /* letters of the calls that fail */
bool capturing;
int graphs, executables;

bool fails(char call) {
    happened += call;
    return failing.find(call) != std::string::npos;
}

const grd::GraphCalls kCalls = {
    [](void *) { return fails('S') ? 7 : 0; },
    [](void *) {
        if (fails('B')) return 7;
        capturing = true;
        return 0;
    },
    [](void *, void **graph) {
        capturing = false;
        if (fails('E')) return 7;
        ++graphs;
        *graph = &graphs;
        return 0;
    },
    [](void **executable, void *) {
        if (fails('I')) return 7;
        ++executables;
        *executable = &executables;
        return 0;
    },
    [](void *, void *) { return fails('L') ? 7 : 0; },
    [](void *) {
        --graphs;
        happened += 'g';
    },
    [](void *) {
        --executables;
        happened += 'x';
    },
    [](int error) { return error == 7 ? "seven" : "no error"; },
};

/* Runs key once; returns what happened, '!' for a Failure that passed. */
std::string ran(GraphCache *cache, size_t key) {
    happened.clear();
    try {
        cache->run(key, nullptr, [](void *) {
            const bool bad = fails(capturing ? 'c' : 'w');
            if (bad) grd::fail(GRD_ERR_ENGINE_RUN, "told to fail");
        });
    } catch (const grd::Failure &failure) {
        CHECK(failure.message == "told to fail" || failure.message == "cudaStreamSynchronize: seven");
        happened += '!';
    }
    CHECK(!capturing && graphs == 0);
    return happened;
}

void check_states() {
    GraphCache cache(kCalls, 3);
    CHECK(cache.state(1) == GraphState::kNever && cache.reason(1).empty());
    CHECK(ran(&cache, 1) == "wSBcEIg");
    CHECK(cache.state(1) == GraphState::kCaptured && cache.state(0) == GraphState::kNever && executables == 1);
    for (int i = 0; i < 3; ++i) CHECK(ran(&cache, 1) == "L");
    CHECK(ran(&cache, 2) == "wSBcEIg" && executables == 2);
    cache.invalidate();
    CHECK(cache.state(1) == GraphState::kWarm && cache.state(0) == GraphState::kNever && executables == 0);
    CHECK(ran(&cache, 1) == "BcEIgL"); /* it has run before: captured, and launched for this very call */
    CHECK(ran(&cache, 1) == "L" && cache.state(2) == GraphState::kWarm);
    CHECK(ran(&cache, 0) == "wSBcEIg" && executables == 2);
}

/* Each call that can fail, on a first use and on a use after invalidation: what happens, and what is said. */
void check_failures() {
    static const struct {
        const char *failing, *first, *again, *reason;
    } cases[] = {
        {"B", "wSB", "Bw", "cudaStreamBeginCapture: seven"},
        {"c", "wSBcEg", "BcEgw", "told to fail"},
        {"E", "wSBcE", "BcEw", "cudaStreamEndCapture: seven"},
        {"cE", "wSBcE", "BcEw", "told to fail"},
        {"I", "wSBcEIg", "BcEIgw", "cudaGraphInstantiate: seven"},
    };
    for (const auto &one : cases) {
        GraphCache cache(kCalls, 2);
        CHECK(ran(&cache, 1) == "wSBcEIg");
        cache.invalidate();
        failing = one.failing;
        CHECK_THAT(ran(&cache, 0) == one.first, ("%s: %s", one.failing, happened.c_str()));
        CHECK_THAT(ran(&cache, 1) == one.again, ("%s: %s", one.failing, happened.c_str()));
        failing.clear();
        for (size_t key = 0; key < 2; ++key) {
            CHECK(cache.state(key) == GraphState::kRefused);
            CHECK_THAT(cache.reason(key) == one.reason, ("%s", cache.reason(key).c_str()));
            CHECK(ran(&cache, key) == "w"); /* it stays that way */
        }
        cache.invalidate();
        CHECK(cache.state(0) == GraphState::kRefused && ran(&cache, 0) == "w");
    }
    CHECK(executables == 0);

    GraphCache cache(kCalls, 1);
    failing = "w"; /* work that fails is tried afresh */
    CHECK(ran(&cache, 0) == "w!" && cache.state(0) == GraphState::kNever);
    failing = "S"; /* so is work whose failure shows up later */
    CHECK(ran(&cache, 0) == "wS!" && cache.state(0) == GraphState::kNever);
    failing.clear();
    CHECK(ran(&cache, 0) == "wSBcEIg" && executables == 1);
    failing = "L"; /* a graph that does not launch: once by hand, and from then on */
    CHECK(ran(&cache, 0) == "Lxw" && executables == 0 && cache.reason(0) == "cudaGraphLaunch: seven");
    failing = "w";
    CHECK(ran(&cache, 0) == "w!" && cache.state(0) == GraphState::kRefused);
    failing.clear();
    CHECK(ran(&cache, 0) == "w");
}

void check_off() {
    GraphCache cache(kCalls, 2, "told not to");
    CHECK(ran(&cache, 0) == "w" && ran(&cache, 0) == "w" && ran(&cache, 1) == "w");
    CHECK(cache.state(0) == GraphState::kRefused && cache.reason(1) == "told not to");
}

} // namespace

int main() {
    check_states();
    check_failures();
    check_off();
    CHECK(executables == 0 && graphs == 0);
    return checks_report();
}
