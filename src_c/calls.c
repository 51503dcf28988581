/* The functions for matrices: each checks its options, writes the record of one call, and carries that out. What options
 * become is what the Python front end makes of them, so that the results have the same bits. */
#include "convert.h"
#include "fastce_functions.h"

#include <math.h>
#include <stdlib.h>

/* A call: the record and what it points to. */
typedef struct call {
    fastce_problem problem;
    int64_t shape[2];
    ptrdiff_t logits[2], target[2], out[2], sample_weight[2], grad_output[2], each_class[2];
    double *class_vector;
    fastce_options options;
} call;

/* A matrix as an array of rows; of elements where each is a row of one class. */
static fastce_array array_of(const fastce_matrix *m, ptrdiff_t strides[2]) {
    strides[0] = m->row_stride;
    strides[1] = m->class_stride;
    return (fastce_array){.data = m->data, .dtype = m->dtype, .class_stride = m->class_stride, .strides = strides};
}

static fastce_array array_of_column(const fastce_column *column, ptrdiff_t strides[2]) {
    strides[0] = column->stride;
    strides[1] = 0;
    return (fastce_array){.data = column->data, .dtype = column->dtype, .strides = strides};
}

static fastce_array array_of_classes(const double *data, call *c) {
    c->each_class[0] = 0;
    c->each_class[1] = sizeof *data;
    return (fastce_array){.data = (void *)(uintptr_t)data, .dtype = FASTCE_F64, .strides = c->each_class};
}

static bool is_weight(double x) { return x >= 0 && isfinite(x); }

static fastce_status check_class_numbers(const double *x, int64_t n) {
    if ((uintptr_t)x % sizeof *x) return FASTCE_BAD_POINTER;
    for (int64_t k = 0; x && k < n; k++)
        if (!is_weight(x[k])) return FASTCE_BAD_ARGUMENT;
    return FASTCE_OK;
}

static fastce_status check_options(const fastce_options *o, fastce_target target_kind, fastce_kind kind) {
    bool binary = kind == FASTCE_BINARY_LOGITS, labels = target_kind == FASTCE_LABELS;
    if ((unsigned)o->reduction >= FASTCE_REDUCTION_COUNT) return FASTCE_BAD_ARGUMENT;
    if (!is_weight(o->denominator) || (o->denominator > 0 && o->reduction != FASTCE_MEAN)) return FASTCE_BAD_ARGUMENT;
    if (!(o->label_smoothing >= 0 && o->label_smoothing <= 1)) return FASTCE_BAD_ARGUMENT;
    if (!is_weight(o->z_loss) || (binary && o->z_loss > 0)) return FASTCE_BAD_ARGUMENT;
    if ((o->pos_weight && !binary) || (o->has_ignore_index && !labels)) return FASTCE_BAD_ARGUMENT;
    return FASTCE_OK;
}

static bool same_shape(const fastce_matrix *a, const fastce_matrix *b) {
    return a->n_rows == b->n_rows && a->n_classes == b->n_classes;
}

static fastce_status begin(call *c, const fastce_matrix *logits, fastce_output output) {
    if (logits->n_rows < 0 || logits->n_classes < 0 || (logits->n_classes == 0 && logits->n_rows > 0))
        return FASTCE_BAD_SIZE;
    c->class_vector = NULL;
    c->shape[0] = logits->n_rows;
    c->shape[1] = logits->n_classes;
    c->problem = fastce_new_problem();
    c->problem.output = output;
    c->problem.n_axes = 1;
    c->problem.shape = c->shape;
    c->problem.n_classes = logits->n_classes;
    c->problem.logits = array_of(logits, c->logits);
    return FASTCE_OK;
}

/* Smoothing spreads its share over all classes, weighted as they are. */
static fastce_status spread(call *c) {
    fastce_problem *q = &c->problem;
    double share = c->options.label_smoothing;
    q->target_scale = 1 - share;
    if (share == 0) return FASTCE_OK;
    bool binary = q->kind == FASTCE_BINARY_LOGITS;
    int64_t n = q->n_classes;
    if ((uint64_t)n > SIZE_MAX / sizeof(double)) return FASTCE_NO_MEMORY;
    c->class_vector = malloc((size_t)n * sizeof(double));
    if (!c->class_vector) return FASTCE_NO_MEMORY;
    for (int64_t k = 0; k < n; k++) {
        c->class_vector[k] = share / (binary ? 2.0 : (double)n);
        if (q->class_weight) c->class_vector[k] *= q->class_weight[k];
    }
    q->class_vector = c->class_vector;
    return FASTCE_OK;
}

static fastce_status add_options(call *c, const fastce_options *options) {
    static const fastce_options none;
    fastce_problem *q = &c->problem;
    c->options = options ? *options : none;
    const fastce_options *o = &c->options;
    fastce_status status = check_options(o, q->target_kind, q->kind);
    if (status == FASTCE_OK) status = check_class_numbers(o->class_weight, c->shape[1]);
    if (status == FASTCE_OK) status = check_class_numbers(o->pos_weight, c->shape[1]);
    if (status != FASTCE_OK) return status;
    if (q->kind == FASTCE_BINARY_LOGITS) {
        if (o->class_weight) q->factor = array_of_classes(o->class_weight, c);
        if (o->pos_weight) q->positive_weight = array_of_classes(o->pos_weight, c);
    } else {
        q->class_weight = o->class_weight;
    }
    q->z_loss = o->z_loss;
    q->has_ignore_index = o->has_ignore_index != 0;
    q->ignore_index = o->ignore_index;
    q->sample_weight = array_of_column(&o->sample_weight, c->sample_weight);
    q->row_values = o->losses;
    if (q->output == FASTCE_GRAD) q->grad_output = array_of_column(&o->grad_output, c->grad_output);
    return FASTCE_OK;
}

static double denominator_of(const fastce_options *o, const fastce_totals *totals) {
    if (o->reduction == FASTCE_SUM) return 1;
    return o->denominator > 0 ? o->denominator : totals->weight;
}

/* A gradient is that of the value returned, so the weights are totalled first. */
static fastce_status reduce(call *c, int num_threads, fastce_result *result) {
    fastce_problem *q = &c->problem;
    fastce_totals totals;
    fastce_status status = spread(c);
    if (status == FASTCE_OK && q->output == FASTCE_GRAD) {
        status = fastce_scan(q, num_threads, &totals);
        double denominator = denominator_of(&c->options, &totals);
        q->grad_scale = denominator == 0 ? 0 : 1 / denominator;
        q->scanned = 1;
    }
    if (status == FASTCE_OK) status = fastce_run(q, NULL, num_threads, &totals);
    free(c->class_vector);
    if (status == FASTCE_BAD_ROW)
        result->bad_row = q->kind == FASTCE_BINARY_LOGITS ? totals.bad_row / c->shape[1] : totals.bad_row;
    if (status != FASTCE_OK) return status;
    double denominator = denominator_of(&c->options, &totals);
    *result = (fastce_result){
        .loss = denominator == 0 ? (double)NAN : totals.loss / denominator, .denominator = denominator, .bad_row = -1};
    return FASTCE_OK;
}

static fastce_status carry_out_loss(call *c, const fastce_options *options, int num_threads, fastce_result *result) {
    if (!result || (uintptr_t)result % sizeof(double)) return FASTCE_BAD_POINTER;
    fastce_status status = add_options(c, options);
    return status == FASTCE_OK ? reduce(c, num_threads, result) : status;
}

static fastce_status carry_out_labels(const fastce_matrix *logits, const fastce_column *labels,
                                      const fastce_options *options, const fastce_matrix *grad, int num_threads,
                                      fastce_result *result) {
    call c;
    fastce_status status = begin(&c, logits, grad ? FASTCE_GRAD : FASTCE_LOSS);
    if (status != FASTCE_OK) return status;
    if (grad && !same_shape(logits, grad)) return FASTCE_BAD_SIZE;
    c.problem.target_kind = FASTCE_LABELS;
    c.problem.target = array_of_column(labels, c.target);
    if (grad) c.problem.out = array_of(grad, c.out);
    return carry_out_loss(&c, options, num_threads, result);
}

static fastce_status carry_out_dense(const fastce_matrix *logits, const fastce_matrix *target, fastce_kind kind,
                                     const fastce_options *options, const fastce_matrix *grad, int num_threads,
                                     fastce_result *result) {
    call c;
    fastce_status status = begin(&c, logits, grad ? FASTCE_GRAD : FASTCE_LOSS);
    if (status != FASTCE_OK) return status;
    if (!same_shape(logits, target) || (grad && !same_shape(logits, grad))) return FASTCE_BAD_SIZE;
    c.problem.kind = kind;
    c.problem.target_kind = FASTCE_DENSE;
    c.problem.target = array_of(target, c.target);
    if (grad) c.problem.out = array_of(grad, c.out);
    if (kind == FASTCE_BINARY_LOGITS) {
        c.problem.n_axes = 2;
        c.problem.n_classes = 1;
        c.problem.logits.class_stride = c.problem.target.class_stride = c.problem.out.class_stride = 0;
    }
    return carry_out_loss(&c, options, num_threads, result);
}

fastce_status fastce_cross_entropy(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                   int num_threads, fastce_result *result) {
    return carry_out_labels(&logits, &labels, options, NULL, num_threads, result);
}

fastce_status fastce_cross_entropy_with_grad(fastce_matrix logits, fastce_column labels, const fastce_options *options,
                                             fastce_matrix grad, int num_threads, fastce_result *result) {
    return carry_out_labels(&logits, &labels, options, &grad, num_threads, result);
}

fastce_status fastce_dense_cross_entropy(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                         int num_threads, fastce_result *result) {
    return carry_out_dense(&logits, &target, FASTCE_LOGITS, options, NULL, num_threads, result);
}

fastce_status fastce_dense_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                   const fastce_options *options, fastce_matrix grad, int num_threads,
                                                   fastce_result *result) {
    return carry_out_dense(&logits, &target, FASTCE_LOGITS, options, &grad, num_threads, result);
}

fastce_status fastce_binary_cross_entropy(fastce_matrix logits, fastce_matrix target, const fastce_options *options,
                                          int num_threads, fastce_result *result) {
    return carry_out_dense(&logits, &target, FASTCE_BINARY_LOGITS, options, NULL, num_threads, result);
}

fastce_status fastce_binary_cross_entropy_with_grad(fastce_matrix logits, fastce_matrix target,
                                                    const fastce_options *options, fastce_matrix grad, int num_threads,
                                                    fastce_result *result) {
    return carry_out_dense(&logits, &target, FASTCE_BINARY_LOGITS, options, &grad, num_threads, result);
}

static fastce_status map(const fastce_matrix *logits, fastce_output output, const fastce_matrix *out, void *values,
                         int num_threads) {
    call c;
    fastce_totals totals;
    fastce_status status = begin(&c, logits, output);
    if (status != FASTCE_OK) return status;
    if (out && !same_shape(logits, out)) return FASTCE_BAD_SIZE;
    if (out) c.problem.out = array_of(out, c.out);
    c.problem.row_values = values;
    return fastce_run(&c.problem, NULL, num_threads, &totals);
}

fastce_status fastce_softmax(fastce_matrix logits, fastce_matrix out, int num_threads) {
    return map(&logits, FASTCE_SOFTMAX, &out, NULL, num_threads);
}

fastce_status fastce_log_softmax(fastce_matrix logits, fastce_matrix out, int num_threads) {
    return map(&logits, FASTCE_LOG_SOFTMAX, &out, NULL, num_threads);
}

fastce_status fastce_logsumexp(fastce_matrix logits, void *lse, int num_threads) {
    return map(&logits, FASTCE_LSE, NULL, lse, num_threads);
}

const fastce_functions_1 *fastce_get_functions(void) {
    static const fastce_functions_1 functions = {
        .abi_version = fastce_abi_version,
        .status_message = fastce_status_message,
        .scan = fastce_scan,
        .run = fastce_run,
        .isa_names = fastce_isa_names,
        .isa_runs = fastce_isa_runs,
        .cpu_feature_names = fastce_cpu_feature_names,
        .cpu_has = fastce_cpu_has,
        .kernel_name = fastce_kernel_name,
        .has_openmp = fastce_has_openmp,
        .cross_entropy = fastce_cross_entropy,
        .cross_entropy_with_grad = fastce_cross_entropy_with_grad,
        .dense_cross_entropy = fastce_dense_cross_entropy,
        .dense_cross_entropy_with_grad = fastce_dense_cross_entropy_with_grad,
        .binary_cross_entropy = fastce_binary_cross_entropy,
        .binary_cross_entropy_with_grad = fastce_binary_cross_entropy_with_grad,
        .softmax = fastce_softmax,
        .log_softmax = fastce_log_softmax,
        .logsumexp = fastce_logsumexp,
    };
    return &functions;
}
