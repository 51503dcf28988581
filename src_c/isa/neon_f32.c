/* Four floats: AArch64 Advanced SIMD. */
#if defined(__aarch64__)
#include "../core.h"
#include "../kernels/real_f32.h"

#include <arm_neon.h>

enum { LANES = 4 };
typedef float32x4_t vec;
typedef uint32x4_t ivec;
typedef uint32x4_t mask;

static inline vec v_set1(real x) { return vdupq_n_f32(x); }
static inline vec v_iota(void) { return (vec){0, 1, 2, 3}; }
static inline vec v_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec v_sub(vec a, vec b) { return vsubq_f32(a, b); }
static inline vec v_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec v_div(vec a, vec b) { return vdivq_f32(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline mask v_eq(vec a, vec b) { return vceqq_f32(a, b); }
static inline mask v_gt(vec a, vec b) { return vcgtq_f32(a, b); }
static inline bool v_any(mask m) { return vmaxvq_u32(m) != 0; }
static inline vec v_select(mask m, vec a, vec b) { return vbslq_f32(m, a, b); }
/* fmax and fmin would order NaN differently from the other ISAs. */
static inline vec v_max(vec a, vec b) { return v_select(v_gt(a, b), a, b); }
static inline vec v_min(vec a, vec b) { return v_select(v_gt(b, a), a, b); }

static inline ivec v_bits(vec a) { return vreinterpretq_u32_f32(a); }
static inline vec v_from_bits(ivec a) { return vreinterpretq_f32_u32(a); }
static inline ivec i_set1(real_bits x) { return vdupq_n_u32(x); }
static inline ivec i_or(ivec a, ivec b) { return vorrq_u32(a, b); }
static inline ivec i_sub(ivec a, ivec b) { return vsubq_u32(a, b); }
static inline ivec i_to_exponent(ivec a) { return vshlq_n_u32(a, MANTISSA_BITS); }
static inline ivec i_from_exponent(ivec a) { return vshrq_n_u32(a, MANTISSA_BITS); }

/* Through bytes: the elements of a user's array need not be aligned. */
static inline vec v_load(const real *p) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p)); }
static inline void v_store(real *p, vec a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_f32(a)); }
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

typedef uint16x4_t half_vec;
static inline half_vec load_half(const uint16_t *p) { return vreinterpret_u16_u8(vld1_u8((const uint8_t *)p)); }
static inline vec v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_half(p))); }
static inline vec v_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(load_half(p), 16)); }
static inline half_vec v_to_f16(vec a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
static inline half_vec v_to_bf16(vec a) {
    uint32x4_t u = vreinterpretq_u32_f32(a), high = vshrq_n_u32(u, 16);
    uint32x4_t even = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(even, vdupq_n_u32(0x7fff))), 16);
    return vmovn_u32(vbslq_u32(vceqq_f32(a, a), rounded, vorrq_u32(high, vdupq_n_u32(0x40))));
}
static inline void v_store_half(uint16_t *p, half_vec h) { vst1_u8((uint8_t *)p, vreinterpret_u8_u16(h)); }
static inline void v_stream_half(uint16_t *p, half_vec h) { v_store_half(p, h); }

static inline void v_accumulate(double *sums, double *lost, vec a) {
    (void)lost;
    vst1q_f64(sums, vaddq_f64(vld1q_f64(sums), vcvt_f64_f32(vget_low_f32(a))));
    vst1q_f64(sums + 2, vaddq_f64(vld1q_f64(sums + 2), vcvt_high_f64_f32(a)));
}
static inline void v_clear(double *sums, double *lost) {
    (void)lost;
    vst1q_f64(sums, vdupq_n_f64(0));
    vst1q_f64(sums + 2, vdupq_n_f64(0));
}
static inline vec v_from_doubles(const double *p) {
    return vcvt_high_f32_f64(vcvt_f32_f64(vld1q_f64(p)), vld1q_f64(p + 2));
}
/* See avx512_f32.c. */
typedef struct wide {
    float64x2_t low, high;
} wide;
static inline wide w_zero(void) { return (wide){vdupq_n_f64(0), vdupq_n_f64(0)}; }
static inline wide w_add(wide w, vec a) {
    return (wide){vaddq_f64(w.low, vcvt_f64_f32(vget_low_f32(a))), vaddq_f64(w.high, vcvt_high_f64_f32(a))};
}
static inline void w_store(wide w, double *sums, double *lost) {
    (void)lost;
    vst1q_f64(sums, w.low);
    vst1q_f64(sums + 2, w.high);
}
static inline double w_total(wide w) { return vaddvq_f64(vaddq_f64(w.low, w.high)); }

/* See avx512_f32.c. */
enum { COLUMNS = 4 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    (void)step;
    return v_load((const real *)p);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    (void)step;
    v_store((real *)to, a);
}
static inline vec zip_pairs(vec a, vec b, int high) {
    float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(high ? vzip2q_f64(x, y) : vzip1q_f64(x, y));
}
static inline void v_transpose(vec *a) {
    vec t0 = vzip1q_f32(a[0], a[1]), t1 = vzip2q_f32(a[0], a[1]);
    vec t2 = vzip1q_f32(a[2], a[3]), t3 = vzip2q_f32(a[2], a[3]);
    a[0] = zip_pairs(t0, t2, 0);
    a[1] = zip_pairs(t0, t2, 1);
    a[2] = zip_pairs(t1, t3, 0);
    a[3] = zip_pairs(t1, t3, 1);
}
static inline void v_unzip(vec *a) {
    vec even = vuzp1q_f32(a[0], a[1]);
    a[1] = vuzp2q_f32(a[0], a[1]);
    a[0] = even;
}
static inline void v_zip(vec *a) {
    vec low = vzip1q_f32(a[0], a[1]);
    a[1] = vzip2q_f32(a[0], a[1]);
    a[0] = low;
}

static inline void v_fence(void) {}

#include "../kernels/kernels.h"

const kernels fastce_neon_f32 = KERNELS;
#endif
