/* From what a visit of the logits leaves for each row to its loss and its gradient's factors: the formula of the library.
 *     loss = Q log1p(r) + D + z lse^2, lse = m + log1p(r), D the sum of q_k (m - x_k)
 *     gradient = scale ((Q + 2 z lse) p_k - q_k) = factor exp(x_k - m) - q_factor q_k / s */

/* Rows of a visit. max is where the exponentials are shifted to: the maximum, or the label's logit. */
typedef struct results {
    IN_LINES double mass[VISIT_ROWS], unit_mass[VISIT_ROWS]; /* Q, and Q / s as it came from the visit */
    real max[VISIT_ROWS], rest[VISIT_ROWS], distance[VISIT_ROWS], z[VISIT_ROWS];
    real label_logit[VISIT_ROWS], label_exp[VISIT_ROWS]; /* exp(label_logit - max); 0 where there is no label */
    real log_total[VISIT_ROWS];                          /* log1p(rest) */
    real sound[VISIT_ROWS];                              /* 0 where the label's logit could not serve as max */
    real slope[VISIT_ROWS];                              /* of a focal loss, where it served: see focus_vectors */
    real value[VISIT_ROWS];
} results;

/* A row with +inf, or of -inf only, becomes NaN through its maximum. */
static INLINE void set_result(results *s, int64_t i, real max, double rest) {
    s->max[i] = max;
    s->rest[i] = (real)rest + (max - max);
}

/* log of the sum of exponentials of a row that has no finite maximum, or a NaN. */
static real lse_of_special(const fastce_array *a, const char *row, int64_t n_classes) {
    real lse = -INFINITY;
    for (int64_t k = 0; k < n_classes; k++) {
        real x;
        gather(&x, row + k * a->class_stride, 0, 1, a->dtype, a->byte_swapped);
        if (x != x) return x;
        if (x > lse) lse = x;
    }
    return lse;
}

static void add_lane_sums(chunk_state *state, const double *sum, const double *lost) {
    for (int j = 0; j < LANES; j++) {
        add_exactly(&state->loss[j], &state->lost[j], sum[j]);
        if (sizeof(real) == sizeof(double)) state->lost[j] += lost[j];
    }
}

static void close_block(chunk_state *state) {
    if (state->open) add_lane_sums(state, state->open_loss, state->open_lost);
    state->open = false;
}

static void open_block(chunk_state *state, int64_t block) {
    close_block(state);
    state->open = true;
    state->block = block;
    memset(state->open_loss, 0, sizeof state->open_loss);
    memset(state->open_lost, 0, sizeof state->open_lost);
}

/* Adds the losses of a visit, whose sum lane by lane is known. Which rows a sum is of goes by their numbers alone, lane by
 * lane in blocks of VISIT_ROWS, so that it does not matter to a bit of it where visits begin and end: that is where runs
 * do, and so depends on the layout of every array. */
static void add_losses(const rows *r, const real *value, const lane_sums *total, chunk_state *state) {
    const int64_t first = r->first_row - state->first_row;
    if (r->consecutive && (first + r->first) % VISIT_ROWS == 0) {
        if (r->count == VISIT_ROWS) {
            close_block(state);
            add_lane_sums(state, total->sum, total->lost);
        } else {
            open_block(state, (first + r->first) / VISIT_ROWS);
            memcpy(state->open_loss, total->sum, sizeof total->sum);
            if (sizeof(real) == sizeof(double)) memcpy(state->open_lost, total->lost, sizeof total->lost);
        }
        return;
    }
    for (int64_t i = 0, added; i < r->count; i += added) {
        const int64_t place = first + row_of(r, i), lane = place % LANES;
        if (!state->open || place / VISIT_ROWS != state->block) open_block(state, place / VISIT_ROWS);
        added = r->consecutive && lane == 0 && i + LANES <= r->count ? LANES : 1;
        if (added == LANES)
            v_accumulate(state->open_loss, state->open_lost, v_load(&value[i]));
        else if (sizeof(real) == sizeof(double))
            add_exactly(&state->open_loss[lane], &state->open_lost[lane], (double)value[i]);
        else
            state->open_loss[lane] += (double)value[i];
    }
}

/* The same where only the values are known. */
static void add_values(const rows *r, const real *value, chunk_state *state) {
    lane_sums total;
    wide sums = w_zero();
    for (int64_t i = 0; i < r->count; i += LANES) {
        const int64_t n = r->count - i;
        sums = w_add(sums, n < LANES ? v_load_first(value + i, n, v_set1(0)) : v_load(value + i));
    }
    w_store(sums, total.sum, total.lost);
    add_losses(r, value, &total, state);
}

/* What a focal loss makes of rows whose label's logit served as maximum: u = r / (1 + r) is the probability of the other
 * classes, cross entropy log1p(r) becomes u^gamma log1p(r), and its gradient is multiplied by slope, which is
 * u^gamma (1 + gamma log1p(r) / r). In other rows u is 1, and the rest of the slope 0, in the type of the arithmetic: they are those of cross entropy. */
static INLINE void focus_vectors(const fastce_problem *q, const vec *rest, vec *log_total, vec *slope, int count) {
    const vec zero = v_set1(0), one = v_set1(1), least = v_set1(SMALLEST_NORMAL);
    const power gamma = power_of(q->gamma);
    vec focus[4];
    for (int j = 0; j < count; j++) focus[j] = v_max(least, v_div(rest[j], v_add(one, rest[j])));
    power_vectors(focus, &gamma, count);
    for (int j = 0; j < count; j++) {
        const mask some = v_gt(rest[j], zero);
        focus[j] = v_select(some, focus[j], zero);
        slope[j] = v_mul(focus[j], v_fma(gamma.g, v_select(some, v_div(log_total[j], rest[j]), one), one));
        log_total[j] = v_mul(focus[j], log_total[j]);
    }
}

static INLINE vec slopes_of(const fastce_problem *q, vec rest) {
    vec log_total = rest, slope;
    log1p_vectors(&log_total, 1);
    focus_vectors(q, &rest, &log_total, &slope, 1);
    return slope;
}

static __attribute__((noinline)) real slope_of_one(const fastce_problem *q, real rest) {
    return first_lane(slopes_of(q, v_set1(rest)));
}

/* mass of plain rows is their labels', without distance or z. */
static void finish(const task *t, const rows *r, results *s, bool plain, chunk_state *state) {
    const fastce_problem *q = t->problem;
    const double *mass = plain ? r->label_mass : s->mass;
    const vec zero = v_set1(0);
    lane_sums total;
    v_clear(total.sum, total.lost);
    for (int64_t group = 0; group < r->count; group += GROUP) {
        vec log_total[4];
        for (int j = 0; j < 4; j++) log_total[j] = v_load(&s->rest[group + j * LANES]);
        log1p_vectors(log_total, 4);
        for (int j = 0; j < 4; j++) {
            int64_t i = group + j * LANES, n = r->count - i;
            if (n <= 0) break;
            v_store(&s->log_total[i], log_total[j]);
            if (t->focal) {
                const vec rest = v_load(&s->rest[i]), of_others = log_total[j];
                vec slope;
                focus_vectors(q, &rest, &log_total[j], &slope, 1);
                v_store(&s->slope[i], slope);
                log_total[j] = v_select(v_gt(v_load(&s->sound[i]), zero), log_total[j], of_others);
            }
            vec value = v_mul(v_from_doubles(mass + i), log_total[j]);
            if (!plain) {
                vec lse = v_add(v_load(&s->max[i]), log_total[j]);
                if (r->offset) lse = v_add(lse, v_from_doubles(r->offset + i));
                value = v_fma(v_from_doubles(mass + i), log_total[j], v_load(&s->distance[i]));
                if (q->z_loss != 0) value = v_fma(v_load(&s->z[i]), v_mul(lse, lse), value);
                if (q->target_kind == FASTCE_NO_TARGET) value = lse;
            }
            v_store(&s->value[i], value);
            if (!r->all_kept) {
                /* A weight that is too small for real is not 0. */
                real kept[LANES];
                for (int k = 0; k < LANES; k++) kept[k] = r->weight[i + k] != 0;
                value = v_select(v_gt(v_load(kept), zero), value, zero);
                v_store(&s->value[i], value);
            }
            if (n < LANES) value = v_load_first(&s->value[i], n, zero);
            v_accumulate(total.sum, total.lost, value);
        }
    }
    if (q->output == FASTCE_LSE)
        for (int64_t i = 0; i < r->count; i++)
            if (s->value[i] != s->value[i])
                s->value[i] = lse_of_special(&q->logits, r->logits + row_of(r, i) * r->logits_step, q->n_classes);
    add_losses(r, s->value, &total, state);
}

static void write_values(const rows *r, const real *value) {
    if (!r->values) return;
    if (r->consecutive) {
        memcpy(r->values + r->first * (ptrdiff_t)sizeof(real), value, (size_t)r->count * sizeof(real));
    } else {
        for (int64_t i = 0; i < r->count; i++)
            memcpy(r->values + row_of(r, i) * (ptrdiff_t)sizeof(real), &value[i], sizeof(real));
    }
}

/* Gradient of a row: factor exp(x_k - max) + q_factor q_k / s, but where x_k is the maximum the same without cancellation,
 * (Q - q_k) p - q_k (1 - p) with 1 - p = r / (1 + r): (total - q_k / s) share + q_k / s lost + pull. At the label at_label
 * stands for either. */
typedef struct gradient {
    real factor, at_label;
    real lowered;  /* what the exponentials are multiplied by first; 1 but for some whose label served as maximum */
    real constant; /* added, of what is spread evenly where the label served as maximum; else NOTHING */
    real q_factor, total, share, lost, pull; /* where q is more than a label */
} gradient;

/* What adds nothing, not even to a zero of either sign. */
#define NOTHING (real) - 0.0

/* Not where there is nothing to keep the digits of, in ignored rows. By the bits, which vectors compare without branches. */
static INLINE bool must_lower(double factor) {
    const double smallest = SMALLEST_FACTOR;
    uint64_t bits, limit;
    memcpy(&bits, &factor, sizeof bits);
    memcpy(&limit, &smallest, sizeof limit);
    return (bits << 1 >> 1) - 1 < limit - 1;
}

/* 1 / (1 + rest), from the quotient in the type of the arithmetic: Newton's step is cheaper than a wide division. */
static INLINE double share_at_max(real rest, real quotient) {
    double x = (double)quotient;
    return x + x * (1 - (1 + (double)rest) * x);
}

/* Where all of q, scale in all, is on the label, whose logit served as maximum: factor exp(x_k - max), and at the label
 * -rest in place of the exponential. Far below the other logits a label makes the exponentials so large, and the factor so
 * small, that its digits would not fit where the gradient's do: a power of two moves from them to it. */
static INLINE gradient plain_gradient(double scale, double share, real rest) {
    const bool lower = must_lower(scale * share);
    gradient g = {.factor = (real)(lower ? scale * (share / LOWERED) : scale * share),
                  .lowered = lower ? LOWERED : 1,
                  .constant = NOTHING};
    g.at_label = g.factor * (-rest * g.lowered);
    return g;
}

/* What multiplies the gradient of cross entropy in a row whose label's logit served as maximum. */
static INLINE double plain_scale(const task *t, const rows *r, const results *s, int64_t i) {
    const double scale = r->grad_scale[i] * r->label_mass[i];
    return t->focal ? scale * (double)s->slope[i] : scale;
}

static INLINE double lse_of_row(const rows *r, const results *s, int64_t i) {
    return (double)s->max[i] + (double)s->log_total[i] + (r->offset ? r->offset[i] : 0);
}

/* The same with z-loss, or with even_q of each class beside the label. */
static INLINE gradient even_gradient(const task *t, const rows *r, const results *s, int64_t i, double share) {
    const double scale = r->grad_scale[i], even = r->weight[i] * t->even_q, on_label = r->label_mass[i] + even;
    const double elsewhere = r->weight[i] * (t->q_vector_sum - t->even_q);
    const double z_part = t->problem->z_loss == 0 ? 0 : 2 * (double)s->z[i] * lse_of_row(r, s, i);
    const double factor = scale * (on_label + elsewhere + z_part), rest = (double)s->rest[i];
    const bool lower = must_lower(factor * share);
    return (gradient){
        .factor = (real)(factor * (lower ? share / LOWERED : share)),
        .at_label = (real)(scale * ((elsewhere + z_part) * share - on_label * (rest * share))),
        .lowered = lower ? LOWERED : 1,
        .constant = t->even_q != 0 ? (real)(-scale * even) : NOTHING,
        .q_factor = NOTHING,
    };
}

static INLINE gradient gradient_of_row(const task *t, const rows *r, const results *s, int64_t i) {
    const fastce_problem *q = t->problem;
    if (q->target_kind == FASTCE_NO_TARGET)
        return (gradient){
            .factor = q->output == FASTCE_SOFTMAX ? (real)(r->grad_scale[i] * (double)(1 / (1 + s->rest[i]))) : 1,
            .lowered = 1,
            .constant = NOTHING};
    if (!t->needs_max && s->sound[i] != 0) {
        const double share = share_at_max(s->rest[i], 1 / (1 + s->rest[i]));
        return t->plain ? plain_gradient(plain_scale(t, r, s, i), share, s->rest[i]) : even_gradient(t, r, s, i, share);
    }
    bool labels = q->target_kind == FASTCE_LABELS, vector = q->class_vector != NULL;
    double rest = (double)s->rest[i], top = 1 / (1 + rest), scale = r->grad_scale[i], weight = r->weight[i];
    double mass = s->mass[i], on_label = labels ? r->label_mass[i] : 0, z_part = 0;
    if (q->z_loss != 0) z_part = 2 * (double)s->z[i] * lse_of_row(r, s, i);
    if (labels && vector && r->label[i] >= 0) on_label += weight * q->class_vector[r->label[i]];
    double at_max = (mass - on_label + z_part) * top - on_label * (rest * top);
    double below = (mass + z_part) * ((double)s->label_exp[i] * top) - on_label;
    gradient g = {
        .factor = (real)(scale * (mass + z_part) * top),
        .lowered = 1,
        .constant = NOTHING,
        .at_label = (real)(scale * (s->label_logit[i] == s->max[i] ? at_max : below)),
    };
    if (labels && !vector) return g;
    g.q_factor = (real)(-scale * weight);
    g.total = (real)(labels ? r->label_mass[i] / weight + t->q_vector_sum : s->unit_mass[i]);
    g.share = (real)(scale * weight * top);
    g.lost = (real)(-scale * weight * (rest * top));
    g.pull = (real)(scale * z_part * top);
    return g;
}

/* Gradients of the rows of a visit, field by field. */
typedef struct gradients {
    IN_LINES real factor[VISIT_ROWS], at_label[VISIT_ROWS], lowered[VISIT_ROWS], constant[VISIT_ROWS];
    real q_factor[VISIT_ROWS], total[VISIT_ROWS], share[VISIT_ROWS], lost[VISIT_ROWS], pull[VISIT_ROWS];
    bool any_lowered;
} gradients;

static INLINE void find_quotients(const results *s, int64_t first, int64_t end, real *quotient) {
    const vec one = v_set1(1);
    for (int64_t i = first / LANES * LANES; i < end; i += LANES)
        v_store(&quotient[i], v_div(one, v_add(one, v_load(&s->rest[i]))));
}

/* Of rows [first, end), all plain. */
static void find_plain_gradients(const task *t, const rows *r, const results *s, int64_t first, int64_t end,
                                 gradients *restrict g) {
    real quotient[VISIT_ROWS];
    double scale[VISIT_ROWS];
    int lowered = 0;
    find_quotients(s, first, end, quotient);
    for (int64_t i = first; i < end; i++) scale[i] = plain_scale(t, r, s, i);
    for (int64_t i = first; i < end; i++) {
        const double share = share_at_max(s->rest[i], quotient[i]);
        g->factor[i] = (real)(scale[i] * share);
        g->at_label[i] = (real)(scale[i] * share) * -s->rest[i];
        lowered |= must_lower(scale[i] * share);
    }
    g->any_lowered = lowered;
    for (int64_t i = first; i < end && lowered; i++) {
        gradient one = plain_gradient(scale[i], share_at_max(s->rest[i], quotient[i]), s->rest[i]);
        g->factor[i] = one.factor;
        g->at_label[i] = one.at_label;
        g->lowered[i] = one.lowered;
    }
}

/* log1p of the rests of rows [first, end). */
static void find_log_totals(results *s, int64_t first, int64_t end) {
    for (int64_t i = first / GROUP * GROUP; i < end; i += GROUP) {
        vec x[4];
        for (int j = 0; j < 4; j++) x[j] = v_load(&s->rest[i + j * LANES]);
        log1p_vectors(x, 4);
        for (int j = 0; j < 4; j++) v_store(&s->log_total[i + j * LANES], x[j]);
    }
}

/* The slopes of a focal loss in rows [first, end). */
static void find_slopes(const task *t, results *s, int64_t first, int64_t end) {
    for (int64_t i = first / LANES * LANES; i < end; i += LANES)
        v_store(&s->slope[i], slopes_of(t->problem, v_load(&s->rest[i])));
}

/* The same where there is z-loss, for which log_total is known, or something spread evenly, and each label served as
 * maximum. */
static void find_even_gradients(const task *t, const rows *r, const results *s, int64_t first, int64_t end,
                                gradients *restrict g) {
    const double even_q = t->even_q, others = t->q_vector_sum - even_q, twice = t->problem->z_loss != 0 ? 2 : 0;
    real quotient[VISIT_ROWS], log_total[VISIT_ROWS];
    double offset[VISIT_ROWS];
    int lowered = 0;
    find_quotients(s, first, end, quotient);
    if (twice != 0)
        memcpy(log_total + first, s->log_total + first, (size_t)(end - first) * sizeof(real));
    else
        memset(log_total + first, 0, (size_t)(end - first) * sizeof(real));
    if (r->offset)
        memcpy(offset + first, r->offset + first, (size_t)(end - first) * sizeof(double));
    else
        memset(offset + first, 0, (size_t)(end - first) * sizeof(double));
    for (int64_t i = first; i < end; i++) {
        const double scale = r->grad_scale[i], rest = (double)s->rest[i], share = share_at_max(s->rest[i], quotient[i]);
        const double even = r->weight[i] * even_q, on_label = r->label_mass[i] + even,
                     elsewhere = r->weight[i] * others;
        const double z_part = twice * (double)s->z[i] * ((double)s->max[i] + (double)log_total[i] + offset[i]);
        const double factor = scale * (on_label + elsewhere + z_part);
        g->factor[i] = (real)(factor * share);
        g->at_label[i] = (real)(scale * ((elsewhere + z_part) * share - on_label * (rest * share)));
        g->constant[i] = (real)(-scale * even);
        lowered |= must_lower(factor * share);
    }
    for (int64_t i = first; i < end && even_q == 0; i++) g->constant[i] = NOTHING;
    g->any_lowered = lowered;
    for (int64_t i = first; i < end && lowered; i++) {
        const gradient one = even_gradient(t, r, s, i, share_at_max(s->rest[i], quotient[i]));
        g->factor[i] = one.factor;
        g->lowered[i] = one.lowered;
    }
}
