/* What memory allows: reading an array once, and reading one while writing another.
 *
 * Benchmarks hold the kernels against it. It computes next to nothing on purpose, and is compiled for several widths of
 * vectors, of which the loader takes the widest this machine has: in cache, a narrow load would be the limit. */
#include "memory_limit.h"

#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined __x86_64__ && defined __gnu_linux__ && (!defined __clang__ || __clang_major__ >= 14)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDEST
#endif

enum { BLOCK = 256, LINE = 64 };

typedef uint64_t vec __attribute__((vector_size(LINE)));

/* Each thread takes one contiguous part of the blocks, as the rows of a batch would be shared out. */
static size_t part_begin(size_t n_bytes, int n_threads, int thread) {
    return n_bytes / BLOCK * (size_t)thread / (size_t)n_threads * BLOCK;
}

/* Always inline: gcc takes a function that only prefetches for one that does nothing, and leaves out the call. */
__attribute__((always_inline)) static inline void ask_for(const char *p, size_t ahead) {
    if (!ahead) return;
    for (size_t k = 0; k < BLOCK; k += LINE) __builtin_prefetch(p + ahead + k);
}

WIDEST static uint64_t read_part(const char *in, size_t begin, size_t end, size_t prefetch) {
    vec sums[BLOCK / LINE] = {{0}};
    for (size_t i = begin; i < end; i += BLOCK) {
        ask_for(in + i, prefetch);
        for (size_t k = 0; k < BLOCK / LINE; k++) {
            vec v;
            memcpy(&v, in + i + LINE * k, LINE);
            sums[k] |= v;
        }
    }
    uint64_t total = 0;
    for (size_t k = 0; k < BLOCK / LINE; k++) {
        for (size_t lane = 0; lane < LINE / sizeof total; lane++) total ^= sums[k][lane];
    }
    return total;
}

WIDEST static void copy_part(const char *in, char *out, size_t begin, size_t end, size_t prefetch) {
    for (size_t i = begin; i < end; i += BLOCK) {
        ask_for(in + i, prefetch);
        for (size_t k = 0; k < BLOCK; k += LINE) {
            vec v;
            memcpy(&v, in + i + k, LINE);
            memcpy(out + i + k, &v, LINE);
        }
    }
}

/* Stores that do not read the lines they overwrite: one for a line where there are such. */
#ifdef __x86_64__
__attribute__((target("avx512f"))) static void stream_lines(const char *in, char *out, size_t begin, size_t end,
                                                            size_t prefetch) {
    for (size_t i = begin; i < end; i += BLOCK) {
        ask_for(in + i, prefetch);
        for (size_t k = 0; k < BLOCK; k += LINE)
            _mm512_stream_si512((void *)(out + i + k), _mm512_loadu_si512(in + i + k));
    }
    _mm_sfence();
}

static void stream_part(const char *in, char *out, size_t begin, size_t end, size_t prefetch) {
    if (__builtin_cpu_supports("avx512f")) {
        stream_lines(in, out, begin, end, prefetch);
        return;
    }
    for (size_t i = begin; i < end; i += BLOCK) {
        ask_for(in + i, prefetch);
        for (size_t k = 0; k < BLOCK; k += sizeof(__m128i)) {
            const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(in + i + k));
            _mm_stream_si128((__m128i *)(void *)(out + i + k), v);
        }
    }
    _mm_sfence();
}
#else
static void stream_part(const char *in, char *out, size_t begin, size_t end, size_t prefetch) {
    copy_part(in, out, begin, end, prefetch);
}
#endif

uint64_t memory_read(const char *in, size_t n_bytes, size_t prefetch, int n_threads) {
    uint64_t total = 0;
#pragma omp parallel for num_threads(n_threads) schedule(static) reduction(^ : total)
    for (int t = 0; t < n_threads; t++) {
        total ^= read_part(in, part_begin(n_bytes, n_threads, t), part_begin(n_bytes, n_threads, t + 1), prefetch);
    }
    return total;
}

void memory_read_write(const char *in, char *out, size_t n_bytes, size_t prefetch, int streaming, int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (int t = 0; t < n_threads; t++) {
        const size_t begin = part_begin(n_bytes, n_threads, t), end = part_begin(n_bytes, n_threads, t + 1);
        (streaming ? stream_part : copy_part)(in, out, begin, end, prefetch);
    }
}
