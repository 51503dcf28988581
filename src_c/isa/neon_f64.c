/* Two doubles: AArch64 Advanced SIMD. */
#if defined(__aarch64__)
#include "../core.h"
#include "../kernels/real_f64.h"

#include <arm_neon.h>

enum { LANES = 2 };
typedef float64x2_t vec;
typedef uint64x2_t ivec;
typedef uint64x2_t mask;

static inline vec v_set1(real x) { return vdupq_n_f64(x); }
static inline vec v_iota(void) { return (vec){0, 1}; }
static inline vec v_add(vec a, vec b) { return vaddq_f64(a, b); }
static inline vec v_sub(vec a, vec b) { return vsubq_f64(a, b); }
static inline vec v_mul(vec a, vec b) { return vmulq_f64(a, b); }
static inline vec v_div(vec a, vec b) { return vdivq_f64(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f64(c, a, b); }
static inline mask v_eq(vec a, vec b) { return vceqq_f64(a, b); }
static inline mask v_gt(vec a, vec b) { return vcgtq_f64(a, b); }
static inline bool v_any(mask m) { return vmaxvq_u32(vreinterpretq_u32_u64(m)) != 0; }
static inline vec v_select(mask m, vec a, vec b) { return vbslq_f64(m, a, b); }
/* fmax and fmin would order NaN differently from the other ISAs. */
static inline vec v_max(vec a, vec b) { return v_select(v_gt(a, b), a, b); }
static inline vec v_min(vec a, vec b) { return v_select(v_gt(b, a), a, b); }

static inline ivec v_bits(vec a) { return vreinterpretq_u64_f64(a); }
static inline vec v_from_bits(ivec a) { return vreinterpretq_f64_u64(a); }
static inline ivec i_set1(real_bits x) { return vdupq_n_u64(x); }
static inline ivec i_or(ivec a, ivec b) { return vorrq_u64(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return vsubq_u64(a, b); }
static inline ivec i_to_exponent(ivec a) { return vshlq_n_u64(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return vshrq_n_u64(a, MANTISSA_BITS); }

/* Through bytes: the elements of a user's array need not be aligned. */
static inline vec v_load(const real *p) { return vreinterpretq_f64_u8(vld1q_u8((const uint8_t *)p)); }
static inline void v_store(real *p, vec a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_f64(a)); }
static inline void v_stream(real *p, vec a) { v_store(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) {
    real lanes[LANES];
    v_store(lanes, rest);
    __builtin_memcpy(lanes, p, (size_t)n * sizeof *p);
    return v_load(lanes);
}
static inline void v_store_first(real *p, vec a, int64_t n) {
    real lanes[LANES];
    v_store(lanes, a);
    __builtin_memcpy(p, lanes, (size_t)(n < LANES ? n : LANES) * sizeof *p); /* never more, which gcc doubts */
}

/* See avx512_f32.c. */
enum { COLUMNS = 2 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    (void)step;
    return v_load((const real *)p);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    (void)step;
    v_store((real *)to, a);
}
static inline void v_transpose(vec *a) {
    vec low = vzip1q_f64(a[0], a[1]);
    a[1] = vzip2q_f64(a[0], a[1]);
    a[0] = low;
}
static inline void v_unzip(vec *a) { v_transpose(a); }
static inline void v_zip(vec *a) { v_transpose(a); }

static inline void v_fence(void) {}

#include "../kernels/kernels.h"

const kernels fastce_neon_f64 = KERNELS;
#endif
