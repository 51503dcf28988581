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

_Static_assert((int)LANES <= (int)MOST_LANES, "chunk_state has room for each lane");

static int64_t visit_any(const task *t, rows *r, chunk_state *state, char *scratch) {
    return t->lanes ? visit_lanes(t, r, state, scratch) : visit_rows(t, r, state, scratch);
}

static size_t scratch_bytes(const task *t) { return t->lanes ? lanes_scratch_bytes(t) : rows_scratch_bytes(t); }

static void finish_chunk(const task *t, chunk_state *state) {
    outgoing *o = &state->outgoing;
#ifdef REAL_HAS_HALVES
    if (t->problem->out.dtype == FASTCE_F16)
        finish_sending(o, FASTCE_F16);
    else if (t->problem->out.dtype == FASTCE_BF16)
        finish_sending(o, FASTCE_BF16);
#endif
    finish_sending(o, real_dtype());
    if (t->stream) v_fence();
}

#define KERNELS {visit_any, scratch_bytes, finish_chunk, stream_zeros, load_targets, first_bad_dense_row}
