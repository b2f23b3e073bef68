/* backend_faults.c - a backend that fails, stalls, and gives NaN and wrong answers: at random, but reproducibly.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine file is text, "seed=7 errors=0.05 stalls=0.02 stall_ms=3"; what is left out is 0, and gain is 1:
 *   gain            x_hat = x * gain, or the scores of score_map_case.h, where nothing goes wrong
 *   errors, stalls  shares of the calls that fail, and that take stall_ms longer
 *   nan, wrong      shares of the patches that come out as NaN, and far off
 *   call_us         every call takes that much longer
 *   slow_open_ms    opening takes so long
 *   refuse          1: opening fails
 *   gate            1 to 3: see backend_faults.h
 * Calls whose first pixel is black meet no fault: with such patches engines are prepared. */
#define _XOPEN_SOURCE 700
#include "backend_faults.h"
#include "score_map_case.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct faults_engine {
    int64_t floats, made, h, w; /* of a patch, and of what is made of it */
    uint64_t seed, number, calls; /* number of the engine with this seed */
    double errors, stalls, stall_ms, nan, wrong, call_us;
    float gain;
    int32_t gate;
} faults_engine;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static faults_counts counts;
static struct {
    int32_t shut, held, passes;
} gates[FAULT_GATES];

faults_counts faults_read(void) {
    pthread_mutex_lock(&lock);
    const faults_counts read = counts;
    pthread_mutex_unlock(&lock);
    return read;
}

void faults_shut(int32_t gate, int32_t shut) {
    pthread_mutex_lock(&lock);
    gates[gate].shut = shut;
    gates[gate].passes = 0;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

void faults_pass(int32_t gate) {
    pthread_mutex_lock(&lock);
    ++gates[gate].passes;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

int32_t faults_held(int32_t gate) {
    pthread_mutex_lock(&lock);
    const int32_t held = gates[gate].held;
    pthread_mutex_unlock(&lock);
    return held;
}

static void wait_at_gate(int32_t gate) {
    pthread_mutex_lock(&lock);
    ++gates[gate].held;
    while (gates[gate].shut && gates[gate].passes == 0) pthread_cond_wait(&moved, &lock);
    if (gates[gate].shut) --gates[gate].passes;
    --gates[gate].held;
    pthread_mutex_unlock(&lock);
}

static void sleep_us(double us) {
    const struct timespec time = {(time_t)(us / 1e6), (long)((us - 1e6 * (double)(time_t)(us / 1e6)) * 1e3)};
    if (us > 0) nanosleep(&time, NULL);
}

static double value_of(const char *text, const char *key, double otherwise) {
    const size_t length = strlen(key);
    for (const char *at = text; (at = strstr(at, key)) != NULL; at += length)
        if ((at == text || at[-1] == ' ') && at[length] == '=') return atof(at + length + 1);
    return otherwise;
}

static grd_status told(grd_status status, const char *said, char *message, size_t message_bytes) {
    if (message != NULL && message_bytes > 0) snprintf(message, message_bytes, "%s", said);
    return status;
}

static grd_status faults_open(const grd_engine_desc *desc, void **engine, char *message, size_t message_bytes) {
    char text[256] = "";
    if (desc->byte_count >= sizeof text) return told(GRD_ERR_ENGINE_OPEN, "text too long", message, message_bytes);
    memcpy(text, desc->bytes, desc->byte_count);
    sleep_us(1e3 * value_of(text, "slow_open_ms", 0));
    const int refuses = value_of(text, "refuse", 0) != 0;
    faults_engine *self = refuses ? NULL : calloc(1, sizeof *self);
    pthread_mutex_lock(&lock);
    if (refuses) ++counts.refused;
    else if (self != NULL) self->number = (uint64_t)++counts.opened;
    pthread_mutex_unlock(&lock);
    if (refuses) return told(GRD_ERR_ENGINE_MISMATCH, "told to refuse", message, message_bytes);
    if (self == NULL) return told(GRD_ERR_MEMORY, "out of memory", message, message_bytes);
    self->h = desc->patch_h, self->w = desc->patch_w;
    self->floats = desc->channels * self->h * self->w;
    self->made = wants_score_map(desc) ? (1 + self->h) * self->w : self->floats;
    self->seed = (uint64_t)value_of(text, "seed", 0);
    self->gain = (float)value_of(text, "gain", 1);
    self->errors = value_of(text, "errors", 0);
    self->stalls = value_of(text, "stalls", 0);
    self->stall_ms = value_of(text, "stall_ms", 0);
    self->nan = value_of(text, "nan", 0);
    self->wrong = value_of(text, "wrong", 0);
    self->call_us = value_of(text, "call_us", 0);
    self->gate = (int32_t)value_of(text, "gate", 0);
    *engine = self;
    return GRD_OK;
}

static uint32_t tag_of(const float *patch) {
    uint32_t tag = 0;
    for (int i = 0; i < 4; ++i) tag |= (uint32_t)(patch[i] * 255.0f + 0.5f) << 8 * i;
    return tag;
}

static grd_status faults_infer(void *engine, const grd_view *x, const grd_view *x_hat, char *message,
                               size_t message_bytes) {
    faults_engine *self = engine;
    const int64_t n = x->extent[0];
    const float *from = x->data;
    float *to = x_hat->data;
    int64_t seen[3] = {0, 0, 0};
    const int spoiled = from[0] > 0;
    if (self->gate > 0 && self->gate < FAULT_GATES) wait_at_gate(self->gate);
    const uint64_t call = self->number << 32 | self->calls++;
    const int stalls = spoiled && fault_chance(self->seed, 1, call) < self->stalls;
    const int fails = spoiled && fault_chance(self->seed, 2, call) < self->errors;
    sleep_us(self->call_us + (stalls ? 1e3 * self->stall_ms : 0));
    for (int64_t i = 0; i < n && !fails; ++i, from += self->floats, to += self->made) {
        const int fault = spoiled ? fault_of_tag(self->seed, self->nan, self->wrong, tag_of(from)) : FAULT_NONE;
        ++seen[fault];
        if (fault == FAULT_NAN) memset(to, 0xff, (size_t)self->made * sizeof *to);
        else if (self->made != self->floats)
            write_score_map(from, to, self->h, self->w, fault == FAULT_WRONG ? -self->gain : self->gain);
        else if (fault == FAULT_WRONG)
            for (int64_t k = 0; k < self->floats; ++k) to[k] = from[k] < 0.5f ? 1.0f : 0.0f;
        else
            for (int64_t k = 0; k < self->floats; ++k) to[k] = from[k] * self->gain;
    }
    pthread_mutex_lock(&lock);
    ++counts.calls;
    counts.patches += n;
    counts.batches += n > 1;
    if (n > counts.largest) counts.largest = n;
    counts.errors += fails;
    counts.stalls += stalls;
    counts.nans += seen[FAULT_NAN];
    counts.wrongs += seen[FAULT_WRONG];
    pthread_mutex_unlock(&lock);
    return fails ? told(GRD_ERR_ENGINE_RUN, "told to fail", message, message_bytes) : GRD_OK;
}

static const char *faults_version(void *engine) {
    (void)engine;
    return "faults 1";
}

static void faults_close(void *engine) {
    pthread_mutex_lock(&lock);
    ++counts.closed;
    pthread_mutex_unlock(&lock);
    free(engine);
}

GRD_API const grd_backend *grd_backend_table(void);
GRD_API const grd_backend *grd_backend_table(void) {
    static const grd_backend table = {.struct_size = sizeof(grd_backend),
                                      .abi = GRD_BACKEND_ABI,
                                      .name = "faults",
                                      .engine_open = faults_open,
                                      .engine_infer = faults_infer,
                                      .engine_version = faults_version,
                                      .engine_close = faults_close};
    return &table;
}
