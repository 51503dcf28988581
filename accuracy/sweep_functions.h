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

OVER_ARRAYS(exp_of_array, exp_vectors)
OVER_ARRAYS(log1p_of_array, log1p_vectors)
OVER_ARRAYS(log1p_of_fractions, log1p_of_fraction)
OVER_ARRAYS(log_of_array, log_vectors)

const functions SWEPT = {
    {exp_of_array, log1p_of_array, log1p_of_fractions, log_of_array}, EXP_HIGHEST, LARGEST_SHIFTED_SUM};
