/* All kernels of one ISA and one arithmetic. An ISA file defines the lane type and the v_* operations, includes this and
 * names the table. In v_max and v_min a NaN on either side gives the second operand, on every ISA. */
#include <float.h>
#include <math.h>

#include "memory.h"

#include "targets.h"

#include "functions.h"

#include "finish.h"

#include "outgoing.h"

#include "tile.h"

#include "rows.h"

#include "lanes.h"

#include "elements.h"

#include "probabilities.h"

#include "statistics.h"

#include "distillation.h"

#include "sparse.h"

#include "staged.h"

_Static_assert((int)LANES <= (int)MOST_LANES, "chunk_state has room for each lane");

static int64_t visit_any(const task *t, rows *r, chunk_state *state, char *scratch) {
    if (t->problem->output == FASTCE_STATISTICS) return visit_statistics(t, r, scratch);
    if (t->elements) return visit_elements(t, r, state, scratch);
    if (t->problem->kind == FASTCE_TEACHER) return visit_distillation(t, r, state, scratch);
    if (t->problem->kind != FASTCE_LOGITS) return visit_probabilities(t, r, state, scratch);
    if (t->staged) return visit_staged(t, r, state, scratch);
    return t->lanes ? visit_lanes(t, r, state, scratch) : visit_rows(t, r, state, scratch);
}

static size_t scratch_bytes(const task *t) {
    if (t->problem->output == FASTCE_STATISTICS) return statistics_scratch_bytes(t);
    if (t->elements) return elements_scratch_bytes(t);
    if (t->problem->kind == FASTCE_TEACHER) return teacher_scratch_bytes(t);
    if (t->problem->kind != FASTCE_LOGITS) return probabilities_scratch_bytes(t);
    if (t->staged) return staged_scratch_bytes(t);
    return t->lanes ? lanes_scratch_bytes(t) : rows_scratch_bytes(t);
}

static int64_t first_bad_target(const task *t, const char *const at[], const ptrdiff_t step[], int64_t count) {
    if (t->elements) return first_bad_of(t, at[TARGET], step[TARGET], count);
    if (t->problem->target_kind == FASTCE_SPARSE) return first_bad_sparse_row(t, at, step, count);
    return first_bad_dense_row(t, at[TARGET], step[TARGET], count);
}

static void finish_chunk(const task *t, chunk_state *state) {
    outgoing *o = &state->outgoing;
    close_block(state);
#ifdef REAL_HAS_HALVES
    if (t->problem->out.dtype == FASTCE_F16)
        finish_sending(o, FASTCE_F16);
    else if (t->problem->out.dtype == FASTCE_BF16)
        finish_sending(o, FASTCE_BF16);
#endif
    finish_sending(o, real_dtype());
    if (t->stream) v_fence();
}

#define KERNELS {visit_any, scratch_bytes, finish_chunk, stream_zeros, load_targets, first_bad_target}

/* accuracy/ measures the functions alone, in the region of their ISA. */
#ifdef BESIDE_KERNELS
#include BESIDE_KERNELS
#endif
