/* float16 and bfloat16 from and to float: the scalar conversions over all 65,536 numbers and against a slow exact
 * rounding, and the vector conversions of every instruction set over the same numbers, through calls whose arithmetic is
 * exact. */
#include "arrays.h"

#include <float.h>

typedef struct half {
    fastce_dtype dtype;
    int mantissa_bits, bias;
} half;

static const half halves[] = {{FASTCE_F16, 10, 15}, {FASTCE_BF16, 7, 127}};
enum { HALVES = 2, PATTERNS = 1 << 16 };

static uint16_t infinity_of(half h) { return (uint16_t)((2 * h.bias + 1) << h.mantissa_bits); }

/* The number of a pattern without sign; of infinity's pattern, the number that would follow the largest. */
static double magnitude(half h, uint16_t pattern) {
    int exponent = pattern >> h.mantissa_bits, one = 1 << h.mantissa_bits, mantissa = pattern & (one - 1);
    if (exponent == 0) return ldexp(mantissa, 1 - h.bias - h.mantissa_bits);
    return ldexp(mantissa + one, exponent - h.bias - h.mantissa_bits);
}

static double value_of(half h, uint16_t pattern) {
    uint16_t rest = pattern & 0x7fff;
    double x = rest > infinity_of(h) ? (double)NAN : rest == infinity_of(h) ? (double)INFINITY : magnitude(h, rest);
    return pattern & 0x8000 ? -x : x;
}

/* To nearest, ties to even, by bisection. x is no NaN. */
static uint16_t rounded(half h, double x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0, low = 0, high = infinity_of(h);
    double a = fabs(x);
    if (a >= magnitude(h, high)) return sign | high;
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (magnitude(h, middle) <= a)
            low = middle;
        else
            high = middle;
    }
    double below = a - magnitude(h, low), above = magnitude(h, high) - a;
    bool up = above < below || (above == below && low % 2 == 1);
    return sign | (up ? high : low);
}

static float to_float(half h, uint16_t pattern) {
    return h.dtype == FASTCE_F16 ? float_from_f16(pattern) : float_from_bf16(pattern);
}

static uint16_t from_float(half h, float x) { return h.dtype == FASTCE_F16 ? f16_from_float(x) : bf16_from_float(x); }

static bool is_nan(half h, uint16_t pattern) { return (pattern & 0x7fff) > infinity_of(h); }

static void test_every_pattern(half h) {
    int wrong_values = 0, wrong_trips = 0;
    for (int i = 0; i < PATTERNS; i++) {
        uint16_t pattern = (uint16_t)i, back = from_float(h, to_float(h, pattern));
        wrong_values += !same((double)to_float(h, pattern), value_of(h, pattern));
        wrong_trips += is_nan(h, pattern) ? !is_nan(h, back) : back != pattern;
    }
    check(wrong_values == 0, "%s to float: %d patterns", dtype_name(h.dtype), wrong_values);
    check(wrong_trips == 0, "%s to float and back: %d patterns", dtype_name(h.dtype), wrong_trips);
}

/* Every number of the format, the middle between it and the next, and the floats beside the middle, signs in turn; then
 * floats of all sizes. A multiple of 64 numbers. */
typedef struct floats {
    float *x;
    int64_t n;
} floats;

static floats floats_to_round(half h) {
    enum { OTHERS = 1 << 15 };
    static const float special[] = {FLT_MAX, FLT_MIN, FLT_TRUE_MIN, FLT_EPSILON, INFINITY, 0};
    enum { SPECIAL = sizeof special / sizeof *special };
    floats all = {allocate(4 * infinity_of(h) + OTHERS + 2 * SPECIAL + 64, sizeof(float)), 0};
    for (uint16_t pattern = 0; pattern < infinity_of(h); pattern++) {
        float lower = (float)magnitude(h, pattern);
        float middle = (float)((magnitude(h, pattern) + magnitude(h, (uint16_t)(pattern + 1))) / 2);
        float sign = pattern % 2 ? -1 : 1;
        float beside[] = {lower, nextafterf(middle, 0), middle, nextafterf(middle, INFINITY)};
        for (int j = 0; j < 4; j++) all.x[all.n++] = sign * beside[j];
    }
    for (int i = 0; i < SPECIAL; i++) all.x[all.n++] = special[i], all.x[all.n++] = -special[i];
    for (int i = 0; i < OTHERS; i++) {
        float x = float_from_bits((uint32_t)random_below((int64_t)1 << 32));
        all.x[all.n++] = x == x ? x : 0;
    }
    all.n = (all.n + 63) / 64 * 64; /* the rest is 0 */
    return all;
}

static void test_rounding(half h, floats all) {
    int wrong = 0, quiet = 0;
    for (int64_t i = 0; i < all.n; i++) wrong += from_float(h, all.x[i]) != rounded(h, (double)all.x[i]);
    check(wrong == 0, "float to %s: %d numbers", dtype_name(h.dtype), wrong);
    /* A NaN whose payload would be cut off, or would round up into infinity, stays one. */
    static const uint32_t nans[] = {0x7f800001, 0x7fffffff, 0x7fc00000, 0xff800001, 0xffffffff};
    for (int i = 0; i < 5; i++) quiet += is_nan(h, from_float(h, float_from_bits(nans[i])));
    check(quiet == 5, "float NaN to %s", dtype_name(h.dtype));
}

/* The lse of one class is its logit. */
static void test_vector_loads(half h, const char *isa) {
    enum { SHIFT = 2 }; /* in patterns: the first array is aligned, the second is not */
    pages p = pages_of(PAGES_LOGITS), v = pages_of(PAGES_VALUES);
    int64_t n = PATTERNS;
    ptrdiff_t stride = 2;
    for (int shift = 0; shift <= SHIFT; shift += SHIFT) {
        char *x = p.end - (n + shift) * 2, *values = v.end - n * (int64_t)sizeof(float);
        for (int i = 0; i < PATTERNS; i++) store_bits(x + i * 2, (uint64_t)i, 2, false);
        fastce_problem q = {
            .output = FASTCE_LSE,
            .n_axes = 1,
            .shape = &n,
            .n_classes = 1,
            .logits = {.data = x, .dtype = h.dtype, .class_stride = 2, .strides = &stride},
            .row_values = values,
        };
        fastce_totals totals;
        int wrong = 0;
        check(fastce_run(&q, isa, 1, &totals) == FASTCE_OK, "lse of %s on %s", dtype_name(h.dtype), isa);
        for (int i = 0; i < PATTERNS; i++) {
            double got = load_number(values + i * 4, FASTCE_F32, false), want = value_of(h, (uint16_t)i);
            wrong += !(got == want || (got != got && want != want));
        }
        check(wrong == 0, "%s loads of %s: %d patterns", isa, dtype_name(h.dtype), wrong);
    }
}

/* Equal logits, label 0, a power of two of classes: the gradient of the other classes is grad_output / classes, without
 * rounding before it is stored, and that of the label of two classes its negative. NaN in place of the last number. */
static void test_vector_stores(half h, const char *isa, floats all, int64_t classes) {
    bool few = classes == 2;
    int64_t step = few ? 1 : 16, n = all.n / step;
    ptrdiff_t logits_stride = few ? 2 : 0, out_stride = few ? 2 : classes * 2, class_stride = few ? n * 2 : 2, zero = 0;
    ptrdiff_t scale_stride = 8;
    uint16_t *x = allocate(few ? n * classes : classes, 2), *out = allocate(n * classes, 2);
    double *scale = allocate(n, sizeof(double));
    uint8_t label = 0;
    for (int64_t i = 0; i < n; i++) scale[i] = (double)classes * (double)all.x[i * step];
    uint64_t nan = ~(uint64_t)0 >> 1; /* rounding its payload up would leave no NaN */
    memcpy(&scale[n - 1], &nan, sizeof nan);
    fastce_problem q = {
        .output = FASTCE_GRAD,
        .target_kind = FASTCE_LABELS,
        .n_axes = 1,
        .shape = &n,
        .n_classes = classes,
        .logits = {.data = x, .dtype = h.dtype, .class_stride = class_stride, .strides = &logits_stride},
        .target = {.data = &label, .dtype = FASTCE_U8, .strides = &zero},
        .out = {.data = out, .dtype = h.dtype, .class_stride = class_stride, .strides = &out_stride},
        .grad_output = {.data = scale, .dtype = FASTCE_F64, .strides = &scale_stride},
        .target_scale = 1,
        .grad_scale = 1,
    };
    fastce_totals totals;
    int wrong = 0;
    check(fastce_run(&q, isa, 1, &totals) == FASTCE_OK, "gradient of %s on %s", dtype_name(h.dtype), isa);
    for (int64_t i = 0; i < n - 1; i++) {
        const char *row = (const char *)out + i * out_stride;
        uint16_t want = from_float(h, all.x[i * step]);
        for (int64_t k = 1; k < classes; k++) wrong += load_bits(row + k * class_stride, 2, false) != want;
        if (few) wrong += load_bits(row, 2, false) != (want ^ 0x8000u) && all.x[i] != 0;
    }
    for (int64_t k = 0; k < classes; k++)
        wrong += !is_nan(h, (uint16_t)load_bits((const char *)out + (n - 1) * out_stride + k * class_stride, 2, false));
    check(wrong == 0, "%s stores of %s, %s: %d numbers", isa, dtype_name(h.dtype), fastce_kernel_name(&q), wrong);
    free(x);
    free(out);
    free(scale);
}

int main(void) {
    for (int i = 0; i < HALVES; i++) {
        floats all = floats_to_round(halves[i]);
        test_every_pattern(halves[i]);
        test_rounding(halves[i], all);
        for (const char *const *isa = running_isas(); *isa; isa++) {
            test_vector_loads(halves[i], *isa);
            test_vector_stores(halves[i], *isa, all, 2);
            test_vector_stores(halves[i], *isa, all, 64);
        }
        free(all.x);
    }
    return report();
}
