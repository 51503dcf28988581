/* What is asked about a row beside its loss, in one visit: with m its maximum, r the sum of exp(x_k - m) without the first
 * class at the maximum, and y its label,
 *     lse = m + log1p(r)      loss = log1p(r) + (m - x_y)      entropy = log1p(r) + sum of (m - x_k) exp(x_k - m) / (1 + r)
 *     target_probability = exp(x_y - m) / (1 + r)      rank = how many x_k > x_y      margin = x_y - max of the others
 * A row that is ignored, or has no label, has no answer to what is asked of its label. */

/* A row while its classes pass: what has been seen of it. */
typedef struct row_state {
    double rest, spread; /* r; and the sum of (m - x_k) exp(x_k - m) */
    double rest_lost, spread_lost;
    int64_t argmax, rank;
    real max, best_other; /* best_other: of all but the label */
    bool has_nan;
} row_state;

static const row_state nothing_seen = {.rest = -1, .argmax = 0, .max = -INFINITY, .best_other = -INFINITY};

/* The maximum of a block; a NaN is noted, and no maximum. */
static INLINE real pass_max(block b, row_state *s, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    vec max[4], nan[4];
    for (int j = 0; j < 4; j++) max[j] = v_set1(-INFINITY), nan[j] = v_set1(0);
    for (int64_t i = 0; i < b.n; i += GROUP)
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            vec x = n >= LANES ? load(b.p + at * size, storage)
                    : n <= 0   ? v_set1(-INFINITY)
                               : load_first(b.p + at * size, n, -INFINITY, storage);
            max[j] = v_max(x, max[j]);
            nan[j] = v_select(v_eq(x, x), nan[j], v_set1(1));
        }
    real lanes[LANES], nans[LANES], highest = -INFINITY;
    v_store(lanes, v_max(v_max(max[0], max[1]), v_max(max[2], max[3])));
    v_store(nans, v_max(v_max(nan[0], nan[1]), v_max(nan[2], nan[3])));
    for (int j = 0; j < LANES; j++) {
        highest = lanes[j] > highest ? lanes[j] : highest;
        s->has_nan |= nans[j] != 0;
    }
    return highest;
}

/* The maximum of a block's classes but the label's, and how many lie above its logit. */
static INLINE void pass_label(block b, int64_t label, real logit, row_state *s, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec lowest = v_set1(-INFINITY), zero = v_set1(0), one = v_set1(1), logits = v_set1(logit);
    vec best[4], above[4], x[4];
    for (int j = 0; j < 4; j++) best[j] = lowest, above[j] = zero;
    for (int64_t i = 0; i < b.n; i += GROUP) {
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            x[j] = n >= LANES ? load(b.p + at * size, storage)
                   : n <= 0   ? lowest
                              : load_first(b.p + at * size, n, -INFINITY, storage);
        }
        if ((uint64_t)(label - i) < GROUP) {
            real lanes[GROUP];
            for (int j = 0; j < 4; j++) v_store(lanes + j * LANES, x[j]);
            lanes[label - i] = -INFINITY;
            for (int j = 0; j < 4; j++) x[j] = v_load(lanes + j * LANES);
        }
        for (int j = 0; j < 4; j++) best[j] = v_max(x[j], best[j]);
        for (int j = 0; j < 4; j++) above[j] = v_add(above[j], v_select(v_gt(x[j], logits), one, zero));
    }
    real lanes[LANES], counts[LANES];
    v_store(lanes, v_max(v_max(best[0], best[1]), v_max(best[2], best[3])));
    v_store(counts, four_in_one(above));
    for (int j = 0; j < LANES; j++) {
        s->best_other = lanes[j] > s->best_other ? lanes[j] : s->best_other;
        s->rank += (int64_t)counts[j];
    }
}

/* Moves what was summed to a higher maximum. */
static INLINE void raise_max(row_state *s, real max, int64_t argmax) {
    const double rise = (double)(max - s->max), scale = (double)exp_one(s->max - max);
    if (s->rest >= 0) {
        const double spread = s->spread + s->spread_lost, rest = s->rest + s->rest_lost;
        s->spread = scale > 0 ? scale * (spread + rise * (1 + rest)) : 0;
        s->rest = (1 + rest) * scale;
    } else {
        s->rest = 0;
    }
    s->rest_lost = s->spread_lost = 0;
    s->max = max;
    s->argmax = argmax;
}

/* Adds the exponentials of a block, without that of the class at excluded, and what they add to the spread. */
static INLINE void pass_sums(block b, int64_t excluded, bool spreads, row_state *s, fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    const vec shift = v_set1(s->max), zero = v_set1(0), lowest = v_set1(EXP_LOWEST);
    wide rests = w_zero(), spreads_in_all = w_zero();
    vec rest[4], spread[4], x[4], gap[4];
    for (int j = 0; j < 4; j++) rest[j] = spread[j] = zero;
    for (int64_t i = 0, groups = 1; i < b.n; i += GROUP, groups++) {
        const real *limit = limits_at(i, excluded);
        prefetch(b.p + i * size + AHEAD_BYTES, GROUP * size);
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            x[j] = n >= LANES ? load(b.p + at * size, storage)
                   : n <= 0   ? v_set1(-INFINITY)
                              : load_first(b.p + at * size, n, -INFINITY, storage);
            x[j] = v_sub(x[j], shift);
            gap[j] = v_max(lowest, x[j]);
        }
        vec highest[4];
        for (int j = 0; j < 4; j++) highest[j] = v_load(limit + j * LANES);
        exp_limited(x, highest, 4);
        for (int j = 0; j < 4; j++) rest[j] = v_add(rest[j], x[j]);
        for (int j = 0; j < 4 && spreads; j++) spread[j] = v_fma(gap[j], x[j], spread[j]);
        if (groups % GROUPS_A_FLUSH == 0) {
            flush(&rests, rest);
            flush(&spreads_in_all, spread);
        }
    }
    flush(&rests, rest);
    flush(&spreads_in_all, spread);
    add_exactly(&s->rest, &s->rest_lost, w_total(rests));
    add_exactly(&s->spread, &s->spread_lost, -w_total(spreads_in_all));
}

/* Of a row with a NaN, with +inf or with -inf alone: the first NaN, else the first maximum, and the log-sum-exp. */
static void look_at_special(const task *t, const char *row, row_state *s, real *lse) {
    const fastce_array *a = &t->problem->logits;
    *lse = lse_of_special(a, row, t->problem->n_classes);
    s->argmax = 0;
    for (int64_t k = 0; k < t->problem->n_classes; k++) {
        real x;
        gather(&x, row + k * a->class_stride, 0, 1, a->dtype, a->byte_swapped);
        if (x == *lse || (x != x && *lse != *lse)) {
            s->argmax = k;
            return;
        }
    }
}

static void put_real(void *array, int64_t row, real value) {
    if (array) memcpy((char *)array + row * (ptrdiff_t)sizeof value, &value, sizeof value);
}

static void put_index(int64_t *array, int64_t row, int64_t value) {
    if (array) array[row] = value;
}

/* The answers for row i of the visit, from what was seen of it. */
static void answer_row(const task *t, const rows *r, int64_t i, real logit, row_state *s, real log_total) {
    const fastce_statistics *to = t->problem->statistics;
    const int64_t row = r->first_row + row_of(r, i), label = r->label[i];
    const real rest = (real)(s->rest + s->rest_lost), nan = NAN;
    const bool unsure = s->has_nan || s->max - s->max != 0;
    real lse = s->max + log_total;
    if (unsure) look_at_special(t, r->logits + row_of(r, i) * r->logits_step, s, &lse);
    put_real(to->lse, row, lse);
    const double share = (s->spread + s->spread_lost) / (1 + s->rest + s->rest_lost);
    put_real(to->entropy, row, unsure ? nan : (real)((double)log_total + share));
    put_index(to->argmax, row, s->argmax);
    if (label < 0) {
        put_real(to->loss, row, 0);
        put_real(to->target_probability, row, nan);
        put_index(to->rank, row, -1);
        put_real(to->margin, row, nan);
        if (to->correct) to->correct[row] = 0;
        return;
    }
    const real below = s->max - logit;
    put_real(to->loss, row, unsure ? nan : (real)((double)log_total + (double)below));
    put_real(to->target_probability, row, unsure ? nan : exp_one(-below) / (1 + rest));
    put_index(to->rank, row, s->rank);
    put_real(to->margin, row, logit - s->best_other);
    if (to->correct) to->correct[row] = s->argmax == label;
}

/* The same for vectors of rows. */
typedef struct lane_statistics {
    real label[VISIT_ROWS], logit[VISIT_ROWS];
    real max[VISIT_ROWS], best_other[VISIT_ROWS], nan[VISIT_ROWS], argmax[VISIT_ROWS], rank[VISIT_ROWS];
    double rest[VISIT_ROWS], spread[VISIT_ROWS], rest_lost[VISIT_ROWS], spread_lost[VISIT_ROWS];
    int64_t argmax_in_all[VISIT_ROWS], rank_in_all[VISIT_ROWS];
} lane_statistics;

/* Sees maxima and what lies above the labels among the classes of a tile, for the group of rows at row. argmax becomes the
 * class of a new maximum within the tile, -1 where there is none. */
static INLINE void pass_tile_maxima(block_of_lanes x, int64_t row, bool about_label, lane_statistics *a) {
    const vec zero = v_set1(0), one = v_set1(1), lowest = v_set1(-INFINITY);
    vec max[4], at[4], nan[4], best[4], above[4], label[4], logit[4];
    for (int j = 0; j < 4; j++) {
        max[j] = v_load(&a->max[row + j * LANES]);
        nan[j] = v_load(&a->nan[row + j * LANES]);
        best[j] = v_load(&a->best_other[row + j * LANES]);
        label[j] = v_load(&a->label[row + j * LANES]);
        logit[j] = v_load(&a->logit[row + j * LANES]);
        at[j] = v_set1(-1);
        above[j] = zero;
    }
    for (int64_t k = 0; k < x.n; k++) {
        const vec class = v_set1((real)(int32_t)k);
        for (int j = 0; j < 4; j++) {
            const vec v = v_load((const real *)(x.p + k * x.stride + (row + j * LANES) * ELEMENT));
            const mask higher = v_gt(v, max[j]);
            at[j] = v_select(higher, class, at[j]);
            max[j] = v_select(higher, v, max[j]);
            nan[j] = v_select(v_eq(v, v), nan[j], one);
            if (!about_label) continue;
            best[j] = v_max(v_select(v_eq(label[j], class), lowest, v), best[j]);
            above[j] = v_add(above[j], v_select(v_gt(v, logit[j]), one, zero));
        }
    }
    for (int j = 0; j < 4; j++) {
        v_store(&a->nan[row + j * LANES], nan[j]);
        v_store(&a->best_other[row + j * LANES], best[j]);
        v_store(&a->argmax[row + j * LANES], at[j]);
        v_store(&a->rank[row + j * LANES], above[j]);
        v_store(&a->best_other[row + j * LANES], best[j]);
    }
    for (int j = 0; j < GROUP; j++) {
        const int64_t i = row + j;
        a->rank_in_all[i] += (int64_t)a->rank[i];
        if (a->argmax[i] < 0) continue;
        a->argmax_in_all[i] = x.first + (int64_t)a->argmax[i];
    }
    for (int j = 0; j < 4; j++) {
        real raised[LANES];
        v_store(raised, max[j]);
        for (int l = 0; l < LANES && x.first > 0; l++) {
            const int64_t i = row + j * LANES + l;
            if (a->argmax[i] < 0) continue;
            row_state s = {.rest = a->rest[i],
                           .rest_lost = a->rest_lost[i],
                           .spread = a->spread[i],
                           .spread_lost = a->spread_lost[i],
                           .max = a->max[i]};
            if (a->max[i] == -INFINITY) s.rest = -1;
            raise_max(&s, raised[l], 0);
            a->rest[i] = s.rest;
            a->spread[i] = s.spread;
            a->rest_lost[i] = a->spread_lost[i] = 0;
        }
        v_store(&a->max[row + j * LANES], max[j]);
    }
}

/* Adds the exponentials of a tile but those of new maxima, and what they add to the spread. */
static INLINE void pass_tile_sums(block_of_lanes x, int64_t row, bool spreads, lane_statistics *a) {
    const vec zero = v_set1(0), lowest = v_set1(EXP_LOWEST);
    vec shift[4], at[4];
    for (int j = 0; j < 4; j++) {
        const vec max = v_load(&a->max[row + j * LANES]);
        shift[j] = v_select(v_eq(max, v_set1(-INFINITY)), zero, max);
        at[j] = v_load(&a->argmax[row + j * LANES]);
    }
    for (int64_t first = 0; first < x.n; first += FLUSH_CLASSES) {
        const int64_t end = x.n - first < FLUSH_CLASSES ? x.n : first + FLUSH_CLASSES;
        vec rest[4], spread[4], e[4], gap[4];
        for (int j = 0; j < 4; j++) rest[j] = spread[j] = zero;
        for (int64_t k = first; k < end; k++) {
            for (int j = 0; j < 4; j++) {
                e[j] = v_sub(v_load((const real *)(x.p + k * x.stride + (row + j * LANES) * ELEMENT)), shift[j]);
                gap[j] = v_max(lowest, e[j]);
            }
            exp_vectors(e, 4);
            for (int j = 0; j < 4; j++) {
                e[j] = v_select(v_eq(at[j], v_set1((real)(int32_t)k)), zero, e[j]);
                rest[j] = v_add(rest[j], e[j]);
                if (spreads) spread[j] = v_fma(gap[j], e[j], spread[j]);
            }
        }
        for (int j = 0; j < 4; j++) {
            const int64_t i = row + j * LANES;
            v_accumulate(&a->rest[i], &a->rest_lost[i], rest[j]);
            if (spreads) v_accumulate(&a->spread[i], &a->spread_lost[i], v_sub(zero, spread[j]));
        }
    }
}

static void visit_statistics_lanes(const task *t, rows *r, char *scratch) {
    const fastce_problem *q = t->problem;
    const fastce_statistics *to = q->statistics;
    const bool about_label = to->rank || to->margin;
    const bool sums = to->lse || to->loss || to->entropy || to->target_probability;
    const bool neighbours = r->consecutive && r->count % GROUP == 0 && q->logits.dtype == real_dtype();
    const bool direct = neighbours && t->logits_direct;
    real *room = (real *)scratch;
    lane_scratch w = {.x = room, .flat = room + TILE_SIZE};
    lane_state labels;
    lane_statistics a;
    for (int64_t i = 0; i < VISIT_ROWS; i++) {
        a.max[i] = a.best_other[i] = -INFINITY;
        a.nan[i] = a.logit[i] = 0;
        a.rest[i] = a.spread[i] = a.rest_lost[i] = a.spread_lost[i] = 0;
        a.argmax_in_all[i] = a.rank_in_all[i] = 0;
    }
    for (int64_t i = 0; i < r->count; i++)
        if (r->label[i] >= 0)
            gather(&a.logit[i], r->logits + row_of(r, i) * r->logits_step + r->label[i] * q->logits.class_stride, 0, 1,
                   q->logits.dtype, q->logits.byte_swapped);
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, first, direct, &w);
        find_labels(t, r, x, &labels);
        memcpy(a.label, labels.label, sizeof a.label);
        for (int64_t row = 0; row < r->count; row += GROUP) {
            pass_tile_maxima(x, row, about_label, &a);
            if (sums) pass_tile_sums(x, row, to->entropy != NULL, &a);
        }
    }
    real log_total[VISIT_ROWS];
    for (int64_t i = 0; i < r->count; i += LANES) {
        vec rest = rounded_sums(&a.rest[i], &a.rest_lost[i]);
        log1p_vectors(&rest, 1);
        v_store(&log_total[i], rest);
    }
    for (int64_t i = 0; i < r->count; i++) {
        row_state s = {.rest = a.rest[i],
                       .spread = a.spread[i],
                       .rest_lost = a.rest_lost[i],
                       .spread_lost = a.spread_lost[i],
                       .argmax = a.argmax_in_all[i],
                       .rank = a.rank_in_all[i],
                       .max = a.max[i],
                       .best_other = a.best_other[i],
                       .has_nan = a.nan[i] != 0};
        answer_row(t, r, i, a.logit[i], &s, log_total[i]);
    }
}

typedef struct statistics_scratch {
    real x[BLOCK_CLASSES + GROUP];
} statistics_scratch;

static size_t statistics_scratch_bytes(const task *t) {
    return t->lanes ? 2 * TILE_SIZE * ELEMENT : sizeof(statistics_scratch);
}

static INLINE void visit_statistics_as(const task *t, rows *r, statistics_scratch *w, bool direct,
                                       fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const fastce_statistics *to = q->statistics;
    const bool about_label = to->rank || to->margin;
    const bool sums = to->lse || to->loss || to->entropy || to->target_probability;
    for (int64_t i = 0; i < r->count; i++) {
        const char *row = r->logits + row_of(r, i) * r->logits_step;
        const int64_t label = r->label[i];
        row_state s = nothing_seen;
        real logit = 0;
        if (label >= 0)
            gather(&logit, row + label * q->logits.class_stride, 0, 1, q->logits.dtype, q->logits.byte_swapped);
        for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
            block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
            real max = pass_max(b, &s, storage);
            int64_t excluded = -1;
            if (max > s.max) {
                excluded = block_find(b, max, storage);
                raise_max(&s, max, first + excluded);
            }
            if (about_label && label >= 0) pass_label(b, label - first, logit, &s, storage);
            if (sums && s.max != -INFINITY) pass_sums(b, excluded, to->entropy != NULL, &s, storage);
        }
        answer_row(t, r, i, logit, &s, log1p_one((real)(s.rest + s.rest_lost)));
    }
}

static int64_t visit_statistics(const task *t, rows *r, char *scratch) {
    const fastce_array *a = &t->problem->logits;
    statistics_scratch *w = (statistics_scratch *)scratch;
    const bool direct = classes_are_direct(a);
    if (t->lanes) {
        visit_statistics_lanes(t, r, scratch);
        return -1;
    }
#ifdef REAL_HAS_HALVES
    if (direct && a->dtype == FASTCE_F16)
        visit_statistics_as(t, r, w, true, FASTCE_F16);
    else if (direct && a->dtype == FASTCE_BF16)
        visit_statistics_as(t, r, w, true, FASTCE_BF16);
    else
#endif
        visit_statistics_as(t, r, w, direct, real_dtype());
    return -1;
}
