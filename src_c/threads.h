/* The one seam threads live behind: OpenMP, or the calling thread alone. */
#ifndef FASTCE_THREADS_H
#define FASTCE_THREADS_H

#include <stdint.h>

/* Calls work(context, item, worker) for every item in [0, count), worker in [0, num_threads). */
void for_each(int64_t count, int num_threads, void (*work)(void *context, int64_t item, int worker), void *context);

/* The number of workers for_each would use: 1 in a forked child, where OpenMP's threads do not exist. */
int usable_threads(int64_t count, int num_threads);

#endif
