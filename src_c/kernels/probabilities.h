/* Losses of rows of probabilities, or of their logarithms, which are taken as given; and divergences between two rows.
 *     loss = sum over q_k > 0 of q_k c(x_k),  c(x) = -x, -log(x), log(q / x): a q_k of 0 wins over infinity
 * Labels alone touch one class a row; a class vector or a dense target passes over the row, block by block. */

/* out has costs first, then the gradient; behind them what vectors of rows of few classes reach beyond the last. */
typedef struct probability_scratch {
    real x[BLOCK_CLASSES + GROUP], q[BLOCK_CLASSES + GROUP], out[BLOCK_CLASSES + GROUP + LANES * FEW_CLASSES];
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
        for (int j = 0; j < count; j++) x[j] = v_add(x[j], zero); /* -0 becomes 0 */
        log_of_many(x, count);
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
        log1p_of_many(&up, 1);
        log_of_many(&down, 1);
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

/* a log(a / b) where both are numbers >= 0 that do not lie too far apart, or a is 0; else infinite or NaN. */
static INLINE void likely_divergences(const vec *a, vec *b) {
    const vec zero = v_set1(0);
    vec ratio[4], mass[4];
    for (int j = 0; j < 4; j++) {
        b[j] = v_select(v_gt(zero, b[j]), v_set1(NAN), b[j]);
        const vec smaller = v_min(a[j], b[j]);
        ratio[j] = v_div(v_sub(v_max(a[j], b[j]), smaller), smaller);
        mass[j] = v_select(v_gt(b[j], a[j]), v_sub(zero, a[j]), a[j]);
    }
    log1p_of_many(ratio, 4);
    for (int j = 0; j < 4; j++) b[j] = weighed(mass[j], ratio[j]);
}

/* How costs are found: loops of their own, and whatever else there is. */
typedef enum cost_form { LOGARITHMS, LIKELY_DIVERGENCES, ANY_COST } cost_form;

static cost_form form_of(const fastce_problem *q) {
    if (q->kind == FASTCE_PROBABILITIES && q->clip == 0) return LOGARITHMS;
    return q->kind == FASTCE_KL ? LIKELY_DIVERGENCES : ANY_COST;
}

/* q_k c(x_k) of a group of elements. */
static INLINE void group_costs(const fastce_problem *q, const vec *mass, vec *cost, cost_form form) {
    if (form == LIKELY_DIVERGENCES) {
        likely_divergences(mass, cost);
    } else if (form == ANY_COST && (q->kind == FASTCE_KL || q->kind == FASTCE_JS)) {
        for (int j = 0; j < 4; j++) cost[j] = divergence(q, mass[j], cost[j]);
    } else {
        const fastce_problem logarithms = {.kind = FASTCE_PROBABILITIES};
        costs(form == LOGARITHMS ? &logarithms : q, cost, 4);
        for (int j = 0; j < 4; j++) cost[j] = weighed(mass[j], cost[j]);
    }
}

/* The same of n elements, in whole groups; returns whether some mass may not be acceptable, see see_elements. */
static INLINE bool find_costs_as(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *to,
                                 cost_form form, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const ivec none = i_set1(0);
    ivec seen[4] = {none, none, none, none};
    for (int64_t i = 0; i < n; i += GROUP) {
        vec mass[4], cost[4];
        prefetch(p + i * size + AHEAD_BYTES, GROUP * size);
        if ((const char *)masses != p)
            prefetch((const char *)(masses + i) + AHEAD_BYTES, GROUP * (ptrdiff_t)sizeof(real));
        if (n - i >= GROUP) {
            for (int j = 0; j < 4; j++) mass[j] = v_load(masses + i + j * LANES);
            for (int j = 0; j < 4; j++) cost[j] = load(p + (i + j * LANES) * size, storage);
        } else {
            for (int j = 0; j < 4; j++) mass[j] = load_reals(masses + i + j * LANES, n - i - j * LANES, 0);
            for (int j = 0; j < 4; j++) cost[j] = load_up_to(p + (i + j * LANES) * size, n - i - j * LANES, 1, storage);
        }
        for (int j = 0; j < 4; j++) seen[j] = i_or(seen[j], v_bits(mass[j]));
        group_costs(q, mass, cost, form);
        for (int j = 0; j < 4; j++) v_store(to + i + j * LANES, cost[j]);
    }
    return may_be_bad(seen);
}

/* Functions of their own: the loops need all registers. */
ALONE bool find_logarithms(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *to) {
    return find_costs_as(q, p, masses, n, to, LOGARITHMS, real_dtype());
}
ALONE bool find_likely_divergences(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *to) {
    return find_costs_as(q, p, masses, n, to, LIKELY_DIVERGENCES, real_dtype());
}
ALONE bool find_any_costs(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *to) {
    return find_costs_as(q, p, masses, n, to, ANY_COST, real_dtype());
}

static INLINE bool find_costs(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *to,
                              cost_form form, fastce_dtype storage) {
    if (storage != real_dtype()) return find_costs_as(q, p, masses, n, to, ANY_COST, storage);
    if (form == LOGARITHMS) return find_logarithms(q, p, masses, n, to);
    if (form == LIKELY_DIVERGENCES) return find_likely_divergences(q, p, masses, n, to);
    return find_any_costs(q, p, masses, n, to);
}

/* The sum of n costs, which is NaN or infinite where one is. */
static double sum_costs(const real *cost, int64_t n) {
    enum { GROUPS_A_FLUSH = 4 };
    wide sums = w_zero();
    vec sum[4];
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    int64_t i = 0;
    for (int groups = 1; i + GROUP <= n; i += GROUP, groups++) {
        for (int j = 0; j < 4; j++) sum[j] = v_add(sum[j], v_load(cost + i + j * LANES));
        if (groups % GROUPS_A_FLUSH == 0) flush(&sums, sum);
    }
    for (int j = 0; i < n; i += LANES, j++) sum[j] = v_add(sum[j], load_reals(cost + i, n - i, 0));
    return w_total(w_add(sums, four_in_one(sum)));
}

/* Whether masses are wrong that vectors read where they lie. */
static INLINE bool are_bad(const real *masses, int64_t n) {
    return !all_are_masses((const char *)masses, n, real_dtype());
}

/* The sum of q_k c(x_k) over a block; false where its masses are to be checked, and one is not acceptable. */
static INLINE bool block_cost(const fastce_problem *q, block b, const real *masses, bool checks, real *room,
                              fastce_dtype storage, double *sum) {
    const cost_form form = form_of(q);
    if (find_costs(q, b.p, masses, b.n, room, form, storage) && checks && are_bad(masses, b.n)) return false;
    *sum = sum_costs(room, b.n);
    if (form == LIKELY_DIVERGENCES && !(*sum - *sum == 0)) {
        find_costs(q, b.p, masses, b.n, room, ANY_COST, storage);
        *sum = sum_costs(room, b.n);
    }
    return true;
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

/* q_k / s of a block but for the label's: NULL where all are 0, or where a dense target is not acceptable, unless the
 * reader checks those that are not copied. */
static INLINE const real *masses_of_block(const task *t, const char *dense, int64_t first, int64_t n,
                                          bool reader_checks, probability_scratch *w) {
    if (t->problem->target_kind == FASTCE_DENSE) return get_dense_block(t, dense, first, n, w->q, reader_checks);
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
        const real *masses = masses_of_block(t, dense, first, b.n, true, w);
        const bool checks = q->target_kind == FASTCE_DENSE && masses != w->q;
        double part;
        if (!masses || !block_cost(q, b, masses, checks, w->out, storage, &part)) return false;
        add_exactly(&sum, &lost, part);
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
        const real *masses = r->weight[i] == 0 ? NULL : masses_of_block(t, dense, first, b.n, false, w);
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

/* --- short rows: the elements of several are neighbours, and vectors are filled whatever the length of a row ----------- */

enum { SEVERAL_CLASSES = BLOCK_CLASSES / 2 };

/* Elements of n rows from row `first` of the visit on, one after the other; in place where storage is how they lie there. */
static INLINE const char *get_several(const task *t, const rows *r, int64_t first, int64_t n, bool packed, real *room) {
    const fastce_array *a = &t->problem->logits;
    const int64_t classes = t->problem->n_classes;
    if (packed) return r->logits + (r->first + first) * r->logits_step;
    for (int64_t i = 0; i < n; i++) {
        const char *row = r->logits + row_of(r, first + i) * r->logits_step;
        if (classes_are_direct(a))
            widen_as(room + i * classes, row, classes, a->dtype);
        else
            gather(room + i * classes, row, a->class_stride, classes, a->dtype, a->byte_swapped);
    }
    return (const char *)room;
}

/* q_k / s of these rows but for the labels'; NULL where a dense target of one, which goes to *bad, is not acceptable. Who
 * reads those that are not copied checks them. */
static const real *get_several_masses(const task *t, const rows *r, int64_t first, int64_t n, real *room,
                                      int64_t *bad) {
    const fastce_problem *q = t->problem;
    const int64_t classes = q->n_classes;
    const bool plain = !t->q_scale && !t->q_vector && rows_are_packed(&q->target, r->dense_step, r, classes);
    if (q->target_kind != FASTCE_DENSE) {
        for (int64_t i = 0; i < n; i++) memcpy(room + i * classes, t->q_vector, (size_t)classes * sizeof(real));
        return room;
    }
    if (plain) {
        const real *masses =
            get_dense_block(t, r->dense + (r->first + first) * r->dense_step, 0, n * classes, room, true);
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

/* Sums of n rows of few costs, a vector of rows at a time. */
static void sum_few(const real *cost, int64_t classes, int64_t n, double *sum) {
    const ptrdiff_t step = classes * ELEMENT;
    for (int64_t i = 0; i < n; i += LANES) {
        lane_sums lanes;
        wide total = w_zero();
        for (int64_t k = 0; k < classes; k += COLUMNS) {
            const int64_t first = k + COLUMNS <= classes || classes < COLUMNS ? k : classes - COLUMNS;
            vec a[COLUMNS];
            for (int j = 0; j < COLUMNS; j++)
                a[j] = v_load_pieces((const char *)(cost + (i + j) * classes + first), step);
            v_transpose(a);
            for (int j = 0; j < COLUMNS; j++)
                if (first + j >= k && first + j < classes) total = w_add(total, a[j]);
        }
        w_store(total, lanes.sum, lanes.lost);
        for (int j = 0; j < LANES && i + j < n; j++) {
            const bool compensated = sizeof(real) == sizeof(double) && fabs(lanes.sum[j]) <= DBL_MAX;
            sum[i + j] = compensated ? lanes.sum[j] + lanes.lost[j] : lanes.sum[j];
        }
    }
}

/* The same of more classes: what is left of each few vectors of ROWS_AT_ONCE rows is added up together. */
static void sum_several(const real *cost, int64_t classes, int64_t n, double *sum) {
    const int64_t flush_reals = VECTORS_A_CHAIN * LANES, flushes = (classes + flush_reals - 1) / flush_reals;
    real pending[PENDING_REALS];
    for (int64_t i = 0; i < n; i += ROWS_AT_ONCE) {
        double totals[ROWS_AT_ONCE];
        for (int64_t f = 0; f < flushes; f++) {
            for (int j = 0; j < ROWS_AT_ONCE; j++) {
                const int64_t row = i + j < n ? i + j : n - 1, first = f * flush_reals, left = classes - first;
                const real *p = cost + row * classes + first;
                vec a[VECTORS_A_CHAIN];
                for (int k = 0; k < VECTORS_A_CHAIN; k++) a[k] = load_reals(p + k * LANES, left - k * LANES, 0);
                v_store(pending + (f * ROWS_AT_ONCE + j) * LANES, four_in_one(a));
            }
        }
        total_short(pending, flushes, totals);
        for (int j = 0; j < ROWS_AT_ONCE && i + j < n; j++) sum[i + j] = totals[j];
    }
}
_Static_assert(SEVERAL_CLASSES *ROWS_AT_ONCE / VECTORS_A_CHAIN <= PENDING_REALS && VECTORS_A_CHAIN == 4,
               "what is pending of rows fits");

static INLINE void sum_rows(const real *cost, int64_t classes, int64_t n, double *sum) {
    if (classes <= FEW_CLASSES)
        sum_few(cost, classes, n, sum);
    else
        sum_several(cost, classes, n, sum);
}

/* The sums of n rows but for their labels; of one whose sum is not finite what is special is looked at. */
static INLINE void sum_several_costs(const fastce_problem *q, const char *p, const real *masses, int64_t n, real *cost,
                                     cost_form form, fastce_dtype storage, double *sum) {
    const int64_t classes = q->n_classes;
    sum_rows(cost, classes, n, sum);
    for (int64_t i = 0; i < n && form == LIKELY_DIVERGENCES; i++) {
        if (sum[i] - sum[i] == 0) continue;
        find_costs(q, p + i * classes * storage_size(storage), masses + i * classes, classes, cost, ANY_COST, storage);
        sum_rows(cost, classes, 1, &sum[i]);
    }
}

/* The gradient of these rows, whose labels' slopes are known: w->out has what the masses make of it, or nothing. */
static void write_several_slopes(const task *t, const rows *r, int64_t first, int64_t n, const real *slope,
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
static INLINE int64_t visit_several(const task *t, const rows *r, const real *slope, double *sum,
                                    probability_scratch *w, bool packed, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const int64_t classes = q->n_classes, most = BLOCK_CLASSES / classes;
    const bool measured = t->q_vector || q->target_kind == FASTCE_DENSE;
    const cost_form form = form_of(q);
    int64_t bad = -1;
    if (!measured && !q->out.data) return -1;
    for (int64_t first = 0; first < r->count; first += most) {
        const int64_t n = r->count - first < most ? r->count - first : most;
        if (!measured) memset(w->out, 0, (size_t)(n * classes) * sizeof(real));
        if (measured) {
            const char *p = get_several(t, r, first, n, packed, w->x);
            const real *masses = get_several_masses(t, r, first, n, w->q, &bad);
            if (!masses) return bad;
            if (find_costs(q, p, masses, n * classes, w->out, form, storage) && masses != w->q)
                for (int64_t i = 0; i < n; i++)
                    if (are_bad(masses + i * classes, classes)) return first + i;
            sum_several_costs(q, p, masses, n, w->out, form, storage, sum + first);
            if (q->out.data) block_slopes(q, (block){p, n * classes}, masses, 1, w->out, storage);
        }
        if (q->out.data) write_several_slopes(t, r, first, n, slope, w);
    }
    return -1;
}

static INLINE int64_t visit_probabilities_as(const task *t, rows *r, chunk_state *state, probability_scratch *w,
                                             bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    real cost[VISIT_ROWS], slope[VISIT_ROWS];
    double sums[VISIT_ROWS] = {0};
    const bool several = q->n_classes <= SEVERAL_CLASSES, labels = q->target_kind == FASTCE_LABELS;
    if (labels) label_parts(t, r, cost, slope);
    if (several) {
        const bool packed = direct && rows_are_packed(&q->logits, r->logits_step, r, q->n_classes);
        const int64_t bad = packed ? visit_several(t, r, slope, sums, w, true, storage)
                                   : visit_several(t, r, slope, sums, w, false, real_dtype());
        if (bad >= 0) return bad;
    }
    if (several && !labels) {
        for (int64_t i = 0; i < r->count; i++) cost[i] = (real)(r->weight[i] == 0 ? 0 : r->weight[i] * sums[i]);
    }
    for (int64_t i = 0; i < r->count && !(several && !labels); i++) {
        const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
        double sum = sums[i];
        if (!several && r->weight[i] != 0 && !row_cost(t, row, dense, w, direct, storage, &sum)) return i;
        const bool labelled = r->label[i] >= 0 && r->label_mass[i] != 0;
        if (!several && q->out.data) {
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
