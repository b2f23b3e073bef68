/* stream_faults.c - everything goes wrong at random, in every overload policy: no frame is lost or doubled, every count
 * holds, nothing hangs, and what comes back is right.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   stream_faults [submissions per policy]
 *
 * Several producers submit frames of random sizes and deadlines, some too small; two consumers take the results; one
 * thread swaps bundles, some of which do not open; one reads the counts all the time. */
#define _XOPEN_SOURCE 700
#include "stream_case.h"

#include <math.h>

#include "backend_faults.h"

enum { PRODUCERS = 3, CONSUMERS = 2, SLOTS = 96, CAPACITY = 80, OUTCOMES = 5, SWAPS = 4096 };
/* Of the two bundles that take turns. */
static const double kNan = 0.02, kWrong = 0.03;
static const char kEngine[] = "seed=%d errors=0.04 stalls=0.02 stall_ms=3 nan=0.02 wrong=0.03 call_us=20 slow_open_ms=%d";

/* A frame of the caller's: free, or with the stream. */
typedef struct slot {
    int with_stream;
    int64_t id;
    int too_small;
    grd_stream_frame frame;
    uint8_t pixels[H * W];
    grd_patch_result patches[COUNT];
} slot;

static struct {
    grd_stream *stream;
    int64_t submissions; /* of each producer */
    int policy;
    slot slots[SLOTS];
    pthread_mutex_t lock; /* of what follows, and of CHECK */
    unsigned char *back;  /* by id: how often it came back */
    int64_t submitted, taken, refused, outcomes[OUTCOMES], shared, swapped;
    int producing, over;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER};

#define CHECK_LOCKED(condition, explanation) \
    do { \
        pthread_mutex_lock(&all.lock); \
        CHECK_THAT(condition, explanation); \
        pthread_mutex_unlock(&all.lock); \
    } while (0)

static void start(int refused) { CHECK_LOCKED(refused == 0, ("no thread: %d", refused)); }

static int is_over(void) { return __atomic_load_n(&all.over, __ATOMIC_ACQUIRE); }

static double chance(uint64_t *state) { return fault_chance(99, 7, (*state)++); }

static slot *take_slot(void) {
    for (;;) {
        pthread_mutex_lock(&all.lock);
        for (int i = 0; i < SLOTS; ++i)
            if (!all.slots[i].with_stream) {
                all.slots[i].with_stream = 1;
                pthread_mutex_unlock(&all.lock);
                return &all.slots[i];
            }
        pthread_mutex_unlock(&all.lock);
        sleep_ms(0.1);
    }
}

/* Every patch of a frame begins with a tag of its own, and is never black. */
static uint32_t tag_of_patch(int64_t id, int patch) { return (uint32_t)(id * COUNT + patch) << 8 | 0x55; }

static void fill_slot(slot *self, int64_t id, uint64_t *state) {
    const int64_t h = PATCH * (1 + (int64_t)(ROWS * chance(state))), w = PATCH * (1 + (int64_t)(COLS * chance(state)));
    const double late = chance(state);
    self->id = id;
    self->too_small = chance(state) < 0.03;
    for (int64_t i = 0; i < h * w; ++i) self->pixels[i] = (uint8_t)(i * 7 + id);
    for (int patch = 0; patch < h * w / PATCH / PATCH; ++patch) {
        uint8_t *corner = self->pixels + patch / (w / PATCH) * PATCH * w + patch % (w / PATCH) * PATCH;
        for (int i = 0; i < 4; ++i) corner[i] = (uint8_t)(tag_of_patch(id, patch) >> 8 * i);
    }
    self->frame = frame_of(id, grd_view_of_frame(self->pixels, GRD_UINT8, self->too_small ? PATCH - 1 : h, w, 1, w));
    self->frame.user = self;
    self->frame.patches = self->patches;
    self->frame.patch_capacity = COUNT;
    self->frame.deadline_ms = late < 0.3 ? -1 : late < 0.6 ? 0.05 + chance(state) : 0; /* else that of the stream */
    memset(self->patches, 0x5a, sizeof self->patches);
}

static void *produce(void *number) {
    const int64_t first = (int64_t)(intptr_t)number * all.submissions;
    uint64_t state = (uint64_t)first << 8 ^ (uint64_t)all.policy;
    for (int64_t i = 0; i < all.submissions; ++i) {
        slot *mine = take_slot();
        fill_slot(mine, first + i, &state);
        grd_status status;
        while ((status = grd_stream_submit(all.stream, &mine->frame)) == GRD_ERR_STREAM_FULL) {
            pthread_mutex_lock(&all.lock);
            ++all.refused;
            pthread_mutex_unlock(&all.lock);
            sleep_ms(0.2);
        }
        CHECK_LOCKED(status == GRD_OK, ("%s", grd_stream_message(all.stream)));
        pthread_mutex_lock(&all.lock);
        ++all.submitted;
        pthread_mutex_unlock(&all.lock);
        if (chance(&state) < 0.25) sleep_ms(all.policy == GRD_OVERLOAD_BLOCK ? 0.1 * chance(&state) : 0.7 * chance(&state));
    }
    return NULL;
}

/* What the bundle of that generation makes of the frame; 0 when it is what came back. */
static int is_wrong(const slot *of, const grd_stream_result *got) {
    const int64_t w = of->frame.view.extent[3], count = of->frame.view.extent[2] * w / PATCH / PATCH;
    const uint64_t seed = 1 + (uint64_t)got->generation % 2;
    int defective = 0, nans = 0, wrong = 0;
    for (int i = 0; i < count; ++i) {
        const int fault = fault_of_tag(seed, kNan, kWrong, tag_of_patch(of->id, i));
        const grd_patch_result *patch = &of->patches[i];
        defective += fault != FAULT_NONE;
        nans += fault == FAULT_NAN;
        wrong += patch->y_px != i / (w / PATCH) * PATCH || patch->x_px != i % (w / PATCH) * PATCH;
        wrong += patch->decision != (fault == FAULT_NONE ? GRD_GOOD : GRD_DEFECTIVE);
        wrong += fault == FAULT_NAN ? !isnan(patch->phi) : fault == FAULT_WRONG ? patch->phi < 0.5f : patch->phi > 1e-4f;
    }
    wrong += got->patch_count != count || got->defective_count != defective || !isnan(got->score) != (nans == 0);
    wrong += got->decision != (defective > 0 ? GRD_DEFECTIVE : GRD_GOOD) || got->status != GRD_OK;
    return wrong;
}

static int is_told_wrong(const slot *of, const grd_stream_result *got) {
    const double given = of->frame.deadline_ms, deadline = given == 0 ? 2 : given;
    switch (got->outcome) {
    case GRD_SCORED:
        return of->too_small || (deadline > 0 && got->total_ms > deadline + 1e-6) || is_wrong(of, got);
    case GRD_LATE:
        return of->too_small || deadline < 0 || got->total_ms < deadline - 1e-6 || is_wrong(of, got);
    case GRD_DROPPED:
        return all.policy == GRD_OVERLOAD_BLOCK || got->status != GRD_OK || got->decision != GRD_NOT_INSPECTED;
    case GRD_FAILED:
        return got->status != (of->too_small ? GRD_ERR_FRAME_SIZE : GRD_ERR_ENGINE_RUN) || got->message[0] == '\0' ||
               got->decision != GRD_NOT_INSPECTED;
    default:
        return 1;
    }
}

static void *consume(void *number) {
    uint64_t state = 77 + (uint64_t)(intptr_t)number;
    for (;;) {
        grd_stream_result got = no_result();
        const int over = is_over();
        const grd_status status = chance(&state) < 0.5 ? grd_stream_poll(all.stream, &got)
                                                       : grd_stream_wait(all.stream, &got, 5 * chance(&state));
        if (status != GRD_OK) {
            CHECK_LOCKED(status == GRD_ERR_STREAM_EMPTY || status == GRD_ERR_STREAM_TIMEOUT, ("%s", grd_status_name(status)));
            if (over) return NULL;
            continue;
        }
        slot *of = got.user;
        const int wrong = is_told_wrong(of, &got);
        pthread_mutex_lock(&all.lock);
        CHECK_THAT(got.id == of->id && of->with_stream && all.back[got.id] == 0, ("frame %ld came back twice", (long)got.id));
        CHECK_THAT(wrong == 0, ("frame %ld: outcome %d, %s, generation %d, %g ms of %g", (long)got.id, (int)got.outcome,
                                grd_status_name(got.status), (int)got.generation, got.total_ms, of->frame.deadline_ms));
        ++all.back[got.id];
        of->with_stream = 0;
        ++all.taken;
        ++all.outcomes[got.outcome >= 1 && got.outcome < OUTCOMES ? got.outcome : 0];
        all.shared += got.batch_frames > 1;
        if (all.taken % 64 == 0) watch(60);
        pthread_mutex_unlock(&all.lock);
        if (chance(&state) < 0.002) sleep_ms(20 * chance(&state)); /* a consumer that looks away */
    }
}

static void *swap_bundles(void *bundles) {
    const grd_bundle *const *given = bundles;
    uint64_t state = 5;
    for (int turn = 0; turn < SWAPS && !is_over(); ++turn) {
        const int fails = chance(&state) < 0.3, number = (int)((all.swapped + 1) % 2);
        const grd_status status = grd_stream_swap(all.stream, given[fails ? 2 : number]);
        CHECK_LOCKED(status == (fails ? GRD_ERR_ENGINE_MISMATCH : GRD_OK), ("swap: %s", grd_status_name(status)));
        all.swapped += status == GRD_OK; /* this thread alone writes it */
        sleep_ms(40 * chance(&state));
    }
    return NULL;
}

static void *read_counts(void *unused) {
    int64_t reads = 0, wrong = 0, submitted = 0, ended = 0;
    while (!is_over()) {
        grd_stream_stats s;
        memset(&s, 0, sizeof s);
        s.struct_size = sizeof s;
        wrong += grd_stream_get_stats(all.stream, &s) != GRD_OK;
        const int64_t now_ended = s.scored + s.late + s.dropped + s.failed;
        wrong += s.submitted != now_ended + s.in_flight || s.submitted < submitted || now_ended < ended;
        wrong += s.in_flight + s.ready > CAPACITY || s.waiting > 8 || s.waiting > s.in_flight;
        wrong += s.good + s.defective + s.undecided != s.scored + s.late;
        submitted = s.submitted, ended = now_ended;
        ++reads;
    }
    CHECK_LOCKED(wrong == 0 && reads > 0, ("%ld of %ld readings of the counts", (long)wrong, (long)reads));
    return unused;
}

static void run_policy(int policy, grd_bundle *const *bundles, int64_t submissions) {
    static const char *const names[] = {"block", "drop_oldest", "drop_newest"};
    pthread_t producers[PRODUCERS], consumers[CONSUMERS], swapper, reader;
    grd_stream_params params = params_of_stream();
    params.overload = policy;
    params.capacity = CAPACITY;
    params.engines = 2;
    params.threads = 3;
    params.deadline_ms = 2;
    params.spin_us = policy == GRD_OVERLOAD_DROP_NEWEST ? 20 : 0;
    params.batch_wait_ms = policy == GRD_OVERLOAD_DROP_OLDEST ? 0.3 : 0;
    all.policy = policy;
    all.submissions = (submissions + PRODUCERS - 1) / PRODUCERS;
    all.submitted = all.taken = all.refused = all.shared = all.swapped = 0;
    all.over = 0;
    memset(all.outcomes, 0, sizeof all.outcomes);
    memset(all.slots, 0, sizeof all.slots);
    all.back = calloc((size_t)(PRODUCERS * all.submissions), 1);
    if (all.back == NULL) exit(2);
    const double began_ms = now_ms();
    const faults_counts before = faults_read();
    watch(60);
    all.stream = opened_stream(bundles[0], &params);
    for (intptr_t i = 0; i < CONSUMERS; ++i) start(pthread_create(&consumers[i], NULL, consume, (void *)i));
    for (intptr_t i = 0; i < PRODUCERS; ++i) start(pthread_create(&producers[i], NULL, produce, (void *)i));
    start(pthread_create(&swapper, NULL, swap_bundles, (void *)bundles));
    start(pthread_create(&reader, NULL, read_counts, NULL));
    for (int i = 0; i < PRODUCERS; ++i) pthread_join(producers[i], NULL);
    const grd_status flushed = grd_stream_flush(all.stream, -1);
    __atomic_store_n(&all.over, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < CONSUMERS; ++i) pthread_join(consumers[i], NULL);
    pthread_join(swapper, NULL);
    pthread_join(reader, NULL);
    const int64_t total = PRODUCERS * all.submissions;
    int64_t lost = 0;
    for (int64_t id = 0; id < total; ++id) lost += all.back[id] != 1;
    CHECK(flushed == GRD_OK);
    CHECK_THAT(lost == 0 && all.taken == total, ("%ld of %ld frames did not come back once", (long)lost, (long)total));
    const grd_stream_stats stats = stats_of(all.stream);
    CHECK(stats.submitted == total && stats.in_flight == 0 && stats.ready == 0 && stats.waiting == 0);
    CHECK(stats.scored == all.outcomes[GRD_SCORED] && stats.late == all.outcomes[GRD_LATE] &&
          stats.dropped == all.outcomes[GRD_DROPPED] && stats.failed == all.outcomes[GRD_FAILED]);
    CHECK(stats.refused == all.refused && stats.generation == all.swapped);
    for (int outcome = GRD_SCORED; outcome <= GRD_FAILED; ++outcome)
        CHECK_THAT((all.outcomes[outcome] > 0) == (outcome != GRD_DROPPED || policy != GRD_OVERLOAD_BLOCK),
                   ("%s: %ld of outcome %d", names[policy], (long)all.outcomes[outcome], outcome));
    grd_stream_close(all.stream);
    const faults_counts after = faults_read();
    CHECK(after.opened - before.opened == after.closed - before.closed);
    CHECK(after.errors > before.errors && after.stalls > before.stalls && after.nans > before.nans &&
          after.wrongs > before.wrongs && all.swapped > 0);
    printf("%s: %ld submitted in %.1f s: %ld scored, %ld late, %ld dropped, %ld failed; %ld refused, %ld shared an engine "
           "call; %ld errors, %ld stalls, %ld swaps, %ld that failed\n",
           names[policy], (long)total, (now_ms() - began_ms) / 1e3, (long)stats.scored, (long)stats.late,
           (long)stats.dropped, (long)stats.failed, (long)all.refused, (long)all.shared,
           (long)(after.errors - before.errors), (long)(after.stalls - before.stalls), (long)all.swapped,
           (long)(after.refused - before.refused));
    fflush(stdout);
    free(all.back);
}

int main(int argc, char **argv) {
    const int64_t submissions = argc > 1 ? atol(argv[1]) : 10000;
    grd_bundle *bundles[3];
    char text[256];
    for (int i = 0; i < 2; ++i) {
        snprintf(text, sizeof text, kEngine, i + 1, i == 0 ? 2 : 30);
        bundles[i] = bundle_of(text, NULL, NULL);
    }
    bundles[2] = bundle_of("refuse=1", NULL, NULL);
    for (int policy = 0; policy < 3; ++policy) run_policy(policy, bundles, submissions);
    for (int i = 0; i < 3; ++i) grd_bundle_close(bundles[i]);
    remove_tree(scratch_folder());
    return checks_report();
}
