/* What is asked about a row beside its loss, in one visit: with m its maximum, r the sum of exp(x_k - m) without the first
 * class at the maximum, and y its label,
 *     lse = m + log1p(r)      loss = log1p(r) + (m - x_y)      entropy = log1p(r) + sum of (m - x_k) exp(x_k - m) / (1 + r)
 *     target_probability = exp(x_y - m) / (1 + r)      rank = how many x_k > x_y      margin = x_y - max of the others
 * and m and r themselves, of which partial results are made.
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

/* The maximum of a block, and about its label the maximum of the other classes and how many lie above it. A NaN is no
 * maximum; it is noted where no sum will show it. */
static INLINE real pass_maxima(block b, int64_t label, real logit, bool about_label, bool notes_nan, row_state *s,
                               fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec lowest = v_set1(-INFINITY), zero = v_set1(0), one = v_set1(1), logits = v_set1(logit);
    vec max[4], nan[4], best[4], above[4], x[4];
    for (int j = 0; j < 4; j++) max[j] = best[j] = lowest, nan[j] = above[j] = zero;
    for (int64_t i = 0; i < b.n; i += GROUP) {
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            x[j] = load_up_to(b.p + at * size, n, -INFINITY, storage);
        }
        for (int j = 0; j < 4; j++) max[j] = v_max(x[j], max[j]);
        for (int j = 0; j < 4 && notes_nan; j++) nan[j] = v_select(v_eq(x[j], x[j]), nan[j], one);
        if (!about_label) continue;
        for (int j = 0; j < 4; j++) above[j] = v_select(v_gt(x[j], logits), v_add(above[j], one), above[j]);
        if ((uint64_t)(label - i) < GROUP) {
            real lanes[GROUP];
            for (int j = 0; j < 4; j++) v_store(lanes + j * LANES, x[j]);
            lanes[label - i] = -INFINITY;
            for (int j = 0; j < 4; j++) x[j] = v_load(lanes + j * LANES);
        }
        for (int j = 0; j < 4; j++) best[j] = v_max(x[j], best[j]);
    }
    real tops[LANES], nans[LANES], bests[LANES], counts[LANES], highest = -INFINITY;
    v_store(tops, v_max(v_max(max[0], max[1]), v_max(max[2], max[3])));
    v_store(nans, v_max(v_max(nan[0], nan[1]), v_max(nan[2], nan[3])));
    v_store(bests, v_max(v_max(best[0], best[1]), v_max(best[2], best[3])));
    v_store(counts, four_in_one(above));
    for (int j = 0; j < LANES; j++) {
        highest = tops[j] > highest ? tops[j] : highest;
        s->has_nan |= nans[j] != 0;
    }
    for (int j = 0; j < LANES && about_label; j++) {
        s->best_other = bests[j] > s->best_other ? bests[j] : s->best_other;
        s->rank += (int64_t)counts[j];
    }
    return highest;
}

/* Moves what was summed to a higher maximum. */
static INLINE void raise_max(row_state *s, real max, int64_t argmax) {
    if (s->rest >= 0) {
        const double rise = (double)(max - s->max), scale = (double)exp_one(s->max - max);
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

/* How far ahead a pass over sums asks for memory: the next block, whose maximum is looked for before its sums. */
static INLINE ptrdiff_t block_ahead(int64_t n_classes, fastce_dtype storage) {
    return n_classes > BLOCK_CLASSES ? BLOCK_CLASSES * storage_size(storage) : AHEAD_BYTES;
}

/* Adds the exponentials of a block, without that of the class at excluded, and what they add to the spread. */
static INLINE void pass_sums(block b, int64_t excluded, bool spreads, ptrdiff_t ahead, row_state *s,
                             fastce_dtype storage) {
    enum { GROUPS_A_FLUSH = 4 };
    const ptrdiff_t size = storage_size(storage);
    const vec shift = v_set1(s->max), zero = v_set1(0), lowest = v_set1(EXP_LOWEST);
    wide rests = w_zero(), spreads_in_all = w_zero();
    vec rest[4], spread[4], x[4], gap[4];
    for (int j = 0; j < 4; j++) rest[j] = spread[j] = zero;
    for (int64_t i = 0, groups = 1; i < b.n; i += GROUP, groups++) {
        const real *limit = limits_at(i, excluded);
        prefetch(b.p + i * size + ahead, GROUP * size);
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES, n = b.n - at;
            x[j] = v_sub(load_up_to(b.p + at * size, n, -INFINITY, storage), shift);
            gap[j] = x[j] = v_max(lowest, v_min(v_load(limit + j * LANES), x[j]));
        }
        exp_clamped(x, 4);
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

/* What has been seen of the rows of a visit. */
typedef struct seen_rows {
    real max[VISIT_ROWS], best_other[VISIT_ROWS], logit[VISIT_ROWS];
    real nan[VISIT_ROWS]; /* 1 where there is one */
    double rest[VISIT_ROWS], spread[VISIT_ROWS];
    int64_t argmax[VISIT_ROWS], rank[VISIT_ROWS];
} seen_rows;

/* Of a row with a NaN, with +inf or with -inf alone: the first NaN, else the first maximum, and the log-sum-exp. */
static void look_at_special(const task *t, const char *row, int64_t *argmax, real *lse) {
    const fastce_array *a = &t->problem->logits;
    *lse = lse_of_special(a, row, t->problem->n_classes);
    *argmax = 0;
    for (int64_t k = 0; k < t->problem->n_classes; k++) {
        real x;
        gather(&x, row + k * a->class_stride, 0, 1, a->dtype, a->byte_swapped);
        if (x == *lse || (x != x && *lse != *lse)) {
            *argmax = k;
            return;
        }
    }
}

/* Writes one answer for each row of the visit. */
static INLINE void put_answers(void *to, const rows *r, const void *answers, ptrdiff_t size) {
    if (!to) return;
    if (r->consecutive) {
        memcpy((char *)to + (r->first_row + r->first) * size, answers, (size_t)(r->count * size));
    } else {
        for (int64_t i = 0; i < r->count; i++)
            memcpy((char *)to + (r->first_row + r->index[i]) * size, (const char *)answers + i * size, (size_t)size);
    }
}

/* The answers for the rows of the visit, a vector of rows at a time. */
static void answer_rows(const task *t, const rows *r, seen_rows *a) {
    const fastce_statistics *to = t->problem->statistics;
    const vec zero = v_set1(0), one = v_set1(1), nan = v_set1(NAN);
    real lse[VISIT_ROWS], loss[VISIT_ROWS], entropy[VISIT_ROWS], share[VISIT_ROWS], margin[VISIT_ROWS];
    real rest[VISIT_ROWS], log_total[VISIT_ROWS], sound[VISIT_ROWS], labelled[VISIT_ROWS];
    for (int64_t i = 0; i < r->count; i++) labelled[i] = r->label[i] >= 0, rest[i] = (real)a->rest[i];
    for (int64_t i = r->count; i % LANES != 0; i++)
        labelled[i] = rest[i] = a->max[i] = a->nan[i] = a->logit[i] = a->best_other[i] = 0;
    for (int64_t i = 0; i < r->count; i += LANES) {
        const vec max = v_load(&a->max[i]), logit = v_load(&a->logit[i]), sum = v_load(&rest[i]);
        const mask has_label = v_gt(v_load(&labelled[i]), zero);
        const mask finite = v_eq(v_sub(max, max), zero), clean = v_eq(v_load(&a->nan[i]), zero);
        const vec below = v_sub(max, logit);
        vec log = sum, e = v_sub(zero, below);
        log1p_vectors(&log, 1);
        exp_vectors(&e, 1);
        v_store(&sound[i], v_select(finite, v_select(clean, one, zero), zero));
        v_store(&log_total[i], v_select(finite, v_select(clean, log, nan), nan));
        log = v_load(&log_total[i]);
        v_store(&lse[i], v_add(max, log));
        v_store(&loss[i], v_select(has_label, v_add(log, below), zero));
        e = v_select(finite, v_select(clean, v_div(e, v_add(one, sum)), nan), nan);
        v_store(&share[i], v_select(has_label, e, nan));
        v_store(&margin[i], v_select(has_label, v_sub(logit, v_load(&a->best_other[i])), nan));
    }
    for (int64_t i = 0; i < r->count; i++) entropy[i] = (real)((double)log_total[i] + a->spread[i] / (1 + a->rest[i]));
    for (int64_t i = 0; i < r->count; i++) {
        if (sound[i] != 0) continue;
        look_at_special(t, r->logits + row_of(r, i) * r->logits_step, &a->argmax[i], &lse[i]);
        a->max[i] = lse[i];
        rest[i] = NAN;
    }
    bool correct[VISIT_ROWS];
    for (int64_t i = 0; i < r->count; i++) correct[i] = r->label[i] >= 0 && a->argmax[i] == r->label[i];
    for (int64_t i = 0; i < r->count; i++) a->rank[i] = r->label[i] < 0 ? -1 : a->rank[i];
    put_answers(to->lse, r, lse, sizeof *lse);
    put_answers(to->loss, r, loss, sizeof *loss);
    put_answers(to->entropy, r, entropy, sizeof *entropy);
    put_answers(to->target_probability, r, share, sizeof *share);
    put_answers(to->margin, r, margin, sizeof *margin);
    put_answers(to->argmax, r, a->argmax, sizeof *a->argmax);
    put_answers(to->rank, r, a->rank, sizeof *a->rank);
    put_answers(to->correct, r, correct, sizeof *correct);
    put_answers(to->maximum, r, a->max, sizeof *a->max);
    put_answers(to->rest, r, rest, sizeof *rest);
}

/* The same for vectors of rows. */
typedef struct lane_statistics {
    seen_rows s;
    real label[VISIT_ROWS], argmax[VISIT_ROWS], rank[VISIT_ROWS]; /* within the tile at hand */
    double rest_lost[VISIT_ROWS], spread_lost[VISIT_ROWS];
} lane_statistics;

/* Sees maxima and what lies above the labels among the classes of a tile, for the group of rows at row. argmax becomes the
 * class of a new maximum within the tile, -1 where there is none. */
static INLINE void pass_tile_maxima(block_of_lanes x, int64_t row, bool about_label, lane_statistics *a) {
    const vec zero = v_set1(0), one = v_set1(1), lowest = v_set1(-INFINITY);
    vec max[4], at[4], nan[4], best[4], above[4], label[4], logit[4];
    for (int j = 0; j < 4; j++) {
        max[j] = v_load(&a->s.max[row + j * LANES]);
        nan[j] = v_load(&a->s.nan[row + j * LANES]);
        best[j] = v_load(&a->s.best_other[row + j * LANES]);
        label[j] = v_load(&a->label[row + j * LANES]);
        logit[j] = v_load(&a->s.logit[row + j * LANES]);
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
        v_store(&a->s.nan[row + j * LANES], nan[j]);
        v_store(&a->s.best_other[row + j * LANES], best[j]);
        v_store(&a->argmax[row + j * LANES], at[j]);
        v_store(&a->rank[row + j * LANES], above[j]);
    }
    for (int64_t i = row; i < row + GROUP; i++) {
        a->s.rank[i] += (int64_t)(int32_t)a->rank[i];
        a->s.argmax[i] = a->argmax[i] < 0 ? a->s.argmax[i] : x.first + (int32_t)a->argmax[i];
    }
    for (int j = 0; j < 4; j++) {
        real raised[LANES];
        v_store(raised, max[j]);
        for (int l = 0; l < LANES && x.first > 0; l++) {
            const int64_t i = row + j * LANES + l;
            if (a->argmax[i] < 0) continue;
            row_state s = {.rest = a->s.rest[i],
                           .rest_lost = a->rest_lost[i],
                           .spread = a->s.spread[i],
                           .spread_lost = a->spread_lost[i],
                           .max = a->s.max[i]};
            if (a->s.max[i] == -INFINITY) s.rest = -1;
            raise_max(&s, raised[l], 0);
            a->s.rest[i] = s.rest;
            a->s.spread[i] = s.spread;
            a->rest_lost[i] = a->spread_lost[i] = 0;
        }
        v_store(&a->s.max[row + j * LANES], max[j]);
    }
}

/* Adds the exponentials of a tile but those of new maxima, and what they add to the spread. */
static INLINE void pass_tile_sums(block_of_lanes x, int64_t row, bool spreads, lane_statistics *a) {
    const vec zero = v_set1(0), lowest = v_set1(EXP_LOWEST);
    vec shift[4], at[4];
    for (int j = 0; j < 4; j++) {
        const vec max = v_load(&a->s.max[row + j * LANES]);
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
            v_accumulate(&a->s.rest[i], &a->rest_lost[i], rest[j]);
            if (spreads) v_accumulate(&a->s.spread[i], &a->spread_lost[i], v_sub(zero, spread[j]));
        }
    }
}

static void visit_statistics_lanes(const task *t, rows *r, char *scratch) {
    const fastce_problem *q = t->problem;
    const fastce_statistics *to = q->statistics;
    const bool about_label = to->rank || to->margin;
    const bool sums = to->lse || to->loss || to->entropy || to->target_probability || to->rest;
    const bool neighbours = r->consecutive && r->count % GROUP == 0 && q->logits.dtype == real_dtype();
    const bool direct = neighbours && t->logits_direct;
    real *room = (real *)scratch;
    lane_scratch w = {.x = room, .flat = room + TILE_SIZE};
    lane_state labels;
    lane_statistics a = {0};
    for (int64_t i = 0; i < VISIT_ROWS; i++) a.s.max[i] = a.s.best_other[i] = -INFINITY;
    const bool one_tile = q->n_classes <= TILE_CLASSES;
    if (one_tile)
        memset(labels.s.label_logit, 0, sizeof labels.s.label_logit);
    else
        load_label_logits(t, r, &labels, &w, direct);
    for (int64_t first = 0; first < q->n_classes; first += TILE_CLASSES) {
        block_of_lanes x = get_lanes(t, r, first, direct, &w);
        find_labels(t, r, x, &labels);
        for (int64_t row = 0; row < r->count && one_tile; row += GROUP) select_label_logits(x, row, &labels);
        memcpy(a.label, labels.label, sizeof a.label);
        memcpy(a.s.logit, labels.s.label_logit, sizeof a.s.logit);
        for (int64_t row = 0; row < r->count; row += GROUP) {
            pass_tile_maxima(x, row, about_label, &a);
            if (sums) pass_tile_sums(x, row, to->entropy != NULL, &a);
        }
    }
    for (int64_t i = 0; i < r->count; i++) a.s.rest[i] += a.rest_lost[i], a.s.spread[i] += a.spread_lost[i];
    answer_rows(t, r, &a.s);
}

/* --- short rows, ROWS_AT_ONCE at a time: what is left in the lanes of a vector of each is found together ---------------- */

typedef struct short_set {
    const char *p[ROWS_AT_ONCE];
    real label[ROWS_AT_ONCE], logit[ROWS_AT_ONCE]; /* -1 and 0 where there is none */
    real max[ROWS_AT_ONCE], argmax[ROWS_AT_ONCE], best[ROWS_AT_ONCE], above[ROWS_AT_ONCE], nan[ROWS_AT_ONCE];
    double rest[ROWS_AT_ONCE], spread[ROWS_AT_ONCE];
} short_set;

typedef enum fold { LARGEST, SMALLEST, SUM } fold;

static INLINE vec fold_vectors(vec a, vec b, fold f) {
    return f == LARGEST ? v_max(a, b) : f == SMALLEST ? v_min(a, b) : v_add(a, b);
}

/* The largest, the smallest or the sum of the lanes of a vector of each row. None is NaN. */
static INLINE void fold_lanes(const vec *rows, fold f, real *to) {
    for (int first = 0; first < ROWS_AT_ONCE; first += COLUMNS) {
        vec a[COLUMNS];
        real lanes[LANES];
        for (int j = 0; j < COLUMNS; j++) a[j] = rows[first + j];
        v_transpose(a);
        for (int j = 1; j < COLUMNS; j++) a[0] = fold_vectors(a[0], a[j], f);
        v_store(lanes, a[0]);
        for (int j = 0; j < COLUMNS; j++) {
            real x = lanes[j];
            for (int i = j + COLUMNS; i < LANES; i += COLUMNS) {
                if (f == LARGEST) x = lanes[i] > x ? lanes[i] : x;
                if (f == SMALLEST) x = lanes[i] < x ? lanes[i] : x;
                if (f == SUM) x += lanes[i];
            }
            to[first + j] = x;
        }
    }
}

/* The maxima, where they are first, and about the labels what pass_maxima finds. */
static INLINE void pass_short_maxima(short_set *s, int64_t n, bool about_label, bool notes_nan, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec lowest = v_set1(-INFINITY), zero = v_set1(0), one = v_set1(1), beyond = v_set1(SHORT_CLASSES);
    vec max[ROWS_AT_ONCE], at[ROWS_AT_ONCE], best[ROWS_AT_ONCE], above[ROWS_AT_ONCE], nan[ROWS_AT_ONCE];
    vec class = v_iota();
    for (int j = 0; j < ROWS_AT_ONCE; j++) max[j] = best[j] = lowest, at[j] = above[j] = nan[j] = zero;
    for (int64_t i = 0; i < n; i += LANES, class = v_add(class, v_set1(LANES))) {
        for (int j = 0; j < ROWS_AT_ONCE; j++) {
            const char *p = s->p[j] + i * size;
            const vec x = n - i >= LANES ? load(p, storage) : load_first(p, n - i, -INFINITY, storage);
            const mask higher = v_gt(x, max[j]);
            max[j] = v_select(higher, x, max[j]);
            at[j] = v_select(higher, class, at[j]);
            if (notes_nan) nan[j] = v_select(v_eq(x, x), nan[j], one);
            if (!about_label) continue;
            best[j] = v_max(v_select(v_eq(class, v_set1(s->label[j])), lowest, x), best[j]);
            above[j] = v_select(v_gt(x, v_set1(s->logit[j])), v_add(above[j], one), above[j]);
        }
    }
    fold_lanes(max, LARGEST, s->max);
    for (int j = 0; j < ROWS_AT_ONCE; j++) at[j] = v_select(v_eq(max[j], v_set1(s->max[j])), at[j], beyond);
    fold_lanes(at, SMALLEST, s->argmax);
    if (notes_nan) fold_lanes(nan, LARGEST, s->nan);
    if (about_label) fold_lanes(best, LARGEST, s->best);
    if (about_label) fold_lanes(above, SUM, s->above);
}

/* The sums below the maxima. */
static INLINE void pass_short_sums(short_set *s, int64_t n, bool spreads, ptrdiff_t ahead, fastce_dtype storage) {
    const ptrdiff_t size = storage_size(storage);
    const vec lowest = v_set1(EXP_LOWEST), zero = v_set1(0);
    const int64_t flush_classes = VECTORS_A_CHAIN * LANES, flushes = (n + flush_classes - 1) / flush_classes;
    real pending[PENDING_REALS], pending_spread[PENDING_REALS];
    vec shift[ROWS_AT_ONCE];
    const real *limit_of[ROWS_AT_ONCE];
    for (int j = 0; j < ROWS_AT_ONCE; j++) {
        shift[j] = v_set1(s->max[j]);
        limit_of[j] = limits + SHORT_CLASSES - (int64_t)s->argmax[j];
    }
    for (int64_t f = 0; f < flushes; f++) {
        const int64_t end = n < (f + 1) * flush_classes ? n : (f + 1) * flush_classes;
        vec rest[ROWS_AT_ONCE], spread[ROWS_AT_ONCE], x[ROWS_AT_ONCE], gap[ROWS_AT_ONCE];
        for (int j = 0; j < ROWS_AT_ONCE; j++) rest[j] = spread[j] = zero;
        for (int64_t i = f * flush_classes; i < end; i += LANES) {
            for (int j = 0; j < ROWS_AT_ONCE; j++) {
                const char *p = s->p[j] + i * size;
                __builtin_prefetch(p + ahead);
                x[j] = v_sub(n - i >= LANES ? load(p, storage) : load_first(p, n - i, -INFINITY, storage), shift[j]);
                gap[j] = x[j] = v_max(lowest, v_min(v_load(limit_of[j] + i), x[j]));
            }
            exp_clamped(x, ROWS_AT_ONCE);
            for (int j = 0; j < ROWS_AT_ONCE; j++) rest[j] = v_add(rest[j], x[j]);
            for (int j = 0; j < ROWS_AT_ONCE && spreads; j++) spread[j] = v_fma(gap[j], x[j], spread[j]);
        }
        for (int j = 0; j < ROWS_AT_ONCE; j++) {
            v_store(pending + (f * ROWS_AT_ONCE + j) * LANES, rest[j]);
            if (spreads) v_store(pending_spread + (f * ROWS_AT_ONCE + j) * LANES, v_sub(zero, spread[j]));
        }
    }
    total_short(pending, flushes, s->rest);
    if (spreads) total_short(pending_spread, flushes, s->spread);
}

typedef struct statistics_scratch {
    real x[BLOCK_CLASSES + GROUP];
} statistics_scratch;

static INLINE void see_short_rows(const task *t, const rows *r, seen_rows *seen, statistics_scratch *w, bool direct,
                                  fastce_dtype storage) {
    enum { SETS = BLOCK_CLASSES / SHORT_CLASSES / ROWS_AT_ONCE };
    const fastce_problem *q = t->problem;
    const fastce_statistics *to = q->statistics;
    const bool about_label = to->rank || to->margin, spreads = to->entropy != NULL;
    const bool sums = to->lse || to->loss || spreads || to->target_probability || to->rest;
    const int64_t n = q->n_classes, count = r->count;
    const ptrdiff_t ahead = (AHEAD_BYTES / (n * storage_size(storage)) + ROWS_AT_ONCE) * n * storage_size(storage);
    _Static_assert(SETS >= 1, "a set of rows can be copied");
    for (int64_t i = 0; i < count; i += ROWS_AT_ONCE) {
        short_set s = {.max = {0}};
        for (int j = 0; j < ROWS_AT_ONCE; j++) {
            const int64_t k = i + j < count ? i + j : count - 1, label = r->label[k];
            const char *row = r->logits + row_of(r, k) * r->logits_step;
            s.p[j] = direct ? row : (const char *)(w->x + j * n);
            if (!direct) gather(w->x + j * n, row, q->logits.class_stride, n, q->logits.dtype, q->logits.byte_swapped);
            s.label[j] = (real)(label < 0 ? -1 : label);
            s.logit[j] = label < 0 ? 0 : load_one(s.p[j] + label * storage_size(storage), storage);
        }
        if (about_label)
            pass_short_maxima(&s, n, true, !sums, storage);
        else
            pass_short_maxima(&s, n, false, !sums, storage);
        if (sums && spreads)
            pass_short_sums(&s, n, true, ahead, storage);
        else if (sums)
            pass_short_sums(&s, n, false, ahead, storage);
        for (int j = 0; j < ROWS_AT_ONCE && i + j < count; j++) {
            seen->max[i + j] = s.max[j], seen->best_other[i + j] = s.best[j], seen->logit[i + j] = s.logit[j];
            seen->argmax[i + j] = (int64_t)s.argmax[j], seen->rank[i + j] = (int64_t)s.above[j];
            seen->rest[i + j] = s.rest[j], seen->spread[i + j] = s.spread[j];
            seen->nan[i + j] = s.nan[j] != 0 || s.rest[j] != s.rest[j];
        }
    }
}

static size_t statistics_scratch_bytes(const task *t) {
    return t->lanes ? 2 * TILE_SIZE * ELEMENT : sizeof(statistics_scratch);
}

static INLINE void visit_statistics_as(const task *t, rows *r, statistics_scratch *w, bool direct,
                                       fastce_dtype storage) {
    const fastce_problem *q = t->problem;
    const fastce_statistics *to = q->statistics;
    const bool about_label = to->rank || to->margin;
    const bool sums = to->lse || to->loss || to->entropy || to->target_probability || to->rest;
    seen_rows seen;
    if (q->n_classes <= SHORT_CLASSES) {
        see_short_rows(t, r, &seen, w, direct, storage);
        answer_rows(t, r, &seen);
        return;
    }
    for (int64_t i = 0; i < r->count; i++) {
        const char *row = r->logits + row_of(r, i) * r->logits_step;
        const int64_t label = r->label[i];
        row_state s = nothing_seen;
        real logit = 0;
        if (label >= 0)
            gather(&logit, row + label * q->logits.class_stride, 0, 1, q->logits.dtype, q->logits.byte_swapped);
        for (int64_t first = 0; first < q->n_classes; first += BLOCK_CLASSES) {
            block b = get_block(&q->logits, row, first, q->n_classes, direct, w->x);
            real max = about_label && label >= 0 ? pass_maxima(b, label - first, logit, true, !sums, &s, storage)
                                                 : pass_maxima(b, label - first, logit, false, !sums, &s, storage);
            int64_t excluded = -1;
            if (max > s.max) {
                excluded = block_find(b, max, storage);
                raise_max(&s, max, first + excluded);
            }
            if (sums && s.max != -INFINITY) {
                pass_sums(b, excluded, to->entropy != NULL, block_ahead(q->n_classes, storage), &s, storage);
                s.has_nan |= s.rest != s.rest;
            } else if (sums) {
                pass_maxima(b, -1, 0, false, true, &s, storage);
            }
        }
        seen.rest[i] = s.rest + s.rest_lost, seen.spread[i] = s.spread + s.spread_lost;
        seen.max[i] = s.max, seen.best_other[i] = s.best_other, seen.logit[i] = logit;
        seen.nan[i] = s.has_nan;
        seen.argmax[i] = s.argmax, seen.rank[i] = s.rank;
    }
    answer_rows(t, r, &seen);
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
