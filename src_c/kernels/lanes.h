/* Vectors of rows: each lane is a row, classes pass one after the other. For few classes, and where the class axis is
 * strided: positions that are neighbours in memory are loaded where they lie, others through a tile. */

enum { FLUSH_CLASSES = 8, ELEMENT = sizeof(real) };

/* Classes [first, first + n) of all rows of the visit: class first + k of row i at p + k * stride + i elements. */
typedef struct block_of_lanes {
    const char *p;
    ptrdiff_t stride;
    int64_t first, n;
} block_of_lanes;

typedef struct lane_state {
    results s;
    real label[VISIT_ROWS]; /* within the block of classes at hand, or -1 */
    double rest[VISIT_ROWS], mass[VISIT_ROWS], distance[VISIT_ROWS];
    double rest_lost[VISIT_ROWS], mass_lost[VISIT_ROWS], distance_lost[VISIT_ROWS];
} lane_state;

typedef struct lane_scratch {
    real *x, *q, *out, *flat;
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

/* All classes of a group of rows into a tile, without the label: its logit leaves, and the last class takes its place. */
static INLINE void take_label_logits(block_of_lanes x, bool direct, real *tile, int64_t row, lane_state *a,
                                     outgoing *o) {
    const char *p = x.p + row * ELEMENT;
    vec label[4], logit[4], last[4];
    for (int j = 0; j < 4; j++) label[j] = v_load(&a->label[row + j * LANES]);
    for (int j = 0; j < 4; j++)
        logit[j] = last[j] = v_load((const real *)(p + (x.n - 1) * x.stride + j * LANES * ELEMENT));
    for (int64_t k = 0; k + 1 < x.n; k++) {
        send_line(o);
        for (int j = 0; j < 4; j++) {
            const char *at = p + k * x.stride + j * LANES * ELEMENT;
            vec v = v_load((const real *)at);
            mask taken = v_eq(label[j], v_set1((real)(int32_t)k));
            if (direct) __builtin_prefetch(at + VISIT_ROWS * ELEMENT); /* the next visit's */
            logit[j] = v_select(taken, v, logit[j]);
            v_store(&tile[k * VISIT_ROWS + row + j * LANES], v_select(taken, last[j], v));
        }
    }
    for (int j = 0; j < 4; j++) v_store(&a->s.label_logit[row + j * LANES], logit[j]);
}

/* rest = sum of exp(x_k - x_label) over the first n classes of a tile, which keeps the exponentials. */
static INLINE void add_tile(real *tile, int64_t n, int64_t row, lane_state *a, const char *ahead, ptrdiff_t ahead_step,
                            outgoing *o) {
    const bool flushes = n > FLUSH_CLASSES;
    vec shift[4], sum[4], e[4];
    double sums[GROUP], lost[GROUP];
    for (int j = 0; j < 4; j++) shift[j] = v_load(&a->s.label_logit[row + j * LANES]);
    for (int j = 0; j < 4 && flushes; j++) v_clear(&sums[j * LANES], &lost[j * LANES]);
    for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    for (int64_t k = 0; k < n; k++) {
        real *at = &tile[k * VISIT_ROWS + row];
        prefetch(ahead + k * ahead_step, ahead_step);
        send_line(o);
        for (int j = 0; j < 4; j++) e[j] = v_sub(v_load(at + j * LANES), shift[j]);
        exp_vectors(e, 4);
        for (int j = 0; j < 4; j++) v_store(at + j * LANES, e[j]);
        for (int j = 0; j < 4; j++) sum[j] = v_add(sum[j], e[j]);
        if (!flushes || (k + 1) % FLUSH_CLASSES != 0) continue;
        for (int j = 0; j < 4; j++) v_accumulate(&sums[j * LANES], &lost[j * LANES], sum[j]);
        for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
    }
    for (int j = 0; j < 4 && flushes; j++) {
        v_accumulate(&sums[j * LANES], &lost[j * LANES], sum[j]);
        sum[j] = rounded_sums(&sums[j * LANES], &lost[j * LANES]);
    }
    for (int j = 0; j < 4; j++) v_store(&a->s.rest[row + j * LANES], sum[j]);
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

/* The same shifted by the running maximum, where one class at the maximum is left out; q's mass and distance on the
 * way: the class vector, or a dense tile. */
static INLINE void add_below_max(block_of_lanes x, const real *q_vector, const real *q_tile, int64_t row,
                                 lane_state *a) {
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
    int64_t bad = -1;
    for (int64_t i = 0; i < VISIT_ROWS; i++) {
        a->s.max[i] = -INFINITY;
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
        for (int64_t row = 0; row < r->count; row += GROUP) add_below_max(x, vector, dense ? w->q : NULL, row, a);
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

/* All rows shifted by their label's logit, and those that cannot be so through their maximum after all. Returns whether
 * there are none of these; then a tile that holds all classes holds their exponentials. */
static bool reduce_by_label(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct) {
    const fastce_problem *q = t->problem;
    results *s = &a->s;
    if (q->n_classes <= TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, 0, direct, w);
        find_labels(t, r, x, a);
        for (int64_t row = 0; row < r->count; row += GROUP) {
            /* The rows of later visits come while the exponentials of this one are computed. */
            ptrdiff_t size = direct || !r->consecutive ? 0 : GROUP * r->logits_step;
            const char *next =
                r->logits + (r->first + row) * r->logits_step + (2 * size < AHEAD_BYTES ? AHEAD_BYTES : 2 * size);
            take_label_logits(x, direct, w->x, row, a, &w->outgoing);
            add_tile(w->x, x.n - 1, row, a, next, size / (x.n > 1 ? x.n - 1 : 1), &w->outgoing);
        }
    } else {
        load_label_logits(t, r, a, w, direct);
        for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
            block_of_lanes x = get_lanes(t, r, first, direct, w);
            find_labels(t, r, x, a);
            for (int64_t row = 0; row < r->count; row += GROUP) add_shifted(x, row, a);
        }
        for (int64_t i = 0; i < r->count; i += LANES) v_store(&s->rest[i], rounded_sums(&a->rest[i], &a->rest_lost[i]));
    }
    for (int64_t i = 0; i < r->count && !r->all_kept; i++) /* rows visited for their neighbours' sake */
        if (r->weight[i] == 0) s->label_logit[i] = s->rest[i] = 0;
    const vec zero = v_set1(0), one = v_set1(1);
    vec refused = zero;
    for (int64_t i = 0; i < r->count; i += LANES) {
        vec x = v_load(&s->label_logit[i]), rest = v_load(&s->rest[i]);
        vec sound = v_select(v_eq(v_sub(x, x), zero), v_step(v_gt(v_set1((real)LARGEST_SHIFTED_SUM), rest)), zero);
        v_store(&s->max[i], x);
        v_store(&s->sound[i], sound);
        if (r->count - i < LANES) sound = v_load_first(&s->sound[i], r->count - i, one);
        refused = v_max(refused, v_sub(one, sound));
    }
    const bool all_sound = !v_any(v_gt(refused, zero));
    for (int64_t i = 0; i < r->count && !(all_sound && t->plain); i++) {
        s->mass[i] = r->label_mass[i];
        s->distance[i] = 0;
        s->z[i] = (real)(r->weight[i] * q->z_loss);
    }
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
    vec max[4], factor[4], e[4];
    for (int j = 0; j < 4; j++) max[j] = v_load(&a->s.max[row + j * LANES]);
    for (int j = 0; j < 4; j++) factor[j] = v_load(&g->factor[row + j * LANES]);
    for (int64_t k = 0; k < x.n; k++) {
        for (int j = 0; j < 4; j++)
            e[j] = v_sub(v_load((const real *)(x.p + k * x.stride + (row + j * LANES) * ELEMENT)), max[j]);
        vec gap[4] = {e[0], e[1], e[2], e[3]};
        if (logs) {
            for (int j = 0; j < 4; j++) e[j] = v_sub(e[j], v_load(&a->s.log_total[row + j * LANES]));
        } else {
            exp_vectors(e, 4);
            for (int j = 0; j < 4 && g->any_lowered; j++) e[j] = v_mul(e[j], v_load(&g->lowered[row + j * LANES]));
            for (int j = 0; j < 4; j++) e[j] = v_mul(e[j], factor[j]);
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

/* Gradient of a group of rows from the exponentials that add_tile left. */
static INLINE void write_kept(const rows *r, const real *tile, int64_t n, const gradients *g, int64_t row,
                              const lane_state *a, char *to, ptrdiff_t to_stride, bool stream, outgoing *o) {
    const vec zero = v_set1(0);
    vec label[4], factor[4], at_label[4], last[4];
    real kept[GROUP] = {0};
    for (int j = 0; j < 4; j++) label[j] = v_load(&a->label[row + j * LANES]);
    for (int j = 0; j < 4; j++) factor[j] = v_load(&g->factor[row + j * LANES]);
    for (int j = 0; j < 4; j++) at_label[j] = v_load(&g->at_label[row + j * LANES]);
    for (int j = 0; j < 4; j++) last[j] = zero;
    for (int i = 0; i < GROUP && !r->all_kept; i++) kept[i] = row + i < r->count && r->weight[row + i] != 0;
    for (int64_t k = 0; k < n; k++) {
        send_line(o);
        for (int j = 0; j < 4; j++) {
            mask taken = v_eq(label[j], v_set1((real)(int32_t)k));
            vec e = last[j];
            if (k + 1 < n) {
                e = v_load(&tile[k * VISIT_ROWS + row + j * LANES]);
                if (g->any_lowered) e = v_mul(v_load(&g->lowered[row + j * LANES]), e);
                e = v_mul(factor[j], e);
                last[j] = v_select(taken, e, last[j]);
            }
            e = v_select(taken, at_label[j], e);
            if (!r->all_kept) e = v_select(v_gt(v_load(&kept[j * LANES]), zero), e, zero);
            real *at = (real *)(to + k * to_stride + (row + j * LANES) * ELEMENT);
            if (stream)
                v_stream(at, e);
            else
                v_store(at, e);
        }
    }
}

/* Lets the rows of a tile leave where they can: whole rows of reals, one after the other, past the caches. */
static bool let_leave(const task *t, const rows *r, lane_scratch *w, const real *tile, chunk_state *state) {
    const fastce_array *a = &t->problem->out;
    const int64_t n = t->problem->n_classes;
    outgoing *o = &w->outgoing;
    if (!t->stream || a->dtype != real_dtype() || n > TILE_CLASSES || !rows_are_packed(a, r->out_step, r, n))
        return false;
    transpose_out((char *)w->leaving, n * ELEMENT, tile, r->count, n, o);
    finish_sending(o, real_dtype());
    *o = as_they_are(w->leaving, r->out + r->first * r->out_step, r->count * n);
    begin_sending(o, real_dtype());
    state->filling = !state->filling;
    return true;
}

static void write_lanes(const task *t, const rows *r, lane_state *a, lane_scratch *w, chunk_state *state, bool direct,
                        bool out_direct, bool all_sound) {
    const fastce_problem *q = t->problem;
    const bool dense = q->target_kind == FASTCE_DENSE;
    results *s = &a->s;
    gradients g;
    const bool plain = t->plain && all_sound;
    if (q->target_kind == FASTCE_LABELS && !plain) {
        for (int64_t i = 0; i < r->count; i += LANES) {
            vec e = v_sub(v_load(&s->label_logit[i]), v_load(&s->max[i]));
            exp_vectors(&e, 1);
            v_store(&s->label_exp[i], e);
        }
    }
    if (plain)
        find_plain_gradients(r, s, 0, r->count, &g);
    else
        find_gradients(t, r, s, &g);
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        const bool kept = all_sound && q->n_classes <= TILE_CLASSES;
        block_of_lanes x = {(const char *)w->x, VISIT_ROWS * ELEMENT, 0, q->n_classes};
        if (!kept) {
            x = get_lanes(t, r, first, direct, w);
            find_labels(t, r, x, a);
        }
        const real *vector = t->q_vector && !dense ? (const real *)t->q_vector + first : NULL;
        if (dense) get_dense_tile(t, r, first, x.n, w);
        const real *q_tile = dense ? w->q : NULL;
        real *written = kept ? w->x : w->out; /* in place it stays in L1 */
        char *to = out_direct ? r->out + r->first * r->out_step + first * q->out.class_stride : (char *)written;
        const ptrdiff_t to_stride = out_direct ? q->out.class_stride : VISIT_ROWS * ELEMENT;
        const bool stream = out_direct && t->stream && ((uintptr_t)to | (uintptr_t)to_stride) % sizeof(vec) == 0;
        for (int64_t row = 0; row < r->count; row += GROUP) {
            if (kept && stream)
                write_kept(r, w->x, x.n, &g, row, a, to, to_stride, true, &w->outgoing);
            else if (kept)
                write_kept(r, w->x, x.n, &g, row, a, to, to_stride, false, &w->outgoing);
            else
                write_group(t, r, x, vector, q_tile, &g, row, a, to, to_stride);
        }
        if (!out_direct && !let_leave(t, r, w, written, state)) store_tile(t, written, w->flat, r, first, x.n);
    }
}

static int64_t visit_lanes(const task *t, rows *r, chunk_state *state, char *scratch) {
    real *room = (real *)scratch;
    lane_scratch w = {room,
                      room + TILE_SIZE,
                      room + 2 * TILE_SIZE,
                      room + 3 * TILE_SIZE,
                      room + (4 + state->filling) * TILE_SIZE,
                      state->outgoing};
    lane_state a;
    bool neighbours = r->consecutive && r->count % GROUP == 0 && t->problem->logits.dtype == real_dtype();
    bool direct = neighbours && t->logits_direct;
    bool all_sound = false;
    if (t->needs_max) {
        load_label_logits(t, r, &a, &w, direct);
        int64_t bad = reduce_by_max(t, r, &a, &w, direct);
        if (bad >= 0) {
            state->outgoing = w.outgoing;
            return bad;
        }
        for (int64_t i = 0; i < r->count; i++) set_lane(t, r, &a, &a.s, i);
    } else {
        all_sound = reduce_by_label(t, r, &a, &w, direct);
    }
    finish(t, r, &a.s, t->plain && all_sound, state);
    write_values(r, &a.s);
    if (t->problem->out.data) write_lanes(t, r, &a, &w, state, direct, neighbours && t->out_direct, all_sound);
    state->outgoing = w.outgoing;
    return -1;
}
