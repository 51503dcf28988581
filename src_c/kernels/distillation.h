/* Cross entropy against a teacher's softmax, both rows read once and both of temperature T. With m, r of the logits x and
 * n of the teacher's t, all differences divided by T, and e_k = exp((t_k - n) / T), M their sum,
 *     loss = T^2 (log1p(r) + sum over e_k > 0 of e_k (m - x_k) / T / M)
 *     gradient = T (exp((x_k - m) / T) / (1 + r) - e_k / M)
 * The sums move when a maximum does, block by block. */

typedef struct teacher_state {
    real max, teacher_max;
    double rest, mass, distance; /* r, M, and the sum of e_k (m - x_k) / T */
    double rest_lost, mass_lost, distance_lost;
} teacher_state;

typedef struct teacher_scratch {
    real x[BLOCK_CLASSES + GROUP], teacher[BLOCK_CLASSES + GROUP], out[BLOCK_CLASSES + GROUP];
} teacher_scratch;

static size_t teacher_scratch_bytes(const task *t) {
    (void)t;
    return sizeof(teacher_scratch);
}

/* A teacher's block; in the type of the arithmetic, in place where it lies so. */
static const real *get_teacher(const fastce_array *a, const char *row, int64_t first, int64_t n, teacher_scratch *w) {
    const char *p = row + first * a->class_stride;
    if (classes_are_direct(a) && a->dtype == real_dtype() && (uintptr_t)p % sizeof(real) == 0) return (const real *)p;
    if (classes_are_direct(a))
        widen_as(w->teacher, p, n, a->dtype);
    else
        gather(w->teacher, p, a->class_stride, n, a->dtype, a->byte_swapped);
    return w->teacher;
}

static INLINE real finite_shift(real max) { return max == -INFINITY ? 0 : max; }

static INLINE void raise_maxima(teacher_state *s, real max, real teacher_max, real per_t) {
    if (max > s->max) {
        const double rise = (double)((max - s->max) * per_t);
        /* Nothing is left of nothing: the first block. */
        const double scale = s->rest == -1 ? 0 : (double)exp_one((s->max - max) * per_t);
        s->rest = (1 + s->rest + s->rest_lost) * scale;
        s->rest_lost = 0;
        if (s->mass > 0) add_exactly(&s->distance, &s->distance_lost, rise * (s->mass + s->mass_lost));
        s->max = max;
    }
    if (teacher_max > s->teacher_max) {
        const double scale = s->teacher_max == -INFINITY ? 0 : (double)exp_one((s->teacher_max - teacher_max) * per_t);
        s->mass *= scale, s->mass_lost *= scale;
        /* What the new maximum leaves nothing of is no longer infinite either. */
        if (scale > 0)
            s->distance *= scale, s->distance_lost *= scale;
        else
            s->distance = s->distance_lost = 0;
        s->teacher_max = teacher_max;
    }
}

static INLINE void add_teacher_block(block b, const real *teacher, int64_t excluded, real per_t, int64_t n_classes,
                                     teacher_state *s, fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    const vec zero = v_set1(0), factor = v_set1(per_t);
    const vec shift = v_set1(finite_shift(s->max)), teacher_shift = v_set1(finite_shift(s->teacher_max));
    wide rests = w_zero(), masses = w_zero(), distances = w_zero();
    vec rest[4], mass[4], distance[4], x[4], e[4], highest[4];
    for (int j = 0; j < 4; j++) rest[j] = mass[j] = distance[j] = zero;
    for (int64_t i = 0, groups = 1; i < b.n; i += GROUP, groups++) {
        const real *limit = limits_at(i, excluded);
        prefetch(b.p + i * size + block_ahead(n_classes, storage), GROUP * size);
        prefetch((const char *)(teacher + i) + block_ahead(n_classes, real_dtype()), GROUP * (ptrdiff_t)sizeof(real));
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            x[j] = v_mul(v_sub(load_up_to(b.p + at * size, n, -INFINITY, storage), shift), factor);
            e[j] = v_mul(v_sub(load_reals(teacher + at, n, -INFINITY), teacher_shift), factor);
            highest[j] = v_load(limit + j * LANES);
        }
        exp_vectors(e, 4);
        for (int j = 0; j < 4; j++) mass[j] = v_add(mass[j], e[j]);
        for (int j = 0; j < 4; j++) distance[j] = v_sub(distance[j], weighed(e[j], x[j]));
        exp_limited(x, highest, 4);
        for (int j = 0; j < 4; j++) rest[j] = v_add(rest[j], x[j]);
        if (groups % GROUPS_A_FLUSH == 0) flush(&rests, rest), flush(&masses, mass), flush(&distances, distance);
    }
    flush(&rests, rest), flush(&masses, mass), flush(&distances, distance);
    add_exactly(&s->rest, &s->rest_lost, w_total(rests));
    add_exactly(&s->mass, &s->mass_lost, w_total(masses));
    add_exactly(&s->distance, &s->distance_lost, w_total(distances));
}

static INLINE void write_teacher_row(const task *t, const rows *r, int64_t i, const teacher_state *s, real per_t,
                                     teacher_scratch *w, bool direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const ptrdiff_t size = storage_size(storage);
    const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
    const double scale = r->grad_scale[i] * r->weight[i] * q->temperature;
    const vec share = v_set1((real)(scale / (1 + s->rest))), pull = v_set1((real)(-scale / s->mass));
    const vec factor = v_set1(per_t), shift = v_set1(finite_shift(s->max));
    const vec teacher_shift = v_set1(finite_shift(s->teacher_max));
    for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
        block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
        const real *teacher = get_teacher(&q->target, dense, first, b.n, w);
        if (r->weight[i] == 0) {
            memset(w->out, 0, (size_t)b.n * sizeof(real));
        } else {
            for (int64_t k = 0; k < b.n; k += LANES) {
                int64_t n = b.n - k;
                vec x[2] = {load_up_to(b.p + k * size, n, -INFINITY, storage), load_reals(teacher + k, n, -INFINITY)};
                x[0] = v_mul(v_sub(x[0], shift), factor);
                x[1] = v_mul(v_sub(x[1], teacher_shift), factor);
                exp_vectors(x, 2);
                v_store(w->out + k, v_fma(pull, x[1], v_mul(share, x[0])));
            }
        }
        write_slope_block(t, r->out + row_of(r, i) * r->out_step, first, w->out, b.n);
    }
}

static INLINE void visit_distillation_as(const task *t, rows *r, chunk_state *state, teacher_scratch *w, bool direct,
                                         fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const real per_t = (real)(1 / q->temperature);
    const double square = q->temperature * q->temperature;
    real value[VISIT_ROWS];
    for (int64_t i = 0; i < r->count; i++) {
        const char *row = r->logits + row_of(r, i) * r->logits_step, *dense = r->dense + row_of(r, i) * r->dense_step;
        teacher_state s = {.max = -INFINITY, .teacher_max = -INFINITY, .rest = -1};
        for (int64_t first = 0; first < q->n_classes && r->weight[i] != 0; first += BLOCK_CLASSES) {
            block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
            const real *teacher = get_teacher(&q->target, dense, first, b.n, w);
            const real max = block_max(b, storage), before = s.max;
            raise_maxima(&s, max, block_max((block){(const char *)teacher, b.n}, real_dtype()), per_t);
            add_teacher_block(b, teacher, s.max > before ? block_find(b, max, storage) : -1, per_t, q->n_classes, &s,
                              storage);
        }
        s.rest += s.rest_lost + (double)(s.max - s.max); /* a row without a finite maximum is NaN */
        s.mass += s.mass_lost + (double)(s.teacher_max - s.teacher_max);
        if (s.distance - s.distance == 0) s.distance += s.distance_lost;
        const double loss = square * ((double)log1p_one((real)s.rest) + s.distance / s.mass);
        value[i] = r->weight[i] == 0 ? 0 : (real)(r->weight[i] * loss);
        if (q->out.data) write_teacher_row(t, r, i, &s, per_t, w, direct, storage);
    }
    add_values(r, value, state);
    write_values(r, value);
}

static int64_t visit_distillation(const task *t, rows *r, chunk_state *state, char *scratch) {
    const fastce_array *a = &t->problem->logits;
    teacher_scratch *w = (teacher_scratch *)scratch;
    const bool direct = classes_are_direct(a);
#ifdef REAL_HAS_HALVES
    if (direct && a->dtype == FASTCE_F16)
        visit_distillation_as(t, r, state, w, true, FASTCE_F16);
    else if (direct && a->dtype == FASTCE_BF16)
        visit_distillation_as(t, r, state, w, true, FASTCE_BF16);
    else
#endif
        visit_distillation_as(t, r, state, w, direct, real_dtype());
    return -1;
}
