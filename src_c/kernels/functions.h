/* The exponential and the logarithm that every kernel shares. No libm: the bits are those of the ISA alone. */

/* The steps of an octave that an ISA looks up; where it does not, an octave is one step. */
#ifndef EXP_STEPS
#define EXP_STEPS 1
static inline ivec i_exp2(ivec n) { return i_to_exponent(n); }
static const real *const exp_terms = exp_coefficients;
enum { EXP_TERMS = sizeof exp_coefficients / sizeof *exp_coefficients };
#else
static const real *const exp_terms = exp_step_coefficients[EXP_STEPS == 16];
enum { EXP_TERMS = sizeof *exp_step_coefficients / sizeof **exp_step_coefficients };
#endif

/* exp of the lesser of each x and limit, operation by operation so that their latencies overlap. Valid for every x and every limit up to
 * EXP_HIGHEST: 0 below EXP_LOWEST, NaN where x is NaN. Error below 1.2 ULP where the result is a normal number.
 *   1. n = round(x / (ln 2 / EXP_STEPS)), as the low bits of a float with the exponent's bias in them
 *   2. r = x - n (ln 2 / EXP_STEPS), in two steps
 *   3. exp(x) = 2^(n / EXP_STEPS) (1 + r + r^2 P(r)), P the shorter the more steps */
static INLINE void exp_clamped(vec *x, int count);

static INLINE void exp_limited(vec *x, const vec *limit, int count) {
    for (int j = 0; j < count; j++) x[j] = v_max(v_set1(EXP_LOWEST), v_min(limit[j], x[j]));
    exp_clamped(x, count);
}

/* exp(r) - 1 for r = x - n (ln 2 / EXP_STEPS), in place of x. */
#if EXP_STEPS == 16
/* Three operations wait for each other, where there are registers for the others beside them. r is so small that the
 * first subtraction may round, and that its square needs no second. */
static INLINE void reduced_expm1(vec *x, const vec *n, int count) {
    vec r[4], p[4];
    for (int j = 0; j < count; j++) x[j] = v_fma(n[j], v_set1(-LN2 / EXP_STEPS), x[j]);
    for (int j = 0; j < count; j++) r[j] = v_fma(n[j], v_set1(LN2_EXCESS / EXP_STEPS), x[j]);
    for (int j = 0; j < count; j++) p[j] = v_fma(x[j], v_set1(exp_terms[1]), v_set1(exp_terms[0]));
    for (int j = 0; j < count; j++) x[j] = v_mul(x[j], x[j]);
    for (int j = 0; j < count; j++) x[j] = v_fma(p[j], x[j], r[j]);
}
#else
static INLINE void reduced_expm1(vec *x, const vec *n, int count) {
    vec p[4];
    for (int j = 0; j < count; j++) x[j] = v_fma(n[j], v_set1(-LN2_HIGH / EXP_STEPS), x[j]);
    for (int j = 0; j < count; j++) x[j] = v_fma(n[j], v_set1(-LN2_LOW / EXP_STEPS), x[j]);
    for (int j = 0; j < count; j++) p[j] = v_set1(exp_terms[EXP_TERMS - 1]);
    for (int i = EXP_TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], x[j], v_set1(exp_terms[i]));
    for (int j = 0; j < count; j++) p[j] = v_mul(p[j], x[j]);
    for (int j = 0; j < count; j++) x[j] = v_fma(p[j], x[j], x[j]);
}
#endif

/* The same for x from EXP_LOWEST to EXP_HIGHEST, or NaN. */
static INLINE void exp_clamped(vec *x, int count) {
    const real rounding = ROUNDING + EXPONENT_BIAS * EXP_STEPS;
    vec scale[4], n[4];
    for (int j = 0; j < count; j++) scale[j] = v_fma(x[j], v_set1(LOG2_E * EXP_STEPS), v_set1(rounding));
    for (int j = 0; j < count; j++) n[j] = v_sub(scale[j], v_set1(rounding));
    reduced_expm1(x, n, count);
    for (int j = 0; j < count; j++) scale[j] = v_from_bits(i_exp2(v_bits(scale[j])));
    for (int j = 0; j < count; j++) x[j] = v_fma(x[j], scale[j], scale[j]);
}

static INLINE void exp_vectors(vec *x, int count) {
    const vec highest = v_set1(EXP_HIGHEST), limit[4] = {highest, highest, highest, highest};
    exp_limited(x, limit, count);
}

static INLINE real exp_one(real x) {
    vec v = v_set1(x);
    exp_vectors(&v, 1);
    return first_lane(v);
}

/* log(2^e (1 + f)) with 1 + f in [1/sqrt 2, sqrt 2), in f. Error below 1 ULP, relative.
 *   s = f / (2 + f); log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 P(s^2)) */
static INLINE void log_scaled(vec *f, const vec *e, int count) {
    enum { TERMS = sizeof log_coefficients / sizeof *log_coefficients };
    vec s[4], z[4], p[4], half_square[4];
    for (int j = 0; j < count; j++) s[j] = v_div(f[j], v_add(v_set1(2), f[j]));
    for (int j = 0; j < count; j++) z[j] = v_mul(s[j], s[j]);
    for (int j = 0; j < count; j++) half_square[j] = v_mul(v_set1((real)0.5), v_mul(f[j], f[j]));
    for (int j = 0; j < count; j++) p[j] = v_set1(log_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], z[j], v_set1(log_coefficients[i]));
    for (int j = 0; j < count; j++) {
        vec low = v_fma(s[j], v_fma(p[j], z[j], half_square[j]), v_mul(e[j], v_set1(LN2_LOW)));
        f[j] = v_fma(e[j], v_set1(LN2_HIGH), v_sub(f[j], v_sub(half_square[j], low)));
    }
}

/* e of a normal x = 2^e (1 + f), and 2^-e. */
static INLINE vec exponent_of(vec x, vec *scale) {
    const vec implicit_one = v_set1((real)((real_bits)1 << MANTISSA_BITS));
    ivec field = i_from_exponent(v_bits(v_mul(x, v_set1(SQRT_2))));
    *scale = v_from_bits(i_to_exponent(i_sub(i_set1(2 * EXPONENT_BIAS), field)));
    return v_sub(v_from_bits(i_or(field, v_bits(implicit_one))), v_add(implicit_one, v_set1(EXPONENT_BIAS)));
}

/* log(1 + r) for n vectors of -1 < r <= LARGEST_SHIFTED_SUM, NaN for NaN: a small r comes back.
 * f = r 2^-e + (2^-e - 1) is r itself where e = 0. */
static INLINE void log1p_vectors(vec *x, int count) {
    const vec one = v_set1(1);
    vec e[4], scale;
    for (int j = 0; j < count; j++) {
        e[j] = exponent_of(v_add(x[j], one), &scale);
        x[j] = v_fma(x[j], scale, v_sub(scale, one));
    }
    log_scaled(x, e, count);
}

/* log(1 + x) for n vectors of 0 <= x <= 1, NaN for NaN: a small x comes back, and nothing is divided in float32. Error
 * below 1.1 ULP, relative. */
#if defined(LOG_STEPS)
/* By the nearest of 16 steps: with c near 1 / (1 + x), r = x - (1 - c)(1 + x) is small, and -log(c) from a table, whose c
 * are such that a float holds it to a thousandth of a unit; c is 1 for a small x. */
static INLINE void log1p_of_fraction(vec *x, int count) {
    enum { TERMS = sizeof log1p_step_coefficients / sizeof *log1p_step_coefficients };
    const vec one = v_set1(1);
    vec r[4], p[4], log[4];
    for (int j = 0; j < count; j++) {
        const ivec n = v_bits(v_fma(x[j], v_set1(LOG_STEPS), v_set1(ROUNDING)));
        const vec c = v_log_inverse(n);
        log[j] = v_log_step(n);
        r[j] = v_fma(x[j], c, v_sub(c, one));
    }
    for (int j = 0; j < count; j++) p[j] = v_set1(log1p_step_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], r[j], v_set1(log1p_step_coefficients[i]));
    for (int j = 0; j < count; j++) x[j] = v_add(log[j], v_fma(v_mul(r[j], r[j]), p[j], r[j]));
}
#elif defined(REAL_HAS_HALVES)
/* With f = x, or (x - 1) / 2 above 1/2, both exact: f - f^2/2 + f^3 P(f), and log(2). */
static INLINE void log1p_of_fraction(vec *x, int count) {
    enum { TERMS = sizeof log1p_coefficients / sizeof *log1p_coefficients };
    const vec zero = v_set1(0), half = v_set1(0.5f);
    vec p[4], square[4], high[4], low[4];
    for (int j = 0; j < count; j++) {
        const mask is_large = v_gt(x[j], half);
        high[j] = v_select(is_large, v_set1(LN2_HIGH), zero);
        low[j] = v_select(is_large, v_set1(LN2_LOW), zero);
        x[j] = v_select(is_large, v_fma(x[j], half, v_set1(-0.5f)), x[j]);
        square[j] = v_mul(x[j], x[j]);
    }
    for (int j = 0; j < count; j++) p[j] = v_set1(log1p_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], x[j], v_set1(log1p_coefficients[i]));
    for (int j = 0; j < count; j++) {
        const vec rest = v_fma(v_mul(square[j], x[j]), p[j], low[j]);
        x[j] = v_add(high[j], v_sub(x[j], v_sub(v_mul(half, square[j]), rest)));
    }
}
#else
static INLINE void log1p_of_fraction(vec *x, int count) { log1p_vectors(x, count); }
#endif

/* log(x) for n vectors: -inf at 0, NaN below it and for NaN. f = x 2^-e - 1 is exact. */
static INLINE void log_vectors(vec *x, int count) {
    const vec one = v_set1(1), zero = v_set1(0), infinity = v_set1(INFINITY);
    const vec far = v_set1(FAR), steps = v_set1(FAR_EXPONENT);
    vec e[4], f[4], scale;
    for (int j = 0; j < count; j++) {
        const mask low = v_gt(v_div(one, far), x[j]), high = v_gt(x[j], far);
        vec near = v_select(low, v_mul(x[j], far), v_select(high, v_div(x[j], far), x[j]));
        e[j] = exponent_of(near, &scale);
        f[j] = v_fma(near, scale, v_set1(-1));
        e[j] = v_add(e[j], v_select(low, v_sub(zero, steps), v_select(high, steps, zero)));
    }
    log_scaled(f, e, count);
    for (int j = 0; j < count; j++) {
        vec special = v_select(v_eq(x[j], zero), v_sub(zero, infinity), v_sub(infinity, infinity));
        special = v_select(v_eq(x[j], infinity), infinity, special);
        x[j] = v_select(v_gt(x[j], zero), v_select(v_gt(infinity, x[j]), f[j], special), special);
    }
}

/* log(x) again, log(1 + x) for 0 <= x <= LARGEST_SHIFTED_SUM, and log(1 - x) for 0 <= x <= 1; what is not finite, or not as is
 * said here, makes them infinite or NaN. For sums over many of them: error below 1.6 ULP, relative. */
#if defined(LOG_PARTS)
/* log(2^e / c (1 + r)), r small, from r, e and what has the step of c: e log(2) - log(c) + r + r^2 P(r). Where e is 0 in the
 * first step, or -1 in the last, all but r is 0. */
static INLINE void log_of_parts(vec *r, const vec *e, const vec *m, int count) {
    enum { TERMS = sizeof log_part_coefficients / sizeof *log_part_coefficients };
    vec high[4], p[4], square[4];
    for (int j = 0; j < count; j++) high[j] = v_fma(e[j], v_set1(LN2), v_part_log(m[j]));
    for (int j = 0; j < count; j++) square[j] = v_mul(r[j], r[j]);
    for (int j = 0; j < count; j++) p[j] = v_set1(log_part_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], r[j], v_set1(log_part_coefficients[i]));
    for (int j = 0; j < count; j++) r[j] = v_add(high[j], v_fma(square[j], p[j], r[j]));
}

static INLINE void log_of_many(vec *x, int count) {
    vec e[4], m[4];
    for (int j = 0; j < count; j++) e[j] = v_exponent(x[j]);
    for (int j = 0; j < count; j++) m[j] = v_mantissa(x[j]);
    for (int j = 0; j < count; j++) x[j] = v_fma(m[j], v_part_inverse(m[j]), v_set1(-1));
    log_of_parts(x, e, m, count);
}

/* With s = c 2^-e, r = s x + (s - 1): the sum 1 + x, which is rounded, only tells which step. */
static INLINE void log1p_of_many(vec *x, int count) {
    const vec one = v_set1(1);
    vec e[4], m[4], s[4];
    for (int j = 0; j < count; j++) m[j] = v_add(x[j], one);
    for (int j = 0; j < count; j++) e[j] = v_exponent(m[j]);
    for (int j = 0; j < count; j++) m[j] = v_mantissa(m[j]);
    for (int j = 0; j < count; j++) s[j] = v_scale(v_part_inverse(m[j]), v_sub(v_set1(0), e[j]));
    for (int j = 0; j < count; j++) x[j] = v_fma(x[j], s[j], v_sub(s[j], one));
    log_of_parts(x, e, m, count);
}
/* The difference 1 - x, that is log(x) for `lost` 0, tells the step, too. What it lost by rounding, to be taken from it, is 0
 * but from 1/2 on, where 2^-e is 1 - e. */
static INLINE void log_of_difference(vec *x, const vec *lost, int count) {
    const vec one = v_set1(1);
    vec e[4], m[4], c[4], r[4];
    for (int j = 0; j < count; j++) e[j] = v_exponent(x[j]);
    for (int j = 0; j < count; j++) m[j] = v_mantissa(x[j]);
    for (int j = 0; j < count; j++) c[j] = v_part_inverse(m[j]);
    for (int j = 0; j < count; j++) r[j] = v_mul(lost[j], v_sub(e[j], one));
    for (int j = 0; j < count; j++) x[j] = v_fma(m[j], c[j], v_set1(-1));
    for (int j = 0; j < count; j++) x[j] = v_fma(r[j], c[j], x[j]);
    log_of_parts(x, e, m, count);
}

static INLINE void log1m_of_many(vec *x, int count) {
    const vec one = v_set1(1);
    vec lost[4];
    for (int j = 0; j < count; j++) {
        const vec difference = v_sub(one, x[j]);
        lost[j] = v_sub(x[j], v_sub(one, difference));
        x[j] = difference;
    }
    log_of_difference(x, lost, count);
}

/* log(x) where chosen, else log(1 - x): bit by bit what the others make of it. */
static INLINE void log_of_either(vec *x, const mask *chosen, int count) {
    const vec one = v_set1(1), zero = v_set1(0);
    vec lost[4];
    for (int j = 0; j < count; j++) {
        const vec difference = v_sub(one, x[j]);
        lost[j] = v_select(chosen[j], zero, v_sub(x[j], v_sub(one, difference)));
        x[j] = v_select(chosen[j], x[j], difference);
    }
    log_of_difference(x, lost, count);
}
#else
static INLINE void log_of_many(vec *x, int count) { log_vectors(x, count); }

static INLINE void log1p_of_many(vec *x, int count) {
    const vec zero = v_set1(0), most = v_set1((real)LARGEST_SHIFTED_SUM);
    for (int j = 0; j < count; j++) x[j] = v_select(v_eq(v_min(most, v_max(zero, x[j])), x[j]), x[j], v_set1(INFINITY));
    log1p_vectors(x, count);
}

static INLINE void log1m_of_many(vec *x, int count) {
    vec log[4];
    for (int j = 0; j < count; j++) log[j] = v_sub(v_set1(0), x[j]);
    log1p_vectors(log, count);
    for (int j = 0; j < count; j++) x[j] = v_select(v_gt(v_set1(1), x[j]), log[j], v_set1(-INFINITY));
}

static INLINE void log_of_either(vec *x, const mask *chosen, int count) {
    vec yes[4];
    for (int j = 0; j < count; j++) yes[j] = x[j];
    log_of_many(yes, count);
    log1m_of_many(x, count);
    for (int j = 0; j < count; j++) x[j] = v_select(chosen[j], yes[j], x[j]);
}
#endif

/* The exponent of a power, and its parts: high times the exponent of any number is exact. */
typedef struct power {
    vec g, high, low;
} power;

static INLINE power power_of(double g) {
    const double most = ROUNDING / 6, x = g < most ? g : most; /* integers near it, and sums of them, are exact */
    const double step = x * (double)((int64_t)1 << (62 - MANTISSA_BITS)), high = (x + step) - step;
    return (power){v_set1((real)x), v_set1((real)high), v_set1((real)(x - high))};
}

/* x^g for n vectors of x from the smallest normal number to 1, and g > 0: 0 below the smallest normal number. Error below
 * 2 + g ULP, relative: the logarithm is not rounded as a whole, as its error times g would be that of the result.
 *   1. x = 2^e (1 + f), |log2(1 + f)| <= 1/2
 *   2. g e = n + r, g log2(1 + f) = n' + r', with integers n and n'
 *   3. x^g = 2^(n + n') exp((r + r') ln 2) */
static INLINE void power_vectors(vec *x, const power *p, int count) {
    const vec rounding = v_set1(ROUNDING), zero = v_set1(0);
    vec e[4], f[4], n[4], none[4], scale;
    for (int j = 0; j < count; j++) {
        e[j] = exponent_of(x[j], &scale);
        f[j] = v_fma(x[j], scale, v_set1(-1));
        none[j] = zero;
    }
    log_scaled(f, none, count);
    for (int j = 0; j < count; j++) {
        const vec log2 = v_mul(f[j], v_set1(LOG2_E)), of_e = v_max(v_set1(-ROUNDING / 6), v_mul(p->high, e[j]));
        const vec whole = v_sub(v_add(of_e, rounding), rounding);
        const vec more = v_sub(v_fma(p->g, log2, rounding), rounding);
        const vec rest = v_fma(p->low, e[j], v_sub(v_mul(p->high, e[j]), whole));
        n[j] = v_max(v_set1(-EXPONENT_BIAS), v_add(whole, more));
        x[j] = v_mul(v_add(rest, v_fma(p->g, log2, v_sub(zero, more))), v_set1(LN2));
    }
    exp_vectors(x, count);
    for (int j = 0; j < count; j++)
        x[j] = v_mul(x[j], v_from_bits(i_to_exponent(v_bits(v_add(n[j], v_set1(ROUNDING + EXPONENT_BIAS))))));
}

static INLINE real log1p_one(real x) {
    vec v = v_set1(x);
    log1p_vectors(&v, 1);
    return first_lane(v);
}
