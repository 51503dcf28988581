/* Vectors of rows: each lane is a row, classes pass one after the other. For few classes, and where the class axis is
 * strided: positions that are neighbours in memory are loaded where they lie, others through a tile. */

/* Sums of so many classes go to float64: beside a term that is far larger each addition may lose half a ULP of it, all to
 * one side, and a gradient near 1 shows every one of them. */
enum { FLUSH_CLASSES = 4, ELEMENT = sizeof(real) };

/* Classes [first, first + n) of all rows of the visit: class first + k of row i at p + k * stride + i elements. */
typedef struct block_of_lanes {
    const char *p;
    ptrdiff_t stride;
    int64_t first, n;
} block_of_lanes;

typedef struct lane_state {
    results s;
    real label[VISIT_ROWS];  /* within the block of classes at hand, or -1 */
    real spread[VISIT_ROWS]; /* where some of q is spread evenly: the sum of x_label - x_k */
    double rest[VISIT_ROWS], mass[VISIT_ROWS], distance[VISIT_ROWS];
    double rest_lost[VISIT_ROWS], mass_lost[VISIT_ROWS], distance_lost[VISIT_ROWS];
} lane_state;

typedef struct lane_scratch {
    real *x, *q, *out, *flat;
    real *kept;        /* columns of few classes: their exponentials; they need no q */
    real *leaving;     /* rows that will leave while others are computed */
    outgoing outgoing; /* and those that do */
} lane_scratch;

static size_t lanes_scratch_bytes(const task *t) { return (t->stream ? 6 : 4) * TILE_SIZE * ELEMENT; }

static INLINE block_of_lanes get_lanes(const task *t, const rows *r, int64_t first, bool direct, lane_scratch *w) {
    const fastce_array *a = &t->problem->logits;
    int64_t left = t->problem->n_classes - first, n = left < TILE_CLASSES ? left : TILE_CLASSES;
    if (direct) {
        const char *p = r->logits + r->first * r->logits_step + first * a->class_stride;
        return (block_of_lanes){p, a->class_stride, first, n};
    }
    load_tile(w->x, w->flat, a, r->logits, r->logits_step, r, first, n, &w->outgoing);
    return (block_of_lanes){(const char *)w->x, VISIT_ROWS * ELEMENT, first, n};
}

/* q_k / s of a block of dense targets; returns -1, or the first row with a target that is not valid. */
static int64_t get_dense_tile(const task *t, const rows *r, int64_t first, int64_t n, lane_scratch *w) {
    const fastce_array *a = &t->problem->target;
    load_tile(w->q, w->flat, a, r->dense, r->dense_step, r, first, n, &w->outgoing);
    const real *scales = t->q_scale, *vector = t->q_vector, uniform = (real)t->problem->target_scale;
    real lowest[VISIT_ROWS] = {0}, poison[VISIT_ROWS] = {0};
    for (int64_t k = 0; k < n; k++) {
        real scale = scales ? scales[first + k] : uniform, add = vector ? vector[first + k] : 0;
        real *q = &w->q[k * VISIT_ROWS];
        for (int64_t i = 0; i < r->count; i++) {
            lowest[i] = q[i] < lowest[i] ? q[i] : lowest[i];
            poison[i] += q[i] * 0;
            q[i] = scale * q[i] + add;
        }
    }
    for (int64_t i = 0; i < r->count; i++)
        if (lowest[i] < 0 || poison[i] != 0) return i;
    return -1;
}

static INLINE vec v_step(mask m) { return v_select(m, v_set1(1), v_set1(0)); }

/* Where each row's label is within a block of classes, -1 where it is not there. */
static INLINE void find_labels(const task *t, const rows *r, block_of_lanes x, lane_state *a) {
    if (x.n == t->problem->n_classes) {
        for (int64_t i = 0; i < r->count; i++) a->label[i] = (real)(int32_t)r->label[i];
    } else {
        int32_t position[VISIT_ROWS];
        for (int64_t i = 0; i < r->count; i++) {
            int64_t k = r->label[i] - x.first;
            position[i] = (uint64_t)k < (uint64_t)x.n ? (int32_t)k : -1;
        }
        for (int64_t i = 0; i < r->count; i++) a->label[i] = (real)position[i];
    }
    for (int64_t i = r->count; i % GROUP != 0; i++) a->label[i] = -1;
}

/* Logits of the labels in a block of classes. */
static INLINE void select_label_logits(block_of_lanes x, int64_t row, lane_state *a) {
    for (int j = 0; j < 4; j++) {
        vec label = v_load(&a->label[row + j * LANES]), logit = v_load(&a->s.label_logit[row + j * LANES]);
        const char *p = x.p + (row + j * LANES) * ELEMENT;
        for (int64_t k = 0; k < x.n; k++)
            logit = v_select(v_eq(label, v_set1((real)(int32_t)k)), v_load((const real *)(p + k * x.stride)), logit);
        v_store(&a->s.label_logit[row + j * LANES], logit);
    }
}

/* Logits of the labels: passing a few classes by costs less than going to each. */
static INLINE void load_label_logits(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct) {
    const fastce_array *logits = &t->problem->logits;
    for (int64_t i = 0; i < VISIT_ROWS; i += LANES) v_store(&a->s.label_logit[i], v_set1(0));
    if (t->problem->target_kind != FASTCE_LABELS) return;
    if (t->problem->n_classes <= TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, 0, direct, w);
        find_labels(t, r, x, a);
        for (int64_t row = 0; row < r->count; row += GROUP) select_label_logits(x, row, a);
        return;
    }
    for (int64_t i = 0; i < r->count; i++)
        if (r->label[i] >= 0)
            gather(&a->s.label_logit[i], r->logits + row_of(r, i) * r->logits_step + r->label[i] * logits->class_stride,
                   0, 1, logits->dtype, logits->byte_swapped);
}

static INLINE vec class_number(int64_t k) {
    static const real number[TILE_CLASSES] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                              16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    return v_set1(number[k]);
}

/* How the classes of LANES rows lie: planes of neighbouring rows, rows of neighbouring reals, or pairs of these. */
typedef enum layout { PLANES, ROWS, PAIRS } layout;

/* LANES rows of few classes. */
typedef struct few {
    layout layout;
    const char *p;
    ptrdiff_t stride; /* from plane to plane, or from row to row */
    int64_t n;
} few;

/* A vector of class k into a column, but where it is the label: that goes to logit, and the last class takes its place. */
static INLINE void take_class(vec x, int64_t k, vec label, vec last, vec *logit, real *column) {
    const mask taken = v_eq(label, class_number(k));
    *logit = v_select(taken, x, *logit);
    v_store(&column[k * LANES], v_select(taken, last, x));
}

/* COLUMNS classes of LANES rows of neighbouring reals. */
static INLINE void load_columns(const few *x, int64_t first, vec *columns) {
    const char *p = x->p + first * ELEMENT;
    for (int j = 0; j < COLUMNS; j++) columns[j] = v_load_pieces(p + j * x->stride, x->stride);
    v_transpose(columns);
}

/* The columns of all classes but the label, n - 1 of them; returns the label's logit. Where rows are shorter than a piece,
 * what lies before the first is readable. */
static INLINE vec take_label(const few *x, vec label, real *column) {
    const int64_t n = x->n;
    vec last, logit;
    if (x->layout == PLANES) {
        const char *end = x->p + (n - 1) * x->stride;
        logit = last = v_load((const real *)end);
        int64_t k = 0;
        for (const char *p = x->p; p != end; p += x->stride)
            take_class(v_load((const real *)p), k++, label, last, &logit, column);
        return logit;
    }
    vec columns[COLUMNS];
    load_columns(x, n - COLUMNS, columns); /* first, for the last class is among them */
    logit = last = columns[COLUMNS - 1];
    for (int j = 0; j < COLUMNS - 1; j++)
        if (n >= COLUMNS || n - COLUMNS + j >= 0) take_class(columns[j], n - COLUMNS + j, label, last, &logit, column);
    for (int64_t k = 0; k < n - COLUMNS; k += COLUMNS) { /* those that overlap are taken once more */
        load_columns(x, k, columns);
        for (int j = 0; j < COLUMNS; j++) take_class(columns[j], k + j, label, last, &logit, column);
    }
    return logit;
}

/* Memory that comes while a visit is computed, for the next one: a vector for each class of each LANES rows. */
typedef struct upcoming {
    const char *p;
    ptrdiff_t class, rows; /* from one to the next */
} upcoming;

static INLINE void expect(const upcoming *next, int64_t first, int64_t end) {
    for (int64_t k = first; k < end; k++) __builtin_prefetch(next->p + k * next->class);
}

/* Sum of exp(x_k - shift) over n columns but the last n % 4, four at a time; they may keep the exponentials. Takes x_k - shift
 * from spread, where there is one. */
static INLINE vec sum_fours(real *column, int64_t n, vec shift, bool keep, vec *spread, const upcoming *next,
                            outgoing *o) {
    const vec zero = v_set1(0);
    vec sum[4] = {zero, zero, zero, zero}, below[4] = {zero, zero, zero, zero}, e[4];
    for (int64_t k = 0; k + 4 <= n; k += 4, column += 4 * LANES) {
        if (keep) send_line(o), send_line(o);
        expect(next, k, k + 4);
        for (int j = 0; j < 4; j++) e[j] = v_sub(v_load(column + j * LANES), shift);
        for (int j = 0; j < 4 && spread; j++) below[j] = v_sub(below[j], e[j]);
        exp_vectors(e, 4);
        for (int j = 0; j < 4 && keep; j++) v_store(column + j * LANES, e[j]);
        for (int j = 0; j < 4; j++) sum[j] = v_add(sum[j], e[j]);
    }
    if (spread) *spread = v_add(v_add(below[0], below[1]), v_add(below[2], below[3]));
    return v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]));
}

/* A row as reals, in whole vectors: what follows it is written over. */
static INLINE void copy_row(real *to, const char *p, int64_t n, const fastce_array *a) {
    if (a->dtype != real_dtype()) {
        widen_as(to, p, n, a->dtype);
        return;
    }
    for (; n >= LANES; n -= LANES, to += LANES, p += LANES * ELEMENT) v_store(to, v_load((const real *)p));
    if (n > 0) v_store(to, v_load_first((const real *)p, n, v_set1(0)));
}

/* Rows [i, i + LANES) of the visit, up to its last, as neighbouring reals in copy. */
static const char *copy_rows(const task *t, const rows *r, int64_t i, real *copy) {
    const fastce_array *a = &t->problem->logits;
    const int64_t n = t->problem->n_classes, count = r->count - i < LANES ? r->count - i : LANES;
    copy += COLUMNS;
    if (rows_are_packed(a, r->logits_step, r, n)) {
        widen_as(copy, r->logits + (r->first + i) * r->logits_step, count * n, a->dtype);
    } else {
        for (int64_t k = 0; k < count; k++) copy_row(copy + k * n, r->logits + row_of(r, i + k) * r->logits_step, n, a);
    }
    memset(copy + count * n, 0, (size_t)((LANES - count) * n) * sizeof *copy);
    return (const char *)copy;
}

/* 1 where a label's logit cannot serve as the maximum, see finish.h; else 0. */
static INLINE vec is_refused(vec logit, vec rest) {
    const vec zero = v_set1(0), one = v_set1(1);
    vec large = v_select(v_gt(v_set1((real)LARGEST_SHIFTED_SUM), rest), zero, one);
    return v_select(v_eq(v_sub(logit, logit), zero), large, one);
}

#define APART static __attribute__((noinline)) /* a loop with registers of its own */

static INLINE void take_all(const lane_state *a, few x, ptrdiff_t step, int64_t begin, int64_t end, real *columns,
                            real *logits, outgoing *o) {
    for (int64_t i = begin; i < end; i += LANES, x.p += LANES * step) {
        if (o->sent < o->count) send_line(o), send_line(o);
        v_store(&logits[i], take_label(&x, v_load(&a->label[i]), columns + i * x.n));
    }
}

APART void take_planes(const lane_state *a, few x, int64_t begin, int64_t end, real *columns, real *logits,
                       outgoing *o) {
    x.layout = PLANES;
    take_all(a, x, ELEMENT, begin, end, columns, logits, o);
}

APART void take_rows(const lane_state *a, few x, int64_t begin, int64_t end, real *columns, real *logits, outgoing *o) {
    x.layout = ROWS;
    take_all(a, x, x.stride, begin, end, columns, logits, o);
}

static INLINE void sum_group(int count, int64_t n, real *columns, const real *logits, real *rest, bool keep,
                             real *spreads, upcoming *next, outgoing *o) {
    const int64_t fours = (n - 1) / 4 * 4;
    vec shift[4], sum[4], spread[4], e[4];
    for (int j = 0; j < count; j++, next->p += next->rows) {
        shift[j] = v_load(&logits[j * LANES]);
        sum[j] = sum_fours(columns + j * LANES * n, n - 1, shift[j], keep, spreads ? &spread[j] : NULL, next, o);
        expect(next, fours, n);
    }
    for (int64_t k = fours; k < n - 1; k++) {
        if (keep) send_line(o), send_line(o);
        for (int j = 0; j < count; j++) e[j] = v_sub(v_load(columns + (j * n + k) * LANES), shift[j]);
        for (int j = 0; j < count && spreads; j++) spread[j] = v_sub(spread[j], e[j]);
        exp_vectors(e, count);
        for (int j = 0; j < count && keep; j++) v_store(columns + (j * n + k) * LANES, e[j]);
        for (int j = 0; j < count; j++) sum[j] = v_add(sum[j], e[j]);
    }
    for (int j = 0; j < count; j++) v_store(&rest[j * LANES], sum[j]);
    for (int j = 0; j < count && spreads; j++) v_store(&spreads[j * LANES], spread[j]);
}

static INLINE void sum_all(int64_t n, int64_t count, real *columns, lane_state *a, bool keep, bool spread,
                           upcoming next, outgoing *o) {
    const real *logits = a->s.label_logit;
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP)
        sum_group(4, n, columns + i * n, logits + i, a->s.rest + i, keep, spread ? a->spread + i : NULL, &next, o);
    for (; i < count; i += LANES)
        sum_group(1, n, columns + i * n, logits + i, a->s.rest + i, keep, spread ? a->spread + i : NULL, &next, o);
}

APART void sum_and_keep(int64_t n, int64_t count, real *columns, lane_state *a, upcoming next, outgoing *o) {
    sum_all(n, count, columns, a, true, false, next, o);
}

APART void sum_only(int64_t n, int64_t count, real *columns, lane_state *a, upcoming next) {
    sum_all(n, count, columns, a, false, false, next, NULL);
}

APART void sum_spread_and_keep(int64_t n, int64_t count, real *columns, lane_state *a, upcoming next, outgoing *o) {
    sum_all(n, count, columns, a, true, true, next, o);
}

APART void sum_and_spread(int64_t n, int64_t count, real *columns, lane_state *a, upcoming next) {
    sum_all(n, count, columns, a, false, true, next, NULL);
}

/* What the rows of a visit leave: losses of plain rows, and a sum that is large or NaN where a row is refused. */
typedef struct few_sums {
    wide loss;
    vec rest;
} few_sums;

/* What count vectors of rows from i on leave, losses of plain ones included. */
static INLINE void finish_vectors(const task *t, const rows *r, int64_t i, int count, const vec *label, vec *logit,
                                  vec *rest, lane_state *a, few_sums *sums) {
    const vec zero = v_set1(0), mass = v_set1((real)t->problem->target_scale);
    const bool some = !r->all_kept || i + count * LANES > r->count;
    vec value[4], slope[4];
    for (int j = 0; j < count && some; j++) { /* rows visited for their neighbours' sake, and none at all */
        mask none = v_gt(zero, label[j]);
        logit[j] = v_select(none, zero, logit[j]);
        rest[j] = v_select(none, zero, rest[j]);
    }
    for (int j = 0; j < count; j++) sums->rest = v_add(sums->rest, v_fma(logit[j], zero, rest[j]));
    for (int j = 0; j < count; j++) v_store(&a->s.label_logit[i + j * LANES], logit[j]);
    for (int j = 0; j < count; j++) v_store(&a->s.rest[i + j * LANES], rest[j]);
    if (!t->plain) return;
    for (int j = 0; j < count; j++) value[j] = rest[j];
    log1p_vectors(value, count);
    if (t->focal) {
        focus_vectors(t->problem, rest, value, slope, count);
        for (int j = 0; j < count; j++) v_store(&a->s.slope[i + j * LANES], slope[j]);
    }
    for (int j = 0; j < count; j++) {
        value[j] = v_mul(r->uniform ? mass : v_from_doubles(r->label_mass + i + j * LANES), value[j]);
        if (some) value[j] = v_select(v_gt(zero, label[j]), zero, value[j]);
        v_store(&a->s.value[i + j * LANES], value[j]);
        sums->loss = w_add(sums->loss, value[j]);
    }
}

APART void finish_few(const task *t, const rows *r, lane_state *a, few_sums *sums) {
    few_sums s = *sums;
    for (int64_t i = 0; i < r->count; i += GROUP) {
        vec label[4], logit[4], rest[4];
        for (int j = 0; j < 4; j++) label[j] = v_load(&a->label[i + j * LANES]);
        for (int j = 0; j < 4; j++) logit[j] = v_load(&a->s.label_logit[i + j * LANES]);
        for (int j = 0; j < 4; j++) rest[j] = v_load(&a->s.rest[i + j * LANES]);
        finish_vectors(t, r, i, 4, label, logit, rest, a, &s);
    }
    *sums = s;
}

/* Two classes: all at once, without a tile. */
static INLINE void reduce_pairs(int count, const char *p, const task *t, const rows *r, int64_t i, lane_state *a,
                                real *kept, bool keep, few_sums *sums) {
    const vec zero = v_set1(0);
    vec label[4], logit[4], e[4];
    for (int j = 0; j < count; j++) {
        const real *x = (const real *)p + 2 * j * LANES;
        vec pair[2] = {v_load(x), v_load(x + LANES)};
        v_unzip(pair);
        label[j] = v_load(&a->label[i + j * LANES]);
        const mask first = v_eq(label[j], zero);
        logit[j] = v_select(first, pair[0], pair[1]);
        e[j] = v_sub(v_select(first, pair[1], pair[0]), logit[j]);
    }
    for (int j = 0; j < count && t->even_q != 0; j++) v_store(&a->spread[i + j * LANES], v_sub(zero, e[j]));
    exp_vectors(e, count);
    for (int j = 0; j < count && keep; j++) v_store(kept + (i + j * LANES) * 2, e[j]);
    finish_vectors(t, r, i, count, label, logit, e, a, sums);
}

APART void reduce_all_pairs(const char *p, const task *t, const rows *r, int64_t i, int64_t end, lane_state *a,
                            real *kept, few_sums *sums, outgoing *out) {
    few_sums s = *sums;
    outgoing o = *out;
    const bool keep = t->problem->out.data != NULL;
    for (; i + GROUP <= end; i += GROUP, p += 2 * GROUP * ELEMENT) {
        prefetch(p + AHEAD_BYTES, 2 * GROUP * ELEMENT);
        for (int j = 0; j < 8 && keep; j++) send_line(&o);
        reduce_pairs(4, p, t, r, i, a, kept, keep, &s);
    }
    for (; i < end; i += LANES, p += 2 * LANES * ELEMENT) reduce_pairs(1, p, t, r, i, a, kept, keep, &s);
    *sums = s;
    *out = o;
}

/* Two classes and nothing but a label: with d the other logit less its own, cross entropy is log1p(exp(d)), and the gradient
 * that of a logistic function. Of -|d| no exponential is large, so that no row is refused; +inf makes its row NaN. */
static INLINE void do_pairs(int count, few x, const rows *r, int64_t i, lane_state *a, real *kept, bool keep,
                            wide *losses) {
    const vec zero = v_set1(0), one = v_set1(1);
    const bool some = !r->all_kept || i + count * LANES > r->count;
    vec label[4], d[4], e[4], value[4];
    for (int j = 0; j < count; j++) {
        const real *first_of = (const real *)x.p + j * LANES * (x.layout == PLANES ? 1 : 2);
        const real *second_of =
            x.layout == PLANES ? (const real *)((const char *)first_of + x.stride) : first_of + LANES;
        vec pair[2] = {v_load(first_of), v_load(second_of)};
        if (x.layout != PLANES) v_unzip(pair);
        label[j] = v_load(&a->label[i + j * LANES]);
        const mask first = v_eq(label[j], zero);
        const vec own = v_select(first, pair[0], pair[1]), other = v_select(first, pair[1], pair[0]);
        d[j] = v_fma(v_max(own, other), zero, v_sub(other, own));
    }
    for (int j = 0; j < count; j++) e[j] = v_sub(zero, v_max(d[j], v_sub(zero, d[j])));
    exp_vectors(e, count);
    for (int j = 0; j < count; j++) value[j] = e[j];
    log1p_of_fraction(value, count);
    for (int j = 0; j < count; j++) value[j] = v_add(value[j], v_max(zero, d[j]));
    for (int j = 0; j < count && keep; j++) { /* the probability of the other */
        const vec larger = v_div(one, v_add(one, e[j]));
        v_store(kept + (i + j * LANES) * 2, v_select(v_gt(d[j], zero), larger, v_mul(e[j], larger)));
    }
    for (int j = 0; j < count && !r->uniform; j++) { /* no mass makes no infinity a NaN */
        const vec mass = v_from_doubles(r->label_mass + i + j * LANES);
        value[j] = v_mul(mass, v_select(v_gt(mass, zero), value[j], e[j]));
    }
    for (int j = 0; j < count; j++) {
        if (some) value[j] = v_select(v_gt(zero, label[j]), zero, value[j]);
        v_store(&a->s.value[i + j * LANES], value[j]);
        *losses = w_add(*losses, value[j]);
    }
}

static INLINE void do_all_pairs(few x, const task *t, const rows *r, int64_t i, int64_t end, lane_state *a, real *kept,
                                wide *losses, outgoing *out) {
    const int width = x.layout == PLANES ? 1 : 2;
    const bool keep = t->problem->out.data != NULL;
    wide sum = *losses;
    outgoing o = *out;
    for (; i + GROUP <= end; i += GROUP, x.p += width * GROUP * ELEMENT) {
        prefetch(x.p + AHEAD_BYTES, width * GROUP * ELEMENT);
        if (x.layout == PLANES) prefetch(x.p + x.stride + AHEAD_BYTES, GROUP * ELEMENT);
        for (int j = 0; j < 8 && keep; j++) send_line(&o);
        do_pairs(4, x, r, i, a, kept, keep, &sum);
    }
    for (; i < end; i += LANES, x.p += width * LANES * ELEMENT) do_pairs(1, x, r, i, a, kept, keep, &sum);
    *losses = sum;
    *out = o;
}

APART void do_pairs_of_rows(few x, const task *t, const rows *r, int64_t i, int64_t end, lane_state *a, real *kept,
                            wide *losses, outgoing *out) {
    x.layout = PAIRS;
    do_all_pairs(x, t, r, i, end, a, kept, losses, out);
}

APART void do_pairs_of_planes(few x, const task *t, const rows *r, int64_t i, int64_t end, lane_state *a, real *kept,
                              wide *losses, outgoing *out) {
    x.layout = PLANES;
    do_all_pairs(x, t, r, i, end, a, kept, losses, out);
}

static void add_few_losses(const rows *r, const lane_state *a, wide losses, chunk_state *state) {
    lane_sums total;
    w_store(losses, total.sum, total.lost);
    add_losses(r, a->s.value, &total, state);
}

static bool are_sound(const task *t, const rows *r, const lane_state *a, const few_sums *sums, chunk_state *state) {
    const vec large = v_set1((real)LARGEST_SHIFTED_SUM);
    real sound[LANES];
    v_store(sound, v_step(v_gt(large, sums->rest)));
    for (int j = 0; j < LANES; j++)
        if (sound[j] == 0) return false;
    if (t->plain) add_few_losses(r, a, sums->loss, state);
    return true;
}

static bool only_pairs(const task *t) { return t->plain && !t->focal && t->problem->n_classes == 2; }

/* All rows of few classes, shifted by their labels' logits. Returns whether none is refused; then plain ones are finished,
 * but for their gradients. */
static bool reduce_few(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct, chunk_state *state) {
    const fastce_array *logits = &t->problem->logits;
    const int64_t n = t->problem->n_classes, count = r->count;
    const bool planes = direct || logits->class_stride != dtype_size(logits->dtype) || logits->byte_swapped ||
                        !dtype_is_vector(logits->dtype) || positions_are_packed(logits, r->logits_step, r);
    const bool packed = rows_are_packed(logits, r->logits_step, r, n);
    const bool in_place = r->consecutive && logits->dtype == real_dtype() && (packed || (n != 2 && n >= COLUMNS));
    block_of_lanes block = {NULL, 0, 0, n};
    if (planes) block = get_lanes(t, r, 0, direct, w);
    find_labels(t, r, block, a);
    upcoming next = {(const char *)w->kept, 0, 0};
    few_sums sums = {w_zero(), v_set1(0)};
    real *logit = a->s.label_logit;
    const bool pairs = only_pairs(t);
    if (planes && pairs) {
        do_pairs_of_planes((few){PLANES, block.p, block.stride, n}, t, r, 0, count, a, w->kept, &sums.loss,
                           &w->outgoing);
    } else if (planes) {
        few x = {PLANES, block.p, block.stride, n};
        if (direct) next = (upcoming){block.p + VISIT_ROWS * ELEMENT, block.stride, LANES * ELEMENT};
        take_planes(a, x, 0, count, w->kept, logit, &w->outgoing);
    } else {
        /* Rows are read where they lie, whole vectors of them, and the others copied. */
        const char *p = r->logits + r->first * r->logits_step;
        const int64_t last = in_place ? count / LANES * LANES : 0;
        const int64_t first = n < COLUMNS && n != 2 && last > 0 ? LANES : 0;
        if (packed)
            next =
                (upcoming){p + VISIT_ROWS * r->logits_step, LANES * dtype_size(logits->dtype), LANES * r->logits_step};
        for (int64_t i = 0, end; i < count; i = end) {
            const bool here = i >= first && i < last;
            end = here ? last : i + LANES;
            few x = {ROWS, p + i * r->logits_step, r->logits_step, n};
            if (!here) x = (few){ROWS, copy_rows(t, r, i, w->flat), n * ELEMENT, n};
            if (pairs)
                do_pairs_of_rows(x, t, r, i, end, a, w->kept, &sums.loss, &w->outgoing);
            else if (n == 2)
                reduce_all_pairs(x.p, t, r, i, end, a, w->kept, &sums, &w->outgoing);
            else
                take_rows(a, x, i, end, w->kept, logit, &w->outgoing);
        }
    }
    if (pairs) {
        add_few_losses(r, a, sums.loss, state);
        return true;
    }
    if (planes || n != 2) {
        const bool keep = t->problem->out.data, spread = t->even_q != 0;
        if (keep && spread)
            sum_spread_and_keep(n, count, w->kept, a, next, &w->outgoing);
        else if (keep)
            sum_and_keep(n, count, w->kept, a, next, &w->outgoing);
        else if (spread)
            sum_and_spread(n, count, w->kept, a, next);
        else
            sum_only(n, count, w->kept, a, next);
        finish_few(t, r, a, &sums);
    }
    return are_sound(t, r, a, &sums, state);
}

/* rest += exp(x_k - x_label) over a block's classes but the label, for the group of rows at row. */
static INLINE void add_shifted(block_of_lanes x, int64_t row, lane_state *a) {
    vec label[4], shift[4];
    for (int j = 0; j < 4; j++) label[j] = v_load(&a->label[row + j * LANES]);
    for (int j = 0; j < 4; j++) shift[j] = v_load(&a->s.label_logit[row + j * LANES]);
    for (int j = 0; j < 4 && x.first == 0; j++) v_clear(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES]);
    const char *p = x.p + row * ELEMENT;
    for (int64_t k0 = 0; k0 < x.n; k0 += FLUSH_CLASSES) {
        vec sum[4], e[4];
        int64_t end = x.n - k0 < FLUSH_CLASSES ? x.n : k0 + FLUSH_CLASSES;
        for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
        for (int64_t k = k0; k < end; k++) {
            for (int j = 0; j < 4; j++)
                e[j] = v_sub(v_load((const real *)(p + k * x.stride + j * LANES * ELEMENT)), shift[j]);
            exp_vectors(e, 4);
            for (int j = 0; j < 4; j++)
                sum[j] = v_add(sum[j], v_select(v_eq(label[j], v_set1((real)(int32_t)k)), v_set1(0), e[j]));
        }
        for (int j = 0; j < 4; j++) v_accumulate(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES], sum[j]);
    }
}

/* Logits and dense targets of the next visit, where these are neighbouring reals, else NULL: asked for while this one is
 * computed, as nothing else would use memory then. */
typedef struct rows_ahead {
    const char *at[2];
} rows_ahead;

static const char *next_rows(const fastce_array *a, const char *base, ptrdiff_t step, const rows *r, int64_t n) {
    const bool whole = n <= TILE_CLASSES && a->dtype == real_dtype() && rows_are_packed(a, step, r, n);
    return whole ? base + (r->first + VISIT_ROWS) * step : NULL;
}

/* The same shifted by the running maximum, where one class at the maximum is left out; q's mass and distance on the
 * way: the class vector, or a dense tile. */
static INLINE void add_below_max(block_of_lanes x, const real *q_vector, const real *q_tile, int64_t row, lane_state *a,
                                 const rows_ahead *next) {
    const char *p = x.p + row * ELEMENT;
    const vec zero = v_set1(0), lowest = v_set1(-INFINITY);
    vec max[4], shift[4], at_max[4];
    for (int j = 0; j < 4; j++) max[j] = v_load(&a->s.max[row + j * LANES]);
    for (int64_t k = 0; k < x.n; k++)
        for (int j = 0; j < 4; j++)
            max[j] = v_max(max[j], v_load((const real *)(p + k * x.stride + j * LANES * ELEMENT)));
    for (int j = 0; j < 4; j++) {
        real *state = &a->s.max[row + j * LANES];
        vec old = v_load(state), drop = v_sub(old, max[j]);
        mask rises = v_gt(max[j], old);
        real kept[LANES], rise[LANES], raised[LANES];
        exp_vectors(&drop, 1);
        v_store(kept, drop);
        v_store(rise, v_sub(max[j], old));
        v_store(raised, v_step(rises));
        at_max[j] = v_sub(zero, v_step(rises)); /* counted, never added to what may be far below 1 */
        for (int i = 0; i < LANES; i++) {
            int64_t lane = row + j * LANES + i;
            if (raised[i] == 0) continue;
            a->rest[lane] = (1 + a->rest[lane]) * (double)kept[i];
            a->rest_lost[lane] *= (double)kept[i];
            if (a->mass[lane] > 0)
                add_exactly(&a->distance[lane], &a->distance_lost[lane], (double)rise[i] * a->mass[lane]);
        }
        v_store(state, max[j]);
        shift[j] = v_select(v_eq(max[j], lowest), zero, max[j]);
    }
    for (int64_t k0 = 0; k0 < x.n; k0 += FLUSH_CLASSES) {
        vec below[4], mass[4], distance[4], logit[4], e[4];
        int64_t end = x.n - k0 < FLUSH_CLASSES ? x.n : k0 + FLUSH_CLASSES;
        for (int j = 0; j < 4; j++) below[j] = mass[j] = distance[j] = zero;
        for (int64_t k = k0; k < end; k++) {
            for (int j = 0; j < 2; j++)
                if (next->at[j]) prefetch(next->at[j] + (row * x.n + k * GROUP) * ELEMENT, GROUP * ELEMENT);
            for (int j = 0; j < 4; j++) logit[j] = v_load((const real *)(p + k * x.stride + j * LANES * ELEMENT));
            for (int j = 0; j < 4; j++) e[j] = v_sub(logit[j], shift[j]);
            exp_vectors(e, 4);
            for (int j = 0; j < 4; j++) {
                mask equal = v_eq(logit[j], max[j]);
                below[j] = v_add(below[j], v_select(equal, zero, e[j]));
                at_max[j] = v_add(at_max[j], v_step(equal));
            }
            if (!q_vector && !q_tile) continue;
            for (int j = 0; j < 4; j++) {
                vec q = q_tile ? v_load(q_tile + k * VISIT_ROWS + row + j * LANES) : v_set1(q_vector[k]);
                mass[j] = v_add(mass[j], q);
                vec d = v_mul(q, v_sub(shift[j], logit[j]));
                distance[j] = v_add(distance[j], v_select(v_gt(q, zero), d, zero));
            }
        }
        for (int j = 0; j < 4; j++) {
            int64_t at = row + j * LANES;
            v_accumulate(&a->rest[at], &a->rest_lost[at], below[j]);
            v_accumulate(&a->mass[at], &a->mass_lost[at], mass[j]);
            v_accumulate(&a->distance[at], &a->distance_lost[at], distance[j]);
        }
    }
    for (int j = 0; j < 4; j++) v_accumulate(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES], at_max[j]);
}

/* All rows of the visit through their maximum; returns the first row with a bad dense target, or -1. */
static int64_t reduce_by_max(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct) {
    const fastce_problem *q = t->problem;
    bool dense = q->target_kind == FASTCE_DENSE;
    const rows_ahead next = {{next_rows(&q->logits, r->logits, r->logits_step, r, q->n_classes),
                              dense ? next_rows(&q->target, r->dense, r->dense_step, r, q->n_classes) : NULL}};
    int64_t bad = -1;
    for (int64_t i = 0; i < VISIT_ROWS; i++) {
        a->s.max[i] = -INFINITY;
        a->s.sound[i] = 0;
        a->rest[i] = -1;
        a->mass[i] = a->distance[i] = a->rest_lost[i] = a->mass_lost[i] = a->distance_lost[i] = 0;
    }
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, first, direct, w);
        const real *vector = t->q_vector && !dense ? (const real *)t->q_vector + first : NULL;
        if (dense) {
            int64_t bad_here = get_dense_tile(t, r, first, x.n, w);
            if (bad_here >= 0 && (bad < 0 || bad_here < bad)) bad = bad_here;
        }
        for (int64_t row = 0; row < r->count; row += GROUP)
            add_below_max(x, vector, dense ? w->q : NULL, row, a, &next);
    }
    for (int64_t i = 0; i < r->count; i++) {
        a->rest[i] += a->rest_lost[i];
        a->mass[i] += a->mass_lost[i];
        if (a->distance[i] <= DBL_MAX) a->distance[i] += a->distance_lost[i];
    }
    return bad;
}

/* Results of a row that went through its maximum. */
static void set_lane(const task *t, const rows *r, const lane_state *a, results *s, int64_t i) {
    double mass = r->label_mass[i] + r->weight[i] * t->q_vector_sum, distance = r->weight[i] * a->distance[i];
    if (r->label[i] >= 0 && r->label_mass[i] > 0)
        distance += r->label_mass[i] * (double)(a->s.max[i] - s->label_logit[i]);
    if (t->problem->target_kind == FASTCE_DENSE) {
        mass = r->weight[i] * a->mass[i];
        s->unit_mass[i] = a->mass[i];
    }
    set_result(s, i, a->s.max[i], a->rest[i]);
    s->mass[i] = mass;
    s->distance[i] = (real)distance;
    s->z[i] = (real)(r->weight[i] * t->problem->z_loss);
    if (r->weight[i] == 0) s->max[i] = s->rest[i] = s->distance[i] = 0, s->mass[i] = 0;
}

static void reduce_many(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct) {
    results *s = &a->s;
    load_label_logits(t, r, a, w, direct);
    for (int64_t first = 0; first < t->problem->n_classes; first += TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, first, direct, w);
        find_labels(t, r, x, a);
        for (int64_t row = 0; row < r->count; row += GROUP) add_shifted(x, row, a);
    }
    for (int64_t i = 0; i < r->count; i += LANES) v_store(&s->rest[i], rounded_sums(&a->rest[i], &a->rest_lost[i]));
    for (int64_t i = 0; i < r->count && !r->all_kept; i++)
        if (r->weight[i] == 0) s->label_logit[i] = s->rest[i] = 0;
}

/* All rows shifted by their label's logit, and those that cannot be so through their maximum after all. Returns whether
 * there are none of these; then the exponentials of few classes were kept, where there is a gradient. */
static bool reduce_by_label(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct, bool *finished,
                            chunk_state *state) {
    const fastce_problem *q = t->problem;
    results *s = &a->s;
    if (q->n_classes > TILE_CLASSES)
        reduce_many(t, r, a, w, direct);
    else
        *finished = reduce_few(t, r, a, w, direct, state) && t->plain;
    if (*finished) return true;
    const vec zero = v_set1(0), one = v_set1(1);
    vec refused = zero;
    for (int64_t i = 0; i < r->count; i += LANES) {
        vec x = v_load(&s->label_logit[i]), bad = is_refused(x, v_load(&s->rest[i]));
        v_store(&s->max[i], x);
        v_store(&s->sound[i], v_sub(one, bad));
        if (r->count - i < LANES) bad = v_sub(one, v_load_first(&s->sound[i], r->count - i, one));
        refused = v_max(refused, bad);
    }
    const bool all_sound = !v_any(v_gt(refused, zero));
    const double even = t->even_q, vector_sum = t->q_vector_sum, z_loss = q->z_loss;
    const int64_t count = all_sound && t->plain ? 0 : r->count;
    for (int64_t i = 0; i < count; i++) s->mass[i] = r->label_mass[i] + r->weight[i] * vector_sum;
    for (int64_t i = 0; i < count; i++) s->distance[i] = 0;
    for (int64_t i = 0; i < count && even != 0; i++)
        s->distance[i] = (real)(r->weight[i] * even * (double)a->spread[i]);
    for (int64_t i = 0; i < count; i++) s->z[i] = (real)(r->weight[i] * z_loss);
    if (all_sound) return true;

    lane_state b;
    reduce_by_max(t, r, &b, w, direct);
    for (int64_t i = 0; i < r->count; i++)
        if (s->sound[i] == 0) set_lane(t, r, &b, s, i);
    return false;
}

static void find_gradients(const task *t, const rows *r, const results *s, gradients *g) {
    g->any_lowered = false;
    for (int64_t i = 0; i < r->count; i++) {
        gradient one = gradient_of_row(t, r, s, i);
        g->factor[i] = one.factor;
        g->at_label[i] = one.at_label;
        g->lowered[i] = one.lowered;
        g->any_lowered |= one.lowered != 1;
        g->constant[i] = one.constant;
        g->q_factor[i] = one.q_factor;
        g->total[i] = one.total;
        g->share[i] = one.share;
        g->lost[i] = one.lost;
        g->pull[i] = one.pull;
    }
}

/* Gradient or probabilities of a group of rows over a block of classes. */
static INLINE void write_group(const task *t, const rows *r, block_of_lanes x, const real *q_vector, const real *q_tile,
                               const gradients *g, int64_t row, const lane_state *a, char *to, ptrdiff_t to_stride) {
    const bool logs = t->problem->output == FASTCE_LOG_SOFTMAX, has_q = q_vector || q_tile;
    const bool has_label = t->problem->target_kind == FASTCE_LABELS;
    const vec zero = v_set1(0);
    real kept[GROUP];
    bool all_kept = true;
    for (int i = 0; i < GROUP; i++) kept[i] = row + i < r->count && r->weight[row + i] != 0;
    for (int i = 0; i < GROUP; i++) all_kept &= kept[i] != 0;
    vec max[4], factor[4], constant[4], e[4];
    for (int j = 0; j < 4; j++) max[j] = v_load(&a->s.max[row + j * LANES]);
    for (int j = 0; j < 4; j++) factor[j] = v_load(&g->factor[row + j * LANES]);
    for (int j = 0; j < 4; j++) constant[j] = t->plain ? v_set1(NOTHING) : v_load(&g->constant[row + j * LANES]);
    for (int64_t k = 0; k < x.n; k++) {
        for (int j = 0; j < 4; j++)
            e[j] = v_sub(v_load((const real *)(x.p + k * x.stride + (row + j * LANES) * ELEMENT)), max[j]);
        vec gap[4];
        for (int j = 0; j < 4 && has_q; j++) /* not where the label served as maximum */
            gap[j] = v_select(v_gt(v_load(&a->s.sound[row + j * LANES]), zero), v_set1(1), e[j]);
        if (logs) {
            for (int j = 0; j < 4; j++) e[j] = v_sub(e[j], v_load(&a->s.log_total[row + j * LANES]));
        } else {
            exp_vectors(e, 4);
            for (int j = 0; j < 4 && g->any_lowered; j++) e[j] = v_mul(e[j], v_load(&g->lowered[row + j * LANES]));
            for (int j = 0; j < 4; j++) e[j] = v_fma(e[j], factor[j], constant[j]);
        }
        for (int j = 0; j < 4 && has_q; j++) {
            int64_t at = row + j * LANES;
            vec q = q_tile ? v_load(q_tile + k * VISIT_ROWS + at) : v_set1(q_vector[k]);
            vec top = v_fma(v_sub(v_load(&g->total[at]), q), v_load(&g->share[at]), v_load(&g->pull[at]));
            top = v_fma(v_load(&g->lost[at]), q, top);
            e[j] = v_select(v_eq(gap[j], zero), top, v_fma(v_load(&g->q_factor[at]), q, e[j]));
        }
        for (int j = 0; j < 4 && has_label; j++) {
            mask on_label = v_eq(v_load(&a->label[row + j * LANES]), v_set1((real)(int32_t)k));
            e[j] = v_select(on_label, v_load(&g->at_label[row + j * LANES]), e[j]);
        }
        for (int j = 0; j < 4 && !all_kept; j++) e[j] = v_select(v_gt(v_load(kept + j * LANES), zero), e[j], zero);
        for (int j = 0; j < 4; j++) v_store((real *)(to + k * to_stride + (row + j * LANES) * ELEMENT), e[j]);
    }
}

/* What the gradient of LANES rows takes beside the columns that sum_columns kept. */
typedef struct few_gradients {
    vec label, factor, lowered, constant, at_label;
    bool any_lowered, some; /* rows without a gradient among them: those without a label */
} few_gradients;

/* Gradient of class k. What stands in the label's column is the last class's: it is handed on to its own. */
static INLINE vec gradient_of_class(const few_gradients *g, const real *column, int64_t k, int64_t n, vec *last) {
    const mask taken = v_eq(g->label, class_number(k));
    vec e = *last;
    if (k + 1 < n) {
        e = v_load(&column[k * LANES]);
        if (g->any_lowered) e = v_mul(g->lowered, e);
        e = v_fma(g->factor, e, g->constant);
        *last = v_select(taken, e, *last);
    }
    e = v_select(taken, g->at_label, e);
    return g->some ? v_select(v_gt(v_set1(0), g->label), v_set1(0), e) : e;
}

/* Gradient of LANES rows to planes or rows of reals. */
static INLINE void write_few(const few_gradients *g, const real *column, int64_t n, layout layout, char *to,
                             ptrdiff_t stride, bool stream, outgoing *o) {
    vec last = v_set1(0);
    if (layout == PLANES) {
        for (int64_t k = 0; k < n; k++, to += stride) {
            vec e = gradient_of_class(g, column, k, n, &last);
            if (stream)
                v_stream((real *)to, e);
            else
                v_store((real *)to, e);
        }
        return;
    }
    if (layout == PAIRS) {
        vec pair[2];
        for (int k = 0; k < 2; k++) pair[k] = gradient_of_class(g, column, k, 2, &last);
        v_zip(pair);
        send_line(o), send_line(o);
        for (int k = 0; k < 2; k++) v_store((real *)to + k * LANES, pair[k]);
        return;
    }
    for (int64_t next = 0, first; next < n; next = first + COLUMNS) {
        first = next + COLUMNS <= n ? next : n - COLUMNS;
        vec columns[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) columns[j] = gradient_of_class(g, column, first + j, n, &last);
        v_transpose(columns);
        send_line(o);
        for (int j = 0; j < COLUMNS; j++) v_store_pieces(to + j * stride + first * ELEMENT, stride, columns[j]);
    }
}

/* Lets the rows of a visit leave past the caches from where they were gathered. */
static void let_leave(const task *t, const rows *r, lane_scratch *w, chunk_state *state) {
    outgoing *o = &w->outgoing;
    finish_sending(o, real_dtype());
    *o = as_they_are(w->leaving, r->out + r->first * r->out_step, r->count * t->problem->n_classes);
    begin_sending(o, real_dtype());
    state->filling = !state->filling;
}

/* Gradients of few classes from the exponentials that were kept. */
static void write_kept(const task *t, const rows *r, const lane_state *a, const gradients *g, lane_scratch *w,
                       chunk_state *state, bool out_direct) {
    const fastce_array *out = &t->problem->out;
    const int64_t n = t->problem->n_classes;
    const bool neighbours = !out_direct && out->class_stride == dtype_size(out->dtype) && !out->byte_swapped &&
                            dtype_is_vector(out->dtype) && (n == 2 || n >= COLUMNS) &&
                            !positions_are_packed(out, r->out_step, r);
    const bool packed = rows_are_packed(out, r->out_step, r, n), reals = out->dtype == real_dtype();
    const bool leaves = neighbours && reals && packed && t->stream;
    const bool in_place = neighbours && reals && r->consecutive && !leaves && (n != 2 || packed);
    char *to = (char *)w->flat;
    ptrdiff_t stride = n * ELEMENT;
    if (leaves) to = (char *)w->leaving;
    if (in_place) to = r->out + r->first * r->out_step, stride = r->out_step;
    if (out_direct) to = r->out + r->first * r->out_step, stride = out->class_stride;
    if (!neighbours && !out_direct) to = (char *)w->out, stride = VISIT_ROWS * ELEMENT;
    const bool stream = out_direct && t->stream && ((uintptr_t)to | (uintptr_t)stride) % sizeof(vec) == 0;
    outgoing o = w->outgoing;
    for (int64_t i = 0; i < r->count; i += LANES) {
        few_gradients f = {.label = v_load(&a->label[i]),
                           .factor = v_load(&g->factor[i]),
                           .constant = t->even_q != 0 ? v_load(&g->constant[i]) : v_set1(NOTHING),
                           .at_label = v_load(&g->at_label[i]),
                           .any_lowered = g->any_lowered,
                           .some = !r->all_kept};
        if (g->any_lowered) f.lowered = v_load(&g->lowered[i]);
        const real *column = w->kept + i * n;
        const bool partial = in_place && i + LANES > r->count;
        char *rows_to = partial ? (char *)w->flat : to + i * stride;
        ptrdiff_t rows_stride = partial ? n * ELEMENT : stride;
        if (!neighbours && stream)
            write_few(&f, column, n, PLANES, to + i * ELEMENT, stride, true, &o);
        else if (!neighbours)
            write_few(&f, column, n, PLANES, to + i * ELEMENT, stride, false, &o);
        else if (n == 2)
            write_few(&f, column, n, PAIRS, rows_to, rows_stride, false, &o);
        else
            write_few(&f, column, n, ROWS, rows_to, rows_stride, false, &o);
        for (int64_t k = i; partial && k < r->count; k++)
            memcpy(to + k * stride, rows_to + (k - i) * rows_stride, (size_t)(n * ELEMENT));
    }
    w->outgoing = o;
    if (leaves) {
        let_leave(t, r, w, state);
    } else if (!neighbours && !out_direct) {
        store_tile(t, w->out, w->flat, r, 0, n);
    } else if (neighbours && !in_place) {
        for (int64_t i = 0; i < (packed ? 1 : r->count); i++)
            narrow_as(r->out + row_of(r, i) * r->out_step, w->flat + i * n, packed ? r->count * n : n, out->dtype,
                      packed && t->stream);
    }
}

/* Of pairs, the probability of whose other class was kept. */
static void find_pair_gradients(const rows *r, const real *kept, gradients *g) {
    g->any_lowered = false;
    for (int64_t i = 0; i < r->count; i++) g->factor[i] = (real)(r->grad_scale[i] * r->label_mass[i]);
    for (int64_t i = 0; i < r->count; i += LANES)
        v_store(&g->at_label[i], v_sub(v_set1(0), v_mul(v_load(&g->factor[i]), v_load(kept + 2 * i))));
}

static void write_lanes(const task *t, const rows *r, lane_state *a, lane_scratch *w, chunk_state *state, bool direct,
                        bool out_direct, bool all_sound) {
    const fastce_problem *q = t->problem;
    const bool dense = q->target_kind == FASTCE_DENSE;
    results *s = &a->s;
    gradients g;
    const bool plain = t->plain && all_sound;
    if (q->target_kind == FASTCE_LABELS && !plain && !(all_sound && !t->needs_max)) {
        for (int64_t i = 0; i < r->count; i += LANES) {
            vec e = v_sub(v_load(&s->label_logit[i]), v_load(&s->max[i]));
            exp_vectors(&e, 1);
            v_store(&s->label_exp[i], e);
        }
    }
    if (plain && only_pairs(t))
        find_pair_gradients(r, w->kept, &g);
    else if (plain)
        find_plain_gradients(t, r, s, 0, r->count, &g);
    else if (all_sound && !t->needs_max)
        find_even_gradients(t, r, s, 0, r->count, &g);
    else
        find_gradients(t, r, s, &g);
    if (all_sound && q->n_classes <= TILE_CLASSES) {
        write_kept(t, r, a, &g, w, state, out_direct);
        return;
    }
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, first, direct, w);
        find_labels(t, r, x, a);
        const real *vector = t->q_vector && !dense ? (const real *)t->q_vector + first : NULL;
        if (dense) get_dense_tile(t, r, first, x.n, w);
        const real *q_tile = dense ? w->q : NULL;
        char *to = out_direct ? r->out + r->first * r->out_step + first * q->out.class_stride : (char *)w->out;
        const ptrdiff_t to_stride = out_direct ? q->out.class_stride : VISIT_ROWS * ELEMENT;
        for (int64_t row = 0; row < r->count; row += GROUP)
            write_group(t, r, x, vector, q_tile, &g, row, a, to, to_stride);
        if (!out_direct) store_tile(t, w->out, w->flat, r, first, x.n);
    }
}

static int64_t visit_lanes(const task *t, rows *r, chunk_state *state, char *scratch) {
    real *room = (real *)scratch;
    lane_scratch w = {room,
                      room + TILE_SIZE,
                      room + 2 * TILE_SIZE,
                      room + 3 * TILE_SIZE,
                      room + TILE_SIZE,
                      room + (4 + state->filling) * TILE_SIZE,
                      state->outgoing};
    lane_state a;
    bool neighbours = r->consecutive && r->count % GROUP == 0 && t->problem->logits.dtype == real_dtype();
    bool direct = neighbours && t->logits_direct;
    bool all_sound = false, finished = false;
    if (t->needs_max) {
        load_label_logits(t, r, &a, &w, direct);
        int64_t bad = reduce_by_max(t, r, &a, &w, direct);
        if (bad >= 0) {
            state->outgoing = w.outgoing;
            return bad;
        }
        for (int64_t i = 0; i < r->count; i++) set_lane(t, r, &a, &a.s, i);
    } else {
        all_sound = reduce_by_label(t, r, &a, &w, direct, &finished, state);
    }
    if (!finished) finish(t, r, &a.s, t->plain && all_sound, state);
    write_values(r, a.s.value);
    if (t->problem->out.data) write_lanes(t, r, &a, &w, state, direct, neighbours && t->out_direct, all_sound);
    state->outgoing = w.outgoing;
    return -1;
}
