/* What an ISA's file gives the sweep. */
#ifndef SWEEP_H
#define SWEEP_H

#include <stdint.h>

enum {
    EXP,
    LOG1P,
    LOG1P_OF_FRACTION,
    LOG,
    LOG_OF_MANY,
    LOG1P_OF_MANY,
    LOG1M_OF_MANY,
    TANH,
    SECH_SQUARED,
    POWER,
    FUNCTIONS
};

/* Of POWER: a number that float32 does not hold. */
#define SWEPT_EXPONENT 2.3

typedef struct functions {
    void (*replace[FUNCTIONS])(void *numbers, int64_t count); /* count is a multiple of CHUNK */
    double exp_highest, log1p_highest;                        /* the largest argument */
} functions;

enum { CHUNK = 4096 };

#endif
