/* Whether a record can be carried out: all but what only a visit of the rows can tell. */
#ifndef FASTCE_CHECK_H
#define FASTCE_CHECK_H

#include "fastce.h"

#include <stdbool.h>

enum { MAX_AXES = 64 };

bool is_element_wise(const fastce_problem *q);

/* Choices, dtypes, pointers, sizes, how far strides reach, and what may not share memory. Where the answer is FASTCE_OK,
 * n_rows is the number of rows, and no address that the call computes overflows. */
fastce_status check_problem(const fastce_problem *q, int64_t *n_rows);

#endif
