/* From what a visit of the logits leaves for each row to its loss and its gradient's factors: the formula of the library.
 *     loss = Q log1p(r) + D + z lse^2, lse = m + log1p(r), D the sum of q_k (m - x_k)
 *     gradient = scale ((Q + 2 z lse) p_k - q_k) = factor exp(x_k - m) - q_factor q_k / s */

/* Rows of a visit. max is where the exponentials are shifted to: the maximum, or the label's logit. */
typedef struct results {
    double mass[VISIT_ROWS], unit_mass[VISIT_ROWS]; /* Q, and Q / s as it came from the visit */
    real max[VISIT_ROWS], rest[VISIT_ROWS], distance[VISIT_ROWS], z[VISIT_ROWS];
    real log_total[VISIT_ROWS]; /* log1p(rest) */
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

static void finish(const task *t, const rows *r, results *s, partial *sums) {
    const fastce_problem *q = t->problem;
    int64_t padded = (r->count + LANES - 1) / LANES * LANES;
    real mass[VISIT_ROWS];
    for (int64_t i = r->count; i < padded; i++)
        s->max[i] = s->rest[i] = s->distance[i] = s->z[i] = 0, s->mass[i] = 0;
    for (int64_t i = 0; i < padded; i++) mass[i] = (real)s->mass[i];
    for (int64_t i = 0; i < padded; i += LANES) {
        vec log_total = v_log1p(v_load(&s->rest[i]));
        v_store(&s->log_total[i], log_total);
        vec lse = v_add(v_load(&s->max[i]), log_total), value = lse;
        if (q->target_kind != FASTCE_NO_TARGET)
            value = v_fma(v_load(&mass[i]), log_total, v_load(&s->distance[i]));
        if (q->z_loss != 0) value = v_fma(v_load(&s->z[i]), v_mul(lse, lse), value);
        v_store(&s->value[i], value);
    }
    for (int64_t i = 0; i < r->count; i++)
        if (r->weight[i] == 0) s->value[i] = 0;
    if (q->output == FASTCE_LSE)
        for (int64_t i = 0; i < r->count; i++)
            if (s->value[i] != s->value[i])
                s->value[i] = lse_of_special(&q->logits, r->logits + r->index[i] * r->logits_step, q->n_classes);

    enum { CHAINS = 8 };
    double sum[CHAINS] = {0}, lost[CHAINS] = {0};
    int64_t i = 0;
    for (; i + CHAINS <= r->count; i += CHAINS)
        for (int j = 0; j < CHAINS; j++) add_exactly(&sum[j], &lost[j], (double)s->value[i + j]);
    for (int j = 0; i + j < r->count; j++) add_exactly(&sum[j], &lost[j], (double)s->value[i + j]);
    for (int j = 0; j < CHAINS; j++) {
        add_exactly(&sums->loss, &sums->loss_lost, sum[j]);
        sums->loss_lost += lost[j];
    }
}

static void write_values(const rows *r, const results *s) {
    if (!r->values) return;
    if (r->consecutive) {
        memcpy(r->values + r->index[0] * (ptrdiff_t)sizeof(real), s->value, (size_t)r->count * sizeof(real));
    } else {
        for (int64_t i = 0; i < r->count; i++)
            memcpy(r->values + r->index[i] * (ptrdiff_t)sizeof(real), &s->value[i], sizeof(real));
    }
}

/* Gradient of a row: factor exp(x_k - max) + q_factor q_k / s, but where x_k is the maximum the same without cancellation,
 * (Q - q_k) p - q_k (1 - p) with 1 - p = r / (1 + r): (total - q_k / s) share + q_k / s lost + pull. */
typedef struct gradient {
    real factor, q_factor;
    real total, share, lost, pull;
    real at_label;
} gradient;

/* label_logit and label_exp = exp(label_logit - max) are read where the row has a label. */
static INLINE gradient gradient_of_row(const task *t, const rows *r, const results *s, int64_t i, real label_logit,
                                       real label_exp) {
    const fastce_problem *q = t->problem;
    if (q->output == FASTCE_SOFTMAX) return (gradient){.factor = 1 / (1 + s->rest[i])};
    double rest = (double)s->rest[i], weight = r->weight[i], scale = r->grad_scale[i], mass = s->mass[i], z_part = 0;
    double top = 1 / (1 + rest);
    if (q->z_loss != 0)
        z_part = 2 * (double)s->z[i] * ((double)s->max[i] + (double)first_lane(v_log1p(v_set1(s->rest[i]))));
    gradient g = {
        .factor = (real)(scale * (mass + z_part) * top),
        .q_factor = (real)(-scale * weight),
        .total = (real)s->unit_mass[i],
        .share = (real)(scale * weight * top),
        .lost = (real)(-scale * weight * (rest * top)),
        .pull = (real)(scale * z_part * top),
    };
    if (q->target_kind == FASTCE_LABELS) {
        double on_label = r->label_mass[i];
        if (q->class_vector) on_label += weight * q->class_vector[r->label[i]];
        if (label_logit == s->max[i])
            g.at_label = (real)(scale * ((mass - on_label + z_part) * top - on_label * (rest * top)));
        else
            g.at_label = (real)(scale * ((mass + z_part) * ((double)label_exp * top) - on_label));
    }
    return g;
}
