/* All kernels of one ISA and one arithmetic. An ISA file defines the lane type and the v_* operations, includes this and
 * names the table. In v_max and v_min a NaN on either side gives the second operand, on every ISA. */
#include <float.h>
#include <math.h>

#include "memory.h"

#include "targets.h"

#include "functions.h"

#include "finish.h"

#include "tile.h"

#include "rows.h"

#include "lanes.h"

_Static_assert((int)LANES <= (int)MOST_LANES, "chunk_sums has room for each lane");

static int64_t visit_any(const task *t, rows *r, chunk_sums *sums, char *scratch) {
    int64_t bad = t->lanes ? visit_lanes(t, r, sums, scratch) : visit_rows(t, r, sums, scratch);
    if (t->stream) v_fence();
    return bad;
}

static size_t scratch_bytes(const task *t) { return t->lanes ? lanes_scratch_bytes() : rows_scratch_bytes(t); }

#define KERNELS {visit_any, scratch_bytes, load_targets, first_bad_dense_row}
