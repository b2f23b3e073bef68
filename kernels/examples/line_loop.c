/* line_loop.c - a line in C: images of a folder go through a stream, in place of a camera's frames.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   line_loop BUNDLE.grdb FOLDER [DEADLINE_MS]
 *
 * FOLDER holds binary PGM or PPM images, which are taken in the order of their names, all of the first one's size, as
 * those of a camera are. GRD_VENDOR_DIR names the folder of the engine's vendor library where that does not lie beside
 * libgrd_edge.so.
 * Exit status: 0 all good, 1 error, 3 something was rejected. */
#define _POSIX_C_SOURCE 200809L /* scandir */

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grd_edge.h"
#include "pnm.h"

enum { SLOTS = 8 }; /* frames that may be under way */

/* A frame and its memory, which is the stream's from grd_stream_submit until the result comes back. */
typedef struct slot {
    pnm_image image;
    char path[4096];
    int taken;
} slot;

typedef struct line {
    grd_stream *stream;
    slot slots[SLOTS];
    const char *folder;
    int under_way;
    int rejected;
} line;

static int is_image(const struct dirent *entry) {
    const char *dot = strrchr(entry->d_name, '.');
    return dot != NULL && (strcmp(dot, ".pgm") == 0 || strcmp(dot, ".ppm") == 0);
}

/* 0, and why on stderr, when the image cannot be read. */
static int read_image(const line *self, const struct dirent *entry, slot *into) {
    snprintf(into->path, sizeof into->path, "%s/%s", self->folder, entry->d_name);
    if (pnm_read(into->path, &into->image)) return 1;
    fprintf(stderr, "%s is not a readable 8-bit binary PGM or PPM file\n", into->path);
    return 0;
}

static slot *free_slot(line *self) {
    for (int i = 0; i < SLOTS; ++i)
        if (!self->slots[i].taken) return &self->slots[i];
    return NULL;
}

/* Whatever is not good is rejected: defective, undecided, dropped and failed frames, and here late ones, whose part has
 * left the place where it could be ejected. */
static void take(line *self, const grd_stream_result *result) {
    static const char *const decisions[] = {"good", "defective", "undecided", "inconsistent", "not inspected"};
    static const char *const outcomes[] = {"", "", ", late", ", dropped", ", failed: "};
    slot *from = result->user;
    const int good = result->outcome == GRD_SCORED && result->decision == GRD_GOOD;
    printf("%lld %s: %s, score %.6g, threshold %.6g, %.2f ms%s%s\n", (long long)result->id, from->path,
           decisions[result->decision], (double)result->score, (double)result->threshold, result->total_ms,
           outcomes[result->outcome], result->message);
    self->rejected += !good;
    self->under_way -= 1;
    from->taken = 0;
}

/* Says why the last call failed. */
static int failed(const grd_stream *stream) {
    fprintf(stderr, "%s\n", grd_stream_message(stream));
    return 0;
}

static int print_statistics(const grd_stream *stream) {
    grd_stream_stats stats = {0};
    stats.struct_size = sizeof stats;
    if (grd_stream_get_stats(stream, &stats) != GRD_OK) return failed(stream);
    printf("%lld frames: %lld good, %lld defective, %lld undecided, %lld dropped, %lld failed; %lld late\n",
           (long long)stats.submitted, (long long)stats.good, (long long)stats.defective, (long long)stats.undecided,
           (long long)stats.dropped, (long long)stats.failed, (long long)stats.late);
    printf("from frame to decision: p50 %.2f ms, p99 %.2f ms, worst %.2f ms\n", stats.total.p50_ms, stats.total.p99_ms,
           stats.total.worst_ms);
    return 1;
}

/* 1 when every image was read and every call went well; else 0, and why is on stderr. */
static int run(line *self, struct dirent **names, int count) {
    grd_stream_result result = {0};
    int all_read = 1, next = 0;
    result.struct_size = sizeof result;
    while (next < count || self->under_way > 0) {
        slot *into = next < count ? free_slot(self) : NULL;
        if (into != NULL) {
            if (!read_image(self, names[next++], into)) {
                all_read = 0;
                continue;
            }
            grd_stream_frame frame = {0};
            frame.struct_size = sizeof frame;
            frame.id = next;
            frame.user = into;
            const pnm_image *image = &into->image;
            frame.view = grd_view_of_frame(image->pixels, GRD_UINT8, image->h, image->w, image->c, 0);
            if (grd_stream_submit(self->stream, &frame) != GRD_OK) return failed(self->stream);
            into->taken = 1;
            self->under_way += 1;
        } else { /* nothing to do until a frame is done */
            if (grd_stream_wait(self->stream, &result, -1) != GRD_OK) return failed(self->stream);
            take(self, &result);
        }
        while (grd_stream_poll(self->stream, &result) == GRD_OK) take(self, &result);
    }
    return print_statistics(self->stream) && all_read;
}

int main(int argc, char **argv) {
    static line self; /* all zero */
    struct dirent **names = NULL;
    grd_bundle *bundle = NULL;
    int count = 0, code = 1;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: line_loop BUNDLE.grdb FOLDER [DEADLINE_MS]\n");
        return 1;
    }
    count = scandir(argv[2], &names, is_image, alphasort);
    self.folder = argv[2];
    if (count <= 0) {
        fprintf(stderr, "%s holds no .pgm or .ppm images\n", argv[2]);
        goto done;
    }
    if (!read_image(&self, names[0], &self.slots[0])) goto done;
    if (grd_bundle_open(argv[1], &bundle) != GRD_OK) {
        fprintf(stderr, "%s\n", grd_bundle_message(bundle));
        goto done;
    }
    grd_stream_params params = {0};
    params.struct_size = sizeof params;
    params.queue_depth = SLOTS;
    params.frame_h = (int32_t)self.slots[0].image.h; /* so that engines and memory are ready, and no frame waits */
    params.frame_w = (int32_t)self.slots[0].image.w;
    params.frame_c = (int32_t)self.slots[0].image.c;
    params.deadline_ms = argc > 3 ? atof(argv[3]) : 0;
    if (grd_stream_open(bundle, &params, &self.stream) != GRD_OK) {
        failed(self.stream);
        goto done;
    }
    if (run(&self, names, count)) code = self.rejected > 0 ? 3 : 0;

done:
    grd_stream_close(self.stream); /* before its bundle and the frames' memory; NULL is fine */
    grd_bundle_close(bundle);
    for (int i = 0; i < SLOTS; ++i) free(self.slots[i].image.pixels);
    for (int i = 0; i < count; ++i) free(names[i]);
    free(names);
    return code;
}
