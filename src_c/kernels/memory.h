/* Vectors from and to memory as it is stored: the type of the arithmetic, or half of its width. `storage` is a constant
 * wherever these are inlined. */
#include "../convert.h"

#ifndef REAL_HAS_HALVES
#include "wide_f64.h"
#endif

#define INLINE inline __attribute__((always_inline))

enum { GROUP = 4 * LANES }; /* four vectors at a time hide the latency of an exponential */

static INLINE ptrdiff_t storage_size(fastce_dtype storage) {
    return storage == FASTCE_F16 || storage == FASTCE_BF16 ? 2 : (ptrdiff_t)sizeof(real);
}

static INLINE fastce_dtype real_dtype(void) { return sizeof(real) == 4 ? FASTCE_F32 : FASTCE_F64; }

static INLINE vec load(const char *p, fastce_dtype storage) {
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16) return v_load_f16((const uint16_t *)p);
    if (storage == FASTCE_BF16) return v_load_bf16((const uint16_t *)p);
#endif
    (void)storage;
    return v_load((const real *)p);
}

static INLINE size_t lanes_among(int64_t n) { return n <= 0 ? 0 : n < LANES ? (size_t)n : LANES; }

static INLINE vec load_first(const char *p, int64_t n, real rest, fastce_dtype storage) {
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16 || storage == FASTCE_BF16) {
        uint16_t lanes[LANES];
        uint16_t bits = storage == FASTCE_F16 ? f16_from_float(rest) : bf16_from_float(rest);
        for (int i = 0; i < LANES; i++) lanes[i] = bits;
        memcpy(lanes, p, lanes_among(n) * 2);
        return load((const char *)lanes, storage);
    }
#endif
    (void)storage;
    return v_load_first((const real *)p, n, v_set1(rest));
}

/* A vector of the n elements from p on, however few, none included; rest stands for those that are not there. */
static INLINE vec load_up_to(const char *p, int64_t n, real rest, fastce_dtype storage) {
    return n >= LANES ? load(p, storage) : n <= 0 ? v_set1(rest) : load_first(p, n, rest, storage);
}

static INLINE vec load_reals(const real *p, int64_t n, real rest) {
    return load_up_to((const char *)p, n, rest, real_dtype());
}

static INLINE void store(char *p, vec a, fastce_dtype storage, bool stream) {
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16 || storage == FASTCE_BF16) {
        half_vec h = storage == FASTCE_F16 ? v_to_f16(a) : v_to_bf16(a);
        if (stream)
            v_stream_half((uint16_t *)p, h);
        else
            v_store_half((uint16_t *)p, h);
        return;
    }
#endif
    (void)storage;
    if (stream)
        v_stream((real *)p, a);
    else
        v_store((real *)p, a);
}

static INLINE void store_first(char *p, vec a, int64_t n, fastce_dtype storage) {
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16 || storage == FASTCE_BF16) {
        uint16_t lanes[LANES];
        v_store_half(lanes, storage == FASTCE_F16 ? v_to_f16(a) : v_to_bf16(a));
        memcpy(p, lanes, lanes_among(n) * 2);
        return;
    }
#endif
    (void)storage;
    v_store_first((real *)p, a, n);
}

/* How far ahead of its use memory is asked for: some hundred nanoseconds of work, and the translation of the
 * next page comes with it. */
enum { AHEAD_BYTES = 4096 };

static INLINE void prefetch(const char *p, ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < size; i += 64) __builtin_prefetch(p + i);
}

/* The same where rows are one long stream: first into L2, and from there into L1. A line on its way from memory into L1
 * keeps all that time one of the few places at which the other misses of L1, those of stores too, wait for L2. */
enum { STREAM_AHEAD_BYTES = 2048, STREAM_FURTHER_BYTES = 6144 };

static INLINE void prefetch_stream(const char *p, ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < size; i += 64) {
        __builtin_prefetch(p + STREAM_FURTHER_BYTES + i, 0, 2);
        __builtin_prefetch(p + i);
    }
}

static INLINE real first_lane(vec a) {
    real lanes[LANES];
    v_store(lanes, a);
    return lanes[0];
}

/* Sums of lanes in memory; what rounding loses of them is kept where the arithmetic is no narrower than the sum. */
typedef struct lane_sums {
    double sum[LANES], lost[LANES];
} lane_sums;

static INLINE vec rounded_sums(const double *sum, const double *lost) {
    return sizeof(real) == sizeof(double) ? v_add(v_from_doubles(sum), v_from_doubles(lost)) : v_from_doubles(sum);
}

/* Copies elements of any dtype, byte order and stride into reals. */
static void gather(real *to, const char *p, ptrdiff_t stride, int64_t n, fastce_dtype dtype, bool swapped) {
    if (dtype == real_dtype() && !swapped) {
        for (int64_t i = 0; i < n; i++) memcpy(&to[i], p + i * stride, sizeof *to);
    } else {
        for (int64_t i = 0; i < n; i++) to[i] = (real)load_number(p + i * stride, dtype, swapped);
    }
}

static void scatter(char *p, ptrdiff_t stride, const real *from, int64_t n, fastce_dtype dtype, bool swapped) {
    if (dtype == real_dtype() && !swapped) {
        for (int64_t i = 0; i < n; i++) memcpy(p + i * stride, &from[i], sizeof *from);
    } else {
        for (int64_t i = 0; i < n; i++) store_floating(p + i * stride, (double)from[i], dtype, swapped);
    }
}
