/* test_stream_overload.c - streams whose engine, consumer or caller is slow: who waits, what is dropped, what is told.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Engines wait at gate 1, so that the tests know what is in work and what waits. */
#define _XOPEN_SOURCE 700
#include "stream_case.h"

#include <math.h>

#include "backend_faults.h"

enum { DEPTH = 3 };

static const char kGated[] = "gate=1 gain=0.5";

/* A call that may have to wait, in a thread of its own. */
typedef struct call {
    pthread_t thread;
    grd_stream *stream;
    int64_t id;
    double timeout_ms;
    grd_status status;
    grd_stream_result result;
    int done;
} call;

static void *submit_call(void *data) {
    call *self = data;
    self->status = submit(self->stream, self->id);
    __atomic_store_n(&self->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void *wait_call(void *data) {
    call *self = data;
    self->status = grd_stream_wait(self->stream, &self->result, self->timeout_ms);
    __atomic_store_n(&self->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void *flush_call(void *data) {
    call *self = data;
    self->status = grd_stream_flush(self->stream, self->timeout_ms);
    __atomic_store_n(&self->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void begin(call *self, void *(*run)(void *), grd_stream *stream, int64_t id, double timeout_ms) {
    memset(self, 0, sizeof *self);
    self->stream = stream, self->id = id, self->timeout_ms = timeout_ms;
    self->result = no_result();
    CHECK(pthread_create(&self->thread, NULL, run, self) == 0);
}

static int is_done(const call *self) { return __atomic_load_n(&self->done, __ATOMIC_ACQUIRE); }

/* A stream of one thread whose engine holds frame 0, with queue_depth frames behind it. */
static grd_stream *held_stream(const grd_bundle *bundle, grd_stream_params *params) {
    faults_shut(1, 0);
    params->queue_depth = DEPTH;
    grd_stream *stream = opened_stream(bundle, params);
    faults_shut(1, 1);
    CHECK(submit(stream, 0) == GRD_OK);
    WAIT_UNTIL(faults_held(1) == 1);
    for (int64_t id = 1; id <= DEPTH; ++id) CHECK(submit(stream, id) == GRD_OK);
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.submitted == DEPTH + 1 && stats.in_flight == DEPTH + 1 && stats.waiting == DEPTH && stats.ready == 0);
    expect_nothing(stream);
    return stream;
}

static void check_dropped(const grd_stream_result *result) {
    CHECK(result->status == GRD_OK && result->decision == GRD_NOT_INSPECTED && result->patch_count == 0);
    CHECK(isnan(result->score) && isnan(result->threshold) && result->defective_count == 0);
    CHECK(result->product_complete == 1 && result->product_decision == GRD_NOT_INSPECTED &&
          result->product_missing == 1);
}

static void check_drop_oldest(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.overload = GRD_OVERLOAD_DROP_OLDEST;
    grd_stream *stream = held_stream(bundle, &params);
    for (int64_t id = 4; id <= 8; ++id) {
        CHECK(submit(stream, id) == GRD_OK);
        const grd_stream_result dropped = expect(stream, id - DEPTH, GRD_DROPPED); /* at once, before frame 0 */
        check_dropped(&dropped);
    }
    grd_stream_stats stats = stats_of(stream);
    CHECK(stats.submitted == 9 && stats.dropped == 5 && stats.in_flight == 4 && stats.waiting == 3);
    faults_shut(1, 0);
    expect(stream, 0, GRD_SCORED);
    for (int64_t id = 6; id <= 8; ++id) expect(stream, id, GRD_SCORED);
    stats = stats_of(stream);
    CHECK(stats.scored == 4 && stats.defective == 4 && stats.in_flight == 0 && stats.refused == 0 && stats.ready == 0);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

static void check_drop_newest(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.overload = GRD_OVERLOAD_DROP_NEWEST;
    grd_stream *stream = held_stream(bundle, &params);
    for (int64_t id = 4; id <= 8; ++id) {
        CHECK(submit(stream, id) == GRD_OK);
        const grd_stream_result dropped = expect(stream, id, GRD_DROPPED);
        check_dropped(&dropped);
    }
    faults_pass(1); /* frame 0 ends; the others are taken at once, and there is room again */
    expect(stream, 0, GRD_SCORED);
    WAIT_UNTIL(faults_held(1) == 1);
    CHECK(submit(stream, 9) == GRD_OK);
    faults_shut(1, 0);
    for (int64_t id = 1; id <= 3; ++id) expect(stream, id, GRD_SCORED);
    expect(stream, 9, GRD_SCORED);
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.submitted == 10 && stats.scored == 5 && stats.dropped == 5 && stats.refused == 0);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

static void check_block(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    params.batch_frames = 1;
    grd_stream *stream = held_stream(bundle, &params);
    call blocked[2];
    begin(&blocked[0], submit_call, stream, 4, 0);
    sleep_ms(20);
    CHECK(!is_done(&blocked[0]));
    begin(&blocked[1], submit_call, stream, 5, 0);
    sleep_ms(20);
    CHECK(!is_done(&blocked[0]) && !is_done(&blocked[1]));
    CHECK(stats_of(stream).submitted == DEPTH + 1 && stats_of(stream).refused == 0);
    faults_pass(1); /* one place becomes free, and one of them takes it */
    WAIT_UNTIL(is_done(&blocked[0]) || is_done(&blocked[1]));
    sleep_ms(20);
    CHECK(is_done(&blocked[0]) + is_done(&blocked[1]) == 1);
    faults_shut(1, 0);
    for (int i = 0; i < 2; ++i) CHECK(pthread_join(blocked[i].thread, NULL) == 0 && blocked[i].status == GRD_OK);
    for (int64_t id = 0; id <= DEPTH; ++id) CHECK(expect(stream, id, GRD_SCORED).batch_frames == 1);
    grd_stream_result last[2] = {no_result(), no_result()};
    for (int i = 0; i < 2; ++i) CHECK(grd_stream_wait(stream, &last[i], 20e3) == GRD_OK);
    CHECK(last[0].id + last[1].id == 9 && last[0].id != last[1].id);
    CHECK(stats_of(stream).dropped == 0 && stats_of(stream).scored == 6);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* Results that nobody takes: with either drop policy frames are refused, with block they wait. */
static void check_slow_consumer(void) {
    static const int policies[] = {GRD_OVERLOAD_DROP_OLDEST, GRD_OVERLOAD_DROP_NEWEST, GRD_OVERLOAD_BLOCK};
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    for (int p = 0; p < 3; ++p) {
        grd_stream_params params = params_of_stream();
        params.overload = policies[p];
        params.capacity = DEPTH + 1;
        grd_stream *stream = held_stream(bundle, &params);
        call blocked;
        if (policies[p] == GRD_OVERLOAD_BLOCK) {
            begin(&blocked, submit_call, stream, 4, 0);
            sleep_ms(20);
            CHECK(!is_done(&blocked));
        } else {
            CHECK(submit(stream, 4) == GRD_ERR_STREAM_FULL);
            CHECK(stats_of(stream).refused == 1 && stats_of(stream).submitted == 4 && stats_of(stream).dropped == 0);
        }
        faults_shut(1, 0);
        WAIT_UNTIL(stats_of(stream).ready == 4);
        if (policies[p] == GRD_OVERLOAD_BLOCK) {
            sleep_ms(20);
            CHECK(!is_done(&blocked) && stats_of(stream).submitted == 4);
        } else {
            CHECK(submit(stream, 4) == GRD_ERR_STREAM_FULL);
            CHECK(stats_of(stream).refused == 2 && stats_of(stream).in_flight == 0);
        }
        expect(stream, 0, GRD_SCORED);
        if (policies[p] == GRD_OVERLOAD_BLOCK)
            CHECK(pthread_join(blocked.thread, NULL) == 0 && blocked.status == GRD_OK);
        else
            CHECK(submit(stream, 4) == GRD_OK);
        for (int64_t id = 1; id <= 4; ++id) expect(stream, id, GRD_SCORED);
        CHECK(stats_of(stream).submitted == 5 && stats_of(stream).scored == 5);
        grd_stream_close(stream);
    }
    grd_bundle_close(bundle);
}

static void check_deadlines(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    static const double deadlines[] = {1, 60e3, -1, 0, 0.001}; /* of the frames; that of the stream is 2 ms */
    static const int outcomes[] = {GRD_LATE, GRD_SCORED, GRD_SCORED, GRD_LATE, GRD_LATE};
    params.deadline_ms = 2;
    grd_stream *stream = opened_stream(bundle, &params);
    faults_shut(1, 1);
    for (int i = 0; i < 5; ++i) {
        grd_stream_frame frame = frame_of(i, textured());
        frame.deadline_ms = deadlines[i];
        CHECK(grd_stream_submit(stream, &frame) == GRD_OK);
    }
    sleep_ms(10);
    CHECK(stats_of(stream).oldest_ms >= 10);
    faults_shut(1, 0);
    for (int i = 0; i < 5; ++i) {
        const grd_stream_result result = expect(stream, i, outcomes[i]);
        CHECK(result.decision == GRD_DEFECTIVE && result.patch_count == COUNT && result.total_ms >= 10);
        CHECK(result.status == GRD_OK && result.product_decision == GRD_DEFECTIVE && result.message[0] == '\0');
    }
    const grd_stream_stats stats = stats_of(stream);
    CHECK(stats.scored == 2 && stats.late == 3 && stats.defective == 5 && stats.oldest_ms == 0);
    CHECK(stats.total.count == 5 && stats.total.worst_ms >= 10 && stats.total.p50_ms <= stats.total.worst_ms * 1.04);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

static void check_timeouts(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    grd_stream_result result = no_result();
    faults_shut(1, 0);
    grd_stream *stream = opened_stream(bundle, &params);
    CHECK(grd_stream_flush(stream, 0) == GRD_OK && grd_stream_flush(stream, -1) == GRD_OK); /* nothing in flight */
    faults_shut(1, 1);
    CHECK(submit(stream, 7) == GRD_OK);
    result.id = -5;
    CHECK(grd_stream_poll(stream, &result) == GRD_ERR_STREAM_EMPTY && result.id == -5);
    CHECK(grd_stream_wait(stream, &result, 0) == GRD_ERR_STREAM_TIMEOUT && result.id == -5);
    CHECK(grd_stream_flush(stream, 0) == GRD_ERR_STREAM_TIMEOUT);
    double began_ms = now_ms();
    CHECK(grd_stream_wait(stream, &result, 15) == GRD_ERR_STREAM_TIMEOUT && now_ms() - began_ms >= 15);
    began_ms = now_ms();
    CHECK(grd_stream_flush(stream, 15) == GRD_ERR_STREAM_TIMEOUT && now_ms() - began_ms >= 15);
    call waiting, flushing[2];
    begin(&waiting, wait_call, stream, 0, -1);
    begin(&flushing[0], flush_call, stream, 0, -1);
    begin(&flushing[1], flush_call, stream, 0, 20e3);
    sleep_ms(20);
    CHECK(!is_done(&waiting) && !is_done(&flushing[0]) && !is_done(&flushing[1]));
    faults_shut(1, 0);
    CHECK(pthread_join(waiting.thread, NULL) == 0 && waiting.status == GRD_OK && waiting.result.id == 7);
    for (int i = 0; i < 2; ++i) CHECK(pthread_join(flushing[i].thread, NULL) == 0 && flushing[i].status == GRD_OK);
    for (int64_t id = 8; id < 12; ++id) CHECK(submit(stream, id) == GRD_OK);
    CHECK(grd_stream_flush(stream, -1) == GRD_OK && stats_of(stream).ready == 4); /* results stay */
    for (int64_t id = 8; id < 12; ++id) expect(stream, id, GRD_SCORED);
    expect_nothing(stream);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

/* What on_result finds; only its callers write, one at a time. */
typedef struct record {
    grd_stream *stream;
    int64_t ids[64];
    int32_t outcomes[64];
    int count, inside, overlaps;
    int64_t chain; /* frames to submit from within, each in place of one that came back */
    int refused;
} record;

static void on_result(void *context, const grd_stream_result *result) {
    record *self = context;
    grd_stream_stats stats;
    memset(&stats, 0, sizeof stats);
    stats.struct_size = sizeof stats;
    if (__atomic_add_fetch(&self->inside, 1, __ATOMIC_ACQ_REL) != 1) ++self->overlaps;
    if (self->count < 64) self->ids[self->count] = result->id, self->outcomes[self->count] = result->outcome;
    if (self->stream != NULL && (grd_stream_get_stats(self->stream, &stats) != GRD_OK || stats.submitted <= self->count))
        ++self->overlaps;
    ++self->count;
    if (self->chain > 0) {
        const grd_status status = submit(self->stream, 100 + self->count);
        if (status == GRD_OK) --self->chain;
        else if (status == GRD_ERR_STREAM_FULL) ++self->refused;
        else ++self->overlaps;
    }
    __atomic_sub_fetch(&self->inside, 1, __ATOMIC_ACQ_REL);
}

static void check_callbacks(void) {
    for (int threads = 1; threads <= 3; ++threads) {
        grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
        grd_stream_params params = params_of_stream();
        record found;
        memset(&found, 0, sizeof found);
        faults_shut(1, 0);
        params.threads = threads;
        params.engines = threads == 3 ? 2 : 1;
        params.on_result = on_result;
        params.context = &found;
        params.queue_depth = 4;
        params.batch_frames = 2;
        grd_stream *stream = opened_stream(bundle, &params);
        __atomic_store_n(&found.stream, stream, __ATOMIC_RELEASE);
        for (int64_t id = 0; id < 40; ++id) CHECK(submit(stream, id) == GRD_OK);
        CHECK(grd_stream_flush(stream, 20e3) == GRD_OK);
        CHECK(found.count == 40 && found.overlaps == 0 && stats_of(stream).ready == 0); /* all delivered */
        for (int i = 0; i < 40; ++i) CHECK(found.ids[i] == i && found.outcomes[i] == GRD_SCORED);
        found.count = 0;
        found.chain = 20;
        CHECK(submit(stream, 100) == GRD_OK); /* each result submits the next frame */
        CHECK(grd_stream_flush(stream, 20e3) == GRD_OK);
        CHECK(found.count == 21 && found.chain == 0 && found.refused == 0 && found.overlaps == 0);
        for (int i = 0; i < 21; ++i) CHECK(found.ids[i] == 100 + i);
        grd_stream_result result = no_result();
        CHECK(grd_stream_poll(stream, &result) == GRD_ERR_ARGUMENT); /* it would take results from the callback */
        CHECK(grd_stream_wait(stream, &result, 1) == GRD_ERR_ARGUMENT);
        CHECK(strstr(grd_stream_message(stream), "on_result") != NULL);
        grd_stream_close(stream);
        grd_bundle_close(bundle);
    }
}

/* A callback of a full stream is refused where another caller would wait: it waited for itself. */
static void check_callback_never_waits(void) {
    grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
    grd_stream_params params = params_of_stream();
    record found;
    memset(&found, 0, sizeof found);
    params.on_result = on_result;
    params.context = &found;
    params.batch_frames = 1;
    params.queue_depth = DEPTH;
    faults_shut(1, 0);
    grd_stream *stream = found.stream = opened_stream(bundle, &params);
    faults_shut(1, 1);
    CHECK(submit(stream, 0) == GRD_OK);
    WAIT_UNTIL(faults_held(1) == 1);
    for (int64_t id = 1; id <= DEPTH; ++id) CHECK(submit(stream, id) == GRD_OK);
    found.chain = 1;
    faults_shut(1, 0);
    CHECK(grd_stream_flush(stream, 20e3) == GRD_OK);
    CHECK(found.refused == 1 && found.chain == 0 && found.count == DEPTH + 2 && found.overlaps == 0);
    CHECK(stats_of(stream).refused == 1);
    grd_stream_close(stream);
    grd_bundle_close(bundle);
}

static void *open_gate_soon(void *unused) {
    sleep_ms(30);
    faults_shut(1, 0);
    return unused;
}

/* Closing ends what is in work, inspects nothing that waits, and leaves no frame with the stream. */
static void check_close(void) {
    for (int with_callback = 0; with_callback < 2; ++with_callback) {
        grd_bundle *bundle = bundle_of(kGated, NULL, NULL);
        grd_stream_params params = params_of_stream();
        record found;
        memset(&found, 0, sizeof found);
        params.on_result = with_callback ? on_result : NULL;
        params.context = &found;
        faults_shut(1, 0);
        params.queue_depth = DEPTH;
        grd_stream *stream = opened_stream(bundle, &params);
        faults_shut(1, 1);
        const faults_counts before = faults_read();
        CHECK(submit(stream, 0) == GRD_OK);
        WAIT_UNTIL(faults_held(1) == 1);
        for (int64_t id = 1; id <= DEPTH; ++id) CHECK(submit(stream, id) == GRD_OK);
        pthread_t opener;
        CHECK(pthread_create(&opener, NULL, open_gate_soon, NULL) == 0);
        const double began_ms = now_ms();
        grd_stream_close(stream);
        CHECK(now_ms() - began_ms >= 20);
        pthread_join(opener, NULL);
        const faults_counts after = faults_read();
        CHECK(after.patches - before.patches == COUNT && after.closed - before.closed == 1);
        if (with_callback) {
            int seen[DEPTH + 1] = {0};
            CHECK(found.count == DEPTH + 1 && found.overlaps == 0);
            for (int i = 0; i < found.count && i < 64; ++i) {
                ++seen[found.ids[i]];
                CHECK(found.outcomes[i] == (found.ids[i] == 0 ? GRD_SCORED : GRD_DROPPED));
            }
            for (int i = 0; i <= DEPTH; ++i) CHECK(seen[i] == 1);
        }
        grd_bundle_close(bundle);
    }
    /* A callback that submits a frame for each that comes back does not keep the stream open. */
    grd_bundle *bundle = bundle_of("gain=0.5 call_us=200", NULL, NULL);
    grd_stream_params params = params_of_stream();
    record found;
    memset(&found, 0, sizeof found);
    params.on_result = on_result;
    params.context = &found;
    params.threads = 2;
    found.chain = 1 << 30;
    grd_stream *stream = found.stream = opened_stream(bundle, &params);
    for (int64_t id = 0; id < 4; ++id) CHECK(submit(stream, id) == GRD_OK);
    while (stats_of(stream).scored < 20) sleep_ms(1);
    grd_stream_close(stream);
    CHECK(found.count >= 20 && found.refused > 0);
    grd_bundle_close(bundle);
}

/* Closing at any moment, with frames in every stage: each comes back once. */
static void check_close_at_any_moment(void) {
    grd_bundle *bundle = bundle_of("seed=5 errors=0.2 call_us=100 stalls=0.2 stall_ms=0.3", NULL, NULL);
    for (int round = 0; round < 120; ++round) {
        grd_stream_params params = params_of_stream();
        record found;
        memset(&found, 0, sizeof found);
        const int frames = 1 + round % 30, with_callback = round & 1;
        params.overload = round % 3;
        params.engines = 1 + round / 3 % 2;
        params.threads = 3;
        params.queue_depth = 40;
        params.spin_us = round % 5 == 0 ? 30 : 0;
        params.batch_wait_ms = round % 7 == 0 ? 60e3 : 0;
        params.on_result = with_callback ? on_result : NULL;
        params.context = &found;
        grd_stream *stream = opened_stream(bundle, &params);
        for (int64_t id = 0; id < frames; ++id) CHECK(submit(stream, id) == GRD_OK);
        sleep_ms(2 * fault_chance(3, 1, (uint64_t)round));
        grd_stream_close(stream);
        int seen[30] = {0}, wrong = 0;
        for (int i = 0; i < found.count && i < 64; ++i) ++seen[found.ids[i]];
        for (int i = 0; with_callback && i < frames; ++i) wrong += seen[i] != 1;
        CHECK_THAT(wrong == 0 && found.overlaps == 0 && found.count == (with_callback ? frames : 0),
                   ("round %d: %d of %d frames came back", round, found.count, frames));
    }
    grd_bundle_close(bundle);
}

typedef struct observer {
    pthread_t thread;
    grd_stream *stream;
    int stop;
    int64_t reads, wrong;
} observer;

static void *observe(void *data) {
    observer *self = data;
    int64_t submitted = 0, ended = 0;
    while (!__atomic_load_n(&self->stop, __ATOMIC_ACQUIRE)) {
        grd_stream_stats s;
        memset(&s, 0, sizeof s);
        s.struct_size = sizeof s;
        self->wrong += grd_stream_get_stats(self->stream, &s) != GRD_OK;
        const int64_t now_ended = s.scored + s.late + s.dropped + s.failed;
        self->wrong += s.submitted != now_ended + s.in_flight || s.submitted < submitted || now_ended < ended;
        self->wrong += s.waiting > s.in_flight || s.good + s.defective + s.undecided != s.scored + s.late;
        self->wrong += s.ready > now_ended || s.waiting > DEPTH;
        submitted = s.submitted, ended = now_ended;
        __atomic_add_fetch(&self->reads, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* The counts add up whenever another thread looks. */
static void check_counts_at_every_moment(void) {
    grd_bundle *bundle = bundle_of("seed=3 errors=0.1 nan=0.1 wrong=0.1", NULL, NULL);
    for (int policy = 0; policy < 3; ++policy) {
        grd_stream_params params = params_of_stream();
        params.overload = policy;
        params.queue_depth = DEPTH;
        params.engines = 2;
        params.threads = 3;
        params.deadline_ms = 0.05;
        observer watching;
        memset(&watching, 0, sizeof watching);
        watching.stream = opened_stream(bundle, &params);
        CHECK(pthread_create(&watching.thread, NULL, observe, &watching) == 0);
        grd_stream_result result = no_result();
        int64_t taken = 0, id = 0;
        for (; id < 2000 || __atomic_load_n(&watching.reads, __ATOMIC_RELAXED) < 100; ++id) {
            CHECK(submit(watching.stream, id) == GRD_OK);
            while (grd_stream_poll(watching.stream, &result) == GRD_OK) ++taken;
        }
        CHECK(grd_stream_flush(watching.stream, 20e3) == GRD_OK);
        while (grd_stream_poll(watching.stream, &result) == GRD_OK) ++taken;
        __atomic_store_n(&watching.stop, 1, __ATOMIC_RELEASE);
        pthread_join(watching.thread, NULL);
        CHECK_THAT(taken == id && watching.wrong == 0,
                   ("%d results, %d of %d pictures wrong", (int)taken, (int)watching.wrong, (int)watching.reads));
        grd_stream_close(watching.stream);
    }
    grd_bundle_close(bundle);
}

int main(void) {
    watch(240);
    check_drop_oldest();
    check_drop_newest();
    check_block();
    check_slow_consumer();
    check_deadlines();
    check_timeouts();
    check_callbacks();
    check_callback_never_waits();
    check_close();
    check_close_at_any_moment();
    check_counts_at_every_moment();
    remove_tree(scratch_folder());
    return checks_report();
}
