/* Losses of rows of probabilities, or of their logarithms, which are taken as given; and divergences between two rows.
 *     loss = sum over q_k > 0 of q_k c(x_k),  c(x) = -x, -log(x), log(q / x): a q_k of 0 wins over infinity
 * Labels alone touch one class a row; a class vector or a dense target passes over the row, block by block. */

typedef struct probability_scratch {
    real x[BLOCK_CLASSES + GROUP], q[BLOCK_CLASSES + GROUP], out[BLOCK_CLASSES + GROUP];
} probability_scratch;

static size_t probabilities_scratch_bytes(const task *t) {
    (void)t;
    return sizeof(probability_scratch);
}

/* What mass on a class costs; its derivative is -1 for log-probabilities, else -1 / x, and 0 where x was clipped. */
static INLINE void costs(const fastce_problem *q, vec *x, int count) {
    const vec zero = v_set1(0);
    if (q->kind == FASTCE_PROBABILITIES) {
        if (q->clip > 0)
            for (int j = 0; j < count; j++) x[j] = clipped(x[j], v_set1((real)q->clip), v_set1((real)(1 - q->clip)));
        log_vectors(x, count);
    }
    for (int j = 0; j < count; j++) x[j] = v_sub(zero, x[j]);
}

static INLINE vec cost_slope(const fastce_problem *q, vec x) {
    const vec minus_one = v_set1(-1);
    if (q->kind != FASTCE_PROBABILITIES) return v_select(v_eq(x, x), minus_one, x);
    const vec zero = v_set1(0), size = v_max(x, v_sub(zero, x)); /* -0 is 0, and what is below is no probability */
    vec slope = v_div(minus_one, v_select(v_gt(zero, x), v_set1(NAN), size));
    if (q->clip > 0) {
        const vec kept = clipped(x, v_set1((real)q->clip), v_set1((real)(1 - q->clip)));
        slope = v_select(v_eq(kept, x), slope, v_sub(kept, kept));
    }
    return slope;
}

/* log(a / b) for a, b >= 0 without cancellation: log1p of how much the larger exceeds the smaller, in units of it. */
static INLINE vec log_ratio(vec a, vec b) {
    const vec zero = v_set1(0), larger = v_max(a, b), smaller = v_min(a, b);
    vec near = v_div(v_sub(larger, smaller), smaller);
    const mask is_far = v_gt(near, v_set1((real)LARGEST_SHIFTED_SUM));
    vec logs[2] = {larger, smaller};
    near = v_select(is_far, zero, near);
    log1p_vectors(&near, 1);
    if (v_any(is_far)) {
        log_vectors(logs, 2);
        near = v_select(is_far, v_sub(logs[0], logs[1]), near);
    }
    return v_select(v_gt(b, a), v_sub(zero, near), near);
}

/* Half of a log(2a / (a + b)) + b log(2b / (a + b)), by d = |a - b| / (a + b): two logarithms of opposite signs where
 * they cancel little, else (a + b) / 4 times d^2 (1 + d^2 P(d^2)), which is as small as the distance squared. */
static INLINE vec jensen_shannon(vec a, vec b) {
    enum { TERMS = sizeof divergence_coefficients / sizeof *divergence_coefficients };
    const vec zero = v_set1(0), half = v_set1((real)0.5), quarter = v_set1((real)0.25);
    const vec larger = v_max(a, b), smaller = v_min(a, b), sum = v_add(larger, smaller), apart = v_sub(larger, smaller);
    const vec d = v_select(v_eq(sum, zero), zero, v_div(apart, sum)), z = v_mul(d, d);
    const mask is_far = v_gt(d, v_set1((real)0.75));
    vec p = v_set1(divergence_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--) p = v_fma(p, z, v_set1(divergence_coefficients[i]));
    p = v_mul(v_mul(quarter, v_mul(apart, d)), v_fma(z, p, v_set1(1)));
    if (v_any(is_far)) {
        vec up = v_select(is_far, d, zero), share = v_div(v_add(smaller, smaller), sum), down = share;
        log1p_vectors(&up, 1);
        log_vectors(&down, 1);
        down = v_select(v_eq(share, zero), zero, v_mul(smaller, down));
        p = v_select(is_far, v_mul(half, v_fma(larger, up, down)), p);
    }
    return p;
}

static INLINE vec divergence(const fastce_problem *q, vec target, vec x) {
    const vec zero = v_set1(0);
    x = v_add(x, zero); /* -0 becomes 0 */
    const vec sound = v_select(v_eq(v_max(x, zero), x), x, v_set1(NAN));
    if (q->kind == FASTCE_KL) return weighed(target, v_add(log_ratio(target, x), v_sub(sound, sound)));
    return v_add(jensen_shannon(target, x), v_sub(sound, sound));
}

/* q_k c(x_k) of a group of elements, from i on of n. */
static INLINE void group_costs(const fastce_problem *q, const char *p, const real *masses, int64_t i, int64_t n,
                               vec *cost, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec mass[4];
    for (int j = 0; j < 4; j++) {
        const int64_t at = i + j * LANES;
        mass[j] = load_reals(masses + at, n - at, 0);
        cost[j] = load_up_to(p + at * size, n - at, 0, storage);
    }
    prefetch(p + i * size + AHEAD_BYTES, GROUP * size);
    if (q->kind == FASTCE_KL || q->kind == FASTCE_JS) {
        for (int j = 0; j < 4; j++) cost[j] = divergence(q, mass[j], cost[j]);
    } else {
        costs(q, cost, 4);
        for (int j = 0; j < 4; j++) cost[j] = weighed(mass[j], cost[j]);
    }
}

/* The sum of q_k c(x_k) over a block. */
static INLINE double block_cost(const fastce_problem *q, block b, const real *target, fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    wide sums = w_zero();
    vec sum[4];
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    for (int64_t i = 0, groups = 1; i < b.n; i += GROUP, groups++) {
        vec cost[4];
        group_costs(q, b.p, target, i, b.n, cost, storage);
        for (int j = 0; j < 4; j++) sum[j] = v_add(sum[j], cost[j]);
        if (groups % GROUPS_A_FLUSH == 0) flush(&sums, sum);
    }
    return w_total(w_add(sums, four_in_one(sum)));
}

/* The derivative over a block, scaled. */
static INLINE void block_slopes(const fastce_problem *q, block b, const real *target, real scale, real *out,
                                fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    for (int64_t i = 0; i < b.n; i += LANES) {
        int64_t n = b.n - i;
        vec x = load_up_to(b.p + i * size, n, 1, storage), mass = load_reals(target + i, n, 0);
        v_store(out + i, v_mul(v_set1(scale), weighed(mass, cost_slope(q, x))));
    }
}

/* Where an array's classes are vectors' neighbours its elements are loaded in place. */
static INLINE bool classes_are_direct(const fastce_array *a) {
    return a->class_stride == dtype_size(a->dtype) && !a->byte_swapped && dtype_is_vector(a->dtype);
}

static void write_slope_block(const task *t, char *out, int64_t first, const real *slope, int64_t n) {
    const fastce_array *a = &t->problem->out;
    char *to = out + first * a->class_stride;
    if (classes_are_direct(a))
        narrow_as(to, slope, n, a->dtype, t->stream);
    else
        scatter(to, a->class_stride, slope, n, a->dtype, a->byte_swapped);
}

/* q_k / s of a block but for the label's: NULL where all are 0, or where a dense target is not acceptable. */
static INLINE const real *masses_of_block(const task *t, const char *dense, int64_t first, int64_t n,
                                          probability_scratch *w) {
    if (t->problem->target_kind == FASTCE_DENSE) return get_dense_block(t, dense, first, n, w->q, false);
    return t->q_vector ? (const real *)t->q_vector + first : NULL;
}

/* The sum over a row but for its label, s left out; false where its dense target is not acceptable. */
static INLINE bool row_cost(const task *t, const char *row, const char *dense, probability_scratch *w, bool direct,
                            fastce_dtype storage, double *cost) {
    const fastce_problem *q = t->problem;
    double sum = 0, lost = 0;
    *cost = 0;
    if (!t->q_vector && q->target_kind != FASTCE_DENSE) return true;
    for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
        const real *masses = masses_of_block(t, dense, first, b.n, w);
        if (!masses) return false;
        add_exactly(&sum, &lost, block_cost(q, b, masses, storage));
    }
    *cost = fabs(sum) <= DBL_MAX ? sum + lost : sum;
    return true;
}

static INLINE void write_slope_row(const task *t, const rows *r, int64_t i, real at_label, probability_scratch *w,
                                   bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
    char *out = r->out + row_of(r, i) * r->out_step;
    const real scale = (real)(r->grad_scale[i] * r->weight[i]);
    const int64_t label = r->label[i];
    for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
        const real *masses = r->weight[i] == 0 ? NULL : masses_of_block(t, dense, first, b.n, w);
        if (masses)
            block_slopes(q, b, masses, scale, w->out, storage);
        else
            memset(w->out, 0, (size_t)b.n * sizeof(real));
        if ((uint64_t)(label - first) < (uint64_t)b.n) w->out[label - first] += at_label;
        write_slope_block(t, out, first, w->out, b.n);
    }
}

/* The label's part of the rows of a visit: its cost, and its slope. */
static void label_parts(const task *t, const rows *r, real *cost, real *slope) {
    const fastce_array *a = &t->problem->logits;
    for (int64_t i = 0; i < VISIT_ROWS; i++) slope[i] = 1;
    for (int64_t i = 0; i < r->count; i++)
        if (r->label[i] >= 0)
            gather(&slope[i], r->logits + row_of(r, i) * r->logits_step + r->label[i] * a->class_stride, 0, 1, a->dtype,
                   a->byte_swapped);
    for (int64_t i = 0; i < r->count; i += LANES) {
        vec x = v_load(slope + i), c = x;
        costs(t->problem, &c, 1);
        v_store(cost + i, c);
        v_store(slope + i, cost_slope(t->problem, x));
    }
}

/* --- few classes: the elements of many rows are neighbours, and vectors are filled whatever the length of a row ------- */

/* Elements of n rows from row `first` of the visit on, one after the other; in place where storage is how they lie there. */
static INLINE const char *get_few(const task *t, const rows *r, int64_t first, int64_t n, bool packed, real *room) {
    const fastce_array *a = &t->problem->logits;
    const int64_t classes = t->problem->n_classes;
    if (packed) return r->logits + (r->first + first) * r->logits_step;
    for (int64_t i = 0; i < n; i++)
        gather(room + i * classes, r->logits + row_of(r, first + i) * r->logits_step, a->class_stride, classes,
               a->dtype, a->byte_swapped);
    return (const char *)room;
}

/* q_k / s of these rows but for the labels'; NULL where a dense target of one, which goes to *bad, is not acceptable. */
static const real *get_few_masses(const task *t, const rows *r, int64_t first, int64_t n, real *room, int64_t *bad) {
    const fastce_problem *q = t->problem;
    const int64_t classes = q->n_classes;
    const bool plain = !t->q_scale && !t->q_vector && rows_are_packed(&q->target, r->dense_step, r, classes);
    if (q->target_kind != FASTCE_DENSE) {
        for (int64_t i = 0; i < n; i++) memcpy(room + i * classes, t->q_vector, (size_t)classes * sizeof(real));
        return room;
    }
    if (plain) {
        const real *masses =
            get_dense_block(t, r->dense + (r->first + first) * r->dense_step, 0, n * classes, room, false);
        if (masses) return masses;
    }
    for (int64_t i = 0; i < n; i++) {
        real *to = room + i * classes;
        const real *from = get_dense_block(t, r->dense + row_of(r, first + i) * r->dense_step, 0, classes, to, false);
        if (!from) {
            *bad = first + i;
            return NULL;
        }
        if (from != to) memcpy(to, from, (size_t)classes * sizeof(real));
    }
    return room;
}

/* q_k c(x_k) of n elements. */
static INLINE void element_costs(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *cost,
                                 fastce_dtype storage) {
    for (int64_t i = 0; i < n; i += GROUP) {
        vec each[4];
        group_costs(q, p, masses, i, n, each, storage);
        for (int j = 0; j < 4; j++) v_store(cost + i + j * LANES, each[j]);
    }
}

static double sum_of_few(const real *x, int64_t n) {
    double sum = 0, lost = 0;
    for (int64_t k = 0; k < n && sizeof(real) == sizeof(double); k++) add_exactly(&sum, &lost, (double)x[k]);
    for (int64_t k = 0; k < n && sizeof(real) != sizeof(double); k++) sum += (double)x[k];
    return fabs(sum) <= DBL_MAX ? sum + lost : sum;
}

/* The gradient of these rows, whose labels' slopes are known: w->out has what the masses make of it, or nothing. */
static void write_few_slopes(const task *t, const rows *r, int64_t first, int64_t n, const real *slope,
                             probability_scratch *w) {
    const fastce_array *a = &t->problem->out;
    const int64_t classes = t->problem->n_classes;
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = first + i, label = r->label[row];
        const real scale = (real)(r->grad_scale[row] * r->weight[row]);
        real *out = w->out + i * classes;
        for (int64_t k = 0; k < classes; k++) out[k] = r->weight[row] == 0 ? 0 : scale * out[k];
        if (label >= 0 && r->label_mass[row] != 0)
            out[label] += (real)(r->grad_scale[row] * r->label_mass[row]) * slope[row];
    }
    if (rows_are_packed(a, r->out_step, r, classes) && dtype_is_vector(a->dtype)) {
        narrow_as(r->out + (r->first + first) * r->out_step, w->out, n * classes, a->dtype, t->stream);
    } else {
        for (int64_t i = 0; i < n; i++)
            write_slope_block(t, r->out + row_of(r, first + i) * r->out_step, 0, w->out + i * classes, classes);
    }
}

/* The sums of the rows of a visit but for their labels, and their gradients; the first row that is bad, or -1. */
static INLINE int64_t visit_few(const task *t, const rows *r, const real *slope, double *sum, probability_scratch *w,
                                bool packed, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const int64_t classes = q->n_classes, most = BLOCK_CLASSES / classes;
    const bool measured = t->q_vector || q->target_kind == FASTCE_DENSE;
    int64_t bad = -1;
    if (!measured && !q->out.data) return -1;
    for (int64_t first = 0; first < r->count; first += most) {
        const int64_t n = r->count - first < most ? r->count - first : most;
        if (!measured) memset(w->out, 0, (size_t)(n * classes) * sizeof(real));
        if (measured) {
            const char *p = get_few(t, r, first, n, packed, w->x);
            const real *masses = get_few_masses(t, r, first, n, w->q, &bad);
            if (!masses) return bad;
            element_costs(q, p, masses, n * classes, w->out, storage);
            for (int64_t i = 0; i < n; i++) sum[first + i] = sum_of_few(w->out + i * classes, classes);
            if (q->out.data) block_slopes(q, (block){p, n * classes}, masses, 1, w->out, storage);
        }
        if (q->out.data) write_few_slopes(t, r, first, n, slope, w);
    }
    return -1;
}

static INLINE int64_t visit_probabilities_as(const task *t, rows *r, chunk_state *state, probability_scratch *w,
                                             bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    real cost[VISIT_ROWS], slope[VISIT_ROWS];
    double sums[VISIT_ROWS] = {0};
    const bool few = q->n_classes <= FEW_CLASSES;
    label_parts(t, r, cost, slope);
    if (few) {
        const bool packed = direct && rows_are_packed(&q->logits, r->logits_step, r, q->n_classes);
        const int64_t bad = packed ? visit_few(t, r, slope, sums, w, true, storage)
                                   : visit_few(t, r, slope, sums, w, false, real_dtype());
        if (bad >= 0) return bad;
    }
    for (int64_t i = 0; i < r->count; i++) {
        const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
        double sum = sums[i];
        if (!few && r->weight[i] != 0 && !row_cost(t, row, dense, w, direct, storage, &sum)) return i;
        const bool labelled = r->label[i] >= 0 && r->label_mass[i] != 0;
        if (!few && q->out.data) {
            real at_label = labelled ? (real)(r->grad_scale[i] * r->label_mass[i]) * slope[i] : 0;
            write_slope_row(t, r, i, at_label, w, direct, storage);
        }
        double value = r->weight[i] == 0 ? 0 : r->weight[i] * sum;
        if (labelled) value += r->label_mass[i] * (double)cost[i];
        cost[i] = (real)value;
    }
    add_values(r, cost, state);
    write_values(r, cost);
    return -1;
}

static int64_t visit_probabilities(const task *t, rows *r, chunk_state *state, char *scratch) {
    const fastce_array *a = &t->problem->logits;
    probability_scratch *w = (probability_scratch *)scratch;
    const bool direct = classes_are_direct(a);
#ifdef REAL_HAS_HALVES
    if (direct && a->dtype == FASTCE_F16) return visit_probabilities_as(t, r, state, w, true, FASTCE_F16);
    if (direct && a->dtype == FASTCE_BF16) return visit_probabilities_as(t, r, state, w, true, FASTCE_BF16);
#endif
    return visit_probabilities_as(t, r, state, w, direct, real_dtype());
}
