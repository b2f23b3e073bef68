/* score_block.h - what one block of threads does in the CUDA variant of scoring, for host and device alike.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A block takes a strip of rows of one patch's distance map and goes down it four rows at a time:
 *
 *     columns    thread = column of the patch: the newest rows from memory, 14 of them in registers; heatmap, range;
 *                means and variances down the column            -> line, in shared memory
 *     rows       thread = one row, four columns: means and variances along the row, distance -> integers, phi
 *     windows    the same thread: sums of `local` integers along the row -> ring of the last rows
 *     (columns)  of the next four rows: sums of `local` rows down the column; the largest is phi_local's
 *
 * with a barrier after each. Nothing is computed twice: what strips share are ten rows of pixels that both read, and
 * the windows of phi_local that reach over their border. Their sums along x go to the workspace, and whichever of the
 * two blocks comes second adds them up. The block that comes last of a patch adds up its strips. All sums are integers,
 * so that the order and the number of strips change nothing.
 *
 * Patches wider than a block, box windows and phi_local windows above kLargestRing px take a second road: the same
 * columns and rows, in tiles, with the distances stored (kMap), then score_local_block over them.
 *
 * E runs the threads: `each` calls a phase for every thread and ends with a barrier, on the device by __syncthreads, on
 * the host (score_cuda_host.cpp) by a loop. */
#ifndef GRD_SCORE_BLOCK_H
#define GRD_SCORE_BLOCK_H

#include "score/score_pixel.h"

namespace grd::score {
namespace {

constexpr int kThreads = 256;                 /* of a block; columns of the patch that it holds */
constexpr int kGroups = kThreads / kGroup;    /* threads on a row of the map */
constexpr int kTileColumns = 240;             /* of the map, where the patch is wider than a block */
constexpr int kLargestRing = 32;              /* phi_local windows that the one launch sums */
constexpr int kLargestWindow = 256;           /* and the second one */
constexpr int kRingColumns = 248;             /* of the map at most, in whole groups */
constexpr int kLinePitch = kThreads + 16;     /* threads at the end of a row read past it */
constexpr int kSumPitch = kThreads + kLargestRing + 8;
constexpr int kLargestStrips = 32;            /* bits of Counter::done */

/* Of a patch, in the workspace; all 0 between launches. */
struct Counter {
    uint32_t done;     /* bit of each strip whose border rows are written */
    uint32_t finished; /* blocks whose Part is written */
    uint32_t unused[2];
};

/* What a block has seen of its patch. */
struct alignas(16) Part {
    int64_t phi;          /* sum of distances */
    int32_t local;        /* largest window */
    int32_t positions;    /* windows that hold a pixel of interest */
    float least, largest; /* residuals */
    int32_t fine;         /* no pixel is NaN, Inf or beyond kLargestPixel */
    int32_t unused;
};

/* A launch. */
struct Launch {
    Source x, x_hat;
    Source roi;     /* data NULL: everything is of interest */
    Source heatmap; /* data NULL: not wanted; written */
    float *phi, *phi_local, *residual_min, *residual_max;
    int32_t c, h, w, map_h, map_w;
    int32_t lead;                        /* rows and columns of the window before the pixel: 0, or 5 of the box */
    int32_t local, sum_shift;            /* phi_local's window; bits that sums along x are cut by */
    int32_t strips, strip_rows, tiles;   /* of a patch */
    int32_t scores;                      /* phi or phi_local is wanted */
    float heatmap_scale, unit, share;    /* unit: of integers, 2^25 / c; share: 1 / c */
    Counter *counters;
    Part *parts;     /* strips x tiles of each patch */
    int32_t *border; /* of each strip the first and the last local - 1 rows of sums along x, kRingColumns each */
    int32_t *map;    /* kMap: map_h x map_w of each patch */
    int64_t *windows; /* kMap: of each patch and block of score_local.h the largest window */
};

/* Shared memory of a block. The ring follows it: local + 4 rows of kRingColumns. */
struct alignas(16) Shared {
    union {
        float line[kGroup][4][kLinePitch]; /* of each row mean and variance of s, then of d */
        Part parts[kThreads];              /* at the end */
    };
    int32_t sums[kGroup][kSumPitch];      /* distances */
    int32_t totals[kGroup][kSumPitch / kGroup];
    uint8_t near[kLinePitch];             /* of each column a bit per row: a pixel of interest is within reach */
    uint32_t seen;
};

/* A thread's own, in registers. */
struct Thread {
    float s[kSpread], d[kSpread];         /* the column's rows, oldest first */
    uint32_t bits[kGroup], bits_hat[kGroup]; /* of the next four, on their way */
    const char *from, *from_hat;          /* the rows behind these */
    char *heat;                           /* the first row whose heatmap is not written */
    uint32_t wanted;                      /* bit i: row i is of interest */
    float residual[kGroup], distance[kGroup];
    int32_t column;                       /* sum of the last `local` rows of sums */
    Part part;
};

template <class E, int kX, int kHat, bool kBox, bool kMap> struct ScoreBlock {
    const Launch &job;
    Shared &sh;
    int32_t *ring;
    E &exec;
    int n, strip, tile;
    int first, end;  /* rows of the map; pixels of rows [first, own_end) are this strip's to look at */
    int own_end;
    int x0, columns; /* first column of the map, and how many */
    int own_columns; /* of pixels */
    int slot = 0;    /* of the ring, for the first of four rows of sums */

    GRD_DEVICE ScoreBlock(const Launch &job_, Shared &sh_, int32_t *ring_, E &exec_, int block, int patch)
        : job(job_), sh(sh_), ring(ring_), exec(exec_), n(patch) {
        strip = kMap ? block / job.tiles : block, tile = kMap ? block % job.tiles : 0;
        first = strip * job.strip_rows;
        const bool lowest = strip + 1 == job.strips, rightmost = tile + 1 == job.tiles;
        end = lowest ? job.map_h : first + job.strip_rows;
        own_end = lowest ? job.h : end;
        x0 = tile * kTileColumns;
        columns = rightmost ? job.map_w - x0 : kTileColumns;
        own_columns = rightmost ? job.w - x0 : kTileColumns;
    }

    GRD_DEVICE bool sums_wanted() const { return !kMap && job.phi_local != nullptr; }
    GRD_DEVICE int ring_rows() const { return job.local + kGroup; } /* four new ones, and those that leave the sums */

    /* ------------------------------------------------------------------------------------------ columns */

    GRD_DEVICE static const char *at(const Source &from, int n, int c, int y, int x) {
        return from.data + n * from.stride_n + c * from.stride_c + y * from.stride_y + x * from.stride_x;
    }

    GRD_DEVICE int column_of(int t) const { return x0 - job.lead + t; }

    /* Rows [y, y + kGroup) of the thread's column, from where it has come to; 0 where there are none. */
    GRD_DEVICE void load(Thread &me, int t, int y) const {
        const bool inside = static_cast<uint32_t>(column_of(t)) < static_cast<uint32_t>(job.w);
        GRD_UNROLLED for (int i = 0; i < kGroup; i++) {
            const bool here = inside && static_cast<uint32_t>(y + i) < static_cast<uint32_t>(job.h);
            me.bits[i] = here ? load_bits<kX>(me.from, job.x.dtype) : 0;
            me.bits_hat[i] = here ? load_bits<kHat>(me.from_hat, job.x_hat.dtype) : 0;
            me.from += job.x.stride_y, me.from_hat += job.x_hat.stride_y;
        }
    }
    GRD_DEVICE bool of_interest(int t, int y) const {
        const int x = column_of(t);
        if (x < 0 || x >= job.w || y < 0 || y >= job.h) return false;
        return load_as<uint8_t>(at(job.roi, n, 0, y, x)) != 0;
    }
    /* Takes the loaded rows in, as rows [at, at + kGroup) of the 14 that begin at y. */
    GRD_DEVICE void take(Thread &me, int t, int y, int at_row) const {
        GRD_UNROLLED for (int i = 0; i < kGroup; i++) {
            float p = value_of_bits<kX>(me.bits[i], job.x.dtype), q = value_of_bits<kHat>(me.bits_hat[i], job.x_hat.dtype);
            if (at_row + i >= kSpread) continue;
            if (job.roi.data) {
                const bool wanted = of_interest(t, y + at_row + i);
                p = wanted ? p : 0.0f, q = wanted ? q : 0.0f;
                me.wanted |= static_cast<uint32_t>(wanted) << (at_row + i);
            }
            me.s[at_row + i] = p + q, me.d[at_row + i] = p - q;
        }
    }
    /* The 14 rows that outputs [y, y + 4) need: four new ones behind ten known ones, or all of them. */
    GRD_DEVICE void take_rows(Thread &me, int t, int c, int y, bool known) const {
        const int top = y - job.lead;
        if (known) {
            GRD_UNROLLED for (int i = 0; i < kSpread - kGroup; i++)
                me.s[i] = me.s[i + kGroup], me.d[i] = me.d[i + kGroup];
            me.wanted >>= kGroup;
            take(me, t, top, kSpread - kGroup);
            return;
        }
        me.wanted = 0;
        me.from = at(job.x, n, c, top, column_of(t)), me.from_hat = at(job.x_hat, n, c, top, column_of(t));
        GRD_UNROLLED for (int i = 0; i < kSpread; i += kGroup) {
            load(me, t, top + i);
            take(me, t, top, i);
        }
        constexpr int kPast = (kSpread + kGroup - 1) / kGroup * kGroup - kSpread; /* rows that were read too many */
        me.from -= kPast * job.x.stride_y, me.from_hat -= kPast * job.x_hat.stride_y;
    }

    /* Residuals of the pixels that are this block's own: rows [y, y + 4). */
    GRD_DEVICE void look(Thread &me, int t, int c, int y) const {
        constexpr int kAt = kBox ? kReach : 0;
        if (static_cast<uint32_t>(t - kAt) >= static_cast<uint32_t>(own_columns)) return;
        GRD_UNROLLED for (int i = 0; i < kGroup; i++) {
            if (y + i >= own_end) break;
            const float residual = fabsf(me.d[kAt + i]);
            if (!(fabsf(me.s[kAt + i]) <= kLargestPixel)) me.part.fine = 0;
            me.residual[i] = c == 0 ? residual : me.residual[i] + residual;
            if (c + 1 < job.c) continue;
            const float mean = me.residual[i] * job.share;
            if (!job.roi.data || (me.wanted >> (kAt + i) & 1u)) me.part.least = fminf(me.part.least, mean);
            me.part.largest = fmaxf(me.part.largest, mean);
            if (!job.heatmap.data) continue;
            store_heat(me.heat, job.heatmap.dtype, job.heatmap_scale, mean);
            me.heat += job.heatmap.stride_y;
        }
    }

    GRD_DEVICE void down(Thread &me, int t) const {
        float mean[kGroup], variance[kGroup];
        GRD_UNROLLED for (int map = 0; map < 4; map += 2) {
            moments<kBox, false>(map ? me.d : me.s, nullptr, mean, variance);
            GRD_UNROLLED for (int i = 0; i < kGroup; i++)
                sh.line[i][map][t] = mean[i], sh.line[i][map + 1][t] = variance[i];
        }
        if (job.roi.data) {
            uint32_t near = 0;
            GRD_UNROLLED for (int i = 0; i < kGroup; i++)
                near |= static_cast<uint32_t>((me.wanted >> i & ((1u << kTaps) - 1)) != 0) << i;
            sh.near[t] = static_cast<uint8_t>(near);
        }
    }

    /* Sums down the columns of the rows [y, y + 4) that the phases before have put into the ring. */
    GRD_DEVICE void sum_columns(Thread &me, int t, int y) const {
        if (t >= kRingColumns) return;
        const int edge = job.local - 1, rows = end - first;
        int32_t *to = nullptr;
        if (job.border && (y - first < edge || y - first + kGroup > rows - edge))
            to = job.border + (static_cast<int64_t>(n) * job.strips + strip) * 2 * edge * kRingColumns + t;
        GRD_UNROLLED for (int i = 0; i < kGroup; i++) {
            const int row = y - first + i;
            if (row >= rows) break;
            const int at_row = wrapped(slot + i), gone = wrapped(at_row + kGroup);
            const int32_t now = ring[at_row * kRingColumns + t];
            me.column += now - ring[gone * kRingColumns + t];
            if (me.column > me.part.local) me.part.local = me.column;
            if (to && row < edge) to[row * kRingColumns] = now;
            if (to && row >= rows - edge) to[(edge + row - (rows - edge)) * kRingColumns] = now;
        }
    }
    GRD_DEVICE int wrapped(int row) const { return row < ring_rows() ? row : row - ring_rows(); }

    /* --------------------------------------------------------------------------------------------- rows */

    GRD_DEVICE static void read(const float *from, float *out) {
        GRD_UNROLLED for (int i = 0; i < kSpread + 2; i += 4) {
#if defined(__CUDACC__)
            const float4 four = *reinterpret_cast<const float4 *>(from + i);
            out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
#else
            memcpy(out + i, from + i, 4 * sizeof *from);
#endif
        }
    }

    GRD_DEVICE void along(Thread &me, int row, int group, int c) const {
        float v[kSpread + 2], u[kSpread + 2], mean[2][kGroup], variance[2][kGroup];
        GRD_UNROLLED for (int map = 0; map < 2; map++) {
            read(sh.line[row][2 * map] + group * kGroup, v);
            read(sh.line[row][2 * map + 1] + group * kGroup, u);
            moments<kBox, true>(v, u, mean[map], variance[map]);
        }
        GRD_UNROLLED for (int j = 0; j < kGroup; j++) {
            const float half = half_distance(mean[0][j], mean[1][j], variance[0][j], variance[1][j]);
            me.distance[j] = c == 0 ? half : me.distance[j] + half;
        }
    }

    /* Distances of all channels -> integers; phi, positions; the sums that windows begin with. */
    GRD_DEVICE void close_row(Thread &me, int row, int group, int y) const {
        int32_t total = 0, four[kGroup];
        const int x = group * kGroup;
        GRD_UNROLLED for (int j = 0; j < kGroup; j++) {
            four[j] = x + j < columns && y + row < end ? cuda::int_of_float(me.distance[j] * job.unit) : 0;
            total += four[j];
        }
        me.part.phi += total;
        if (job.roi.data && x < columns && y + row < end) {
            uint32_t wanted = 0; /* bit i: column x + i */
            GRD_UNROLLED for (int i = 0; i < kSpread; i++)
                wanted |= static_cast<uint32_t>(sh.near[x + i] >> row & 1) << i;
            GRD_UNROLLED for (int j = 0; j < kGroup; j++)
                me.part.positions += x + j < columns && (wanted >> j & ((1u << kTaps) - 1)) != 0;
        }
        if (kMap) {
            int32_t *to = job.map + (static_cast<int64_t>(n) * job.map_h + y + row) * job.map_w + x0 + x;
            GRD_UNROLLED for (int j = 0; j < kGroup; j++)
                if (x + j < columns && y + row < end) to[j] = four[j];
        } else if (sums_wanted()) {
            GRD_UNROLLED for (int j = 0; j < kGroup; j++) sh.sums[row][x + j] = four[j];
            sh.totals[row][group] = total;
        }
    }

    /* Sums of `local` distances along x into the ring. */
    GRD_DEVICE void sum_windows(int row, int group, int y) const {
        const int x = group * kGroup, whole = job.local / kGroup, rest = job.local % kGroup;
        if (x >= kRingColumns || y + row >= end) return;
        const int32_t *sums = sh.sums[row] + x, *gained = sums + job.local;
        int32_t sum = job.sum_shift ? 1 << (job.sum_shift - 1) : 0;
        for (int i = 0; i < whole; i++) sum += sh.totals[row][group + i];
        for (int i = 0; i < rest; i++) sum += sums[whole * kGroup + i];
        int32_t *to = ring + wrapped(slot + row) * kRingColumns + x;
        to[0] = sum >> job.sum_shift;
        GRD_UNROLLED for (int j = 1; j < kGroup; j++) {
            sum += gained[j - 1] - sums[j - 1];
            to[j] = sum >> job.sum_shift;
        }
    }

    /* ------------------------------------------------------------------------------------------- borders */

    /* Windows of phi_local that begin in strip `upper` and end in the next. */
    GRD_DEVICE void cross(Thread &me, int t, int upper) const {
        if (t >= kRingColumns) return;
        const int edge = job.local - 1;
        const int64_t rows = static_cast<int64_t>(edge) * kRingColumns;
        const int32_t *next = job.border + (static_cast<int64_t>(n) * job.strips + upper + 1) * 2 * rows + t;
        const int32_t *last = next - rows; /* second half of the strip before */
        int32_t sum = 0;
        GRD_UNROLLED for (int i = 0; i < edge; i++) sum += exec.load(last + i * kRingColumns);
        GRD_UNROLLED for (int i = 0; i < edge; i++) {
            sum += exec.load(next + i * kRingColumns);
            if (sum > me.part.local) me.part.local = sum;
            sum -= exec.load(last + i * kRingColumns);
        }
    }

    GRD_DEVICE static void add(Part &to, const Part &more) {
        to.phi += more.phi, to.positions += more.positions, to.fine &= more.fine;
        if (more.local > to.local) to.local = more.local;
        to.least = fminf(to.least, more.least), to.largest = fmaxf(to.largest, more.largest);
    }
    GRD_DEVICE static Part nothing() { return {0, 0, 0, INFINITY, 0.0f, 1, 0}; }

    /* The patch's figures. */
    GRD_DEVICE void finish(const Part &all) const {
        const int64_t positions = job.roi.data ? all.positions : static_cast<int64_t>(job.map_h) * job.map_w;
        const bool fine = all.fine && positions > 0 && all.largest * static_cast<float>(job.c) <= kLargestPixel;
        const double units = 1.0 / (1 << kUnitBits), area = static_cast<double>(job.local) * job.local;
        const float nan = float_of_bits(0x7fc00000u);
        if (job.phi)
            job.phi[n] = fine ? static_cast<float>(static_cast<double>(all.phi) * units / static_cast<double>(positions)) : nan;
        if (job.residual_min) job.residual_min[n] = fine ? all.least : nan;
        if (job.residual_max) job.residual_max[n] = fine ? all.largest : nan;
        if (!job.phi_local) return;
        const double window = static_cast<double>(static_cast<int64_t>(all.local) << job.sum_shift);
        job.phi_local[n] = fine ? static_cast<float>(window * units / area) : nan; /* kMap: score_local_block, unless NaN */
    }

    /* ----------------------------------------------------------------------------------------------- all */

    GRD_DEVICE void run() {
        exec.each([&](Thread &me, int t) {
            me.part = nothing();
            me.column = 0;
            me.wanted = 0;
            me.heat = const_cast<char *>(at(job.heatmap, n, 0, first, column_of(t)));
            if (t < kLinePitch - kThreads) {
                for (int i = 0; i < 4 * kGroup; i++) sh.line[i / 4][i % 4][kThreads + t] = 0;
                sh.near[kThreads + t] = 0;
            }
            if (!sums_wanted()) return;
            for (int i = t; i < kSumPitch; i += kThreads)
                for (int row = 0; row < kGroup; row++) sh.sums[row][i] = 0, sh.totals[row][i / kGroup] = 0;
            for (int i = t; i < ring_rows() * kRingColumns; i += kThreads) ring[i] = 0;
        });
        const bool ahead = job.c == 1; /* one channel: the rows stay in registers */
        for (int y = first; y < own_end; y += kGroup) {
            const bool scored = job.scores && y < end;
            for (int c = 0; c < job.c; c++) {
                exec.each([&](Thread &me, int t) {
                    if (sums_wanted() && c == 0 && y > first && y - kGroup < end) sum_columns(me, t, y - kGroup);
                    take_rows(me, t, c, y, ahead && y > first);
                    look(me, t, c, y);
                    if (scored) down(me, t);
                    if (ahead) load(me, t, y - job.lead + kSpread);
                });
                if (!scored) continue;
                exec.each([&](Thread &me, int t) {
                    along(me, t / kGroups, t % kGroups, c);
                    if (c + 1 == job.c) close_row(me, t / kGroups, t % kGroups, y);
                });
            }
            if (y > first) slot = wrapped(slot + kGroup);
            if (scored && sums_wanted())
                exec.each([&](Thread &, int t) { sum_windows(t / kGroups, t % kGroups, y); });
        }
        const int last = first + (end - 1 - first) / kGroup * kGroup;
        if (sums_wanted() && own_end <= last + kGroup) /* else the rows below the map came after them */
            exec.each([&](Thread &me, int t) { sum_columns(me, t, last); });
        if (sums_wanted() && job.strips > 1) cross_borders();
        conclude();
    }

    GRD_DEVICE void cross_borders() {
        exec.each([&](Thread &, int) { exec.fence(); });
        exec.each([&](Thread &, int t) {
            if (t == 0) sh.seen = exec.set_bits(&job.counters[n].done, 1u << strip);
        });
        exec.each([&](Thread &me, int t) {
            exec.fence();
            if (strip > 0 && (sh.seen >> (strip - 1) & 1u)) cross(me, t, strip - 1);
            if (strip + 1 < job.strips && (sh.seen >> (strip + 1) & 1u)) cross(me, t, strip);
        });
    }

    GRD_DEVICE void conclude() {
        exec.each([&](Thread &me, int t) { sh.parts[t] = me.part; });
        for (int half = kThreads / 2; half > 0; half /= 2)
            exec.each([&](Thread &, int t) {
                if (t < half) add(sh.parts[t], sh.parts[t + half]);
            });
        const int blocks = job.strips * job.tiles;
        exec.each([&](Thread &, int t) {
            if (t != 0) return;
            if (blocks == 1) return finish(sh.parts[0]);
            Part *parts = job.parts + static_cast<int64_t>(n) * blocks;
            parts[strip * job.tiles + tile] = sh.parts[0];
            exec.fence();
            Counter &counter = job.counters[n];
            if (exec.add_one(&counter.finished) + 1 != static_cast<uint32_t>(blocks)) return;
            exec.fence();
            Part all = nothing();
            for (int i = 0; i < blocks; i++) add(all, exec.load(parts + i));
            finish(all);
            counter.done = counter.finished = 0; /* for the next launch */
        });
    }
};

} // namespace
} // namespace grd::score
#endif
