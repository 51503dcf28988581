/* What memory allows: reading an array once, and reading one while writing another.
 *
 * Compiled by memory_limit.py for the machine it runs on (-march=native), so that a wide vector is the widest there is.
 * It computes next to nothing on purpose; no part of fastce. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

typedef uint64_t vec __attribute__((vector_size(64)));

static inline vec load(const char *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* A store that does not read the line it overwrites; p is aligned. */
static inline void stream(char *p, vec v) {
#ifdef __AVX512F__
    _mm512_stream_si512((__m512i *)p, (__m512i)v);
#elif defined __AVX__
    __m256i half[2];
    memcpy(half, &v, sizeof v);
    _mm256_stream_si256((__m256i *)p, half[0]);
    _mm256_stream_si256((__m256i *)p + 1, half[1]);
#else
    memcpy(p, &v, sizeof v);
#endif
}

/* Each thread takes one contiguous part of the lines, as the rows of a batch would be shared out. */
#define PARTS(n_lines, n_parts, part, begin, end)                                                                      \
    const size_t begin = (n_lines) * (size_t)(part) / (size_t)(n_parts),                                               \
                 end = (n_lines) * (size_t)((part) + 1) / (size_t)(n_parts)

/* Reads n_bytes and returns what keeps the compiler from dropping the loop. prefetch: bytes ahead, 0 for none. */
uint64_t limit_read(const char *in, size_t n_bytes, size_t prefetch, int n_threads) {
    uint64_t total = 0;
    const size_t n_blocks = n_bytes / 256;
#pragma omp parallel for num_threads(n_threads) schedule(static) reduction(^ : total)
    for (int t = 0; t < n_threads; t++) {
        PARTS(n_blocks, n_threads, t, begin, end);
        vec a = {0}, b = {0}, c = {0}, d = {0};
        for (size_t i = begin; i < end; i++) {
            const char *p = in + 256 * i;
            if (prefetch) {
                for (size_t k = 0; k < 256; k += 64) __builtin_prefetch(p + prefetch + k);
            }
            a |= load(p), b |= load(p + 64), c |= load(p + 128), d |= load(p + 192);
        }
        a |= b | c | d;
        for (int k = 0; k < 8; k++) total ^= a[k];
    }
    return total;
}

/* Copies n_bytes; out is aligned to 64 bytes. */
void limit_read_write(const char *in, char *out, size_t n_bytes, size_t prefetch, int streaming, int n_threads) {
    const size_t n_blocks = n_bytes / 256;
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (int t = 0; t < n_threads; t++) {
        PARTS(n_blocks, n_threads, t, begin, end);
        for (size_t i = begin; i < end; i++) {
            const char *p = in + 256 * i;
            if (prefetch) {
                for (size_t k = 0; k < 256; k += 64) __builtin_prefetch(p + prefetch + k);
            }
            for (size_t k = 0; k < 256; k += 64) {
                const vec v = load(p + k);
                if (streaming) {
                    stream(out + 256 * i + k, v);
                } else {
                    memcpy(out + 256 * i + k, &v, sizeof v);
                }
            }
        }
#ifdef __AVX__
        _mm_sfence();
#endif
    }
}
