/* The public functions over the record: plans a call that check.c accepts, walks its rows in chunks on threads, adds what
 * they leave. No arithmetic on logits, no ISA. */
#include "check.h"
#include "convert.h"
#include "core.h"
#include "isa.h"
#include "threads.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    /* A unit of scheduling is long beside its overhead and short beside the call; a row costs LOGITS_PER_ROW more. */
    CHUNKS = 128,
    LOGITS_PER_ROW = 10,
    LEAST_CHUNK_LOGITS = 1 << 15,
    MOST_CHUNK_LOGITS = 1 << 20,
    MAX_CHUNKS = 1 << 16,  /* bounds the partial sums */
    CACHE_BYTES = 1 << 22, /* an output above it is streamed past the caches */
    ALIGNMENT = 64,
    STACK_BYTES = 1 << 15,
};

int fastce_abi_version(void) { return FASTCE_ABI_VERSION; }

const char *fastce_status_message(fastce_status status) {
    static const char *const message[FASTCE_STATUS_COUNT] = {
        [FASTCE_OK] = "success",
        [FASTCE_BAD_ROW] = "a label, sample weight or dense target is not acceptable",
        [FASTCE_BAD_ARGUMENT] = "a number or a choice is out of its range, or does not go with the others",
        [FASTCE_BAD_ISA] = "unknown instruction set, or one that this processor cannot run",
        [FASTCE_NO_MEMORY] = "out of memory",
        [FASTCE_BAD_POINTER] = "a pointer is NULL where something is needed, or is not aligned",
        [FASTCE_BAD_DTYPE] = "a dtype is unknown, or not for this array",
        [FASTCE_BAD_SIZE] = "a size is negative, zero where it may not be, too large, or unlike another",
        [FASTCE_BAD_STRIDE] = "strides reach beyond the address space, or elements of an output share memory",
        [FASTCE_BAD_OVERLAP] = "an output shares memory with another array",
    };
    return (unsigned)status < FASTCE_STATUS_COUNT ? message[status] : "unknown status";
}

/* The positions with axes of one removed and neighbours joined where every array can step over both with one stride. */
typedef struct walk {
    int n_axes;
    int64_t shape[MAX_AXES];
    ptrdiff_t stride[ARRAY_COUNT][MAX_AXES];
    char *data[ARRAY_COUNT];
    int64_t n_rows;
} walk;

static void plan_walk(const fastce_problem *q, int64_t n_rows, walk *w) {
    const fastce_array *array[ARRAY_COUNT] = {&q->logits,      &q->target, &q->sample_weight,  &q->out,
                                              &q->grad_output, &q->factor, &q->positive_weight};
    if (q->target_kind == FASTCE_SPARSE) array[BESIDE] = &q->probabilities;
    w->n_axes = 0;
    w->n_rows = n_rows;
    for (int a = 0; a < ARRAY_COUNT; a++) w->data[a] = array[a]->data;
    for (int i = 0; i < q->n_axes; i++) {
        int64_t length = q->shape[i];
        if (length == 1) continue;
        int last = w->n_axes - 1;
        bool join = last >= 0;
        for (int a = 0; a < ARRAY_COUNT; a++) {
            ptrdiff_t stride = array[a]->data ? array[a]->strides[i] : 0, over;
            w->stride[a][w->n_axes] = stride;
            join = join && !__builtin_mul_overflow(stride, length, &over) && w->stride[a][last] == over;
        }
        if (join) {
            w->shape[last] *= length;
            for (int a = 0; a < ARRAY_COUNT; a++) w->stride[a][last] = w->stride[a][w->n_axes];
        } else {
            w->shape[w->n_axes++] = length;
        }
    }
    if (w->n_axes == 0) {
        w->n_axes = 1;
        w->shape[0] = 1;
        for (int a = 0; a < ARRAY_COUNT; a++) w->stride[a][0] = 0;
    }
}

/* Points at the arrays' elements of a row; returns how many rows follow it, itself included, on the last axis. */
static int64_t find_row(const walk *w, int64_t row, const char *at[ARRAY_COUNT]) {
    int64_t left = 0;
    for (int a = 0; a < ARRAY_COUNT; a++) at[a] = w->data[a];
    for (int i = w->n_axes - 1; i >= 0; i--) {
        int64_t index = row % w->shape[i];
        row /= w->shape[i];
        if (i == w->n_axes - 1) left = w->shape[i] - index;
        for (int a = 0; a < ARRAY_COUNT; a++)
            if (at[a]) at[a] += index * w->stride[a][i];
    }
    return left;
}

typedef struct call {
    task task;
    walk walk;
    const kernels *kernels;
    bool scan; /* the targets only */
    int64_t chunk_rows;
    partial *partials;
    char *scratch;
    size_t scratch_bytes; /* of each worker */
} call;

/* A run of rows while its chunk is visited: where it starts, and the rows waiting to be visited together. */
typedef struct run {
    const char *at[ARRAY_COUNT];
    const ptrdiff_t *step; /* of each array */
    rows waiting;
} run;

static int64_t visit(const call *c, rows *r, chunk_state *state, char *scratch) {
    int64_t bad = r->count ? c->kernels->visit(&c->task, r, state, scratch) : -1;
    int64_t row = bad < 0 ? -1 : row_of(r, bad);
    r->count = 0;
    return row;
}

/* Values and gradients of rows of a run that are ignored: neighbours in memory together, for the lines they share. */
static void zero_rows(const call *c, const rows *r, int64_t first, int64_t count) {
    const fastce_problem *q = c->task.problem;
    ptrdiff_t value_size = q->logits.dtype == FASTCE_F64 ? 8 : 4, size = dtype_size(q->out.dtype);
    ptrdiff_t row_bytes = q->n_classes * size;
    if (r->values) memset(r->values + first * value_size, 0, (size_t)(count * value_size));
    if (q->output != FASTCE_GRAD) return;
    bool neighbours = q->out.class_stride == size, together = neighbours && r->out_step == row_bytes;
    for (int64_t i = 0; i < count; i += together ? count : 1) {
        char *out = r->out + (first + i) * r->out_step;
        ptrdiff_t bytes = together ? count * row_bytes : row_bytes;
        if (neighbours && c->task.stream) {
            c->kernels->stream_zeros(out, bytes);
        } else if (neighbours) {
            memset(out, 0, (size_t)bytes);
        } else {
            for (int64_t k = 0; k < q->n_classes; k++) memset(out + k * q->out.class_stride, 0, (size_t)size);
        }
    }
}

/* Has a row wait for others to be visited with; returns the first bad row if they were, or -1. */
static int64_t await_others(const call *c, rows *w, const rows *batch, int64_t i, int64_t row, chunk_state *state,
                            char *scratch) {
    const fastce_problem *q = c->task.problem;
    const ptrdiff_t bytes = q->n_classes * q->logits.class_stride;
    if (c->task.lanes && bytes > 0)
        for (const char *p = w->logits + row * w->logits_step, *end = p + bytes; p < end; p += ALIGNMENT)
            __builtin_prefetch(p);
    int64_t n = w->count++;
    w->index[n] = row;
    w->label[n] = batch->label[i];
    w->weight[n] = batch->weight[i];
    w->label_mass[n] = batch->label_mass[i];
    w->positive[n] = batch->positive[i];
    w->grad_scale[n] = batch->grad_scale[i];
    return w->count == VISIT_ROWS ? visit(c, w, state, scratch) : -1;
}

/* Lists the rows of a batch that are not ignored, and behind them its size; returns how many there are. Without a branch
 * or a comparison of floats, whose results would be waited for. */
static int64_t find_kept(const rows *batch, int64_t *kept) {
    int64_t n = 0;
    for (int64_t i = 0; i < batch->count; i++) {
        uint64_t bits;
        memcpy(&bits, &batch->weight[i], sizeof bits);
        kept[n] = i;
        n += bits << 1 != 0;
    }
    kept[n] = batch->count;
    return n;
}

/* Visits the n_kept rows of a batch that are not ignored together with those that wait; returns the first bad row of the
 * run. */
static int64_t visit_kept(const call *c, run *u, const rows *batch, const int64_t *kept, int64_t n_kept, int64_t first,
                          chunk_state *state, char *scratch) {
    const fastce_problem *q = c->task.problem;
    const bool dense = q->target_kind == FASTCE_DENSE; /* lists are not waited for: see every_row */
    rows *w = &u->waiting;
    for (int64_t j = 0, i = 0; j <= n_kept; i = kept[j++] + 1) {
        for (int64_t k = i; k < kept[j] && dense; k++) {
            const int64_t row = first + k;
            const char *const at[ARRAY_COUNT] = {[TARGET] = u->at[TARGET] + row * u->step[TARGET]};
            if (c->kernels->first_bad_target(&c->task, at, u->step, 1) < 0) continue;
            int64_t earlier = visit(c, w, state, scratch);
            return earlier < 0 ? row : earlier;
        }
        if (i < kept[j] && (w->values || q->output == FASTCE_GRAD)) zero_rows(c, w, first + i, kept[j] - i);
        if (j == n_kept) break;
        int64_t bad = await_others(c, w, batch, kept[j], first + kept[j], state, scratch);
        if (bad >= 0) return bad;
    }
    return -1;
}

/* Rows of the run of others, none yet. The arrays stay as they are: small calls would feel the copy. */
static void start_rows(rows *r, const rows *others) {
    r->count = 0;
    r->first = 0;
    r->consecutive = r->uniform = r->scaled = false;
    r->all_kept = true;
    r->logits = others->logits;
    r->dense = others->dense;
    r->beside = others->beside;
    r->out = others->out;
    r->values = others->values;
    r->logits_step = others->logits_step;
    r->dense_step = others->dense_step;
    r->beside_step = others->beside_step;
    r->offset = NULL;
    r->out_step = others->out_step;
    r->first_row = others->first_row;
}

/* Visits count rows of a run in batches; returns its first bad row, or -1. */
static int64_t visit_run(const call *c, run *u, int64_t count, chunk_state *state, char *scratch) {
    const task *t = &c->task;
    rows batch;
    start_rows(&batch, &u->waiting);
    for (int64_t done = 0; done < count; done += batch.count) {
        int64_t n = count - done < VISIT_ROWS ? count - done : VISIT_ROWS, bad;
        if (t->alike && done > 0 && !c->scan) { /* all is known, but for the targets that the visit checks */
            batch.count = n;
            batch.first = done;
            state->total.weight += (double)n; /* exact beside other counts */
            bad = visit(c, &batch, state, scratch);
            batch.count = n;
            if (bad >= 0) return bad;
            continue;
        }
        const char *at[ARRAY_COUNT];
        for (int a = 0; a < ARRAY_COUNT; a++) at[a] = u->at[a] ? u->at[a] + done * u->step[a] : NULL;
        int64_t bad_target = c->kernels->load_targets(t, at, u->step, n, &batch, &state->total);
        if (c->scan || bad_target >= 0) {
            const bool masses = t->problem->target_kind != FASTCE_LABELS && t->problem->target_kind != FASTCE_NO_TARGET;
            bad = visit(c, &u->waiting, state, scratch);
            if (bad >= 0) return bad;
            bad = masses ? c->kernels->first_bad_target(t, at, u->step, bad_target < 0 ? n : bad_target) : -1;
            if (bad < 0) bad = bad_target;
            if (bad >= 0) return done + bad;
            continue;
        }
        int64_t kept[VISIT_ROWS + 1], n_kept = batch.all_kept && u->waiting.count == 0 ? n : find_kept(&batch, kept);
        /* While most of its rows are wanted, a batch stays whole: its neighbours are loaded, or stored, together. Few
         * classes are computed sooner than zeros are written here and there. */
        bool dense = t->problem->target_kind == FASTCE_DENSE, together = t->lanes && t->problem->output == FASTCE_GRAD;
        bool whole = n_kept == n || ((n_kept > n / 2 || (together && n_kept > 0)) && !dense) || t->every_row;
        if (whole && u->waiting.count == 0) {
            batch.consecutive = true;
            batch.first = done;
            int64_t size = batch.count;
            bad = visit(c, &batch, state, scratch);
            batch.count = size;
        } else {
            bad = visit_kept(c, u, &batch, kept, n_kept, done, state, scratch);
        }
        if (bad >= 0) return bad;
    }
    return visit(c, &u->waiting, state, scratch);
}

static void visit_chunk(void *context, int64_t chunk, int worker) {
    const call *c = context;
    const walk *w = &c->walk;
    const fastce_problem *q = c->task.problem;
    char *scratch = c->scratch + (size_t)worker * c->scratch_bytes;
    int64_t row = chunk * c->chunk_rows, end = row + c->chunk_rows;
    if (end > w->n_rows) end = w->n_rows;
    int64_t value_size = q->logits.dtype == FASTCE_F64 ? 8 : 4;
    ptrdiff_t step[ARRAY_COUNT];
    for (int a = 0; a < ARRAY_COUNT; a++) step[a] = w->stride[a][w->n_axes - 1];
    chunk_state state = {.total = {.bad_row = -1}, .first_row = row};

    run u;
    u.step = step;
    while (row < end && state.total.bad_row < 0) {
        int64_t count = find_row(w, row, u.at);
        if (count > end - row) count = end - row;
        rows *r = &u.waiting;
        r->logits = u.at[LOGITS];
        r->dense = u.at[TARGET];
        r->beside = u.at[BESIDE];
        r->out = (char *)u.at[OUT];
        r->values = q->row_values ? (char *)q->row_values + row * value_size : NULL;
        r->logits_step = step[LOGITS];
        r->dense_step = step[TARGET];
        r->beside_step = step[BESIDE];
        r->out_step = step[OUT];
        r->first_row = row;
        start_rows(r, r);
        int64_t bad = visit_run(c, &u, count, &state, scratch);
        if (bad >= 0) state.total.bad_row = row + bad;
        row += count;
    }
    if (!c->scan) c->kernels->finish_chunk(&c->task, &state);
    for (int i = 0; i < MOST_LANES; i++) {
        add_exactly(&state.total.loss, &state.total.loss_lost, state.loss[i]);
        state.total.loss_lost += state.lost[i];
    }
    c->partials[chunk] = state.total;
}

static void total(const partial *p, int64_t count, fastce_totals *totals) {
    partial sums = {.bad_row = -1};
    for (int64_t i = 0; i < count && sums.bad_row < 0; i++) {
        sums.bad_row = p[i].bad_row;
        add_exactly(&sums.loss, &sums.loss_lost, p[i].loss);
        add_exactly(&sums.weight, &sums.weight_lost, p[i].weight);
        sums.loss_lost += p[i].loss_lost;
        sums.weight_lost += p[i].weight_lost;
    }
    totals->bad_row = sums.bad_row;
    /* Where the sum is not finite, what rounding lost of it is NaN. */
    totals->loss = isfinite(sums.loss) ? sums.loss + sums.loss_lost : sums.loss;
    totals->weight = isfinite(sums.weight) ? sums.weight + sums.weight_lost : sums.weight;
}

static bool is_divided(const fastce_problem *q) {
    return q->kind == FASTCE_LOGITS && q->temperature != 0 && q->temperature != 1;
}

static bool is_capped(const fastce_problem *q) { return q->kind == FASTCE_LOGITS && q->softcap != 0; }

/* Whether the visit is of what is staged, where classes are neighbours whatever the stride of the logits. */
static bool is_staged(const fastce_problem *q) {
    return is_divided(q) || is_capped(q) || q->target_kind == FASTCE_SPARSE;
}

/* Whether vectors hold neighbouring rows rather than neighbouring classes; results depend on it, so it must not depend
 * on the number of rows. */
static bool takes_lanes(const fastce_problem *q) {
    if (q->n_classes <= FEW_CLASSES) return true;
    return q->logits.class_stride != dtype_size(q->logits.dtype) && !is_staged(q);
}

const char *fastce_kernel_name(const fastce_problem *q) {
    int64_t n_rows;
    if (check_problem(q, &n_rows) != FASTCE_OK) return "none";
    if (is_element_wise(q)) return "vectors of elements";
    if (q->kind == FASTCE_TEACHER) return "rows of logits and a teacher's";
    if (q->kind != FASTCE_LOGITS) return "rows of probabilities";
    if (is_staged(q)) return takes_lanes(q) ? "vectors of staged rows" : "staged rows of vectors";
    return takes_lanes(q) ? "vectors of rows" : "rows of vectors";
}

static bool aligned_to_element(const fastce_array *a) {
    return (uintptr_t)a->data % (unsigned)dtype_size(a->dtype) == 0;
}

/* What a class vector gives each class, where that is the same and together no more than a label's mass, so that the loss
 * is mostly its label's: then no digits are lost in adding up what lies above and below the label's logit. Else 0. */
static double even_q(const fastce_problem *q, double sum) {
    if (!q->class_vector || q->class_weight || !(sum <= q->target_scale)) return 0;
    for (int64_t k = 1; k < q->n_classes; k++)
        if (q->class_vector[k] != q->class_vector[0]) return 0;
    return q->class_vector[0];
}

static void plan_task(const fastce_problem *q, const walk *w, task *t) {
    const ptrdiff_t *step[ARRAY_COUNT];
    for (int a = 0; a < ARRAY_COUNT; a++) step[a] = &w->stride[a][w->n_axes - 1];
    bool same_dtype = q->out.data && q->out.dtype == q->logits.dtype && !q->out.byte_swapped;
    int size = dtype_size(q->logits.dtype);
    t->problem = q;
    t->lanes = takes_lanes(q);
    t->elements = is_element_wise(q);
    t->alike =
        t->elements && !q->sample_weight.data && !q->factor.data && !q->positive_weight.data && !q->grad_output.data;
    t->any_target = q->kind == FASTCE_SQUARES || q->kind == FASTCE_TEACHER;
    t->divided = is_divided(q);
    t->capped = is_capped(q);
    t->staged = is_staged(q);
    t->every_row = t->elements || t->staged || q->output == FASTCE_STATISTICS;
    bool binary = q->kind == FASTCE_BINARY_LOGITS || q->kind == FASTCE_BINARY_PROBABILITIES;
    t->largest_target = binary ? 1 : q->logits.dtype == FASTCE_F64 ? DBL_MAX : FLT_MAX; /* that of the arithmetic */
    ptrdiff_t logits_stride = t->lanes ? *step[LOGITS] : q->logits.class_stride;
    ptrdiff_t out_stride = t->lanes ? *step[OUT] : q->out.class_stride;
    t->logits_direct = !q->logits.byte_swapped && logits_stride == size;
    t->out_direct = t->logits_direct && same_dtype && out_stride == size;
    bool in_lines = t->out_direct || (t->lanes && same_dtype && q->out.class_stride == size);
    if (t->staged && q->out.data)
        in_lines = in_lines || (!q->out.byte_swapped && q->out.class_stride == dtype_size(q->out.dtype));
    t->stream =
        in_lines && aligned_to_element(&q->out) && (double)w->n_rows * (double)q->n_classes * size > CACHE_BYTES;
    t->q_scale = t->q_vector = NULL;
    double sum = 0, lost = 0;
    if (q->class_vector)
        for (int64_t k = 0; k < q->n_classes; k++) add_exactly(&sum, &lost, q->class_vector[k]);
    t->q_vector_sum = sum + lost;
    bool labels = q->target_kind == FASTCE_LABELS;
    t->even_q = labels && (!t->lanes || q->n_classes <= FEW_CLASSES) ? even_q(q, t->q_vector_sum) : 0;
    t->needs_max = !labels || (q->class_vector && t->even_q == 0);
    t->plain = !t->needs_max && !q->class_vector && q->z_loss == 0;
    t->focal = q->kind == FASTCE_LOGITS && q->gamma != 0;
}

/* Class arrays in the type of the arithmetic, in the given room for two of them. */
static void convert_class_arrays(const fastce_problem *q, task *t, char *room) {
    int64_t n = q->n_classes;
    bool narrow = q->logits.dtype != FASTCE_F64;
    const double *source[2] = {q->target_kind == FASTCE_LABELS ? NULL : q->class_weight, q->class_vector};
    const void **converted[2] = {&t->q_scale, &t->q_vector};
    double factor[2] = {q->target_scale, 1};
    for (int i = 0; i < 2; i++) {
        if (!source[i]) continue;
        *converted[i] = room;
        for (int64_t k = 0; k < n; k++, room += narrow ? 4 : 8) {
            double x = source[i][k] * factor[i];
            float y = (float)x;
            memcpy(room, narrow ? (void *)&y : (void *)&x, narrow ? 4 : 8);
        }
    }
}

/* Of the shape alone, as sums of chunks round where chunks end. */
static int64_t rows_of_chunk(int64_t n_rows, int64_t n_classes) {
    int64_t rows = n_rows / CHUNKS, least = LEAST_CHUNK_LOGITS / (n_classes + LOGITS_PER_ROW),
            most = MOST_CHUNK_LOGITS / n_classes;
    if (rows < least) rows = least;
    if (rows > most) rows = most;
    if (rows >= VISIT_ROWS) return rows / VISIT_ROWS * VISIT_ROWS;
    return rows > 0 ? rows : 1;
}

static size_t round_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static fastce_status visit_all(const fastce_problem *q, int64_t n_rows, const isa *isa, bool scan, int num_threads,
                               fastce_totals *totals) {
    call c; /* not cleared: the walk has room for many axes */
    c.scan = scan;
    c.scratch_bytes = 0;
    plan_walk(q, n_rows, &c.walk);
    plan_task(q, &c.walk, &c.task);
    c.kernels = q->logits.dtype == FASTCE_F64 ? isa->f64 : isa->f32;
    if (!scan) c.scratch_bytes = round_up(c.kernels->scratch_bytes(&c.task));

    int64_t classes = q->n_classes;
    c.chunk_rows = rows_of_chunk(n_rows, classes);
    if (c.chunk_rows < n_rows / MAX_CHUNKS) c.chunk_rows = n_rows / MAX_CHUNKS + 1;
    int64_t n_chunks = (n_rows + c.chunk_rows - 1) / c.chunk_rows;
    int workers = usable_threads(n_chunks, num_threads);

    size_t partial_bytes = round_up((size_t)n_chunks * sizeof(partial));
    size_t class_bytes = q->class_vector || q->class_weight ? round_up((size_t)classes * 16) : 0;
    size_t bytes = ALIGNMENT + partial_bytes + class_bytes + (size_t)workers * c.scratch_bytes;
    char on_stack[STACK_BYTES];
    char *heap = bytes > sizeof on_stack ? malloc(bytes) : NULL;
    if (bytes > sizeof on_stack && !heap) return FASTCE_NO_MEMORY;
    char *room = heap ? heap : on_stack;
    room += (ALIGNMENT - (uintptr_t)room % ALIGNMENT) % ALIGNMENT;
    c.partials = (partial *)room;
    convert_class_arrays(q, &c.task, room + partial_bytes);
    c.scratch = room + partial_bytes + class_bytes;

    for_each(n_chunks, workers, visit_chunk, &c);
    total(c.partials, n_chunks, totals);
    free(heap);
    return totals->bad_row < 0 ? FASTCE_OK : FASTCE_BAD_ROW;
}

/* Whether a bad row would leave traces of the rows before it. */
static bool writes_rows(const fastce_problem *q) { return q->output != FASTCE_LOSS || q->row_values; }

static fastce_status carry_out(const fastce_problem *q, const isa *isa, bool scan, int num_threads,
                               fastce_totals *totals) {
    int64_t n_rows;
    if (!totals || (uintptr_t)totals % sizeof(double)) return FASTCE_BAD_POINTER;
    *totals = (fastce_totals){.bad_row = -1};
    fastce_status status = isa ? check_problem(q, &n_rows) : FASTCE_BAD_ISA;
    if (status != FASTCE_OK || n_rows == 0) return status;
    bool may_be_bad = q->target_kind != FASTCE_NO_TARGET || q->sample_weight.data;
    if (!scan && !q->scanned && may_be_bad && writes_rows(q)) {
        status = visit_all(q, n_rows, isa, true, num_threads, totals);
        if (status != FASTCE_OK) return status;
    }
    return visit_all(q, n_rows, isa, scan, num_threads, totals);
}

fastce_status fastce_scan(const fastce_problem *q, int num_threads, fastce_totals *totals) {
    return carry_out(q, find_isa(NULL), true, num_threads, totals);
}

fastce_status fastce_run(const fastce_problem *q, const char *isa_name, int num_threads, fastce_totals *totals) {
    return carry_out(q, find_isa(isa_name), false, num_threads, totals);
}
