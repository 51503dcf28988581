/* Element-wise losses: each element is a row of one class, and a lane. With t' the target, smoothed,
 *     binary logits         w (a t' f(-x) softplus(-x) + b (1 - t') f(x) softplus(x)),  f(x) = sigmoid(x)^gamma
 *     binary probabilities  w (a t' (-log x) + b (1 - t') (-log(1 - x)))
 *     squares               w (x - t)^2
 * and their derivatives. Every term is >= 0 and has its digits however small; a coefficient of 0 wins over infinity. */

/* A group of elements: what is known of them, and what comes out. */
typedef struct element_group {
    vec x[4], target[4], positive[4]; /* positive: a */
    vec value[4], slope[4];
} element_group;

/* plain: no smoothing, no positive weight, a = b = 1; focal: gamma is not 0; clips: probabilities are clipped. */
typedef struct element_options {
    vec scale, spread, negative, gamma, lowest, highest; /* t' = scale * t + spread; b; limits of probabilities */
    bool plain, focal, clips;
} element_options;

static element_options options_of(const fastce_problem *q) {
    real spread = q->class_vector ? (real)q->class_vector[0] : 0;
    return (element_options){
        .scale = v_set1((real)q->target_scale),
        .spread = v_set1(spread),
        .negative = v_set1((real)q->negative),
        .gamma = v_set1((real)q->gamma),
        .lowest = v_set1((real)q->clip),
        .highest = v_set1((real)(1 - q->clip)),
        .plain = !q->class_vector && !q->positive_weight.data && q->positive == 1 && q->negative == 1,
        .focal = q->gamma != 0,
        .clips = q->clip > 0,
    };
}

/* coefficient * cost, where the coefficient of a cost that may be infinite is 0 too. */
static INLINE vec weighed(vec coefficient, vec cost) {
    const vec zero = v_set1(0);
    return v_select(v_eq(coefficient, zero), zero, v_mul(coefficient, cost));
}

static INLINE void coefficients(const element_group *g, const element_options *o, bool plain, vec *on, vec *off) {
    const vec one = v_set1(1);
    for (int j = 0; j < 4; j++) {
        on[j] = g->target[j];
        off[j] = v_sub(one, g->target[j]);
        if (plain) continue;
        on[j] = v_mul(g->positive[j], v_fma(o->scale, on[j], o->spread));
        off[j] = v_mul(o->negative, v_fma(o->scale, off[j], o->spread));
    }
}

/* guarded: some x may be infinite. */
static INLINE void binary_logits(element_group *g, const element_options *o, bool slopes, bool plain, bool guarded) {
    const vec zero = v_set1(0), one = v_set1(1);
    vec e[4], log_total[4], up[4], down[4], on[4], off[4], share[4], rest[4];
    coefficients(g, o, plain, on, off);
    for (int j = 0; j < 4; j++) e[j] = v_sub(zero, v_max(g->x[j], v_sub(zero, g->x[j])));
    exp_vectors(e, 4);
    for (int j = 0; j < 4; j++) log_total[j] = e[j];
    log1p_of_fraction(log_total, 4);
    for (int j = 0; j < 4; j++) { /* softplus(x) and softplus(-x) */
        up[j] = v_add(log_total[j], v_max(zero, g->x[j]));
        down[j] = v_sub(log_total[j], v_min(zero, g->x[j]));
    }
    for (int j = 0; j < 4 && slopes; j++) { /* sigmoid(x) and sigmoid(-x) */
        const vec larger = v_div(one, v_add(one, e[j])), smaller = v_mul(e[j], larger);
        const mask is_up = v_gt(g->x[j], zero);
        share[j] = v_select(is_up, larger, smaller);
        rest[j] = v_select(is_up, smaller, larger);
    }
    if (!plain && o->focal) {
        vec on_power[4], off_power[4];
        for (int j = 0; j < 4; j++) on_power[j] = v_mul(o->gamma, v_sub(zero, up[j]));
        for (int j = 0; j < 4; j++) off_power[j] = v_mul(o->gamma, v_sub(zero, down[j]));
        exp_vectors(on_power, 4);
        exp_vectors(off_power, 4);
        for (int j = 0; j < 4; j++) on[j] = v_mul(on[j], on_power[j]);
        for (int j = 0; j < 4; j++) off[j] = v_mul(off[j], off_power[j]);
        for (int j = 0; j < 4 && slopes; j++) { /* what sigmoid^gamma adds to the derivative, as if to the sigmoid */
            const vec more_off = v_mul(o->gamma, weighed(rest[j], up[j]));
            rest[j] = v_fma(o->gamma, weighed(share[j], down[j]), rest[j]);
            share[j] = v_add(share[j], more_off);
        }
    }
    for (int j = 0; j < 4; j++) {
        if (guarded) /* a NaN is one whatever its coefficients */
            g->value[j] =
                v_select(v_eq(g->x[j], g->x[j]), v_add(weighed(on[j], down[j]), weighed(off[j], up[j])), g->x[j]);
        else
            g->value[j] = v_fma(on[j], down[j], v_mul(off[j], up[j]));
    }
    for (int j = 0; j < 4 && slopes; j++) g->slope[j] = v_sub(v_mul(off[j], share[j]), v_mul(on[j], rest[j]));
}

static INLINE bool any_infinite(const vec *x) {
    const vec infinity = v_set1(INFINITY), zero = v_set1(0);
    bool found = false;
    for (int j = 0; j < 4; j++) found |= v_any(v_eq(v_max(x[j], v_sub(zero, x[j])), infinity));
    return found;
}

static INLINE vec clipped(vec x, vec lowest, vec highest) { return v_max(lowest, v_min(highest, x)); }

static INLINE void binary_probabilities(element_group *g, const element_options *o, bool slopes) {
    const vec zero = v_set1(0), one = v_set1(1), nan = v_set1(NAN);
    vec x[4], on[4], off[4], yes[4], no[4];
    coefficients(g, o, false, on, off);
    for (int j = 0; j < 4; j++) /* -0 becomes 0 */
        x[j] = o->clips ? clipped(g->x[j], o->lowest, o->highest) : v_add(g->x[j], zero);
    for (int j = 0; j < 4; j++) yes[j] = x[j];
    log_vectors(yes, 4);
    for (int j = 0; j < 4; j++) no[j] = v_sub(zero, x[j]);
    log1p_vectors(no, 4);
    for (int j = 0; j < 4; j++) {
        no[j] = v_select(v_gt(one, x[j]), no[j], v_select(v_eq(x[j], one), v_set1(-INFINITY), nan));
        vec value = v_add(weighed(on[j], v_sub(zero, yes[j])), weighed(off[j], v_sub(zero, no[j])));
        g->value[j] = v_select(v_eq(v_min(one, v_max(zero, x[j])), x[j]), value, nan); /* no probability, no loss */
        if (!slopes) continue;
        vec slope = v_sub(weighed(off[j], v_div(one, v_sub(one, x[j]))), weighed(on[j], v_div(one, x[j])));
        slope = v_select(v_eq(x[j], g->x[j]), slope, v_select(v_eq(g->x[j], g->x[j]), zero, nan));
        g->slope[j] = v_select(v_eq(g->value[j], g->value[j]), slope, nan);
    }
}

static INLINE void squares(element_group *g, bool slopes) {
    for (int j = 0; j < 4; j++) {
        vec d = v_sub(g->x[j], g->target[j]);
        g->value[j] = v_mul(d, d);
        if (slopes) g->slope[j] = v_add(d, d);
    }
}

static INLINE void element_losses(const fastce_problem *q, element_group *g, const element_options *o, bool slopes) {
    if (q->kind == FASTCE_SQUARES)
        squares(g, slopes);
    else if (q->kind == FASTCE_BINARY_PROBABILITIES)
        binary_probabilities(g, o, slopes);
    else if (o->plain && !o->focal && !any_infinite(g->x))
        binary_logits(g, o, slopes, true, false);
    else
        binary_logits(g, o, slopes, false, true);
}

/* The elements of a visit as vectors load them, and what is made of them. */
typedef struct element_scratch {
    real x[VISIT_ROWS], target[VISIT_ROWS], value[VISIT_ROWS];
    real slopes[2][MOST_OF_A_LINE + VISIT_ROWS]; /* one fills while the other leaves */
} element_scratch;

static size_t elements_scratch_bytes(const task *t) {
    (void)t;
    return sizeof(element_scratch);
}

/* Elements of native integers, which targets often are. */
static bool widen_integers(real *to, const char *p, int64_t n, fastce_dtype dtype) {
    if (dtype == FASTCE_I64)
        for (int64_t i = 0; i < n; i++) to[i] = (real)(int64_t)load_bits(p + i * 8, 8, false);
    else if (dtype == FASTCE_I32)
        for (int64_t i = 0; i < n; i++) to[i] = (real)(int32_t)load_bits(p + i * 4, 4, false);
    else if (dtype == FASTCE_U8 || dtype == FASTCE_BOOL)
        for (int64_t i = 0; i < n; i++) to[i] = (real)(unsigned char)p[i];
    else if (dtype == FASTCE_I8)
        for (int64_t i = 0; i < n; i++) to[i] = (real)(signed char)p[i];
    else
        return false;
    return true;
}

/* Elements of an array, neighbours from p on or where index says, in place if vectors can load them there; the rest of a
 * group becomes 0. */
static const real *get_elements(const fastce_array *a, const char *p, ptrdiff_t step, const int64_t *index,
                                int64_t count, real *room) {
    const bool neighbours = !index && step == dtype_size(a->dtype) && !a->byte_swapped;
    if (neighbours && a->dtype == real_dtype() && count % GROUP == 0 && (uintptr_t)p % sizeof(real) == 0)
        return (const real *)p;
    if (neighbours && dtype_is_vector(a->dtype))
        widen_as(room, p, count, a->dtype);
    else if (!neighbours || !widen_integers(room, p, count, a->dtype))
        for (int64_t i = 0; i < count; i++)
            gather(&room[i], p + (index ? index[i] : i) * step, 0, 1, a->dtype, a->byte_swapped);
    for (int64_t i = count; i % GROUP != 0; i++) room[i] = 0;
    return room;
}

/* Those of the rows of a visit. */
static const real *elements_of(const fastce_array *a, const char *base, ptrdiff_t step, const rows *r, real *room) {
    if (!r->consecutive) return get_elements(a, base, step, r->index, r->count, room);
    return get_elements(a, base + r->first * step, step, NULL, r->count, room);
}

/* Remembers in bad, 0 before, where a target is not acceptable. */
static INLINE void check_elements(const task *t, const vec *target, vec *bad) {
    const vec lowest = v_set1(0), highest = v_set1((real)t->largest_target);
    for (int j = 0; j < 4; j++)
        bad[j] = v_select(v_eq(clipped(target[j], lowest, highest), target[j]), bad[j], highest);
}

static INLINE bool any_is_bad(const vec *bad) {
    return v_any(v_gt(v_max(v_max(bad[0], bad[1]), v_max(bad[2], bad[3])), v_set1(0)));
}

/* The first of count targets that is not acceptable, or -1. */
static int64_t first_bad_element(const task *t, const real *target, int64_t count) {
    for (int64_t i = 0; i < count && !t->any_target; i++)
        if (!(target[i] >= 0 && target[i] <= t->largest_target)) return i;
    return -1;
}

/* The same for count elements from dense on. */
static int64_t first_bad_of(const task *t, const char *dense, ptrdiff_t step, int64_t count) {
    real room[VISIT_ROWS];
    vec bad[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    if (t->any_target) return -1;
    const real *target = get_elements(&t->problem->target, dense, step, NULL, count, room);
    for (int64_t i = 0; i < count; i += GROUP) {
        vec x[4];
        for (int j = 0; j < 4; j++) x[j] = v_load(target + i + j * LANES);
        check_elements(t, x, bad);
    }
    return any_is_bad(bad) ? first_bad_element(t, target, count) : -1;
}

/* Past the caches derivatives leave in whole lines: what is left of the last one goes with those of the next visit, which
 * are in the other buffer then. */
static INLINE void stream_slopes(const real *slope, char *to, int64_t count, chunk_state *state, fastce_dtype storage) {
    send_next(&state->outgoing, as_they_are(slope, to, count), storage);
    send_lines(&state->outgoing, storage);
    state->filling = !state->filling;
}

static void write_slopes(const task *t, const rows *r, const real *slope, chunk_state *state) {
    const fastce_array *a = &t->problem->out;
    char *to = r->out + r->first * r->out_step;
    const bool neighbours = r->consecutive && r->out_step == dtype_size(a->dtype) && !a->byte_swapped;
    if (neighbours && t->stream && a->dtype == real_dtype()) {
        stream_slopes(slope, to, r->count, state, real_dtype());
#ifdef REAL_HAS_HALVES
    } else if (neighbours && t->stream && a->dtype == FASTCE_F16) {
        stream_slopes(slope, to, r->count, state, FASTCE_F16);
    } else if (neighbours && t->stream && a->dtype == FASTCE_BF16) {
        stream_slopes(slope, to, r->count, state, FASTCE_BF16);
#endif
    } else if (neighbours && dtype_is_vector(a->dtype)) {
        narrow_as(to, slope, r->count, a->dtype, false);
    } else {
        for (int64_t i = 0; i < r->count; i++)
            scatter(r->out + row_of(r, i) * r->out_step, 0, &slope[i], 1, a->dtype, a->byte_swapped);
    }
}

static int64_t visit_elements(const task *t, rows *r, chunk_state *state, char *scratch) {
    const fastce_problem *q = t->problem;
    const bool slopes = q->out.data != NULL, weighted = q->sample_weight.data || q->factor.data;
    const double *weight = q->factor.data ? r->label_mass : r->weight;
    element_scratch *w = (element_scratch *)scratch;
    const real *x = elements_of(&q->logits, r->logits, r->logits_step, r, w->x);
    const real *target = elements_of(&q->target, r->dense, r->dense_step, r, w->target);
    real *const slope = w->slopes[state->filling] + MOST_OF_A_LINE;
    const element_options o = options_of(q);
    const vec positive = v_set1((real)q->positive);
    vec bad[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    /* One factor of the slopes, since of two the first may overflow. */
    double scaled[VISIT_ROWS];
    const double *scale = r->grad_scale;
    if (slopes && weighted) {
        for (int64_t i = 0; i < r->count; i++) scaled[i] = r->grad_scale[i] * weight[i];
        for (int64_t i = r->count; i % GROUP != 0; i++) scaled[i] = 0;
        scale = scaled;
    }
    for (int64_t i = 0; i < r->count; i += GROUP) {
        element_group g;
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES;
            g.x[j] = v_load(x + at);
            g.target[j] = v_load(target + at);
            g.slope[j] = v_set1(0);
            g.positive[j] = q->positive_weight.data ? v_mul(positive, v_from_doubles(r->positive + at)) : positive;
        }
        if (x != w->x) prefetch((const char *)(x + i) + AHEAD_BYTES, GROUP * (ptrdiff_t)sizeof(real));
        if (target != w->target) prefetch((const char *)(target + i) + AHEAD_BYTES, GROUP * (ptrdiff_t)sizeof(real));
        if (!t->any_target) check_elements(t, g.target, bad);
        if (slopes)
            element_losses(q, &g, &o, true);
        else
            element_losses(q, &g, &o, false);
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LANES;
            v_store(w->value + at, weighted ? weighed(v_from_doubles(weight + at), g.value[j]) : g.value[j]);
            if (!slopes) continue;
            const vec factor = v_from_doubles(scale + at);
            v_store(slope + at, weighted ? weighed(factor, g.slope[j]) : v_mul(factor, g.slope[j]));
        }
    }
    if (any_is_bad(bad)) return first_bad_element(t, target, r->count);
    add_values(r, w->value, state);
    write_values(r, w->value);
    if (slopes) write_slopes(t, r, slope, state);
    return -1;
}
