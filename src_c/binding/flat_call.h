/* A call of the public functions as a flat list of 64-bit words, for compiled code that keeps its form on disk while this
 * library is replaced: Numba's. Everything is checked here, so that such code only lists what it was given.
 *
 * The words: FLAT_VERSION, output (a fastce_output), reduction, flags, axis, ignore_index, then as the bits of doubles
 * label_smoothing, z_loss, denominator, base and grad_output, then the arrays logits, target, weight, sample_weight,
 * grad_output, out and values. An array is its dtype (a fastce_dtype), address, number of axes, shape and strides in
 * bytes; -1 alone where there is none. The arrays have the user's axes; values, of the losses or the log-sum-exps, is
 * contiguous. What another number of axes or another dtype would mean is left to the caller, which knows types. */
#ifndef FASTCE_FLAT_CALL_H
#define FASTCE_FLAT_CALL_H

#include "fastce.h"

enum { FLAT_VERSION = 1 };

enum { FLAT_MEAN = 0, FLAT_SUM, FLAT_NONE };

enum {
    FLAT_UNSIGNED_IGNORE_INDEX = 1, /* its word is an unsigned number */
    FLAT_HAS_DENOMINATOR = 2,
    FLAT_HAS_BASE = 4,
};

/* What is wrong with a call; the numbers are part of what compiled code knows, as are the fields of the result. */
typedef enum flat_code {
    FLAT_OK = 0,
    FLAT_STALE,             /* the caller is of another version */
    FLAT_BAD_LABEL,         /* at: the row; label plus number, 0 or 2^64: its label */
    FLAT_BAD_SAMPLE_WEIGHT, /* at: the row, number: its weight */
    FLAT_BAD_TARGET,        /* at: the row; a dense target has a bad number there */
    FLAT_BAD_AXIS,
    FLAT_NO_CLASSES,
    FLAT_BAD_SMOOTHING,   /* number */
    FLAT_BAD_Z_LOSS,      /* number */
    FLAT_BAD_DENOMINATOR, /* number */
    FLAT_BAD_BASE,        /* number */
    FLAT_TARGET_SHAPE,
    FLAT_WEIGHT_SHAPE,
    FLAT_BAD_WEIGHT, /* at: the class, number: its weight */
    FLAT_SAMPLE_WEIGHT_SHAPE,
    FLAT_GRAD_OUTPUT_SHAPE,
    FLAT_OUT_SHAPE,
    FLAT_OUT_OVERLAPS_ITSELF,
    FLAT_OUT_OVERLAPS_INPUT,
    FLAT_NO_MEMORY,
    FLAT_BAD_ISA,
    FLAT_REFUSED, /* by the core: a defect here */
} flat_code;

typedef struct flat_result {
    int64_t code;
    int64_t at;
    int64_t label;
    int64_t axis;  /* the class axis, not negative */
    double number; /* of a call that went well, the loss */
} flat_result;

/* Does a call on the calling thread and the named ISA, on the best one where isa is NULL. Nothing is written where the
 * code is not FLAT_OK, but for values, and for out where the core found no memory. */
void flat_call(const int64_t *words, const char *isa, flat_result *result);

#endif
