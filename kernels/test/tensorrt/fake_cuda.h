/* fake_cuda.h - a CUDA runtime in host memory: what it does only takes place when a stream is waited for, calls fail when
 * told to, and memory has guard bytes. For any number of threads, each stream for one at a time; allocating while the
 * thread captures a graph, or another does in global mode, ends the program.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#ifdef __cplusplus
#include <functional>
extern "C" {
#endif

/* The device, and how many there are. */
void fake_cuda_device(int major, int minor, int count);
/* The call of this name fails with `error` after it succeeded `after` more times, once; NULL: none. */
void fake_cuda_fail(const char *call, int after, int error);
/* Calls of this name since the last fake_cuda_reset. */
int fake_cuda_calls(const char *call);
void fake_cuda_reset(void);
/* Counts a call of another part of the fake: the error that it is to return, else 0. */
int fake_cuda_called(const char *call);
/* Blocks of memory, streams, graphs and executables that live; guard bytes that were hit. */
int fake_cuda_live(void);
int fake_cuda_damage(void);
int fake_cuda_is_capturing(void *stream);
/* Work takes at least so long. */
void fake_cuda_delay(int us);
/* Work begins when another stream has some to do, too, but waits for that so long at most; 0: at once. Pairs that met so,
 * and those that waited in vain, since this call. */
void fake_cuda_pair(double most_s);
int fake_cuda_pairs(void);
int fake_cuda_alone(void);
/* Work on a stream, as kernels are. */
void fake_cuda_submit(void *stream, void (*work)(void *argument), void *argument, void (*release)(void *argument));

#ifdef __cplusplus
}

/* The same for anything that can be called. */
template <class Work> void fake_cuda_submit(void *stream, Work work) {
    fake_cuda_submit(
        stream, [](void *argument) { (*static_cast<Work *>(argument))(); }, new Work(std::move(work)),
        [](void *argument) { delete static_cast<Work *>(argument); });
}
#endif
#endif
