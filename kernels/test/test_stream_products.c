/* test_stream_products.c - what a stream decides about products and runs, and bundles that are swapped under way.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700
#include "stream_case.h"

#include <math.h>

#include "backend_faults.h"

enum { ALL = (1 << COUNT) - 1, FAILS = -1 };

/* A frame with texture in the cells whose bit is set, which "gain=0.5" finds defective; the same memory for the same cells. */
static grd_view cells_view(unsigned cells) {
    static uint8_t frames[1 << COUNT][H * W];
    static char made[1 << COUNT];
    for (int i = 0; i < H * W && !made[cells]; ++i) {
        const int y = i / W, x = i % W, textured_cell = cells >> (y / PATCH * COLS + x / PATCH) & 1;
        frames[cells][i] = (uint8_t)(textured_cell ? 100 + (y * 31 + x * 17) % 150 : 0);
    }
    made[cells] = 1;
    return grd_view_of_frame(frames[cells], GRD_UINT8, H, W, 1, 0);
}

/* A frame with so many defective patches, or one that fails. */
static grd_stream_frame part_of(int64_t product, int32_t product_frames, int defective) {
    grd_stream_frame frame = frame_of(0, cells_view(defective == FAILS ? 0 : (1u << defective) - 1));
    frame.product = product;
    frame.product_frames = product_frames;
    if (defective == FAILS) frame.view.dtype = GRD_FLOAT32;
    return frame;
}

static grd_stream_result sent(grd_stream *stream, const grd_stream_frame *frame) {
    grd_stream_result result = no_result();
    CHECK(grd_stream_submit(stream, frame) == GRD_OK);
    CHECK(grd_stream_wait(stream, &result, 20e3) == GRD_OK);
    return result;
}

/* Frames of one product after another: the last one decides. */
static void check_products(void) {
    static const struct {
        const char *k;
        int frames[4], count, decision;
    } cases[] = {
        {"\"k\": 1", {0}, 1, GRD_GOOD},
        {"\"k\": 1", {1}, 1, GRD_DEFECTIVE},
        {"\"k\": 1", {0, 0, 0, 0}, 4, GRD_GOOD},
        {"\"k\": 1", {0, 0, 1, 0}, 4, GRD_DEFECTIVE},
        {"\"k\": 3", {1, 1}, 2, GRD_GOOD},
        {"\"k\": 3", {1, 1, 1}, 3, GRD_DEFECTIVE},
        {"\"k\": 8", {6}, 1, GRD_UNDECIDED}, /* fewer patches than k */
        {"\"k\": 8", {6, 1}, 2, GRD_GOOD},
        {"\"k\": 8", {6, 2}, 2, GRD_DEFECTIVE},
        {"\"k\": 1", {FAILS}, 1, GRD_NOT_INSPECTED},
        {"\"k\": 1", {0, FAILS, 0}, 3, GRD_NOT_INSPECTED},
        {"\"k\": 1", {1, FAILS}, 2, GRD_DEFECTIVE}, /* whatever the other shows */
        {"\"k\": 3", {2, FAILS, 1}, 3, GRD_DEFECTIVE},
        {"\"k\": 8", {6, FAILS}, 2, GRD_NOT_INSPECTED},
        {"\"k\": 3", {FAILS, FAILS}, 2, GRD_NOT_INSPECTED},
    };
    const grd_stream_params params = params_of_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        grd_bundle *bundle = bundle_of("gain=0.5", "\"k\": 1", cases[i].k);
        grd_stream *stream = opened_stream(bundle, &params);
        int defective = 0, missing = 0;
        for (int f = 0; f < cases[i].count; ++f) {
            const grd_stream_frame frame = part_of(7, cases[i].count, cases[i].frames[f]);
            const grd_stream_result got = sent(stream, &frame);
            const int last = f + 1 == cases[i].count;
            defective += cases[i].frames[f] == FAILS ? 0 : cases[i].frames[f];
            missing += cases[i].frames[f] == FAILS;
            CHECK(got.product == 7 && got.product_frames == f + 1 && got.product_missing == missing &&
                  got.product_defective_count == defective && got.product_complete == last);
            if (last)
                CHECK_THAT(got.product_decision == cases[i].decision,
                           ("case %d: decision %d", (int)i, (int)got.product_decision));
            CHECK(got.run_complete == 0);
        }
        grd_stream_close(stream);
        grd_bundle_close(bundle);
    }
    write_bundle("gain=0.5", NULL, NULL, NULL, NULL, NULL); /* no thresholds */
    grd_bundle *bundle = opened_bundle();
    grd_stream *stream = opened_stream(bundle, &params);
    for (int fails = 0; fails < 2; ++fails) {
        grd_stream_frame frame = part_of(9, 2, 6);
        CHECK(sent(stream, &frame).decision == GRD_UNDECIDED);
        frame = part_of(9, 2, fails ? FAILS : 6);
        const grd_stream_result got = sent(stream, &frame);
        CHECK(got.product_complete && got.product_decision == (fails ? GRD_NOT_INSPECTED : GRD_UNDECIDED));
    }
    CHECK(stats_of(stream).undecided == 3);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

static void check_runs(void) {
    enum { G = 0, D = 1, N = FAILS };
    static const struct {
        const char *agreement;
        int products[10], count, decision;
    } cases[] = {
        {"0.7", {G}, 1, GRD_GOOD},
        {"0.7", {D}, 1, GRD_DEFECTIVE},
        {"0.7", {N}, 1, GRD_INCONSISTENT}, /* it agrees with neither side */
        {"0.7", {G, G, G, D, G, G, D, G, G, D}, 10, GRD_GOOD}, /* 7 of 10, exactly */
        {"0.7", {G, G, G, D, D, G, D, G, G, D}, 10, GRD_INCONSISTENT},
        {"0.7", {D, D, D, G, D, N, D, G, D, D}, 10, GRD_DEFECTIVE},
        {"0.7", {D, D, D, N, D, N, D, N, D, N}, 10, GRD_INCONSISTENT},
        {"0.7", {G, G, N}, 3, GRD_INCONSISTENT},
        {"1.0", {G, G, G, D}, 4, GRD_INCONSISTENT},
        {"1.0", {D, D, D, D}, 4, GRD_DEFECTIVE},
        {"0.51", {G, D}, 2, GRD_INCONSISTENT},
        {"0.51", {G, D, D}, 3, GRD_DEFECTIVE},
    };
    const grd_stream_params params = params_of_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        grd_bundle *bundle = bundle_of("gain=0.5", "0.7", cases[i].agreement);
        grd_stream *stream = opened_stream(bundle, &params);
        int defective = 0;
        for (int p = 0; p < cases[i].count; ++p) {
            /* Two frames each, of which the second decides. */
            for (int f = 0; f < 2; ++f) {
                grd_stream_frame frame = part_of(p, 2, f == 0 ? 0 : cases[i].products[p]);
                frame.run = -3, frame.run_products = cases[i].count;
                const grd_stream_result got = sent(stream, &frame);
                const int last = f == 1 && p + 1 == cases[i].count;
                CHECK(got.run == -3 && got.run_complete == last);
                if (f == 0) continue;
                defective += cases[i].products[p] == D;
                CHECK(got.product_complete && got.run_products == p + 1 && got.run_defective == defective);
                if (last)
                    CHECK_THAT(got.run_decision == cases[i].decision, ("case %d: %d", (int)i, (int)got.run_decision));
            }
        }
        grd_stream_close(stream);
        grd_bundle_close(bundle);
    }
    grd_bundle *bundle = bundle_of("gain=0.5", "\"k\": 1", "\"k\": 8");
    grd_stream *stream = opened_stream(bundle, &params);
    for (int p = 0; p < 2; ++p) { /* one product alone has too few patches: nothing is said of the run */
        grd_stream_frame frame = part_of(p, 1, p == 0 ? 6 : FAILS);
        frame.run_products = 2;
        const grd_stream_result got = sent(stream, &frame);
        CHECK(got.run_complete == p && (p == 0 || got.run_decision == GRD_UNDECIDED));
    }
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* The definition once more, without a thought for memory. Source: docs/method.md, section 7. */
typedef struct tally {
    int frames, want, missing, patches, defective, run;
} tally;
typedef struct run_tally {
    int products, want, good, defective, undecided;
} run_tally;

enum { PRODUCTS = 400, RUNS = PRODUCTS, OPEN = 12 };

static int product_decision(const tally *t, int k) {
    if (t->defective >= k) return GRD_DEFECTIVE;
    if (t->missing > 0) return GRD_NOT_INSPECTED;
    return t->patches >= k ? GRD_GOOD : GRD_UNDECIDED;
}

static int run_decision(const run_tally *t) {
    if (t->undecided > 0) return GRD_UNDECIDED;
    if ((double)t->good / t->products >= 0.7) return GRD_GOOD;
    return (double)t->defective / t->products >= 0.7 ? GRD_DEFECTIVE : GRD_INCONSISTENT;
}

static int compare_result(const grd_stream_result *got, tally *product, run_tally *runs, int defective, int k) {
    run_tally *run = &runs[product->run];
    ++product->frames;
    product->missing += defective == FAILS;
    product->defective += defective == FAILS ? 0 : defective;
    product->patches += defective == FAILS ? 0 : COUNT;
    int wrong = got->product_frames != product->frames || got->product_missing != product->missing ||
                got->product_defective_count != product->defective ||
                got->product_complete != (product->frames == product->want);
    if (product->frames < product->want) return wrong + (got->run_complete != 0);
    const int decision = product_decision(product, k);
    ++run->products;
    run->good += decision == GRD_GOOD;
    run->defective += decision == GRD_DEFECTIVE;
    run->undecided += decision == GRD_UNDECIDED;
    wrong += got->product_decision != decision || got->run_products != run->products ||
             got->run_defective != run->defective || got->run_complete != (run->products == run->want);
    return wrong + (run->products == run->want && got->run_decision != run_decision(run));
}

/* Products and runs that take turns, at random. */
static void check_interleaved(void) {
    static tally products[PRODUCTS];
    static run_tally runs[RUNS];
    static int defectives[PRODUCTS * 4];
    static const int ks[] = {1, 3, 8};
    for (int kind = 0; kind < 3; ++kind) {
        char k[16];
        snprintf(k, sizeof k, "\"k\": %d", ks[kind]);
        grd_bundle *bundle = bundle_of("gain=0.5", "\"k\": 1", k);
        grd_stream_params params = params_of_stream();
        params.threads = 3;
        params.open_products = OPEN;
        params.queue_depth = 16;
        grd_stream *stream = opened_stream(bundle, &params);
        uint64_t number = 0;
        int open[OPEN], submitted = 0, taken = 0, wrong = 0, next = 0, complete = 0, run = 0;
        memset(products, 0, sizeof products);
        memset(runs, 0, sizeof runs);
        for (int i = 0; i < PRODUCTS; ++i) {
            /* Runs of 1 to 7 products, one after another; products of different runs overlap. */
            if (runs[run].want == 0) runs[run].want = 1 + (int)(7 * fault_chance(1, 1, number++));
            products[i].want = 1 + (int)(4 * fault_chance(1, 2, number++));
            products[i].run = run;
            if (++runs[run].products == runs[run].want) runs[run++].products = 0;
        }
        if (run < RUNS) runs[run].want = runs[run].products, runs[run].products = 0;
        int sent_frames[PRODUCTS] = {0};
        for (int i = 0; i < OPEN; ++i) open[i] = next++;
        for (int left = OPEN; left > 0;) {
            const int at = (int)(left * fault_chance(1, 3, number++)), product = open[at];
            const double chance = fault_chance(1, 4, number++);
            const int defective = chance < 0.08 ? FAILS : chance < 0.7 ? 0 : (int)(7 * fault_chance(1, 5, number++));
            grd_stream_frame frame = part_of(product, products[product].want, defective);
            frame.id = submitted, frame.run = products[product].run, frame.run_products = runs[frame.run].want;
            defectives[submitted++] = defective;
            CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
            if (++sent_frames[product] == products[product].want) {
                if (next < PRODUCTS) open[at] = next++;
                else open[at] = open[--left];
            }
            grd_stream_result got = no_result();
            while ((left == 0 ? grd_stream_wait(stream, &got, taken < submitted ? 20e3 : 0)
                              : grd_stream_poll(stream, &got)) == GRD_OK) {
                wrong += got.id != taken;
                wrong += compare_result(&got, &products[got.product], runs, defectives[taken], ks[kind]);
                complete += got.product_complete;
                ++taken;
            }
        }
        CHECK_THAT(wrong == 0 && taken == submitted && complete == PRODUCTS,
                   ("k %d: %d wrong, %d of %d frames, %d products", ks[kind], wrong, taken, submitted, complete));
        CHECK(stats_of(stream).products_closed == 0);
        grd_stream_close(stream);
        grd_bundle_close(bundle);
    }
}

/* More open products than there is room for: the oldest is given up. */
static void check_too_many_open(void) {
    grd_bundle *bundle = bundle_of("gain=0.5", NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.open_products = 2;
    grd_stream *stream = opened_stream(bundle, &params);
    static const int64_t products[] = {1, 2, 3, 2, 1, 3, 1}; /* of two frames each; 3 pushes 1 out */
    static const int frames[] = {1, 1, 1, 2, 1, 2, 2}, closed[] = {0, 0, 1, 1, 1, 1, 1};
    for (int i = 0; i < 7; ++i) {
        const grd_stream_frame frame = part_of(products[i], 2, 0);
        const grd_stream_result got = sent(stream, &frame);
        CHECK_THAT(got.product_frames == frames[i] && got.product_complete == (frames[i] == 2), ("frame %d", i));
        CHECK(stats_of(stream).products_closed == closed[i]);
    }
    for (int64_t run = 0; run < 3; ++run) { /* and so with runs */
        grd_stream_frame frame = part_of(0, 1, 0);
        frame.run = run, frame.run_products = 2;
        CHECK(sent(stream, &frame).run_products == 1);
    }
    CHECK(stats_of(stream).products_closed == 2);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

typedef struct swap_call {
    pthread_t thread;
    grd_stream *stream;
    const grd_bundle *bundle;
    grd_status status;
    int done;
} swap_call;

static void *run_swap(void *data) {
    swap_call *self = data;
    self->status = grd_stream_swap(self->stream, self->bundle);
    __atomic_store_n(&self->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void begin_swap(swap_call *self, grd_stream *stream, const grd_bundle *bundle) {
    memset(self, 0, sizeof *self);
    self->stream = stream, self->bundle = bundle;
    CHECK(pthread_create(&self->thread, NULL, run_swap, self) == 0);
}

/* Frames submitted before finish by the old thresholds, those after by the new ones, and nothing waits for the new engine. */
static void check_swap(void) {
    grd_bundle *old = bundle_of("gate=1 gain=0.5", NULL, NULL);
    grd_bundle *fresh = bundle_of("gate=2 gain=0.5", "0.0625", "2");
    grd_stream_params params = params_of_stream();
    params.frame_h = H, params.frame_w = W, params.frame_c = 1;
    params.queue_depth = 16;
    faults_shut(1, 0);
    grd_stream *stream = opened_stream(old, &params);
    const faults_counts before = faults_read();
    faults_shut(2, 1);
    swap_call swap;
    begin_swap(&swap, stream, fresh);
    WAIT_UNTIL(faults_held(2) == 1); /* it is being prepared */
    CHECK(submit(stream, 0) == GRD_OK);
    CHECK(expect(stream, 0, GRD_SCORED).generation == 0 && stats_of(stream).generation == 0);
    faults_shut(1, 1);
    for (int64_t id = 1; id < 4; ++id) CHECK(submit(stream, id) == GRD_OK);
    faults_shut(2, 0);
    WAIT_UNTIL(stats_of(stream).generation == 1);
    for (int64_t id = 4; id < 7; ++id) CHECK(submit(stream, id) == GRD_OK);
    sleep_ms(20);
    CHECK(!__atomic_load_n(&swap.done, __ATOMIC_ACQUIRE)); /* the old bundle is still needed */
    expect_nothing(stream); /* results keep their order */
    faults_shut(1, 0);
    for (int64_t id = 1; id < 7; ++id) {
        const grd_stream_result got = expect(stream, id, GRD_SCORED);
        CHECK(got.generation == (id < 4 ? 0 : 1) && got.threshold == (id < 4 ? 0.0625f : 2.0f));
        CHECK(got.decision == (id < 4 ? GRD_DEFECTIVE : GRD_GOOD));
    }
    CHECK(pthread_join(swap.thread, NULL) == 0 && swap.status == GRD_OK);
    const faults_counts after = faults_read();
    CHECK(after.opened - before.opened == 1 && after.closed - before.closed == 1);
    grd_bundle_close(old); /* needed no more */
    CHECK(submit(stream, 7) == GRD_OK);
    CHECK(expect(stream, 7, GRD_SCORED).generation == 1);
    grd_stream_close(stream);
    grd_bundle_close(fresh);
}

/* Bundles that cannot take over leave the old one in charge. */
static void check_failed_swaps(void) {
    grd_bundle *old = bundle_of("gain=0.5", NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.frame_h = H, params.frame_w = W, params.frame_c = 1;
    grd_stream *stream = opened_stream(old, &params);
    static const struct {
        const char *engine, *from, *to;
        grd_status expected;
    } cases[] = {
        {"refuse=1", NULL, NULL, GRD_ERR_ENGINE_MISMATCH},
        {"gain=1", "\"channels\": 1", "\"channels\": 3", GRD_ERR_FRAME_CHANNELS},
        {"gain=1", "\"patch_h\": 12", "\"patch_h\": 25", GRD_ERR_FRAME_SIZE},
        {"gain=1", "{\"cpu\": \"fp32\"}", "{}", GRD_ERR_BUNDLE_ENGINE},
        {"gain=1", "\"backend\": \"faults\"", "\"backend\": \"absent\"", GRD_ERR_BACKEND_MISSING},
        {"gain=0.5", NULL, NULL, GRD_OK},
        {"refuse=1", NULL, NULL, GRD_ERR_ENGINE_MISMATCH},
    };
    int generation = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        write_bundle(cases[i].engine, cases[i].from, cases[i].to, kDecisionJson, NULL, NULL);
        grd_bundle *bundle = opened_bundle();
        const grd_status status = grd_stream_swap(stream, bundle);
        CHECK_THAT(status == cases[i].expected, ("case %d: %s: %s", (int)i, grd_status_name(status), grd_stream_message(stream)));
        CHECK(status == GRD_OK || grd_stream_message(stream)[0] != '\0');
        generation += status == GRD_OK;
        CHECK(stats_of(stream).generation == generation);
        CHECK(submit(stream, (int64_t)i) == GRD_OK);
        const grd_stream_result got = expect(stream, (int64_t)i, GRD_SCORED);
        CHECK(got.generation == generation && got.decision == GRD_DEFECTIVE);
        if (status != GRD_OK) {
            grd_bundle_close(bundle);
            continue;
        }
        grd_bundle_close(old);
        old = bundle;
    }
    grd_stream_close(stream);
    grd_bundle_close(old);
}

/* Calls from several threads take turns, and the grid is that of the bundle in charge. */
static void check_swaps_take_turns(void) {
    grd_bundle *old = bundle_of("gain=0.5", NULL, NULL);
    write_bundle("gain=0.5 slow_open_ms=20", "\"patch_h\": 12, \"patch_w\": 12, \"stride_y\": 12, \"stride_x\": 12",
                 "\"patch_h\": 24, \"patch_w\": 36, \"stride_y\": 24, \"stride_x\": 36", kDecisionJson, NULL, NULL);
    grd_bundle *fresh = opened_bundle();
    const grd_stream_params params = params_of_stream();
    grd_stream *stream = opened_stream(old, &params);
    grd_grid grid = {0};
    grid.struct_size = sizeof grid;
    CHECK(grd_stream_grid(stream, H, W, &grid) == GRD_OK && grid.count == COUNT);
    swap_call swaps[4];
    for (int i = 0; i < 4; ++i) begin_swap(&swaps[i], stream, fresh);
    for (int64_t id = 0; id < 50; ++id) {
        CHECK(submit(stream, id) == GRD_OK);
        const grd_stream_result got = expect(stream, id, GRD_SCORED);
        CHECK(got.patch_count == (got.generation == 0 ? COUNT : 1));
        sleep_ms(1);
    }
    for (int i = 0; i < 4; ++i) CHECK(pthread_join(swaps[i].thread, NULL) == 0 && swaps[i].status == GRD_OK);
    CHECK(stats_of(stream).generation == 4);
    CHECK(grd_stream_grid(stream, H, W, &grid) == GRD_OK && grid.count == 1);
    grd_stream_close(stream);
    grd_bundle_close(fresh);
    grd_bundle_close(old);
}

int main(void) {
    watch(240);
    check_products();
    check_runs();
    check_interleaved();
    check_too_many_open();
    check_swap();
    check_failed_swaps();
    check_swaps_take_turns();
    remove_tree(scratch_folder());
    return checks_report();
}
