/* Vectors of rows: each lane is a row, classes pass one after the other. For few classes, and where the class axis is
 * strided: neighbouring positions are loaded where they lie if they are neighbours in memory, else a tile is gathered. */

enum {
    TILE_CLASSES = FEW_CLASSES, /* of one block of classes */
    FLUSH_CLASSES = 8,
    TILE_SIZE = TILE_CLASSES * VISIT_ROWS,
};

/* A block of classes of all rows of the visit: class k of row i at p + k * stride + i * (size of storage). */
typedef struct tile {
    const char *p;
    ptrdiff_t stride;
} tile;

typedef struct lane_state {
    results s;
    real label_logit[VISIT_ROWS];
    double rest[VISIT_ROWS], mass[VISIT_ROWS], distance[VISIT_ROWS];
    double rest_lost[VISIT_ROWS], mass_lost[VISIT_ROWS], distance_lost[VISIT_ROWS];
} lane_state;

static void gather_tile(real *to, const fastce_array *a, const char *base, ptrdiff_t step, const rows *r, int64_t first,
                        int64_t n) {
    for (int64_t i = 0; i < r->count; i++) {
        const char *p = base + r->index[i] * step + first * a->class_stride;
        if (a->dtype == real_dtype() && !a->byte_swapped) {
            for (int64_t k = 0; k < n; k++) memcpy(&to[k * VISIT_ROWS + i], p + k * a->class_stride, sizeof(real));
        } else {
            for (int64_t k = 0; k < n; k++)
                to[k * VISIT_ROWS + i] = (real)load_number(p + k * a->class_stride, a->dtype, a->byte_swapped);
        }
    }
    for (int64_t i = r->count; i < VISIT_ROWS && i % GROUP != 0; i++)
        for (int64_t k = 0; k < n; k++) to[k * VISIT_ROWS + i] = 0;
}

static INLINE tile get_tile(const task *t, const rows *r, int64_t first, int64_t n, bool direct, real *copy) {
    const fastce_array *a = &t->problem->logits;
    if (direct) return (tile){r->logits + r->index[0] * r->logits_step + first * a->class_stride, a->class_stride};
    gather_tile(copy, a, r->logits, r->logits_step, r, first, n);
    return (tile){(const char *)copy, VISIT_ROWS * sizeof(real)};
}

/* q_k / s of a block of dense targets; returns -1, or the first row with a target that is not valid. */
static int64_t get_dense_tile(const task *t, const rows *r, int64_t first, int64_t n, real *q) {
    gather_tile(q, &t->problem->target, r->dense, r->dense_step, r, first, n);
    const real *scales = t->q_scale, *vector = t->q_vector, uniform = (real)t->problem->target_scale;
    int64_t bad = r->count;
    for (int64_t k = 0; k < n; k++) {
        real scale = scales ? scales[first + k] : uniform, add = vector ? vector[first + k] : 0;
        for (int64_t i = 0; i < r->count; i++) {
            real x = q[k * VISIT_ROWS + i];
            if (!(x >= 0 && x - x == 0) && i < bad) bad = i;
            q[k * VISIT_ROWS + i] = scale * x + add;
        }
    }
    return bad < r->count ? bad : -1;
}

static INLINE vec v_step(mask m) { return v_select(m, v_set1(1), v_set1(0)); }

/* Positions of the labels within a block of classes; -1 where they are elsewhere. */
static INLINE void labels_in_block(const rows *r, int64_t row, int64_t first, int64_t n, vec *position) {
    real lanes[GROUP];
    for (int i = 0; i < GROUP; i++) {
        int64_t k = row + i < r->count ? r->label[row + i] - first : -1;
        lanes[i] = k >= 0 && k < n ? (real)k : -1;
    }
    for (int j = 0; j < 4; j++) position[j] = v_load(lanes + j * LANES);
}

/* rest += exp(x_k - x_label) over a block's classes but the label, for the group of rows at row. */
static INLINE void add_shifted(const rows *r, tile x, int64_t row, int64_t first, int64_t n, lane_state *a,
                               fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec label[4], shift[4];
    labels_in_block(r, row, first, n, label);
    for (int j = 0; j < 4; j++) shift[j] = v_load(&a->label_logit[row + j * LANES]);
    const char *p = x.p + row * size;
    for (int64_t k0 = 0; k0 < n; k0 += FLUSH_CLASSES) {
        vec sum[4], e[4];
        int64_t end = n - k0 < FLUSH_CLASSES ? n : k0 + FLUSH_CLASSES;
        for (int j = 0; j < 4; j++) sum[j] = v_set1(0);
        for (int64_t k = k0; k < end; k++) {
            for (int j = 0; j < 4; j++) e[j] = v_sub(load(p + k * x.stride + j * LANES * size, storage), shift[j]);
            exp_vectors(e, 4);
            for (int j = 0; j < 4; j++)
                sum[j] = v_add(sum[j], v_select(v_eq(label[j], v_set1((real)k)), v_set1(0), e[j]));
        }
        for (int j = 0; j < 4; j++) v_accumulate(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES], sum[j]);
    }
}

/* The same shifted by the running maximum, where one class at the maximum is left out; q's mass and distance on the
 * way: class vector in q_vector, or a dense tile in q_tile. */
static INLINE void add_below_max(tile x, const real *q_vector, const real *q_tile, int64_t row, int64_t n, lane_state *a,
                                 fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const char *p = x.p + row * size;
    const vec zero = v_set1(0), lowest = v_set1(-INFINITY);
    vec max[4], shift[4], at_max[4];
    for (int j = 0; j < 4; j++) max[j] = v_load(&a->s.max[row + j * LANES]);
    for (int64_t k = 0; k < n; k++)
        for (int j = 0; j < 4; j++) max[j] = v_max(max[j], load(p + k * x.stride + j * LANES * size, storage));
    for (int j = 0; j < 4; j++) {
        real *state = &a->s.max[row + j * LANES];
        vec old = v_load(state), drop = v_sub(old, max[j]);
        mask rises = v_gt(max[j], old);
        real kept[LANES], rise[LANES], raised[LANES];
        vec e = drop;
        exp_vectors(&e, 1);
        v_store(kept, e);
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
    for (int64_t k0 = 0; k0 < n; k0 += FLUSH_CLASSES) {
        vec below[4], mass[4], distance[4], logit[4], e[4];
        int64_t end = n - k0 < FLUSH_CLASSES ? n : k0 + FLUSH_CLASSES;
        for (int j = 0; j < 4; j++) below[j] = mass[j] = distance[j] = zero;
        for (int64_t k = k0; k < end; k++) {
            for (int j = 0; j < 4; j++) logit[j] = load(p + k * x.stride + j * LANES * size, storage);
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
            v_accumulate(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES], below[j]);
            v_accumulate(&a->mass[row + j * LANES], &a->mass_lost[row + j * LANES], mass[j]);
            v_accumulate(&a->distance[row + j * LANES], &a->distance_lost[row + j * LANES], distance[j]);
        }
    }
    for (int j = 0; j < 4; j++) v_accumulate(&a->rest[row + j * LANES], &a->rest_lost[row + j * LANES], at_max[j]);
}

typedef struct lane_scratch {
    real *x, *q, *out;
} lane_scratch;

static size_t lanes_scratch_bytes(const task *t) {
    (void)t;
    return 3 * TILE_SIZE * sizeof(real);
}

static void load_label_logits(const task *t, const rows *r, lane_state *a) {
    const fastce_array *x = &t->problem->logits;
    for (int64_t i = 0; i < VISIT_ROWS; i++) a->label_logit[i] = 0;
    for (int64_t i = 0; i < r->count; i++)
        if (r->label[i] >= 0)
            gather(&a->label_logit[i], r->logits + r->index[i] * r->logits_step + r->label[i] * x->class_stride, 0, 1,
                   x->dtype, x->byte_swapped);
}

/* Rows of the visit through their maximum; returns the first row with a bad dense target, or -1. */
static INLINE int64_t reduce_by_max(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct,
                                    fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    bool dense = q->target_kind == FASTCE_DENSE;
    int64_t bad = -1;
    for (int64_t i = 0; i < VISIT_ROWS; i++) {
        a->s.max[i] = -INFINITY;
        a->rest[i] = -1;
        a->mass[i] = a->distance[i] = a->rest_lost[i] = a->mass_lost[i] = a->distance_lost[i] = 0;
    }
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        int64_t n = q->n_classes - first < TILE_CLASSES ? q->n_classes - first : TILE_CLASSES;
        tile x = get_tile(t, r, first, n, direct, w->x);
        const real *vector = t->q_vector && !dense ? (const real *)t->q_vector + first : NULL;
        if (dense) {
            int64_t bad_here = get_dense_tile(t, r, first, n, w->q);
            if (bad_here >= 0 && (bad < 0 || bad_here < bad)) bad = bad_here;
        }
        for (int64_t row = 0; row < r->count; row += GROUP)
            add_below_max(x, vector, dense ? w->q : NULL, row, n, a, storage);
    }
    for (int64_t i = 0; i < r->count; i++) {
        a->rest[i] += a->rest_lost[i];
        a->mass[i] += a->mass_lost[i];
        if (a->distance[i] <= DBL_MAX) a->distance[i] += a->distance_lost[i];
    }
    return bad;
}

static void set_lane(const task *t, const rows *r, lane_state *a, int64_t i, bool by_max) {
    results *s = &a->s;
    double mass = r->label_mass[i] + r->weight[i] * t->q_vector_sum, distance = 0;
    s->unit_mass[i] = r->label_mass[i] / r->weight[i] + t->q_vector_sum;
    if (by_max) {
        distance = r->weight[i] * a->distance[i];
        if (r->label[i] >= 0 && r->label_mass[i] > 0)
            distance += r->label_mass[i] * (double)(s->max[i] - a->label_logit[i]);
        if (t->problem->target_kind == FASTCE_DENSE) {
            mass = r->weight[i] * a->mass[i];
            s->unit_mass[i] = a->mass[i];
        }
    }
    set_result(s, i, s->max[i], a->rest[i]);
    s->mass[i] = mass;
    s->distance[i] = (real)distance;
    s->z[i] = (real)(r->weight[i] * t->problem->z_loss);
    if (r->weight[i] == 0) s->max[i] = s->rest[i] = s->distance[i] = 0, s->mass[i] = 0;
}

static INLINE int64_t reduce_lanes(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct,
                                   fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    int64_t bad = -1;
    load_label_logits(t, r, a);
    if (t->needs_max) {
        bad = reduce_by_max(t, r, a, w, direct, storage);
        for (int64_t i = 0; i < r->count; i++) set_lane(t, r, a, i, true);
        return bad;
    }
    for (int64_t i = 0; i < VISIT_ROWS; i++) a->rest[i] = a->rest_lost[i] = 0;
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        int64_t n = q->n_classes - first < TILE_CLASSES ? q->n_classes - first : TILE_CLASSES;
        tile x = get_tile(t, r, first, n, direct, w->x);
        for (int64_t row = 0; row < r->count; row += GROUP) add_shifted(r, x, row, first, n, a, storage);
    }
    bool again = false;
    for (int64_t i = 0; i < r->count; i++) {
        real x = a->label_logit[i];
        a->rest[i] += a->rest_lost[i];
        bool shifted = r->label[i] < 0 || (x - x == 0 && a->rest[i] <= LARGEST_SHIFTED_SUM);
        a->s.max[i] = x;
        if (!shifted) a->rest[i] = -1;
        again |= !shifted;
        if (shifted) set_lane(t, r, a, i, false);
    }
    if (again) {
        lane_state b;
        memcpy(b.label_logit, a->label_logit, sizeof b.label_logit);
        reduce_by_max(t, r, &b, w, direct, storage);
        for (int64_t i = 0; i < r->count; i++) {
            if (a->rest[i] >= 0) continue;
            a->s.max[i] = b.s.max[i];
            a->rest[i] = b.rest[i];
            a->distance[i] = 0;
            set_lane(t, r, a, i, true);
        }
    }
    return bad;
}

/* Gradient or probabilities of a group of rows over a block of classes. */
static INLINE void write_group(const task *t, const rows *r, tile x, const real *q_vector, const real *q_tile,
                               const gradient *g, int64_t row, int64_t first, int64_t n, const lane_state *a, char *to,
                               ptrdiff_t to_stride, fastce_dtype storage, fastce_dtype to_storage, bool stream) {
    const ptrdiff_t size = storage_size(storage), to_size = storage_size(to_storage);
    const bool logs = t->problem->output == FASTCE_LOG_SOFTMAX, has_q = q_vector || q_tile;
    enum { FACTOR, Q_FACTOR, TOTAL, SHARE, LOST, PULL, AT_LABEL, WANTED, FIELDS };
    real lanes[FIELDS][GROUP];
    for (int i = 0; i < GROUP; i++) {
        const gradient *of = &g[row + i];
        real field[FIELDS] = {of->factor, of->q_factor, of->total, of->share, of->lost, of->pull, of->at_label,
                              row + i < r->count && r->weight[row + i] != 0};
        for (int f = 0; f < FIELDS; f++) lanes[f][i] = field[f];
    }
    const vec zero = v_set1(0);
    vec label[4], max[4], e[4];
    labels_in_block(r, row, first, n, label);
    for (int j = 0; j < 4; j++) max[j] = v_load(&a->s.max[row + j * LANES]);
    for (int64_t k = 0; k < n; k++) {
        for (int j = 0; j < 4; j++)
            e[j] = v_sub(load(x.p + k * x.stride + (row + j * LANES) * size, storage), max[j]);
        vec gap[4] = {e[0], e[1], e[2], e[3]};
        if (logs) {
            for (int j = 0; j < 4; j++) e[j] = v_sub(e[j], v_load(&a->s.log_total[row + j * LANES]));
        } else {
            exp_vectors(e, 4);
            for (int j = 0; j < 4; j++) e[j] = v_mul(e[j], v_load(lanes[FACTOR] + j * LANES));
        }
        for (int j = 0; j < 4 && has_q; j++) {
            vec q = q_tile ? v_load(q_tile + k * VISIT_ROWS + row + j * LANES) : v_set1(q_vector[k]);
            vec top = v_fma(v_sub(v_load(lanes[TOTAL] + j * LANES), q), v_load(lanes[SHARE] + j * LANES),
                            v_load(lanes[PULL] + j * LANES));
            top = v_fma(v_load(lanes[LOST] + j * LANES), q, top);
            e[j] = v_fma(v_load(lanes[Q_FACTOR] + j * LANES), q, e[j]);
            e[j] = v_select(v_eq(gap[j], zero), top, e[j]);
        }
        for (int j = 0; j < 4; j++) {
            e[j] = v_select(v_eq(label[j], v_set1((real)k)), v_load(lanes[AT_LABEL] + j * LANES), e[j]);
            e[j] = v_select(v_gt(v_load(lanes[WANTED] + j * LANES), zero), e[j], zero);
            store(to + k * to_stride + (row + j * LANES) * to_size, e[j], to_storage, stream);
        }
    }
}

static INLINE void write_lanes(const task *t, const rows *r, lane_state *a, lane_scratch *w, bool direct,
                               bool out_direct, fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    bool dense = q->target_kind == FASTCE_DENSE;
    gradient g[VISIT_ROWS];
    memset(g, 0, sizeof g);
    if (q->output != FASTCE_LOG_SOFTMAX)
        for (int64_t i = 0; i < r->count; i++) {
            real label_exp = r->label[i] >= 0 ? exp_one(a->label_logit[i] - a->s.max[i]) : 0;
            if (r->weight[i] != 0) g[i] = gradient_of_row(t, r, &a->s, i, a->label_logit[i], label_exp);
        }
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        int64_t n = q->n_classes - first < TILE_CLASSES ? q->n_classes - first : TILE_CLASSES;
        tile x = get_tile(t, r, first, n, direct, w->x);
        const real *vector = t->q_vector && !dense ? (const real *)t->q_vector + first : NULL;
        if (dense) get_dense_tile(t, r, first, n, w->q);
        const real *q_tile = dense ? w->q : NULL;
        for (int64_t row = 0; row < r->count; row += GROUP) {
            if (out_direct) {
                char *to = r->out + r->index[0] * r->out_step + first * q->out.class_stride;
                write_group(t, r, x, vector, q_tile, g, row, first, n, a, to, q->out.class_stride, storage, storage,
                            false);
            } else {
                write_group(t, r, x, vector, q_tile, g, row, first, n, a, (char *)w->out, VISIT_ROWS * sizeof(real),
                            storage, real_dtype(), false);
            }
        }
        if (out_direct) continue;
        for (int64_t i = 0; i < r->count; i++) {
            char *p = r->out + r->index[i] * r->out_step + first * q->out.class_stride;
            if (q->out.dtype == real_dtype() && !q->out.byte_swapped) {
                for (int64_t k = 0; k < n; k++)
                    memcpy(p + k * q->out.class_stride, &w->out[k * VISIT_ROWS + i], sizeof(real));
            } else {
                for (int64_t k = 0; k < n; k++)
                    store_floating(p + k * q->out.class_stride, (double)w->out[k * VISIT_ROWS + i], q->out.dtype,
                                   q->out.byte_swapped);
            }
        }
    }
}

static INLINE int64_t visit_lanes_in(const task *t, rows *r, partial *sums, char *scratch, bool direct,
                                     fastce_dtype storage) {
    lane_scratch w = {(real *)scratch, (real *)scratch + TILE_SIZE, (real *)scratch + 2 * TILE_SIZE};
    lane_state a;
    int64_t bad = reduce_lanes(t, r, &a, &w, direct, storage);
    if (bad >= 0) return bad;
    finish(t, r, &a.s, sums);
    write_values(r, &a.s);
    if (t->problem->out.data) {
        if (direct && t->out_direct)
            write_lanes(t, r, &a, &w, direct, true, storage);
        else
            write_lanes(t, r, &a, &w, direct, false, storage);
    }
    return -1;
}

static int64_t visit_lanes(const task *t, rows *r, partial *sums, char *scratch) {
    fastce_dtype storage = t->problem->logits.dtype;
    if (!t->logits_direct || !r->consecutive || r->count % GROUP != 0)
        return visit_lanes_in(t, r, sums, scratch, false, real_dtype());
#ifdef REAL_HAS_HALVES
    if (storage == FASTCE_F16) return visit_lanes_in(t, r, sums, scratch, true, FASTCE_F16);
    if (storage == FASTCE_BF16) return visit_lanes_in(t, r, sums, scratch, true, FASTCE_BF16);
#endif
    (void)storage;
    return visit_lanes_in(t, r, sums, scratch, true, real_dtype());
}
