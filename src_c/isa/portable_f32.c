/* One float: any processor. Multiply and add round twice where the processor has no fused form; the constants of the
 * range reductions leave room for it. */
#include "../convert.h"
#include "../core.h"
#include "../kernels/real_f32.h"

enum { LANES = 1 };
typedef real vec;
typedef real_bits ivec;
typedef bool mask;

static inline vec v_set1(real x) { return x; }
static inline vec v_iota(void) { return 0; }
static inline vec v_add(vec a, vec b) { return a + b; }
static inline vec v_sub(vec a, vec b) { return a - b; }
static inline vec v_mul(vec a, vec b) { return a * b; }
static inline vec v_div(vec a, vec b) { return a / b; }
static inline vec v_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec v_max(vec a, vec b) { return a > b ? a : b; }
static inline vec v_min(vec a, vec b) { return a < b ? a : b; }
static inline mask v_eq(vec a, vec b) { return a == b; }
static inline mask v_gt(vec a, vec b) { return a > b; }
static inline bool v_any(mask m) { return m; }
static inline vec v_select(mask m, vec a, vec b) { return m ? a : b; }

static inline ivec v_bits(vec a) {
    ivec bits;
    memcpy(&bits, &a, sizeof a);
    return bits;
}
static inline vec v_from_bits(ivec a) {
    vec x;
    memcpy(&x, &a, sizeof a);
    return x;
}
static inline ivec i_set1(real_bits x) { return x; }
static inline ivec i_or(ivec a, ivec b) { return a | b; }
static inline ivec i_sub(ivec a, ivec b) { return a - b; }
static inline ivec i_to_exponent(ivec a) { return a << MANTISSA_BITS; }
static inline ivec i_from_exponent(ivec a) { return a >> MANTISSA_BITS; }

static inline vec v_load(const real *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void v_store(real *p, vec a) { memcpy(p, &a, sizeof a); }
static inline void v_stream(real *p, vec a) { v_store(p, a); }
static inline vec v_load_first(const real *p, int64_t n, vec rest) { return n > 0 ? v_load(p) : rest; }
static inline void v_store_first(real *p, vec a, int64_t n) {
    if (n > 0) v_store(p, a);
}

typedef uint16_t half_vec;
static inline vec v_load_f16(const uint16_t *p) {
    return float_from_f16((uint16_t)load_bits((const char *)p, 2, false));
}
static inline vec v_load_bf16(const uint16_t *p) {
    return float_from_bf16((uint16_t)load_bits((const char *)p, 2, false));
}
static inline half_vec v_to_f16(vec a) { return f16_from_float(a); }
static inline half_vec v_to_bf16(vec a) { return bf16_from_float(a); }
static inline void v_store_half(uint16_t *p, half_vec h) { memcpy(p, &h, 2); }
static inline void v_stream_half(uint16_t *p, half_vec h) { memcpy(p, &h, 2); }

static inline void v_accumulate(double *sums, double *lost, vec a) {
    (void)lost;
    *sums += (double)a;
}
static inline void v_clear(double *sums, double *lost) { *sums = *lost = 0; }
static inline vec v_from_doubles(const double *p) { return (vec)*p; }
/* See avx512_f32.c. */
typedef struct wide {
    double sum;
} wide;
static inline wide w_zero(void) { return (wide){0}; }
static inline wide w_add(wide w, vec a) { return (wide){w.sum + (double)a}; }
static inline void w_store(wide w, double *sums, double *lost) {
    (void)lost;
    *sums = w.sum;
}
static inline double w_total(wide w) { return w.sum; }

/* See avx512_f32.c: one lane transposes into itself. */
enum { COLUMNS = 1 };
static inline vec v_load_pieces(const char *p, ptrdiff_t step) {
    (void)step;
    return v_load((const real *)p);
}
static inline void v_store_pieces(char *to, ptrdiff_t step, vec a) {
    (void)step;
    v_store((real *)to, a);
}
static inline void v_transpose(vec *a) { (void)a; }
static inline void v_unzip(vec *a) { (void)a; }
static inline void v_zip(vec *a) { (void)a; }

static inline void v_fence(void) {}

#include "../kernels/kernels.h"

const kernels fastce_portable_f32 = KERNELS;
