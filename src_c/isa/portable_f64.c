/* One double: any processor. Multiply and add round twice where the processor has no fused form; the constants of the
 * range reductions leave room for it. */
#include "../convert.h"
#include "../core.h"
#include "../kernels/real_f64.h"

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

enum { EXP_STEPS = 1 };
static inline ivec i_exp2(ivec n) { return i_to_exponent(n); }

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

static inline void v_accumulate(double *sums, double *lost, vec a) {
    vec old = v_load(sums), sum = v_add(old, a), added = v_sub(sum, old);
    v_store(lost, v_add(v_load(lost), v_add(v_sub(old, v_sub(sum, added)), v_sub(a, added))));
    v_store(sums, sum);
}
static inline void v_clear(double *sums, double *lost) { *sums = *lost = 0; }
static inline vec v_from_doubles(const double *p) { return *p; }
/* See avx512_f32.c. */
typedef struct wide {
    vec sum, lost;
} wide;
static inline wide w_zero(void) { return (wide){v_set1(0), v_set1(0)}; }
static inline wide w_add(wide w, vec a) {
    vec sum = v_add(w.sum, a), added = v_sub(sum, w.sum);
    return (wide){sum, v_add(w.lost, v_add(v_sub(w.sum, v_sub(sum, added)), v_sub(a, added)))};
}
static inline double w_total(wide w) {
    double sum = 0, lost = 0, sums[LANES], losts[LANES];
    v_store(sums, w.sum);
    v_store(losts, w.lost);
    for (int i = 0; i < LANES; i++) add_exactly(&sum, &lost, sums[i]), lost += losts[i];
    return sum - sum == 0 ? sum + lost : sum; /* beside infinity, what was lost is NaN */
}

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

const kernels fastce_portable_f64 = KERNELS;
