/* What the library should return, in long double straight from the definition, and how far from it a result may be: the
 * published accuracy for logits whose differences are exact in float32. Nothing here comes from the library. */
#ifndef ORACLE_H
#define ORACLE_H

#include "arrays.h"

#include <float.h>

/* exp(-d). Logits lie on a grid of 1/64, or of 1/128 by a temperature, so few values recur; long double is slow where it is emulated. */
static inline long double exp_of_minus(long double d) {
    enum { KNOWN = 128 * 128 };
    static long double known[KNOWN];
    long double scaled = d * 128;
    int index = scaled < KNOWN ? (int)scaled : -1;
    if (index < 0 || (long double)index != scaled) return expl(-d);
    if (known[index] == 0) known[index] = expl(-d);
    return known[index];
}

typedef struct answer_row {
    long double max, log_total, lse, mass, z, loss, scale; /* scale: of the gradient */
    long double weight;                                    /* what the row adds to totals.weight */
    double softcap, gamma;
    long double below;                       /* 1 - p of the maximum */
    bool finite, one_class, ignored, on_top; /* on_top: nothing of q is on classes below the maximum */
} answer_row;

typedef struct answer {
    answer_row *rows;
    long double *p, *q, *grad; /* grad before its scale and slope; of ignored rows 0 */
    long double *slope;        /* of what stands for the logits */
} answer;

static inline void free_answer(answer *a) {
    free(a->rows);
    free(a->p);
    free(a->q);
    free(a->grad);
    free(a->slope);
}

static inline void solve_target(const inputs *in, int64_t i, answer_row *row, long double *q) {
    int64_t classes = in->n_classes, label = in->labels ? in->labels[i] : -1;
    long double s = in->sample_weight ? in->sample_weight[i] : 1;
    if (in->target_kind == FASTCE_NO_TARGET) return;
    row->ignored = s == 0 || (in->labels && in->has_ignore_index && label == in->ignore_index);
    row->scale = (long double)in->grad_scale * (in->grad_output ? in->grad_output[i] : 1);
    if (row->ignored) return;
    row->z = s * in->z_loss;
    row->weight = s * (in->labels && in->class_weight ? in->class_weight[label] : 1);
    int positive = 0;
    for (int64_t k = 0; k < classes; k++) {
        long double target = in->labels ? k == label : in->dense[i * classes + k];
        long double weight = in->class_weight ? in->class_weight[k] : 1;
        q[k] = s * (in->target_scale * weight * target + (in->class_vector ? in->class_vector[k] : 0));
        row->mass += q[k];
        positive += q[k] > 0;
    }
    row->one_class = positive <= 1 && row->z == 0;
}

/* What stands for a logit, and its derivative. */
static inline long double transform(const inputs *in, long double x, long double *slope) {
    long double t = in->temperature > 0 ? in->temperature : 1, c = in->softcap, sech;
    *slope = 1 / t;
    if (c == 0) return x / t;
    sech = 1 / coshl(x / t / c);
    *slope *= sech * sech;
    return c * tanhl(x / t / c);
}

/* A focal loss: with u = 1 - p the cost c of the label becomes u^gamma c. */
static inline void solve_focus(const inputs *in, int64_t i, const long double *x, answer_row *row) {
    long double cost = row->log_total + (row->max - x[in->labels[i]]), p = expl(-cost), gamma = row->gamma;
    long double u = row->max == x[in->labels[i]] ? row->below : 1 - p, power = powl(u, gamma);
    row->loss *= power;
    row->scale *= u > 0 ? power * (1 + gamma * p * cost / u) : 0;
}

static inline void solve_row(const inputs *in, int64_t i, answer_row *row, long double *x, long double *p,
                             long double *q, long double *grad, long double *slope) {
    int64_t classes = in->n_classes, top = 0;
    bool nan = false;
    row->softcap = in->softcap;
    row->gamma = in->gamma;
    for (int64_t k = 0; k < classes; k++) x[k] = transform(in, in->x[i * classes + k], &slope[k]);
    solve_target(in, i, row, q);
    for (int64_t k = 0; k < classes; k++) {
        nan = nan || x[k] != x[k];
        if (x[k] > x[top] || x[top] != x[top]) top = k;
    }
    row->max = nan ? NAN : x[top];
    row->finite = row->max - row->max == 0;
    long double rest = 0, distance = 0;
    for (int64_t k = 0; k < classes && row->finite; k++) {
        p[k] = exp_of_minus(row->max - x[k]);
        if (k != top) rest += p[k];
        if (q[k] > 0) distance += q[k] * (row->max - x[k]);
    }
    row->below = rest / (1 + rest);
    row->on_top = distance == 0;
    row->log_total = row->finite ? log1pl(rest) : NAN;
    row->lse = row->finite ? row->max + row->log_total : row->max;
    long double lse = row->finite ? row->lse : NAN;
    row->loss = row->ignored ? 0 : row->mass * row->log_total + distance + (row->z > 0 ? row->z * lse * lse : 0);
    if (row->gamma > 0 && !row->ignored) solve_focus(in, i, x, row);
    long double pull = row->z > 0 ? 2 * row->z * lse : 0;
    for (int64_t k = 0; k < classes; k++) {
        p[k] = row->finite ? p[k] / (1 + rest) : NAN;
        /* Where all of q lies on one class, (1 - p) is summed from the others. */
        bool whole = row->finite && row->one_class && q[k] > 0 && k == top;
        if (!row->ignored) grad[k] = whole ? -row->mass * (rest / (1 + rest)) : (row->mass + pull) * p[k] - q[k];
    }
}

static inline answer solve(const inputs *in) {
    int64_t n = in->n_rows, classes = in->n_classes;
    answer a = {
        .rows = allocate(n, sizeof(answer_row)),
        .p = allocate(n * classes, sizeof(long double)),
        .q = allocate(n * classes, sizeof(long double)),
        .grad = allocate(n * classes, sizeof(long double)),
        .slope = allocate(n * classes, sizeof(long double)),
    };
    long double *x = allocate(classes, sizeof(long double));
    for (int64_t i = 0, k = 0; i < n; i++, k += classes)
        solve_row(in, i, &a.rows[i], x, a.p + k, a.q + k, a.grad + k, a.slope + k);
    free(x);
    return a;
}

/* --- how far a result may be ---------------------------------------------------------------------------------------- */

enum { LOSS_ULPS = 4, LSE_ULPS = 4, GRADIENT_ULPS = 8, PROBABILITY_ULPS = 8, LOG_PROBABILITY_ULPS = 4 };
enum { SOFTCAP_ULPS = 5, SOFTCAP_SLOPE_ULPS = 8 };

typedef struct format {
    int bits, lowest; /* of the mantissa; the exponent of the smallest normal number */
} format;

static inline format format_of(fastce_dtype dtype) {
    static const format formats[] = {{10, -14}, {7, -126}, {23, -126}, {52, -1022}};
    return formats[dtype];
}

static inline format arithmetic_of(fastce_dtype dtype) { return format_of(dtype == FASTCE_F64 ? dtype : FASTCE_F32); }

/* The distance of neighbouring numbers of the format at x; that of its subnormal numbers near 0. */
static inline double ulp(double x, format f) {
    int exponent = f.lowest;
    if (x != 0 && fabs(x) <= DBL_MAX) {
        frexp(x, &exponent);
        exponent = exponent - 1 > f.lowest ? exponent - 1 : f.lowest;
    }
    return ldexp(1, exponent - f.bits);
}

static inline double lse_bound(const answer_row *row, format f) {
    if (!row->finite) return 0;
    return LSE_ULPS * ulp(fmax(fabs((double)row->max), (double)row->log_total), f);
}

/* By how much the difference of two logits with a softcap may be off: either is, and it is no longer exact. */
static inline double capped_difference_bound(const answer_row *row, format f) {
    return row->softcap == 0 ? 0 : (2 * SOFTCAP_ULPS + 1) * ulp(row->softcap, f);
}

/* What is relative in a focal loss: an error of c moves u^gamma, and p c / u, by as much, each. */
static inline double focus_bound(const answer_row *row, format f) {
    return row->gamma == 0 ? 0 : (2 + row->gamma) * LOSS_ULPS * ldexp(1, -f.bits);
}

static inline double loss_bound(const answer_row *row, format f) {
    if (row->ignored) return 0;
    double off = lse_bound(row, f), lse = row->finite ? fabs((double)row->lse) : 0, loss = fabs((double)row->loss);
    double moved = row->finite ? (row->on_top ? (double)row->below : 1) * capped_difference_bound(row, f) : 0;
    return LOSS_ULPS * ulp(loss, f) + (double)row->mass * moved + (loss <= DBL_MAX ? loss * focus_bound(row, f) : 0) +
           (double)row->z * (2 * lse * off + off * off);
}

/* Of a gradient before its scale; grad is before its slope, too. */
static inline double grad_bound(const answer_row *row, long double p, long double q, long double grad,
                                long double slope, format f) {
    if (row->ignored || !row->finite) return 0;
    double size = fabs((double)grad), steepness = (double)slope, softmax = (double)(row->mass * p);
    double bound = GRADIENT_ULPS * ulp(row->one_class ? size : fmax(softmax, (double)q), f);
    bound += 2 * softmax * capped_difference_bound(row, f) + 2 * size * focus_bound(row, f);
    if (row->z != 0) {
        double pull = 2 * (double)row->z * (double)p;
        bound += pull * lse_bound(row, f) + GRADIENT_ULPS * ulp(pull * fabs((double)row->lse), f);
    }
    if (row->softcap == 0) return bound * steepness;
    /* The rounding of u, up to 5 here, moves the derivative of c tanh(u) by 3 u units more. */
    return steepness * (bound + (bound + size) * (SOFTCAP_SLOPE_ULPS + 3 * 5) * ldexp(1, -f.bits));
}

/* got has been rounded to the format `stored`, what it is the rounding of is within bound of want. worst keeps the
 * largest share of a bound that was used, of results that were not rounded to halves. */
static inline bool within(double got, long double want, double bound, format stored, double *worst) {
    double near = (double)want;
    if (near != near) return got != got;
    if (fabs(near) > DBL_MAX) return got == near;
    if (near == 0 && bound == 0) return got == 0;
    double allowed = bound + ulp(fabs(near) + bound, stored) / 2;
    /* Long double is slow where it is emulated: only bounds as narrow as double need it. */
    bool narrow = allowed < 0x1p-40 * fabs(near);
    double off = narrow ? (double)fabsl((long double)got - want) : fabs(got - near);
    if (worst && stored.bits >= 23 && off / allowed > *worst) *worst = off / allowed;
    return off <= allowed;
}

#endif
