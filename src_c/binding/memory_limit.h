/* What memory allows, for benchmarks: see memory_limit.c. */
#ifndef FASTCE_MEMORY_LIMIT_H
#define FASTCE_MEMORY_LIMIT_H

#include <stddef.h>
#include <stdint.h>

/* Reads n_bytes, in whole blocks of 256, and returns what keeps a compiler from dropping the loop. prefetch: how many
 * bytes ahead, 0 for none. */
uint64_t memory_read(const char *in, size_t n_bytes, size_t prefetch, int n_threads);

/* Copies n_bytes, in whole blocks of 256; out is aligned to 64. streaming: past the caches. */
void memory_read_write(const char *in, char *out, size_t n_bytes, size_t prefetch, int streaming, int n_threads);

#endif
