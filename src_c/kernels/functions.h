/* The exponential and the logarithm that every kernel shares. No libm: the bits are those of the ISA alone. */

/* exp for n vectors, operation by operation so that their latencies overlap. Valid for every argument: 0 below EXP_LOWEST
 * (results are never subnormal), NaN for NaN; above EXP_HIGHEST the value there. Error below 1 ULP.
 *   1. n = round(x / ln 2), as the low bits of a float with the exponent's bias in them
 *   2. r = x - n ln 2, in two steps
 *   3. exp(x) = 2^n (1 + r + r^2 P(r)) */
static INLINE void exp_vectors(vec *x, int count) {
    vec scale[4], r[4], p[4];
    enum { TERMS = sizeof exp_coefficients / sizeof *exp_coefficients };
    for (int j = 0; j < count; j++) x[j] = v_min(v_set1(EXP_HIGHEST), v_max(v_set1(EXP_LOWEST), x[j]));
    for (int j = 0; j < count; j++) scale[j] = v_fma(x[j], v_set1(LOG2_E), v_set1(ROUNDING));
    for (int j = 0; j < count; j++) r[j] = v_sub(scale[j], v_set1(ROUNDING));
    for (int j = 0; j < count; j++) x[j] = v_fma(r[j], v_set1(-LN2_HIGH), x[j]);
    for (int j = 0; j < count; j++) x[j] = v_fma(r[j], v_set1(-LN2_LOW), x[j]);
    for (int j = 0; j < count; j++) p[j] = v_set1(exp_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], x[j], v_set1(exp_coefficients[i]));
    for (int j = 0; j < count; j++) p[j] = v_mul(p[j], x[j]);
    for (int j = 0; j < count; j++) p[j] = v_fma(p[j], x[j], x[j]);
    for (int j = 0; j < count; j++) scale[j] = v_from_bits(i_to_exponent(v_bits(scale[j])));
    for (int j = 0; j < count; j++) x[j] = v_fma(p[j], scale[j], scale[j]);
}

static INLINE real exp_one(real x) {
    vec v = v_set1(x);
    exp_vectors(&v, 1);
    return first_lane(v);
}

/* log(1 + r) for 0 <= r <= LARGEST_SHIFTED_SUM, NaN for NaN. Error below 1 ULP, relative: a small r comes back.
 *   1. 1 + r = 2^e (1 + f) with 1 + f in [1/sqrt 2, sqrt 2); f = r 2^-e + (2^-e - 1) is r itself where e = 0
 *   2. s = f / (2 + f); log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 P(s^2)) */
static INLINE vec v_log1p(vec r) {
    enum { TERMS = sizeof log_coefficients / sizeof *log_coefficients };
    const vec one = v_set1(1), implicit_one = v_set1((real)((real_bits)1 << MANTISSA_BITS));
    ivec field = i_from_exponent(v_bits(v_mul(v_add(r, one), v_set1(SQRT_2))));
    vec e = v_sub(v_from_bits(i_or(field, v_bits(implicit_one))), v_add(implicit_one, v_set1(EXPONENT_BIAS)));
    vec scale = v_from_bits(i_to_exponent(i_sub(i_set1(2 * EXPONENT_BIAS), field)));
    vec f = v_fma(r, scale, v_sub(scale, one));
    vec s = v_div(f, v_add(v_set1(2), f)), z = v_mul(s, s), half_square = v_mul(v_set1((real)0.5), v_mul(f, f));
    vec p = v_set1(log_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--) p = v_fma(p, z, v_set1(log_coefficients[i]));
    vec low = v_fma(s, v_fma(p, z, half_square), v_mul(e, v_set1(LN2_LOW)));
    return v_fma(e, v_set1(LN2_HIGH), v_sub(f, v_sub(half_square, low)));
}
