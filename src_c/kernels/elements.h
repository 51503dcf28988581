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

/* plain: see is_plain; focal: gamma is not 0; clips: probabilities are clipped. */
typedef struct element_options {
    vec scale, spread, negative, gamma, lowest, highest; /* t' = scale * t + spread; b; limits of probabilities */
    bool plain, focal, clips;
} element_options;

/* No smoothing, no positive weight, a = b = 1, gamma 0. */
static bool is_plain(const fastce_problem *q) {
    return !q->class_vector && !q->positive_weight.data && q->positive == 1 && q->negative == 1 &&
           q->target_scale == 1 && q->gamma == 0;
}

static element_options options_of(const fastce_problem *q) {
    real spread = q->class_vector ? (real)q->class_vector[0] : 0;
    return (element_options){
        .scale = v_set1((real)q->target_scale),
        .spread = v_set1(spread),
        .negative = v_set1((real)q->negative),
        .gamma = v_set1((real)q->gamma),
        .lowest = v_set1((real)q->clip),
        .highest = v_set1((real)(1 - q->clip)),
        .plain = is_plain(q),
        .focal = q->gamma != 0,
        .clips = q->clip > 0,
    };
}

/* coefficient * cost, where the coefficient of a cost that may be infinite is 0 too. */
static INLINE vec weighed(vec coefficient, vec cost) {
    const vec zero = v_set1(0);
    return v_select(v_eq(coefficient, zero), zero, v_mul(coefficient, cost));
}

static INLINE void coefficients(const element_group *g, const element_options *o, vec *on, vec *off) {
    const vec one = v_set1(1);
    for (int j = 0; j < 4; j++) {
        on[j] = v_mul(g->positive[j], v_fma(o->scale, g->target[j], o->spread));
        off[j] = v_mul(o->negative, v_fma(o->scale, v_sub(one, g->target[j]), o->spread));
    }
}

/* Logits and targets alone. With w the target's share that x speaks against, 1 - t above 0 and else t, the loss is
 * softplus(-|x|) + w |x|, and its derivative +-(w - (1 - w) e) / (1 + e) with e = exp(-|x|). guarded: some x may be
 * infinite. */
static INLINE void plain_logits(element_group *g, bool slopes, bool guarded) {
    const vec zero = v_set1(0), one = v_set1(1), lowest = v_set1(EXP_LOWEST);
    const ivec sign = v_bits(v_set1((real)-0.0));
    vec e[4], size[4], log_total[4], share[4];
    for (int j = 0; j < 4; j++) e[j] = v_from_bits(i_or(v_bits(g->x[j]), sign));
    for (int j = 0; j < 4; j++) size[j] = v_sub(zero, e[j]);
    for (int j = 0; j < 4; j++) e[j] = v_max(lowest, e[j]);
    exp_clamped(e, 4);
    for (int j = 0; j < 4; j++) log_total[j] = e[j];
    log1p_of_fraction(log_total, 4);
    for (int j = 0; j < 4; j++) {
        share[j] = v_select(v_gt(g->x[j], zero), v_sub(one, g->target[j]), g->target[j]);
        g->value[j] = v_fma(share[j], size[j], log_total[j]);
        if (guarded) g->value[j] = v_select(v_eq(share[j], zero), log_total[j], g->value[j]);
    }
    for (int j = 0; j < 4 && slopes; j++) {
        const vec larger = v_div(one, v_add(one, e[j])), slope = v_fma(v_sub(share[j], one), e[j], share[j]);
        g->slope[j] = v_mul(v_select(v_gt(g->x[j], zero), larger, v_sub(zero, larger)), slope);
    }
}

static INLINE void binary_logits(element_group *g, const element_options *o, bool slopes) {
    const vec zero = v_set1(0), one = v_set1(1);
    vec e[4], log_total[4], up[4], down[4], on[4], off[4], share[4], rest[4];
    coefficients(g, o, on, off);
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
    if (o->focal) {
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
    for (int j = 0; j < 4; j++) /* a NaN is one whatever its coefficients */
        g->value[j] = v_select(v_eq(g->x[j], g->x[j]), v_add(weighed(on[j], down[j]), weighed(off[j], up[j])), g->x[j]);
    for (int j = 0; j < 4 && slopes; j++) g->slope[j] = v_sub(v_mul(off[j], share[j]), v_mul(on[j], rest[j]));
}

static INLINE vec clipped(vec x, vec lowest, vec highest) { return v_max(lowest, v_min(highest, x)); }

static INLINE void binary_probabilities(element_group *g, const element_options *o, bool slopes) {
    const vec zero = v_set1(0), one = v_set1(1), nan = v_set1(NAN);
    vec x[4], on[4], off[4], yes[4], no[4];
    coefficients(g, o, on, off);
    for (int j = 0; j < 4; j++) /* -0 becomes 0 */
        x[j] = o->clips ? clipped(g->x[j], o->lowest, o->highest) : v_add(g->x[j], zero);
    for (int j = 0; j < 4; j++) yes[j] = x[j];
    log_of_many(yes, 4);
    for (int j = 0; j < 4; j++) no[j] = x[j];
    log1m_of_many(no, 4);
    for (int j = 0; j < 4; j++) {
        no[j] = v_select(v_gt(one, x[j]), no[j], v_select(v_eq(x[j], one), v_set1(-INFINITY), nan));
        vec value = v_sub(zero, v_add(weighed(on[j], yes[j]), weighed(off[j], no[j])));
        g->value[j] = v_select(v_eq(v_min(one, v_max(zero, x[j])), x[j]), value, nan); /* no probability, no loss */
        if (!slopes) continue;
        vec slope = v_sub(weighed(off[j], v_div(one, v_sub(one, x[j]))), weighed(on[j], v_div(one, x[j])));
        slope = v_select(v_eq(x[j], g->x[j]), slope, v_select(v_eq(g->x[j], g->x[j]), zero, nan));
        g->slope[j] = v_select(v_eq(g->value[j], g->value[j]), slope, nan);
    }
}

/* Whether all targets are 0 or 1. */
static INLINE bool are_decided(const vec *target) {
    const vec zero = v_set1(0), one = v_set1(1);
    ivec other[4];
    for (int j = 0; j < 4; j++) other[j] = v_bits(v_select(v_eq(target[j], one), zero, target[j]));
    const vec any = v_from_bits(i_or(i_or(other[0], other[1]), i_or(other[2], other[3])));
    return !v_any(v_gt(v_select(v_eq(any, zero), zero, one), zero));
}

/* Probabilities and targets alone, from 0 to 1: what is infinite where its coefficient is not 0 makes the loss so, or NaN.
 * Of targets that are 0 or 1 one logarithm is enough. */
static INLINE void plain_probabilities(element_group *g, bool slopes) {
    const vec zero = v_set1(0), one = v_set1(1);
    vec off[4];
    if (are_decided(g->target)) {
        mask is_one[4];
        for (int j = 0; j < 4; j++) g->value[j] = g->x[j];
        for (int j = 0; j < 4; j++) is_one[j] = v_eq(g->target[j], one);
        log_of_either(g->value, is_one, 4);
        for (int j = 0; j < 4; j++) g->value[j] = v_sub(zero, g->value[j]);
    } else {
        vec yes[4], no[4];
        for (int j = 0; j < 4; j++) yes[j] = no[j] = g->x[j];
        for (int half = 0; half < 4; half += 2) { /* two logarithms of four vectors do not fit the registers */
            log_of_many(yes + half, 2);
            log1m_of_many(no + half, 2);
            for (int j = half; j < half + 2; j++) off[j] = v_sub(one, g->target[j]);
            for (int j = half; j < half + 2; j++)
                g->value[j] = v_sub(zero, v_add(weighed(g->target[j], yes[j]), weighed(off[j], no[j])));
        }
    }
    for (int j = 0; j < 4 && slopes; j++) off[j] = v_sub(one, g->target[j]);
    for (int j = 0; j < 4 && slopes; j++)
        g->slope[j] =
            v_sub(weighed(off[j], v_div(one, v_sub(one, g->x[j]))), weighed(g->target[j], v_div(one, g->x[j])));
}

static INLINE void squares(element_group *g, bool slopes) {
    for (int j = 0; j < 4; j++) {
        vec d = v_sub(g->x[j], g->target[j]);
        g->value[j] = v_mul(d, d);
        if (slopes) g->slope[j] = v_add(d, d);
    }
}

/* What is made of an element: losses of their own loops, and whatever else there is. */
typedef enum element_form { PLAIN_LOGITS, PLAIN_PROBABILITIES, PLAIN_SQUARES, ANY_FORM } element_form;

static INLINE void element_losses(const fastce_problem *q, element_group *g, const element_options *o,
                                  element_form form, bool slopes) {
    if (form == PLAIN_LOGITS)
        plain_logits(g, slopes, false);
    else if (form == PLAIN_PROBABILITIES)
        plain_probabilities(g, slopes);
    else if (form == PLAIN_SQUARES || q->kind == FASTCE_SQUARES)
        squares(g, slopes);
    else if (q->kind == FASTCE_BINARY_PROBABILITIES)
        binary_probabilities(g, o, slopes);
    else if (o->plain)
        plain_logits(g, slopes, true);
    else
        binary_logits(g, o, slopes);
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

/* Gathers in seen, 0 before, the bits of targets t and of 1 - t: of targets from 0 to 1 together they are those of a number
 * below 2. Of others, and of -0, they are not. */
static INLINE void see_elements(const vec *target, ivec *seen) {
    for (int j = 0; j < 4; j++) seen[j] = i_or(seen[j], i_or(v_bits(target[j]), v_bits(v_sub(v_set1(1), target[j]))));
}

static INLINE bool may_be_bad(const ivec *seen) {
    const vec all = v_from_bits(i_or(i_or(seen[0], seen[1]), i_or(seen[2], seen[3])));
    const vec bad = v_select(v_gt(v_set1(2), all), v_set1(0), v_set1(1)); /* also of NaN */
    const vec sign = v_from_bits(i_or(v_bits(v_set1(1)), v_bits(all)));   /* below -1, or NaN, where it is set */
    return v_any(v_gt(bad, v_set1(0))) || v_any(v_gt(v_set1(0), sign));
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
    ivec seen[4] = {i_set1(0), i_set1(0), i_set1(0), i_set1(0)};
    if (t->any_target) return -1;
    const real *target = get_elements(&t->problem->target, dense, step, NULL, count, room);
    for (int64_t i = 0; i < count; i += GROUP) {
        vec x[4];
        for (int j = 0; j < 4; j++) x[j] = v_load(target + i + j * LANES);
        see_elements(x, seen);
    }
    return may_be_bad(seen) ? first_bad_element(t, target, count) : -1;
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

/* A visit: elements where they are loaded from, and what becomes of them. */
typedef struct element_visit {
    const real *x, *target;
    bool x_in_place, target_in_place;
    real *value, *slope;
    const double *weight, *scale; /* NULL where there is none, and where all are the call's */
} element_visit;

/* What a visit leaves beside: the sum of the losses of whole groups, and whether targets, or probabilities, must be looked
 * at closely. */
typedef struct element_sums {
    wide loss;
    bool may_be_bad, x_may_be_bad;
} element_sums;

static INLINE element_sums compute_as(const task *t, const rows *r, const element_visit *v, element_form form,
                                      bool slopes) {
    const fastce_problem *q = t->problem;
    const ptrdiff_t bytes = GROUP * (ptrdiff_t)sizeof(real), x_ahead = v->x_in_place ? AHEAD_BYTES : 0,
                    target_ahead = v->target_in_place ? AHEAD_BYTES : 0;
    const bool any = form == ANY_FORM, checks_x = form == PLAIN_PROBABILITIES,
               checks = form == PLAIN_LOGITS || checks_x || (any && !t->any_target);
    const element_options options = any ? options_of(q) : (element_options){.plain = true};
    const vec positive = v_set1((real)q->positive), even_scale = v_set1((real)q->grad_scale);
    const real *x = v->x, *target = v->target;
    real *value = v->value, *slope = v->slope;
    const int64_t count = r->count;
    const ivec none = i_set1(0);
    ivec seen[4] = {none, none, none, none}, seen_x[4] = {none, none, none, none};
    wide sums = w_zero();
    for (int64_t i = 0; i < count; i += GROUP) {
        element_group g;
        for (int j = 0; j < 4; j++) {
            const int64_t at = i + j * LANES;
            g.x[j] = v_load(x + at);
            g.target[j] = v_load(target + at);
            if (any)
                g.positive[j] = q->positive_weight.data ? v_mul(positive, v_from_doubles(r->positive + at)) : positive;
        }
        prefetch((const char *)(x + i) + x_ahead, bytes);
        prefetch((const char *)(target + i) + target_ahead, bytes);
        if (checks) see_elements(g.target, seen);
        if (checks_x) see_elements(g.x, seen_x);
        element_losses(q, &g, &options, form, slopes);
        for (int j = 0; j < 4; j++) {
            const int64_t at = i + j * LANES;
            if (any && v->weight) g.value[j] = weighed(v_from_doubles(v->weight + at), g.value[j]);
            v_store(value + at, g.value[j]);
            sums = w_add(sums, g.value[j]);
            if (!slopes) continue;
            const vec factor = v->scale ? v_from_doubles(v->scale + at) : even_scale;
            v_store(slope + at, any && v->weight ? weighed(factor, g.slope[j]) : v_mul(factor, g.slope[j]));
        }
    }
    return (element_sums){sums, checks && may_be_bad(seen), checks_x && may_be_bad(seen_x)};
}

/* Functions of their own: the loops need all registers. */
ALONE element_sums compute_logits(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_LOGITS, false);
}
ALONE element_sums compute_logits_and_slopes(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_LOGITS, true);
}
ALONE element_sums compute_probabilities(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_PROBABILITIES, false);
}
ALONE element_sums compute_probabilities_and_slopes(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_PROBABILITIES, true);
}
ALONE element_sums compute_squares(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_SQUARES, false);
}
ALONE element_sums compute_squares_and_slopes(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, PLAIN_SQUARES, true);
}
ALONE element_sums compute_any(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, ANY_FORM, false);
}
ALONE element_sums compute_any_and_slopes(const task *t, const rows *r, const element_visit *v) {
    return compute_as(t, r, v, ANY_FORM, true);
}

/* Plain logits are computed as if none were infinite, plain probabilities as if all were some, and once more where the sum
 * is not finite, or they are not. */
static element_sums compute_elements(const task *t, const rows *r, const element_visit *v, bool slopes) {
    const fastce_problem *q = t->problem;
    if (!v->weight && q->kind == FASTCE_BINARY_LOGITS && is_plain(q)) {
        const element_sums s = slopes ? compute_logits_and_slopes(t, r, v) : compute_logits(t, r, v);
        const double total = w_total(s.loss);
        if (total - total == 0) return s;
    } else if (!v->weight && q->kind == FASTCE_BINARY_PROBABILITIES && is_plain(q) && q->clip == 0) {
        const element_sums s = slopes ? compute_probabilities_and_slopes(t, r, v) : compute_probabilities(t, r, v);
        const double total = w_total(s.loss);
        if (total - total == 0 && !s.x_may_be_bad) return s;
    } else if (!v->weight && q->kind == FASTCE_SQUARES) {
        return slopes ? compute_squares_and_slopes(t, r, v) : compute_squares(t, r, v);
    }
    return slopes ? compute_any_and_slopes(t, r, v) : compute_any(t, r, v);
}

static int64_t visit_elements(const task *t, rows *r, chunk_state *state, char *scratch) {
    const fastce_problem *q = t->problem;
    const bool slopes = q->out.data != NULL, weighted = q->sample_weight.data || q->factor.data;
    element_scratch *w = (element_scratch *)scratch;
    element_visit v = {
        .x = elements_of(&q->logits, r->logits, r->logits_step, r, w->x),
        .target = elements_of(&q->target, r->dense, r->dense_step, r, w->target),
        .value = w->value,
        .slope = w->slopes[state->filling] + MOST_OF_A_LINE,
        .weight = !weighted        ? NULL
                  : q->factor.data ? r->label_mass
                                   : r->weight,
        .scale = q->grad_output.data ? r->grad_scale : NULL,
    };
    v.x_in_place = v.x != w->x;
    v.target_in_place = v.target != w->target;
    /* One factor of the slopes, since of two the first may overflow. */
    double scaled[VISIT_ROWS];
    if (slopes && weighted) {
        for (int64_t i = 0; i < r->count; i++) scaled[i] = r->grad_scale[i] * v.weight[i];
        for (int64_t i = r->count; i % GROUP != 0; i++) scaled[i] = 0;
        v.scale = scaled;
    }
    const element_sums sums = compute_elements(t, r, &v, slopes);
    if (sums.may_be_bad) {
        const int64_t bad = first_bad_element(t, v.target, r->count);
        if (bad >= 0) return bad;
    }
    if (r->count % GROUP == 0) {
        lane_sums total;
        w_store(sums.loss, total.sum, total.lost);
        add_losses(r, w->value, &total, state);
    } else {
        add_values(r, w->value, state);
    }
    write_values(r, w->value);
    if (slopes) write_slopes(t, r, v.slope, state);
    return -1;
}
