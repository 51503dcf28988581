/* Rows that are not visited as they lie: with a temperature or a softcap, and with sparse targets. A few rows at a time,
 * as many as stay in cache, what the visit is to see is staged in scratch, in the type of the arithmetic: transformed
 * logits, and dense targets in place of lists. The visits are those of other rows, on a problem of what is staged.
 *     y = c tanh(x / (T c)), dy/dx = sech(x / (T c))^2 / T
 * The gradient by y is staged where it must be multiplied, or does not go where vectors could write it; else it leaves as
 * others do. Without a softcap y is (x - shift) / T, so that what an offset has in common for all classes costs no digits of
 * their differences. The shift is what the visit will subtract, which is 0 then: a label's logit where that will serve as
 * maximum, else the maximum. */

enum { STAGED_BYTES = 1 << 19, STRIDED_BYTES = 1 << 22 };

static bool row_is_strided(const fastce_array *a) { return a->class_stride != dtype_size(a->dtype); }

/* What the visit is of: the problem of a staged group. */
typedef struct staged_task {
    task task;
    fastce_problem problem;
    bool logits, out; /* what is staged of a problem that may have both */
} staged_task;

static void plan_staged(const task *t, staged_task *s) {
    const fastce_problem *q = t->problem;
    const ptrdiff_t class_stride = t->lanes ? VISIT_ROWS * (ptrdiff_t)sizeof(real) : (ptrdiff_t)sizeof(real);
    s->task = *t;
    s->problem = *q;
    s->task.problem = &s->problem;
    s->task.staged = false;
    s->logits = t->divided || t->capped || (!t->lanes && row_is_strided(&q->logits));
    const bool reals =
        s->logits || !t->logits_direct || q->logits.dtype == real_dtype(); /* what the visit computes on */
    const bool out_of_reals = q->out.dtype == real_dtype() && !q->out.byte_swapped && !row_is_strided(&q->out);
    s->out = q->out.data && (t->capped || !(t->lanes || (reals ? out_of_reals : t->out_direct)));
    const fastce_array array = {.dtype = real_dtype(), .class_stride = class_stride};
    if (s->logits) {
        void *data = q->logits.data;
        s->problem.logits = array;
        s->problem.logits.data = data;
        s->task.logits_direct = true;
    }
    if (s->out) {
        void *data = q->out.data;
        s->problem.out = array;
        s->problem.out.data = data;
        s->task.stream = false;
    }
    if (t->lanes)
        s->task.out_direct = s->out || (t->out_direct && (!s->logits || q->out.dtype == real_dtype()));
    else
        s->task.out_direct = s->out ? reals : q->out.data != NULL;
    if (q->target_kind == FASTCE_SPARSE) {
        s->problem.target_kind = FASTCE_DENSE;
        s->problem.target = array;
        s->problem.target.data = q->target.data;
    }
}

/* The parts of the scratch, for a group of so many rows: neighbouring classes of one row after the other, or for few
 * classes of VISIT_ROWS neighbouring rows one class after the other. */
typedef struct staging {
    int64_t rows;
    real *x, *q, *grad, *slope, *tile, *flat;
    int64_t *listed;
    double *mass;
    char *visit;
} staging;

static size_t take(size_t *bytes, size_t count, size_t size) {
    const size_t at = *bytes;
    *bytes += (count * size + 63) / 64 * 64;
    return at;
}

/* Returns the bytes that all parts take, that of the visit being the last. */
static size_t lay_out_staging(const task *t, const staged_task *s, char *scratch, staging *w) {
    const fastce_problem *q = t->problem;
    const bool sparse = q->target_kind == FASTCE_SPARSE, grad = s->out;
    const int64_t arrays = s->logits + sparse + grad + (grad && t->capped);
    const bool strided = row_is_strided(&q->logits) || (q->out.data && row_is_strided(&q->out));
    const int64_t row_bytes = arrays * q->n_classes * (int64_t)sizeof(real) + (sparse ? 8 * q->n_listed : 0);
    int64_t rows = row_bytes == 0 ? VISIT_ROWS : (strided ? STRIDED_BYTES : STAGED_BYTES) / row_bytes;
    rows = t->lanes || rows > VISIT_ROWS ? VISIT_ROWS : rows < 1 ? 1 : rows;
    const size_t reals = (size_t)(t->lanes ? TILE_SIZE : rows * q->n_classes) + GROUP;
    size_t bytes = 0;
    w->rows = rows;
    w->x = (real *)(scratch + take(&bytes, s->logits ? reals : 0, sizeof(real)));
    w->q = (real *)(scratch + take(&bytes, sparse ? reals : 0, sizeof(real)));
    w->grad = (real *)(scratch + take(&bytes, grad ? reals : 0, sizeof(real)));
    w->slope = (real *)(scratch + take(&bytes, grad && t->capped ? reals : 0, sizeof(real)));
    w->tile = (real *)(scratch + take(&bytes, TILE_SIZE + GROUP, sizeof(real)));
    w->flat = (real *)(scratch + take(&bytes, TILE_SIZE + GROUP, sizeof(real)));
    w->listed = (int64_t *)(scratch + take(&bytes, sparse ? (size_t)(rows * q->n_listed) : 0, sizeof(int64_t)));
    w->mass = (double *)(scratch + take(&bytes, sparse ? (size_t)q->n_listed : 0, sizeof(double)));
    w->visit = scratch + bytes;
    return bytes;
}

static size_t staged_scratch_bytes(const task *t) {
    staged_task s;
    staging w;
    plan_staged(t, &s);
    /* The parts are only measured: offsets into no memory. */
    const size_t bytes = lay_out_staging(t, &s, (char *)64, &w);
    return bytes + (t->lanes ? lanes_scratch_bytes(&s.task) : rows_scratch_bytes(&s.task));
}

/* The temperature and the softcap of a call. */
typedef struct transform {
    bool capped;
    real largest_gap; /* of a label's logit that serves as maximum */
    vec inverse, cap,
        steepest; /* 1 / T or 1 / (T c), c, and the derivative 4 e^2 / (1 + e)^2 / e without its e / (1 + e)^2 */
} transform;

/* A positive number in the type of the arithmetic, where neither it nor its inverse is 0. */
static real normal(double x) {
    const double least = SMALLEST_NORMAL;
    return (real)(x < least ? least : x > 1 / least ? 1 / least : x);
}

static transform transform_of(const task *t) {
    const fastce_problem *q = t->problem;
    const double temperature = t->divided ? q->temperature : 1, cap = t->capped ? q->softcap : 1;
    return (transform){t->capped, LARGEST_GAP * (real)temperature, v_set1(normal(1 / (temperature * cap))),
                       v_set1(normal(cap)), v_set1(normal(4 / temperature))};
}

/* c tanh(x / (T c)) of up to four vectors, and its derivative. Errors beside that of the product with the inverse: tanh is
 * within 3 ULP, its derivative within 6.
 *   |u| < 5/8: u + u^3 P(u^2); else with e = exp(-2 |u|): (1 - e) / (1 + e), where no digits are lost */
static INLINE void cap_vectors(vec *x, vec *slope, int count, const transform *f) {
    enum { TERMS = sizeof tanh_coefficients / sizeof *tanh_coefficients };
    const vec one = v_set1(1), zero = v_set1(0);
    vec u[4], size[4], e[4], z[4], p[4];
    for (int j = 0; j < count; j++) u[j] = v_mul(x[j], f->inverse);
    for (int j = 0; j < count; j++) size[j] = v_max(u[j], v_sub(zero, u[j]));
    for (int j = 0; j < count; j++) e[j] = v_mul(size[j], v_set1(-2));
    exp_vectors(e, count);
    for (int j = 0; j < count; j++) z[j] = v_mul(u[j], u[j]);
    for (int j = 0; j < count; j++) p[j] = v_set1(tanh_coefficients[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; i--)
        for (int j = 0; j < count; j++) p[j] = v_fma(p[j], z[j], v_set1(tanh_coefficients[i]));
    for (int j = 0; j < count; j++) {
        const vec share = v_div(one, v_add(one, e[j]));
        const vec far = v_mul(v_sub(one, e[j]), share), near = v_fma(v_mul(u[j], z[j]), p[j], u[j]);
        const vec signed_far = v_select(v_gt(zero, u[j]), v_sub(zero, far), far);
        x[j] = v_mul(f->cap, v_select(v_gt(v_set1((real)0.625), size[j]), near, signed_far));
        slope[j] = v_mul(v_mul(v_mul(e[j], share), share), f->steepest);
    }
}

static INLINE void transform_vectors(vec *x, vec *slope, vec shift, int count, const transform *f) {
    if (f->capped) {
        cap_vectors(x, slope, count, f);
        return;
    }
    for (int j = 0; j < count; j++) x[j] = v_mul(v_sub(x[j], shift), f->inverse);
}

/* A row of neighbouring classes, as stored, to where it is staged; which may be the same place. */
static INLINE void transform_row_as(const char *p, int64_t n, real shift, real *to, real *slope, const transform *f,
                                    fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec shifts = v_set1(shift);
    vec x[4], d[4];
    int64_t i = 0;
    for (; i + GROUP <= n; i += GROUP) {
        for (int j = 0; j < 4; j++) x[j] = load(p + (i + j * LANES) * size, storage);
        transform_vectors(x, d, shifts, 4, f);
        for (int j = 0; j < 4; j++) v_store(to + i + j * LANES, x[j]);
        for (int j = 0; j < 4 && slope; j++) v_store(slope + i + j * LANES, d[j]);
    }
    for (; i < n; i += LANES) {
        const int64_t left = n - i < LANES ? n - i : LANES;
        x[0] = left == LANES ? load(p + i * size, storage) : load_first(p + i * size, left, 0, storage);
        transform_vectors(x, d, shifts, 1, f);
        v_store_first(to + i, x[0], left);
        if (slope) v_store_first(slope + i, d[0], left);
    }
}

/* label is -1 where the visit goes through the maximum. */
static real shift_of_row(const char *p, int64_t n, int64_t label, const transform *f, fastce_dtype storage) {
    const real max = block_max((block){p, n}, storage);
    const real logit = label < 0 ? -INFINITY : load_one(p + label * storage_size(storage), storage);
    return max - logit <= f->largest_gap ? logit : max - max == 0 ? max : 0;
}

static INLINE real transform_row(const char *p, int64_t n, int64_t label, real *to, real *slope, const transform *f,
                                 fastce_dtype storage) {
    const real shift = f->capped ? 0 : shift_of_row(p, n, label, f, storage);
    if (!f->capped)
        transform_row_as(p, n, shift, to, NULL, f, storage);
    else
        transform_row_as(p, n, shift, to, slope, f, storage);
    return shift;
}

/* Functions of their own: the loops need all registers. */
#ifdef REAL_HAS_HALVES
ALONE real transform_row_f16(const char *p, int64_t n, int64_t label, real *to, real *slope, const transform *f) {
    return transform_row(p, n, label, to, slope, f, FASTCE_F16);
}
ALONE real transform_row_bf16(const char *p, int64_t n, int64_t label, real *to, real *slope, const transform *f) {
    return transform_row(p, n, label, to, slope, f, FASTCE_BF16);
}
#endif
ALONE real transform_row_real(const char *p, int64_t n, int64_t label, real *to, real *slope, const transform *f) {
    return transform_row(p, n, label, to, slope, f, real_dtype());
}

/* Columns of VISIT_ROWS rows, few classes each, in place. */
static void transform_columns(const rows *r, int64_t n_classes, bool by_label, real *x, real *slope, double *shifts,
                              const transform *f) {
    const vec zero = v_set1(0), largest_gap = v_set1(f->largest_gap);
    for (int64_t i = 0; i < r->count; i += LANES) {
        vec shift = zero;
        if (!f->capped) {
            shift = v_load(x + i);
            for (int64_t k = 1; k < n_classes; k++) shift = v_max(shift, v_load(x + k * VISIT_ROWS + i));
            real lanes[LANES];
            for (int64_t j = 0; j < LANES; j++) {
                const int64_t label = by_label && i + j < r->count ? r->label[i + j] : -1;
                lanes[j] = label < 0 ? -INFINITY : x[label * VISIT_ROWS + i + j];
            }
            const vec logit = v_load(lanes), max = v_select(v_eq(v_sub(shift, shift), zero), shift, zero);
            shift = v_select(v_gt(v_sub(shift, logit), largest_gap), max, v_select(v_eq(logit, logit), logit, max));
            shift = v_select(v_eq(v_sub(shift, shift), zero), shift, zero);
            v_store(lanes, shift);
            for (int64_t j = 0; j < LANES; j++) shifts[i + j] = (double)lanes[j];
        }
        for (int64_t first = 0; first < n_classes; first += 4) {
            const int count = (int)(n_classes - first < 4 ? n_classes - first : 4);
            vec y[4], d[4];
            for (int j = 0; j < 4; j++) y[j] = j < count ? v_load(x + (first + j) * VISIT_ROWS + i) : zero;
            transform_vectors(y, d, shift, 4, f);
            for (int j = 0; j < count; j++) v_store(x + (first + j) * VISIT_ROWS + i, y[j]);
            for (int j = 0; j < count && slope; j++) v_store(slope + (first + j) * VISIT_ROWS + i, d[j]);
        }
    }
}

/* Rows of neighbouring classes from logits that are strided: by tiles, as neighbours in memory are positions. */
static void gather_rows(const task *t, const rows *r, const staging *w) {
    const int64_t n_classes = t->problem->n_classes;
    const ptrdiff_t row = n_classes * (ptrdiff_t)sizeof(real);
    outgoing none = {0};
    for (int64_t first = 0; first < n_classes; first += TILE_CLASSES) {
        const int64_t n = n_classes - first < TILE_CLASSES ? n_classes - first : TILE_CLASSES;
        load_tile(w->tile, w->flat, &t->problem->logits, r->logits, r->logits_step, r, first, n, &none);
        transpose_out((char *)(w->x + first), row, w->tile, r->count, n, &none);
    }
}

/* Stages the logits of a group; shifts are 0 where none is taken off. */
static void stage_logits(const task *t, const rows *r, const staging *w, double *shifts) {
    const fastce_problem *q = t->problem;
    const fastce_array *a = &q->logits;
    const int64_t n = q->n_classes;
    const bool transforms = t->divided || t->capped;
    const transform f = transform_of(t);
    real *slope = t->capped && q->out.data ? w->slope : NULL;
    for (int64_t i = 0; i < r->count; i++) shifts[i] = 0;
    if (t->lanes) {
        outgoing none = {0};
        load_tile(w->x, w->flat, a, r->logits, r->logits_step, r, 0, n, &none);
        transform_columns(r, n, !t->needs_max, w->x, slope, shifts, &f);
        return;
    }
    const bool strided = row_is_strided(a), there = !strided && !a->byte_swapped && dtype_is_vector(a->dtype);
    if (strided) gather_rows(t, r, w);
    for (int64_t i = 0; i < r->count; i++) {
        real *to = w->x + i * n, *row_slope = slope ? slope + i * n : NULL;
        const char *row = r->logits + row_of(r, i) * r->logits_step;
        const int64_t label = t->needs_max ? -1 : r->label[i];
        if (r->weight[i] == 0) continue; /* passed over by the visit */
        if (!strided && !there) gather(to, row, a->class_stride, n, a->dtype, a->byte_swapped);
        if (!transforms) continue;
        if (!there) {
            shifts[i] = (double)transform_row_real((const char *)to, n, label, to, row_slope, &f);
            continue;
        }
#ifdef REAL_HAS_HALVES
        if (a->dtype == FASTCE_F16) shifts[i] = (double)transform_row_f16(row, n, label, to, row_slope, &f);
        if (a->dtype == FASTCE_BF16) shifts[i] = (double)transform_row_bf16(row, n, label, to, row_slope, &f);
#endif
        if (a->dtype == real_dtype()) shifts[i] = (double)transform_row_real(row, n, label, to, row_slope, &f);
    }
}

/* Stages the targets of a group; returns the first row whose list is not acceptable, or -1; likewise of dense targets where
 * there are rows that the visit passes over. */
static int64_t stage_targets(const task *t, const rows *r, const staging *w) {
    const fastce_problem *q = t->problem;
    if (q->target_kind == FASTCE_DENSE && !r->all_kept)
        return first_bad_dense_row(t, r->dense + r->first * r->dense_step, r->dense_step, r->count);
    if (q->target_kind != FASTCE_SPARSE) return -1;
    if (t->lanes) memset(w->q, 0, TILE_SIZE * sizeof(real));
    for (int64_t i = 0; i < r->count; i++) {
        const char *index = r->dense + row_of(r, i) * r->dense_step;
        const char *probability = r->beside + row_of(r, i) * r->beside_step;
        real *to = t->lanes ? w->q + i : w->q + i * q->n_classes;
        if (!densify(t, index, probability, w->listed + i * q->n_listed, w->mass, to, t->lanes ? VISIT_ROWS : 1))
            return i;
    }
    return -1;
}

/* Multiplies a staged gradient by the derivative of what was staged. */
static void multiply_by_slope(const task *t, const rows *r, const staging *w) {
    const int64_t n_classes = t->problem->n_classes;
    const int64_t n = t->lanes ? n_classes * VISIT_ROWS : n_classes;
    for (int64_t i = 0; i < (t->lanes ? 1 : r->count); i++) {
        real *g = w->grad + i * n, *d = w->slope + i * n;
        if (!t->lanes && r->weight[i] == 0) continue;
        for (int64_t k = 0; k < n; k += LANES) {
            const int64_t left = n - k;
            if (left >= LANES)
                v_store(g + k, v_mul(v_load(g + k), v_load(d + k)));
            else
                v_store_first(g + k, v_mul(v_load_first(g + k, left, v_set1(0)), v_load_first(d + k, left, v_set1(0))),
                              left);
        }
    }
    for (int64_t i = 0; i < r->count && t->lanes && !r->all_kept; i++)
        for (int64_t k = 0; k < n_classes && r->weight[i] == 0; k++) w->grad[k * VISIT_ROWS + i] = 0;
}

/* Sends the staged gradient of a group to where it belongs. */
static void send_gradient(const task *t, const rows *r, const staging *w) {
    const fastce_array *a = &t->problem->out;
    const int64_t n_classes = t->problem->n_classes;
    if (t->capped) multiply_by_slope(t, r, w);
    if (t->lanes) {
        store_tile(t, w->grad, w->flat, r, 0, n_classes);
        return;
    }
    if (row_is_strided(a)) {
        outgoing none = {0};
        for (int64_t first = 0; first < n_classes; first += TILE_CLASSES) {
            const int64_t n = n_classes - first < TILE_CLASSES ? n_classes - first : TILE_CLASSES;
            transpose_in(w->tile, (const char *)(w->grad + first), n_classes * (ptrdiff_t)sizeof(real), r->count, n,
                         &none);
            store_tile(t, w->tile, w->flat, r, first, n);
        }
        return;
    }
    for (int64_t i = 0; i < r->count; i++) {
        char *out = r->out + row_of(r, i) * r->out_step;
        if (!a->byte_swapped && dtype_is_vector(a->dtype))
            narrow_as(out, w->grad + i * n_classes, n_classes, a->dtype, t->stream);
        else
            scatter(out, a->class_stride, w->grad + i * n_classes, n_classes, a->dtype, a->byte_swapped);
    }
}

/* Rows [first, first + count) of a visit, all of whose arrays step evenly: the arrays that are not staged as they lie. */
static void take_group(const task *t, const rows *r, int64_t first, int64_t count, rows *group) {
    const size_t bytes = (size_t)count * sizeof(double);
    const double per_temperature = t->divided && !t->capped ? 1 / t->problem->temperature : 1;
    group->count = count;
    group->consecutive = true;
    group->all_kept = r->all_kept;
    group->uniform = r->uniform;
    group->scaled = false;
    group->first = r->first + first;
    group->first_row = r->first_row;
    group->logits = r->logits, group->logits_step = r->logits_step;
    group->dense = r->dense, group->dense_step = r->dense_step;
    group->beside = r->beside, group->beside_step = r->beside_step;
    group->out = r->out, group->out_step = r->out_step;
    group->values = r->values;
    group->offset = NULL;
    memcpy(group->label, r->label + first, bytes);
    memcpy(group->weight, r->weight + first, bytes);
    memcpy(group->label_mass, r->label_mass + first, bytes);
    for (int64_t i = 0; i < count && t->problem->out.data; i++)
        group->grad_scale[i] = r->grad_scale[first + i] * per_temperature;
}

/* Where the rows of a group have their arrays in the problem of the visit: rows are numbered there from the group's first. */
static void stage_group(const task *t, const staged_task *s, const staging *w, const rows *group, rows *staged) {
    const ptrdiff_t step = (t->lanes ? 1 : t->problem->n_classes) * (ptrdiff_t)sizeof(real);
    staged->first = 0;
    staged->logits = group->logits + group->first * group->logits_step;
    staged->dense = group->dense ? group->dense + group->first * group->dense_step : NULL;
    staged->out = group->out ? group->out + group->first * group->out_step : NULL;
    staged->values = group->values ? group->values + group->first * (ptrdiff_t)sizeof(real) : NULL;
    if (s->logits) staged->logits = (const char *)w->x, staged->logits_step = step;
    if (s->out) staged->out = (char *)w->grad, staged->out_step = step;
    if (t->problem->target_kind == FASTCE_SPARSE) staged->dense = (const char *)w->q, staged->dense_step = step;
}

static int64_t visit_staged(const task *t, rows *r, chunk_state *state, char *scratch) {
    const fastce_problem *q = t->problem;
    const bool sparse = q->target_kind == FASTCE_SPARSE;
    staged_task s;
    staging w;
    plan_staged(t, &s);
    lay_out_staging(t, &s, scratch, &w);
    if (sparse && !t->lanes) memset(w.q, 0, (size_t)(w.rows * q->n_classes) * sizeof(real));
    for (int64_t first = 0; first < r->count; first += w.rows) {
        const int64_t count = r->count - first < w.rows ? r->count - first : w.rows;
        rows group, staged;
        double shifts[VISIT_ROWS];
        take_group(t, r, first, count, &group);
        int64_t bad = stage_targets(t, &group, &w);
        if (bad < 0) {
            if (s.logits) stage_logits(t, &group, &w, shifts);
            staged = group;
            stage_group(t, &s, &w, &group, &staged);
            if (t->divided && !t->capped && q->z_loss != 0) {
                for (int64_t i = 0; i < count; i++) shifts[i] /= q->temperature;
                staged.offset = shifts;
            }
            bad =
                t->lanes ? visit_lanes(&s.task, &staged, state, w.visit) : visit_rows(&s.task, &staged, state, w.visit);
            if (bad < 0 && s.out) send_gradient(t, &group, &w);
        }
        if (bad >= 0) return first + bad;
        for (int64_t i = 0; i < count && sparse && !t->lanes; i++)
            clear_listed(q, w.listed + i * q->n_listed, w.q + i * q->n_classes);
    }
    return -1;
}
