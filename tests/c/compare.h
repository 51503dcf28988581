/* Runs a problem one way and checks every output against the oracle. */
#ifndef COMPARE_H
#define COMPARE_H

#include "oracle.h"

/* The largest share of its bound that any result used. */
typedef struct shares {
    double loss, grad, lse, softmax, log_softmax;
} shares;

static shares worst;

static inline const char *describe(const char *what, const char *name, const inputs *in, const way *w) {
    static char text[200];
    snprintf(text, sizeof text, "%s of %s, %s %s %s%s, %lld classes", what, name, w->isa, dtype_name(w->dtype),
             w->logits.order, w->in_place ? " in place" : "", (long long)in->n_classes);
    return text;
}

static inline void check_losses(const inputs *in, const answer *a, const outputs *o, const way *w, const char *name) {
    format f = arithmetic_of(w->dtype);
    long double total = 0, weight = 0;
    double total_bound = 0;
    int64_t off = -1;
    for (int64_t i = 0; i < in->n_rows; i++) {
        const answer_row *row = &a->rows[i];
        double bound = loss_bound(row, f);
        if (!within(o->values[i], row->loss, bound, f, &worst.loss)) off = i;
        total += row->loss;
        total_bound += bound + ulp((double)row->loss, f) / 2;
        weight += row->weight;
    }
    check(off < 0, "%s: row %lld is %.17g, not %.17Lg", describe("loss", name, in, w), (long long)off,
          off < 0 ? 0 : o->values[off], off < 0 ? 0 : a->rows[off].loss);
    check(within(o->totals.loss, total, total_bound, format_of(FASTCE_F64), NULL), "%s: %.17g, not %.17Lg",
          describe("sum of losses", name, in, w), o->totals.loss, total);
    check((long double)o->totals.weight == weight, "%s: %.17g, not %.17Lg", describe("weight", name, in, w),
          o->totals.weight, weight);
}

static inline void check_gradient(const inputs *in, const answer *a, const outputs *o, const way *w, const char *name) {
    format f = arithmetic_of(w->dtype), stored = format_of(w->out_dtype);
    int64_t off = -1, classes = in->n_classes;
    long double off_want = 0;
    for (int64_t i = 0; i < in->n_rows * classes; i++) {
        const answer_row *row = &a->rows[i / classes];
        double bound = grad_bound(row, a->p[i], a->q[i], a->grad[i], a->slope[i], f) * fabs((double)row->scale);
        long double want = a->grad[i] * a->slope[i] * row->scale;
        if (!within(o->out[i], want, bound, stored, &worst.grad)) off = i, off_want = want;
    }
    check(off < 0, "%s: class %lld of row %lld is %.17g, not %.17Lg", describe("gradient", name, in, w),
          (long long)(off % classes), (long long)(off / classes), off < 0 ? 0 : o->out[off], off_want);
}

/* Loss and gradient. */
static inline void check_target(const inputs *in, const answer *a, const way *w, const char *name) {
    outputs with = run(in, FASTCE_GRAD, w), alone = run(in, FASTCE_LOSS, w);
    check(with.status == FASTCE_OK && alone.status == FASTCE_OK, "%s: %d and %d", describe("status", name, in, w),
          (int)with.status, (int)alone.status);
    check(with.totals.bad_row == -1 && alone.totals.bad_row == -1, "%s", describe("bad row", name, in, w));
    check(with.stayed_inside && alone.stayed_inside, "%s", describe("bytes outside of out", name, in, w));
    check_losses(in, a, &with, w, name);
    check_gradient(in, a, &with, w, name);
    check(all_same(with.values, alone.values, in->n_rows), "%s",
          describe("losses with and without the gradient", name, in, w));
    check(same(with.totals.loss, alone.totals.loss) && same(with.totals.weight, alone.totals.weight), "%s",
          describe("totals with and without the gradient", name, in, w));
    free_outputs(&with);
    free_outputs(&alone);
}

/* What has no target: log of the sum of exponentials, softmax, which is scaled as a gradient is, log_softmax. */
static inline void check_functions(const inputs *in, const answer *a, const way *w, const char *name) {
    outputs lse = run(in, FASTCE_LSE, w), p = run(in, FASTCE_SOFTMAX, w), log_p = run(in, FASTCE_LOG_SOFTMAX, w);
    format f = arithmetic_of(w->dtype), stored = format_of(w->out_dtype);
    int64_t classes = in->n_classes;
    bool lse_right = true, p_right = true, log_right = true;
    for (int64_t i = 0; i < in->n_rows; i++)
        lse_right &= within(lse.values[i], a->rows[i].lse, lse_bound(&a->rows[i], f), f, &worst.lse);
    for (int64_t i = 0; i < in->n_rows * classes; i++) {
        const answer_row *row = &a->rows[i / classes];
        long double want = row->finite ? (in->x[i] - row->max) - row->log_total : (long double)NAN;
        const long double share = row->scale * a->p[i];
        double p_bound = PROBABILITY_ULPS * ulp((double)share, f);
        double log_bound = LOG_PROBABILITY_ULPS * ulp((double)want, f);
        p_right &= within(p.out[i], share, p_bound, stored, &worst.softmax);
        log_right &= within(log_p.out[i], want, log_bound, stored, &worst.log_softmax);
    }
    check(lse.status == FASTCE_OK && p.status == FASTCE_OK && log_p.status == FASTCE_OK, "%s",
          describe("status", name, in, w));
    check(lse.stayed_inside && p.stayed_inside && log_p.stayed_inside, "%s",
          describe("bytes outside of out", name, in, w));
    check(lse_right, "%s", describe("lse", name, in, w));
    check(p_right, "%s", describe("softmax", name, in, w));
    check(log_right, "%s", describe("log_softmax", name, in, w));
    free_outputs(&lse);
    free_outputs(&p);
    free_outputs(&log_p);
}

#endif
