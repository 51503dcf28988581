/* The functions of kernels/functions.h over arrays, for sweep.c: kernels.h includes this at its end, inside the target
 * region of an ISA, where it is named as BESIDE_KERNELS. The kernels themselves are then left out. */
#include "sweep.h"

#undef KERNELS
#define KERNELS {0}

#define OVER_ARRAYS(name, vectors)                                                                                     \
    static void name(void *numbers, int64_t count) {                                                                   \
        vec x[4];                                                                                                      \
        for (real *p = numbers, *end = p + count; p < end; p += 4 * LANES) {                                           \
            for (int j = 0; j < 4; j++) x[j] = v_load(p + j * LANES);                                                  \
            vectors(x, 4);                                                                                             \
            for (int j = 0; j < 4; j++) v_store(p + j * LANES, x[j]);                                                  \
        }                                                                                                              \
    }

/* tanh and its derivative, as a softcap of 1 has them. */
static INLINE void tanh_vectors(vec *x, int count) {
    const transform f = {.capped = true, .inverse = v_set1(1), .cap = v_set1(1), .steepest = v_set1(4)};
    vec slope[4];
    cap_vectors(x, slope, count, &f);
}

static INLINE void sech_squared_vectors(vec *x, int count) {
    const transform f = {.capped = true, .inverse = v_set1(1), .cap = v_set1(1), .steepest = v_set1(4)};
    vec slope[4];
    cap_vectors(x, slope, count, &f);
    for (int j = 0; j < count; j++) x[j] = slope[j];
}

static INLINE void swept_power_vectors(vec *x, int count) {
    const power p = power_of(SWEPT_EXPONENT);
    power_vectors(x, &p, count);
}

OVER_ARRAYS(exp_of_array, exp_vectors)
OVER_ARRAYS(log1p_of_array, log1p_vectors)
OVER_ARRAYS(log1p_of_fractions, log1p_of_fraction)
OVER_ARRAYS(log_of_array, log_vectors)
OVER_ARRAYS(logs_of_many, log_of_many)
OVER_ARRAYS(log1ps_of_many, log1p_of_many)
OVER_ARRAYS(log1ms_of_many, log1m_of_many)
OVER_ARRAYS(tanh_of_array, tanh_vectors)
OVER_ARRAYS(sech_squared_of_array, sech_squared_vectors)
OVER_ARRAYS(power_of_array, swept_power_vectors)

const functions SWEPT = {{exp_of_array, log1p_of_array, log1p_of_fractions, log_of_array, logs_of_many, log1ps_of_many,
                          log1ms_of_many, tanh_of_array, sech_squared_of_array, power_of_array},
                         EXP_HIGHEST,
                         LARGEST_SHIFTED_SUM};
